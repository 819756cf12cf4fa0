//go:build linux

package daemon_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/daemon"
)

// The additions of protocol.md §15.

func (s *socket) sendBinary(data string) {
	s.t.Helper()
	s.conn.SetWriteDeadline(time.Now().Add(patience))
	if err := s.conn.WriteMessage(websocket.BinaryMessage, []byte(data)); err != nil {
		s.t.Fatal(err)
	}
}

// Output comes as it was written, whatever it is, and so goes input.
func TestBytes(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	s, _ := b.startV1(message(`printf 'a\xff\xe2\x82b'; printf '\xe2\x82\xac\xe2' >&2`))
	out := s.rest()
	out.wantExit(t, 0)
	if out.stdout != "a\xff\xe2\x82b" || out.stderr != "€\xe2" {
		t.Errorf("got %q and %q", out.stdout, out.stderr)
	}

	s, _ = b.startV1(message("cat"))
	s.sendBinary("\x00a\xff\x00")
	s.sendBinary("\x00")
	s.send(`{"type":"input","data":"é"}`)
	s.sendBinary("\x00\n")
	s.send(`{"type":"close_stdin"}`)
	s.sendBinary("\x00ignored")
	if out := s.rest(); out.stdout != "a\xff\x00é\n" {
		t.Errorf("got %q", out.stdout)
	}

	s, _ = b.startV1(message("cat; echo end", `{"close_stdin":true}`))
	if s.conn.WriteMessage(websocket.BinaryMessage, []byte("\x00ignored")) == nil {
		if out := s.rest(); out.stdout != "end\n" {
			t.Errorf("got %q", out.stdout)
		}
	}

	// Half of a code point is not held back.
	s, _ = b.startV1(message(`printf '\xf0\x9f'; read x; printf '\x98\x80'`))
	if f := s.next(); f.Data != "\xf0\x9f" {
		t.Errorf("got %q", f.raw)
	}
	s.sendBinary("\x00\n")
	if out := s.restFrom(2, 0); out.stdout != "\x98\x80" {
		t.Errorf("got %q", out.stdout)
	}
}

// What says how a command ended.
func TestExitV1(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	for _, tt := range []struct {
		command, signal string
		code            int
	}{
		{"exit 3", "", 3},
		{"kill -TERM $$", "TERM", 143},
		{"kill -9 $$", "KILL", 137},
		{"kill -40 $$", "40", 168},
	} {
		s, started := b.startV1(message(tt.command))
		out := s.rest()
		var got map[string]any
		json.Unmarshal([]byte(out.last.raw), &got)
		took, _ := got["duration_ms"].(float64)
		delete(got, "duration_ms")
		want := map[string]any{"type": "exit", "exit_code": tt.code}
		if tt.signal != "" {
			want["signal"] = tt.signal
		}
		if encode(got) != encode(want) || took < 1 {
			t.Errorf("%s: got %s", tt.command, out.last.raw)
		}
		// The others get what they always got.
		s, _ = b.start(reconnect(started.CommandID, 0, 0))
		if out := s.rest(); out.last.raw != fmt.Sprintf(`{"type":"exit","exit_code":%d}`, tt.code) {
			t.Errorf("%s: got %s", tt.command, out.last.raw)
		}
	}
	s, _ := b.startV1(message("sleep 1000", `{"timeout_seconds":1}`))
	if out := s.rest(); out.last.ErrorType != "CommandTimeout" {
		t.Errorf("got %s", out.last.raw)
	}
}

func TestSignal(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	s, _ := b.startV1(message("trap 'echo usr1' USR1; trap 'echo int; exit 7' INT; (trap - INT; sleep 1000) & echo $! > pid; echo ready; while :; do wait; done"))
	seen := int64(0)
	for _, step := range []struct{ want, signal string }{{"ready\n", "USR1"}, {"usr1\n", "SIGUSR1"}, {"usr1\n", "INT"}} {
		f := s.next()
		if f.Data != step.want {
			t.Fatalf("got %q, want %q", f.raw, step.want)
		}
		seen += int64(len(f.Data))
		s.send(`{"type":"signal","signal":"` + step.signal + `"}`)
	}
	out := s.restFrom(seen, 0)
	out.wantExit(t, 7)
	if out.stdout != "int\n" {
		t.Errorf("got %q", out.stdout)
	}

	// Without exec.v1 the message is unknown, and ignored.
	s, _ = b.start(message("read x; echo $x"))
	s.send(`{"type":"signal","signal":"KILL"}`)
	s.send(`{"type":"input","data":"alive\n"}`)
	if out := s.rest(); out.stdout != "alive\n" {
		t.Errorf("got %q, %s", out.stdout, out.last.raw)
	}
}

func TestResize(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	for _, tt := range []struct {
		start  func(...string) (*socket, frame)
		resize string
		want   string
	}{
		{b.startV1, `{"type":"resize","cols":132,"rows":50}`, "50 132"},
		{b.startV1, `{"type":"resize","cols":65535,"rows":1}`, "1 65535"},
		{b.start, `{"type":"resize","cols":132,"rows":50}`, "24 80"},
	} {
		s, _ := tt.start(message("stty -echo; echo; read x; stty size", `{"pty":true}`))
		first := s.next()
		s.send(tt.resize)
		s.send(`{"type":"input","data":"\n"}`)
		if out := s.restFrom(int64(len(first.Data)), 0); out.stdout != tt.want+"\r\n" && out.stdout != "\r\n"+tt.want+"\r\n" {
			t.Errorf("%s: the size is %q, want %s, after %q and before %s", tt.resize, out.stdout, tt.want, first.Data, out.last.raw)
		}
	}
	// A command without a terminal has no size.
	s, _ := b.startV1(message("read x"))
	s.send(`{"type":"resize","cols":132,"rows":50}`)
	s.send(`{"type":"close_stdin"}`)
	s.rest().wantExit(t, 1)
}

// What cannot be done ends the socket with a reason, and leaves the command be.
func TestLaterMessagesRefusedV1(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	_, started := b.startV1(message("read x; echo $x"))
	for _, tt := range []struct {
		name string
		send func(*socket)
		want string
	}{
		{"unknown signal", func(s *socket) { s.send(`{"type":"signal","signal":"FOO"}`) }, `no signal "FOO"`},
		{"no signal", func(s *socket) { s.send(`{"type":"signal"}`) }, `no signal ""`},
		{"a number", func(s *socket) { s.send(`{"type":"signal","signal":15}`) }, "signal: want a string, got number"},
		{"no size", func(s *socket) { s.send(`{"type":"resize","cols":0,"rows":50}`) }, "a terminal of 0 columns"},
		{"too large", func(s *socket) { s.send(`{"type":"resize","cols":80,"rows":65536}`) }, "65536 rows"},
		{"empty frame", func(s *socket) { s.sendBinary("") }, "empty"},
		{"frame of output", func(s *socket) { s.sendBinary("\x01x") }, "kind 1"},
	} {
		s, _ := b.startV1(reconnect(started.CommandID, 0, 0))
		tt.send(s)
		_, err := s.read()
		if !websocket.IsCloseError(err, websocket.CloseInvalidFramePayloadData) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: answered with %v", tt.name, err)
		}
	}
	s, _ := b.startV1(reconnect(started.CommandID, 0, 0))
	s.sendBinary("\x00alive\n")
	if out := s.rest(); out.stdout != "alive\n" {
		t.Errorf("got %q", out.stdout)
	}
	// The first message is a text, and one of those of §6.
	for _, first := range []func(*socket){
		func(s *socket) { s.send(`{"type":"signal","signal":"TERM"}`) },
		func(s *socket) { s.sendBinary("\x00x") },
	} {
		s := b.socketV1()
		first(s)
		if f := s.next(); f.ErrorType != "InvalidRequest" {
			t.Errorf("got %s", f.raw)
		}
	}
}

// One session is read under both numberings, from any place, and each has the
// offsets of its own.
func TestBothNumberings(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	raw := "a\xffb\xe2\x82c€d\xf0"
	text := "a\ufffdb\ufffd\ufffdc€d\ufffd"
	b.put("data", raw, 0o644)
	for _, start := range []func(...string) (*socket, frame){b.start, b.startV1} {
		s, started := start(message("cat data; cat data >&2"))
		s.rest()
		for from := range int64(len(raw)) + 1 {
			s, _ := b.startV1(reconnect(started.CommandID, from, 0))
			if out := s.restFrom(from, 0); out.stdout != raw[from:] || out.stderr != raw {
				t.Errorf("bytes from %d are %q and %q", from, out.stdout, out.stderr)
			}
		}
		for from := range int64(len(text)) + 1 {
			at := from
			for at < int64(len(text)) && text[at]&0xc0 == 0x80 {
				at--
			}
			s, _ := b.start(reconnect(started.CommandID, 0, from))
			if out := s.restFrom(0, at); out.stdout != text || out.stderr != text[at:] {
				t.Errorf("text from %d is %q and %q", from, out.stdout, out.stderr)
			}
		}
	}
}

// What the buffer has lost is told before what comes after it.
func TestGap(t *testing.T) {
	t.Parallel()
	const ring = 64 << 10
	b := newLimitedBox(t, daemon.Limits{Ring: ring})
	data := make([]byte, 300_000)
	rand.NewChaCha8([32]byte{3}).Read(data)
	b.put("data", string(data), 0o644)
	s, started := b.startV1(message("cat data; head -c 10 data >&2; touch written; read x"))
	s.conn.Close()
	await(t, "the output to be written", func() bool { _, err := os.Stat(b.path("written")); return err == nil })
	lost := int64(len(data)) - ring
	var gap struct {
		Type, Stream string
		From, To     int64
	}
	await(t, "the output to be read by the daemon", func() bool {
		s, _ = b.startV1(reconnect(started.CommandID, 5, 3))
		for {
			f := s.next()
			if f.Type == "gap" {
				json.Unmarshal([]byte(f.raw), &gap)
				return gap.To == lost
			}
			if f.Type == "stdout" {
				s.conn.Close() // nothing was lost yet
				return false
			}
		}
	})
	if want := fmt.Sprintf(`{"type":"gap","stream":"stdout","from":5,"to":%d}`, lost); gap.Stream != "stdout" || gap.From != 5 {
		t.Errorf("got %+v, want %s", gap, want)
	}
	s.conn.Close()
	s, _ = b.startV1(reconnect(started.CommandID, lost, 10)) // nothing of that is lost
	s.send(`{"type":"close_stdin"}`)
	if out := s.restFrom(lost, 10); out.stdout != string(data[lost:]) {
		t.Errorf("%d bytes came, want %d", len(out.stdout), ring)
	}
	// As text it begins at a place that stays the same.
	first := int64(-1)
	for range 2 {
		s, _ = b.start(reconnect(started.CommandID, 0, 0))
		at := int64(-1)
		var got bytes.Buffer
		for f := s.next(); f.Type != "exit"; f = s.next() {
			if f.Type != "stdout" {
				continue
			}
			if at < 0 {
				at = f.Offset
			}
			got.WriteString(f.Data)
		}
		if at < lost || first >= 0 && at != first || !bytes.HasSuffix([]byte(string([]rune(string(data)))), got.Bytes()) || got.Len() < ring {
			t.Errorf("the text begins at %d, before that at %d, and has %d bytes", at, first, got.Len())
		}
		first = at
	}
}

// Much output arrives whole and in order, in messages as large as may be, also
// by a reader that is cut off in between.
func TestLongOutputV1(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	data := make([]byte, 24<<20)
	rand.NewChaCha8([32]byte{4}).Read(data)
	want := sha256.Sum256(data)
	b.put("data", string(data), 0o644)
	s, started := b.startV1(message("cat data"))
	sum := sha256.New()
	var at int64
	for at < int64(len(data))/2 {
		f := s.next()
		if f.Offset != at {
			t.Fatalf("got offset %d, want %d", f.Offset, at)
		}
		sum.Write([]byte(f.Data))
		at += int64(len(f.Data))
	}
	two, _ := b.startV1(reconnect(started.CommandID, at, 0)) // before the other goes, so that nothing is lost
	s.conn.Close()
	out := two.restFrom(at, 0)
	out.wantExit(t, 0)
	sum.Write([]byte(out.stdout))
	if !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Errorf("%d bytes came, want %d, or they are others", out.next[0], len(data))
	}
}

// BenchmarkOutput is 1 GiB of text from a command to its client, which reads it
// and does nothing else with it.
func BenchmarkOutput(b *testing.B) {
	const size = 1 << 30
	for _, tt := range []struct {
		name string
		dial func(*box) *socket
	}{{"exec.v1", (*box).socketV1}, {"JSON", (*box).socket}} {
		b.Run(tt.name, func(b *testing.B) {
			box := newBox(b)
			buf := make([]byte, 64<<10)
			b.SetBytes(size)
			for b.Loop() {
				s := tt.dial(box)
				s.begin(message(fmt.Sprintf("yes 'a line of text like many others' | head -c %d", size)))
				for {
					_, r, err := s.conn.NextReader()
					if err != nil {
						if !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
							b.Fatal(err)
						}
						break
					}
					if _, err := io.CopyBuffer(sink{}, r, buf); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// sink is io.Discard without a buffer of its own.
type sink struct{}

func (sink) Write(p []byte) (int, error) { return len(p), nil }
