package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/tunnel"
)

// This file defines tunnels: local ports that lead to ports inside a sandbox, and
// single connections there (protocol.md §7).

// TunnelOptions say where a tunnel leads and how it is kept up.
type TunnelOptions struct {
	RemotePort    int         // 1 to 65535, inside the sandbox
	LocalPort     *int        // nil is the same as RemotePort, 0 lets the system pick
	MaxReconnects *int        // how often a lost session is opened again for one connection; nil is 3
	Headers       http.Header // over the client's own, also when it reconnects

	// Events hears what no call can return. It is called from several goroutines,
	// which wait for it, and must not close the tunnel.
	Events func(TunnelEvent)
}

// A TunnelEvent is something that befell a tunnel, or a connection to its local
// port.
type TunnelEvent struct {
	Kind tunnel.EventKind // Refused, Lost, Reopened or Failed
	Err  error            // an *Error; nil for Reopened
}

// Tunnel is a local port that leads to a port inside a sandbox. The tunnels that
// one client has to one sandbox share one WebSocket.
type Tunnel struct {
	listener *tunnel.Listener
	stop     context.CancelCauseFunc
	shared   *tunnelSession
	events   func(TunnelEvent)
	closed   chan struct{}
	once     sync.Once
	err      error
}

// Tunnel opens a tunnel, whose local port accepts connections when it returns.
// The caller closes it; ctx bounds the opening only. A local port that is taken
// is ErrTunnel, as is what keeps the WebSocket from opening, but for
// ErrAuthentication and ErrNotFound.
func (s *Sandbox) Tunnel(ctx context.Context, o TunnelOptions) (*Tunnel, error) {
	if err := checkPorts(o); err != nil {
		return nil, err
	}
	shared, err := s.tunnels(merge(headersIn(ctx), o.Headers))
	if err != nil {
		return nil, err
	}
	// The listener closes with its context, and the tunnel does not end with ctx.
	listening, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	l, err := shared.session.Listen(listening, tunnel.ListenOptions{RemotePort: o.RemotePort, LocalPort: o.LocalPort, MaxReconnects: o.MaxReconnects})
	if err == nil && !stop() {
		l.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		cancel(nil)
		shared.release()
		return nil, tunnelError(ctx, err)
	}
	t := &Tunnel{listener: l, stop: cancel, shared: shared, events: o.Events, closed: make(chan struct{})}
	shared.add(t)
	return t, nil
}

func checkPorts(o TunnelOptions) error {
	switch {
	case o.RemotePort < 1 || o.RemotePort > 65535:
		return argumentError("the remote port %d is not between 1 and 65535", o.RemotePort)
	case o.LocalPort != nil && (*o.LocalPort < 0 || *o.LocalPort > 65535):
		return argumentError("the local port %d is not between 0 and 65535", *o.LocalPort)
	case o.MaxReconnects != nil && *o.MaxReconnects < 0:
		return argumentError("max_reconnects is %d, and must not be negative", *o.MaxReconnects)
	}
	return nil
}

// RemotePort is the port inside the sandbox.
func (t *Tunnel) RemotePort() int { return t.listener.RemotePort() }

// LocalPort is the port on this machine.
func (t *Tunnel) LocalPort() int { return t.listener.LocalPort() }

// Address is where the tunnel listens, such as "127.0.0.1:5432".
func (t *Tunnel) Address() string { return t.listener.Addr().String() }

// Stats tells what went through so far, also once it is closed.
func (t *Tunnel) Stats() tunnel.Stats { return t.listener.Stats() }

// Check connects to the remote port once, and returns the error that a
// connection to the local port would meet: ErrTunnelPortNotAllowed,
// ErrTunnelConnectionRefused, ErrTunnelUnsupportedVersion or ErrTunnel.
func (t *Tunnel) Check(ctx context.Context) error {
	select {
	case <-t.closed:
		return tunnelError(ctx, tunnel.ErrClosed)
	default:
	}
	return tunnelError(ctx, t.listener.Check(ctx))
}

// Close frees the local port, resets the connections through it and waits for
// them. Closing twice is harmless.
func (t *Tunnel) Close() error {
	t.once.Do(func() {
		close(t.closed)
		t.err = t.listener.Close()
		t.stop(nil)
		t.shared.remove(t)
		t.shared.release()
	})
	return t.err
}

// DialPort connects to a port inside the sandbox, over a WebSocket that ends with
// the connection. The caller closes it. Its errors are those of Tunnel and Check.
func (s *Sandbox) DialPort(ctx context.Context, port int, headers http.Header) (tunnel.Conn, error) {
	if err := checkPorts(TunnelOptions{RemotePort: port}); err != nil {
		return nil, err
	}
	to := s.dataplane("tunnel", true)
	if to.err != nil {
		return nil, to.err
	}
	conn, err := tunnel.Dial(ctx, s.client.tunnelDialer(to, merge(headersIn(ctx), headers)), port, s.client.tunnelOptions())
	if err != nil {
		return nil, tunnelError(ctx, err)
	}
	return conn, nil
}

// tunnelSession is what the tunnels to one sandbox share.
type tunnelSession struct {
	client  *Client
	key     string
	session *tunnel.Session

	users   int              // guarded by client.tunnels
	mu      sync.Mutex       // guards what follows
	tunnels map[*Tunnel]bool // those that are open
}

// tunnelSessions are the sessions of a client.
type tunnelSessions struct {
	mu   sync.Mutex
	open map[string]*tunnelSession
}

// tunnels takes a share in the session to the sandbox. The caller releases it.
func (s *Sandbox) tunnels(headers http.Header) (*tunnelSession, error) {
	to := s.dataplane("tunnel", true)
	if to.err != nil {
		return nil, to.err
	}
	key := to.url
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		key += fmt.Sprintf("\n%s: %q", name, headers[name])
	}
	c := s.client
	c.tunnels.mu.Lock()
	defer c.tunnels.mu.Unlock()
	shared := c.tunnels.open[key]
	if shared == nil {
		shared = &tunnelSession{client: c, key: key, tunnels: map[*Tunnel]bool{}}
		options := c.tunnelOptions()
		options.Events = shared.hear
		shared.session = tunnel.New(c.tunnelDialer(to, headers), options)
		if c.tunnels.open == nil {
			c.tunnels.open = map[string]*tunnelSession{}
		}
		c.tunnels.open[key] = shared
	}
	shared.users++
	return shared, nil
}

// release gives a share back. The last one closes the session.
func (s *tunnelSession) release() {
	c := s.client
	c.tunnels.mu.Lock()
	s.users--
	last := s.users == 0
	if last {
		delete(c.tunnels.open, s.key)
	}
	c.tunnels.mu.Unlock()
	if last {
		s.session.Close()
	}
}

func (s *tunnelSession) add(t *Tunnel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tunnels[t] = true
}

func (s *tunnelSession) remove(t *Tunnel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tunnels, t)
}

// hear passes an event on to the tunnels that it is about: the one whose
// connection was refused, or all of the session.
func (s *tunnelSession) hear(e tunnel.Event) {
	if e.Kind == tunnel.Opened {
		return
	}
	s.mu.Lock()
	var about []*Tunnel
	for t := range s.tunnels {
		if t.events != nil && (e.Kind != tunnel.Refused || t.LocalPort() == e.LocalPort) {
			about = append(about, t)
		}
	}
	s.mu.Unlock()
	for _, t := range about {
		t.events(TunnelEvent{Kind: e.Kind, Err: tunnelError(context.Background(), e.Err)})
	}
}

func (c *Client) tunnelOptions() tunnel.Options {
	return tunnel.Options{OpenTimeout: c.websocket.ConnectBudget, Permanent: permanent}
}

// permanent tells of errors that trying again does not mend (§7.5).
func permanent(err error) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
		return true
	}
	return e.Kind == ErrClient || e.Kind == ErrValidation // it was never sent
}

// tunnelDialer returns what opens the WebSocket. The first opening waits for a
// sandbox that is only just waking, as a command would; of the later ones the
// session itself makes several.
func (c *Client) tunnelDialer(to endpoint, headers http.Header) tunnel.DialFunc {
	headers = headers.Clone()
	var opened atomic.Bool
	return func(ctx context.Context) (net.Conn, error) {
		for n := 1; ; n++ {
			conn, err := c.upgrade(ctx, to, headers, c.websocket.Open,
				websocket.Dialer{ReadBufferSize: tunnel.ReadBufferSize, WriteBufferSize: tunnel.WriteBufferSize})
			if err == nil {
				opened.Store(true)
				return tunnel.WebSocket(conn), nil
			}
			var e *Error
			if !errors.As(err, &e) {
				return nil, err
			}
			if e.Status == http.StatusNotFound {
				e.Kind, e.ResourceType = ErrNotFound, "sandbox"
			}
			if opened.Load() || n > startRetries || !errors.Is(err, ErrRetryableConnection) {
				return nil, err
			}
			wait := reconnectDelay(n)
			if e.RetryAfter >= 0 {
				wait = e.RetryAfter
			}
			if until, ok := ctx.Deadline(); ok && wait >= time.Until(until) {
				return nil, err
			}
			if c.sleep(ctx, wait) != nil {
				return nil, err
			}
		}
	}
}

// tunnelError is an error of package tunnel as one of the API.
func tunnelError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var api *Error
	if errors.As(err, &api) && (api.Kind == ErrAuthentication || api.Kind == ErrNotFound || api.Kind == ErrTunnel) {
		return api
	}
	e := &Error{Kind: ErrTunnel, Message: err.Error(), Err: err}
	var notAllowed *tunnel.PortNotAllowedError
	var refused *tunnel.ConnectionRefusedError
	var version *tunnel.UnsupportedVersionError
	var listening *net.OpError
	switch {
	case errors.As(err, &listening) && listening.Op == "listen" && errors.Is(err, fs.ErrPermission):
		e.Message = fmt.Sprintf("%v; choose a local port from 1024 on, or 0 to have one picked", err)
	case errors.As(err, &notAllowed):
		e.Kind, e.Port = ErrTunnelPortNotAllowed, notAllowed.Port
	case errors.As(err, &refused):
		e.Kind, e.Port = ErrTunnelConnectionRefused, refused.Port
	case errors.As(err, &version):
		e.Kind = ErrTunnelUnsupportedVersion
	}
	return e
}
