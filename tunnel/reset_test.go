//go:build unix

package tunnel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A program that resets its connection is noticed while nobody reads from it: while
// its stream waits for a window, and after its half-close. Either end of a session
// may be the one that it is connected to.
func TestResetUnread(t *testing.T) {
	fill := func(c *net.TCPConn, near *stream) {
		go c.Write(make([]byte, 4*baseWindow))
		awaitStarved(near)
	}
	for _, state := range []struct {
		name  string
		reach func(c *net.TCPConn, near, far *stream)
	}{
		{"at a full window", func(c *net.TCPConn, near, far *stream) { fill(c, near) }},
		{"at a full window, the other half over", func(c *net.TCPConn, near, far *stream) {
			far.CloseWrite()
			io.ReadAll(c)
			fill(c, near)
		}},
		{"at a full window that was empty before", func(c *net.TCPConn, near, far *stream) {
			fill(c, near)
			io.CopyN(io.Discard, far, 4*baseWindow)
			fill(c, near)
		}},
		{"after its half-close", func(c *net.TCPConn, near, far *stream) {
			c.CloseWrite()
			io.ReadAll(far)
		}},
	} {
		for _, end := range []string{"client", "daemon"} {
			t.Run(state.name+", "+end, func(t *testing.T) {
				a, _, accepted, closed := muxPair(baseWindow)
				defer closed()
				near, err := a.open(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				far := <-accepted
				if end == "daemon" {
					near, far = far, near
				}
				local, program := tcpPair(t)
				bridged := make(chan struct{})
				go func() {
					defer close(bridged)
					bridge(t.Context(), near, local, new(atomic.Int64), new(atomic.Int64))
				}()
				state.reach(program, near, far)
				program.SetLinger(0)
				program.Close()
				told := make(chan struct{})
				go func() {
					defer close(told)
					far.waitForgotten()
				}()
				select {
				case <-told:
					if far.inEnd != ErrReset && far.outEnd != ErrReset {
						t.Errorf("the other end reads %v and writes %v", far.inEnd, far.outEnd)
					}
				case <-time.After(10 * time.Second):
					t.Error("the other end hears nothing")
					far.Reset()
					<-told
				}
				<-bridged
			})
		}
	}
}

func awaitStarved(s *stream) {
	for starved := false; !starved; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		starved = s.starved
		s.mu.Unlock()
	}
}

// After a half-close the end of the other half is still an end, and no reset.
func TestHalfCloseUnread(t *testing.T) {
	for i := range 20 {
		a, _, accepted, closed := muxPair(baseWindow)
		near, err := a.open(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		far := <-accepted
		local, program := tcpPair(t)
		bridged := make(chan struct{})
		go func() {
			defer close(bridged)
			bridge(t.Context(), near, local, new(atomic.Int64), new(atomic.Int64))
		}()
		program.CloseWrite()
		io.ReadAll(far)
		want := fmt.Sprint("answer ", i)
		io.WriteString(far, want)
		far.CloseWrite()
		if got, err := io.ReadAll(program); string(got) != want || err != nil {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
		<-bridged
		if err := far.waitFinished(); err != nil {
			t.Errorf("the other end hears %v", err)
		}
		closed()
	}
}

// A reset gets to a program that reads nothing of what came before it.
func TestResetOfUnreadStream(t *testing.T) {
	t.Parallel()
	a, _, accepted, closed := muxPair(baseWindow)
	defer closed()
	near, err := a.open(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	far := <-accepted
	local, program := tcpPair(t)
	local.SetWriteBuffer(1)
	program.SetReadBuffer(1)
	bridged := make(chan struct{})
	go func() {
		defer close(bridged)
		bridge(t.Context(), near, local, new(atomic.Int64), new(atomic.Int64))
	}()
	go far.Write(make([]byte, 4*baseWindow))
	awaitStarved(far)
	far.Reset()
	select {
	case <-bridged:
	case <-time.After(10 * resetGrace):
		t.Error("the connection stays")
		program.Close()
		<-bridged
	}
	if _, err := io.Copy(io.Discard, program); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the program reads %v", err)
	}
}
