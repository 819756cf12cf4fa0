// Package tunnel carries TCP connections to ports inside a sandbox over one
// byte stream, usually a WebSocket, by protocol.md §7. It has both ends: a
// [Session] opens streams and local listeners, [Serve] dials their targets.
//
// A tunnel behaves like TCP. Half-close goes through in both directions, a reset
// arrives as a reset, and a session that dies is an error for whoever reads or
// writes, never an end of file.
//
// The multiplexer below is yamux version 0, written here because a library
// cannot do that: hashicorp/yamux has no reset, grants credit for what has
// arrived rather than for what was taken, cuts a half-closed stream off after
// five minutes, and turns a dead session into an end of file. It is the peer of
// the tests.
package tunnel

import (
	"context"
	"net"
	"time"
)

// DialFunc opens the byte stream to the daemon, usually a WebSocket made a
// net.Conn by [WebSocket]. The session owns and closes the connection; ctx bounds
// the opening only.
type DialFunc func(ctx context.Context) (net.Conn, error)

// Options adjust the client end. The zero value is the default of protocol.md §7.
type Options struct {
	// Window is how many bytes a stream may receive before they are read, at
	// least and by default of any yamux peer 256 KiB. 0 means 16 MiB, which fills
	// 1 Gbit/s at 100 ms.
	Window uint32
	// KeepAlive is how long the daemon may be silent before the session is given
	// up; pings go out three times as often. 0 means 30 s, a negative one never.
	KeepAlive time.Duration
	// WriteTimeout bounds the writing of one frame. 0 means KeepAlive.
	WriteTimeout time.Duration
	// OpenTimeout bounds each call of the dial function; 0 means 30 s.
	OpenTimeout time.Duration
	// StatusTimeout bounds the wait for the status byte of a stream; 0 means 30 s.
	StatusTimeout time.Duration
	// MaxReconnects is how often the opening of a lost session is tried for one
	// connection (§7.5). nil means 3; after 0 a lost session stays lost.
	MaxReconnects *int
	// Eager reopens a lost session at once rather than for the next connection.
	Eager bool
	// Permanent tells whether an error of the dial function would come again (401,
	// 403, 404). One of those on reopening ends the session for good. nil means that
	// none is.
	Permanent func(error) bool
	// Events hears what happens to the session and to accepted connections. It is
	// called by several goroutines, which wait for it. It must not close what it
	// hears about.
	Events func(Event)
}

// EventKind is what an [Event] is about.
type EventKind string

const (
	Opened   EventKind = "opened"   // the session is open for the first time
	Lost     EventKind = "lost"     // the session died of Err; its connections were reset
	Reopened EventKind = "reopened" // the session is open again
	Failed   EventKind = "failed"   // the session could not be opened again, because of Err
	Refused  EventKind = "refused"  // a connection accepted for RemotePort was not connected, because of Err
)

// Event is something that no call can return as its error.
type Event struct {
	Kind       EventKind
	RemotePort int // of Refused
	LocalPort  int // of Refused
	Err        error
}

// ListenOptions say what [Session.Listen] listens for.
type ListenOptions struct {
	RemotePort    int  // 1 to 65535, inside the sandbox
	LocalPort     *int // nil mirrors RemotePort, 0 lets the system pick
	MaxReconnects *int // as in Options; nil means what the session has
}

// Stats counts what went through a [Listener].
type Stats struct {
	Connections int64 // accepted
	Active      int64 // still open
	BytesIn     int64 // from the sandbox
	BytesOut    int64 // to the sandbox
	Reconnects  int64 // times that the session was reopened
}

// Conn is a connection to a port inside the sandbox, the net.Conn that
// [Session.Dial] returns.
type Conn interface {
	net.Conn
	// CloseWrite sends the end of file. Reading goes on until the other end does
	// the same.
	CloseWrite() error
	// Reset drops the connection and what is under way in both directions; the
	// other end sees a reset, as after closing a socket with SO_LINGER of 0.
	Reset() error
}
