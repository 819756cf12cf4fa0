package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// These tests are about time, which synctest makes pass.

// echoTarget is a target in memory.
func echoTarget(context.Context, int) (net.Conn, error) {
	near, far := net.Pipe()
	go func() {
		defer far.Close()
		io.Copy(far, far)
	}()
	return near, nil
}

// A peer that says nothing any more is noticed within the time of keepalive, at
// both ends; one that answers is kept, however idle.
func TestKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		silent := make(chan struct{})
		// The wire between them passes nothing on after silent.
		wire := func(from net.Conn, to net.Conn) {
			buf := make([]byte, 1<<10)
			for {
				n, err := from.Read(buf)
				if err != nil {
					return
				}
				select {
				case <-silent:
				default:
					to.Write(buf[:n])
				}
			}
		}
		nearWire, farWire := net.Pipe()
		go wire(far, nearWire)
		go wire(nearWire, far)
		served := make(chan error, 1)
		go func() { served <- Serve(context.Background(), farWire, echoTarget, ServeOptions{}) }()
		s := New(func(context.Context) (net.Conn, error) { return near, nil }, Options{})
		c, err := s.Dial(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour + time.Second)
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatalf("an idle session was given up: %v", err)
		}
		io.ReadFull(c, make([]byte, 1))
		close(silent)
		start := time.Now()
		if _, err := c.Read(make([]byte, 1)); !is[*SessionError](err) || !strings.Contains(err.Error(), "silent") {
			t.Errorf("a dead session reads %v", err)
		}
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("the dead peer was noticed after %v", took)
		}
		if err := <-served; err == nil {
			t.Error("the daemon's end did not notice")
		}
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("the daemon's end noticed after %v", took)
		}
		far.Close()
		nearWire.Close()
		s.Close()
	})
}

// A daemon that never answers is waited for no longer than told.
func TestStatusTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		go io.Copy(io.Discard, far)
		s := New(func(context.Context) (net.Conn, error) { return near, nil }, Options{KeepAlive: -1})
		start := time.Now()
		if _, err := s.Dial(t.Context(), 1); !is[*NoStatusError](err) || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took != 30*time.Second {
			t.Errorf("waited %v", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.Dial(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		s.Close()
		far.Close()
	})
}

// flaky is a dial function that fails as told, after the first time.
type flaky struct {
	dial DialFunc
	mu   sync.Mutex
	fail error
	conn net.Conn
	at   []time.Duration // of each call, since begin
	from time.Time
}

func (f *flaky) open(ctx context.Context) (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = append(f.at, time.Since(f.from))
	if f.fail != nil {
		return nil, f.fail
	}
	conn, err := f.dial(ctx)
	f.conn = conn
	return conn, err
}

// lose ends the session, and has the next ones fail.
func (f *flaky) lose(fail error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail, f.at, f.from = fail, nil, time.Now()
	f.conn.Close()
}

func (f *flaky) calls() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Sprint(f.at)
}

func newFlaky(t *testing.T, o Options) (*flaky, *Session) {
	f := &flaky{dial: pipeDial(t, echoTarget, ServeOptions{})}
	s := New(f.open, o)
	c, err := s.Dial(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	return f, s
}

// Reopening waits 0.5, 1, 2, 4, 8, 8 … seconds between tries; the next connection
// begins anew.
func TestReconnectPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 7
		f, s := newFlaky(t, Options{MaxReconnects: &tries})
		defer s.Close()
		f.lose(io.ErrNoProgress)
		synctest.Wait()
		var failed *OpenError
		if _, err := s.Dial(t.Context(), 1); !errors.As(err, &failed) || failed.Tries != 7 || !errors.Is(err, io.ErrNoProgress) {
			t.Errorf("got %v", err)
		}
		if got := f.calls(); got != "[0s 500ms 1.5s 3.5s 7.5s 15.5s 23.5s]" {
			t.Errorf("tried at %s", got)
		}
		f.mu.Lock()
		f.fail = nil
		f.mu.Unlock()
		if _, err := s.Dial(t.Context(), 1); err != nil {
			t.Errorf("the next connection is %v", err)
		}
	})
}

// All who wait share one flight, and one that is called off does not end it.
func TestReconnectOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s := newFlaky(t, Options{})
		defer s.Close()
		f.lose(io.ErrNoProgress)
		synctest.Wait()
		hasty, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := s.Dial(hasty, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a hasty connection is %v", err)
		}
		var running sync.WaitGroup
		for range 20 {
			running.Go(func() {
				if _, err := s.Dial(t.Context(), 1); err != nil {
					t.Errorf("a connection is %v", err)
				}
			})
		}
		time.Sleep(time.Second)
		f.mu.Lock()
		f.fail = nil
		f.mu.Unlock()
		running.Wait()
		if got := f.calls(); got != "[0s 500ms 1.5s]" {
			t.Errorf("tried at %s", got)
		}
	})
}

// After 0 reconnects a lost session stays lost.
func TestNoReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		none := 0
		f, s := newFlaky(t, Options{MaxReconnects: &none})
		defer s.Close()
		f.lose(nil)
		synctest.Wait()
		for range 2 {
			if _, err := s.Dial(t.Context(), 1); !is[*OpenError](err) || !strings.Contains(err.Error(), "max_reconnects is 0") {
				t.Errorf("got %v", err)
			}
		}
		if got := f.calls(); got != "[]" {
			t.Errorf("tried at %s", got)
		}
	})
}

// A permanent error ends the session at once and for good, and a failure to open
// at first is not tried again by itself.
func TestPermanent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var failures []Event
		f, s := newFlaky(t, Options{
			Permanent: func(err error) bool { return err == os.ErrPermission },
			Events: func(e Event) {
				if e.Kind == Failed {
					failures = append(failures, e)
				}
			},
		})
		defer s.Close()
		f.lose(os.ErrPermission)
		synctest.Wait()
		for range 2 {
			var failed *OpenError
			if _, err := s.Dial(t.Context(), 1); !errors.As(err, &failed) || !failed.Permanent || !errors.Is(err, os.ErrPermission) {
				t.Errorf("got %v", err)
			}
		}
		if got := f.calls(); got != "[0s]" {
			t.Errorf("tried at %s", got)
		}
		synctest.Wait()
		if len(failures) != 1 || !errors.Is(failures[0].Err, os.ErrPermission) {
			t.Errorf("the events are %v", failures)
		}
		calls := 0
		first := New(func(context.Context) (net.Conn, error) { calls++; return nil, io.ErrNoProgress }, Options{})
		defer first.Close()
		if _, err := first.Dial(t.Context(), 1); !errors.Is(err, io.ErrNoProgress) || calls != 1 {
			t.Errorf("opening at first is %v after %d calls", err, calls)
		}
	})
}

// An eager session is open again before anybody asks.
func TestEager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s := newFlaky(t, Options{Eager: true})
		defer s.Close()
		f.lose(nil)
		synctest.Wait()
		if got := f.calls(); got != "[0s]" {
			t.Errorf("tried at %s", got)
		}
	})
}

// Closing while the session is being opened again ends that, and nothing is
// opened afterwards.
func TestCloseWhileReconnecting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s := newFlaky(t, Options{})
		f.lose(io.ErrNoProgress)
		synctest.Wait()
		outcome := make(chan error, 1)
		go func() {
			_, err := s.Dial(t.Context(), 1)
			outcome <- err
		}()
		time.Sleep(100 * time.Millisecond)
		var running sync.WaitGroup
		for range 3 {
			running.Go(func() { s.Close() })
		}
		running.Wait()
		if err := <-outcome; !errors.Is(err, ErrClosed) {
			t.Errorf("the waiting connection is %v", err)
		}
		if _, err := s.Dial(t.Context(), 1); !errors.Is(err, ErrClosed) {
			t.Errorf("a later one is %v", err)
		}
		if got := f.calls(); got != "[0s]" {
			t.Errorf("tried at %s", got)
		}
	})
}

// muxPair is a session without keepalive. The peer's streams come by the channel.
func muxPair(window int64) (a, b *mux, accepted chan *stream, closed func()) {
	near, far := net.Pipe()
	accepted = make(chan *stream, 2000)
	b = newMux(far, muxOptions{window: window, writeTimeout: defaultKeepAlive, streams: 2000, accept: func(s *stream) { accepted <- s }})
	a = newMux(near, muxOptions{client: true, window: window, writeTimeout: defaultKeepAlive})
	return a, b, accepted, func() {
		a.close()
		b.close()
		a.wait()
		b.wait()
	}
}

// A peer that has sent FIN and takes nothing for a minute is reset; one that has
// not is waited for, and so is one that takes something.
func TestStall(t *testing.T) {
	for _, test := range []struct {
		name       string
		fin, reads bool
		want       time.Duration // 0 for never
	}{
		{"FIN and silence", true, false, 60 * time.Second},
		{"FIN, and reads once", true, true, 110 * time.Second},
		{"silence", false, false, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, _, accepted, closed := muxPair(baseWindow)
				near, err := a.open(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				far := <-accepted
				if test.fin {
					near.CloseWrite()
				}
				start := time.Now()
				outcome := make(chan error, 1)
				go func() {
					_, err := far.Write(make([]byte, 2*baseWindow))
					outcome <- err
				}()
				if test.reads {
					time.Sleep(50 * time.Second)
					io.ReadFull(near, make([]byte, baseWindow/2))
				}
				if test.want == 0 {
					time.Sleep(time.Hour)
					synctest.Wait()
					select {
					case err := <-outcome:
						t.Errorf("writing ended with %v", err)
					default:
					}
					closed()
					return
				}
				if err := <-outcome; err != errStalled {
					t.Errorf("writing ended with %v", err)
				}
				if took := time.Since(start); took != test.want {
					t.Errorf("after %v", took)
				}
				if _, err := io.Copy(io.Discard, near); err != ErrReset {
					t.Errorf("the peer reads %v", err)
				}
				closed()
			})
		})
	}
}

// A closed stream is forgotten by both ends: when the other half ends, when data
// comes for it, and at last by itself.
func TestCloseIsForgotten(t *testing.T) {
	for _, end := range []struct {
		name string
		do   func(far *stream)
		want time.Duration
	}{
		{"end of file", func(far *stream) { far.CloseWrite() }, 0},
		{"data", func(far *stream) { far.Write([]byte("x")) }, 0},
		{"reset", func(far *stream) { far.Reset() }, 0},
		{"nothing", func(far *stream) {}, lingerTimeout},
	} {
		t.Run(end.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b, accepted, closed := muxPair(defaultWindow)
				near, err := a.open(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				far := <-accepted
				near.Close()
				if _, err := far.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("the other end reads %v", err)
				}
				start := time.Now()
				end.do(far)
				near.waitForgotten()
				if took := time.Since(start); took != end.want {
					t.Errorf("forgotten after %v", took)
				}
				synctest.Wait()
				for _, m := range []*mux{a, b} {
					m.mu.Lock()
					if len(m.streams) != 0 || m.offered != 0 {
						t.Errorf("%d streams are left, with windows of %d", len(m.streams), m.offered)
					}
					m.mu.Unlock()
				}
				closed()
			})
		})
	}
}

// A peer that stops reading the session is given up after the write timeout.
func TestWriteTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		served := make(chan error, 1)
		start := time.Now()
		go func() { served <- Serve(context.Background(), near, nil, ServeOptions{}) }()
		far.Write(header{kindWindow, flagSYN, 1, 0}.append(nil)) // and the answer is not read
		if err := <-served; !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 10*time.Second {
			t.Errorf("the session ended with %v after %v", err, time.Since(start))
		}
		far.Close()
	})
}
