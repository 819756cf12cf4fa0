//go:build linux

package daemon_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/daemon"
)

// A running and an ended command can be taken up at any offset.
func TestReconnect(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	s, started := b.start(message("printf 'a€b'; printf 'err' >&2; read x; printf 'end'"))
	for got := ""; len(got) < 8; {
		got += s.next().Data
	}
	s.conn.Close()
	s, again := b.start(reconnect(started.CommandID, 4, 3))
	if again.raw != started.raw {
		t.Errorf("got %s, want %s", again.raw, started.raw)
	}
	if f := s.next(); f.Type != "stdout" || f.Data != "b" || f.Offset != 4 {
		t.Errorf("got %s", f.raw)
	}
	s.send(`{"type":"input","data":"\n"}`)
	out := s.restFrom(5, 3)
	out.wantExit(t, 0)
	if out.stdout != "end" || out.stderr != "" {
		t.Errorf("got %q and %q", out.stdout, out.stderr)
	}
	for _, tt := range []struct {
		stdout, stderr int64 // asked for
		at             int64 // where stdout begins
		out, err       string
	}{
		{0, 0, 0, "a€bend", "err"},
		{5, 1, 5, "end", "rr"},
		{8, 3, 8, "", ""},
		{1000, 1000, 8, "", ""},
		{2, 3, 1, "€bend", ""}, // within a code point: from its start
		{3, 3, 1, "€bend", ""},
	} {
		s, again := b.start(reconnect(started.CommandID, tt.stdout, tt.stderr))
		out := s.restFrom(tt.at, min(tt.stderr, 3))
		out.wantExit(t, 0)
		if out.stdout != tt.out || out.stderr != tt.err || again.raw != started.raw {
			t.Errorf("%+v: got %q and %q", tt, out.stdout, out.stderr)
		}
	}
}

// An execute message with a known id starts nothing.
func TestRepeatedExecute(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	id := `{"command_id":"mine"}`
	one, started := b.start(message("echo x >> ran; echo hello; read x", id))
	one.next()
	two, again := b.start(message("ignored", id, `{"cwd":"/no/such","close_stdin":true,"timeout_seconds":1,"pty":true}`))
	if again.raw != started.raw {
		t.Errorf("got %s, want %s", again.raw, started.raw)
	}
	if f := two.next(); f.Data != "hello\n" || f.Offset != 0 {
		t.Errorf("got %s", f.raw)
	}
	two.send(`{"type":"input","data":"\n"}`)
	one.restFrom(6, 0).wantExit(t, 0)
	two.restFrom(6, 0).wantExit(t, 0)
	s, _ := b.start(message("ignored", id))
	out := s.rest()
	out.wantExit(t, 0)
	if ran, _ := os.ReadFile(b.path("ran")); out.stdout != "hello\n" || string(ran) != "x\n" {
		t.Errorf("got %q, and it ran %q", out.stdout, ran)
	}
}

// Ids can be many at once, and each is one command.
func TestSimultaneousExecute(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	const n = 10
	sockets := make([]*socket, n)
	for i := range sockets {
		sockets[i] = b.socket()
	}
	for _, s := range sockets {
		s.send(message("echo $$ >> ran; sleep 0.1; echo done", `{"command_id":"one"}`))
	}
	for _, s := range sockets {
		s.next()
		if out := s.rest(); out.stdout != "done\n" {
			t.Errorf("got %q", out.stdout)
		}
	}
	if ran, _ := os.ReadFile(b.path("ran")); strings.Count(string(ran), "\n") != 1 {
		t.Errorf("it ran as %q", ran)
	}
}

func TestTTL(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	run := func(ttl string) string {
		t.Helper()
		s, started := b.start(message("echo x", ttl))
		s.rest().wantExit(t, 0)
		return started.CommandID
	}
	ask := func(id string) frame {
		t.Helper()
		s := b.socket()
		s.send(reconnect(id, 0, 0))
		f := s.next()
		s.conn.Close()
		return f
	}
	for _, ttl := range []string{`{}`, `{"ttl_seconds":-1}`} {
		id := run(ttl)
		if f := ask(id); f.Type != "started" {
			t.Errorf("%s: got %s", ttl, f.raw)
		}
	}
	for _, ttl := range []string{`{"ttl_seconds":0}`, `{"ttl_seconds":1}`} {
		id := run(ttl)
		await(t, "the session to expire", func() bool { return ask(id).ErrorType == "SessionExpired" })
		if f := ask(id); !strings.Contains(f.Error, id) {
			t.Errorf("got %s", f.raw)
		}
		// The id is forgotten with the session: it can name another command.
		s, _ := b.start(message("echo y", fmt.Sprintf(`{"command_id":"%s"}`, id)))
		if out := s.rest(); out.stdout != "y\n" {
			t.Errorf("got %q", out.stdout)
		}
	}
	// A running command does not expire, nor one with TTL 0 that is still read.
	one, started := b.start(message("echo x; read x", `{"ttl_seconds":0}`))
	two, _ := b.start(reconnect(started.CommandID, 0, 0))
	one.conn.Close()
	two.send(`{"type":"input","data":"\n"}`)
	two.rest().wantExit(t, 0)
}

// A command that no client is attached to for its idle timeout is killed; the
// time runs anew whenever the last one has left.
func TestIdleTimeout(t *testing.T) {
	t.Parallel()
	b := newLimitedBox(t, daemon.Limits{Idle: 300 * time.Millisecond})
	const command = "echo $$ > pid; echo; sleep 1000"
	for _, idle := range []string{`{"idle_timeout_seconds":1}`, `{"idle_timeout_seconds":0}`} {
		s, started := b.start(message(command, idle))
		s.next()
		s.conn.Close()
		s, _ = b.start(reconnect(started.CommandID, 1, 0)) // in time
		s.conn.Close()
		b.wantGone("pid")
		s, _ = b.start(reconnect(started.CommandID, 1, 0))
		s.restFrom(1, 0).wantExit(t, 137)
	}
	// Others outlive both the timeout of this daemon and a client that stays.
	never, started := b.start(message("echo never; read x", `{"idle_timeout_seconds":-1}`))
	never.next()
	never.conn.Close()
	stays, _ := b.start(message("sleep 1.2; echo stayed", `{"idle_timeout_seconds":1}`))
	if out := stays.rest(); out.stdout != "stayed\n" {
		t.Errorf("got %q, %s", out.stdout, out.last.raw)
	}
	s, _ := b.start(reconnect(started.CommandID, 6, 0), `{"type":"input","data":"\n"}`)
	s.restFrom(6, 0).wantExit(t, 0)
}

// kill_on_disconnect waits for the last client.
func TestKillOnDisconnect(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	one, started := b.start(message("echo $$ > pid; echo; sleep 1000 | cat", `{"kill_on_disconnect":true}`))
	one.next()
	two, _ := b.start(reconnect(started.CommandID, 1, 0))
	one.conn.Close()
	pid := b.pid("pid")
	three, _ := b.start(reconnect(started.CommandID, 1, 0)) // is answered while it runs
	if !exists(pid) {
		t.Error("the first of two clients took the command along")
	}
	three.conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(patience))
	two.conn.Close()
	b.wantGone("pid")
	s, _ := b.start(reconnect(started.CommandID, 1, 0))
	s.restFrom(1, 0).wantExit(t, 137)
}

// Without a client the newest output is kept; a client that comes then begins
// at the oldest byte that is, and at the start of a code point.
func TestOverrun(t *testing.T) {
	t.Parallel()
	const ring = 64 << 10
	b := newLimitedBox(t, daemon.Limits{Ring: ring})
	want := strings.Repeat("x€", 50000)
	b.put("data", want, 0o644)
	s, started := b.start(message("read x; cat data; touch written; read x; echo"))
	s.send(`{"type":"input","data":"\n"}`)
	s.conn.Close()
	await(t, "the output to be written", func() bool { _, err := os.Stat(b.path("written")); return err == nil })
	var first frame
	await(t, "the output to be read by the daemon", func() bool {
		s, _ = b.start(reconnect(started.CommandID, 0, 0))
		first = s.next()
		if first.Offset+ring < int64(len(want))-4 {
			s.conn.Close()
			return false
		}
		return true
	})
	if first.Offset+ring > int64(len(want))+4 || !strings.HasPrefix(want[first.Offset:], first.Data) {
		t.Errorf("the first message begins at %d with %.20q", first.Offset, first.Data)
	}
	s.send(`{"type":"input","data":"\n"}`)
	at := first.Offset + int64(len(first.Data))
	out := s.restFrom(at, 0)
	if out.stdout != want[at:]+"\n" {
		t.Errorf("the rest has %d bytes, want %d", len(out.stdout), len(want[at:])+1)
	}
}

// A client that is attached and slow holds the command up and misses nothing.
func TestBackPressure(t *testing.T) {
	t.Parallel()
	b := newLimitedBox(t, daemon.Limits{Ring: 64 << 10})
	const size = 20_000_000
	s, started := b.start(message(fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; echo > written", size)))
	got := int64(0)
	for got < size/2 {
		f := s.next()
		if f.Offset != got {
			t.Fatalf("got offset %d, want %d", f.Offset, got)
		}
		got += int64(len(f.Data))
	}
	if _, err := os.Stat(b.path("written")); err == nil {
		t.Error("the command has written everything, though half of it was not read and has no room")
	}
	// A second one is held up with it, and gets everything from where it began.
	two, _ := b.start(reconnect(started.CommandID, size, 0))
	end := make(chan int64)
	go func() {
		next := int64(-1)
		for {
			f, err := two.read()
			switch {
			case err != nil || next >= 0 && f.Type == "stdout" && f.Offset != next:
				end <- -1
				return
			case f.Type == "stdout":
				next = f.Offset + int64(len(f.Data))
			default:
				end <- next
				return
			}
		}
	}()
	if out := s.restFrom(got, 0); out.next[0] != size {
		t.Errorf("the output ended at %d", out.next[0])
	}
	if got := <-end; got != size {
		t.Errorf("the second client's output ended at %d", got)
	}
}

// A client that reads nothing for too long is given up, with 1011 if it ever
// reads again; the command goes on and others are no longer held up.
func TestStalledClient(t *testing.T) {
	t.Parallel()
	b := newLimitedBox(t, daemon.Limits{Ring: 64 << 10, Stall: 300 * time.Millisecond})
	const size = 5_000_000
	s, started := b.start(message(fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; echo > written", size)))
	await(t, "the command to go on", func() bool { _, err := os.Stat(b.path("written")); return err == nil })
	var err error
	for err == nil {
		_, err = s.read()
	}
	if !websocket.IsCloseError(err, websocket.CloseInternalServerErr, websocket.CloseAbnormalClosure) {
		t.Errorf("the stalled client got %v", err)
	}
	s, _ = b.start(reconnect(started.CommandID, size, 0))
	s.restFrom(size, 0).wantExit(t, 0)
}

// The oldest of too many ended sessions are forgotten.
func TestKeptSessions(t *testing.T) {
	t.Parallel()
	for _, limits := range []daemon.Limits{{Kept: 3}, {KeptBytes: 3 * 64 << 10, Remembered: 2}} {
		b := newLimitedBox(t, limits)
		var ids []string
		for range 6 {
			s, started := b.start(message("head -c 60000 /dev/zero | tr '\\0' x", `{"ttl_seconds":-1}`))
			s.rest()
			ids = append(ids, started.CommandID)
		}
		var got []string
		for _, id := range ids {
			s := b.socket()
			s.send(reconnect(id, 0, 0))
			f := s.next()
			got = append(got, f.Type+f.ErrorType)
		}
		want := "errorSessionExpired errorSessionExpired errorSessionExpired started started started"
		if limits.Remembered == 2 {
			want = "errorCommandNotFound" + strings.TrimPrefix(want, "errorSessionExpired")
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%+v: got %v", limits, got)
		}
	}
}

func TestTooManyCommands(t *testing.T) {
	t.Parallel()
	b := newLimitedBox(t, daemon.Limits{Running: 2})
	one, _ := b.start(message("read x"))
	b.start(message("read x"))
	s := b.socket()
	s.send(message("true", `{"command_id":"third"}`))
	if f := s.next(); f.ErrorType != "CommandError" || !strings.Contains(f.Error, "2 commands are running") {
		t.Errorf("got %s", f.raw)
	}
	one.send(`{"type":"close_stdin"}`)
	one.rest()
	await(t, "room for a third", func() bool {
		s := b.socket()
		s.send(message("true", `{"command_id":"third"}`))
		return s.next().Type == "started"
	})
}
