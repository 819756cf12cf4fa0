package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/server"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines what the tests stand on: a machine whose sandboxes are
// HTTP servers of the test, and a client that shows answers as they are.

// host is a runtime in memory. Several servers may share one, as several
// processes share a machine.
type host struct {
	enforces wire.Enforces
	inMemory bool
	name     string
	daemon   http.Handler  // nil: echo
	gate     chan struct{} // if not nil, Create waits for a value or its context
	failure  error         // of Create and Start

	stopping func() // when Stop is called; may be nil
	ending   func() // when a daemon is to end; may be nil

	capture func(ctx context.Context, dst string) error // before a snapshot is written; may be nil

	mu      sync.Mutex
	stuck   error // of Adopt, Stop and Remove
	created []runtime.Spec
	daemons map[string]*httptest.Server // by Spec.Dir
}

func (h *host) Info() runtime.Info {
	name := h.name
	if name == "" {
		name = "memory"
	}
	return runtime.Info{Name: name, Isolation: "none", Enforces: h.enforces, InMemory: h.inMemory}
}

func (h *host) Create(ctx context.Context, spec runtime.Spec) (runtime.Instance, error) {
	placed := filepath.Join(spec.Dir, "placed")
	if err := os.WriteFile(placed, nil, 0o600); err != nil {
		return nil, err
	}
	if err := h.pass(ctx); err != nil {
		return nil, errors.Join(err, os.Remove(placed))
	}
	h.mu.Lock()
	h.created = append(h.created, spec)
	h.mu.Unlock()
	h.launch(spec.Dir)
	return &guest{h, spec.Dir}, nil
}

// pass waits at the gate.
func (h *host) pass(ctx context.Context) error {
	if h.failure != nil || h.gate == nil {
		return h.failure
	}
	select {
	case <-h.gate:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h *host) launch(dir string) {
	handler := h.daemon
	if handler == nil {
		handler = http.HandlerFunc(echo)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.daemons == nil {
		h.daemons = map[string]*httptest.Server{}
	}
	h.daemons[dir] = httptest.NewServer(handler)
}

func (h *host) Adopt(_ context.Context, spec runtime.Spec) (runtime.Instance, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stuck != nil {
		return nil, h.stuck
	}
	if h.daemons[spec.Dir] == nil {
		return &guest{h, spec.Dir}, runtime.ErrGone
	}
	return &guest{h, spec.Dir}, nil
}

// kill ends a daemon as a crash would.
func (h *host) kill(dir string) {
	h.mu.Lock()
	d := h.daemons[dir]
	delete(h.daemons, dir)
	h.mu.Unlock()
	if d != nil {
		d.CloseClientConnections()
		d.Close()
	}
}

func (h *host) jam(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stuck = err
}

func (h *host) alive() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.daemons)
}

type guest struct {
	host *host
	dir  string
}

func (g *guest) Dial(ctx context.Context) (net.Conn, error) {
	g.host.mu.Lock()
	d := g.host.daemons[g.dir]
	g.host.mu.Unlock()
	if d == nil {
		return nil, runtime.ErrGone
	}
	return new(net.Dialer).DialContext(ctx, "tcp", d.Listener.Addr().String())
}

func (g *guest) Remove(context.Context) error {
	if err := g.end(); err != nil {
		return err
	}
	return os.RemoveAll(g.dir)
}

func (g *guest) Stop(context.Context) error {
	if g.host.stopping != nil {
		g.host.stopping()
	}
	return g.end()
}

func (g *guest) end() error {
	g.host.mu.Lock()
	stuck := g.host.stuck
	g.host.mu.Unlock()
	if stuck == nil && g.host.ending != nil {
		g.host.ending()
	}
	if stuck == nil {
		g.host.kill(g.dir)
	}
	return stuck
}

func (g *guest) Start(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(g.dir, "placed")); err != nil {
		return err
	}
	if err := g.host.pass(ctx); err != nil {
		return err
	}
	g.host.launch(g.dir)
	return nil
}

// Snapshot writes one file with the name of the sandbox's folder in it.
func (g *guest) Snapshot(ctx context.Context, dst string) error {
	if err := os.Mkdir(dst, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dst, "of"), []byte(g.dir), 0o600); err != nil {
		return err
	}
	if g.host.capture != nil {
		return g.host.capture(ctx, dst)
	}
	return nil
}

// echo is a daemon that answers with what it was sent, and echoes WebSocket
// messages.
func echo(w http.ResponseWriter, r *http.Request) {
	if websocket.IsWebSocketUpgrade(r) {
		upgrader := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }, Subprotocols: []string{"sbx.exec.v1"}}
		c, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for {
			kind, data, err := c.ReadMessage()
			if err != nil || c.WriteMessage(kind, data) != nil {
				return
			}
		}
	}
	body, _ := io.ReadAll(r.Body)
	fmt.Fprintf(w, "%s %s\n", r.Method, r.RequestURI)
	for _, name := range []string{"X-Api-Key", "Authorization", "Cookie", "X-Service-Key", "Range", "Content-Type"} {
		if v := r.Header.Get(name); v != "" {
			fmt.Fprintf(w, "%s: %s\n", name, v)
		}
	}
	fmt.Fprintf(w, "%s", body)
}

// ids counts up: its ids are UUIDs in form.
func ids() func() string {
	var mu sync.Mutex
	n := 0
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		n++
		return fmt.Sprintf("00000000-0000-4000-8000-%012d", n)
	}
}

var noon = time.Date(2026, 1, 2, 12, 0, 0, 123456789, time.UTC)

type fixture struct {
	t      *testing.T
	server *server.Server
	http   *httptest.Server
	dir    string
	key    string
}

// serve starts a server on a port. What change does not set is deterministic.
func serve(t *testing.T, h *host, change func(*server.Options)) *fixture {
	t.Helper()
	options := server.Options{Runtime: h, StateDir: t.TempDir(), Version: "test", Now: func() time.Time { return noon }, NewID: ids()}
	if change != nil {
		change(&options)
	}
	if options.Log == nil {
		options.Log = slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	s, err := server.New(options)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, server: s, http: httptest.NewServer(s), dir: options.StateDir, key: options.APIKey}
	t.Cleanup(f.close)
	return f
}

func (f *fixture) close() {
	f.server.Close()
	f.http.CloseClientConnections()
	f.http.Close()
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

const base = "/v2/sandboxes"

type answer struct {
	*http.Response
	body string
}

// do sends a request to a path of the API, or to any path after "!".
func (f *fixture) do(method, path, body string, headers ...string) answer {
	f.t.Helper()
	a, err := f.send(context.Background(), method, path, body, headers...)
	if err != nil {
		f.t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

func (f *fixture) send(ctx context.Context, method, path, body string, headers ...string) (answer, error) {
	if rest, ok := strings.CutPrefix(path, "!"); ok {
		path = rest
	} else {
		path = base + path
	}
	r, err := http.NewRequestWithContext(ctx, method, f.http.URL+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if f.key != "" {
		r.Header.Set("X-Api-Key", f.key)
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			r.Host = headers[i+1]
		} else {
			r.Header.Set(headers[i], headers[i+1])
		}
	}
	res, err := f.http.Client().Transport.RoundTrip(r)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	return answer{res, strings.TrimSpace(string(data))}, err
}

// want fails unless an answer has this status and contains these texts.
func (a answer) want(t *testing.T, status int, texts ...string) {
	t.Helper()
	if a.StatusCode != status {
		t.Fatalf("%s %s: status %d, want %d: %s", a.Request.Method, a.Request.URL.Path, a.StatusCode, status, a.body)
	}
	for _, text := range texts {
		if !strings.Contains(a.body, text) {
			t.Errorf("%s %s: the answer lacks %q: %s", a.Request.Method, a.Request.URL.Path, text, a.body)
		}
	}
	if status >= 400 && a.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s %s: the error has content type %q", a.Request.Method, a.Request.URL.Path, a.Header.Get("Content-Type"))
	}
}

func (a answer) decode(t *testing.T, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), into); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
}

// box makes a sandbox and returns it.
func (f *fixture) box(name string) wire.Box {
	f.t.Helper()
	var b wire.Box
	a := f.do("POST", "/boxes", fmt.Sprintf(`{"name":%q,"wait_for_ready":true}`, name))
	a.want(f.t, 201)
	a.decode(f.t, &b)
	return b
}

// boxes returns a sandbox that was made before.
func (f *fixture) boxes(name string) (b wire.Box) {
	f.t.Helper()
	a := f.do("GET", "/boxes/"+name, "")
	a.want(f.t, 200)
	a.decode(f.t, &b)
	return b
}

// listed is the answer with a list that is whole.
func listed(field string, offset int, items string) string {
	text := fmt.Sprintf(`{"items":[%s],"next_cursor":null,"offset":%d,"%s":[%[1]s]}`, items, offset, field)
	if field < "items" {
		panic("JSON sorts the fields otherwise")
	}
	return text
}

// path is where a sandbox's data plane is, for do.
func path(b wire.Box, rest string) string {
	_, after, _ := strings.Cut(b.DataplaneURL, "//")
	_, after, _ = strings.Cut(after, "/")
	return "!/" + after + rest
}

// empty fails if a sandbox, its folder or its record is left.
func (f *fixture) empty(h *host) {
	f.t.Helper()
	left, err := os.ReadDir(filepath.Join(f.dir, "boxes"))
	if err != nil || len(left) > 0 || h.alive() > 0 {
		f.t.Errorf("left behind: %v, %d daemons, %v", left, h.alive(), err)
	}
}

// eventually waits until ok, which something that cannot be awaited brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came about: %s", what)
		}
	}
}
