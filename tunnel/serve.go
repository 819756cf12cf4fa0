package tunnel

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// This file defines the daemon's end.

const (
	defaultServerWriteTimeout = 10 * time.Second
	defaultDialTimeout        = 10 * time.Second
	defaultStreams            = 4096
	defaultBacklog            = 1024

	prologueTimeout = 30 * time.Second
	// refusalTimeout is how long a refused stream waits for the peer's FIN, since a
	// reset could overtake the status in the peer.
	refusalTimeout = 10 * time.Second
)

// ServeOptions adjust the daemon's end. The zero value is the default.
type ServeOptions struct {
	Window       uint32              // as in Options; 0 means 16 MiB
	KeepAlive    time.Duration       // as in Options; 0 means 30 s, a negative one never
	WriteTimeout time.Duration       // bounds the writing of one frame; 0 means 10 s
	DialTimeout  time.Duration       // bounds dialTarget; 0 means 10 s
	Streams      int                 // open at once, further ones are reset; 0 means 4096
	Backlog      int                 // that wait for their target, further ones are reset; 0 means 1024
	Allow        func(port int) bool // tells a port that may be reached; nil means all. Port 0 never is
	Active       func(streams int)   // hears how many streams are being served whenever that changes, one call at a time
}

// Serve is the daemon's end of one session. It serves streams until the peer ends
// the session, which is nil, or it breaks or ctx ends, which is the error. It owns
// conn and closes it; all of its connections are gone when it returns.
//
// dialTarget connects to a port for one stream. Its error becomes status 1 if it
// is a [*PortNotAllowedError] and status 2 otherwise. nil means [DialLoopback].
func Serve(ctx context.Context, conn net.Conn, dialTarget func(ctx context.Context, port int) (net.Conn, error), options ServeOptions) error {
	o := options
	o.KeepAlive = cmp.Or(o.KeepAlive, defaultKeepAlive)
	o.DialTimeout = cmp.Or(o.DialTimeout, defaultDialTimeout)
	o.Backlog = cmp.Or(o.Backlog, defaultBacklog)
	if dialTarget == nil {
		dialTarget = DialLoopback
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	d := &dispatcher{ctx: ctx, o: o, dial: dialTarget}
	m := newMux(conn, muxOptions{
		window:       int64(max(cmp.Or(o.Window, defaultWindow), baseWindow)),
		keepAlive:    o.KeepAlive,
		writeTimeout: cmp.Or(o.WriteTimeout, defaultServerWriteTimeout),
		streams:      cmp.Or(o.Streams, defaultStreams),
		accept:       d.accept,
	})
	select {
	case <-m.done:
	case <-ctx.Done():
		m.leave(goAwayNormal, context.Cause(ctx))
	}
	m.wait()
	cancel(m.err)
	d.running.Wait()
	if m.err == errPeerLeft {
		return nil
	}
	return m.err
}

// DialLoopback connects to a port on 127.0.0.1, and if that fails on ::1.
func DialLoopback(ctx context.Context, port int) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", hostPort("127.0.0.1", port))
	if err == nil || ctx.Err() != nil {
		return conn, err
	}
	return d.DialContext(ctx, "tcp", hostPort("::1", port))
}

// dispatcher serves the streams of one session.
type dispatcher struct {
	ctx     context.Context
	o       ServeOptions
	dial    func(ctx context.Context, port int) (net.Conn, error)
	waiting atomic.Int64 // streams that have no target yet
	running sync.WaitGroup
	in, out atomic.Int64

	mu     sync.Mutex
	active int
}

func (d *dispatcher) accept(s *stream) {
	if d.waiting.Add(1) > int64(d.o.Backlog) {
		d.waiting.Add(-1)
		s.Reset()
		return
	}
	d.running.Go(func() { d.serve(s) })
}

func (d *dispatcher) count(delta int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.active += delta
	if d.o.Active != nil {
		d.o.Active(d.active)
	}
}

func (d *dispatcher) serve(s *stream) {
	d.count(+1)
	defer d.count(-1)
	target, status, err := d.connect(s)
	d.waiting.Add(-1)
	if err != nil {
		s.Reset()
		return
	}
	if _, err := s.Write([]byte{status}); err == nil && target != nil {
		bridge(d.ctx, s, target, &d.in, &d.out)
		return
	}
	if target != nil {
		abort(target)
	}
	s.CloseWrite()
	s.SetReadDeadline(time.Now().Add(refusalTimeout))
	io.Copy(io.Discard, s)
	s.Close()
}

// connect reads the prologue and connects to its target. Its error is one of the
// stream.
func (d *dispatcher) connect(s *stream) (net.Conn, byte, error) {
	s.SetReadDeadline(time.Now().Add(prologueTimeout))
	port, err := readPrologue(s)
	if err == errVersion {
		return nil, statusVersion, nil
	}
	if err != nil {
		return nil, 0, err
	}
	s.SetReadDeadline(time.Time{})
	if port == 0 || d.o.Allow != nil && !d.o.Allow(port) {
		return nil, statusNotAllowed, nil
	}
	ctx, cancel := context.WithTimeout(d.ctx, d.o.DialTimeout)
	defer cancel()
	target, err := d.dial(ctx, port)
	var notAllowed *PortNotAllowedError
	switch {
	case errors.As(err, &notAllowed):
		return nil, statusNotAllowed, nil
	case err != nil:
		return nil, statusRefused, nil
	}
	return target, statusConnected, nil
}

// readPrologue returns the port that a stream asks for. Of a version that it does
// not know it reads no further.
func readPrologue(r io.Reader) (int, error) {
	var raw [3]byte
	if _, err := io.ReadFull(r, raw[:1]); err != nil {
		return 0, err
	}
	if raw[0] != prologueVersion {
		return 0, errVersion
	}
	if _, err := io.ReadFull(r, raw[1:]); err != nil {
		return 0, err
	}
	return int(binary.BigEndian.Uint16(raw[1:])), nil
}
