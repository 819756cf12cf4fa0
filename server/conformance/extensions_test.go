//go:build linux

package conformance

import (
	"encoding/binary"
	"encoding/json"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/server"
)

// This file tests the extensions of this project (protocol.md §15), which every
// generation of the server offers.

const v1 = "sbx.exec.v1"

// Discovery: what there is, and no more than that is promised.
func TestInfo(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		want := `["seed","classic","head","late"]`
		if f.generation != "" {
			want = `["` + f.generation + `"]`
		}
		f.do(step{"GET /info", ``, 200, `{"server":"sbx-star","version":"*","generations":` + want + `,"runtime":"process","isolation":"none","extensions":["exec.v1","leases"],"limits":{},"enforces":{"cpu":false,"memory":false,"pids":false,"storage":false,"network":false,"access_control":false}}`})
	})
}

// A limit that the runtime cannot hold a sandbox to is refused by name, unless
// the server was told to do its best.
func TestUnenforced(t *testing.T) {
	eachWith(t, "all", func(o *server.Options) { o.BestEffort = false }, func(t *testing.T, f *fixture) {
		if f.old() {
			f.do(step{"POST /templates", `{"name":"t",` + template + `}`, 422, refused("cpu")})
			return
		}
		for _, limit := range []string{`"vcpus":1`, `"mem_bytes":4294967296`, `"fs_capacity_bytes":1073741824`} {
			field, _, _ := strings.Cut(strings.Trim(limit, `"`), `"`)
			f.do(step{"POST /boxes", `{` + limit + `}`, 422, refused(field)})
		}
	})
}

// The subprotocol: answered if it was offered, and not otherwise.
func TestExecV1Offered(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		for want, offered := range map[string][]string{v1: {"other", v1}, "": {"other"}} {
			if got := f.dial(offered...).Subprotocol(); got != want {
				t.Errorf("of %q the server takes %q", offered, got)
			}
		}
	})
}

// header is how a frame of output starts, as the text of a Go string.
func header(stream byte, offset uint64) string {
	var text strings.Builder
	for _, b := range binary.BigEndian.AppendUint64([]byte{stream}, offset) {
		text.WriteString(`\x` + string("0123456789abcdef"[b>>4]) + string("0123456789abcdef"[b&15]))
	}
	return text.String()
}

func (f *fixture) playV1(lines ...string) *socket {
	f.Helper()
	s := f.dial(v1)
	s.play(lines...)
	return s
}

func TestExecV1(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		const started, exit0 = `S {"type":"started","command_id":"c"}`, `S {"type":"exit","exit_code":0,"signal":null}`
		// Output as it was written, with offsets of raw bytes; input as it was sent.
		f.playV1(command(`printf '\303\251\377'; read x; echo e >&2; cat`, `,"command_id":"c"`), started,
			`SB "`+header(1, 0)+`\xc3\xa9\xff"`, `CB "\x00x\n"`, `SB "`+header(2, 0)+`e\n"`,
			`CB "\x00\xfe\x00"`, `SB "`+header(1, 3)+`\xfe\x00"`, `C {"type":"input","data":"é"}`, `SB "`+header(1, 5)+`\xc3\xa9"`,
			`C {"type":"close_stdin"}`, exit0, `1000`)
		// Both protocols count on their own: § 6 the text that it makes of the bytes.
		f.playV1(`C {"type":"reconnect","command_id":"c","stdout_offset":3,"stderr_offset":2}`, started, `SB "`+header(1, 3)+`\xfe\x00\xc3\xa9"`, exit0, `1000`)
		f.play(`C {"type":"reconnect","command_id":"c","stdout_offset":5,"stderr_offset":2}`, started, `S {"type":"stdout","offset":5,"data":"�\u0000é"}`, exit0, `1000`)
		// The end says more.
		s := f.playV1(command("kill -TERM $$", ``), `S {"type":"started"}`)
		var end struct {
			Type, Signal string
			ExitCode     int `json:"exit_code"`
			Duration     int `json:"duration_ms"`
		}
		if err := s.ReadJSON(&end); err != nil || end.Type != "exit" || end.Signal != "TERM" || end.ExitCode != 143 || end.Duration < 1 {
			t.Errorf("got %+v, %v", end, err)
		}
		// Signals by name, to the group.
		f.playV1(command("trap 'echo usr1' USR1; (trap '' USR1; exec sleep 1000) & echo on; while :; do wait; done", ``), `S {"type":"started"}`, `SB "`+header(1, 0)+`on\n"`,
			`C {"type":"signal","signal":"USR1"}`, `SB "`+header(1, 3)+`usr1\n"`, `C {"type":"kill"}`, `S {"type":"exit","exit_code":137,"signal":"KILL"}`, `1000`)
		// The size of a terminal, to which the end of input means nothing.
		f.playV1(command("stty -echo; echo on; read x; stty size", `,"pty":true`), `S {"type":"started"}`, `SB "`+header(1, 0)+`on\r\n"`,
			`C {"type":"resize","cols":132,"rows":50}`, `C {"type":"close_stdin"}`, `CB "\x00\n"`, `SB "`+header(1, 4)+`50 132\r\n"`, exit0, `1000`)
		// What is new there means nothing in §6.
		f.play(command("read x; echo $x", ``), `S {"type":"started"}`, `C {"type":"signal","signal":"KILL"}`, `C {"type":"resize","cols":1,"rows":1}`,
			`C {"type":"input","data":"alive\n"}`, `S {"type":"stdout","data":"alive\n"}`, `S {"type":"exit","exit_code":0,"signal":null,"duration_ms":null}`, `1000`)
	})
}

// What the ring lost is told, and the frames are no larger than they may be.
func TestExecV1Gap(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		const size = 6 << 20
		f.playV1(command("head -c 6291456 /dev/zero", `,"command_id":"c"`), `S {"type":"started","pid":"$pid"}`).Close()
		f.until(step{"POST $url/execute", `{"command":["bash","-c","! kill -0 $pid"]}`, 200, `{"exit_code":0}`})
		s := f.playV1(`C {"type":"reconnect","command_id":"c","stdout_offset":0,"stderr_offset":0}`, `S {"type":"started"}`)
		at, gaps := int64(0), 0
		for {
			kind, data, err := s.ReadMessage()
			if err != nil {
				t.Fatal(err)
			}
			if kind == websocket.BinaryMessage {
				if got := int64(binary.BigEndian.Uint64(data[1:])); got != at || len(data) > 9+256<<10 {
					t.Fatalf("%d bytes at %d, want them at %d", len(data), got, at)
				}
				at += int64(len(data) - 9)
				continue
			}
			var m struct {
				Type, Stream string
				From, To     int64
			}
			if err := json.Unmarshal(data, &m); err != nil {
				t.Fatal(err)
			}
			if m.Type == "exit" {
				break
			}
			if m.Type != "gap" || m.Stream != "stdout" || m.From != at || m.To <= at {
				t.Fatalf("at %d: got %s", at, data)
			}
			at, gaps = m.To, gaps+1
		}
		if at != size || gaps != 1 {
			t.Errorf("it ends at %d of %d, after %d gaps", at, size, gaps)
		}
	})
}

// Sandboxes under a lease that nobody renews are deleted.
func TestLeases(t *testing.T) {
	var later atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	eachWith(t, "all", func(o *server.Options) { o.Now = now }, func(t *testing.T, f *fixture) {
		later.Store(0)
		for _, lease := range []string{`{"id":"","ttl_seconds":60}`, `{"id":"a/b","ttl_seconds":60}`, `{"id":"a","ttl_seconds":0}`, `{"id":"a","ttl_seconds":-1}`, `"a"`} {
			f.do(step{"POST /boxes", `{$source"lease":` + lease + `}`, 422, `{"detail":[{}]}`})
		}
		f.box(`"name":"kept","lease":{"id":"a","ttl_seconds":60}`)
		f.box(`"name":"lost","lease":{"id":"b","ttl_seconds":60}`)
		f.box(`"name":"free"`)
		f.do(
			step{"POST /leases/none/renew", `{}`, 404, formA("NotFound")},
			step{"GET /leases/a/renew", ``, 405, formA("MethodNotAllowed")},
		)
		later.Store(int64(40 * time.Second))
		f.do(step{"POST /leases/a/renew", `{}`, 204, ``})
		later.Store(int64(80 * time.Second))
		// Another server on the same state looks after them at once.
		f.server.Close()
		f.start()
		f.until(step{"GET /boxes/lost", ``, 404, formA("NotFound")})
		f.do(
			step{"GET /boxes/kept", ``, 200, `{"status":"ready"}`},
			step{"GET /boxes/free", ``, 200, `{"status":"ready"}`},
			step{"POST /leases/b/renew", `{}`, 404, formA("NotFound")},
		)
	})
}
