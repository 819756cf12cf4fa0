//go:build linux

package conformance

import (
	"encoding/json"
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/server"
)

// This file tests the points that the protocol leaves to the server, by their
// numbers (protocol.md §13).

// Authentication: 401 form A Unauthorized; X-Api-Key or Bearer; unauthenticated
// mode only on loopback.
func TestPoint01(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		for _, path := range []string{"/boxes", "$url/download?path=%2Fetc%2Fpasswd"} {
			f.do(
				step{"GET " + path + "\nX-Api-Key: ", ``, 401, formA("Unauthorized")},
				step{"GET " + path + "\nX-Api-Key: " + key + "x", ``, 401, formA("Unauthorized")},
				step{"GET " + path + "\nX-Api-Key: \nAuthorization: Bearer wrong", ``, 401, formA("Unauthorized")},
				step{"GET " + path + "\nX-Api-Key: \nAuthorization: Basic " + key, ``, 401, formA("Unauthorized")},
				step{"GET " + path + "\nX-Api-Key: \nAuthorization: bearer " + key, ``, 200, ``},
			)
		}
		open := serve(t, func(o *server.Options) {
			o.APIKey, o.Generations = "", f.options.Generations
		})
		open.do(step{"GET /boxes\nX-Api-Key: ", ``, 200, ``})
		ln, err := net.Listen("tcp", "0.0.0.0:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := open.server.Serve(t.Context(), ln); err == nil {
			t.Error("it serves everybody")
		}
	})
}

// Tenancy: foreign resources look absent (404).
func TestPoint02(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		foreign := serveAs(t, f.options.Generations...)
		f.box(`"name":"b"`)
		foreign.vars["id"] = f.vars["id"]
		foreign.do(
			step{"GET /boxes", ``, 200, `{"sandboxes":[]}`},
			step{"GET /boxes/b", ``, 404, formA("NotFound")},
			step{"GET /boxes/$id", ``, 404, formA("NotFound")},
			step{"DELETE /boxes/$id", ``, 404, formA("NotFound")},
			step{"POST !/sb/$id/execute", `{"command":"true"}`, 404, formA("NotFound")},
		)
	})
}

// Name rules, generation, uniqueness: conflict 409 Conflict.
func TestPoint03(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		long := strings.Repeat("a", 63)
		const registry = `,"url":"https://r.example","username":"u","password":"p"}`
		source := strings.TrimSuffix(","+f.source(), ",")
		for _, kind := range []struct{ in, path, more string }{
			{"seed classic", "/volumes", `,"size":"1Gi"}`}, {"seed classic", "/templates", `,` + template + `}`},
			{"seed classic head late", "/boxes", source + `}`}, {"head late", "/registries", registry},
		} {
			if !f.has(kind.in) {
				continue
			}
			for _, name := range []string{"A", "a_b", "a.b", "-a", "a-", "é", "a/b", "..", long + "a"} {
				f.do(step{"POST " + kind.path, `{"name":"` + name + `"` + kind.more, 422, formB("body", "name")})
			}
			f.do(
				step{"POST " + kind.path, `{"name":"` + long + `"` + kind.more, 201, `{"name":"` + long + `"}`},
				step{"POST " + kind.path, `{"name":"` + long + `"` + kind.more, 409, formA("Conflict")},
			)
		}
		for _, name := range []string{"A", "a:b", "a//b", "", strings.Repeat("a", 129)} {
			f.doIn("classic head late", step{"POST /snapshots", `{"name":"` + name + `","docker_image":"host"}`, 422, formB("body", "name")})
		}
		for _, name := range []string{"a_b.c-1", strings.Repeat("a", 128)} {
			f.doIn("classic head late", step{"POST /snapshots", `{"name":"` + name + `","docker_image":"host"}`, 201, ``})
		}
		f.box(``)
		if name := f.expand("$name"); !regexp.MustCompile(`^sandbox-[0-9a-f]{8}$`).MatchString(name) {
			t.Errorf("the made up name is %q", name)
		}
	})
}

// Lookup: name first, then id.
func TestPoint04(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		source := strings.TrimSuffix(","+f.source(), ",")
		for _, kind := range []struct{ in, path, more string }{
			{"seed classic", "/volumes", `,"size":"1Gi"}`}, {"seed classic", "/templates", `,` + template + `}`},
			{"seed classic head late", "/boxes", source + `}`},
			{"head late", "/registries", `,"url":"https://r.example","username":"u","password":"p"}`},
		} {
			if !f.has(kind.in) {
				continue
			}
			f.vars = map[string]any{}
			f.do(
				step{"POST " + kind.path, `{"name":"first"` + kind.more, 201, `{"id":"$first"}`},
				step{"GET " + kind.path + "/$first", ``, 200, `{"name":"first"}`},
				step{"POST " + kind.path, `{"name":"$first"` + kind.more, 201, `{"id":"$second"}`},
				step{"GET " + kind.path + "/$first", ``, 200, `{"id":"$second"}`},
				step{"DELETE " + kind.path + "/$first", ``, 204, ``},
				step{"GET " + kind.path + "/$first", ``, 200, `{"id":"$first"}`},
			)
		}
	})
}

// Status values: provisioning → ready → stopped ⇄ provisioning → ready; failed;
// deleting is not listed.
func TestPoint05(t *testing.T) {
	eachStrange(t, "classic head late", nil, func(t *testing.T, f *fixture) {
		f.do(
			step{"POST /boxes", `{$source"name":"b","wait_for_ready":false}`, 201, `{"status":"provisioning"}`},
			step{"POST /boxes", `{$source"name":"fails",` + strangely("broken") + `,"wait_for_ready":false}`, 201, `{"status":"provisioning"}`},
		)
		f.until(step{"GET /boxes/b/status", ``, 200, `{"status":"ready"}`})
		f.until(step{"GET /boxes/fails/status", ``, 200, `{"status":"failed","status_message":"~crashed"}`})
		f.do(
			step{"POST /boxes/b/stop", `{}`, 204, ``},
			step{"GET /boxes/b/status", ``, 200, `{"status":"stopped"}`},
			step{"POST /boxes/b/start", `{}`, 202, `{"status":"provisioning"}`},
		)
		f.until(step{"GET /boxes/b/status", ``, 200, `{"status":"ready"}`})
		f.do(
			step{"POST /boxes/fails/start", `{}`, 202, `{"status":"provisioning"}`},
			step{"POST /boxes", `{$source"name":"waits",` + strangely(hanging) + `,"wait_for_ready":false}`, 201, ``},
			step{"GET /boxes?status=provisioning&name_contains=waits", ``, 200, `{"sandboxes":[{"name":"waits"}]}`},
			step{"DELETE /boxes/waits", ``, 204, ``},
			step{"GET /boxes?name_contains=waits", ``, 200, `{"sandboxes":[]}`},
		)
	})
}

// Wait timeouts: clamp: box 1…600, volume 5…300, pool 10…600.
func TestPoint06(t *testing.T) {
	t.Parallel() // it waits
	eachStrange(t, "all", nil, func(t *testing.T, f *fixture) {
		t.Parallel()
		f.do(
			step{"POST /boxes", `{$source` + strangely(hanging) + `,"timeout":0}`, 408, `{"detail":{"error":"*","message":"~1s"}}`},
			step{"POST /boxes", `{$source"timeout":1000000}`, 201, ``},
		)
		f.doIn("seed classic",
			step{"POST /templates", `{"name":"good",` + template + `}`, 201, ``},
			step{"POST /volumes", `{"name":"v","size":"1Gi","timeout":0}`, 201, ``},
			step{"POST /volumes", `{"name":"w","size":"1Gi","timeout":1000000}`, 201, ``},
			step{"POST /pools", `{"name":"p","template_name":"good","replicas":1,"timeout":0}`, 201, ``},
			step{"POST /pools", `{"name":"q","template_name":"good","replicas":1,"timeout":1000000}`, 201, ``},
		)
	})
}

// Failed create: rolled back before answering.
func TestPoint07(t *testing.T) {
	t.Parallel() // it waits
	eachStrange(t, "all", nil, func(t *testing.T, f *fixture) {
		t.Parallel()
		for how, status := range map[string]int{hanging: 408, "broken": 422} {
			f.do(
				step{"POST /boxes", `{$source"name":"b",` + strangely(how) + `,"timeout":1}`, status, `{"detail":{"error":"*"}}`},
				step{"GET /boxes", ``, 200, `{"sandboxes":[]}`},
			)
		}
		f.doIn("seed classic",
			step{"POST /templates", `{"name":"broken","image":"broken","resources":{"cpu":"1","memory":"1Gi"}}`, 201, ``},
			step{"POST /pools", `{"name":"p","template_name":"broken","replicas":1,"wait_for_ready":true}`, 422, ``},
			step{"GET /pools", ``, 200, `{"pools":[]}`},
			step{"DELETE /templates/broken", ``, 204, ``}, // nothing uses it
		)
		f.box(`"name":"b"`)
	})
}

// Start and stop idempotent, fast 202 and 204.
func TestPoint08(t *testing.T) {
	each(t, "classic head late", func(t *testing.T, f *fixture) {
		f.box(``)
		const start, stop = "POST /boxes/$id/start", "POST /boxes/$id/stop"
		f.do(
			step{start, `{}`, 202, ``}, execute("true", 0, ""),
			step{stop, `{}`, 204, ``}, step{stop, `{}`, 204, ``},
			step{start, `{}`, 202, ``}, step{start, `{}`, 202, ``}, execute("true", 0, ""),
		)
	})
}

// Auto-resume on data-plane, tunnel, service and download traffic.
func TestPoint09(t *testing.T) {
	each(t, "classic head late", func(t *testing.T, f *fixture) {
		f.box(``)
		f.do(
			upload("f", "text", 200, ``),
			step{"POST /boxes/$id/service-url", `{"port":1}`, 200, `{"service_url":"$service","token":"$token"}`},
		)
		calls := []step{
			execute("cat f", 0, "text"),
			{"GET $url/download?path=f", ``, 200, `=text`},
			{"GET $service/\nX-Langsmith-Sandbox-Service-Token: $token", ``, 502, ``},
		}
		if f.has("head late") {
			f.do(step{"POST /boxes/$id/download-url", `{"path":"f"}`, 200, `{"download_url":"$link"}`})
			calls = append(calls, step{"GET $link", ``, 200, `=text`})
		}
		for _, wake := range calls {
			f.do(step{"POST /boxes/$id/stop", `{}`, 204, ``}, wake, step{"GET /boxes/$id/status", ``, 200, `{"status":"ready"}`})
		}
		f.do(step{"POST /boxes/$id/stop", `{}`, 204, ``})
		f.play(command("true", ""), `S {"type":"started"}`, `S {"type":"exit","exit_code":0}`, `1000`)
	})
}

// hasty is a clock that an hour passes on whenever somebody looks.
func hasty() func() time.Time {
	var looks atomic.Int64
	start := time.Now()
	return func() time.Time { return start.Add(time.Duration(looks.Add(1)) * time.Hour) }
}

// Idle: it is over what is stopped, or deleted if it is of the classic
// generation; 0 is never.
func TestPoint10(t *testing.T) {
	each(t, "classic head late", func(t *testing.T, f *fixture) {
		f.doIn("head late",
			step{"POST /boxes", `{"name":"head","idle_ttl_seconds":60}`, 201, ``},
			step{"POST /boxes", `{"name":"never","idle_ttl_seconds":0}`, 201, ``},
		)
		f.doIn("classic",
			step{"POST /templates", `{"name":"t",` + template + `}`, 201, ``},
			step{"POST /boxes", `{"name":"classic","template_name":"t","idle_ttl_seconds":60}`, 201, ``},
			step{"POST /boxes", `{"name":"unset","template_name":"t"}`, 201, ``},
		)
		f.server.Close()
		f.options.Now = hasty()
		f.start()
		if f.has("head late") {
			f.until(step{"GET /boxes/head", ``, 200, `{"status":"stopped","stopped_at":"*"}`})
			f.do(step{"GET /boxes/never", ``, 200, `{"status":"ready"}`})
		}
		if f.has("classic") {
			f.until(step{"GET /boxes/classic", ``, 404, ``})
			f.do(step{"GET /boxes/unset", ``, 200, `{"status":"ready"}`})
		}
	})
}

// TTL minimum resolution: non-multiples of 60 → 422.
func TestPoint11(t *testing.T) {
	each(t, "classic head late", func(t *testing.T, f *fixture) {
		f.box(`"idle_ttl_seconds":60`)
		for _, field := range []string{"ttl_seconds", "idle_ttl_seconds", "delete_after_stop_seconds"} {
			for _, seconds := range []string{"1", "59", "61", "-60"} {
				f.do(
					step{"POST /boxes", `{$source"` + field + `":` + seconds + `}`, 422, formB("body", field)},
					step{"PATCH /boxes/$id", `{"` + field + `":` + seconds + `}`, 422, formB("body", field)},
				)
			}
		}
	})
}

// Snapshot build: asynchronous; failed carries status_message; delete while in
// use: boxes keep running (copy-on-write) → 204.
func TestPoint12(t *testing.T) {
	eachStrange(t, "classic head late", nil, func(t *testing.T, f *fixture) {
		f.do(
			step{"POST /snapshots", `{"name":"waits","docker_image":"hanging"}`, 201, `{"id":"$waits","status":"building"}`},
			step{"POST /snapshots", `{"name":"fails","docker_image":"broken"}`, 201, `{"id":"$fails","status":"building"}`},
			step{"GET /boxes", ``, 200, `{"sandboxes":[]}`},
			step{"POST /boxes", `{"snapshot_id":"$waits"}`, 400, formA("SnapshotNotFound")},
		)
		f.until(step{"GET /snapshots/$fails", ``, 200, `{"status":"failed","status_message":"~crashed"}`})
		f.box(``)
		f.do(execute("echo kept > f", 0, ""), step{"POST /boxes/$id/snapshot", `{"name":"s"}`, 201, `{"id":"$s","status":"building"}`})
		f.until(step{"GET /snapshots/$s", ``, 200, `{"status":"ready"}`})
		f.box(`"snapshot_id":"` + f.expand("$s") + `"`)
		f.do(
			step{"DELETE /snapshots/$s", ``, 204, ``},
			step{"GET /snapshots/$s", ``, 404, formA("NotFound")},
			execute("cat f", 0, "kept\n"),
			step{"POST /boxes/$id/stop", `{}`, 204, ``},
			execute("cat f", 0, "kept\n"),
			step{"DELETE /snapshots/$waits", ``, 204, ``},
		)
	})
}

// Two snapshots with one name: allowed, snapshot_name resolves to the newest
// ready one.
func TestPoint13(t *testing.T) {
	eachStrange(t, "head late", nil, func(t *testing.T, f *fixture) {
		f.do(
			step{"POST /snapshots", `{"name":"s","docker_image":"host"}`, 201, `{"id":"$first"}`},
			step{"POST /snapshots", `{"name":"s","docker_image":"host"}`, 201, `{"id":"$second"}`},
			step{"POST /snapshots", `{"name":"s","docker_image":"hanging"}`, 201, `{"status":"building"}`},
			step{"GET /snapshots", ``, 200, `{"snapshots":[{},{"id":"$second"},{"id":"$first"}]}`},
			step{"POST /boxes", `{"snapshot_name":"s"}`, 201, `{"snapshot_id":"$second"}`},
		)
	})
}

// Snapshot list: newest first, limit default 50, 1…500 else 422.
func TestPoint14(t *testing.T) {
	each(t, "classic head late", func(t *testing.T, f *fixture) {
		for i := range 51 {
			f.do(step{"POST /snapshots", fmt.Sprintf(`{"name":"s%d","docker_image":"host"}`, i), 201, ``})
		}
		for query, want := range map[string]int{"": 50, "?limit=500": 51, "?limit=1": 1, "?offset=50": 1} {
			_, body, err := f.send(t.Context(), "GET /snapshots"+query, "")
			var list struct{ Snapshots []struct{ Name string } }
			if err != nil || json.Unmarshal(body, &list) != nil || len(list.Snapshots) != want {
				t.Errorf("%q: got %d, %v, want %d", query, len(list.Snapshots), err, want)
			} else if first := list.Snapshots[0].Name; query != "?offset=50" && first != "s50" {
				t.Errorf("%q: %s is first", query, first)
			}
		}
		for _, limit := range []string{"0", "501", "-1", "x"} {
			f.do(step{"GET /snapshots?limit=" + limit, ``, 422, formB("query", "limit")})
		}
	})
}

// dataplane_url: absolute, per box id (never per name, names change), no
// trailing slash.
func TestPoint15(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(`"name":"b"`)
		url, id := f.expand("$url"), f.expand("$id")
		if !strings.HasPrefix(url, f.url+"/") || !strings.Contains(url, id) || strings.HasSuffix(url, "/") {
			t.Errorf("the URL is %s", url)
		}
		f.do(step{"PATCH /boxes/b", `{"name":"c"}`, 200, `{"dataplane_url":"$url"}`}, execute("echo there", 0, "there\n"))
	})
}

// Error bodies: form A/B always, JSON content type, also for 404 on unknown
// routes and 405. (The fixture looks at the form.)
func TestPoint16(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		for _, path := range []string{"!/", "!/x", "/", "/x", "/boxes/a/b/c", "$url", "$url/", "$url/x", "!/dl/x?token=x", "!/svc/x/1/", "!/svc/x", "!/sb", "/boxes/%ff"} {
			res, body, err := f.send(t.Context(), "GET "+path, "")
			if err != nil || res.StatusCode < 401 || res.StatusCode > 404 {
				t.Errorf("%s: %v, %v", path, res, err)
			} else if problem := form(res, body, false); problem != "" {
				t.Errorf("%s: %s", path, problem)
			}
		}
		f.doIn("classic head late", step{"PUT /boxes/x/start", ``, 405, "Allow: ~POST\n" + formA("MethodNotAllowed")})
		for path, allow := range map[string]string{"/boxes": "POST", "/boxes/x": "PATCH", "$url/execute": "POST", "$url/download": "GET", "$url/upload": "POST"} {
			f.do(step{"PUT " + path, ``, 405, "Allow: ~" + allow + "\n" + formA("MethodNotAllowed")})
		}
		f.do(step{"GET $url/execute/ws", ``, 426, ``})
	})
}

// 429: with Retry-After; quota words as in §3.1.
func TestPoint17(t *testing.T) {
	quota := server.Quota{Sandboxes: 1, Volumes: 1, VolumeBytes: 2 << 30, Pools: 1, Snapshots: 1}
	eachWith(t, "all", func(o *server.Options) { o.Quota = quota }, func(t *testing.T, f *fixture) {
		f.box(``)
		f.doIn("seed classic",
			step{"POST /templates", `{"name":"t",` + template + `}`, 201, ``},
			step{"POST /volumes", `{"name":"v","size":"1Gi"}`, 201, ``},
		)
		f.doIn("classic head late", step{"POST /snapshots", `{"name":"s","docker_image":"host"}`, 201, ``})
		count := regexp.MustCompile(`(?i)count|limit`)
		for _, row := range []struct {
			in, ask, body string
			words         string
			counted       bool
		}{
			{"seed classic head late", "POST /boxes", `{$source"env_vars":{}}`, "sandbox", true},
			{"seed classic", "POST /pools", `{"name":"p","template_name":"t","replicas":1}`, "sandbox", true},
			{"seed classic", "POST /volumes", `{"name":"w","size":"1Gi"}`, "volume", true},
			{"seed classic", "PATCH /volumes/v", `{"size":"3Gi"}`, "storage", false},
			{"classic head late", "POST /snapshots", `{"name":"t","docker_image":"host"}`, "snapshot", true},
		} {
			if !f.has(row.in) {
				continue
			}
			res, body, err := f.send(t.Context(), row.ask, row.body)
			if err != nil || res.StatusCode != 429 || !regexp.MustCompile(`^[0-9]+$`).MatchString(res.Header.Get("Retry-After")) {
				t.Errorf("%s: %v, %v", row.ask, res, err)
			} else if text := string(body); !strings.Contains(text, row.words) || count.MatchString(text) != row.counted {
				t.Errorf("%s: the quota of %s is refused with %s", row.ask, row.words, text)
			}
		}
	})
}

// 502/503/504: only when repeating the request is harmless.
func TestPoint18(t *testing.T) {
	t.Parallel() // it waits
	each(t, "all", func(t *testing.T, f *fixture) {
		t.Parallel()
		f.box(``)
		f.do(
			step{"POST $url/execute", `{"command":"sleep 1000","timeout":1}`, 400, formA("CommandError")},
			step{"POST $url/execute", `{"command":"kill -9 $PPID; sleep 1000"}`, 500, formA("CommandError")}, // its daemon
		)
	})
}

// Exec spawn, exit codes, stdin, encoding.
func TestPoint19(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		f.do(
			execute("echo $0 $-", 0, "/bin/bash hBc\n"),
			execute("exit 255", 255, ""),
			execute("kill -KILL $$", 137, ""),
			execute("cat", 0, ""),
			execute(`printf '\xff\xc3'`, 0, "��"),
			step{"POST $url/execute", `{"command":"true","shell":"/no/shell"}`, 400, formA("CommandError")},
		)
	})
}

// Ring buffer size, offset numbering, UTF-8 splitting.
func TestPoint20(t *testing.T) {
	t.Parallel() // it waits
	each(t, "all", func(t *testing.T, f *fixture) {
		t.Parallel()
		f.box(``)
		const mib = 1 << 20
		for id, size := range map[string]int{"fits": 4 * mib, "overruns": 6 * mib} {
			delete(f.vars, "c")
			line := fmt.Sprintf("read; yes é | tr -d '\\n' | head -c %d", size)
			s := f.play(command(line, `,"command_id":"`+id+`"`), `S {"type":"started","command_id":"$c","pid":"$`+id+`"}`, `C {"type":"input","data":"\n"}`)
			s.Close()
			f.until(step{"POST $url/execute", `{"command":["bash","-c","! kill -0 $` + id + `"]}`, 200, `{"exit_code":0}`})
			s = f.play(`C {"type":"reconnect","command_id":"$c","stdout_offset":0,"stderr_offset":0}`, `S {"type":"started"}`)
			var first message
			if err := s.ReadJSON(&first); err != nil || id == "fits" && first.Offset != 0 {
				t.Fatalf("%s begins at %d, %v", id, first.Offset, err)
			}
			texts, last := s.rest(first.Offset+int64(len(first.Data)), 0)
			text := first.Data + texts["stdout"]
			if want := strings.Repeat("é", len(text)/2); text != want || len(text) < 4*mib || first.Offset+int64(len(text)) != int64(size) || last.Type != "exit" {
				t.Errorf("%s: of %d bytes %d from %d on, whole %v, %+v", id, size, len(text), first.Offset, text == want, last)
			}
		}
		// What is not UTF-8 is replaced before it is counted.
		f.play(command(`printf 'a\xffb'; read; echo c`, ""), `S {"type":"started"}`, `S {"type":"stdout","data":"a�b","offset":0}`,
			`C {"type":"input","data":"\n"}`, `S {"type":"stdout","data":"c\n","offset":5}`)
	})
}

// command_id reuse: an execute with a known id attaches, also while others do.
func TestPoint21(t *testing.T) {
	each(t, "head late", func(t *testing.T, f *fixture) {
		f.box(``)
		sockets := make([]*socket, 4)
		for i := range sockets {
			sockets[i] = f.dial()
		}
		var wait sync.WaitGroup
		for _, s := range sockets {
			wait.Go(func() {
				s.WriteMessage(1, []byte(strings.TrimPrefix(command("echo once >> ran; read x", `,"command_id":"c"`), "C ")))
			})
		}
		wait.Wait()
		for _, s := range sockets {
			s.play(`S {"type":"started","command_id":"c","pid":"$pid"}`)
		}
		sockets[3].play(`C {"type":"input","data":"\n"}`)
		for _, s := range sockets {
			s.play(`S {"type":"exit","exit_code":0}`, `1000`)
		}
		f.do(execute("cat ran", 0, "once\n"))
	})
}

// Slow WebSocket reader: block the producer for the attached client.
func TestPoint22(t *testing.T) {
	t.Parallel() // it waits
	each(t, "all", func(t *testing.T, f *fixture) {
		t.Parallel()
		f.box(``)
		const size = 20 << 20 // more than the ring and all sockets on the way hold
		s := f.play(command(fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; touch done", size), ""), `S {"type":"started"}`)
		for range 20 {
			f.do(execute("[ -e done ]", 1, ""))
		}
		if texts, last := s.rest(0, 0); len(texts["stdout"]) != size || last.Type != "exit" {
			t.Errorf("%d bytes, %+v", len(texts["stdout"]), last)
		}
	})
}

// Message sizes: ≤ 64 KiB raw per message, and so below the clients' 1 MiB
// whatever JSON makes of it. (The fixture looks at the raw size.)
func TestPoint23(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		s := f.play(command("head -c 300000 /dev/zero; head -c 300000 /dev/zero | tr '\\0' '\\1' >&2", ""), `S {"type":"started"}`)
		s.SetReadLimit(1 << 20)
		if texts, last := s.rest(0, 0); len(texts["stdout"]) != 300000 || len(texts["stderr"]) != 300000 || last.Type != "exit" {
			t.Errorf("%d and %d bytes, %+v", len(texts["stdout"]), len(texts["stderr"]), last)
		}
	})
}

// Close codes: 1000 only after exit or error, 1001 for planned restarts, with
// the command running on.
func TestPoint24(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		f.play(command("true", ""), `S {"type":"started"}`, `S {"type":"exit","exit_code":0}`, `1000`)
		s := f.play(command("echo x; read x", `,"command_id":"c"`), `S {"type":"started","command_id":"$c","pid":"$pid"}`, `S {"type":"stdout","data":"x\n"}`)
		go f.server.Close()
		s.play(`1001`)
		f.server.Close()
		f.start()
		delete(f.vars, "url")
		f.do(step{"GET /boxes/$id", ``, 200, `{"status":"ready","dataplane_url":"$url"}`})
		s = f.play(`C {"type":"reconnect","command_id":"$c","stdout_offset":2,"stderr_offset":0}`, `S {"type":"started","command_id":"$c","pid":"$pid"}`)
		f.do(step{"DELETE /boxes/$id", ``, 204, ``})
		s.play(`S {"type":"error","error":"*","error_type":"CommandError"}`, `1000`)
	})
}

// File semantics: section 5.
func TestPoint26(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		f.do(
			execute("mkdir dir; ln -s file link; touch file; chmod 640 file", 0, ""),
			upload("link", "text", 200, `{"path":"link","written":4}`),
			execute("readlink link; stat -c %a file; cat file", 0, "file\n640\ntext"),
			upload("new/er/file", "text", 200, ``),
			execute("stat -c %a new new/er new/er/file; ls -A . new/er | grep -c sbx", 1, "755\n755\n644\n0\n"),
			upload("dir", "text", 400, formA("WriteError")),
			upload("file/below", "text", 400, formA("WriteError")),
			upload("%2Fsys%2Ffile", "text", 403, formA("PermissionDenied")),
			upload("", "text", 400, formA("WriteError")),
			step{"GET $url/download?path=dir", ``, 400, formA("ReadError")},
			step{"GET $url/download?path=none", ``, 404, formA("FileNotFound")},
			step{"GET $url/download?path=%2Fproc%2Fself%2Fmem", ``, 500, formA("ReadError")},
		)
	})
}

// Service and download tokens: §2.8, §2.9.
func TestPoint27(t *testing.T) {
	var later atomic.Int64
	eachWith(t, "classic head late", func(o *server.Options) {
		o.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	}, func(t *testing.T, f *fixture) {
		later.Store(0)
		f.box(``)
		f.do(
			upload("f", "text", 200, ``),
			step{"POST /boxes/$id/service-url", `{"port":1,"expires_in_seconds":60}`, 200, `{"service_url":"$service","browser_url":"$browser","token":"$token"}`},
		)
		f.doIn("head late",
			step{"POST /boxes/$id/download-url", `{"path":"f","expires_in_seconds":60}`, 200, `{"download_url":"$link","token":"$linktoken"}`},
			step{"POST /boxes/$id/download-url", `{"path":"f"}`, 200, `{"download_url":"$forever"}`},
		)
		host := strings.Split(f.expand("$browser"), "/")[2]
		const token = "\nX-Langsmith-Sandbox-Service-Token: "
		f.do(
			step{"GET $service/" + token + "$token", ``, 502, ``},
			step{"GET !/\nHost: " + host + "\nX-Api-Key: ", ``, 401, ``},
			step{"GET !/_svc/auth?token=$token\nHost: " + host + "\nX-Api-Key: ", ``, 303, "Set-Cookie: $cookie\nLocation: /\n"},
			step{"GET !/\nHost: " + host + "\nX-Api-Key: \nCookie: $cookie", ``, 502, ``},
		)
		f.doIn("head late",
			step{"GET $service/" + token + "$linktoken", ``, 401, ``},
			step{"GET $link", ``, 200, `=text`},
			step{"GET ${link}A", ``, 403, ``},
		)
		later.Store(int64(61 * time.Second))
		f.do(step{"GET $service/" + token + "$token", ``, 401, ``})
		f.doIn("head late",
			step{"GET $link", ``, 401, ``},
			step{"GET $forever", ``, 200, `=text`},
		)
	})
}

// Secrets: write-only, {type,is_set} on reads.
func TestPoint28(t *testing.T) {
	each(t, "head late", func(t *testing.T, f *fixture) {
		f.do(step{"POST /registries", `{"name":"r","url":"https://r.example","username":"someone","password":"secret"}`, 201, `{"username":null,"password":null}`})
		for _, path := range []string{"/registries", "/registries/r"} {
			if _, body, err := f.send(t.Context(), "GET "+path, ""); err != nil || strings.Contains(string(body), "secret") || strings.Contains(string(body), "someone") {
				t.Errorf("%s: %s, %v", path, body, err)
			}
		}
	})
}

// Request size limits: JSON 1 MiB, else 413 form A.
func TestPoint29(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		padding := strings.Repeat(" ", 1<<20-20)
		f.do(
			step{"PATCH /boxes/$id", `{` + padding + `}`, 200, ``},
			step{"PATCH /boxes/$id", `{` + padding + strings.Repeat(" ", 20) + `}`, 413, `{"detail":{"error":"*"}}`},
			step{"POST $url/execute", `{"command":"true"` + padding + strings.Repeat(" ", 20) + `}`, 413, `{"detail":{"error":"*"}}`},
			upload("large", strings.Repeat("x", 2<<20), 200, `{"written":2097152}`),
		)
	})
}

// Unknown JSON fields: ignored; wrong types → 422 form B with loc.
func TestPoint30(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(`"future":{"a":[1]},"tag_value_ids":["x"]`)
		for _, row := range []struct {
			in, ask, body string
			loc           []any
		}{
			{"all", "POST /boxes", `{"name":1}`, []any{"name"}},
			{"all", "POST /boxes", `{"timeout":"30"}`, []any{"timeout"}},
			{"all", "POST /boxes", `{"timeout":1.5}`, []any{"timeout"}},
			{"all", "POST /boxes", `{"wait_for_ready":"yes"}`, []any{"wait_for_ready"}},
			{"all", "POST /boxes", `{"env_vars":[]}`, []any{"env_vars"}},
			{"all", "POST /boxes", `{"env_vars":{"A":1}}`, []any{"env_vars", "A"}},
			{"all", "PATCH /boxes/$id", `{"idle_ttl_seconds":"x"}`, []any{"idle_ttl_seconds"}},
			{"classic head late", "POST /boxes", `{$source"proxy_config":"x"}`, []any{"proxy_config"}},
			{"classic head late", "POST /boxes", `{$source"proxy_config":{"rules":{}}}`, []any{"proxy_config", "rules"}},
			{"classic head late", "POST /boxes", `{$source"proxy_config":{"rules":[{"name":"r","match_hosts":"x"}]}}`, []any{"proxy_config", "rules", 0, "match_hosts"}},
			{"classic head late", "PATCH /boxes/$id", `{"proxy_config":{"callbacks":{}}}`, []any{"proxy_config", "callbacks"}},
			{"seed classic", "POST /volumes", `{"name":"v","size":1}`, []any{"size"}},
			{"seed classic", "POST /pools", `{"name":"p","template_name":"t","replicas":"1"}`, []any{"replicas"}},
			{"classic head late", "POST /snapshots", `{"name":"s","docker_image":1}`, []any{"docker_image"}},
			{"head late", "POST /registries", `{"name":"s","url":1}`, []any{"url"}},
			{"classic head late", "POST /boxes/$id/service-url", `{"port":"1"}`, []any{"port"}},
			{"head late", "POST /boxes/$id/download-url", `{"path":1}`, []any{"path"}},
		} {
			if row.in == "all" || f.has(row.in) {
				f.do(step{row.ask, row.body, 422, formB(append([]any{"body"}, row.loc...)...)})
			}
		}
		for _, body := range []string{``, `{`, `[]`, `"x"`} {
			f.do(step{"POST /boxes", body, 422, formB("body")})
		}
	})
}
