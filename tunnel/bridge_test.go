package tunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// These tests look at a tunnel as two programs do that talk through it.

// A client that sends, half-closes, and reads an answer that only then begins.
func TestClientHalfClose(t *testing.T) {
	port := listenTarget(t, func(c *net.TCPConn) {
		got, err := io.ReadAll(c)
		if err != nil {
			t.Error(err)
		}
		for i := range 100 {
			fmt.Fprintf(c, "%d %s\n", i, got)
		}
	})
	c := dialLocal(t, listenLocal(t, webSocketDial(t, nil, ServeOptions{}), port))
	io.WriteString(c, "question")
	c.CloseWrite()
	got, err := io.ReadAll(c)
	if lines := bytes.Count(got, []byte(" question\n")); lines != 100 || err != nil {
		t.Errorf("%d lines came, then %v", lines, err)
	}
}

// A server that half-closes first, and reads on.
func TestServerHalfClose(t *testing.T) {
	received := make(chan string, 1)
	port := listenTarget(t, func(c *net.TCPConn) {
		io.WriteString(c, "greeting")
		c.CloseWrite()
		got, err := io.ReadAll(c)
		received <- fmt.Sprint(string(got), err)
	})
	c := dialLocal(t, listenLocal(t, webSocketDial(t, nil, ServeOptions{}), port))
	if got, err := io.ReadAll(c); string(got) != "greeting" || err != nil {
		t.Fatalf("got %q, %v", got, err)
	}
	io.WriteString(c, "thanks, ")
	io.WriteString(c, "late as it is")
	c.Close()
	if got := <-received; got != "thanks, late as it is<nil>" {
		t.Errorf("after its half-close the server read %s", got)
	}
}

// A reset on one side is a reset on the other, whichever side it is and whether
// or not the other half is over.
func TestReset(t *testing.T) {
	for _, half := range []bool{false, true} {
		t.Run(fmt.Sprintf("by the client, half-closed %v", half), func(t *testing.T) {
			outcome, arrived := make(chan error, 1), make(chan struct{})
			port := listenTarget(t, func(c *net.TCPConn) {
				if half {
					c.CloseWrite()
				}
				io.ReadFull(c, make([]byte, 5))
				close(arrived)
				_, err := c.Read(make([]byte, 1))
				outcome <- err
			})
			c := dialLocal(t, listenLocal(t, webSocketDial(t, nil, ServeOptions{}), port))
			if half {
				io.ReadAll(c)
			}
			io.WriteString(c, "hello")
			<-arrived
			c.SetLinger(0)
			c.Close()
			if err := <-outcome; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the server reads %v", err)
			}
		})
		t.Run(fmt.Sprintf("by the server, half-closed %v", half), func(t *testing.T) {
			ready := make(chan struct{})
			port := listenTarget(t, func(c *net.TCPConn) {
				if half {
					c.CloseWrite()
				}
				io.ReadFull(c, make([]byte, 5))
				<-ready
				c.SetLinger(0)
			})
			c := dialLocal(t, listenLocal(t, webSocketDial(t, nil, ServeOptions{}), port))
			io.WriteString(c, "hello")
			if half {
				io.ReadAll(c)
			}
			close(ready)
			c.SetDeadline(time.Now().Add(time.Minute))
			var err error
			for err == nil { // after its end of file only writing tells
				if half {
					_, err = c.Write([]byte("?"))
				} else {
					_, err = c.Read(make([]byte, 1))
				}
			}
			if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
				t.Errorf("the client gets %v", err)
			}
		})
	}
}

// A socket tells of its reset once, and what came before it is read first.
func TestResetBehindData(t *testing.T) {
	for _, size := range []int{1, maxPayload - 1, maxPayload, 2 * maxPayload} {
		near, far := tcpPair(t)
		if _, err := far.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		far.SetLinger(0)
		far.Close()
		r := newBorrower(near, new(buffers))
		for {
			_, _, err := r.read()
			if err == io.EOF {
				t.Errorf("a reset behind %d bytes is an end of file", size)
			}
			if err != nil {
				break
			}
		}
	}
}

func tcpPair(t *testing.T) (near, far *net.TCPConn) {
	accepted := make(chan *net.TCPConn, 1)
	port := listenTarget(t, func(c *net.TCPConn) {
		accepted <- c
		<-t.Context().Done()
	})
	c, err := net.Dial("tcp", hostPort("127.0.0.1", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn), <-accepted
}

// cut is a connection that can be lost.
type cut struct{ net.Conn }

func (c *cut) lose() { c.Conn.Close() }

// cuttable notes what a dial function opens.
func cuttable(dial DialFunc) (DialFunc, func() *cut) {
	var mu sync.Mutex
	var last *cut
	return func(ctx context.Context) (net.Conn, error) {
			conn, err := dial(ctx)
			if err != nil {
				return nil, err
			}
			mu.Lock()
			defer mu.Unlock()
			last = &cut{conn}
			return last, nil
		}, func() *cut {
			mu.Lock()
			defer mu.Unlock()
			return last
		}
}

// A session that dies in the middle of a transfer is an error for both ends of
// every connection, and new connections work.
func TestLostSession(t *testing.T) {
	far := make(chan error, 1)
	port := listenTarget(t, func(c *net.TCPConn) {
		c.Write([]byte("begin"))
		_, err := io.ReadAll(c)
		far <- err
	})
	dial, last := cuttable(webSocketDial(t, nil, ServeOptions{}))
	var mu sync.Mutex
	var kinds []EventKind
	s := New(dial, Options{Events: func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		kinds = append(kinds, e.Kind)
	}})
	defer s.Close()
	l, err := s.Listen(t.Context(), ListenOptions{RemotePort: port, LocalPort: pick()})
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		c := dialLocal(t, l)
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		direct, err := s.Dial(t.Context(), port)
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(direct, make([]byte, 5))
		last().lose()
		if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a local connection reads %v", err)
		}
		if _, err := direct.Read(make([]byte, 1)); !is[*SessionError](err) {
			t.Errorf("a stream reads %v", err)
		}
		if _, err := direct.Write(make([]byte, 1)); !is[*SessionError](err) {
			t.Errorf("a stream writes %v", err)
		}
		for range 2 {
			if err := <-far; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("a target reads %v", err)
			}
		}
		if got := l.Stats().Reconnects; got != int64(round) {
			t.Errorf("%d reconnects in round %d", got, round)
		}
	}
	s.Close()
	if got := fmt.Sprint(kinds); got != "[opened lost reopened lost reopened lost]" {
		t.Errorf("the events are %s", got)
	}
}

// Data that came before a loss or a reset can still be read.
func TestDataBeforeTheEnd(t *testing.T) {
	for _, end := range []struct {
		name string
		send func(rawPeer)
		want error
	}{
		{"reset", func(p rawPeer) { p.send(kindWindow, flagRST, 1, 0, "") }, ErrReset},
		{"go away", func(p rawPeer) { p.send(kindGoAway, 0, 0, 0, "") }, errPeerLeft},
		{"cut", func(p rawPeer) { p.Close() }, errPeerLeft},
		{"cut in a header", func(p rawPeer) { p.Write(make([]byte, 5)); p.Close() }, io.ErrUnexpectedEOF},
		{"cut in a payload", func(p rawPeer) { p.send(kindData, 0, 1, 5, "wor"); p.Close() }, io.ErrUnexpectedEOF},
		{"end of file, then cut", func(p rawPeer) { p.send(kindData, flagFIN, 1, 0, ""); p.Close() }, nil},
		{"end of file, then reset", func(p rawPeer) { p.send(kindData, flagFIN, 1, 0, ""); p.send(kindWindow, flagRST, 1, 0, "") }, nil},
	} {
		t.Run(end.name, func(t *testing.T) {
			s, peer := newClient(t, Options{Window: baseWindow})
			conns, errs := dialLater(s, 1)
			peer.expect(kindWindow, flagSYN, 1, 0)
			peer.expect(kindData, 0, 1, 3)
			peer.send(kindData, 0, 1, 1, "\x00")
			c := <-conns
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
			go peer.drain()
			peer.send(kindData, 0, 1, 6, "hello ")
			end.send(peer)
			got, err := io.ReadAll(c)
			if string(got) != "hello " || !errors.Is(err, end.want) {
				t.Errorf("got %q, %v, want %v", got, err, end.want)
			}
			if _, err := c.Write([]byte("x")); err == nil && end.name != "end of file, then cut" {
				t.Error("writing goes on")
			}
		})
	}
}

// Random reads, writes and half-closes on many streams at once: what arrives is
// what was sent.
func TestManyStreams(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	// A target sends back the checksum and then as many bytes as it got, inverted.
	port := listenTarget(t, func(c *net.TCPConn) {
		got, err := io.ReadAll(c)
		if err != nil {
			t.Error(err)
		}
		sum := sha256.Sum256(got)
		c.Write(sum[:])
		for i := range got {
			got[i] = ^got[i]
		}
		c.Write(got)
	})
	for _, dial := range []DialFunc{webSocketDial(t, nil, ServeOptions{}), webSocketDial(t, nil, ServeOptions{Window: baseWindow})} {
		l := listenLocal(t, dial, port)
		var running sync.WaitGroup
		var out, in int64
		var mu sync.Mutex
		for i := range 100 {
			running.Go(func() {
				r := rand.New(rand.NewPCG(seed, uint64(i)))
				c := dialLocal(t, l)
				data := make([]byte, r.IntN(1<<(4+r.IntN(17))))
				for j := range data {
					data[j] = byte(r.Uint32())
				}
				for rest := data; len(rest) > 0; {
					n := min(len(rest), 1+r.IntN(100_000))
					if _, err := c.Write(rest[:n]); err != nil {
						t.Error(err)
						return
					}
					rest = rest[n:]
				}
				c.CloseWrite()
				got, err := io.ReadAll(&smallReads{c, r})
				if len(got) != sha256.Size+len(data) || err != nil {
					t.Errorf("%d bytes of %d came, then %v", len(got), sha256.Size+len(data), err)
					return
				}
				for j := range data {
					data[j] = ^data[j]
				}
				if !bytes.Equal(got[sha256.Size:], data) {
					t.Errorf("%d bytes were changed on the way", len(data))
				}
				mu.Lock()
				defer mu.Unlock()
				out += int64(len(data))
				in += int64(len(got))
			})
		}
		running.Wait()
		l.Close()
		if got, want := l.Stats(), (Stats{Connections: 100, BytesIn: in, BytesOut: out}); got != want {
			t.Errorf("stats %+v, want %+v", got, want)
		}
	}
}

type smallReads struct {
	io.Reader
	r *rand.Rand
}

func (s *smallReads) Read(p []byte) (int, error) {
	return s.Reader.Read(p[:1+s.r.IntN(min(len(p), 50_000))])
}

// Five hundred connections at once, each kept while the others open.
func TestManyConnections(t *testing.T) {
	port := listenTarget(t, echo)
	l := listenLocal(t, webSocketDial(t, nil, ServeOptions{}), port)
	var opened, running sync.WaitGroup
	const count = 500
	opened.Add(count)
	for i := range count {
		running.Go(func() {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				opened.Done()
				t.Error(err)
				return
			}
			defer c.Close()
			want := fmt.Sprintf("connection %03d", i)
			io.WriteString(c, want)
			got := make([]byte, len(want))
			_, err = io.ReadFull(c, got)
			opened.Done()
			if string(got) != want || err != nil {
				t.Errorf("got %q, %v, want %q", got, err, want)
			}
			opened.Wait()
		})
	}
	running.Wait()
}

// Whatever the daemon refuses is a typed error for Check, an event, and a reset
// for the accepted connection.
func TestRefusal(t *testing.T) {
	events := make(chan Event, 10)
	s := New(webSocketDial(t, func(_ context.Context, port int) (net.Conn, error) {
		if port == 2 {
			return nil, fmt.Errorf("by policy: %w", &PortNotAllowedError{port})
		}
		return nil, syscall.ECONNREFUSED
	}, ServeOptions{Allow: func(port int) bool { return port != 3 }}), Options{Events: func(e Event) {
		if e.Kind == Refused {
			events <- e
		}
	}})
	defer s.Close()
	for port, want := range map[int]func(error) bool{
		1: is[*ConnectionRefusedError], 2: is[*PortNotAllowedError], 3: is[*PortNotAllowedError],
	} {
		l, err := s.Listen(t.Context(), ListenOptions{RemotePort: port, LocalPort: pick()})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Check(t.Context()); !want(err) {
			t.Errorf("check of port %d is %v", port, err)
		}
		c, err := net.Dial("tcp", l.Addr().String())
		if err == nil { // the reset may come before the connection is seen
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a connection to port %d reads %v", port, err)
		}
		if e := <-events; e.RemotePort != port || e.LocalPort != l.LocalPort() || !want(e.Err) {
			t.Errorf("the event of port %d is %+v", port, e)
		}
	}
	for _, port := range []int{-1, 0, 65536} {
		if _, err := s.Dial(t.Context(), port); !is[*PortError](err) {
			t.Errorf("dialing port %d is %v", port, err)
		}
	}
}

// The local side: which ports, which addresses, and what if they are taken.
func TestLocalPort(t *testing.T) {
	port := listenTarget(t, echo)
	s := New(webSocketDial(t, nil, ServeOptions{}), Options{})
	defer s.Close()
	picked, err := s.Listen(t.Context(), ListenOptions{RemotePort: port, LocalPort: pick()})
	if err != nil {
		t.Fatal(err)
	}
	if picked.LocalPort() == 0 || picked.LocalPort() == port || picked.Addr().String() != hostPort("127.0.0.1", picked.LocalPort()) {
		t.Errorf("picked %d, at %s", picked.LocalPort(), picked.Addr())
	}
	if picked.RemotePort() != port {
		t.Errorf("the remote port is %d", picked.RemotePort())
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		c, err := net.Dial("tcp", hostPort(host, picked.LocalPort()))
		if err != nil {
			if host == "::1" && !hasIPv6() {
				continue
			}
			t.Fatal(err)
		}
		io.WriteString(c, "hello")
		c.(*net.TCPConn).CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
			t.Errorf("over %s came %q, %v", host, got, err)
		}
		c.Close()
	}
	mirrors := func() error {
		l, err := s.Listen(t.Context(), ListenOptions{RemotePort: port})
		if err == nil {
			l.Close()
		}
		return err
	}
	var inUse *PortInUseError
	if err := mirrors(); !errors.As(err, &inUse) || inUse.Port != port {
		t.Errorf("a port that is taken is %v", err)
	}
	if hasIPv6() {
		six, err := net.Listen("tcp", "[::1]:0")
		if err != nil {
			t.Fatal(err)
		}
		defer six.Close()
		taken := six.Addr().(*net.TCPAddr).Port
		if _, err := s.Listen(t.Context(), ListenOptions{RemotePort: port, LocalPort: &taken}); !errors.As(err, &inUse) || inUse.Port != taken {
			t.Errorf("a port that is taken on ::1 is %v", err)
		}
	}
	again := picked.LocalPort()
	picked.Close()
	picked.Close()
	l, err := s.Listen(t.Context(), ListenOptions{RemotePort: port, LocalPort: &again})
	if err != nil {
		t.Fatalf("a port that was freed is %v", err)
	}
	s.Close()
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("a listener outlives its session")
	}
	if _, err := s.Listen(t.Context(), ListenOptions{RemotePort: port, LocalPort: pick()}); !errors.Is(err, ErrClosed) {
		t.Errorf("a closed session listens: %v", err)
	}
}

func hasIPv6() bool {
	l, err := net.Listen("tcp", "[::1]:0")
	if err == nil {
		l.Close()
	}
	return err == nil
}

// A listener closes with its context, and live connections are reset.
func TestListenerEndsWithContext(t *testing.T) {
	port := listenTarget(t, echo)
	ctx, cancel := context.WithCancel(t.Context())
	l, err := Listen(ctx, webSocketDial(t, nil, ServeOptions{}), ListenOptions{RemotePort: port, LocalPort: pick()}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := dialLocal(t, l)
	io.WriteString(c, "x")
	io.ReadFull(c, make([]byte, 1))
	cancel()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection reads %v", err)
	}
	l.Close()
	if got := l.Stats().Active; got != 0 {
		t.Errorf("%d connections are active", got)
	}
}

// Dial is one connection with a session of its own. Closing it loses nothing that
// was written.
func TestSoleConnection(t *testing.T) {
	received, written := make(chan int, 1), make(chan struct{})
	port := listenTarget(t, func(c *net.TCPConn) {
		<-written
		n, err := io.Copy(io.Discard, c)
		if err != nil {
			t.Error(err)
		}
		received <- int(n)
	})
	c, err := Dial(t.Context(), webSocketDial(t, nil, ServeOptions{}), port, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	close(written)
	c.Close()
	if n := <-received; n != 1<<20 {
		t.Errorf("%d bytes arrived", n)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed connection reads %v", err)
	}
	c, err = Dial(t.Context(), webSocketDial(t, nil, ServeOptions{}), listenTarget(t, echo), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Reset()
	c.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("reading beyond a deadline is %v", err)
	}
}
