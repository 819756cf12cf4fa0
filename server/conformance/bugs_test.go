//go:build linux

package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/server"
)

// This file tests that the bugs that were found over time are not in the server
// (protocol.md §11). Those of clients alone are tested where the client is.

// Fixed upstream, 2313 and 2340: clients with the prefix /api reach the same tree.
func TestBug2313DefaultEndpoint(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.do(
			step{"GET !/v2/sandboxes/boxes", ``, 200, `{"sandboxes":[]}`},
			step{"GET !/api/v2/sandboxes/boxes", ``, 200, `{"sandboxes":[]}`},
		)
	})
}

// 2772 and 2773: the key is never printed, here into the log or an answer; nor
// are the tokens of links.
func TestBug2772KeyExposed(t *testing.T) {
	var log bytes.Buffer
	eachWith(t, "all", func(o *server.Options) {
		log.Reset()
		o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}, func(t *testing.T, f *fixture) {
		f.box(``)
		f.doIn("head late",
			step{"POST /boxes/$id/download-url", `{"path":"f"}`, 200, `{"download_url":"$link","token":"$token"}`},
			step{"GET $link", ``, 404, ``},
		)
		f.do(step{"GET /boxes/" + key + "x?key=" + key + "y\nX-Api-Key: " + key + "z", ``, 401, ``})
		f.server.Close()
		text := strings.ReplaceAll(log.String(), "/boxes/"+key+"x", "")
		if strings.Contains(text, key) || f.has("head late") && strings.Contains(text, f.expand("$token")) {
			t.Errorf("the log tells secrets: %s", text)
		}
	})
}

// 2853: the hard TTL removes stopped boxes too, and their own time after a stop.
func TestBug2853TTLOfStoppedBoxes(t *testing.T) {
	each(t, "classic head late", func(t *testing.T, f *fixture) {
		for _, field := range []string{"ttl_seconds", "delete_after_stop_seconds"} {
			if f.old() && field != "ttl_seconds" {
				continue
			}
			f.box(`"name":"` + strings.ReplaceAll(field, "_", "-") + `","idle_ttl_seconds":0,"` + field + `":60`)
			f.do(step{"POST /boxes/$id/stop", `{}`, 204, ``})
		}
		f.server.Close()
		f.options.Now = hasty()
		f.start()
		f.until(step{"GET /boxes", ``, 200, `{"sandboxes":[]}`})
	})
}

// 2941, and 3022 and 3023: no close without exit, and no output lost with exit 0
// after a reconnect.
func TestBug2941OutputLost(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		const line = "for i in {1..20000}; do echo line $i; done"
		var want strings.Builder
		for i := range 20000 {
			fmt.Fprintf(&want, "line %d\n", i+1)
		}
		s := f.play(command(line, `,"command_id":"c"`), `S {"type":"started","command_id":"$c"}`)
		var first message
		if err := s.ReadJSON(&first); err != nil {
			t.Fatal(err)
		}
		s.Close() // in the middle
		at := int64(len(first.Data))
		s = f.play(fmt.Sprintf(`C {"type":"reconnect","command_id":"$c","stdout_offset":%d,"stderr_offset":0}`, at), `S {"type":"started"}`)
		texts, last := s.rest(at, 0)
		if first.Data+texts["stdout"] != want.String() || last.Type != "exit" || last.ExitCode != 0 {
			t.Errorf("%d bytes of %d, %+v", len(first.Data)+len(texts["stdout"]), want.Len(), last)
		}
		s.play(`1000`)
	})
}

// eachBooting is each, with sandboxes that boot until the function is called.
func eachBooting(t *testing.T, test func(t *testing.T, f *fixture, boot func())) {
	var gate chan struct{}
	eachWith(t, "all", func(o *server.Options) {
		gate = make(chan struct{})
		o.Runtime = strange{o.Runtime, func(ctx context.Context, _ runtime.Spec) error {
			select {
			case <-gate:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
	}, func(t *testing.T, f *fixture) { test(t, f, func() { close(gate) }) })
}

// upgrade is a request for a WebSocket.
const upgrade = "/execute/ws\nConnection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="

// 3004: a sandbox that boots is 503 ServiceUnavailable.
func TestBug3004Booting(t *testing.T) {
	eachBooting(t, func(t *testing.T, f *fixture, boot func()) {
		f.do(
			step{"POST /boxes", `{$source"name":"b","wait_for_ready":false}`, 201, `{"dataplane_url":"$url"}`},
			step{"POST $url/execute", `{"command":"true"}`, 503, formA("ServiceUnavailable")},
			step{"GET $url/download?path=x", ``, 503, formA("ServiceUnavailable")},
		)
		boot()
		f.until(step{"GET /boxes/b/status", ``, 200, `{"status":"ready"}`})
		f.do(execute("echo up", 0, "up\n"))
	})
}

// 3388: so is an upgrade, and it can then be asked for again with the same
// command_id.
func TestBug3388UpgradeWhileBooting(t *testing.T) {
	eachBooting(t, func(t *testing.T, f *fixture, boot func()) {
		f.do(
			step{"POST /boxes", `{$source"name":"b","wait_for_ready":false}`, 201, `{"dataplane_url":"$url"}`},
			step{"GET $url" + upgrade, ``, 503, formA("ServiceUnavailable")},
		)
		boot()
		f.until(step{"GET /boxes/b/status", ``, 200, `{"status":"ready"}`})
		f.play(command("echo up", `,"command_id":"c"`), `S {"type":"started","command_id":"$c"}`, `S {"type":"stdout","data":"up\n"}`, `S {"type":"exit","exit_code":0}`, `1000`)
	})
}

// 3090: a request to a stopped box resumes it.
func TestBug3090StoppedBoxes(t *testing.T) {
	each(t, "classic head late", func(t *testing.T, f *fixture) {
		f.box(``)
		f.do(step{"POST /boxes/$id/stop", `{}`, 204, ``})
		f.play(command("true", ""), `S {"type":"started"}`, `S {"type":"exit","exit_code":0}`, `1000`)
	})
}

// 3273: a stopped box keeps its dataplane_url.
func TestBug3273StoppedBoxKeepsURL(t *testing.T) {
	each(t, "classic head late", func(t *testing.T, f *fixture) {
		f.box(``)
		f.do(
			step{"POST /boxes/$id/stop", `{}`, 204, ``},
			step{"GET /boxes/$id", ``, 200, `{"status":"stopped","dataplane_url":"$url"}`},
		)
	})
}

// 3167, 3177: names cannot lead out of their place in a path, or be empty.
func TestBug3167PathInjection(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(`"name":"b"`)
		for _, name := range []string{"..%2Fboxes%2Fb", "%2E%2E", "b%2Fstatus", "none%2F..%2Fb", "b%00", "b%3Fx"} {
			f.do(
				step{"GET /boxes/" + name, ``, 404, ``},
				step{"DELETE /boxes/" + name, ``, 404, ``},
				step{"GET !/sb/" + name + "/download?path=x", ``, 404, ``},
			)
		}
		f.do(
			step{"GET /boxes//status", ``, 404, ``},
			step{"POST /boxes//stop", `{}`, 404, ``},
			step{"DELETE /boxes/", ``, 405, ``},
			step{"GET /boxes/b", ``, 200, ``},
		)
	})
}

// 3244: of a header that is sent twice, in whatever case, the last one counts.
func TestBug3244HeaderTwice(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		for want, keys := range map[int][]string{200: {"wrong", key}, 401: {key, "wrong"}} {
			text := "GET " + base + "/boxes HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nX-Api-Key: " + keys[0] + "\r\nx-api-key: " + keys[1] + "\r\n\r\n"
			if got := f.raw(text); !strings.HasPrefix(got, fmt.Sprintf("HTTP/1.1 %d ", want)) {
				t.Errorf("%v: got %s", keys, cut(got))
			}
		}
	})
}

// 3261: a command whose start was lost can be started again: it runs once.
func TestBug3261StartLost(t *testing.T) {
	each(t, "head late", func(t *testing.T, f *fixture) {
		f.box(``)
		const line = "echo once | tee -a ran"
		f.play(command(line, `,"command_id":"c"`)).Close() // before anything came back
		for range 3 {
			f.play(command(line, `,"command_id":"c"`), `S {"type":"started","command_id":"c","pid":"$pid"}`,
				`S {"type":"stdout","data":"once\n","offset":0}`, `S {"type":"exit","exit_code":0}`, `1000`)
		}
		f.do(execute("cat ran", 0, "once\n"))
	})
}

// 3266: a command over HTTP whose answer does not come has run, and is answered
// with nothing that clients repeat.
func TestBug3266RunTwice(t *testing.T) {
	each(t, "classic head late", func(t *testing.T, f *fixture) {
		f.box(``)
		f.do(
			step{"POST $url/execute", `{"command":"echo once >> ran; kill -9 $PPID; sleep 1000"}`, 500, formA("CommandError")},
			step{"POST /boxes/$id/start", `{}`, 202, ``},
		)
		f.until(step{"GET /boxes/$id/status", ``, 200, `{"status":"ready"}`})
		f.do(execute("cat ran", 0, "once\n"))
	})
}

// 3301: each reconnect to a silent command is acknowledged with its id.
func TestBug3301SilentCommand(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		f.play(command("read x", `,"command_id":"c"`), `S {"type":"started","command_id":"$c"}`).Close()
		for range 8 {
			f.play(`C {"type":"reconnect","command_id":"$c","stdout_offset":0,"stderr_offset":0}`, `S {"type":"started","command_id":"$c"}`).Close()
		}
	})
}

// 3383: a capture without a capacity has the box's.
func TestBug3383ForcedCapacity(t *testing.T) {
	each(t, "classic head late", func(t *testing.T, f *fixture) {
		f.box(`"fs_capacity_bytes":1073741824`)
		f.do(
			step{"POST /boxes/$id/snapshot", `{"name":"same"}`, 201, `{"fs_capacity_bytes":1073741824}`},
			step{"POST /boxes/$id/snapshot", `{"name":"other","fs_capacity_bytes":2147483648}`, 201, `{"fs_capacity_bytes":2147483648}`},
		)
	})
}

// Still in head, 2: a planned end is close code 1001 and no other.
func TestDefect02(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		s := f.play(command("read x", ""), `S {"type":"started"}`)
		var end sync.WaitGroup
		end.Go(f.server.Close)
		s.play(`1001`)
		end.Wait()
		f.start()
	})
}

// 3: the exit of a killed command is delivered, also by a socket that was opened
// just to kill it.
func TestDefect03(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		f.play(command("sleep 1000", `,"command_id":"c"`), `S {"type":"started","command_id":"$c"}`).Close()
		f.play(`C {"type":"reconnect","command_id":"$c","stdout_offset":0,"stderr_offset":0}`, `S {"type":"started"}`, `C {"type":"kill"}`,
			`S {"type":"exit","exit_code":137}`, `1000`)
	})
}

// 4: what a command wrote before its time was over comes before the error.
func TestDefect04(t *testing.T) {
	t.Parallel() // it waits
	each(t, "all", func(t *testing.T, f *fixture) {
		t.Parallel()
		f.box(``)
		f.play(`C {"type":"execute","command":"trap '' TERM; echo part; sleep 1000","timeout_seconds":1,"command_id":"c"}`, `S {"type":"started","command_id":"$c"}`,
			`S {"type":"stdout","data":"part\n"}`, `S {"type":"error","error":"~1s","error_type":"CommandTimeout"}`, `1000`)
		f.play(`C {"type":"reconnect","command_id":"$c","stdout_offset":0,"stderr_offset":0}`, `S {"type":"started"}`,
			`S {"type":"stdout","data":"part\n"}`, `S {"type":"error","error_type":"CommandTimeout"}`, `1000`)
	})
}

// 7: nothing that may have run is answered with 502, 503 or 504.
func TestDefect07(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		f.do(step{"POST $url/execute", `{"command":"kill -9 $PPID; sleep 1000"}`, 500, formA("CommandError")}) // its daemon
	})
}

// 12: registries are found behind the doubled prefix.
func TestDefect12(t *testing.T) {
	each(t, "head late", func(t *testing.T, f *fixture) {
		f.do(step{"GET !/api/api/v2/sandboxes/registries", ``, 200, `{"registries":[]}`})

	})
}

// 13: dots are no names; 401 on the data plane is form A; a name that is taken
// is 409. (TestStatuses has the 408 of a creation that takes too long.)
func TestDefect13(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(`"name":"b"`)
		f.do(
			step{"POST /boxes", `{$source"name":"."}`, 422, formB("body", "name")},
			step{"POST /boxes", `{$source"name":".."}`, 422, formB("body", "name")},
			step{"PATCH /boxes/b", `{"name":".."}`, 422, formB("body", "name")},
			step{"POST $url/execute\nX-Api-Key: ", `{"command":"true"}`, 401, formA("Unauthorized")},
			step{"POST /boxes", `{$source"name":"b"}`, 409, formA("Conflict")},
		)
	})
}

// 15: no API or data-plane request is answered with a redirect.
func TestDefect15(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		f.do(
			step{"GET /boxes/", ``, 200, ``},
			step{"GET !//v2/sandboxes/boxes", ``, 404, ``},
			step{"GET !/v2/sandboxes//boxes", ``, 404, ``},
			step{"GET !/v2/sandboxes/x/../boxes", ``, 404, ``},
			step{"GET $url", ``, 404, ``},
			step{"GET $url//download?path=x", ``, 404, ``},
		)
	})
}

// 16: who does not page gets all boxes.
func TestDefect16(t *testing.T) {
	eachWith(t, "all", func(o *server.Options) {
		o.Runtime = strange{o.Runtime, func(context.Context, runtime.Spec) error { return errors.New("none is needed") }}
	}, func(t *testing.T, f *fixture) {
		const many = 51
		for range many {
			f.do(step{"POST /boxes", `{$source"wait_for_ready":false}`, 201, ``})
		}
		all := strings.TrimSuffix(strings.Repeat(`{"name":"*"},`, many), ",")
		f.do(step{"GET /boxes", ``, 200, `{"sandboxes":[` + all + `],"offset":0}`})
	})
}
