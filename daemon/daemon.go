//go:build linux

// Package daemon is what runs inside a sandbox and serves its data plane:
// commands over HTTP and WebSocket, files, and the far end of tunnels (protocol.md
// §5, §6, §7, §15, §16).
//
// A command that was started over a WebSocket is a session: it and its output
// stand here, and a socket is only one of its readers, which can be lost and
// replaced at any byte. The daemon is the reaper of everything that runs in the
// sandbox, whether it is process 1 there or not.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// This file defines the daemon as a whole: configuration, limits, start and end.

// limits are the bounds of what clients can make the daemon do.
type limits struct {
	ring        int64         // bytes kept of each stream of a session
	chunk       int           // bytes of output in one message
	httpOutput  int           // bytes kept of each stream of an HTTP command
	body        int64         // bytes of a JSON body and of a socket's first message
	message     int64         // bytes of any later message
	input       int           // bytes of stdin that wait for a command to read them
	running     int           // sessions whose command runs
	kept        int           // sessions whose command has ended
	keptBytes   int64         // of output in those
	remembered  int           // ids of expired sessions
	matches     int           // bytes of what a search found
	batch       int           // names of a directory that a search holds at a time
	search      time.Duration // for one
	first       time.Duration // until a socket's first message
	ping        time.Duration // between two pings
	pong        time.Duration // without a sign of life from the client
	stall       time.Duration // for a client to take one message
	linger      time.Duration // for a client to answer the closing of its socket
	dial        time.Duration // for a port of the sandbox to answer
	hangup      time.Duration // between two looks at a client that said its last word
	idle        time.Duration // idle timeout 0 means this
	termination time.Duration // for everything to end once the daemon is told to
}

func defaultLimits() limits {
	return limits{
		ring:        4 << 20,
		chunk:       64 << 10,
		httpOutput:  10 << 20,
		body:        1 << 20,
		message:     16 << 20,
		input:       1 << 20,
		running:     1024,
		kept:        1024,
		keptBytes:   64 << 20,
		remembered:  4096,
		matches:     8<<20 - 1<<10,
		batch:       4096,
		search:      20 * time.Second,
		first:       30 * time.Second,
		ping:        30 * time.Second,
		pong:        75 * time.Second,
		stall:       30 * time.Second,
		linger:      5 * time.Second,
		dial:        10 * time.Second,
		hangup:      10 * time.Second,
		idle:        300 * time.Second,
		termination: 5 * time.Second,
	}
}

// farewell is how long clients that are slow can hold up the end of the daemon.
const farewell = time.Second

// daemon is one call of Serve.
type daemon struct {
	cfg      atomic.Pointer[Config]
	lim      limits
	bounds   Bounds
	reaper   *reaper
	activity activity
	sessions table
	port     int             // that the daemon listens on, or 0
	work     sync.WaitGroup  // every goroutine but the HTTP server's
	ctx      context.Context // ends when the daemon is told to end
	halt     context.Context // ends when no process is left to wait for
}

// Serve answers the data plane on ln, which it closes, until ctx ends. Then
// attached WebSockets are closed with 1001, every process that descends from
// this one is killed, and Serve returns once all is over. Beside the data plane
// it has three paths for the server alone, which must let no client through to
// them: /activity, /config and /connect.
//
// It takes the process it runs in for itself: it waits for all children, adopts
// orphans, and sets the umask. Nothing else in the process may start one.
func Serve(ctx context.Context, ln net.Listener, cfg Config) error {
	return serve(ctx, ln, cfg, defaultLimits())
}

func serve(ctx context.Context, ln net.Listener, cfg Config, lim limits) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		ln.Close()
		return fmt.Errorf("become the parent of orphans: %w", err)
	}
	unix.Umask(0o022)
	cfg.complete()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	halt, halted := context.WithCancel(context.Background())
	defer halted()
	d := &daemon{lim: lim, bounds: cfg.Bounds, reaper: newReaper(), ctx: ctx, halt: halt}
	if own, ok := ln.Addr().(*net.TCPAddr); ok {
		d.port = own.Port
	}
	d.cfg.Store(&cfg)
	d.sessions.init(lim)
	d.activity.touch()
	if enter := cfg.Bounds.Enter; enter != nil {
		s, entered := &starter{make(chan func())}, make(chan error, 1)
		d.work.Go(func() { s.run(enter, entered, d.reaper.quit) })
		if err := <-entered; err != nil {
			ln.Close()
			return err
		}
		d.reaper.forkExec = s.forkExec
	}
	d.work.Go(d.reaper.run)

	srv := &http.Server{
		Handler:           http.HandlerFunc(d.route),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 30 * time.Second,
		MaxHeaderBytes:    64 << 10,
	}
	serving := make(chan error, 1)
	go func() { serving <- srv.Serve(ln) }()
	var err error
	select {
	case <-ctx.Done():
	case err = <-serving: // the listener failed
		err = fmt.Errorf("accept connections: %w", err)
		serving <- nil
	}
	return errors.Join(err, d.end(srv, cancel, halted, serving))
}

// end takes the daemon down: sockets, commands, whatever else they left behind,
// and then the goroutines that waited for them.
func (d *daemon) end(srv *http.Server, cancel, halted context.CancelFunc, serving <-chan error) error {
	cancel() // sockets close, sessions kill their commands
	ctx, stop := context.WithTimeout(context.Background(), d.lim.termination)
	defer stop()
	err := d.reaper.end(ctx)
	halted()
	answering, cut := context.WithTimeout(ctx, farewell)
	defer cut()
	if srv.Shutdown(answering) != nil {
		srv.Close()
	}
	<-serving
	over := make(chan struct{})
	go func() { d.work.Wait(); close(over) }()
	select {
	case <-over:
	case <-ctx.Done():
		err = errors.Join(err, errors.New("some commands did not end"))
	}
	return err
}
