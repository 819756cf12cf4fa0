package tunnel_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/internal/yamuxpeer"
	"github.com/sbx-star/sbx-star/tunnel"
)

// This file tests both ends against a peer that was written from protocol.md §7
// alone: the daemon's end against the reference client, and the client's end
// against a server of its kind.

const (
	synFlag = yamuxpeer.SYN
	ackFlag = yamuxpeer.ACK
	finFlag = yamuxpeer.FIN
	rstFlag = yamuxpeer.RST
)

// peerDial is a dial function for the daemon's end whose targets run serve.
func peerDial(serve func(port int, c *net.TCPConn)) func(context.Context, int) (net.Conn, error) {
	return func(ctx context.Context, port int) (net.Conn, error) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			return nil, err
		}
		target, err := ln.Accept()
		if err != nil {
			conn.Close()
			return nil, err
		}
		go func() {
			defer target.Close()
			target.SetDeadline(time.Now().Add(time.Minute))
			serve(port, target.(*net.TCPConn))
		}()
		return conn, nil
	}
}

func peerEcho(_ int, c *net.TCPConn) { io.Copy(c, c); c.CloseWrite() }

// referenceClient is a peer of the daemon's end over a real WebSocket. The end of
// the test waits for the end of Serve, and sees what it did wrong.
func referenceClient(t *testing.T, dial func(context.Context, int) (net.Conn, error), options tunnel.ServeOptions) *yamuxpeer.Peer {
	t.Helper()
	served := make(chan error, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		upgrader := websocket.Upgrader{ReadBufferSize: tunnel.ReadBufferSize, WriteBufferSize: tunnel.WriteBufferSize}
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			served <- err
			return
		}
		served <- tunnel.Serve(context.Background(), tunnel.WebSocket(conn), dial, options)
	}))
	p, _, err := yamuxpeer.Dial(t.Context(), websocket.DefaultDialer, "ws"+strings.TrimPrefix(server.URL, "http"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Close()
		<-served
		server.Close()
	})
	return p
}

func referenceSession(t *testing.T, dial func(context.Context, int) (net.Conn, error), options tunnel.ServeOptions) *yamuxpeer.Session {
	t.Helper()
	s := yamuxpeer.NewSession(referenceClient(t, dial, options), true)
	t.Cleanup(func() { closeSession(t, s) })
	return s
}

func closeSession(t *testing.T, s *yamuxpeer.Session) {
	s.Close()
	for _, wrong := range s.Wrong() {
		t.Error(wrong)
	}
}

// Every row of §7.3, and an end of the stream after each refusal.
func TestPeerStatuses(t *testing.T) {
	dial := func(ctx context.Context, port int) (net.Conn, error) {
		switch port {
		case 1:
			return nil, errors.New("nothing listens")
		case 2:
			return nil, fmt.Errorf("policy: %w", &tunnel.PortNotAllowedError{Port: port})
		}
		return peerDial(peerEcho)(ctx, port)
	}
	s := referenceSession(t, dial, tunnel.ServeOptions{Allow: func(port int) bool { return port != 3 }})
	for _, test := range []struct {
		prologue string
		want     string
	}{
		{"\x01\xff\xff", "\x00"},
		{"\x01\x00\x01", "\x02"},
		{"\x01\x00\x02", "\x01"},
		{"\x01\x00\x03", "\x01"},
		{"\x01\x00\x00", "\x01"},
		{"\x00\x15\x38", "\x03"},
		{"\x02\x15\x38", "\x03"},
	} {
		st := s.Open()
		io.WriteString(st, test.prologue)
		st.CloseWrite()
		if got, err := io.ReadAll(st); string(got) != test.want || err != nil && !errors.Is(err, yamuxpeer.ErrReset) {
			t.Errorf("%q is answered with %q, %v, want %q", test.prologue, got, err, test.want)
		}
	}
	for _, short := range []string{"", "\x01", "\x01\x15"} {
		st := s.Open()
		io.WriteString(st, short)
		st.CloseWrite()
		if got, _ := io.ReadAll(st); len(got) > 0 && got[0] == 0 {
			t.Errorf("%q, and then the end, was connected", short)
		}
	}
}

// The prologue may come in any pieces, with data and even the end behind it in
// one frame, and before the acknowledgement.
func TestPeerPrologueInPieces(t *testing.T) {
	s := referenceClient(t, peerDial(peerEcho), tunnel.ServeOptions{})
	all := "\x01\x15\x38hello"
	var script []byte
	id := uint32(1)
	for cut := 0; cut <= len(all); cut++ {
		script = append(script, yamuxpeer.DataFrame(id, synFlag, all[:cut]).Bytes()...)
		script = append(script, yamuxpeer.DataFrame(id, finFlag, all[cut:]).Bytes()...)
		id += 2
	}
	s.Write(script)
	got, ends := map[uint32]string{}, 0
	for ends <= len(all) {
		f, err := s.Next()
		if err != nil {
			t.Fatalf("after %q: %v", fmt.Sprint(got), err)
		}
		if f.Type == yamuxpeer.Data {
			got[f.Stream] += string(f.Payload)
		}
		if f.Flags&rstFlag != 0 {
			t.Fatalf("stream %d was reset", f.Stream)
		}
		if f.Flags&finFlag != 0 {
			ends++
		}
	}
	for id, text := range got {
		if text != "\x00hello" {
			t.Errorf("stream %d: got %q", id, text)
		}
	}
}

// The reference client, with its windows of 256 KiB, moves data both ways on many
// streams; what it reads after its end is whole.
func TestPeerTransfer(t *testing.T) {
	s := referenceSession(t, peerDial(peerEcho), tunnel.ServeOptions{})
	var work sync.WaitGroup
	for i := range 16 {
		work.Go(func() {
			data := make([]byte, 1<<20+i)
			rand.NewChaCha8([32]byte{byte(i)}).Read(data)
			st, status, err := s.Connect(uint16(1000 + i))
			if err != nil || status != 0 {
				t.Errorf("status %d, %v", status, err)
				return
			}
			work.Go(func() {
				st.Write(data)
				st.CloseWrite()
			})
			got, err := io.ReadAll(st)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes came back, %v", len(got), err)
			}
		})
	}
	work.Wait()
}

// A reset is a reset on both sides, also in the middle of a transfer; the other
// streams go on.
func TestPeerReset(t *testing.T) {
	hurt := make(chan error, 1)
	s := referenceSession(t, peerDial(func(port int, c *net.TCPConn) {
		switch port {
		case 1: // resets
			io.ReadFull(c, make([]byte, 1))
			c.SetLinger(0)
		case 2: // is reset
			_, err := io.Copy(io.Discard, c)
			hurt <- err
		case 3: // is reset while it sends
			_, err := io.Copy(c, zeros{})
			hurt <- err
		default:
			peerEcho(port, c)
		}
	}), tunnel.ServeOptions{})
	beside, _, err := s.Connect(4)
	if err != nil {
		t.Fatal(err)
	}
	st, _, _ := s.Connect(1)
	io.WriteString(st, "x")
	if got, err := io.ReadAll(st); !errors.Is(err, yamuxpeer.ErrReset) {
		t.Errorf("a target that resets: %q, %v", got, err)
	}
	for port := uint16(2); port <= 3; port++ {
		st, _, _ := s.Connect(port)
		io.WriteString(st, "x")
		st.Reset()
		if err := <-hurt; err == nil {
			t.Errorf("target %d has seen an end in place of a reset", port)
		}
	}
	io.WriteString(beside, "still here")
	beside.CloseWrite()
	if got, err := io.ReadAll(beside); string(got) != "still here" || err != nil {
		t.Errorf("another stream: %q, %v", got, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// What is no yamux ends the session and leaves nothing of it behind: Serve
// returns, which the end of the test waits for.
func TestPeerGarbage(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	scripts := map[string][]byte{
		"nothing":          nil,
		"version":          yamuxpeer.Hex("01 00 00 00 00 00 00 01 00 00 00 00"),
		"type":             yamuxpeer.Hex("00 07 00 00 00 00 00 01 00 00 00 00"),
		"cut header":       yamuxpeer.Hex("00 01 00 01 00 00 00 01 00 00 00"),
		"cut payload":      yamuxpeer.Hex("00 00 00 01 00 00 00 01 00 00 00 03 01"),
		"past the window":  yamuxpeer.Hex("00 01 00 01 00 00 00 01 00 00 00 00 00 00 00 00 00 00 00 01 ff ff ff ff"),
		"go away, badly":   yamuxpeer.Hex("00 03 00 00 00 00 00 00 00 00 00 02"),
		"end, then data":   yamuxpeer.Hex("00 00 00 05 00 00 00 01 00 00 00 03 01 15 38 00 00 00 00 00 00 00 01 00 00 00 01 78"),
		"credit overflows": yamuxpeer.Hex("00 01 00 01 00 00 00 01 ff ff ff ff 00 01 00 00 00 00 00 01 ff ff ff ff"),
	}
	for i := range 50 {
		script := make([]byte, random.IntN(200))
		for j := range script {
			script[j] = byte(random.UintN(256))
			if random.IntN(3) > 0 {
				script[j] = byte(random.UintN(4))
			}
		}
		scripts[fmt.Sprint("random ", i)] = script
	}
	for name, script := range scripts {
		t.Run(name, func(t *testing.T) {
			p := referenceClient(t, peerDial(peerEcho), tunnel.ServeOptions{})
			p.Write(script)
			p.Socket.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(time.Minute))
			if _, err := p.Ended(); err != nil {
				t.Errorf("%x: %v", script, err)
			}
		})
	}
}

// Text messages are taken as their bytes (§7.1).
func TestPeerText(t *testing.T) {
	p := referenceClient(t, peerDial(peerEcho), tunnel.ServeOptions{})
	p.Message(websocket.TextMessage, yamuxpeer.Hex("00 02 00 01 00 00 00 00 00 00 00 01"))
	for {
		f, err := p.Next()
		if err != nil {
			t.Fatal(err)
		}
		if f.Type == yamuxpeer.Ping && f.Flags == ackFlag {
			if f.Length != 1 {
				t.Errorf("the reply to ping 1 is %d", f.Length)
			}
			return
		}
	}
}

// More streams than the limit are reset, and those that are open go on.
func TestPeerStreamLimit(t *testing.T) {
	s := referenceSession(t, peerDial(peerEcho), tunnel.ServeOptions{Streams: 4})
	var open []*yamuxpeer.Stream
	for i := range 4 {
		st, status, err := s.Connect(uint16(i + 1))
		if err != nil || status != 0 {
			t.Fatal(status, err)
		}
		open = append(open, st)
	}
	if _, _, err := s.Connect(5); !errors.Is(err, yamuxpeer.ErrReset) {
		t.Errorf("one too many: %v", err)
	}
	for _, st := range open {
		io.WriteString(st, "x")
		st.CloseWrite()
		if got, err := io.ReadAll(st); string(got) != "x" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
}

// overPipe runs Serve and a peer over a plain pipe, for tests whose clock is
// faked. The peer's session ends with the test.
func overPipe(t *testing.T, dial func(context.Context, int) (net.Conn, error)) (*yamuxpeer.Peer, <-chan error) {
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- tunnel.Serve(context.Background(), ours, dial, tunnel.ServeOptions{}) }()
	return yamuxpeer.New(theirs), served
}

// A client that closes as the reference does, and does not read on, holds its
// stream for a while and not for ever (§7.6).
func TestPeerStalledStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		done := make(chan struct{})
		p, served := overPipe(t, func(context.Context, int) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() {
				defer close(done)
				io.Copy(theirs, zeros{})
				theirs.Close()
			}()
			return ours, nil
		})
		s := yamuxpeer.NewSession(p, true)
		began := time.Now()
		st, status, err := s.Connect(80)
		if err != nil || status != 0 {
			t.Fatal(status, err)
		}
		st.Close()
		<-done
		if took := time.Since(began); took < 30*time.Second || took > 5*time.Minute {
			t.Errorf("the stream was given up after %v", took)
		}
		closeSession(t, s)
		<-served
	})
}

// After a client's end the answer may take as long as it likes.
func TestPeerSlowAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, served := overPipe(t, func(context.Context, int) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() {
				defer theirs.Close()
				for i := range 5 {
					time.Sleep(10 * time.Minute)
					fmt.Fprint(theirs, i)
				}
			}()
			return ours, nil
		})
		s := yamuxpeer.NewSession(p, true)
		st, _, err := s.Connect(80)
		if err != nil {
			t.Fatal(err)
		}
		st.CloseWrite()
		if got, err := io.ReadAll(st); string(got) != "01234" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		closeSession(t, s)
		<-served
	})
}

// A client that answers no ping is given up.
func TestPeerSilentClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, served := overPipe(t, nil)
		began := time.Now()
		go io.Copy(io.Discard, p)
		if err := <-served; err == nil {
			t.Error("Serve has ended in order")
		}
		if took := time.Since(began); took > 2*time.Minute {
			t.Errorf("it took %v", took)
		}
	})
}

// referenceServer is a server of the reference's kind. It hands each session to
// serve, which runs until the session has ended.
func referenceServer(t *testing.T, serve func(*yamuxpeer.Peer)) tunnel.DialFunc {
	t.Helper()
	var work sync.WaitGroup
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		work.Add(1)
		defer work.Done()
		p, err := yamuxpeer.Upgrade(w, r)
		if err != nil {
			return
		}
		defer p.Close()
		serve(p)
	}))
	t.Cleanup(func() {
		server.Close()
		work.Wait()
	})
	return func(ctx context.Context) (net.Conn, error) {
		dialer := websocket.Dialer{ReadBufferSize: tunnel.ReadBufferSize, WriteBufferSize: tunnel.WriteBufferSize}
		conn, _, err := dialer.DialContext(ctx, "ws"+strings.TrimPrefix(server.URL, "http"), nil)
		if err != nil {
			return nil, err
		}
		return tunnel.WebSocket(conn), nil
	}
}

// answering is a reference server whose streams run target after their prologue.
func answering(t *testing.T, target func(port uint16, st *yamuxpeer.Stream)) tunnel.DialFunc {
	return referenceServer(t, func(p *yamuxpeer.Peer) {
		s := yamuxpeer.NewSession(p, false)
		var work sync.WaitGroup
		for st := s.Accept(); st != nil; st = s.Accept() {
			work.Go(func() {
				var head [3]byte
				if _, err := io.ReadFull(st, head[:]); err != nil {
					return
				}
				if head[0] != 1 {
					t.Errorf("the prologue begins with %d", head[0])
				}
				target(binary.BigEndian.Uint16(head[1:]), st)
			})
		}
		work.Wait()
		closeSession(t, s)
	})
}

func peerSession(t *testing.T, dial tunnel.DialFunc, options tunnel.Options) *tunnel.Session {
	s := tunnel.New(dial, options)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// The first bytes of the client's end are those of §14, but for the credit, which
// may come with the opening or after it.
func TestPeerClientBytes(t *testing.T) {
	type opening struct {
		syn      yamuxpeer.Frame
		prologue []byte
	}
	seen := make(chan opening, 3)
	dial := referenceServer(t, func(p *yamuxpeer.Peer) {
		streams := map[uint32]*opening{}
		for {
			f, err := p.Next()
			if err != nil || f.Type == yamuxpeer.GoAway {
				return
			}
			if f.Type == yamuxpeer.Ping {
				if f.Flags == synFlag {
					p.Send(yamuxpeer.Frame{Type: yamuxpeer.Ping, Flags: ackFlag, Length: f.Length})
				}
				continue
			}
			if streams[f.Stream] == nil {
				streams[f.Stream] = &opening{syn: f}
			}
			o := streams[f.Stream]
			o.prologue = append(o.prologue, f.Payload...)
			if len(o.prologue) == 3 && f.Type == yamuxpeer.Data {
				seen <- *o
				p.Send(yamuxpeer.Frame{Type: yamuxpeer.WindowUpdate, Flags: ackFlag, Stream: f.Stream}, yamuxpeer.DataFrame(f.Stream, 0, "\x00"))
			}
		}
	})
	s := peerSession(t, dial, tunnel.Options{})
	for i, port := range []int{5432, 65535, 1} {
		conn, err := s.Dial(t.Context(), port)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		o := <-seen
		if o.syn.Stream != uint32(2*i+1) || o.syn.Flags&synFlag == 0 || o.syn.Flags&^synFlag != 0 || o.syn.Version != 0 {
			t.Errorf("stream %d is opened by %+v", 2*i+1, o.syn)
		}
		if want := []byte{1, byte(port >> 8), byte(port)}; !bytes.Equal(o.prologue, want) {
			t.Errorf("port %d: % x, want % x", port, o.prologue, want)
		}
	}
}

// What each status is, and an end or a reset in place of one.
func TestPeerClientStatuses(t *testing.T) {
	dial := answering(t, func(port uint16, st *yamuxpeer.Stream) {
		switch {
		case port == 1000:
			st.CloseWrite()
		case port == 1001:
			st.Reset()
		case port < 256:
			st.Write([]byte{byte(port)})
			st.CloseWrite()
			io.Copy(io.Discard, st)
		}
	})
	s := peerSession(t, dial, tunnel.Options{})
	for port, want := range map[int]func(error) bool{
		1: func(err error) bool {
			e, ok := errors.AsType[*tunnel.PortNotAllowedError](err)
			return ok && e.Port == 1
		},
		2: func(err error) bool {
			e, ok := errors.AsType[*tunnel.ConnectionRefusedError](err)
			return ok && e.Port == 2
		},
		3:    func(err error) bool { _, ok := errors.AsType[*tunnel.UnsupportedVersionError](err); return ok },
		4:    func(err error) bool { e, ok := errors.AsType[*tunnel.StatusError](err); return ok && e.Status == 4 },
		255:  func(err error) bool { e, ok := errors.AsType[*tunnel.StatusError](err); return ok && e.Status == 255 },
		1000: func(err error) bool { e, ok := errors.AsType[*tunnel.NoStatusError](err); return ok && e.Port == 1000 },
		1001: func(err error) bool { e, ok := errors.AsType[*tunnel.NoStatusError](err); return ok && e.Port == 1001 },
	} {
		conn, err := s.Dial(t.Context(), port)
		if err == nil {
			conn.Close()
		}
		if !want(err) {
			t.Errorf("port %d: %v", port, err)
		}
	}
}

// Against windows of 256 KiB much goes both ways, and each end by itself.
func TestPeerClientTransfer(t *testing.T) {
	dial := answering(t, func(_ uint16, st *yamuxpeer.Stream) {
		st.Write([]byte{0})
		io.Copy(st, st)
		st.CloseWrite()
	})
	s := peerSession(t, dial, tunnel.Options{})
	var work sync.WaitGroup
	for i := range 16 {
		work.Go(func() {
			data := make([]byte, 1<<20+i)
			rand.NewChaCha8([32]byte{byte(i)}).Read(data)
			conn, err := s.Dial(t.Context(), 80)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			work.Go(func() {
				conn.Write(data)
				conn.CloseWrite()
			})
			got, err := io.ReadAll(conn)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes came back, %v", len(got), err)
			}
		})
	}
	work.Wait()
}

// A reset leaves what came before it to be read, and then is an error; writing
// fails. A FIN ends one direction only.
func TestPeerClientEnds(t *testing.T) {
	got := make(chan string, 1)
	dial := answering(t, func(port uint16, st *yamuxpeer.Stream) {
		io.WriteString(st, "\x00before")
		if port == 1 {
			st.Reset()
			return
		}
		st.CloseWrite()
		text, _ := io.ReadAll(st)
		got <- string(text)
	})
	s := peerSession(t, dial, tunnel.Options{})
	conn, err := s.Dial(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if text, err := io.ReadAll(conn); string(text) != "before" || !errors.Is(err, tunnel.ErrReset) {
		t.Errorf("after a reset: %q, %v", text, err)
	}
	if _, err := conn.Write([]byte("x")); !errors.Is(err, tunnel.ErrReset) {
		t.Errorf("writing after a reset: %v", err)
	}
	conn, err = s.Dial(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if text, err := io.ReadAll(conn); string(text) != "before" || err != nil {
		t.Errorf("after an end: %q, %v", text, err)
	}
	io.WriteString(conn, "after")
	conn.CloseWrite()
	if text := <-got; text != "after" {
		t.Errorf("the server has read %q", text)
	}
}

// However a session ends in the middle of a transfer, it is an error for who
// reads and never an end of file, and the next connection opens a new one.
func TestPeerClientLoses(t *testing.T) {
	endings := map[string]func(p *yamuxpeer.Peer){
		"GO_AWAY":        func(p *yamuxpeer.Peer) { p.Send(yamuxpeer.Frame{Type: yamuxpeer.GoAway}) },
		"cut":            func(p *yamuxpeer.Peer) { p.Close() },
		"close 1001":     func(p *yamuxpeer.Peer) { closeWith(p, 1001) },
		"close 1000":     func(p *yamuxpeer.Peer) { closeWith(p, 1000) },
		"garbage":        func(p *yamuxpeer.Peer) { p.Write([]byte("this is no frame of yamux")) },
		"half a frame":   func(p *yamuxpeer.Peer) { p.Write(yamuxpeer.Hex("00 00 00 00 00 00 00 01 00 00 ff ff 78")); p.Close() },
		"a long frame":   func(p *yamuxpeer.Peer) { p.Write(yamuxpeer.Hex("00 00 00 00 00 00 00 01 7f ff ff ff")) },
		"data to nobody": func(p *yamuxpeer.Peer) { p.Send(yamuxpeer.DataFrame(77, 0, "x")); p.Close() },
	}
	for name, end := range endings {
		t.Run(name, func(t *testing.T) {
			sessions := 0
			dial := referenceServer(t, func(p *yamuxpeer.Peer) {
				sessions++
				first := sessions == 1
				for {
					f, err := p.Next()
					if err != nil {
						return
					}
					if f.Type == yamuxpeer.Data && len(f.Payload) == 3 {
						p.Send(yamuxpeer.Frame{Type: yamuxpeer.WindowUpdate, Flags: ackFlag, Stream: f.Stream}, yamuxpeer.DataFrame(f.Stream, 0, "\x00some"))
						if first {
							end(p)
						} else {
							p.Send(yamuxpeer.DataFrame(f.Stream, finFlag, ""))
						}
					}
				}
			})
			s := peerSession(t, dial, tunnel.Options{})
			conn, err := s.Dial(t.Context(), 80)
			if err == nil { // it may have ended before
				text, err := io.ReadAll(conn)
				if _, lost := errors.AsType[*tunnel.SessionError](err); !lost || string(text) != "some" && text != nil && !strings.HasPrefix("some", string(text)) && name != "half a frame" {
					t.Errorf("got %q, %v", text, err)
				}
				if _, err := conn.Write([]byte("x")); err == nil {
					t.Error("it can still be written")
				}
				conn.Close()
			}
			again, err := s.Dial(t.Context(), 80)
			if err != nil {
				t.Fatalf("the next one: %v", err)
			}
			defer again.Close()
			if text, err := io.ReadAll(again); string(text) != "some" || err != nil {
				t.Errorf("the next one: %q, %v", text, err)
			}
		})
	}
}

func closeWith(p *yamuxpeer.Peer, code int) {
	p.Socket.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, ""), time.Now().Add(time.Minute))
}

// Cut at any byte, what the client has read is a beginning of what was sent.
func TestPeerClientCutAnywhere(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	sent := make([]byte, 100<<10)
	for i := range sent {
		sent[i] = byte(i * 7 >> 3)
	}
	for range 40 {
		left, pieces := random.IntN(len(sent)+100), rand.New(rand.NewPCG(random.Uint64(), 0))
		dial := referenceServer(t, func(p *yamuxpeer.Peer) {
			for {
				f, err := p.Next()
				if err != nil {
					return
				}
				if f.Type != yamuxpeer.Data {
					continue
				}
				all := yamuxpeer.Frame{Type: yamuxpeer.WindowUpdate, Flags: ackFlag, Stream: f.Stream}.Bytes()
				all = append(all, yamuxpeer.DataFrame(f.Stream, 0, "\x00").Bytes()...)
				for rest := sent; len(rest) > 0; {
					n := min(1+pieces.IntN(20000), len(rest))
					all = append(all, yamuxpeer.DataFrame(f.Stream, 0, string(rest[:n])).Bytes()...)
					rest = rest[n:]
				}
				p.Write(all[:min(left, len(all))])
				p.Close()
				return
			}
		})
		s := peerSession(t, dial, tunnel.Options{MaxReconnects: new(int)})
		conn, err := s.Dial(t.Context(), 80)
		if err != nil {
			continue // cut before the status
		}
		got, err := io.ReadAll(conn)
		conn.Close()
		if err == nil || !bytes.HasPrefix(sent, got) {
			t.Errorf("cut after %d bytes: %d bytes were read, %v", left, len(got), err)
		}
	}
}

// A server that answers no ping is noticed, and so is one that sends no status.
func TestPeerSilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		p := yamuxpeer.New(theirs)
		go func() {
			for {
				f, err := p.Next()
				if err != nil {
					return
				}
				if f.Type == yamuxpeer.Data {
					p.Send(yamuxpeer.Frame{Type: yamuxpeer.WindowUpdate, Flags: ackFlag, Stream: f.Stream}, yamuxpeer.DataFrame(f.Stream, 0, "\x00"))
				}
			}
		}()
		s := tunnel.New(func(context.Context) (net.Conn, error) { return ours, nil }, tunnel.Options{MaxReconnects: new(int)})
		conn, err := s.Dial(t.Context(), 80)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		_, err = conn.Read(make([]byte, 1))
		if _, lost := errors.AsType[*tunnel.SessionError](err); !lost {
			t.Errorf("reading: %v", err)
		}
		if took := time.Since(began); took > time.Minute {
			t.Errorf("it took %v", took)
		}
		conn.Close()
		s.Close()
		theirs.Close()
	})
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		peer := yamuxpeer.NewSession(yamuxpeer.New(theirs), false)
		s := tunnel.New(func(context.Context) (net.Conn, error) { return ours, nil }, tunnel.Options{MaxReconnects: new(int)})
		_, err := s.Dial(t.Context(), 80)
		if none, ok := errors.AsType[*tunnel.NoStatusError](err); !ok || none.Port != 80 {
			t.Errorf("dialing: %v", err)
		}
		s.Close()
		peer.Close()
	})
}
