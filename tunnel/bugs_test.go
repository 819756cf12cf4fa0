package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// This file tests that what went wrong in other tunnels does not go wrong here: one
// test for each row of protocol.md §11 that is about them, named after it. What
// headers their upgrades carry is tested where these are sent.

// 2563: a tunnel whose session was dropped opens another one for who comes next,
// and one only for all who come at once.
func TestBug2563ADroppedSessionIsReopenedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s := newFlaky(t, Options{})
		defer s.Close()
		f.lose(nil)
		synctest.Wait()
		outcome := make(chan error)
		const many = 10
		for range many {
			go func() {
				c, err := s.Dial(t.Context(), 1)
				if err == nil {
					c.Close()
				}
				outcome <- err
			}()
		}
		for range many {
			if err := <-outcome; err != nil {
				t.Error(err)
			}
		}
		if got := f.calls(); got != "[0s]" {
			t.Errorf("opened at %s", got)
		}
	})
}

// 8: what a status means is an error with a type, and none at all is not waited
// for without end.
func TestDefect08StatusesAreErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for port, want := range map[int]func(error) bool{
			1: is[*PortNotAllowedError], 2: is[*ConnectionRefusedError], 3: is[*UnsupportedVersionError], 4: is[*NoStatusError],
		} {
			near, far := net.Pipe()
			peer := newMux(far, muxOptions{window: baseWindow, writeTimeout: defaultKeepAlive, streams: 1, accept: func(st *stream) {
				if port < 4 { // what is known of a status does not wait for the prologue
					go st.Write([]byte{byte(port)})
				}
			}})
			began := time.Now()
			_, err := Dial(t.Context(), func(context.Context) (net.Conn, error) { return near, nil }, port, Options{})
			if !want(err) {
				t.Errorf("status %d is %v", port, err)
			}
			if took := time.Since(began); took > time.Minute {
				t.Errorf("status %d took %v", port, took)
			}
			peer.close()
			peer.wait()
		}
	})
}

// closing counts how often it is closed.
type closing struct {
	net.Conn
	closed *atomic.Int32
}

func (c closing) Close() error {
	c.closed.Add(1)
	return c.Conn.Close()
}

// 9: an end of one direction leaves the other; a connection that was lost is
// closed; closed streams are not kept; a peer that answers no ping is lost; and
// what is closed stays so.
func TestDefect09EndsOfStreamsAndSessions(t *testing.T) {
	t.Run("half close", func(t *testing.T) {
		port := listenTarget(t, func(c *net.TCPConn) {
			question, _ := io.ReadAll(c)
			io.WriteString(c, "answer to "+string(question))
		})
		c := dialLocal(t, listenLocal(t, webSocketDial(t, nil, ServeOptions{}), port))
		io.WriteString(c, "question")
		c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "answer to question" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	})
	t.Run("old connections", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var opened, closed atomic.Int32
			open := pipeDial(t, echoTarget, ServeOptions{})
			var last net.Conn
			s := New(func(ctx context.Context) (net.Conn, error) {
				opened.Add(1)
				c, err := open(ctx)
				last = c
				return closing{c, &closed}, err
			}, Options{})
			for range 3 {
				if _, err := s.Dial(t.Context(), 1); err != nil {
					t.Fatal(err)
				}
				last.SetReadDeadline(time.Now()) // which ends the session, and not the connection
				synctest.Wait()
				if opened.Load() != closed.Load() {
					t.Errorf("%d of %d connections were closed", closed.Load(), opened.Load())
				}
			}
			s.Close()
			if _, err := s.Dial(t.Context(), 1); !errors.Is(err, ErrClosed) || opened.Load() != 3 {
				t.Errorf("after Close: %v, %d connections", err, opened.Load())
			}
		})
	})
	t.Run("closed streams", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, b, accepted, closed := muxPair(baseWindow)
			defer closed()
			for range 100 {
				near, err := a.open(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				far := <-accepted
				near.Close()
				far.Close()
			}
			synctest.Wait()
			for _, m := range []*mux{a, b} {
				m.mu.Lock()
				if n := len(m.streams); n > 0 {
					t.Errorf("%d closed streams are kept", n)
				}
				m.mu.Unlock()
			}
		})
	})
	t.Run("pings", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			near, far := net.Pipe()
			go io.Copy(io.Discard, far)
			began := time.Now()
			_, err := Dial(t.Context(), func(context.Context) (net.Conn, error) { return near, nil }, 1, Options{KeepAlive: time.Second})
			if took := time.Since(began); !is[*SessionError](err) && !is[*NoStatusError](err) || took > 5*time.Second {
				t.Errorf("after %v: %v", took, err)
			}
			far.Close()
		})
	})
}

// 10: a peer gets no credit for what nobody has read.
func TestDefect10CreditIsForWhatWasRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _, accepted, closed := muxPair(baseWindow)
		defer closed()
		near, err := a.open(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		far := <-accepted
		var sent atomic.Int64
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for range 4 * baseWindow / 1024 {
				if _, err := far.Write(make([]byte, 1024)); err != nil {
					return
				}
				sent.Add(1024)
			}
		}()
		time.Sleep(time.Minute)
		if got := sent.Load(); got != baseWindow {
			t.Errorf("%d bytes were sent to who reads nothing", got)
		}
		io.ReadFull(near, make([]byte, baseWindow))
		time.Sleep(time.Minute)
		if got := sent.Load(); got != 2*baseWindow {
			t.Errorf("%d bytes were sent when %d had been read", got, baseWindow)
		}
		near.Close()
		far.Reset()
		<-ended
	})
}

// 11: local port 0 is any that is free.
func TestDefect11LocalPortZeroIsAny(t *testing.T) {
	s := New(webSocketDial(t, nil, ServeOptions{}), Options{})
	defer s.Close()
	ports := map[int]bool{}
	for range 2 {
		l, err := s.Listen(t.Context(), ListenOptions{RemotePort: listenTarget(t, echo), LocalPort: new(0)})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports[l.LocalPort()] = true
		c := dialLocal(t, l)
		io.WriteString(c, "x")
		c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "x" || err != nil {
			t.Errorf("port %d: %q, %v", l.LocalPort(), got, err)
		}
	}
	if ports[0] || len(ports) != 2 {
		t.Errorf("the ports are %v", ports)
	}
}
