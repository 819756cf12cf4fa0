package client

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/wire"
)

// This file tests commands over a WebSocket against servers that are scripted
// frame by frame.

// peer is the server's end of one socket.
type peer struct {
	*websocket.Conn
	t       *testing.T
	request *http.Request
}

// hear returns the next message, or "" at the end.
func (p *peer) hear() string {
	_, text, err := p.ReadMessage()
	if err != nil {
		return ""
	}
	return string(text)
}

// expect hears messages and compares them.
func (p *peer) expect(messages ...string) {
	p.t.Helper()
	for _, want := range messages {
		if got := p.hear(); got != want {
			p.t.Errorf("the server heard %s, want %s", got, want)
		}
	}
}

// say reports whether there is still somebody to talk to.
func (p *peer) say(messages ...string) bool {
	for _, m := range messages {
		if p.WriteMessage(websocket.TextMessage, []byte(m)) != nil {
			return false
		}
	}
	return true
}

// command hears an execute or a reconnect.
func (p *peer) command() wire.Message {
	m, err := wire.DecodeMessage([]byte(p.hear()))
	if err != nil {
		p.t.Errorf("the server heard no command: %v", err)
	}
	return m
}

// start hears a command and says that it runs.
func (p *peer) start() wire.Message {
	m := p.command()
	p.started()
	return m
}

func (p *peer) started() { p.say(`{"type":"started","command_id":"id","pid":42}`) }

// end closes with a code and waits for the client to hang up.
func (p *peer) end(code int) {
	p.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, "why"), time.Now().Add(time.Second))
	for p.hear() != "" {
	}
}

// untilEnd hears everything until the client hangs up.
func (p *peer) untilEnd() (messages []string) {
	for m := p.hear(); m != ""; m = p.hear() {
		messages = append(messages, m)
	}
	return messages
}

// sockets serves the first connections in order, and refuses those after them.
// It waits for what it serves when the test ends.
type sockets struct {
	t       *testing.T
	serve   []func(*peer)
	opened  atomic.Int32
	running sync.WaitGroup
	refusal answer           // 404 if empty
	speaks  func(n int) bool // exec.v1 on connection n; nil never does
}

func (s *sockets) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.running.Add(1)
	defer s.running.Done()
	n := int(s.opened.Add(1)) - 1
	if n >= len(s.serve) || s.serve[n] == nil {
		for name, values := range s.refusal.header {
			w.Header()[name] = values
		}
		w.WriteHeader(cmp.Or(s.refusal.status, http.StatusNotFound))
		io.WriteString(w, s.refusal.body)
		return
	}
	upgrader := websocket.Upgrader{ReadBufferSize: 1 << 10, WriteBufferSize: 1 << 10}
	if s.speaks != nil && s.speaks(n) {
		upgrader.Subprotocols = []string{wire.ExecV1}
	}
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer conn.Close()
	s.serve[n](&peer{conn, s.t, r})
}

// talk starts a server of sockets; the client does not wait.
func talk(t *testing.T, serve ...func(*peer)) (*Sandbox, *sockets, *script) {
	t.Helper()
	s := &sockets{t: t, serve: serve}
	server := httptest.NewServer(s)
	notes := &script{url: server.URL}
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		s.running.Wait()
	})
	c := clientOf(t, Options{Endpoint: server.URL + "/v2/sandboxes", APIKey: apiKey}, &notes.mu, &notes.waits)
	return boxAt(c, server.URL+"/sb-1"), s, notes
}

// talkInBubble is talk under the fake clock, with real waits.
func talkInBubble(t *testing.T, serve []func(*peer), f func(t *testing.T, b *Sandbox, s *sockets)) {
	t.Helper()
	talkInBubbleWith(t, Options{}, serve, f)
}

func talkInBubbleWith(t *testing.T, o Options, serve []func(*peer), f func(t *testing.T, b *Sandbox, s *sockets)) {
	t.Helper()
	s := &sockets{serve: serve}
	inBubble(t, o, s, func(t *testing.T, c *Client) {
		s.t = t
		f(t, boxAt(c, pipeURL), s)
		s.running.Wait()
	})
}

func mustStart(t *testing.T, b *Sandbox, o RunOptions) *Command {
	t.Helper()
	if o.Command == "" {
		o.Command = "x"
	}
	if o.CommandID == "" {
		o.CommandID = "id"
	}
	cmd, err := b.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Close() })
	return cmd
}

func wantResult(t *testing.T, cmd *Command, stdout, stderr string, exitCode int) {
	t.Helper()
	r, err := cmd.Result(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "result", fmt.Sprintf("%q %q %d", r.Stdout, r.Stderr, r.ExitCode), fmt.Sprintf("%q %q %d", stdout, stderr, exitCode))
}

// The vector of §14.
func TestExchange(t *testing.T) {
	const id = "0198c0ffee0070008000000000000001"
	b, s, notes := talk(t, func(p *peer) {
		p.expect(`{"type":"execute","command":"echo hé; sleep 9","timeout_seconds":60,"shell":"/bin/bash","idle_timeout_seconds":300,"kill_on_disconnect":false,"ttl_seconds":600,"command_id":"` + id + `"}`)
		p.say(`{"type":"started","command_id":"`+id+`","pid":42}`, `{"type":"stdout","data":"hé\n","offset":0}`)
	}, func(p *peer) {
		p.expect(`{"type":"reconnect","command_id":"` + id + `","stdout_offset":4,"stderr_offset":0}`)
		p.say(`{"type":"started","command_id":"`+id+`","pid":43}`, `{"type":"exit","exit_code":0}`)
		p.end(websocket.CloseNormalClosure)
	})
	cmd := mustStart(t, b, RunOptions{Command: "echo hé; sleep 9", Timeout: time.Minute, CommandID: id})
	wantEqual(t, "id and pid", fmt.Sprint(cmd.ID(), cmd.PID()), id+"42")
	chunk, err := cmd.Next(t.Context())
	if err != nil || chunk != (Chunk{"stdout", "hé\n", 0, 0, "hé\n"}) {
		t.Fatalf("got %+v, %v", chunk, err)
	}
	for range 2 {
		if _, err := cmd.Next(t.Context()); err != io.EOF {
			t.Fatalf("got %v", err)
		}
	}
	wantResult(t, cmd, "hé\n", "", 0)
	stdout, stderr := cmd.Offsets()
	wantEqual(t, "offsets and pid", fmt.Sprint(stdout, stderr, cmd.PID()), "4 0 43")
	wantEqual(t, "waits", notes.slept(), []time.Duration{500 * time.Millisecond})
	wantEqual(t, "sockets", s.opened.Load(), 2)
}

func TestMessagesThatStartACommand(t *testing.T) {
	const rest = `,"command_id":"id"}`
	for want, o := range map[string]RunOptions{
		`"x","timeout_seconds":0,"shell":"/bin/bash","idle_timeout_seconds":300,"kill_on_disconnect":false,"ttl_seconds":600`: {},
		`"x","timeout_seconds":1,"shell":"/bin/sh","idle_timeout_seconds":-1,"kill_on_disconnect":true,"ttl_seconds":-1,"env":{"A":"1"},"cwd":"/","pty":true`: {
			Timeout: time.Millisecond, Shell: "/bin/sh", IdleTimeout: -1, TTL: -1, KillOnDisconnect: true, Env: map[string]string{"A": "1"}, Cwd: "/", PTY: true, CloseStdin: true},
		`"x","timeout_seconds":61,"shell":"/bin/bash","idle_timeout_seconds":2,"kill_on_disconnect":false,"ttl_seconds":3,"close_stdin":true`: {
			Timeout: time.Minute + 1, IdleTimeout: 1500 * time.Millisecond, TTL: 3 * time.Second, CloseStdin: true},
		`"x","timeout_seconds":60,"shell":"/bin/bash","idle_timeout_seconds":300,"kill_on_disconnect":false,"ttl_seconds":600,"run_config":{"user":"1000","env_vars":{"A":"1"}},"close_stdin":true`: {
			Timeout: time.Minute, RunConfig: &wire.RunConfig{User: "1000", EnvVars: map[string]string{"A": "1"}}, CloseStdin: true}, // §16.14
		`"x","timeout_seconds":0,"shell":"/bin/bash","idle_timeout_seconds":300,"kill_on_disconnect":false,"ttl_seconds":600,"run_config":{}`: {RunConfig: &wire.RunConfig{}},
	} {
		b, _, _ := talk(t, func(p *peer) {
			p.expect(`{"type":"execute","command":` + want + rest)
			p.started()
			p.say(`{"type":"exit","exit_code":3}`)
		})
		wantResult(t, mustStart(t, b, o), "", "", 3)
	}
}

func TestEveryCommandHasItsOwnID(t *testing.T) {
	ids := map[string]bool{}
	for range 3 {
		b, _, _ := talk(t, func(p *peer) {
			m := p.command().(*wire.Execute)
			ids[m.CommandID] = true
			p.say(messageOf(t, &wire.Started{CommandID: m.CommandID}), `{"type":"exit"}`)
			p.untilEnd()
		})
		r, err := b.Run(t.Context(), RunOptions{Command: "x"})
		if err != nil || !ids[r.CommandID] || r.ExitCode != -1 || len(r.CommandID) != 32 || r.CommandID[12] != '7' {
			t.Errorf("got %+v, %v", r, err)
		}
	}
	wantEqual(t, "ids", len(ids), 3)
}

func TestHeadersOfUpgrades(t *testing.T) {
	check := func(p *peer, offered ...string) {
		wantEqual(t, "path", p.request.RequestURI, "/sb-1/execute/ws")
		for name, want := range map[string][]string{"X-Api-Key": {apiKey}, "X-Call": {"1"}, "User-Agent": {"sbx-star"}, "Origin": nil, "Sec-Websocket-Protocol": offered} {
			wantEqual(t, name, p.request.Header[name], want)
		}
	}
	b, _, _ := talk(t,
		func(p *peer) { check(p, wire.ExecV1); p.start() }, // and stays with what it got
		func(p *peer) { check(p); p.start(); p.say(`{"type":"exit","exit_code":0}`); p.untilEnd() },
		func(p *peer) { check(p); p.start(); p.say(`{"type":"exit","exit_code":0}`); p.untilEnd() },
	)
	cmd := mustStart(t, b, RunOptions{Headers: http.Header{"x-call": {"1"}}})
	wantResult(t, cmd, "", "", 0)
	again := cmd.Reconnect()
	defer again.Close()
	wantResult(t, again, "", "", 0)
}

// rawOutput is a message whose data need not be whole characters.
func rawOutput(stream string, data []byte, offset int) string {
	var b strings.Builder
	fmt.Fprintf(&b, `{"type":%q,"offset":%d,"data":"`, stream, offset)
	for _, c := range data {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ':
			fmt.Fprintf(&b, `\u%04x`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String() + `"}`
}

// cutListener accepts connections that die after so many bytes were written.
type cutListener struct {
	net.Listener
	budget func() int // of the next connection
}

func (l cutListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &cutConn{Conn: conn, left: l.budget()}, nil
}

type cutConn struct {
	net.Conn
	left    int
	written int
}

func (c *cutConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p[:min(len(p), c.left)])
	c.left -= n
	c.written += n
	if err == nil && n < len(p) {
		c.Conn.Close()
		return n, net.ErrClosed
	}
	return n, err
}

// session is a command's output and how it is sent: what it says depends on the
// dice only.
type session struct {
	out      [2]string
	refuses  func(p *peer) bool       // closes before the acknowledgement; nil never does
	messages func(p *peer, at [2]int) // what is sent after it

	v1     bool
	opened atomic.Int32
}

func (s *session) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.opened.Add(1)
	upgrader := websocket.Upgrader{}
	if s.v1 {
		upgrader.Subprotocols = []string{wire.ExecV1}
	}
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer conn.Close()
	p := &peer{Conn: conn, request: r}
	_, text, err := conn.ReadMessage()
	if err != nil {
		return
	}
	m, err := wire.DecodeMessage(text)
	if err != nil {
		panic(err)
	}
	var at [2]int
	if m, ok := m.(*wire.Reconnect); ok {
		at = [2]int{int(m.StdoutOffset), int(m.StderrOffset)}
	}
	if s.refuses != nil && s.refuses(p) {
		return
	}
	if p.say(`{"type":"started","command_id":"id","pid":42}`) {
		s.messages(p, at)
	}
}

// serveCut runs a session behind connections that are cut.
func serveCut(t *testing.T, s *session, budget func() int) *Sandbox {
	t.Helper()
	server := httptest.NewUnstartedServer(s)
	server.Listener = cutListener{server.Listener, budget}
	server.Start()
	t.Cleanup(server.Close)
	var notes script
	return boxAt(clientOf(t, Options{Endpoint: server.URL}, &notes.mu, &notes.waits), server.URL)
}

// readWhole reads a command to its end and checks on the way that chunks are
// whole characters, follow each other, and are what Offsets tells.
func readWhole(t *testing.T, cmd *Command, want [2]string, progress func(at [2]int64)) error {
	var got [2]strings.Builder
	for {
		chunk, err := cmd.Next(t.Context())
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		i := index(chunk.Stream)
		if chunk.Data == "" || !utf8.ValidString(chunk.Data) || chunk.Gap != 0 || chunk.Offset != int64(got[i].Len()) {
			return fmt.Errorf("%d bytes into %s came %+v", got[i].Len(), chunk.Stream, chunk)
		}
		got[i].WriteString(chunk.Data)
		stdout, stderr := cmd.Offsets()
		if at := [2]int64{int64(got[0].Len()), int64(got[1].Len())}; at != [2]int64{stdout, stderr} {
			return fmt.Errorf("the offsets are %d and %d after %d", stdout, stderr, at)
		}
		if progress != nil {
			progress([2]int64{stdout, stderr})
		}
	}
	for i, w := range want {
		if g := got[i].String(); g != w {
			return fmt.Errorf("%s: %d bytes came, want %d", streams[i], len(g), len(w))
		}
	}
	r, err := cmd.Result(t.Context())
	if err != nil || r.Stdout != want[0] || r.Stderr != want[1] || r.ExitCode != 7 {
		return fmt.Errorf("the result is %+v, %v", r, err)
	}
	return nil
}

func TestAStreamCutAtEveryByte(t *testing.T) {
	s := &session{out: [2]string{
		strings.Repeat("aé€😀\n\"\\\u2028", 12) + "the end",
		strings.Repeat("ß→𝄞\x00", 14) + "é",
	}}
	s.messages = func(p *peer, at [2]int) {
		for at[0] < len(s.out[0]) || at[1] < len(s.out[1]) {
			for i, size := range []int{37, 29} { // which cuts characters
				if end := min(at[i]+size, len(s.out[i])); end > at[i] {
					if !p.say(rawOutput(streams[i], []byte(s.out[i][at[i]:end]), at[i])) {
						return
					}
					at[i] = end
				}
			}
		}
		p.say(`{"type":"exit","exit_code":7}`)
		p.untilEnd()
	}
	budgets := make(chan int, 2) // of the connections to come; none is no limit
	b := serveCut(t, s, func() int {
		select {
		case n := <-budgets:
			return n
		default:
			return math.MaxInt
		}
	})
	for _, x := range []struct {
		what  string
		first []int // budgets of the connections before the one that is cut everywhere
	}{
		{"the first connection", nil},
		{"a re-attachment", []int{400}},
	} {
		for cut, whole := 0, false; !whole; cut++ {
			for _, n := range append(x.first[:len(x.first):len(x.first)], cut) {
				budgets <- n
			}
			s.opened.Store(0)
			cmd, err := b.Start(t.Context(), RunOptions{Command: "x", CommandID: "id"})
			if err == nil {
				err = readWhole(t, cmd, s.out, nil)
				cmd.Close()
			}
			if err != nil {
				t.Fatalf("%s, cut after %d bytes: %v", x.what, cut, err)
			}
			whole = int(s.opened.Load()) == len(x.first)+1
			if whole {
				t.Logf("%s was cut at %d bytes", x.what, cut)
			}
		}
	}
}

var seed = flag.Uint64("seed", 0, "of the test of random cuts; 0 is a new one")

// text is n bytes or a little more, of characters of every length.
func text(dice *rand.Rand, n int) string {
	runes := []rune("aZ09 \n\t\"\\/<&\x00\x1fé߀→\u2028\ufffd😀𝄞")
	var b strings.Builder
	for b.Len() < n {
		b.WriteRune(runes[dice.IntN(len(runes))])
	}
	return b.String()
}

func TestAStreamCutAtRandom(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat it with -seed=%d", *seed)
	dice := rand.New(rand.NewPCG(*seed, 0))
	const cuts = 1200
	s := &session{out: [2]string{text(dice, 300_000), text(dice, 300_000)}}
	var mu sync.Mutex // guards the dice and what follows
	attached, silent := 0, 0
	roll := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return dice.IntN(n)
	}
	codes := []int{1000, 1001, 1011, 1012}
	s.refuses = func(p *peer) bool {
		mu.Lock()
		refused := attached <= cuts && silent < 4 && dice.IntN(8) == 0
		if refused {
			silent++
		}
		mu.Unlock()
		if refused {
			p.end(codes[roll(len(codes))])
		}
		return refused
	}
	s.messages = func(p *peer, at [2]int) {
		mu.Lock()
		silent = 0
		calm := attached > cuts
		mu.Unlock()
		last := -1 // how many messages until the server closes by itself
		if !calm && roll(3) == 0 {
			last = roll(10)
		}
		for at[0] < len(s.out[0]) || at[1] < len(s.out[1]) {
			i, size := roll(2), 1+roll(40)
			if calm {
				size *= 100
			}
			start := max(at[i]-max(roll(30)-15, 0), 0) // sometimes what was sent before
			end := min(start+size, len(s.out[i]))
			if start < end {
				if !p.say(rawOutput(streams[i], []byte(s.out[i][start:end]), start)) {
					return
				}
				at[i] = max(at[i], end)
			}
			if last--; last == 0 {
				p.end(codes[roll(len(codes))])
				return
			}
		}
		p.say(`{"type":"exit","exit_code":7}`)
		p.end(websocket.CloseNormalClosure)
	}
	b := serveCut(t, s, func() int {
		mu.Lock()
		defer mu.Unlock()
		attached++
		switch {
		case attached > cuts:
			return math.MaxInt
		case silent < 4 && dice.IntN(4) == 0:
			silent++ // nothing but a part of the handshake
			return dice.IntN(150)
		}
		return 200 + dice.IntN(1000) // at least up to the acknowledgement
	})
	cmd := mustStart(t, b, RunOptions{})
	if err := readWhole(t, cmd, s.out, nil); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if attached <= cuts {
		t.Errorf("only %d connections were cut", attached-1)
	}
}

// seen is what a chunk's reader looks at.
type seen struct {
	Stream, Data string
	Offset, Gap  int64
}

// chunksOf reads a command to its end, and checks what is behind its text.
func chunksOf(t *testing.T, cmd *Command) (chunks []seen) {
	t.Helper()
	for {
		chunk, err := cmd.Next(t.Context())
		if err == io.EOF {
			return chunks
		}
		if err != nil {
			t.Fatal(err)
		}
		if string([]rune(chunk.Raw)) != chunk.Data {
			t.Errorf("behind %q is %q", chunk.Data, chunk.Raw)
		}
		chunks = append(chunks, seen{chunk.Stream, chunk.Data, chunk.Offset, chunk.Gap})
	}
}

func TestChunks(t *testing.T) {
	out, errs := func(data string, offset int) string { return rawOutput("stdout", []byte(data), offset) },
		func(data string, offset int) string { return rawOutput("stderr", []byte(data), offset) }
	for what, x := range map[string]struct {
		messages []string
		want     []seen
	}{
		"in order":          {[]string{out("a", 0), errs("b", 0), out("c", 1)}, []seen{{"stdout", "a", 0, 0}, {"stderr", "b", 0, 0}, {"stdout", "c", 1, 0}}},
		"empty":             {[]string{out("", 0), out("a", 0)}, []seen{{"stdout", "a", 0, 0}}},
		"overlapping":       {[]string{out("abc", 0), out("bcd", 1)}, []seen{{"stdout", "abc", 0, 0}, {"stdout", "d", 3, 0}}},
		"repeated":          {[]string{out("abc", 0), out("abc", 0), out("b", 1)}, []seen{{"stdout", "abc", 0, 0}}},
		"split":             {[]string{out("a\xe2", 0), out("\x82", 2), out("\xacb", 3)}, []seen{{"stdout", "a", 0, 0}, {"stdout", "€b", 1, 0}}},
		"split, repeated":   {[]string{out("a\xe2\x82", 0), out("\xe2\x82\xac", 1)}, []seen{{"stdout", "a", 0, 0}, {"stdout", "€", 1, 0}}},
		"split, two ways":   {[]string{out("\xc3", 0), errs("\xe2", 0), out("\xa9", 1), errs("\x82\xac", 1)}, []seen{{"stdout", "é", 0, 0}, {"stderr", "€", 0, 0}}},
		"half at the end":   {[]string{out("a\xe2\x82", 0), errs("\xf0\x9f\x98", 0)}, []seen{{"stdout", "a", 0, 0}, {"stdout", "\ufffd\ufffd", 1, 0}, {"stderr", "\ufffd\ufffd\ufffd", 0, 0}}},
		"not UTF-8":         {[]string{out("a\xff\x80b", 0), out("c", 4)}, []seen{{"stdout", "a\ufffd\ufffdb", 0, 0}, {"stdout", "c", 4, 0}}},
		"a gap":             {[]string{out("a", 0), out("b", 10)}, []seen{{"stdout", "a", 0, 0}, {"stdout", "b", 10, 9}}},
		"a gap of one":      {[]string{errs("a", 5), out("b", 0)}, []seen{{"stderr", "a", 5, 5}, {"stdout", "b", 0, 0}}},
		"a gap in a letter": {[]string{out("a\xe2", 0), out("b", 10)}, []seen{{"stdout", "a", 0, 0}, {"stdout", "\ufffd", 1, 0}, {"stdout", "b", 10, 8}}},
		"half after a gap":  {[]string{out("a", 0), out("\xc3", 10), out("\xa9", 11)}, []seen{{"stdout", "a", 0, 0}, {"stdout", "é", 10, 9}}},
		"gaps, no letters":  {[]string{out("\xc3", 10), out("\xc3", 20), out("a", 21)}, []seen{{"stdout", "\ufffd", 10, 10}, {"stdout", "\ufffda", 20, 9}}},
		"below zero":        {[]string{out("a", -3), out("b", math.MinInt64), out("c", 1)}, []seen{{"stdout", "a", 0, 0}, {"stdout", "c", 1, 0}}},
		"unknown":           {[]string{`{"type":"news"}`, out("a", 0), `{"type":"started","command_id":"other","pid":1}`}, []seen{{"stdout", "a", 0, 0}}},
		"without offset":    {[]string{`{"type":"stdout","data":"a"}`}, []seen{{"stdout", "a", 0, 0}}},
	} {
		b, _, _ := talk(t, func(p *peer) {
			p.start()
			p.say(x.messages...)
			p.say(`{"type":"exit","exit_code":0}`)
			p.untilEnd()
		})
		cmd := mustStart(t, b, RunOptions{})
		wantEqual(t, what, chunksOf(t, cmd), x.want)
		wantEqual(t, what+": pid", cmd.PID(), 42)
	}
}

// Another handle goes on where this one has come to, not where it has looked to.
func TestOffsetsAreThoseOfWhatWasReturned(t *testing.T) {
	b, _, _ := talk(t, func(p *peer) {
		p.start()
		p.say(rawOutput("stdout", []byte("a\xe2"), 0), rawOutput("stdout", []byte("b\xc3"), 10), `{"type":"exit","exit_code":0}`)
		p.untilEnd()
	})
	cmd := mustStart(t, b, RunOptions{})
	var offsets []int64
	for range 4 { // "a", half a character, "b", half a character
		if _, err := cmd.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		stdout, _ := cmd.Offsets()
		offsets = append(offsets, stdout)
	}
	wantEqual(t, "offsets", offsets, []int64{1, 2, 11, 12})
}

// What is held back is asked for again, and a gap is not forgotten.
func TestAHeldCharacterIsAskedForAgain(t *testing.T) {
	b, _, _ := talk(t, func(p *peer) {
		p.start()
		p.say(rawOutput("stdout", []byte("a"), 0), rawOutput("stdout", []byte("\xe2\x82"), 5))
	}, func(p *peer) {
		p.expect(`{"type":"reconnect","command_id":"id","stdout_offset":5,"stderr_offset":0}`)
		p.started()
		p.say(rawOutput("stdout", []byte("\xe2\x82\xac"), 5), `{"type":"exit","exit_code":0}`)
		p.untilEnd()
	})
	wantEqual(t, "chunks", chunksOf(t, mustStart(t, b, RunOptions{})), []seen{{"stdout", "a", 0, 0}, {"stdout", "€", 5, 4}})
}

// many is the same handler n times.
func many(n int, serve func(*peer)) (all []func(*peer)) {
	for range n {
		all = append(all, serve)
	}
	return all
}

// dropped hears a command and hangs up.
func dropped(p *peer) { p.command() }

func exits(p *peer) {
	p.start()
	p.say(`{"type":"exit","exit_code":0}`)
	p.untilEnd()
}

// §6.8.
func TestGivingUp(t *testing.T) {
	b, s, notes := talk(t, append([]func(*peer){func(p *peer) {
		p.start()
		p.say(rawOutput("stdout", []byte("some\xc3"), 0), `{"type":"stderr","data":"more","offset":0}`)
	}}, many(9, dropped)...)...)
	cmd := mustStart(t, b, RunOptions{})
	_, err := cmd.Result(t.Context())
	e := wantKind(t, err, ErrConnection)
	wantEqual(t, "waits", notes.slept(), inTurn(.5, 1, 2, 4, 8))
	wantEqual(t, "sockets", s.opened.Load(), 6)
	stdout, stderr := cmd.Offsets() // half a character is for the next handle to read
	wantEqual(t, "output", fmt.Sprint(e.Stdout, e.Stderr, stdout, stderr), "somemore4 4")
	if !strings.Contains(e.Error(), "giving up on command id after 6 lost connections") || e.Unwrap() == nil {
		t.Errorf("got %v", e)
	}
	if _, again := cmd.Next(t.Context()); again != err {
		t.Errorf("afterwards: %v", again)
	}
	wantEqual(t, "sockets", s.opened.Load(), 6)
}

func TestWhatResetsTheCounter(t *testing.T) {
	for what, x := range map[string]struct {
		says  []string
		waits []time.Duration
	}{
		"nothing":           {nil, inTurn(.5, 1, 2, 4, 8)},
		"an ack of another": {[]string{`{"type":"started","command_id":"other","pid":1}`}, inTurn(.5, 1, 2, 4, 8)},
		"the ack":           {[]string{`{"type":"started","command_id":"id","pid":1}`}, inTurn(.5, .5, .5, .5, .5, .5, .5, .5)},
		"output":            {[]string{`{"type":"stdout","data":"same","offset":0}`}, inTurn(.5, .5, .5, .5, .5, .5, .5, .5)},
	} {
		serve := []func(*peer){func(p *peer) { p.start() }}
		serve = append(serve, many(7, func(p *peer) { p.command(); p.say(x.says...) })...)
		b, _, notes := talk(t, append(serve, exits)...)
		_, err := mustStart(t, b, RunOptions{}).Result(t.Context())
		if failed := len(x.waits) < 8; failed != (err != nil) {
			t.Errorf("%s: %v", what, err)
		}
		wantEqual(t, what, notes.slept(), x.waits)
	}
}

func TestARestartIsFollowedAtOnce(t *testing.T) {
	b, s, notes := talk(t, func(p *peer) { p.start(); p.end(websocket.CloseGoingAway) },
		func(p *peer) { p.command(); p.end(websocket.CloseGoingAway) },
		func(p *peer) { p.command(); p.end(websocket.CloseInternalServerErr) },
		func(p *peer) { p.command(); p.end(websocket.CloseGoingAway) },
		exits)
	wantResult(t, mustStart(t, b, RunOptions{}), "", "", 0)
	wantEqual(t, "waits", notes.slept(), inTurn(2)) // the third loss in a row
	wantEqual(t, "sockets", s.opened.Load(), 5)

	b, _, _ = talk(t, append([]func(*peer){func(p *peer) { p.start() }}, many(9, func(p *peer) { p.command(); p.end(websocket.CloseGoingAway) })...)...)
	_, err := mustStart(t, b, RunOptions{}).Result(t.Context())
	e := wantKind(t, err, ErrConnection)
	if !errors.Is(e.Unwrap(), ErrServerReload) {
		t.Errorf("the cause is %v", e.Unwrap())
	}
}

func TestEveryEndWithoutAnExitIsReconnected(t *testing.T) {
	for _, code := range []int{1000, 1001, 1003, 1008, 1011, 1012, 4000, 0} {
		b, _, _ := talk(t, func(p *peer) {
			p.start()
			if code != 0 {
				p.end(code)
			}
		}, exits)
		wantResult(t, mustStart(t, b, RunOptions{}), "", "", 0)
	}
}

// A refusal to re-attach is final unless it is of the kind that passes.
func TestRefusedReattachments(t *testing.T) {
	for status, kind := range map[int]*Kind{401: ErrAuthentication, 403: ErrAuthentication, 404: ErrConnection, 302: ErrConnection} {
		b, s, _ := talk(t, func(p *peer) {
			p.start()
			p.say(`{"type":"stdout","data":"some","offset":0}`)
		})
		s.refusal = answer{status, `{"detail":"no"}`, nil}
		_, err := mustStart(t, b, RunOptions{}).Result(t.Context())
		e := wantKind(t, err, kind)
		wantEqual(t, "status and output", fmt.Sprint(e.Status, e.Stdout, s.opened.Load()), fmt.Sprint(status, "some", 2))
	}
	b, s, notes := talk(t, func(p *peer) { p.start() }, nil, nil, exits)
	s.refusal = answer{503, form("ServiceUnavailable", "booting"), http.Header{"Retry-After": {"9"}}}
	wantResult(t, mustStart(t, b, RunOptions{}), "", "", 0)
	wantEqual(t, "waits", notes.slept(), inTurn(.5, 1, 2))
}

func TestMessagesThatMakeNoSense(t *testing.T) {
	for what, text := range map[string]string{"no JSON": "hello", "no object": "[]", "a wrong type": `{"type":"stdout","data":1}`, "huge": `{"type":"stdout","data":"` + strings.Repeat("x", maxMessage) + `"}`} {
		b, s, _ := talk(t, func(p *peer) {
			p.start()
			p.say(`{"type":"stdout","data":"some","offset":0}`, text)
			p.untilEnd()
		}, exits)
		_, err := mustStart(t, b, RunOptions{}).Result(t.Context())
		if err == nil {
			t.Errorf("%s is accepted", what)
			continue
		}
		e := wantKind(t, err, ErrClient)
		wantEqual(t, what, fmt.Sprint(e.Stdout, s.opened.Load()), "some1")
	}
}

// §6.5.
func TestErrorMessages(t *testing.T) {
	for _, x := range []struct {
		message            string
		kind               *Kind
		onExecute, onAgain string // error type, operation, text
	}{
		{`{"type":"error","error":"late","error_type":"CommandTimeout"}`, ErrCommandTimeout, "CommandTimeout command late [CommandTimeout]", "CommandTimeout command late [CommandTimeout]"},
		{`{"type":"error","error":"none","error_type":"CommandNotFound"}`, ErrOperation, "CommandNotFound command none [CommandNotFound]", "CommandNotFound reconnect the sandbox knows no command id: none [CommandNotFound]"},
		{`{"type":"error","error":"old","error_type":"SessionExpired"}`, ErrOperation, "SessionExpired command old [SessionExpired]", "SessionExpired reconnect command id has ended too long ago, its output is no longer kept: old [SessionExpired]"},
		{`{"type":"error"}`, ErrOperation, "CommandError command Unknown error [CommandError]", "CommandError reconnect Unknown error [CommandError]"},
	} {
		fails := func(p *peer) { p.start(); p.say(x.message); p.untilEnd() }
		text := func(err error, output string) string {
			t.Helper()
			e := wantKind(t, err, x.kind)
			wantEqual(t, x.message+": output", e.Stdout, output)
			if e.Kind == ErrCommandTimeout && e.Operation != "" && e.Timeout == 0 && output != "" {
				t.Errorf("the timeout is not filled in: %+v", e)
			}
			return fmt.Sprint(e.ErrorType, " ", e.Operation, " ", e)
		}

		b, s, _ := talk(t, func(p *peer) { p.command(); p.say(x.message); p.untilEnd() })
		_, err := b.Start(t.Context(), RunOptions{Command: "x", CommandID: "id"})
		wantEqual(t, "before it started", text(err, ""), x.onExecute)
		wantEqual(t, "sockets", s.opened.Load(), 1)

		b, s, _ = talk(t, func(p *peer) {
			p.start()
			p.say(rawOutput("stdout", []byte("some\xc3"), 0), x.message)
			p.untilEnd()
		})
		_, err = mustStart(t, b, RunOptions{Timeout: time.Second}).Result(t.Context())
		wantEqual(t, "on execute", text(err, "some\ufffd"), x.onExecute)
		wantEqual(t, "sockets", s.opened.Load(), 1)

		b, _, _ = talk(t, func(p *peer) { p.start(); p.say(`{"type":"stdout","data":"some","offset":0}`) }, fails)
		_, err = mustStart(t, b, RunOptions{Timeout: time.Second}).Result(t.Context())
		wantEqual(t, "after an automatic reconnect", text(err, "some"), x.onAgain)

		b, _, _ = talk(t, fails)
		cmd := b.Reconnect("id", ReconnectOptions{})
		_, err = cmd.Result(t.Context())
		wantEqual(t, "of Reconnect", text(err, ""), x.onAgain)
		cmd.Close()
	}
}

func TestAFirstMessageThatIsNotStarted(t *testing.T) {
	for _, message := range []string{`{"type":"stdout","data":"a"}`, `{"type":"exit","exit_code":0}`, `{"type":"news"}`} {
		b, s, _ := talk(t, func(p *peer) { p.command(); p.say(message); p.untilEnd() })
		_, err := b.Start(t.Context(), RunOptions{Command: "x"})
		e := wantKind(t, err, ErrOperation)
		if e.Operation != "command" || !strings.Contains(e.Error(), strings.Split(message, `"`)[3]) {
			t.Errorf("got %v", e)
		}
		wantEqual(t, "sockets", s.opened.Load(), 1)
	}
}

// §4.2 with its additions, and §16.2.
func TestStartIsRepeated(t *testing.T) {
	for what, x := range map[string]struct {
		refusal answer
		serve   func(*peer) // nil refuses
		again   bool
		waits   []time.Duration
		kind    *Kind
	}{
		"500":                   {answer{500, "", nil}, nil, true, inTurn(.4, .8, 1.6, 3.2, 6.4), ErrRetryableConnection},
		"502":                   {answer{502, "", nil}, nil, true, inTurn(.4, .8, 1.6, 3.2, 6.4), ErrRetryableConnection},
		"503":                   {answer{503, "", nil}, nil, true, inTurn(.4, .8, 1.6, 3.2, 6.4), ErrRetryableConnection},
		"504":                   {answer{504, "", nil}, nil, true, inTurn(.4, .8, 1.6, 3.2, 6.4), ErrRetryableConnection},
		"429":                   {answer{429, "", nil}, nil, true, inTurn(.4, .8, 1.6, 3.2, 6.4), ErrRetryableConnection},
		"429, 7 s":              {answer{429, "", http.Header{"Retry-After": {"7"}}}, nil, true, inTurn(7, 7, 7, 7, 7), ErrRetryableConnection},
		"503, at once":          {answer{503, "", http.Header{"Retry-After": {"0"}}}, nil, true, inTurn(0, 0, 0, 0, 0), ErrRetryableConnection},
		"503, soon":             {answer{503, "", http.Header{"Retry-After": {"soon"}}}, nil, true, inTurn(.4, .8, 1.6, 3.2, 6.4), ErrRetryableConnection},
		"503, in an hour":       {answer{503, "", http.Header{"Retry-After": {"3600"}}}, nil, false, nil, ErrRetryableConnection},
		"400":                   {answer{400, "", nil}, nil, false, nil, ErrConnection},
		"401":                   {answer{401, "", nil}, nil, false, nil, ErrAuthentication},
		"404":                   {answer{404, "", nil}, nil, false, nil, ErrConnection},
		"501":                   {answer{501, "", nil}, nil, false, nil, ErrConnection},
		"1000":                  {answer{}, func(p *peer) { p.command(); p.end(1000) }, true, inTurn(.5, 1, 2, 4, 8), ErrConnection},
		"1001":                  {answer{}, func(p *peer) { p.command(); p.end(1001) }, true, inTurn(.5, 1, 2, 4, 8), ErrServerReload},
		"1011":                  {answer{}, func(p *peer) { p.command(); p.end(1011) }, true, inTurn(.5, 1, 2, 4, 8), ErrConnection},
		"lost":                  {answer{}, dropped, true, inTurn(.5, 1, 2, 4, 8), ErrConnection},
		"lost before execute":   {answer{}, func(*peer) {}, true, inTurn(.5, 1, 2, 4, 8), ErrConnection},
		"an error message":      {answer{}, func(p *peer) { p.command(); p.say(`{"type":"error"}`); p.untilEnd() }, false, nil, ErrOperation},
		"a message of nonsense": {answer{}, func(p *peer) { p.command(); p.say(`nonsense`); p.untilEnd() }, false, nil, ErrClient},
	} {
		var mu sync.Mutex
		var asked []string
		serve := x.serve
		b, s, notes := talk(t, many(9, serve)...)
		s.refusal = x.refusal
		_, err := b.Start(t.Context(), RunOptions{Command: "x"})
		wantKind(t, err, x.kind)
		wantEqual(t, what, notes.slept(), x.waits)
		wantEqual(t, what+": sockets", int(s.opened.Load()), len(x.waits)+1)
		if !x.again {
			continue
		}
		b, s, _ = talk(t, serve, serve, func(p *peer) {
			m := p.command().(*wire.Execute)
			mu.Lock()
			asked = append(asked, m.CommandID)
			mu.Unlock()
			p.say(messageOf(t, &wire.Started{CommandID: m.CommandID}), `{"type":"exit","exit_code":0}`)
			p.untilEnd()
		})
		s.refusal = x.refusal
		r, err := b.Run(t.Context(), RunOptions{Command: "x"})
		if err != nil || len(asked) != 1 || r.CommandID != asked[0] {
			t.Errorf("%s: got %+v, %v", what, r, err)
		}
	}
}

func TestEveryAttemptAsksForTheSameCommand(t *testing.T) {
	asked := make(chan string, 9)
	b, _, _ := talk(t, many(9, func(p *peer) { asked <- p.hear() })...)
	_, err := b.Start(t.Context(), RunOptions{Command: "x"})
	wantKind(t, err, ErrConnection)
	first := <-asked
	for range startRetries {
		wantEqual(t, "message", <-asked, first)
	}
}

func TestStartWhereNothingListens(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + listener.Addr().String()
	listener.Close()
	var s script
	c := clientOf(t, Options{Endpoint: url}, &s.mu, &s.waits)
	_, err = boxAt(c, url).Start(t.Context(), RunOptions{Command: "x"})
	wantKind(t, err, ErrConnectTimeout)
	wantEqual(t, "waits", s.slept(), inTurn(.5, 1, 2, 4, 8))
}

func TestStartWhereSomethingElseListens(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "220 mail ready\r\n")
			io.Copy(io.Discard, conn)
			conn.Close()
		}
	})
	defer serving.Wait()
	defer listener.Close()
	var s script
	url := "http://" + listener.Addr().String()
	c := clientOf(t, Options{Endpoint: url}, &s.mu, &s.waits)
	_, err = boxAt(c, url).Start(t.Context(), RunOptions{Command: "x"})
	e := wantKind(t, err, ErrConnection)
	if !strings.Contains(e.Error(), "stopped or unreachable") || len(s.slept()) != 0 {
		t.Errorf("got %v after %v", e, s.slept())
	}
}

// §12: a server that makes its own ids would start the command again.
func TestAServerThatIgnoresIDs(t *testing.T) {
	b, s, _ := talk(t, exits, dropped, exits)
	cmd, err := b.Start(t.Context(), RunOptions{Command: "x"})
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Close()
	wantEqual(t, "id", cmd.ID(), "id")
	wantResult(t, cmd, "", "", 0)
	_, err = b.Start(t.Context(), RunOptions{Command: "x"})
	wantKind(t, err, ErrConnection)
	wantEqual(t, "sockets", s.opened.Load(), 2)

	b, s, _ = talk(t, exits, nil, exits) // a refusal has started nothing
	s.refusal.status = 503
	for range 2 {
		cmd, err := b.Start(t.Context(), RunOptions{Command: "x"})
		if err != nil {
			t.Fatal(err)
		}
		wantResult(t, cmd, "", "", 0)
		cmd.Close()
	}
	wantEqual(t, "sockets", s.opened.Load(), 3)
}

const (
	reconnectMessage = `{"type":"reconnect","command_id":"id","stdout_offset":0,"stderr_offset":0}`
	killMessage      = `{"type":"kill"}`
	closeMessage     = `{"type":"close_stdin"}`
	exit137          = `{"type":"exit","exit_code":137}`
)

func killed(p *peer) {
	p.expect(reconnectMessage, killMessage)
	p.started()
	p.say(exit137)
	p.untilEnd()
}

func mustKill(t *testing.T, cmd *Command) {
	t.Helper()
	if err := cmd.Kill(t.Context()); err != nil {
		t.Error(err)
	}
}

// §6.9.
func TestKill(t *testing.T) {
	b, s, _ := talk(t, func(p *peer) {
		p.start()
		p.expect(killMessage)
		p.say(`{"type":"stdout","data":"last","offset":0}`, exit137)
		if more := p.untilEnd(); more != nil {
			t.Errorf("after the exit came %s", more)
		}
	})
	cmd := mustStart(t, b, RunOptions{})
	mustKill(t, cmd)
	wantResult(t, cmd, "last", "", 137)
	mustKill(t, cmd) // which has ended
	wantEqual(t, "sockets", s.opened.Load(), 1)
}

func TestKillOfAHandleThatHasNotConnected(t *testing.T) {
	b, _, _ := talk(t, killed)
	cmd := b.Reconnect("id", ReconnectOptions{})
	defer cmd.Close()
	mustKill(t, cmd)
	wantResult(t, cmd, "", "", 137)
	wantEqual(t, "pid", cmd.PID(), 42)
}

func TestKillIsSaidAgainAfterALoss(t *testing.T) {
	b, _, _ := talk(t, func(p *peer) { p.start(); p.expect(killMessage) }, func(p *peer) { p.expect(reconnectMessage, killMessage) }, killed)
	cmd := mustStart(t, b, RunOptions{})
	mustKill(t, cmd)
	wantResult(t, cmd, "", "", 137)
}

func TestKillEndsTheWaitForAReconnect(t *testing.T) {
	talkInBubble(t, []func(*peer){func(p *peer) { p.start() }, dropped, dropped, dropped, killed}, func(t *testing.T, b *Sandbox, s *sockets) {
		cmd := mustStart(t, b, RunOptions{})
		defer cmd.Close()
		start := time.Now()
		time.AfterFunc(5*time.Second, func() { mustKill(t, cmd) }) // waits of 0.5, 1 and 2 s are over, one of 4 s is not
		wantResult(t, cmd, "", "", 137)
		wantEqual(t, "time", time.Since(start), 5*time.Second)
	})
}

func TestKillOfACommandThatDoesNotEnd(t *testing.T) {
	talkInBubble(t, []func(*peer){func(p *peer) {
		p.start()
		p.say(rawOutput("stdout", []byte("some\xc3"), 0))
		p.untilEnd()
	}}, func(t *testing.T, b *Sandbox, s *sockets) {
		cmd := mustStart(t, b, RunOptions{})
		defer cmd.Close()
		start := time.Now()
		time.AfterFunc(time.Hour, func() { mustKill(t, cmd) })
		wantResult(t, cmd, "some\ufffd", "", 137)
		wantEqual(t, "time", time.Since(start), time.Hour+5*time.Second)
	})
}

// A connection may have died while the reader was busy with what came before.
func TestKillOverADeadConnection(t *testing.T) {
	outputs := func(p *peer) {
		for i := range queuedFrames + 1 {
			p.say(rawOutput("stdout", []byte("x"), i))
		}
	}
	talkInBubble(t, []func(*peer){func(p *peer) { p.start(); outputs(p) }, func(p *peer) {
		p.expect(reconnectMessage, killMessage)
		p.started()
		outputs(p)
		p.say(exit137)
		p.untilEnd()
	}}, func(t *testing.T, b *Sandbox, s *sockets) {
		cmd := mustStart(t, b, RunOptions{})
		defer cmd.Close()
		synctest.Wait()
		mustKill(t, cmd)
		wantResult(t, cmd, strings.Repeat("x", queuedFrames+1), "", 137)
	})
}

// The handle has given up; the command has not.
func TestKillAfterGivingUp(t *testing.T) {
	heard := make(chan struct{})
	b, s, _ := talk(t, func(p *peer) { p.start() }, nil, func(p *peer) { killed(p); close(heard) })
	cmd := mustStart(t, b, RunOptions{})
	_, err := cmd.Result(t.Context())
	wantKind(t, err, ErrConnection)
	mustKill(t, cmd)
	wantEqual(t, "sockets", s.opened.Load(), 3)
	cmd.Close()
	<-heard
}

func TestKillThatCannotBeDelivered(t *testing.T) {
	b, s, _ := talk(t, func(p *peer) { p.start() }, nil, nil, killed)
	s.refusal.status = 503
	cmd := b.Reconnect("id", ReconnectOptions{})
	defer cmd.Close()
	s.opened.Store(1)
	wantKind(t, cmd.Kill(t.Context()), ErrRetryableConnection)
	wantResult(t, cmd, "", "", 137) // it is remembered
}

// stuck never answers an upgrade; its server ends with the test.
func stuck(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func after(t *testing.T, d time.Duration, why error) context.Context {
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(d, func() { cancel(why) })
	return ctx
}

func TestCancellationEndsEveryMethod(t *testing.T) {
	inBubble(t, Options{}, http.HandlerFunc(stuck), func(t *testing.T, c *Client) {
		why := errors.New("why")
		b := boxAt(c, pipeURL)
		for name, do := range map[string]func(ctx context.Context, cmd *Command) error{
			"Start": func(ctx context.Context, _ *Command) error {
				_, err := b.Start(ctx, RunOptions{Command: "x"})
				return err
			},
			"Run": func(ctx context.Context, _ *Command) error {
				_, err := b.Run(ctx, RunOptions{Command: "x"})
				return err
			},
			"Next":      func(ctx context.Context, cmd *Command) error { _, err := cmd.Next(ctx); return err },
			"Result":    func(ctx context.Context, cmd *Command) error { _, err := cmd.Result(ctx); return err },
			"Kill":      func(ctx context.Context, cmd *Command) error { return cmd.Kill(ctx) },
			"SendInput": func(ctx context.Context, cmd *Command) error { return cmd.SendInput(ctx, []byte("x")) },
		} {
			cmd := b.Reconnect("id", ReconnectOptions{})
			start := time.Now()
			if err := do(after(t, time.Second, why), cmd); err != why {
				t.Errorf("%s: %v", name, err)
			}
			wantEqual(t, name, time.Since(start), time.Second)

			// and while another goroutine is connecting
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() { cmd.Next(ctx); close(ended) }()
			synctest.Wait()
			start = time.Now()
			if name != "Next" && name != "Result" {
				if err := do(after(t, time.Second, why), cmd); err != why {
					t.Errorf("%s, behind another: %v", name, err)
				}
				wantEqual(t, name+", behind another", time.Since(start), time.Second)
			}
			cancel()
			<-ended
			cmd.Close()
		}
	})
}

func TestCancellationWhileThePeerTakesNothing(t *testing.T) {
	why := errors.New("why")
	for name, do := range map[string]func(ctx context.Context, cmd *Command) error{
		"SendInput": func(ctx context.Context, cmd *Command) error { return cmd.SendInput(ctx, []byte("x")) },
		"Kill":      func(ctx context.Context, cmd *Command) error { return cmd.Kill(ctx) },
	} {
		talkInBubble(t, []func(*peer){func(p *peer) { p.start(); time.Sleep(time.Minute) }}, func(t *testing.T, b *Sandbox, s *sockets) {
			cmd := mustStart(t, b, RunOptions{})
			start := time.Now()
			if err := do(after(t, time.Millisecond, why), cmd); err != why {
				t.Errorf("%s: %v", name, err)
			}
			wantEqual(t, name, time.Since(start), time.Millisecond)
			cmd.Close()
		})
	}
}

// A context that ends leaves the handle as it was.
func TestNextAfterACancellation(t *testing.T) {
	more := make(chan struct{})
	b, s, _ := talk(t, func(p *peer) {
		p.start()
		p.say(rawOutput("stdout", []byte("a\xc3"), 0))
		<-more
		p.say(rawOutput("stdout", []byte("\xa9"), 2), `{"type":"exit","exit_code":0}`)
		p.untilEnd()
	})
	cmd := mustStart(t, b, RunOptions{})
	why := errors.New("why")
	ctx, cancel := context.WithCancelCause(t.Context())
	if chunk, err := cmd.Next(ctx); err != nil || chunk.Data != "a" {
		t.Fatalf("got %+v, %v", chunk, err)
	}
	cancel(why)
	if _, err := cmd.Next(ctx); err != why {
		t.Fatalf("got %v", err)
	}
	close(more)
	wantResult(t, cmd, "aé", "", 0)
	wantEqual(t, "sockets", s.opened.Load(), 1)
}

func TestRunIsKilledWhenItsContextEnds(t *testing.T) {
	heard := make(chan []string, 1)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	b, _, _ := talk(t, func(p *peer) {
		p.start()
		cancel(why)
		heard <- p.untilEnd()
	})
	if _, err := b.Run(ctx, RunOptions{Command: "x", CommandID: "id"}); err != why {
		t.Errorf("got %v", err)
	}
	wantEqual(t, "heard", <-heard, []string{killMessage})
}

// That holds while the connection is down, too.
func TestRunIsKilledWhenItsContextEndsWhileDetached(t *testing.T) {
	heard := make(chan []string, 1)
	b, _, _ := talk(t, func(p *peer) { p.start() }, func(p *peer) { heard <- p.untilEnd() })
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	b.client.sleep = func(ctx context.Context, d time.Duration) error { cancel(why); return sleep(ctx, d) }
	if _, err := b.Run(ctx, RunOptions{Command: "x", CommandID: "id"}); err != why {
		t.Errorf("got %v", err)
	}
	wantEqual(t, "heard", <-heard, []string{`{"type":"reconnect","command_id":"id","stdout_offset":0,"stderr_offset":0}`, killMessage})
}

// Nobody has a handle on a command whose start is cancelled.
func TestStartIsKilledWhenItsContextEnds(t *testing.T) {
	heard := make(chan []string, 1)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	b, _, _ := talk(t, func(p *peer) {
		p.command()
		cancel(why)
		heard <- p.untilEnd()
	})
	if _, err := b.Start(ctx, RunOptions{Command: "x"}); err != why {
		t.Errorf("got %v", err)
	}
	wantEqual(t, "heard", <-heard, []string{killMessage})
}

func TestCloseDetaches(t *testing.T) {
	heard := make(chan []string, 1)
	b, s, _ := talk(t, func(p *peer) {
		p.start()
		p.say(`{"type":"stdout","data":"some","offset":0}`)
		heard <- p.untilEnd()
	})
	cmd := mustStart(t, b, RunOptions{})
	if _, err := cmd.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := cmd.Close(); err != nil {
			t.Error(err)
		}
	}
	wantEqual(t, "heard", <-heard, []string(nil))
	_, err := cmd.Next(t.Context())
	wantEqual(t, "output", wantKind(t, err, ErrConnection).Stdout, "some")
	wantKind(t, cmd.Kill(t.Context()), ErrConnection)
	wantKind(t, cmd.SendInput(t.Context(), []byte("x")), ErrConnection)
	wantEqual(t, "sockets", s.opened.Load(), 1)

	// The errors of two handles have nothing in common.
	other := b.Reconnect("id", ReconnectOptions{})
	other.Close()
	_, another := other.Next(t.Context())
	if e := wantKind(t, another, ErrConnection); e.Stdout != "" || asError(t, err).Stdout != "some" {
		t.Errorf("the outputs are %q and %q", asError(t, err).Stdout, e.Stdout)
	}
}

func TestCloseEndsNext(t *testing.T) {
	for what, serve := range map[string][]func(*peer){
		"reading": {func(p *peer) { p.start(); p.untilEnd() }},
		"waiting": {func(p *peer) { p.start() }},
	} {
		talkInBubble(t, serve, func(t *testing.T, b *Sandbox, s *sockets) {
			cmd := mustStart(t, b, RunOptions{})
			start := time.Now()
			time.AfterFunc(100*time.Millisecond, func() { cmd.Close() })
			_, err := cmd.Next(t.Context())
			wantKind(t, err, ErrConnection)
			wantEqual(t, what, time.Since(start), 100*time.Millisecond)
		})
	}
}

// §4.2: all attempts together take no longer than the budget.
func TestTheBudgetOfAStart(t *testing.T) {
	silent := func(p *peer) { p.untilEnd() }
	for what, x := range map[string]struct {
		timeouts WebSocketTimeouts
		serve    func(*peer)
		sockets  int
		time     time.Duration
	}{
		"an answer never comes":     {WebSocketTimeouts{}, silent, 4, 120 * time.Second}, // 30 + .5 + 30 + 1 + 30 + 2 + 26.5
		"a small budget":            {WebSocketTimeouts{ConnectBudget: 10 * time.Second}, silent, 1, 10 * time.Second},
		"short attempts":            {WebSocketTimeouts{Open: time.Second}, silent, 6, 6*time.Second + 15500*time.Millisecond},
		"no budget for another one": {WebSocketTimeouts{Open: 2 * time.Second, ConnectBudget: 2100 * time.Millisecond}, silent, 1, 2 * time.Second},
	} {
		talkInBubbleWith(t, Options{WebSocket: x.timeouts}, many(9, x.serve), func(t *testing.T, b *Sandbox, s *sockets) {
			start := time.Now()
			_, err := b.Start(t.Context(), RunOptions{Command: "x"})
			wantKind(t, err, ErrConnectTimeout)
			wantEqual(t, what, time.Since(start).Round(time.Second/2), x.time)
			wantEqual(t, what+": sockets", int(s.opened.Load()), x.sockets)
		})
	}
	inBubble(t, Options{}, http.HandlerFunc(stuck), func(t *testing.T, c *Client) {
		start := time.Now()
		_, err := boxAt(c, pipeURL).Start(t.Context(), RunOptions{Command: "x"})
		wantKind(t, err, ErrConnectTimeout)
		wantEqual(t, "the upgrade never comes", time.Since(start), 120*time.Second)
	})
	inBubble(t, Options{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(25 * time.Second):
		case <-r.Context().Done():
		}
		conn, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err == nil {
			(&peer{Conn: conn, t: t}).untilEnd()
			conn.Close()
		}
	}), func(t *testing.T, c *Client) {
		start := time.Now()
		_, err := boxAt(c, pipeURL).Start(t.Context(), RunOptions{Command: "x"})
		wantKind(t, err, ErrConnectTimeout)
		if took := time.Since(start); took > 120*time.Second {
			t.Errorf("a slow upgrade and no answer took %v", took)
		}
	})
}

// A server that does not keep the command's timeout is not waited for.
func TestACommandThatOutlivesItsTimeout(t *testing.T) {
	talkInBubble(t, []func(*peer){func(p *peer) {
		p.start()
		p.say(`{"type":"stdout","data":"some","offset":0}`)
		p.untilEnd()
	}}, func(t *testing.T, b *Sandbox, s *sockets) {
		start := time.Now()
		_, err := mustStart(t, b, RunOptions{Timeout: time.Minute}).Result(t.Context())
		e := wantKind(t, err, ErrCommandTimeout)
		wantEqual(t, "time", time.Since(start), 90*time.Second)
		wantEqual(t, "error", fmt.Sprint(e.Timeout, e.Stdout), "1m0ssome")
	})
}

func TestSilenceIsNotTheEnd(t *testing.T) {
	talkInBubble(t, []func(*peer){func(p *peer) {
		p.start()
		time.AfterFunc(100*time.Hour, func() { p.say(`{"type":"exit","exit_code":0}`) })
		p.untilEnd()
	}}, func(t *testing.T, b *Sandbox, s *sockets) {
		cmd := mustStart(t, b, RunOptions{})
		defer cmd.Close()
		r, err := cmd.Result(t.Context())
		if err != nil || r.Duration != 100*time.Hour {
			t.Errorf("got %+v, %v", r, err)
		}
		wantEqual(t, "sockets", s.opened.Load(), 1)
	})
}

// A reader that takes its time is no dead peer, whatever the command's timeout.
func TestASlowReader(t *testing.T) {
	const n = 4 * queuedFrames
	talkInBubble(t, []func(*peer){func(p *peer) {
		p.SetPingHandler(func(string) error { return nil }) // a pong would wait in the pipe
		p.start()
		go func() {
			for i := range n {
				p.say(rawOutput("stdout", []byte("x"), i))
			}
			p.say(`{"type":"exit","exit_code":0}`)
		}()
		p.untilEnd()
	}}, func(t *testing.T, b *Sandbox, s *sockets) {
		cmd := mustStart(t, b, RunOptions{Timeout: time.Second})
		defer cmd.Close()
		for range n {
			if _, err := cmd.Next(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
		}
		r, err := cmd.Result(t.Context())
		if err != nil || len(r.Stdout) != n {
			t.Errorf("got %+v, %v", r, err)
		}
		wantEqual(t, "sockets", s.opened.Load(), 1)
	})
}

func TestAPeerThatDoesNotAnswerPings(t *testing.T) {
	for what, x := range map[string]struct {
		serve func(*peer)
		time  time.Duration
	}{
		"reads":         {func(p *peer) { p.SetPingHandler(func(string) error { return nil }); p.start(); p.untilEnd() }, 90 * time.Second},
		"does not read": {func(p *peer) { p.start(); time.Sleep(time.Hour) }, 40 * time.Second},
	} {
		talkInBubble(t, []func(*peer){x.serve, exits}, func(t *testing.T, b *Sandbox, s *sockets) {
			start := time.Now()
			cmd := mustStart(t, b, RunOptions{})
			wantResult(t, cmd, "", "", 0)
			wantEqual(t, what, time.Since(start), x.time+500*time.Millisecond)
		})
	}
}

func TestInput(t *testing.T) {
	euro := strings.Repeat("€", inputPiece) // 3 bytes each: no piece ends with a border of 32 KiB
	heard := make(chan []string, 1)
	b, _, _ := talk(t, func(p *peer) {
		p.start()
		heard <- p.untilEnd()
	})
	cmd := mustStart(t, b, RunOptions{})
	for _, text := range []string{"", "a\n\x04", euro} {
		if err := cmd.SendInput(t.Context(), []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	e := wantKind(t, cmd.SendInput(t.Context(), []byte("a\xff")), ErrValidation)
	if !strings.Contains(e.Error(), "UTF-8") {
		t.Errorf("got %v", e)
	}
	for range 2 {
		if err := cmd.CloseStdin(t.Context()); err != nil {
			t.Error(err)
		}
	}
	e = wantKind(t, cmd.SendInput(t.Context(), []byte("late")), ErrOperation)
	wantEqual(t, "operation", e.Operation, "sendInput")
	cmd.Close()

	var got string
	messages := <-heard
	for i, text := range messages {
		m, err := wire.DecodeMessage([]byte(text))
		if input, ok := m.(*wire.Input); ok && i < len(messages)-1 {
			got += input.Data
			if len(input.Data) > inputPiece || !utf8.ValidString(input.Data) {
				t.Errorf("a piece of %d bytes", len(input.Data))
			}
		} else if text != closeMessage || i < len(messages)-1 {
			t.Errorf("message %d is %.100s, %v", i, text, err)
		}
	}
	if got != "a\n\x04"+euro || len(messages) != 1+4+1 {
		t.Errorf("%d bytes in %d messages arrived", len(got), len(messages))
	}
}

func TestInputOfACommandWithoutStdin(t *testing.T) {
	heard := make(chan []string, 3)
	b, _, _ := talk(t, many(3, func(p *peer) { p.start(); heard <- p.untilEnd() })...)
	for what, x := range map[string]struct {
		cmd    *Command
		closed bool
		heard  []string
	}{
		"started without":     {mustStart(t, b, RunOptions{CloseStdin: true}), true, nil},
		"started on a PTY":    {mustStart(t, b, RunOptions{CloseStdin: true, PTY: true}), false, []string{`{"type":"input","data":"x"}`}},
		"re-attached without": {b.Reconnect("id", ReconnectOptions{StdinClosed: true}), true, nil},
	} {
		err := x.cmd.SendInput(t.Context(), []byte("x"))
		if x.closed {
			wantKind(t, err, ErrOperation)
		} else if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if err := x.cmd.CloseStdin(t.Context()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		attached := what != "re-attached without"
		x.cmd.Close()
		if attached {
			wantEqual(t, what, <-heard, x.heard)
		}
	}
}

// §16.2: the end of the input is said again after each re-attachment.
func TestCloseStdinIsRepeated(t *testing.T) {
	repeats := func(p *peer) { p.expect(reconnectMessage, closeMessage); p.started() }
	b, _, _ := talk(t, func(p *peer) { p.start(); p.expect(closeMessage) }, repeats, func(p *peer) {
		repeats(p)
		p.say(`{"type":"exit","exit_code":0}`)
		if more := p.untilEnd(); more != nil {
			t.Errorf("heard %v", more)
		}
	}, repeats, func(p *peer) {
		repeats(p)
		p.say(`{"type":"exit","exit_code":0}`)
		p.untilEnd()
	})
	cmd := mustStart(t, b, RunOptions{})
	if err := cmd.CloseStdin(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantResult(t, cmd, "", "", 0)

	again := cmd.Reconnect() // which passes on what it knows
	defer again.Close()
	wantResult(t, again, "", "", 0)
}

// A server that chooses the ids of commands is too old to end their input (§12).
func TestCloseStdinOnAnOlderServer(t *testing.T) {
	b, _, _ := talk(t, func(p *peer) {
		p.command()
		p.say(`{"type":"started","command_id":"its own","pid":1}`)
		p.expect(`{"type":"input","data":"x"}`)
		p.say(`{"type":"exit","exit_code":0}`)
		if more := p.untilEnd(); more != nil {
			t.Errorf("heard %v", more)
		}
	})
	cmd := mustStart(t, b, RunOptions{})
	e := wantKind(t, cmd.CloseStdin(t.Context()), ErrOperation)
	wantEqual(t, "operation", e.Operation, "sendInput")
	if err := cmd.SendInput(t.Context(), []byte("x")); err != nil {
		t.Error(err)
	}
	wantResult(t, cmd, "", "", 0)
}

func TestCloseStdinBeforeConnecting(t *testing.T) {
	b, _, _ := talk(t, func(p *peer) {
		p.expect(reconnectMessage, closeMessage)
		p.started()
		p.say(`{"type":"exit","exit_code":0}`)
		p.untilEnd()
	})
	cmd := b.Reconnect("id", ReconnectOptions{})
	defer cmd.Close()
	if err := cmd.CloseStdin(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantResult(t, cmd, "", "", 0)
}

func TestInputWhileDetached(t *testing.T) {
	b, _, _ := talk(t, func(p *peer) {
		p.expect(reconnectMessage, `{"type":"input","data":"x"}`)
		p.started()
		p.say(`{"type":"exit","exit_code":0}`)
		p.untilEnd()
	})
	cmd := b.Reconnect("id", ReconnectOptions{})
	defer cmd.Close()
	if err := cmd.SendInput(t.Context(), []byte("x")); err != nil { // it attaches
		t.Fatal(err)
	}
	wantResult(t, cmd, "", "", 0)
	if err := cmd.SendInput(t.Context(), []byte("late")); err != nil {
		t.Errorf("after the end: %v", err)
	}

	b, s, _ := talk(t)
	s.refusal.status = 503
	cmd = b.Reconnect("id", ReconnectOptions{})
	defer cmd.Close()
	wantKind(t, cmd.SendInput(t.Context(), []byte("x")), ErrRetryableConnection)
}

func TestInputThatIsLostIsAnError(t *testing.T) {
	talkInBubble(t, []func(*peer){func(p *peer) { p.start() }, exits}, func(t *testing.T, b *Sandbox, s *sockets) {
		cmd := mustStart(t, b, RunOptions{})
		defer cmd.Close()
		synctest.Wait()
		wantKind(t, cmd.SendInput(t.Context(), []byte("x")), ErrConnection)
		wantResult(t, cmd, "", "", 0)
	})
}

func TestReattachingFromOffsets(t *testing.T) {
	b, _, _ := talk(t, func(p *peer) {
		p.expect(`{"type":"reconnect","command_id":"id","stdout_offset":3,"stderr_offset":5}`)
		p.started()
		p.say(`{"type":"stdout","data":"tail","offset":3}`, `{"type":"exit","exit_code":1}`)
		p.untilEnd()
	})
	cmd := b.Reconnect("id", ReconnectOptions{StdoutOffset: 3, StderrOffset: 5})
	defer cmd.Close()
	wantEqual(t, "before", fmt.Sprint(cmd.ID(), cmd.PID()), "id0")
	wantResult(t, cmd, "tail", "", 1)
	stdout, stderr := cmd.Offsets()
	wantEqual(t, "after", fmt.Sprint(stdout, stderr, cmd.PID()), "7 5 42")
}

// §6.10: plain HTTP only where nothing can have been executed.
func TestRunOverHTTP(t *testing.T) {
	able := RunOptions{Command: "x", Timeout: time.Minute, CloseStdin: true}
	with := func(change func(*RunOptions)) RunOptions { o := able; change(&o); return o }
	for what, x := range map[string]struct {
		status int
		o      RunOptions
		http   bool
	}{
		"404":        {404, able, true},
		"405":        {405, able, true},
		"426":        {426, able, true},
		"400":        {400, able, false},
		"401":        {401, able, false},
		"503":        {503, able, false},
		"input":      {404, with(func(o *RunOptions) { o.CloseStdin = false }), false},
		"a PTY":      {404, with(func(o *RunOptions) { o.PTY = true }), false},
		"no timeout": {404, with(func(o *RunOptions) { o.Timeout = 0 }), false},
		"an id":      {404, with(func(o *RunOptions) { o.CommandID = "id" }), false},
		"kill":       {404, with(func(o *RunOptions) { o.KillOnDisconnect = true }), true},
	} {
		var executed atomic.Int32
		mux := http.NewServeMux()
		mux.HandleFunc("/execute/ws", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(x.status) })
		mux.HandleFunc("/execute", func(w http.ResponseWriter, r *http.Request) {
			executed.Add(1)
			io.WriteString(w, `{"stdout":"out","stderr":"err","exit_code":5}`)
		})
		server := httptest.NewServer(mux)
		var notes script
		c := clientOf(t, Options{Endpoint: server.URL}, &notes.mu, &notes.waits)
		r, err := boxAt(c, server.URL).Run(t.Context(), x.o)
		if (executed.Load() == 1) != x.http || (err == nil) != x.http || x.http && (r.Stdout != "out" || r.Stderr != "err" || r.ExitCode != 5) {
			t.Errorf("%s: executed %d times: %+v, %v", what, executed.Load(), r, err)
		}
		c.Close()
		server.Close()
	}
	b, _, _ := talk(t, many(6, dropped)...) // the command may have run
	_, err := b.Run(t.Context(), able)
	wantKind(t, err, ErrConnection)
}

// What plain HTTP cannot do is refused by name, and not left out.
func TestExecRefusesWhatHTTPCannotDo(t *testing.T) {
	for want, o := range map[string]RunOptions{
		"a terminal": {PTY: true}, "a command_id": {CommandID: "id"},
	} {
		c, s := serve(t, answer{200, `{}`, nil})
		o.Command = "x"
		_, err := boxAt(c, s.url).Exec(t.Context(), o)
		if e := wantKind(t, err, ErrValidation); !strings.Contains(e.Message, want) || len(s.asked()) > 0 {
			t.Errorf("%s: %v, %d requests", want, e, len(s.asked()))
		}
	}
}

// All methods but Next and Result may be called while those run.
func TestManyGoroutinesOnOneCommand(t *testing.T) {
	s := &session{out: [2]string{strings.Repeat("é", 3000), ""}}
	s.messages = func(p *peer, at [2]int) {
		for at[0] < len(s.out[0]) {
			end := min(at[0]+99, len(s.out[0]))
			if !p.say(rawOutput("stdout", []byte(s.out[0][at[0]:end]), at[0])) {
				return
			}
			at[0] = end
		}
		p.say(`{"type":"exit","exit_code":7}`)
		p.untilEnd()
	}
	b := serveCut(t, s, func() int { return 2000 })
	cmd := mustStart(t, b, RunOptions{})
	done := make(chan struct{})
	var others sync.WaitGroup
	for _, do := range []func(){
		func() { cmd.SendInput(t.Context(), []byte("x")) },
		func() { cmd.CloseStdin(t.Context()) },
		func() { cmd.Offsets(); cmd.PID(); cmd.ID() },
		func() { cmd.Reconnect().Close() },
	} {
		others.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					do()
				}
			}
		})
	}
	err := readWhole(t, cmd, s.out, nil)
	close(done)
	others.Wait()
	if err != nil {
		t.Error(err)
	}
}

// A command that does not read its input yet is no dead peer.
func TestInputThatWaits(t *testing.T) {
	heard := make(chan int, 1)
	talkInBubble(t, []func(*peer){func(p *peer) {
		p.start()
		time.Sleep(time.Hour)
		heard <- len(p.untilEnd())
	}}, func(t *testing.T, b *Sandbox, s *sockets) {
		cmd := mustStart(t, b, RunOptions{})
		start := time.Now()
		if err := cmd.SendInput(t.Context(), make([]byte, 10*inputPiece)); err != nil {
			t.Fatal(err)
		}
		wantEqual(t, "time", time.Since(start), time.Hour)
		cmd.Close()
		wantEqual(t, "sockets", s.opened.Load(), 1)
	})
	wantEqual(t, "messages", <-heard, 10)
}

func TestKillBehindInputThatWaits(t *testing.T) {
	talkInBubble(t, []func(*peer){func(p *peer) { p.start(); time.Sleep(time.Hour) }, killed}, func(t *testing.T, b *Sandbox, s *sockets) {
		cmd := mustStart(t, b, RunOptions{})
		defer cmd.Close()
		fed := make(chan error)
		go func() { fed <- cmd.SendInput(t.Context(), make([]byte, 10*inputPiece)) }()
		synctest.Wait()
		impatient := errors.New("impatient")
		if err := cmd.SendInput(after(t, time.Millisecond, impatient), []byte("x")); err != impatient { // which harms nobody
			t.Errorf("got %v", err)
		}
		start := time.Now()
		mustKill(t, cmd)
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("the kill took %v", took)
		}
		wantKind(t, <-fed, ErrConnection)
		wantResult(t, cmd, "", "", 137)
	})
}
