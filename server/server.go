// Package server serves the sandbox API of protocol.md: the control plane,
// which keeps the books of templates and sandboxes, and the way from a
// sandbox's dataplane_url to the daemon inside it.
//
// The books are files below one folder, which several servers may use at once.
// Sandboxes live in a runtime.Runtime and outlive the server that made them.
package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/sbx-star/sbx-star/runtime"
)

// Options say what a server serves. Runtime and StateDir are required.
type Options struct {
	Runtime       runtime.Runtime
	StateDir      string           // folder of all that the server keeps; made if missing
	APIKey        string           // what clients must send; "" asks for none and is for private sockets and loopback
	ServiceDomain string           // hosts below it are services of sandboxes; "" is localhost, for browsers on this machine
	PublicURL     string           // base of every dataplane_url; "" takes scheme and host of the request that asks
	LocalFiles    bool             // git mounts and images may name files of this machine that the server's user can read, and images be had with that user's registry logins
	BestEffort    bool             // accept limits that the runtime cannot enforce
	Quota         Quota            // how much is kept at a time
	StopIdle      time.Duration    // idle_ttl_seconds of sandboxes that could be stopped for it and say nothing; 0: none
	DeleteStopped time.Duration    // their delete_after_stop_seconds; 0: none
	MaxSockets    int              // WebSockets to sandboxes at a time; 0: 1024
	Generations   []string         // of the API that are served, such as wire.Head; nil: all
	Version       string           // as GET /info tells it
	Now           func() time.Time // nil: time.Now
	NewID         func() string    // of all that is kept; unique, and valid names. nil: random UUIDs
	RequestID     func() string    // of requests, and the error_id of their errors. nil: random UUIDs
	Log           *slog.Logger     // nil: nothing is logged. Keys, bodies and queries never are
}

// Server answers requests. It is safe for concurrent use.
type Server struct {
	options   Options
	publicURL *url.URL
	key       [sha256.Size]byte // of APIKey
	store     *store
	endpoints []endpoint
	began     time.Time
	tend      chan struct{} // holds a token while the pools should be looked after

	ctx    context.Context // ends with errClosing when the server closes
	cancel context.CancelCauseFunc
	work   sync.WaitGroup // requests and goroutines

	sockets atomic.Int64 // WebSockets to sandboxes
	metrics metrics

	mu      sync.Mutex
	closed  bool
	handles map[string]*handle // by sandbox id: those being placed, and those reached before
	uses    map[string]int     // by sandbox id: requests that are under way
}

var errClosing = errors.New("the server is stopping")

const shutdownGrace = 5 * time.Second // for requests in progress when Serve ends

// New opens the state folder. The caller closes the server.
func New(options Options) (*Server, error) {
	if options.Runtime == nil || options.StateDir == "" {
		return nil, errors.New("a server needs a runtime and a state folder")
	}
	s := &Server{options: options, key: sha256.Sum256([]byte(options.APIKey)), handles: map[string]*handle{}, uses: map[string]int{}, tend: make(chan struct{}, 1)}
	if options.PublicURL != "" {
		u, err := url.Parse(strings.TrimRight(options.PublicURL, "/"))
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("the public URL %q is not one: want http:// or https:// and a host", options.PublicURL)
		}
		s.publicURL = u
	}
	if options.Now == nil {
		s.options.Now = time.Now
	}
	if options.NewID == nil {
		s.options.NewID = newUUID
	}
	if options.RequestID == nil {
		s.options.RequestID = newUUID
	}
	if options.Log == nil {
		s.options.Log = slog.New(slog.DiscardHandler)
	}
	if options.MaxSockets <= 0 {
		s.options.MaxSockets = maxSockets
	}
	if options.Version == "" {
		s.options.Version = "(devel)"
	}
	dir, err := filepath.Abs(options.StateDir)
	if err != nil {
		return nil, err
	}
	if s.store, err = openStore(dir, s.options.Log); err != nil {
		return nil, fmt.Errorf("open the state folder: %w", err)
	}
	s.endpoints = s.routes()
	if err := s.setGenerations(options.Generations); err != nil {
		s.store.close()
		return nil, err
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.metrics = s.newMetrics()
	s.began = s.options.Now()
	s.work.Go(s.keepUp)
	s.work.Go(s.janitor)
	return s, nil
}

// newUUID returns a version 7 UUID: later ones sort behind earlier ones.
func newUUID() string { return uuid.Must(uuid.NewV7()).String() }

// Serve answers requests that arrive on ln, which it closes, until ctx ends.
// Then sandboxes that are being made are given up, transfers to and from
// sandboxes are cut, WebSockets are closed with 1001, other requests have a few
// seconds to end, and Serve returns nil once all have. The server is closed by
// then.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	defer s.Close()
	if tcp, ok := ln.Addr().(*net.TCPAddr); ok && s.options.APIKey == "" && !tcp.IP.IsLoopback() {
		ln.Close()
		return fmt.Errorf("refusing to serve %s without an API key: set one, or listen on 127.0.0.1", ln.Addr())
	}
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.options.Log.Handler(), slog.LevelWarn),
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		s.cancel(errClosing)
		grace, cancel := context.WithTimeout(context.Background(), shutdownGrace)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(ln)
	if !stop() {
		<-stopped
		return nil
	}
	srv.Close()
	return fmt.Errorf("serve: %w", err)
}

// Close gives up the sandboxes that are being made, ends the WebSockets, and
// returns once every request and goroutine has ended; later requests are
// answered with 503. Sandboxes live on. Closing twice is harmless.
func (s *Server) Close() {
	s.cancel(errClosing)
	s.mu.Lock()
	again := s.closed
	s.closed = true
	s.mu.Unlock()
	s.work.Wait()
	if !again {
		s.store.close()
	}
}

// begin counts a request in, or reports that the server is closed.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.work.Add(1)
	return true
}

// timeForm is how the wire has times, which are in UTC (protocol.md §1.6).
const timeForm = "2006-01-02T15:04:05.000000Z"

func (s *Server) now() string { return s.options.Now().UTC().Format(timeForm) }
