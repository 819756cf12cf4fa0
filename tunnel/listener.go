package tunnel

import (
	"context"
	"errors"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// This file defines the local side of a tunnel (§7.4).

const (
	probeTimeout = 500 * time.Millisecond
	// pickTries is how often the system picks a port that the IPv6 loopback must
	// have free as well.
	pickTries = 10
	// acceptPause is waited after a failed accept, which usually means that the
	// process has no file descriptors left.
	acceptPause = 50 * time.Millisecond
	// winAddressInUse is what Windows calls EADDRINUSE.
	winAddressInUse = syscall.Errno(10048)
)

// Listener is a local port that leads into the sandbox.
type Listener struct {
	session    *Session
	remotePort int
	localPort  int
	tries      int
	before     int64 // reconnects of the session
	sockets    []net.Listener
	own        bool // the session ends with the listener

	ctx     context.Context
	cancel  context.CancelFunc
	closed  func()
	running sync.WaitGroup

	connections, active, in, out atomic.Int64
}

// Listen opens the session if it is not open, and then a local port on the IPv4
// loopback, and on the IPv6 one where there is one, whose connections lead to the
// remote port. The listener closes with ctx, with its Close and with the
// session. A port that is taken is a [*PortInUseError].
func (s *Session) Listen(ctx context.Context, options ListenOptions) (*Listener, error) {
	return s.listen(ctx, options, false)
}

func (s *Session) listen(ctx context.Context, options ListenOptions, own bool) (*Listener, error) {
	if err := checkPort("remote port", options.RemotePort); err != nil {
		return nil, err
	}
	port := options.RemotePort
	if options.LocalPort != nil {
		port = *options.LocalPort
	}
	if port != 0 {
		if err := checkPort("local port", port); err != nil {
			return nil, err
		}
	}
	l := &Listener{session: s, remotePort: options.RemotePort, tries: *s.o.MaxReconnects, own: own}
	if options.MaxReconnects != nil {
		l.tries = *options.MaxReconnects
	}
	if _, err := s.open(ctx, l.tries); err != nil {
		return nil, err
	}
	var err error
	if l.sockets, l.localPort, err = bindLoopback(ctx, port); err != nil {
		return nil, err
	}
	l.ctx, l.cancel = context.WithCancel(ctx)
	l.closed = sync.OnceFunc(l.end)

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		for _, socket := range l.sockets {
			socket.Close()
		}
		l.cancel()
		return nil, ErrClosed
	}
	l.before = s.reopened
	s.listeners[l] = struct{}{}
	for _, socket := range l.sockets {
		l.running.Go(func() { l.accept(socket) })
	}
	context.AfterFunc(l.ctx, l.closed)
	return l, nil
}

// Listen is [Session.Listen] on a session of its own, which ends with the listener.
func Listen(ctx context.Context, dial DialFunc, listen ListenOptions, options Options) (*Listener, error) {
	s := New(dial, options)
	l, err := s.listen(ctx, listen, true)
	if err != nil {
		s.Close()
		return nil, err
	}
	return l, nil
}

// bindLoopback listens on a port of both loopbacks, or of IPv4's if the system
// has no other.
func bindLoopback(ctx context.Context, port int) ([]net.Listener, int, error) {
	if port != 0 && answers(ctx, port) {
		return nil, 0, &PortInUseError{port}
	}
	for try := 1; ; try++ {
		four, err := listenOn(ctx, "127.0.0.1", port)
		if err != nil {
			return nil, 0, err
		}
		got := four.Addr().(*net.TCPAddr).Port
		six, err := listenOn(ctx, "::1", got)
		if err == nil {
			return []net.Listener{four, six}, got, nil
		}
		var inUse *PortInUseError
		if !errors.As(err, &inUse) {
			return []net.Listener{four}, got, nil // there is no IPv6 here
		}
		four.Close()
		if port != 0 || try == pickTries {
			return nil, 0, err
		}
	}
}

// answers tells whether somebody listens: where addresses may be used again,
// binding alone does not find that out.
func answers(ctx context.Context, port int) bool {
	d := net.Dialer{Timeout: probeTimeout}
	conn, err := d.DialContext(ctx, "tcp", hostPort("127.0.0.1", port))
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func listenOn(ctx context.Context, host string, port int) (net.Listener, error) {
	var c net.ListenConfig
	l, err := c.Listen(ctx, "tcp", hostPort(host, port))
	if errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, winAddressInUse) {
		return nil, &PortInUseError{port}
	}
	return l, err
}

func hostPort(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// RemotePort is the port inside the sandbox.
func (l *Listener) RemotePort() int { return l.remotePort }

// LocalPort is the port that was bound.
func (l *Listener) LocalPort() int { return l.localPort }

// Addr is the IPv4 address that was bound.
func (l *Listener) Addr() net.Addr { return l.sockets[0].Addr() }

// Stats tells what went through so far.
func (l *Listener) Stats() Stats {
	return Stats{
		Connections: l.connections.Load(), Active: l.active.Load(),
		BytesIn: l.in.Load(), BytesOut: l.out.Load(),
		Reconnects: l.session.reconnects() - l.before,
	}
}

// Check connects once to the remote port and closes the connection. Its error is
// the one that an accepted connection would meet, as [Session.Dial] says.
func (l *Listener) Check(ctx context.Context) error {
	c, err := l.session.connectPort(ctx, l.remotePort, l.tries)
	if err != nil {
		return err
	}
	return c.Close()
}

// Close frees the port, resets the live connections and waits for them. It may be
// called more than once, but not by Events.
func (l *Listener) Close() error {
	l.closed()
	return nil
}

func (l *Listener) end() {
	l.cancel()
	for _, socket := range l.sockets {
		socket.Close()
	}
	l.running.Wait()
	l.session.mu.Lock()
	delete(l.session.listeners, l)
	l.session.mu.Unlock()
	if l.own {
		l.session.Close()
	}
}

func (l *Listener) accept(socket net.Listener) {
	for {
		local, err := socket.Accept()
		switch {
		case err == nil:
			l.connections.Add(1)
			l.active.Add(1)
			l.running.Go(func() { l.serve(local) })
		case errors.Is(err, net.ErrClosed):
			return
		default:
			select {
			case <-time.After(acceptPause):
			case <-l.ctx.Done():
			}
		}
	}
}

// serve connects an accepted connection, and resets it if that cannot be.
func (l *Listener) serve(local net.Conn) {
	defer l.active.Add(-1)
	remote, err := l.session.connectPort(l.ctx, l.remotePort, l.tries)
	if err != nil {
		abort(local)
		if l.ctx.Err() == nil {
			l.session.o.Events(Event{Kind: Refused, RemotePort: l.remotePort, LocalPort: l.localPort, Err: err})
		}
		return
	}
	bridge(l.ctx, remote.(*stream), local, &l.in, &l.out)
}
