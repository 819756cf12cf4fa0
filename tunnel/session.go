package tunnel

import (
	"cmp"
	"context"
	"encoding/binary"
	"net"
	"sync"
	"time"
)

// This file defines the client end: the session that all tunnels to one sandbox
// share, how it is opened again (§7.5), and how a stream is connected (§7.3).

const (
	defaultReconnects = 3
	defaultTimeout    = 30 * time.Second
	soleLinger        = 5 * time.Second
	prologueVersion   = 1
)

// Statuses of §7.3.
const (
	statusConnected byte = iota
	statusNotAllowed
	statusRefused
	statusVersion
)

// Session is the client end. It is opened by the first call that needs it and is
// safe for concurrent use.
type Session struct {
	dial   DialFunc
	o      Options
	ctx    context.Context
	cancel context.CancelFunc
	closed func() // waits, each time

	mu        sync.Mutex
	mux       *mux          // the last one
	told      chan struct{} // closed when its loss has been told
	reopened  int64
	flight    *flight // opens a mux
	gone      error   // no other will be opened
	ending    bool
	listeners map[*Listener]struct{}
	running   sync.WaitGroup
}

// flight is the opening of a mux, which everybody who needs one waits for.
type flight struct {
	done chan struct{}
	mux  *mux
	err  error
}

// New makes a session that opens itself with dial. Close releases it.
func New(dial DialFunc, options Options) *Session {
	o := options
	o.Window = max(cmp.Or(o.Window, defaultWindow), baseWindow)
	o.KeepAlive = cmp.Or(o.KeepAlive, defaultKeepAlive)
	o.WriteTimeout = cmp.Or(o.WriteTimeout, max(o.KeepAlive, 0), defaultKeepAlive)
	o.OpenTimeout = cmp.Or(o.OpenTimeout, defaultTimeout)
	o.StatusTimeout = cmp.Or(o.StatusTimeout, defaultTimeout)
	if o.MaxReconnects == nil {
		tries := defaultReconnects
		o.MaxReconnects = &tries
	}
	if o.Permanent == nil {
		o.Permanent = func(error) bool { return false }
	}
	if o.Events == nil {
		o.Events = func(Event) {}
	}
	s := &Session{dial: dial, o: o, listeners: map[*Listener]struct{}{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.closed = sync.OnceFunc(s.end)
	return s
}

// Close resets all connections, closes all listeners, and waits for the
// goroutines of both. It may be called more than once, but not by Events.
func (s *Session) Close() error {
	s.closed()
	return nil
}

func (s *Session) end() {
	s.mu.Lock()
	s.ending = true
	s.gone = ErrClosed
	mux := s.mux
	var listeners []*Listener
	for l := range s.listeners {
		listeners = append(listeners, l)
	}
	s.mu.Unlock()
	s.cancel()
	for _, l := range listeners {
		l.Close()
	}
	if mux != nil {
		mux.close()
	}
	s.running.Wait()
}

// open returns a mux that lives, for which the session is opened, or reopened in
// up to so many tries.
func (s *Session) open(ctx context.Context, tries int) (*mux, error) {
	s.mu.Lock()
	if s.gone != nil || s.mux != nil && !s.mux.ended() {
		defer s.mu.Unlock()
		return s.mux, s.gone
	}
	if s.flight == nil {
		if s.mux == nil {
			tries = 1
		}
		if tries <= 0 {
			defer s.mu.Unlock()
			return nil, &OpenError{Err: s.mux.err}
		}
		s.launch(tries)
	}
	f := s.flight
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.mux, f.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// launch begins a flight. The caller holds the mutex. What happens to the session
// is told in order, and before anybody goes on because of it.
func (s *Session) launch(tries int) {
	f := &flight{done: make(chan struct{})}
	told := s.told
	s.flight = f
	s.running.Go(func() {
		defer close(f.done)
		if told != nil {
			<-told
		}
		event := s.fly(f, told == nil, tries)
		if event.Kind != "" {
			s.o.Events(event)
		}
		if f.mux != nil {
			s.running.Go(func() { s.watch(f.mux) })
		}
	})
}

// fly tries to open a mux, and says what to tell of it.
func (s *Session) fly(f *flight, first bool, tries int) Event {
	conn, failure := s.connect(first, tries)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flight = nil
	switch {
	case s.ending:
		f.err = ErrClosed
		if conn != nil {
			conn.Close()
		}
		return Event{}
	case failure != nil:
		f.err = failure
		if first {
			return Event{} // the caller has the error
		}
		if failure.Permanent {
			s.gone = failure
		}
		return Event{Kind: Failed, Err: failure}
	}
	f.mux = newMux(conn, muxOptions{
		client: true, window: int64(s.o.Window),
		keepAlive: s.o.KeepAlive, writeTimeout: s.o.WriteTimeout,
	})
	s.mux, s.told = f.mux, make(chan struct{})
	if first {
		return Event{Kind: Opened}
	}
	s.reopened++
	return Event{Kind: Reopened}
}

// connect dials up to so many times, with pauses of 0.5, 1, 2, … and at most 8
// seconds between.
func (s *Session) connect(first bool, tries int) (net.Conn, *OpenError) {
	pause := 500 * time.Millisecond
	for try := 1; ; try++ {
		ctx, cancel := context.WithTimeout(s.ctx, s.o.OpenTimeout)
		conn, err := s.dial(ctx)
		cancel()
		if err == nil {
			return conn, nil
		}
		permanent := !first && s.o.Permanent(err)
		if permanent || try == tries || s.ctx.Err() != nil {
			return nil, &OpenError{Tries: try, Permanent: permanent, Err: err}
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-s.ctx.Done():
			timer.Stop()
			return nil, &OpenError{Tries: try, Err: err}
		}
		pause = min(2*pause, 8*time.Second)
	}
}

// watch waits for the end of a mux, and tells of it.
func (s *Session) watch(m *mux) {
	<-m.done
	m.wait()
	s.mu.Lock()
	ending, told := s.ending, s.told
	s.mu.Unlock()
	if !ending {
		s.o.Events(Event{Kind: Lost, Err: m.err})
	}
	close(told)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.o.Eager && s.gone == nil && s.flight == nil && s.mux == m && *s.o.MaxReconnects > 0 {
		s.launch(*s.o.MaxReconnects)
	}
}

func (s *Session) reconnects() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reopened
}

// Dial connects to a port inside the sandbox. ctx bounds the connecting. Its
// error is a [*PortNotAllowedError], a [*ConnectionRefusedError], an
// [*UnsupportedVersionError], a [*StatusError], a [*NoStatusError], an
// [*OpenError], or ctx's. The caller closes the connection; closing the session
// resets it.
func (s *Session) Dial(ctx context.Context, port int) (Conn, error) {
	return s.connectPort(ctx, port, *s.o.MaxReconnects)
}

// connectPort returns a stream whose status said that it is connected.
func (s *Session) connectPort(ctx context.Context, port, tries int) (Conn, error) {
	if err := checkPort("remote port", port); err != nil {
		return nil, err
	}
	st, err := s.openStream(ctx, binary.BigEndian.AppendUint16([]byte{prologueVersion}, uint16(port)), tries)
	if err != nil {
		return nil, err
	}
	if err := readStatus(ctx, st, port, s.o.StatusTimeout); err != nil {
		st.Reset()
		return nil, err
	}
	return st, nil
}

// openStream begins a stream, on another mux if the one at hand has just died.
func (s *Session) openStream(ctx context.Context, prologue []byte, tries int) (*stream, error) {
	for {
		m, err := s.open(ctx, tries)
		if err != nil {
			return nil, err
		}
		st, err := m.open(ctx, prologue)
		if err == nil || !m.ended() {
			return st, err
		}
	}
}

func readStatus(ctx context.Context, st *stream, port int, timeout time.Duration) error {
	stop := context.AfterFunc(ctx, func() { st.Reset() })
	defer stop()
	st.SetReadDeadline(time.Now().Add(timeout))
	var status [1]byte
	_, err := st.Read(status[:])
	if !stop() {
		return context.Cause(ctx)
	}
	if err != nil {
		return &NoStatusError{port, err}
	}
	switch status[0] {
	case statusConnected:
		return st.SetReadDeadline(time.Time{})
	case statusNotAllowed:
		return &PortNotAllowedError{port}
	case statusRefused:
		return &ConnectionRefusedError{port}
	case statusVersion:
		return &UnsupportedVersionError{}
	}
	return &StatusError{port, status[0]}
}

func checkPort(name string, port int) error {
	if port < 1 || port > 65535 {
		return &PortError{name, port}
	}
	return nil
}

// Dial is [Session.Dial] on a session of its own, which ends with the connection.
// ctx bounds the connecting.
func Dial(ctx context.Context, dial DialFunc, port int, options Options) (Conn, error) {
	s := New(dial, options)
	c, err := s.Dial(ctx, port)
	if err != nil {
		s.Close()
		return nil, err
	}
	return &soleConn{c.(*stream), s}, nil
}

// soleConn is the only connection of its session.
type soleConn struct {
	*stream
	session *Session
}

// Close ends the connection and then the session, for which it waits until the
// other end has ended, too, or for soleLinger: the end of a session is a reset for
// what is under way.
func (c *soleConn) Close() error {
	c.stream.Close()
	timer := time.AfterFunc(soleLinger, func() { c.stream.Reset() })
	defer timer.Stop()
	c.stream.waitForgotten()
	return c.session.Close()
}

func (c *soleConn) Reset() error {
	c.stream.Reset()
	return c.session.Close()
}
