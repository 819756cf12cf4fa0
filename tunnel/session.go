package tunnel

import (
	"context"
	"net"
)

// This file defines the client end: the session that all tunnels to one sandbox
// share, and how it is opened again (§7.5).

// Session is the client end. It is opened by the first call that needs it and is
// safe for concurrent use.
type Session struct{}

// New makes a session that opens itself with dial. Close releases it.
func New(dial DialFunc, options Options) *Session { return &Session{} }

// Dial connects to a port inside the sandbox. ctx bounds the connecting. The
// caller closes the connection; closing the session resets it.
func (s *Session) Dial(ctx context.Context, port int) (Conn, error) { return nil, ErrClosed }

// Listen opens the session if it is not open, and then a local port on the IPv4
// and IPv6 loopback whose connections lead to the remote port. The listener
// closes with ctx, with its Close and with the session.
func (s *Session) Listen(ctx context.Context, options ListenOptions) (*Listener, error) {
	return nil, ErrClosed
}

// Close resets all connections, closes all listeners, and waits for the
// goroutines of both.
func (s *Session) Close() error { return nil }

// Dial connects to one port over a session of its own, which ends with the
// connection.
func Dial(ctx context.Context, dial DialFunc, port int, options Options) (Conn, error) {
	return nil, ErrClosed
}

// Listen is [Session.Listen] on a session of its own, which ends with the listener.
func Listen(ctx context.Context, dial DialFunc, listen ListenOptions, options Options) (*Listener, error) {
	return nil, ErrClosed
}

// Listener is a local port that leads into the sandbox.
type Listener struct{}

// RemotePort is the port inside the sandbox.
func (l *Listener) RemotePort() int { return 0 }

// LocalPort is the port that was bound.
func (l *Listener) LocalPort() int { return 0 }

// Addr is the IPv4 address that was bound.
func (l *Listener) Addr() net.Addr { return nil }

// Stats tells what went through so far.
func (l *Listener) Stats() Stats { return Stats{} }

// Check connects once to the remote port and closes the connection. Its error is
// the one that an accepted connection would meet.
func (l *Listener) Check(ctx context.Context) error { return ErrClosed }

// Close frees the port, resets the live connections and waits for them. It may be
// called more than once.
func (l *Listener) Close() error { return nil }
