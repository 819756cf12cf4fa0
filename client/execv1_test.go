package client

import (
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/wire"
)

// This file tests commands under exec.v1 (protocol.md §15), and that nothing of
// it is taken for granted where it is not spoken.

// always speaks exec.v1.
func always(int) bool { return true }

// talkV1 is talk with a server that speaks exec.v1.
func talkV1(t *testing.T, serve ...func(*peer)) (*Sandbox, *sockets) {
	t.Helper()
	b, s, _ := talk(t, serve...)
	s.speaks = always
	return b, s
}

// write sends a frame of output, and reports whether somebody is there to read it.
func (p *peer) write(stream, data string, offset int64) bool {
	return p.WriteMessage(websocket.BinaryMessage, append(wire.AppendOutputHeader(nil, stream, offset), data...)) == nil
}

func TestBytes(t *testing.T) {
	b, s := talkV1(t, func(p *peer) {
		p.start()
		p.write("stdout", "a\xff\xe2\x82", 0)
		p.write("stderr", "\x00\x80", 0)
		p.write("stdout", "\xac", 4)
	}, func(p *peer) {
		p.expect(`{"type":"reconnect","command_id":"id","stdout_offset":5,"stderr_offset":2}`)
		wantEqual(t, "offered again", p.request.Header.Get("Sec-Websocket-Protocol"), wire.ExecV1)
		p.started()
		p.write("stdout", "\xe2\x82\xac\n", 2) // some of it once more
		p.write("stderr", "\xf0\x9f", 2)
		p.say(`{"type":"exit","exit_code":143,"signal":"TERM","duration_ms":1500,"reason":"killed: ` + strings.Repeat("é", 300) + `"}`)
		p.untilEnd()
	})
	r, err := mustStart(t, b, RunOptions{}).Result(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "result", fmt.Sprintf("%+q", []any{r.Stdout, r.RawStdout, r.Stderr, r.RawStderr}),
		fmt.Sprintf("%+q", []any{"a\ufffd€\n", "a\xff€\n", "\x00\ufffd\ufffd\ufffd", "\x00\x80\xf0\x9f"}))
	wantEqual(t, "end", []any{r.ExitCode, r.Signal, r.Duration}, []any{143, "TERM", 1500 * time.Millisecond})
	wantEqual(t, "reason", r.Reason, "killed: "+strings.Repeat("é", 192))
	wantEqual(t, "sockets", s.opened.Load(), 2)

	b, _, _ = talk(t, func(p *peer) {
		p.start()
		p.say(rawOutput("stdout", []byte("é"), 0), `{"type":"exit","exit_code":3}`)
		p.untilEnd()
	})
	r, err = mustStart(t, b, RunOptions{}).Result(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "without exec.v1", []any{r.Stdout, r.RawStdout, r.ExitCode, r.Signal}, []any{"é", "é", 3, ""})
}

// Bytes of every kind arrive as they were, wherever connections break.
func TestBytesCutAtRandom(t *testing.T) {
	n := *seed
	if n == 0 {
		n = rand.Uint64()
	}
	t.Logf("-seed %d", n)
	dice := rand.New(rand.NewPCG(n, 0))
	for i := range 100 {
		s := &session{v1: true}
		for i := range s.out {
			raw := []byte(text(dice, dice.IntN(300)))
			for range min(dice.IntN(20), len(raw)) {
				raw[dice.IntN(len(raw))] = byte(dice.Uint32())
			}
			s.out[i] = string(raw)
		}
		budgets := make(chan int, 3) // of the connections to come; none is no limit
		for range dice.IntN(cap(budgets)) {
			budgets <- dice.IntN(900)
		}
		t.Run(fmt.Sprint(i), func(t *testing.T) { readBytes(t, s, budgets) })
	}
}

func readBytes(t *testing.T, s *session, budgets chan int) {
	s.messages = func(p *peer, at [2]int) {
		for at[0] < len(s.out[0]) || at[1] < len(s.out[1]) {
			for i, size := range []int{23, 31} {
				if end := min(at[i]+size, len(s.out[i])); end > at[i] {
					if !p.write(streams[i], s.out[i][at[i]:end], int64(at[i])) {
						return
					}
					at[i] = end
				}
			}
		}
		p.say(`{"type":"exit","exit_code":7}`)
		p.untilEnd()
	}
	b := serveCut(t, s, func() int {
		select {
		case n := <-budgets:
			return n
		default:
			return math.MaxInt
		}
	})
	cmd, err := b.Start(t.Context(), RunOptions{Command: "x", CommandID: "id"})
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Close()
	var raw [2]string
	for {
		chunk, err := cmd.Next(t.Context())
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		i := index(chunk.Stream)
		if chunk.Raw == "" || chunk.Gap != 0 || chunk.Offset != int64(len(raw[i])) || chunk.Data != string([]rune(chunk.Raw)) {
			t.Fatalf("%d bytes into %s came %+v", len(raw[i]), chunk.Stream, chunk)
		}
		raw[i] += chunk.Raw
	}
	r, err := cmd.Result(t.Context())
	if err != nil || raw != s.out || r.RawStdout != s.out[0] || r.RawStderr != s.out[1] {
		t.Fatalf("got %q, want %q; %v", raw, s.out, err)
	}
	if r.Stdout != string([]rune(s.out[0])) || r.Stderr != string([]rune(s.out[1])) {
		t.Fatalf("the text is %q and %q of %q", r.Stdout, r.Stderr, s.out)
	}
}

func TestGaps(t *testing.T) {
	gap := func(stream string, from, to int64) string {
		return messageOf(t, &wire.Gap{Stream: stream, From: from, To: to})
	}
	type step struct {
		gap    string
		data   string
		offset int64
	}
	for what, x := range map[string]struct {
		steps []step
		want  []seen
		at    int64 // of stdout, in the end
	}{
		"before output":        {[]step{{gap("stdout", 0, 9), "", 0}, {"", "a", 9}}, []seen{{"stdout", "a", 9, 9}}, 10},
		"in between":           {[]step{{"", "a", 0}, {gap("stdout", 1, 9), "", 0}, {"", "b", 9}}, []seen{{"stdout", "a", 0, 0}, {"stdout", "b", 9, 8}}, 10},
		"at the end":           {[]step{{"", "a", 0}, {gap("stdout", 1, 9), "", 0}}, []seen{{"stdout", "a", 0, 0}, {"stdout", "", 9, 8}}, 9},
		"of the other stream":  {[]step{{gap("stderr", 0, 9), "", 0}, {"", "b", 0}}, []seen{{"stdout", "b", 0, 0}, {"stderr", "", 9, 9}}, 1},
		"two in a row":         {[]step{{gap("stdout", 0, 3), "", 0}, {gap("stdout", 3, 9), "", 0}, {"", "b", 9}}, []seen{{"stdout", "b", 9, 9}}, 10},
		"in a character":       {[]step{{"", "a\xe2", 0}, {gap("stdout", 2, 9), "", 0}, {"", "\xacb", 9}}, []seen{{"stdout", "a", 0, 0}, {"stdout", "\ufffd", 1, 0}, {"stdout", "\ufffdb", 9, 7}}, 11},
		"of what is known":     {[]step{{"", "abc", 0}, {gap("stdout", 0, 2), "", 0}, {"", "d", 3}}, []seen{{"stdout", "abc", 0, 0}, {"stdout", "d", 3, 0}}, 4},
		"that is not declared": {[]step{{"", "a", 0}, {"", "b", 9}}, []seen{{"stdout", "a", 0, 0}, {"stdout", "b", 9, 8}}, 10},
	} {
		b, _ := talkV1(t, func(p *peer) {
			p.start()
			for _, s := range x.steps {
				if s.gap != "" {
					p.say(s.gap)
				} else {
					p.write("stdout", s.data, s.offset)
				}
			}
			p.say(`{"type":"exit","exit_code":0}`)
			p.untilEnd()
		})
		cmd := mustStart(t, b, RunOptions{})
		wantEqual(t, what, chunksOf(t, cmd), x.want)
		at, _ := cmd.Offsets()
		wantEqual(t, what+": offset", at, x.at)
	}
}

// Who waits for the result learns what is missing in it.
func TestAResultTellsWhatWasLost(t *testing.T) {
	b, _ := talkV1(t, func(p *peer) {
		p.start()
		p.say(messageOf(t, &wire.Gap{Stream: "stdout", From: 0, To: 9}))
		p.write("stdout", "a", 9)
		p.say(messageOf(t, &wire.Gap{Stream: "stderr", From: 0, To: 2}), `{"type":"exit","exit_code":0}`)
		p.untilEnd()
	})
	r, err := b.Run(t.Context(), RunOptions{Command: "x", CommandID: "id"})
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "lost", []int64{r.LostStdout, r.LostStderr}, []int64{9, 2})
}

// A gap is told once, also when the connection is lost behind it.
func TestAGapIsKeptAcrossALoss(t *testing.T) {
	b, _ := talkV1(t, func(p *peer) {
		p.start()
		p.say(`{"type":"gap","stream":"stdout","from":0,"to":9}`)
	}, func(p *peer) {
		p.expect(`{"type":"reconnect","command_id":"id","stdout_offset":9,"stderr_offset":0}`)
		p.started()
		p.write("stdout", "a", 9)
		p.say(`{"type":"exit","exit_code":0}`)
		p.untilEnd()
	})
	wantEqual(t, "chunks", chunksOf(t, mustStart(t, b, RunOptions{})), []seen{{"stdout", "a", 9, 9}})
}

func TestInputOfBytes(t *testing.T) {
	want := strings.Repeat("\x00\xffé\n", inputPiece/3)
	heard := make(chan []string, 1)
	b, _ := talkV1(t, func(p *peer) {
		p.start()
		var got []string
		for {
			kind, frame, err := p.ReadMessage()
			if err != nil {
				break
			}
			if kind == websocket.BinaryMessage {
				data, err := wire.DecodeStdin(frame)
				if err != nil || len(data) == 0 || len(data) > inputPiece {
					t.Errorf("a frame of %d bytes: %v", len(frame), err)
				}
				frame = data
			}
			got = append(got, string(frame))
		}
		heard <- got
	})
	cmd := mustStart(t, b, RunOptions{})
	if err := cmd.SendInput(t.Context(), []byte(want)); err != nil {
		t.Fatal(err)
	}
	if err := cmd.CloseStdin(t.Context()); err != nil {
		t.Fatal(err)
	}
	cmd.Close()
	got := <-heard
	if strings.Join(got, "") != want+closeMessage {
		t.Errorf("%d pieces arrived, which are not what was sent", len(got))
	}
}

func TestSignalAndResize(t *testing.T) {
	heard := make(chan []string, 1)
	b, _ := talkV1(t, func(p *peer) {
		p.start()
		var got []string
		for range 4 {
			got = append(got, p.hear())
		}
		heard <- got
		p.say(`{"type":"exit","exit_code":137}`)
		p.untilEnd()
	})
	cmd := mustStart(t, b, RunOptions{PTY: true})
	for _, err := range []error{cmd.Signal(t.Context(), "TERM"), cmd.Signal(t.Context(), "SIGUSR1"), cmd.Resize(t.Context(), 120, 40), cmd.Signal(t.Context(), "KILL")} {
		if err != nil {
			t.Error(err)
		}
	}
	wantEqual(t, "heard", <-heard, []string{`{"type":"signal","signal":"TERM"}`, `{"type":"signal","signal":"USR1"}`, `{"type":"resize","cols":120,"rows":40}`, `{"type":"kill"}`})
	wantResult(t, cmd, "", "", 137)
	for what, err := range map[string]error{"signal": cmd.Signal(t.Context(), "TERM"), "resize": cmd.Resize(t.Context(), 1, 1)} {
		if err != nil {
			t.Errorf("%s after the end: %v", what, err)
		}
	}
}

func TestSignalOfAHandleThatHasNotConnected(t *testing.T) {
	b, _ := talkV1(t, func(p *peer) {
		p.expect(reconnectMessage, `{"type":"signal","signal":"INT"}`)
		p.started()
		p.say(`{"type":"exit","exit_code":130}`)
		p.untilEnd()
	})
	cmd := b.Reconnect("id", ReconnectOptions{})
	defer cmd.Close()
	if err := cmd.Signal(t.Context(), "INT"); err != nil {
		t.Fatal(err)
	}
	wantResult(t, cmd, "", "", 130)
}

func TestSignalsAndSizesThatAreRefused(t *testing.T) {
	b, s, _ := talk(t, func(p *peer) { p.start(); wantEqual(t, "heard", p.untilEnd(), nil) })
	cmd := mustStart(t, b, RunOptions{PTY: true})
	for _, name := range []string{"", "SIG", "term", "TERM ", "HUP INT", "15", "RTMIN+1"} {
		wantKind(t, cmd.Signal(t.Context(), name), ErrValidation)
	}
	for _, size := range [][2]int{{0, 1}, {1, 0}, {-1, 1}, {65536, 1}, {1, 65536}} {
		wantKind(t, cmd.Resize(t.Context(), size[0], size[1]), ErrValidation)
	}
	for what, err := range map[string]error{"signals": cmd.Signal(t.Context(), "TERM"), "size": cmd.Resize(t.Context(), 80, 24)} {
		if e := wantKind(t, err, ErrOperation); !strings.Contains(e.Error(), what) || !strings.Contains(e.Error(), wire.ExecV1) {
			t.Errorf("got %v", e)
		}
	}
	cmd.Close()
	pipe := b.Reconnect("id", ReconnectOptions{})
	defer pipe.Close()
	if e := wantKind(t, pipe.Resize(t.Context(), 80, 24), ErrOperation); !strings.Contains(e.Error(), "terminal") {
		t.Errorf("got %v", e)
	}
	wantEqual(t, "sockets", s.opened.Load(), 1)
}

// A handle stays under the protocol that it has begun with.
func TestAHandleKeepsItsProtocol(t *testing.T) {
	for what, x := range map[string]struct {
		speaks []bool
		again  bool // by a second handle
		ok     bool
		offers []string
	}{
		"lost":                  {[]bool{true, false}, false, false, []string{wire.ExecV1, wire.ExecV1}},
		"gained":                {[]bool{false, true}, false, true, []string{wire.ExecV1, ""}}, // it is not asked
		"kept":                  {[]bool{true, true}, false, true, []string{wire.ExecV1, wire.ExecV1}},
		"lost by another":       {[]bool{true, false}, true, false, []string{wire.ExecV1, wire.ExecV1}},
		"not gained by another": {[]bool{false, true}, true, true, []string{wire.ExecV1, ""}},
	} {
		var offers []string
		offered := func(r *http.Request) { offers = append(offers, r.Header.Get("Sec-Websocket-Protocol")) }
		b, s, _ := talk(t, func(p *peer) { offered(p.request); p.start() }, func(p *peer) {
			offered(p.request)
			if p.hear() != "" {
				p.started()
				p.say(`{"type":"exit","exit_code":0}`)
				p.untilEnd()
			}
		})
		s.speaks = func(n int) bool { return x.speaks[n] }
		cmd := mustStart(t, b, RunOptions{})
		if x.again {
			cmd = cmd.Reconnect()
			defer cmd.Close()
		}
		_, err := cmd.Result(t.Context())
		s.running.Wait()
		if x.ok && err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if !x.ok {
			e := wantKind(t, err, ErrOperation)
			wantEqual(t, what, e.Operation, "reconnect")
			if !strings.Contains(e.Error(), wire.ExecV1) {
				t.Errorf("%s: got %v", what, e)
			}
		}
		if !slices.Equal(offers, x.offers) {
			t.Errorf("%s: offered %q, want %q", what, offers, x.offers)
		}
	}
}

func TestMessagesAgainstTheProtocol(t *testing.T) {
	for what, say := range map[string]func(*peer){
		"output as text":      func(p *peer) { p.say(rawOutput("stdout", []byte("a"), 0)) },
		"a stream of no name": func(p *peer) { p.say(`{"type":"gap","stream":"x","from":0,"to":1}`) },
		"a short frame":       func(p *peer) { p.WriteMessage(websocket.BinaryMessage, []byte{1, 0}) },
		"input":               func(p *peer) { p.WriteMessage(websocket.BinaryMessage, append(make([]byte, 9), 'a')) },
	} {
		b, _ := talkV1(t, func(p *peer) { p.start(); say(p); p.untilEnd() })
		_, err := mustStart(t, b, RunOptions{}).Result(t.Context())
		if err == nil {
			t.Errorf("%s is accepted", what)
			continue
		}
		wantKind(t, err, ErrClient)
	}
	b, _, _ := talk(t, func(p *peer) {
		p.start()
		p.say(`{"type":"gap","stream":"stdout","from":0,"to":5}`) // means nothing in §6
		p.WriteMessage(websocket.BinaryMessage, []byte(rawOutput("stdout", []byte("a"), 0)))
		p.say(`{"type":"exit","exit_code":0}`)
		p.untilEnd()
	})
	wantEqual(t, "without exec.v1", chunksOf(t, mustStart(t, b, RunOptions{})), []seen{{"stdout", "a", 0, 0}})
}
