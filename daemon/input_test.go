//go:build linux

package daemon_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/daemon"
)

// The stdin rules of protocol.md §6.6 and §16.2.
func TestInput(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	for _, tt := range []struct {
		name, message string
		later         []string // messages after started
		stdout        string
	}{
		{"closed from the start", message("cat; [ /proc/self/fd/0 -ef /dev/null ] && echo null", `{"close_stdin":true}`), nil, "null\n"},
		{"which input does not change", message("cat; echo end", `{"close_stdin":true}`),
			[]string{`{"type":"input","data":"x"}`, `{"type":"close_stdin"}`}, "end\n"},
		{"an open pipe", message("[ -p /proc/self/fd/0 ] && echo pipe"), nil, "pipe\n"},
		{"input, then the end", message("cat"),
			[]string{`{"type":"input","data":"hé"}`, `{"type":"input","data":"llo"}`, `{"type":"close_stdin"}`}, "héllo"},
		{"twice the end", message("cat; sleep 0.1"),
			[]string{`{"type":"input","data":"x"}`, `{"type":"close_stdin"}`, `{"type":"close_stdin"}`}, "x"},
		{"input after the end is ignored", message("cat"),
			[]string{`{"type":"close_stdin"}`, `{"type":"input","data":"x"}`}, ""},
		{"nobody reads", message("exec <&-; sleep 0.1; echo x"),
			[]string{`{"type":"input","data":"x"}`, `{"type":"input","data":"x"}`, `{"type":"close_stdin"}`}, "x\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b.t = t
			s, _ := b.start(tt.message)
			for _, m := range tt.later {
				if s.conn.WriteMessage(1, []byte(m)) != nil {
					break // the command has ended, and the socket with it
				}
			}
			out := s.rest()
			if out.stdout != tt.stdout {
				t.Errorf("got %q, want %q", out.stdout, tt.stdout)
			}
		})
	}
}

// The end of stdin belongs to the session: it may come by any socket, also as
// its first message, and outlives it.
func TestInputEndsBySession(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	s, started := b.start(message("cat; echo end"))
	s.send(`{"type":"input","data":"1"}`)
	if f := s.next(); f.Data != "1" {
		t.Fatal(f.raw)
	}
	s.conn.Close()
	s, _ = b.start(`{"type":"close_stdin"}`, reconnect(started.CommandID, 1, 0))
	if out := s.restFrom(1, 0); out.stdout != "end\n" {
		t.Errorf("got %q", out.stdout)
	}
	// Before execute it means a stdin that ends at once.
	s, _ = b.start(`{"type":"close_stdin"}`, message("cat; echo end"))
	if out := s.rest(); out.stdout != "end\n" {
		t.Errorf("got %q", out.stdout)
	}
	// And it is nothing to a command that has ended.
	s, _ = b.start(`{"type":"close_stdin"}`, reconnect(started.CommandID, 0, 0))
	if out := s.rest(); out.stdout != "1end\n" {
		t.Errorf("got %q", out.stdout)
	}
}

// Much input arrives whole and in order.
func TestLongInput(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	s, _ := b.start(message("sha256sum", `{"timeout_seconds":0}`))
	sum := sha256.New()
	for i := range 2000 {
		piece := fmt.Sprintf("%06d%s", i, strings.Repeat("x", 2000))
		sum.Write([]byte(piece))
		s.send(`{"type":"input","data":"` + piece + `"}`)
	}
	s.send(`{"type":"close_stdin"}`)
	if got, want := s.rest().stdout, hex.EncodeToString(sum.Sum(nil))+"  -\n"; got != want {
		t.Errorf("checksum %q, want %q", got, want)
	}
}

// A command that does not read holds its client up, and keeps nobody from
// killing it: by the same socket as long as the queue has room, by another at
// any time.
func TestInputNotRead(t *testing.T) {
	t.Parallel()
	b := newLimitedBox(t, daemon.Limits{Input: 100 << 10, Ping: 50 * time.Millisecond, Pong: 300 * time.Millisecond})
	large := `{"type":"input","data":"` + strings.Repeat("x", 60<<10) + `"}`
	s, _ := b.start(message("sleep 1000"))
	s.send(large)
	s.send(large)
	s.send(`{"type":"kill"}`)
	s.rest().wantExit(t, 137)

	s, started := b.start(message("echo $$ > pid; sleep 1000", `{"idle_timeout_seconds":-1}`))
	blocked := make(chan error, 1)
	go func() {
		for {
			s.conn.SetWriteDeadline(time.Now().Add(time.Second)) // longer than a pong may take
			if err := s.conn.WriteMessage(1, []byte(large)); err != nil {
				blocked <- err
				return
			}
		}
	}()
	if err := <-blocked; !strings.Contains(err.Error(), "timeout") {
		t.Errorf("the client was not held up, but: %v", err)
	}
	other, _ := b.start(reconnect(started.CommandID, 0, 0))
	other.send(`{"type":"kill"}`)
	other.rest().wantExit(t, 137)
	b.wantGone("pid")
}

// A client that leaves while it is held up is missed.
func TestInputNotReadAndLeft(t *testing.T) {
	t.Parallel()
	b := newLimitedBox(t, daemon.Limits{Input: 1, Ping: 50 * time.Millisecond})
	s, _ := b.start(message("echo $$ > pid; echo; sleep 1000", `{"kill_on_disconnect":true}`))
	s.next()
	for range 3 {
		s.send(`{"type":"input","data":"` + strings.Repeat("x", 100<<10) + `"}`)
	}
	s.conn.Close()
	b.wantGone("pid")
}
