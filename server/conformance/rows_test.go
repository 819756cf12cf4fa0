//go:build linux

package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/daemon"
	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/server"
)

// This file tests the rows of the tables that need more than a request and its
// answer: a clock, a runtime that counts, an account.

// A clock that tests move. Servers that start look at it at once.
type clock struct{ passed atomic.Int64 }

func (c *clock) now() time.Time { return time.Now().Add(time.Duration(c.passed.Load())) }

// pass moves the clock, and has a server that starts look at it.
func (c *clock) pass(f *fixture, d time.Duration) {
	f.Helper()
	c.passed.Add(int64(d))
	f.server.Close()
	f.start()
	delete(f.vars, "url")
}

// eachWithClock is each, with a clock.
func eachWithClock(t *testing.T, in string, test func(t *testing.T, f *fixture, c *clock)) {
	c := &clock{}
	eachWith(t, in, func(o *server.Options) { o.Now = c.now }, func(t *testing.T, f *fixture) {
		c.passed.Store(0)
		test(t, f, c)
	})
}

// What is not given (§2.7): no end for what is made as in classic, and for all
// others 600 s to the stop and about 14 days to the deletion.
func TestTTLDefaults(t *testing.T) {
	set := func(o *server.Options) { o.StopIdle, o.DeleteStopped = 10*time.Minute, 14*24*time.Hour }
	eachWith(t, "all", set, func(t *testing.T, f *fixture) {
		if f.box(``); f.old() {
			f.do(step{"GET /boxes/$id", ``, 200, `{"ttl_seconds":null,"idle_ttl_seconds":null,"expires_at":null}`})
			return
		}
		f.do(step{"GET /boxes/$id", ``, 200, `{"ttl_seconds":null,"idle_ttl_seconds":600,"delete_after_stop_seconds":1209600,"expires_at":null}`})
	})
}

// The end of classic, which a change moves (§2.7). TestPoint10 has idle ones.
func TestTTLOfClassic(t *testing.T) {
	eachWithClock(t, "classic", func(t *testing.T, f *fixture, c *clock) {
		f.do(
			step{"POST /boxes", `{$source"name":"hard","ttl_seconds":120,"idle_ttl_seconds":6000}`, 201, `{"expires_at":"*"}`},
			step{"POST /boxes", `{$source"name":"moved","ttl_seconds":120}`, 201, ``},
			step{"PATCH /boxes/moved", `{"ttl_seconds":36000}`, 200, `{"ttl_seconds":36000}`},
			step{"POST /boxes", `{$source"name":"off","ttl_seconds":120}`, 201, ``},
			step{"PATCH /boxes/off", `{"ttl_seconds":0}`, 200, `{"expires_at":null}`},
		)
		c.pass(f, time.Hour)
		f.until(step{"GET /boxes/hard", ``, 404, ``})
		f.do(step{"GET /boxes/moved", ``, 200, ``}, step{"GET /boxes/off", ``, 200, ``})
	})
}

// What is stopped is deleted after its time, which a change moves (§2.7).
// TestPoint10 has idle ones.
func TestTTLOfHead(t *testing.T) {
	eachWithClock(t, "head late", func(t *testing.T, f *fixture, c *clock) {
		f.do(
			step{"POST /boxes", `{"name":"short","delete_after_stop_seconds":3600}`, 201, ``},
			step{"POST /boxes", `{"name":"longer","delete_after_stop_seconds":3600}`, 201, ``},
			step{"POST /boxes", `{"name":"never","delete_after_stop_seconds":0}`, 201, ``},
		)
		for _, name := range []string{"short", "longer", "never"} {
			f.do(step{"POST /boxes/" + name + "/stop", `{}`, 204, ``})
		}
		f.do(step{"PATCH /boxes/longer", `{"delete_after_stop_seconds":36000}`, 200, ``})
		c.pass(f, 2*time.Hour)
		f.until(step{"GET /boxes/short", ``, 404, ``})
		f.do(step{"GET /boxes/longer", ``, 200, ``}, step{"GET /boxes/never", ``, 200, ``})
	})
}

// Files survive a stop, and processes do not (§2.6). Attached sockets are told,
// so that no client comes back and wakes the box (§16.6).
func TestStopEndsCommands(t *testing.T) {
	each(t, "classic head late", func(t *testing.T, f *fixture) {
		f.box(``)
		s := f.play(command("echo x > file; echo on; exec sleep 1000", `,"command_id":"c"`), `S {"type":"started","command_id":"$c","pid":"$pid"}`, `S {"type":"stdout","data":"on\n"}`)
		f.do(step{"POST /boxes/$id/stop", `{}`, 204, ``})
		s.play(`S {"type":"error","error":"~stopped","error_type":"CommandError"}`, `1000`)
		f.do(
			step{"POST /boxes/$id/start", `{}`, 202, ``},
			execute("cat file; kill -0 $pid 2>/dev/null || echo gone", 0, "x\ngone\n"),
		)
		f.play(`C {"type":"reconnect","command_id":"$c","stdout_offset":0,"stderr_offset":0}`, `S {"type":"error","error":"*","error_type":"CommandNotFound"}`, `1000`)
	})
}

// A sandbox comes out of the pool of its template, which fills up again; pools
// answer when one is ready (§2.3).
func TestPoolRefills(t *testing.T) {
	var made atomic.Int64
	eachWith(t, "seed classic", func(o *server.Options) {
		o.Runtime = strange{o.Runtime, func(context.Context, runtime.Spec) error { made.Add(1); return nil }}
	}, func(t *testing.T, f *fixture) {
		made.Store(0)
		f.do(
			step{"POST /templates", `{"name":"t",` + template + `}`, 201, ``},
			step{"POST /pools", `{"name":"p","template_name":"t","replicas":1,"wait_for_ready":true,"timeout":30}`, 201, ``},
		)
		if n := made.Load(); n != 1 {
			t.Errorf("after the pool there are %d sandboxes", n)
		}
		f.box(`"template_name":"t"`)
		for end := time.Now().Add(20 * time.Second); made.Load() < 2; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the pool is not filled up")
			}
		}
		f.do(execute("echo warm", 0, "warm\n"), step{"PATCH /pools/p", `{"replicas":0}`, 200, `{"replicas":0}`})
	})
}

// 504: a pool none of whose sandboxes becomes ready in time (§2.3, §3.5). It is
// waited for once, for the shortest time that can be asked for.
func TestPoolNotReady(t *testing.T) {
	t.Parallel() // it waits
	const together = ""
	eachStrange(t, together, nil, func(t *testing.T, f *fixture) {
		f.do(
			step{"POST /templates", `{"name":"hanging","image":"hanging","resources":{"cpu":"1","memory":"1Gi"}}`, 201, ``},
			step{"POST /pools", `{"name":"p","template_name":"hanging","replicas":1,"wait_for_ready":true,"timeout":10}`, 504, formA("Timeout")},
			step{"GET /pools", ``, 200, `{"pools":[]}`},
		)
	})
}

// 503: a volume that cannot be made (§2.1, §3.5).
func TestVolumeFails(t *testing.T) {
	each(t, "seed classic", func(t *testing.T, f *fixture) {
		folder := f.options.StateDir + "/volumes"
		if err := os.RemoveAll(folder); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(folder, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		f.do(step{"POST /volumes", `{"name":"v","size":"1Gi"}`, 503, formA("VolumeProvisioning")})
		if err := os.Remove(folder); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		f.do(step{"GET /volumes", ``, 200, `{"volumes":[]}`}, step{"POST /volumes", `{"name":"v","size":"1Gi"}`, 201, ``})
	})
}

// Filters and tags of snapshots, and the registry of classic (§2.10).
func TestSnapshotLists(t *testing.T) {
	each(t, "classic head late", func(t *testing.T, f *fixture) {
		f.do(
			step{"POST /snapshots", `{"name":"a","docker_image":"host","fs_capacity_bytes":1073741824,"labels":{"team":"x"},"tag":"v1"}`, 201, `{"id":"$a","tags":["v1"]}`},
			step{"POST /snapshots", `{"name":"b","docker_image":"host","fs_capacity_bytes":1073741824,"registry_url":"https://r.example","registry_username":"someone","registry_password":"secret"}`, 201, `{"id":"$b","registry_password":null,"registry_username":null}`},
			step{"GET /snapshots/a:v1", ``, 200, `{"id":"$a"}`},
			step{"GET /snapshots?status=ready&sort_by=name&sort_direction=asc", ``, 200, `{"snapshots":[{"id":"$a"},{"id":"$b"}]}`},
			step{"GET /snapshots?status=failed", ``, 200, `{"snapshots":[]}`},
			step{"GET /snapshots?label=team%3Dx", ``, 200, `{"snapshots":[{"id":"$a"}]}`},
			step{"GET /snapshots?created_by=me", ``, 200, `{"snapshots":[{},{}]}`},
			step{"GET /snapshots?sort_by=size", ``, 422, formB("query", "sort_by")},
			step{"GET /snapshots?offset=-1", ``, 422, formB("query", "offset")},
		)
		if _, body, err := f.send(t.Context(), "GET /snapshots", ""); err != nil || strings.Contains(string(body), "secret") {
			t.Errorf("the password is shown: %s, %v", body, err)
		}
	})
}

const (
	headerRule = `{"name":"h","match_hosts":["a.example"],"headers":[{"name":"X","type":"opaque","value":"hidden"}],"env_vars":{"A":"rule","B":"rule"}}`
	awsRule    = `{"name":"aws","type":"aws","aws":{"access_key_id":{"type":"opaque","value":"hidden"},"secret_access_key":{"type":"workspace_secret","value":"{KEY}"}}}`
)

// A proxy_config that contradicts itself is wrong input (§2.11). What no proxy
// does is refused by name (§15), and so are mounts (§2.12).
func TestProxyConfigRefused(t *testing.T) {
	set := func(o *server.Options) { o.BestEffort = false }
	eachWith(t, "head late", set, func(t *testing.T, f *fixture) {
		f.box(`"proxy_config":{}`)
		f.do(step{"POST /boxes", `{"proxy_config":{"access_control":{"allow_list":["a.example"],"deny_list":["b.example"]}}}`, 422, `{"detail":[{"type":"value_error","msg":"*"}]}`})
		for _, rule := range []string{headerRule, awsRule} {
			f.do(step{"POST /boxes", `{"proxy_config":{"rules":[` + rule + `]}}`, 422, refused("proxy_config")})
		}
		f.do(step{"POST /boxes", `{"proxy_config":{"access_control":{"allow_list":["a.example"]}}}`, 422, refused("proxy_config")})
	})
	each(t, "head late", func(t *testing.T, f *fixture) {
		for _, mount := range []string{"s3", "gcs", "contexthub"} {
			f.do(step{"POST /boxes", `{"mount_config":{"auth":{},"mounts":[{"id":"m","type":"` + mount + `","mount_path":"/mnt/m","` + mount + `":{}}]}}`, 422, refused("mount_config")})
		}
	})
}

// A server that was told to do its best keeps the object, tells no secret, and
// applies the variables of enabled rules, below the box's own (§2.11, §16.3).
func TestProxyConfigKept(t *testing.T) {
	each(t, "classic head late", func(t *testing.T, f *fixture) {
		f.box(`"proxy_config":{"rules":[` + headerRule + `,` + awsRule + `]},"env_vars":{"B":"box"}`)
		const secret = `{"type":"opaque","is_set":true,"value":null}`
		f.do(
			step{"GET /boxes/$id", ``, 200, `{"proxy_config":{"rules":[{"name":"h","headers":[{"name":"X","type":"opaque","is_set":true,"value":null}]},
				{"name":"aws","aws":{"access_key_id":` + secret + `,"secret_access_key":{"type":"workspace_secret","is_set":true,"value":null}}}]}}`},
			execute("echo $A $B", 0, "rule box\n"),
			step{"POST /boxes", `{$source"proxy_config":{"access_control":{"allow_list":["a.example"],"deny_list":["b.example"]}}}`, 422, `{"detail":[{"type":"value_error","msg":"*"}]}`},
		)
		if _, body, err := f.send(t.Context(), "GET /boxes", ""); err != nil || strings.Contains(string(body), "hidden") {
			t.Errorf("a secret is told: %s, %v", body, err)
		}
	})
}

// A role takes the place of the keys, and is no secret (§16.10).
func TestProxyConfigOfRoles(t *testing.T) {
	each(t, "late", func(t *testing.T, f *fixture) {
		const whole = `{"role_arn":"arn","session_tags":{"team":"x"},"access_key_id":null,"secret_access_key":null}`
		f.box(`"proxy_config":{"rules":[{"name":"r","type":"aws","description":"why","match_headers":["a: b"],"aws":{"role_arn":"arn","session_tags":{"team":"x"}}}]}`)
		f.do(step{"GET /boxes/$id", ``, 200, `{"proxy_config":{"rules":[{"name":"r","type":"aws","description":"why","match_headers":["a: b"],"aws":` + whole + `}]}}`})
		for _, wrong := range []string{
			`{"role_arn":"arn","access_key_id":{"type":"opaque","value":"k"}}`, `{"session_tags":{"a":"b"}}`, `{"role_arn":"arn","session_tags":{" ":"b"}}`,
			`{"role_arn":"arn","session_tags":{"a":" "}}`, `{"role_arn":"arn","session_tags":{"aws:a":"b"}}`,
		} {
			f.do(step{"PATCH /boxes/$id", `{"proxy_config":{"rules":[{"name":"r","type":"aws","aws":` + wrong + `}]}}`, 422, `{"detail":[{"type":"value_error"}]}`})
		}
	})
}

// What only the hosted service does with a configuration is refused by name, also
// by a server that was told to do its best (§2.11, §16.10).
func TestProxyConfigOfTheHostedService(t *testing.T) {
	each(t, "late", func(t *testing.T, f *fixture) {
		f.box(``)
		for config, field := range map[string]string{
			`"callbacks":[{"match_hosts":["a.example"],"url":"https://b.example","ttl_seconds":60}]`:      "callbacks",
			`"rules":[{"name":"r","type":"azure","azure":{"tenant_id":"t","client_id":"c"}}]`:             "rules.0.type",
			`"rules":[{"name":"r","azure":{}}]`:                                                           "rules.0.azure",
			`"rules":[{"name":"h"},{"name":"r","type":"relay","relay_id":"i"}]`:                           "rules.1.type",
			`"rules":[{"name":"r","relay_id":"i"}]`:                                                       "relay_id",
			`"rules":[{"name":"r","rewrite":{"port":1,"host":"a.example"}}]`:                              "rewrite",
			`"rules":[{"name":"r","subject_scope":"workspace"}]`:                                          "subject_scope",
			`"rules":[{"name":"r","type":"gcp","gcp":{"scopes":["s"],"workload_identity_provider":"p"}}]`: "workload_identity_provider",
		} {
			f.do(
				step{"POST /boxes", `{"proxy_config":{` + config + `}}`, 422, refused(field)},
				step{"PATCH /boxes/$id", `{"proxy_config":{` + config + `}}`, 422, refused(field)},
			)
		}
	})
}

// A change replaces the whole set, but for opaque values that are left out; a
// stopped box takes it up at its next start (§16.6, §16.10).
func TestProxyConfigChanged(t *testing.T) {
	each(t, "late", func(t *testing.T, f *fixture) {
		f.box(`"proxy_config":{"rules":[` + headerRule + `]}`)
		f.do(
			step{"POST /boxes/$id/stop", `{}`, 204, ``},
			step{"PATCH /boxes/$id", `{"proxy_config":{"rules":[{"name":"h","match_hosts":["a.example"],"headers":[{"name":"X","type":"opaque"}],"env_vars":{"A":"changed"}}]}}`, 200,
				`{"status":"stopped","proxy_config":{"rules":[{"headers":[{"name":"X","type":"opaque","is_set":true,"value":null}]}]}}`},
			execute("echo $A$B", 0, "changed\n"),
			step{"PATCH /boxes/$id", `{"proxy_config":{"rules":[]}}`, 200, ``},
			execute("echo $A$B", 0, "\n"),
		)
	})
}

// 429 on an upgrade carries Retry-After in whole seconds, 60 at most (§16.2).
func TestTooManySockets(t *testing.T) {
	eachWith(t, "all", func(o *server.Options) { o.MaxSockets = 1 }, func(t *testing.T, f *fixture) {
		f.box(``)
		f.play(command("read x", ""), `S {"type":"started"}`)
		f.do(step{"GET $url" + upgrade, ``, 429, "Retry-After: $wait\n" + `{"detail":{"error":"*"}}`})
		if !regexp.MustCompile(`^([0-9]|[1-5][0-9]|60)$`).MatchString(f.expand("$wait")) {
			t.Errorf("wait for %s", f.expand("$wait"))
		}
	})
}

// timed is a runtime whose daemons are quicker than usual.
type timed struct {
	runtime.Runtime
	times daemon.Times
}

func (r timed) Create(ctx context.Context, spec runtime.Spec) (runtime.Instance, error) {
	i, err := r.Runtime.Create(ctx, spec)
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(daemon.Config{Env: spec.Env, Times: r.times})
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return i.Dial(ctx) }}}
	ask, err := http.NewRequestWithContext(ctx, "PUT", "http://sandbox/config", bytes.NewReader(config))
	if err != nil {
		return nil, err
	}
	res, err := client.Do(ask)
	if err != nil {
		return nil, err
	}
	res.Body.Close()
	if res.StatusCode != 204 {
		return nil, errors.New("the daemon refuses its times")
	}
	return i, nil
}

// eachTimed is each, with such daemons.
func eachTimed(t *testing.T, in string, times daemon.Times, test func(t *testing.T, f *fixture)) {
	eachWith(t, in, func(o *server.Options) { o.Runtime = timed{o.Runtime, times} }, test)
}

// A search that takes too long ends with what it has, and says so (§16.5).
func TestSearchTime(t *testing.T) {
	eachTimed(t, "late", daemon.Times{Search: 1}, func(t *testing.T, f *fixture) {
		f.box(``)
		for _, kind := range []string{"glob", "grep"} {
			f.do(step{"POST $url/" + kind, `{"pattern":"x","path":"/"}`, 200, `{"matches":[],"truncated":true}`})
		}
	})
}

// The server pings, and a client that never does is fine; one that does not
// answer is lost, which is a disconnect (§6.1, §6.6).
func TestServerPings(t *testing.T) {
	t.Parallel() // it waits
	eachTimed(t, "all", daemon.Times{Ping: 50 * time.Millisecond, Pong: time.Second}, func(t *testing.T, f *fixture) {
		t.Parallel()
		f.box(``)
		s := f.play(command("read x", ""), `S {"type":"started"}`)
		answer, pings := s.PingHandler(), 0
		s.SetPingHandler(func(data string) error {
			if pings++; pings == 3 {
				s.play(`C {"type":"input","data":"\n"}`)
			}
			return answer(data)
		})
		s.play(`S {"type":"exit","exit_code":0}`, `1000`)
		if pings < 3 {
			t.Errorf("%d pings came", pings)
		}
		s = f.play(`C {"type":"execute","command":"exec sleep 1000","kill_on_disconnect":true}`, `S {"type":"started","command_id":"$c"}`)
		s.SetPingHandler(func(string) error { return nil })
		if _, data, err := s.ReadMessage(); err == nil {
			t.Errorf("the silent client got %s", data)
		}
		f.play(`C {"type":"reconnect","command_id":"$c","stdout_offset":0,"stderr_offset":0}`, `S {"type":"started"}`, `S {"type":"exit","exit_code":137}`, `1000`)
	})
}

// Further rows of sessions (§6.2, §6.6).
func TestSessionRows(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		const exit0 = `S {"type":"exit","exit_code":0}`
		// An id that the server made is a UUIDv7.
		f.play(command("true", ""), `S {"type":"started","command_id":"$made"}`, exit0, `1000`)
		if id := f.expand("$made"); !regexp.MustCompile(`^[0-9a-f]{8}-?[0-9a-f]{4}-?7[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$`).MatchString(id) {
			t.Errorf("the id is %s", id)
		}
		// One command per socket; without limits in time; input after the end.
		f.play(`C {"type":"execute","command":"read x; echo $x","timeout_seconds":0,"idle_timeout_seconds":-1,"ttl_seconds":-1,"command_id":"c"}`, `S {"type":"started","command_id":"$c"}`,
			command("echo second", ""), `C {"type":"reconnect","command_id":"other","stdout_offset":0,"stderr_offset":0}`,
			`C {"type":"input","data":"first\n"}`, `S {"type":"stdout","data":"first\n"}`, exit0, `1000`)
		f.play(`C {"type":"reconnect","command_id":"$c","stdout_offset":6,"stderr_offset":0}`, `C {"type":"input","data":"late"}`, `C {"type":"kill"}`, `S {"type":"started"}`, exit0, `1000`)
		// Ids are the sandbox's own.
		f.box(``)
		f.play(`C {"type":"reconnect","command_id":"$c","stdout_offset":0,"stderr_offset":0}`, `S {"type":"error","error":"*","error_type":"CommandNotFound"}`, `1000`)
	})
}

// Accounts of commands and files (§5, §16.3). Who is not root is only itself.
func TestAccounts(t *testing.T) {
	each(t, "late", func(t *testing.T, f *fixture) {
		me, group := fmt.Sprint(os.Getuid()), fmt.Sprint(os.Getgid())
		account := me
		if me == "0" {
			account = "65534"
		}
		f.box(fmt.Sprintf(`"run_config":{"user":%q,"work_dir":"/"}`, account))
		f.do(
			execute("id -u", 0, account+"\n"),
			step{"GET $url/download?path=%2Fetc%2Fshadow", ``, 403, formA("PermissionDenied")},
			step{"HEAD $url/download?path=%2Fetc%2Fshadow", ``, 403, ``},
			upload("%2Fetc%2Fconformance", "text", 403, formA("PermissionDenied")),
		)
		for given, want := range map[string]string{me: me, me + ":" + group: me} {
			f.do(step{"POST $url/execute", `{"command":"id -u","run_config":{"user":"` + given + `"}}`, 200, `{"stdout":"` + want + `\n"}`})
		}
		f.do(step{"POST $url/execute", `{"command":"true","run_config":{"user":"no-such-account"}}`, 400, formA("CommandError")})
	})
}
