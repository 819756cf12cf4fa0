//go:build linux

// Package fakeserver is the server of the golden tests: the real one over the
// runtime without isolation, made deterministic, and in front of it a layer
// that misbehaves as ordered and keeps a log of what it was sent.
package fakeserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/runtime/process"
	"github.com/sbx-star/sbx-star/server"
	"github.com/sbx-star/sbx-star/wire"
)

const basePath = "/v2/sandboxes"

// Options change what Start makes.
type Options struct {
	Dir    string           // where the sandboxes lie; "" makes a temporary folder that Close deletes
	APIKey string           // "" asks for none
	Now    func() time.Time // nil stands still
}

// Server is a fake server on a loopback port. Its ids count up from
// 00000000-0000-4000-8000-000000000001, its clock stands still unless it is given one, and the names
// it makes up are sandbox-00000001 and so on, by the id.
//
// The binary that uses it calls process.Child before anything else.
type Server struct {
	inner    *server.Server
	http     *http.Server
	url, key string
	dir      string
	temp     string // to be deleted, or ""
	serving  sync.WaitGroup
	closing  sync.Once
	closeErr error

	ctx  context.Context // ends with Close: nothing is delayed any more
	stop context.CancelFunc

	point  atomic.Pointer[Point] // nil unless the server is to stand still
	log    requestLog
	faults faults

	mu      sync.Mutex
	closed  bool
	daemons []runtime.Proc    // every one that was placed
	conns   map[net.Conn]bool // that net/http has handed over
}

// Start makes a server. The caller closes it.
func Start(options Options) (_ *Server, err error) {
	s := &Server{key: options.APIKey, dir: options.Dir, conns: map[net.Conn]bool{}}
	s.log.changed = make(chan struct{})
	if s.dir == "" {
		if s.dir, err = os.MkdirTemp("", "sbx-star-fake-"); err != nil {
			return nil, err
		}
		s.temp = s.dir
	}
	if s.dir, err = filepath.EvalSymlinks(s.dir); err != nil { // as /proc will name it
		return nil, err
	}
	var ids atomic.Int64
	if options.Now == nil {
		options.Now = func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }
	}
	s.inner, err = server.New(server.Options{
		Runtime:    watched{process.New(process.Options{AnyImage: true}), s},
		StateDir:   s.dir,
		APIKey:     options.APIKey,
		BestEffort: true,
		Version:    "fake",
		Now:        options.Now,
		NewID:      func() string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", ids.Add(1)) },
		RequestID:  func() string { return "00000000-0000-4000-8000-ffffffffffff" },
	})
	if err != nil {
		return nil, errors.Join(err, s.clean())
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.inner.Close()
		return nil, errors.Join(err, s.clean())
	}
	s.url = "http://" + ln.Addr().String() + basePath
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.http = &http.Server{Handler: s}
	s.serving.Go(func() { s.http.Serve(ln) })
	return s, nil
}

func (s *Server) clean() error {
	if s.temp == "" {
		return nil
	}
	return os.RemoveAll(s.temp)
}

// URL is the base URL, which ends in /v2/sandboxes.
func (s *Server) URL() string { return s.url }

// Close cuts every connection, deletes every sandbox, and returns once nothing
// runs any more. What could not be deleted is the error. Closing twice is
// harmless.
func (s *Server) Close() error {
	s.closing.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Server) close() error {
	s.stop()
	s.http.Close()
	s.mu.Lock()
	s.closed = true
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	boxes, err := s.boxes()
	for _, b := range boxes {
		if status, body := s.ask("DELETE", "/boxes/"+b.ID); status != http.StatusNoContent && status != http.StatusNotFound {
			err = errors.Join(err, fmt.Errorf("deleting %s: status %d: %s", b.Name, status, body))
		}
	}
	s.inner.Close()
	s.serving.Wait()
	return errors.Join(err, s.clean())
}

// begin counts a request in, unless Close waits already.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.serving.Add(1)
	}
	return !s.closed
}

// ask sends a request past the layer in front.
func (s *Server) ask(method, path string) (int, []byte) {
	r := httptest.NewRequest(method, s.url+path, nil)
	r.Header.Set("X-Api-Key", s.key)
	w := httptest.NewRecorder()
	s.inner.ServeHTTP(w, r)
	return w.Code, w.Body.Bytes()
}

func (s *Server) boxes() ([]wire.Box, error) {
	status, body := s.ask("GET", "/boxes")
	var list wire.BoxList
	if err := json.Unmarshal(body, &list); err != nil || status != http.StatusOK {
		return nil, fmt.Errorf("listing the sandboxes: status %d: %s", status, body)
	}
	return list.Boxes, nil
}

// Sandboxes counts the sandboxes that there are.
func (s *Server) Sandboxes() (int, error) {
	boxes, err := s.boxes()
	return len(boxes), err
}

// Left names all that there is on the server: sandboxes, templates, volumes,
// pools and snapshots.
func (s *Server) Left() (names []string, err error) {
	for _, collection := range []string{"boxes", "templates", "volumes", "pools", "snapshots"} {
		var fields map[string]json.RawMessage
		status, body := s.ask("GET", "/"+collection)
		if err := json.Unmarshal(body, &fields); err != nil || status != http.StatusOK {
			return nil, fmt.Errorf("listing the %s: status %d: %s", collection, status, body)
		}
		for _, field := range fields {
			var list []struct{ Name string }
			if json.Unmarshal(field, &list) != nil {
				continue // it is no list
			}
			for _, resource := range list {
				names = append(names, collection+"/"+resource.Name)
			}
		}
	}
	return names, nil
}

// Processes counts the living daemons, and the living processes whose working
// directory lies in a sandbox: commands, which have it there unless told
// otherwise.
func (s *Server) Processes() (int, error) {
	count := 0
	s.mu.Lock()
	for _, p := range s.daemons {
		if p.Alive() {
			count++
		}
	}
	s.mu.Unlock()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		// A process that has just ended has no link any more.
		if cwd, err := os.Readlink(filepath.Join("/proc", e.Name(), "cwd")); err == nil && strings.HasPrefix(cwd, s.dir+"/") {
			count++
		}
	}
	return count, nil
}

// watched is the runtime, with an eye on the daemons that it places.
type watched struct {
	runtime.Runtime
	s *Server
}

func (w watched) Create(ctx context.Context, spec runtime.Spec) (runtime.Instance, error) {
	instance, err := w.Runtime.Create(ctx, spec)
	if err != nil {
		return nil, err
	}
	w.s.note(spec.Dir)
	return watchedInstance{instance, w.s, spec.Dir}, nil
}

func (w watched) Adopt(ctx context.Context, spec runtime.Spec) (runtime.Instance, error) {
	instance, err := w.Runtime.Adopt(ctx, spec)
	if instance != nil { // also beside runtime.ErrGone
		instance = watchedInstance{instance, w.s, spec.Dir}
	}
	return instance, err
}

// watchedInstance is a sandbox that may be started again.
type watchedInstance struct {
	runtime.Instance
	s   *Server
	dir string
}

func (i watchedInstance) Start(ctx context.Context) error {
	err := i.Instance.Start(ctx)
	i.s.note(i.dir)
	return err
}

// note remembers the daemon that was placed in a folder.
func (s *Server) note(dir string) {
	p, err := runtime.ReadProc(dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && !slices.Contains(s.daemons, p) {
		s.daemons = append(s.daemons, p)
	}
}

// Requests is the log: a line for each request and each message of a client
// over a WebSocket, in the order in which they came.
func (s *Server) Requests() []string { return s.log.lines() }

// ResetLog empties the log.
func (s *Server) ResetLog() { s.log.reset() }

// Await returns once n lines of the log are as match says.
func (s *Server) Await(ctx context.Context, n int, match func(line string) bool) error {
	for {
		lines, changed := s.log.watch()
		found := 0
		for _, line := range lines {
			if match(line) {
				found++
			}
		}
		if found >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d such requests: %w; the log is\n%s", found, n, ctx.Err(), strings.Join(lines, "\n"))
		}
	}
}

// requestLog is what was sent.
type requestLog struct {
	mu      sync.Mutex
	entries []*entry
	changed chan struct{} // closed at the next change
}

type entry struct{ text string }

const (
	maxEntries = 10_000
	maxText    = 4 << 10
)

// add appends a line. It can be completed later by set.
func (l *requestLog) add(text string) *entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &entry{}
	l.put(e, text)
	if len(l.entries) < maxEntries {
		l.entries = append(l.entries, e)
	}
	return e
}

func (l *requestLog) set(e *entry, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.put(e, text)
}

func (l *requestLog) put(e *entry, text string) {
	if len(text) > maxText {
		text = fmt.Sprintf("%s… (%d bytes)", text[:maxText], len(text))
	}
	e.text = text
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *requestLog) lines() []string {
	lines, _ := l.watch()
	return lines
}

func (l *requestLog) watch() ([]string, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := make([]string, len(l.entries))
	for i, e := range l.entries {
		lines[i] = e.text
	}
	return lines, l.changed
}

func (l *requestLog) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = nil
}

// compact is JSON as the log has it: without the ids that clients make up.
func compact(text []byte) string {
	var out bytes.Buffer
	if err := json.Compact(&out, text); err != nil {
		return strconv.Quote(string(text))
	}
	text = leaseID.ReplaceAll(out.Bytes(), []byte(`"lease":{"id":"<id>"`))
	return commandID.ReplaceAllString(string(text), `"command_id":"<id>"`)
}
