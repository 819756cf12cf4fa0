package tunnel

import (
	"context"
	"net"
	"time"
)

// This file defines the daemon's end.

// ServeOptions adjust the daemon's end. The zero value is the default.
type ServeOptions struct {
	Window       uint32              // as in Options; 0 means 16 MiB
	KeepAlive    time.Duration       // as in Options; 0 means 30 s
	WriteTimeout time.Duration       // bounds the writing of one frame; 0 means 10 s
	DialTimeout  time.Duration       // bounds dialTarget; 0 means 10 s
	Streams      int                 // open at once, further ones are reset; 0 means 4096
	Backlog      int                 // streams that wait for their target; 0 means 1024
	Allow        func(port int) bool // tells a port that may be reached; nil means all. Port 0 never is
	Active       func(streams int)   // hears how many streams are open whenever that changes
}

// Serve is the daemon's end of one session. It answers streams until the peer
// ends the session, which is nil, or it breaks or ctx ends, which is the error.
// It owns conn and closes it; all of its connections are gone when it returns.
//
// dialTarget connects to a port for one stream. Its error becomes status 1 if it
// is a [*PortNotAllowedError] and status 2 otherwise. nil means [DialLoopback].
func Serve(ctx context.Context, conn net.Conn, dialTarget func(ctx context.Context, port int) (net.Conn, error), options ServeOptions) error {
	return ErrClosed
}

// DialLoopback connects to a port on 127.0.0.1, and if that fails on ::1.
func DialLoopback(ctx context.Context, port int) (net.Conn, error) {
	return nil, ErrClosed
}
