//go:build linux

package daemon_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/daemon"
)

// The exchange of protocol.md §14.
func TestVectors(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	s, started := b.start(`{"type":"execute","command":"echo hé; sleep 9","timeout_seconds":60,"shell":"/bin/bash","idle_timeout_seconds":300,"kill_on_disconnect":false,"ttl_seconds":600,"command_id":"0198c0ffee0070008000000000000001"}`)
	if want := fmt.Sprintf(`{"type":"started","command_id":"0198c0ffee0070008000000000000001","pid":%d}`, started.PID); started.raw != want || !exists(started.PID) {
		t.Errorf("got %s, want %s", started.raw, want)
	}
	if got, want := s.next().raw, `{"type":"stdout","data":"hé\n","offset":0}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	s.conn.Close()
	s, again := b.start(`{"type":"reconnect","command_id":"0198c0ffee0070008000000000000001","stdout_offset":4,"stderr_offset":0}`)
	if again.raw != started.raw {
		t.Errorf("reconnect is answered with %s, execute was with %s", again.raw, started.raw)
	}
	syscall.Kill(-started.PID, syscall.SIGTERM)
	s.restFrom(4, 0).wantExit(t, 143)
}

// The exchange of protocol.md §16.14, as the user that the test runs as.
func TestVectorsLate(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	s, _ := b.start(fmt.Sprintf(`{"type":"execute","command":"cat","timeout_seconds":60,"shell":"/bin/bash","idle_timeout_seconds":300,"kill_on_disconnect":false,"ttl_seconds":600,"run_config":{"user":"%d","env_vars":{"A":"1"}},"close_stdin":true,"command_id":"01a2067a-34f1-708b-a7ce-dd76d27f023f"}`, os.Getuid()))
	if f := s.next(); f.raw != `{"type":"exit","exit_code":0}` {
		t.Errorf("got %s", f.raw)
	}
	s.wantClose(websocket.CloseNormalClosure)

	b.start(message("cat; echo done", `{"command_id":"cmd1"}`))
	s, _ = b.start(`{"type":"close_stdin"}`, `{"type":"reconnect","command_id":"cmd1","stdout_offset":0,"stderr_offset":0}`)
	out := s.rest()
	out.wantExit(t, 0)
	if out.stdout != "done\n" {
		t.Errorf("stdout is %q", out.stdout)
	}
}

func TestCommandOverSocket(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	for _, tt := range []struct {
		name, message, stdout, stderr string
		code                          int
	}{
		{"both streams", message("echo out; echo err >&2; exit 3"), "out\n", "err\n", 3},
		{"only the command", `{"type":"execute","command":"echo $0","close_stdin":true}`, "/bin/bash\n", "", 0},
		{"list", `{"type":"execute","command":["printf","%s","$0"]}`, "$0", "", 0},
		{"env and cwd", message("echo $A $BOX; pwd", `{"env":{"A":"1"},"cwd":"/"}`), "1 yes\n/\n", "", 0},
		{"run_config", message("echo $A; pwd", `{"run_config":{"env_vars":{"A":"1"},"work_dir":"/"}}`), "1\n/\n", "", 0},
		{"signal", message("kill -9 $$"), "", "", 137},
		{"no output", message("true"), "", "", 0},
		{"not UTF-8", message(`printf 'a\xff\xe2\x82b'; printf '\xe2\x82\xac\xe2' >&2`), "a\ufffd\ufffd\ufffdb", "€\ufffd", 0},
		{"no limit of time", message("echo x", `{"timeout_seconds":0,"idle_timeout_seconds":-1,"ttl_seconds":-1}`), "x\n", "", 0},
		{"output after the shell closed its streams", message("echo x; exec >&- 2>&-; exit 4"), "x\n", "", 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b.t = t
			s, started := b.start(tt.message)
			if started.CommandID == "" || started.PID <= 0 {
				t.Errorf("started is %s", started.raw)
			}
			out := s.rest()
			out.wantExit(t, tt.code)
			if out.stdout != tt.stdout || out.stderr != tt.stderr {
				t.Errorf("got %q and %q, want %q and %q", out.stdout, out.stderr, tt.stdout, tt.stderr)
			}
		})
	}
}

// Without an id the server makes one, of version 7.
func TestMadeID(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	_, one := b.start(message("true"))
	_, two := b.start(message("true"))
	if len(one.CommandID) != 36 || one.CommandID[14] != '7' || one.CommandID == two.CommandID {
		t.Errorf("ids are %s and %s", one.CommandID, two.CommandID)
	}
}

func TestFirstMessageRefused(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	for _, tt := range []struct{ name, message, kind, text string }{
		{"no JSON", `execute`, "InvalidRequest", "not JSON at byte 1"},
		{"no object", `[]`, "InvalidRequest", "want an object, got array"},
		{"no type", `{"command":"true"}`, "InvalidRequest", "must be execute or reconnect"},
		{"unknown type", `{"type":"resize"}`, "InvalidRequest", "must be execute or reconnect"},
		{"input", `{"type":"input","data":"x"}`, "InvalidRequest", "must be execute or reconnect"},
		{"kill", `{"type":"kill"}`, "InvalidRequest", "must be execute or reconnect"},
		{"wrong type", `{"type":"execute","command":"true","timeout_seconds":"9"}`, "InvalidRequest", "timeout_seconds: want a whole number, got string"},
		{"empty command", message(""), "InvalidRequest", "the command is empty"},
		{"negative timeout", message("true", `{"timeout_seconds":-1}`), "InvalidRequest", "timeout_seconds is -1"},
		{"negative idle timeout", message("true", `{"idle_timeout_seconds":-2}`), "InvalidRequest", "idle_timeout_seconds is -2"},
		{"negative TTL", message("true", `{"ttl_seconds":-2}`), "InvalidRequest", "ttl_seconds is -2"},
		{"long id", message("true", `{"command_id":"`+strings.Repeat("x", 257)+`"}`), "InvalidRequest", "command_id is longer"},
		{"env and run_config", message("true", `{"env":{"A":"1"},"run_config":{}}`), "InvalidRequest", "run_config excludes"},
		{"relative work_dir", message("true", `{"run_config":{"work_dir":"x"}}`), "InvalidRequest", "absolute path"},
		{"other user", message("true", `{"run_config":{"user":"no-such"}}`), "CommandError", `user is "no-such"`},
		{"no shell", message("true", `{"shell":"/no/such"}`), "CommandError", "/no/such: no such file"},
		{"no cwd", message("true", `{"cwd":"/no/such"}`), "CommandError", "working directory /no/such"},
		{"no id", `{"type":"reconnect","stdout_offset":0,"stderr_offset":0}`, "InvalidRequest", "command_id is missing"},
		{"negative offset", `{"type":"reconnect","command_id":"x","stdout_offset":-1,"stderr_offset":0}`, "InvalidRequest", "offset is negative"},
		{"unknown id", `{"type":"reconnect","command_id":"nobody","stdout_offset":0,"stderr_offset":0}`, "CommandNotFound", `no command "nobody"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b.t = t
			s := b.socket()
			s.send(tt.message)
			f := s.next()
			if f.Type != "error" || f.ErrorType != tt.kind || !strings.Contains(f.Error, tt.text) {
				t.Errorf("got %s, want %s with %q", f.raw, tt.kind, tt.text)
			}
			s.wantClose(websocket.CloseNormalClosure)
		})
	}
	// A command that could not start is not remembered.
	s := b.socket()
	s.send(message("true", `{"shell":"/no/such","command_id":"again"}`))
	s.next()
	s, _ = b.start(message("true", `{"command_id":"again"}`))
	s.rest().wantExit(t, 0)
}

func TestFirstMessageLateOrLarge(t *testing.T) {
	t.Parallel()
	b := newLimitedBox(t, daemon.Limits{First: 100 * time.Millisecond})
	b.socket().wantClose(websocket.ClosePolicyViolation)
	s := newBox(t).socket()
	s.conn.WriteMessage(websocket.TextMessage, []byte(message(strings.Repeat("x", 1<<20)))) // the answer may come before its end
	s.wantClose(websocket.CloseMessageTooBig)
}

// After the first message unknown ones are ignored; one that is malformed ends
// the socket, and the command goes on.
func TestLaterMessages(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	s, started := b.start(message("read x; echo $x; read x; echo $x"))
	for _, m := range []string{`{"type":"resize","cols":5}`, `{"type":"ping"}`, `{}`, `{"type":"execute","command":"echo never"}`,
		`{"type":"reconnect"}`, `{"type":"exit"}`, `{"type":"input","data":"1\n","more":true}`} {
		s.send(m)
	}
	if f := s.next(); f.Data != "1\n" {
		t.Errorf("got %s", f.raw)
	}
	s.send(`{"type":"input","data":5}`)
	_, err := s.read()
	if !websocket.IsCloseError(err, websocket.CloseInvalidFramePayloadData) || !strings.Contains(err.Error(), "data: want a string, got number") {
		t.Errorf("the malformed message was answered with %v", err)
	}
	s, _ = b.start(reconnect(started.CommandID, 2, 0), `{"type":"input","data":"2\n"}`)
	s.restFrom(2, 0).wantExit(t, 0)
}

func reconnect(id string, stdout, stderr int64) string {
	return fmt.Sprintf(`{"type":"reconnect","command_id":"%s","stdout_offset":%d,"stderr_offset":%d}`, id, stdout, stderr)
}

// Code points that are written byte by byte, or cut by the border of two reads
// or two messages, come whole.
func TestCodePointsStayWhole(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	s, _ := b.start(message(`printf '€' ; printf '\xf0'; read; printf '\x9f'; printf '\x98' >&2; read; printf '\x98\x80\n'`))
	if f := s.next(); f.Data != "€" {
		t.Errorf("got %s", f.raw)
	}
	s.send(`{"type":"input","data":"\n"}`)
	s.send(`{"type":"input","data":"\n"}`)
	out := s.restFrom(3, 0)
	if out.stdout != "😀\n" || out.stderr != "\ufffd" {
		t.Errorf("got %q and %q", out.stdout, out.stderr)
	}

	want := "x" + strings.Repeat("é€😀", 50000)
	b.put("long", want, 0o644)
	s, _ = b.start(message("cat long; cat long >&2"))
	out = s.rest()
	if out.stdout != want || out.stderr != want {
		t.Errorf("got %d and %d bytes, want %d", len(out.stdout), len(out.stderr), len(want))
	}
}

// 20 MB of output arrive as they were.
func TestLongOutput(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	random := rand.NewChaCha8([32]byte{2})
	raw := make([]byte, 15<<20)
	random.Read(raw)
	want := hex.EncodeToString(raw) // 31 MB of text
	want = want[:20_000_000]
	b.put("data", want, 0o644)
	s, _ := b.start(message("cat data & cat data >&2; wait"))
	out := s.rest()
	out.wantExit(t, 0)
	for name, got := range map[string]string{"stdout": out.stdout, "stderr": out.stderr} {
		if sha256.Sum256([]byte(got)) != sha256.Sum256([]byte(want)) {
			t.Errorf("%s has %d bytes and another checksum than the %d that were written", name, len(got), len(want))
		}
	}
}

func TestKill(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	s, _ := b.start(message("trap '' TERM INT HUP; sleep 1000 & echo $! > pid; echo ready; wait"))
	if f := s.next(); f.Data != "ready\n" {
		t.Fatal(f.raw)
	}
	s.send(`{"type":"kill"}`)
	s.send(`{"type":"kill"}`)
	s.restFrom(6, 0).wantExit(t, 137)
	b.wantGone("pid")
}

// The clock runs although the client reads; what was written before comes
// before the error, also for one who asks later.
func TestTimeout(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	s, started := b.start(message("echo before; sleep 1000 & echo $! > pid; wait", `{"timeout_seconds":1}`))
	out := s.rest()
	if out.stdout != "before\n" || out.last.ErrorType != "CommandTimeout" || !strings.Contains(out.last.Error, "timeout of 1s") {
		t.Errorf("got %q and %s", out.stdout, out.last.raw)
	}
	b.wantGone("pid")
	s, _ = b.start(reconnect(started.CommandID, 3, 0))
	later := s.restFrom(3, 0)
	if later.stdout != "ore\n" || later.last.raw != out.last.raw {
		t.Errorf("later: %q and %s", later.stdout, later.last.raw)
	}
}

// A process that outlives the shell and holds its output open holds back
// nothing that was written before, and not the end.
func TestBackgroundChildOverSocket(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	for _, terminal := range []string{`{}`, `{"pty":true}`} {
		s, started := b.start(message("(trap '' HUP; exec sleep 1000) & echo $! > pid; head -c 50000 /dev/zero | tr '\\0' x", terminal))
		out := s.rest()
		out.wantExit(t, 0)
		if strings.Count(out.stdout, "x") != 50000 {
			t.Errorf("%s: %d bytes of 50000 came", terminal, len(out.stdout))
		}
		pid := b.pid("pid")
		if !exists(pid) {
			t.Errorf("%s: the child is gone", terminal)
		}
		s, _ = b.start(reconnect(started.CommandID, 0, 0))
		if again := s.rest(); again.stdout != out.stdout {
			t.Errorf("%s: %d bytes came again", terminal, len(again.stdout))
		}
	}
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	s, _ := b.start(message(`tty -s && stty size; echo $TERM; echo err >&2; [ -t 0 -a -t 1 -a -t 2 ] && echo three; ps -o tpgid= -p $$ | tr -d ' ' | grep -qx $$ && echo foreground`, `{"pty":true}`))
	out := s.rest()
	out.wantExit(t, 0)
	if want := "24 80\r\nxterm-256color\r\nerr\r\nthree\r\nforeground\r\n"; out.stdout != want || out.stderr != "" {
		t.Errorf("got %q and %q, want %q", out.stdout, out.stderr, want)
	}
	for _, given := range []string{`{"env":{"TERM":"dumb"}}`, `{"run_config":{"env_vars":{"TERM":"dumb"}}}`} {
		s, _ = b.start(message("echo $TERM", `{"pty":true}`, given))
		if out := s.rest(); out.stdout != "dumb\r\n" {
			t.Errorf("%s: TERM is %q", given, out.stdout)
		}
	}

	// Input is echoed; \x03 interrupts, \x04 is the end of file, and closing
	// stdin means nothing.
	s, _ = b.start(message(`trap 'echo interrupted' INT; echo go; cat; echo between; cat; echo over`, `{"pty":true,"close_stdin":true}`))
	s.send(`{"type":"close_stdin"}`)
	var all strings.Builder
	until := func(text string) {
		t.Helper()
		for !strings.Contains(all.String(), text) {
			f := s.next()
			if f.Type != "stdout" {
				t.Fatalf("got %s after %q", f.raw, all.String())
			}
			all.WriteString(f.Data)
		}
	}
	until("go\r\n")
	s.send(`{"type":"input","data":"héllo\n"}`)
	until("héllo\r\nhéllo\r\n")
	s.send(`{"type":"input","data":"\u0003"}`)
	until("between\r\n")
	s.send(`{"type":"input","data":"x\n\u0004"}`)
	until("over\r\n")
	if !strings.Contains(all.String(), "^C") || !strings.Contains(all.String(), "interrupted") {
		t.Errorf("the terminal showed %q", all.String())
	}
	s.restFrom(int64(all.Len()), 0).wantExit(t, 0)
}

// A terminal that is full of output which nobody reads loses nothing.
func TestTerminalLongOutput(t *testing.T) {
	t.Parallel()
	b := newLimitedBox(t, daemon.Limits{Ring: 64 << 10})
	s, _ := b.start(message("stty -opost; seq 1 300000", `{"pty":true}`))
	out := s.rest()
	lines := strings.Split(out.stdout, "\n")
	if len(lines) != 300001 || lines[299999] != "300000" {
		t.Errorf("%d lines came", len(lines))
	}
}

// The server pings, and a client that does not answer is lost; one that never
// pings is not.
func TestPings(t *testing.T) {
	t.Parallel()
	b := newLimitedBox(t, daemon.Limits{Ping: 40 * time.Millisecond, Pong: time.Second})
	s, started := b.start(message("read x; echo $x"))
	pings := 0
	answer := s.conn.PingHandler()
	s.conn.SetPingHandler(func(data string) error {
		pings++
		if pings == 40 { // longer than is allowed without a sign
			s.send(`{"type":"input","data":"x\n"}`)
		}
		return answer(data)
	})
	s.rest().wantExit(t, 0)

	s, started = b.start(message("echo $$ > pid; echo; sleep 1000", `{"kill_on_disconnect":true}`))
	s.next()
	s.conn.SetPingHandler(func(string) error { return nil })
	if f, err := s.read(); err == nil {
		t.Errorf("the silent client got %s", f.raw)
	}
	b.wantGone("pid")
	s, _ = b.start(reconnect(started.CommandID, 0, 0))
	s.rest().wantExit(t, 137)
}

// The end of the daemon closes sockets with 1001, whatever state they are in,
// and kills the commands.
func TestShutdown(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	pid := b.daemon()
	waiting := b.socket() // its first message has not come
	running, _ := b.start(message("echo $$ > pid; echo; sleep 1000"))
	running.next()
	b.start(message("yes")) // the client does not read, nor does that of a file
	os.WriteFile(b.path("large"), make([]byte, 16<<20), 0o644)
	res, err := b.http.Get("http://box/download?path=large")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	terminal, _ := b.start(message("echo; cat", `{"pty":true}`))
	terminal.next()
	request := make(chan reply, 1)
	go func() { request <- b.execute(`{"command":"echo $$ > pid2; sleep 1000"}`) }()
	await(t, "the HTTP command", func() bool { return b.pid("pid2") > 0 })
	syscall.Kill(pid, syscall.SIGTERM)
	waiting.wantClose(websocket.CloseGoingAway)
	running.wantClose(websocket.CloseGoingAway)
	terminal.wantClose(websocket.CloseGoingAway)
	(<-request).wantProblem(t, 400, "CommandError", "the sandbox is being stopped")
	b.wantGone("pid")
	b.wantGone("pid2")
	await(t, "the daemon to end", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
	// What it could not end in time it would have said in its log, where newBox looks.
}

// Many commands at once do not get in each other's way.
func TestParallel(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	const n = 40
	results := make(chan error, n)
	for i := range n {
		s := b.socket()
		s.send(message(fmt.Sprintf("echo %d; exit %d", i, i)))
		go func() {
			var text string
			for {
				f, err := s.read()
				switch {
				case err != nil:
					results <- err
					return
				case f.Type == "stdout":
					text += f.Data
				case f.Type == "exit":
					if f.ExitCode != i || text != fmt.Sprintln(i) {
						err = fmt.Errorf("command %d: %q, %s", i, text, f.raw)
					}
					results <- err
					return
				}
			}
		}()
	}
	for range n {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}
