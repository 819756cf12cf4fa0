package client

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines what the tests share, and tests what holds for every
// request: addresses, headers, the key, and what is made of answers.

// TestMain fails the run if a goroutine outlives the tests.
func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	if flag.Lookup("test.fuzz").Value.String() != "" {
		os.Exit(code) // the fuzzer has goroutines of its own
	}
	for deadline := time.Now().Add(5 * time.Second); code == 0 && runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			fmt.Fprintf(os.Stderr, "%d goroutines before the tests, %d after them\n", before, runtime.NumGoroutine())
			pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
			code = 1
		}
	}
	os.Exit(code)
}

const apiKey = "lsv2_secret_key"

// answer is what a scripted server says to one request. Status 0 drops the
// connection without a word.
type answer struct {
	status int
	body   string
	header http.Header
}

// request is what a scripted server was asked.
type request struct {
	method, uri, body string
	header            http.Header
}

// script answers requests in order, the last answer again and again, and
// remembers what it was asked and what the client slept.
type script struct {
	url     string
	answers []answer

	mu       sync.Mutex
	requests []request
	waits    []time.Duration
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	a := s.answers[min(len(s.requests), len(s.answers)-1)]
	s.requests = append(s.requests, request{r.Method, r.RequestURI, string(body), r.Header})
	s.mu.Unlock()
	if a.status == 0 {
		panic(http.ErrAbortHandler)
	}
	for name, values := range a.header {
		w.Header()[name] = values
	}
	w.WriteHeader(a.status)
	io.WriteString(w, a.body)
}

func (s *script) asked() []request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

func (s *script) slept() []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.waits)
}

// methods are the methods of the requests, in order.
func (s *script) methods() string {
	var all []string
	for _, r := range s.asked() {
		all = append(all, r.method)
	}
	return strings.Join(all, " ")
}

// serve starts a scripted server and a client of it that does not wait.
func serve(t *testing.T, answers ...answer) (*Client, *script) {
	t.Helper()
	s := &script{answers: answers}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.url = server.URL
	return clientOf(t, Options{Endpoint: server.URL + "/v2/sandboxes", APIKey: apiKey}, &s.mu, &s.waits), s
}

// clientOf is a client that notes how long it would sleep, without jitter.
func clientOf(t *testing.T, o Options, mu *sync.Mutex, waits *[]time.Duration) *Client {
	t.Helper()
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.jitter = func() float64 { return 0 }
	c.sleep = func(ctx context.Context, d time.Duration) error {
		mu.Lock()
		*waits = append(*waits, d)
		mu.Unlock()
		return context.Cause(ctx)
	}
	return c
}

// boxAt is a sandbox whose data plane is at url.
func boxAt(c *Client, url string) *Sandbox {
	return &Sandbox{wire.Box{Name: "sb-1", Status: wire.StatusReady, DataplaneURL: url}, c}
}

// asError returns err as an *Error, or fails.
func asError(t *testing.T, err error) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got error %v, want an *Error", err)
	}
	return e
}

// wantKind fails unless err has exactly that kind.
func wantKind(t *testing.T, err error, kind *Kind) *Error {
	t.Helper()
	e := asError(t, err)
	if e.Kind != kind {
		t.Fatalf("got %s (%v), want %s", e.Kind.Name(), err, kind.Name())
	}
	return e
}

func wantEqual[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
		t.Errorf("%s:\ngot  %s\nwant %s", what, g, w)
	}
}

// inTurn is a list of waits, in seconds.
func inTurn(seconds ...float64) (waits []time.Duration) {
	for _, s := range seconds {
		waits = append(waits, inSeconds(s))
	}
	return waits
}

// pipes is a listener in memory: what waits on it can be tested by the fake
// clock of testing/synctest.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-p.done:
		return nil, &net.OpError{Op: "dial", Net: "unix", Err: net.ErrClosed}
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

const pipeURL = "http://localhost"

// inBubble runs f under the fake clock, with a client that really waits, of a
// server in memory.
func inBubble(t *testing.T, o Options, handler http.Handler, f func(t *testing.T, c *Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		listener := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		base, stop := context.WithCancel(context.Background())
		server := &http.Server{Handler: handler, BaseContext: func(net.Listener) context.Context { return base }}
		var serving sync.WaitGroup
		serving.Go(func() { server.Serve(listener) })
		o.Endpoint, o.APIKey, o.Dial = cmp.Or(o.Endpoint, pipeURL+"/v2/sandboxes"), apiKey, listener.dial
		c, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		c.jitter = func() float64 { return 0 }
		defer func() {
			c.Close()
			stop()
			server.Close()
			serving.Wait()
		}()
		f(t, c)
	})
}

func TestEndpointsThatAreRefused(t *testing.T) {
	for _, endpoint := range []string{"127.0.0.1:8787", "ftp://h/v2/sandboxes", "http://", "/v2/sandboxes", "http://[::1", "https://h/v2/sandboxes?a=b", "https://h/v2/sandboxes#f"} {
		c, err := New(Options{Endpoint: endpoint})
		if err == nil {
			t.Errorf("%q is accepted as %s", endpoint, c.Endpoint())
			continue
		}
		wantKind(t, err, ErrValidation)
	}
}

func TestEndpointIsTheHostedServiceByDefault(t *testing.T) {
	c, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "endpoint", c.Endpoint(), DefaultEndpoint)
}

func TestEndpointLosesSlashesAtItsEnd(t *testing.T) {
	c, s := serve(t, answer{200, `{"sandboxes":[]}`, nil})
	slashed, err := New(Options{Endpoint: c.Endpoint() + "//"})
	if err != nil {
		t.Fatal(err)
	}
	defer slashed.Close()
	if _, err := slashed.ListVolumes(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "asked for", s.asked()[0].uri, "/v2/sandboxes/volumes")
}

// The vectors of §14 and the rules of §1.5.
func TestPathsOfNames(t *testing.T) {
	c, s := serve(t, answer{200, `{}`, nil})
	for name, want := range map[string]string{
		"a/b c":    "/v2/sandboxes/boxes/a%2Fb%20c",
		"plain":    "/v2/sandboxes/boxes/plain",
		"a-_.~Z9":  "/v2/sandboxes/boxes/a-_.~Z9",
		"...":      "/v2/sandboxes/boxes/...",
		"../x":     "/v2/sandboxes/boxes/..%2Fx",
		"a+b*c?d#": "/v2/sandboxes/boxes/a%2Bb%2Ac%3Fd%23",
		"é%41":     "/v2/sandboxes/boxes/%C3%A9%2541",
	} {
		before := len(s.asked())
		if _, err := c.GetSandbox(t.Context(), name); err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		wantEqual(t, name, s.asked()[before].uri, want)
	}
	before := len(s.asked())
	for _, name := range []string{"", ".", "..", "a\x00b"} {
		_, err := c.GetSandbox(t.Context(), name)
		wantKind(t, err, ErrValidation)
		wantKind(t, c.DeleteTemplate(t.Context(), name), ErrValidation)
	}
	if after := len(s.asked()); after != before {
		t.Errorf("%d requests were sent for names that cannot be", after-before)
	}
}

func TestDataplaneURLs(t *testing.T) {
	c, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]string{
		"https://h/sb-1":       "wss://h/sb-1/execute/ws",
		"https://h/sb-1/":      "wss://h/sb-1/execute/ws",
		"http://127.0.0.1:8":   "ws://127.0.0.1:8/execute/ws",
		"https://http.h/http/": "wss://http.h/http/execute/ws",
	} {
		got := boxAt(c, url).dataplane("execute/ws", true)
		if got.err != nil || got.url != want {
			t.Errorf("%s: got %s, %v; want %s", url, got.url, got.err, want)
		}
	}
	wantKind(t, boxAt(c, "").dataplane("execute", false).err, ErrDataplaneNotConfigured)
	for _, url := range []string{"sb-1.example.com", "ws://h/sb-1", "http:///x", "::"} {
		wantKind(t, boxAt(c, url).dataplane("execute", false).err, ErrClient)
	}
}

func TestHeadersAreMergedByName(t *testing.T) {
	got := merge(
		http.Header{"X-Api-Key": {"low"}, "X-Kept": {"1"}},
		http.Header{"x-api-key": {"middle"}, "x-other": {"2", "3"}},
		nil,
		http.Header{"X-API-KEY": {"high"}},
	)
	wantEqual(t, "merged", got, http.Header{"X-Api-Key": {"high"}, "X-Kept": {"1"}, "X-Other": {"2", "3"}})
}

func TestHeadersOfRequests(t *testing.T) {
	s := &script{answers: []answer{{200, `{"stdout":"","stderr":"","exit_code":0}`, nil}}}
	server := httptest.NewServer(s)
	defer server.Close()
	c, err := New(Options{Endpoint: server.URL, APIKey: apiKey, Headers: http.Header{"x-team": {"a"}, "X-Both": {"client"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := boxAt(c, server.URL).Exec(t.Context(), RunOptions{Command: "true", Headers: http.Header{"x-both": {"call"}, "X-API-key": {"other"}}}); err != nil {
		t.Fatal(err)
	}
	h := s.asked()[0].header
	for name, want := range map[string]string{"X-Team": "a", "X-Both": "call", "X-Api-Key": "other", "Content-Type": "application/json", "User-Agent": "sbx-star"} {
		wantEqual(t, name, h[name], []string{want})
	}
	if _, err := c.Info(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "key of a call without headers", s.asked()[1].header["X-Api-Key"], []string{apiKey})
}

// §1.4, §10: every call takes headers, over the client's and under those that are
// the call's own.
func TestHeadersOfAContext(t *testing.T) {
	s := &script{answers: []answer{{200, `{"sandboxes":[],"stdout":"","stderr":"","exit_code":0}`, nil}}}
	server := httptest.NewServer(s)
	defer server.Close()
	c, err := New(Options{Endpoint: server.URL, APIKey: apiKey, Headers: http.Header{"X-Team": {"client"}, "X-Both": {"client"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b := boxAt(c, server.URL)
	given := http.Header{"x-both": {"outer"}, "x-OUTER": {"o"}}
	ctx := WithHeaders(WithHeaders(t.Context(), given), http.Header{"X-BOTH": {"inner"}})
	given.Set("X-Outer", "changed later")
	for what, do := range map[string]func() error{
		"list":     func() error { _, err := c.ListSandboxes(ctx); return err },
		"delete":   func() error { return c.DeleteSandbox(ctx, "b") },
		"upload":   func() error { return b.Upload(ctx, "/f", strings.NewReader("x")) },
		"execute":  func() error { _, err := b.Exec(ctx, RunOptions{Command: "true"}); return err },
		"info":     func() error { _, err := c.Info(ctx); return err },
		"snapshot": func() error { return c.DeleteSnapshot(ctx, "s") },
	} {
		before := len(s.asked())
		if err := do(); err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		for _, asked := range s.asked()[before:] {
			for name, want := range map[string]string{"X-Both": "inner", "X-Outer": "o", "X-Team": "client", "X-Api-Key": apiKey} {
				wantEqual(t, what+" "+name, asked.header[name], []string{want})
			}
		}
	}
	n := len(s.asked())
	_, err = c.ListSandboxes(WithHeaders(t.Context(), http.Header{"X-A": {"a\nX-B: b"}}))
	wantKind(t, err, ErrValidation)
	_, err = b.Start(WithHeaders(t.Context(), http.Header{"X-A": {"a\nX-B: b"}}), RunOptions{Command: "true"})
	wantKind(t, err, ErrValidation)
	wantEqual(t, "requests", len(s.asked()), n)
}

func TestRequestsWithoutAKeyCarryNone(t *testing.T) {
	c, s := serve(t, answer{200, `{}`, nil})
	plain, err := New(Options{Endpoint: c.Endpoint()})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := plain.Info(t.Context()); err != nil {
		t.Fatal(err)
	}
	if values, found := s.asked()[0].header["X-Api-Key"]; found {
		t.Errorf("a key was sent: %q", values)
	}
}

func TestHeaderValuesThatCannotBeSentAreRefused(t *testing.T) {
	for _, o := range []Options{{APIKey: "key\n"}, {Headers: http.Header{"X-A": {"a\r\nX-B: b"}}}} {
		_, err := New(o)
		e := wantKind(t, err, ErrValidation)
		if strings.Contains(e.Error(), "key\n") {
			t.Errorf("the message shows the key: %v", e)
		}
	}
}

// §1.3: the key of an encrypted control plane is not sent in the clear.
func TestTheKeyStaysEncrypted(t *testing.T) {
	dialed := errors.New("dialed")
	c, err := New(Options{Endpoint: "https://api.example.com/v2/sandboxes", APIKey: apiKey, MaxRetries: new(int),
		Dial: func(context.Context, string, string) (net.Conn, error) { return nil, dialed }})
	if err != nil {
		t.Fatal(err)
	}
	keyless, err := New(Options{Endpoint: "https://api.example.com/v2/sandboxes", MaxRetries: new(int), Dial: c.dial})
	if err != nil {
		t.Fatal(err)
	}
	plain, err := New(Options{Endpoint: "http://api.example.com/v2/sandboxes", APIKey: apiKey, MaxRetries: new(int), Dial: c.dial})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		client  *Client
		url     string
		headers http.Header
		sent    bool
	}{
		{c, "http://sb-1.example.com", nil, false},
		{c, "http://127.0.0.1.example.com", nil, false},
		{c, "https://sb-1.example.com", nil, true},
		{c, "http://127.0.0.1:99", nil, true},
		{c, "http://[::1]:99", nil, true},
		{c, "http://localhost:99", nil, true},
		{keyless, "http://sb-1.example.com", nil, true},
		{keyless, "http://sb-1.example.com", http.Header{"x-api-key": {"k"}}, false},
		{keyless, "http://sb-1.example.com", http.Header{"Authorization": {"Bearer k"}}, false},
		{keyless, "http://sb-1.example.com", http.Header{"X-Service-Key": {"k"}}, false},
		{plain, "http://sb-1.example.com", nil, true},
	} {
		box := boxAt(x.client, x.url)
		_, execErr := box.Exec(t.Context(), RunOptions{Command: "true", Headers: x.headers})
		_, startErr := box.Start(t.Context(), RunOptions{Command: "true", Headers: x.headers})
		for _, err := range []error{execErr, startErr} {
			if got := errors.Is(err, dialed); got != x.sent {
				t.Errorf("%s, %v: sent %v, want %v (%v)", x.url, x.headers, got, x.sent, err)
			}
			if !x.sent && !strings.Contains(err.Error(), "https") {
				t.Errorf("%s: the message names no way out: %v", x.url, err)
			}
		}
	}
}

func TestTheKeyIsNeverShown(t *testing.T) {
	c, s := serve(t, answer{500, `{"detail":{"error":"Oops","message":"no"}}`, nil}, answer{200, "<html>", nil}, answer{302, "", nil}, answer{0, "", nil})
	for _, text := range []string{fmt.Sprint(c), fmt.Sprintf("%+v", c), c.String(), c.Endpoint()} {
		if strings.Contains(text, apiKey) || !strings.Contains(text, s.url) {
			t.Errorf("the client is shown as %q", text)
		}
	}
	for range 5 {
		_, err := c.GetSandbox(t.Context(), "a")
		if err == nil || strings.Contains(fmt.Sprintf("%v %+v", err, err), apiKey) {
			t.Errorf("got error %v", err)
		}
	}
	box := boxAt(c, s.url)
	if _, err := box.Start(t.Context(), RunOptions{Command: "x"}); err == nil || strings.Contains(fmt.Sprintf("%+v", err), apiKey) {
		t.Errorf("got error %v", err)
	}
}

func TestRedirectsAreRefused(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		c, s := serve(t, answer{status, "<a href=there>", http.Header{"Location": {"/elsewhere"}}})
		_, err := c.ListTemplates(t.Context())
		e := wantKind(t, err, ErrClient)
		if e.Status != status || !strings.Contains(e.Message, "redirects GET /v2/sandboxes/templates") {
			t.Errorf("got %v", e)
		}
		_, err = boxAt(c, s.url).Start(t.Context(), RunOptions{Command: "x"})
		if e := wantKind(t, err, ErrConnection); e.Status != status {
			t.Errorf("upgrade: got %v", e)
		}
		wantEqual(t, "requests", len(s.asked()), 2)
	}
}

func TestAnswersThatAreNoJSON(t *testing.T) {
	for _, body := range []string{"", "<html>hello", `{"name":`, `{"name":1}`, `[]`} {
		c, s := serve(t, answer{200, body, nil})
		_, err := c.UpdateTemplate(t.Context(), "a b", wire.TemplateUpdate{Name: "n"})
		e := wantKind(t, err, ErrClient)
		if !strings.Contains(e.Error(), "PATCH /v2/sandboxes/templates/a b") {
			t.Errorf("%q: the request is not named: %v", body, e)
		}
		wantEqual(t, "method, path, status, body", []any{e.Method, e.Path, e.Status, string(e.Body)}, []any{"PATCH", "/v2/sandboxes/templates/a b", 200, body})
		wantEqual(t, "requests", len(s.asked()), 1)
	}
}

func TestErrorsThatAreNoJSON(t *testing.T) {
	for _, body := range []string{"", "<html><h1>it works</h1>", "nginx"} {
		c, _ := serve(t, answer{500, body, nil})
		_, err := c.GetSandbox(t.Context(), "a")
		e := wantKind(t, err, ErrAPI)
		if strings.Contains(e.Error(), "<") || !strings.Contains(e.Error(), "500") || !strings.Contains(e.Error(), "GET /v2/sandboxes/boxes/a") {
			t.Errorf("got %v", e)
		}
		wantEqual(t, "body", string(e.Body), body)
	}
}

func TestAnswersAreBounded(t *testing.T) {
	endless := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			piece := []byte(strings.Repeat(" ", 1<<20))
			for r.Context().Err() == nil {
				if _, err := w.Write(piece); err != nil {
					return
				}
			}
		}
	}
	for status, kind := range map[int]*Kind{200: ErrClient, 404: ErrNotFound} {
		server := httptest.NewServer(endless(status))
		c, err := New(Options{Endpoint: server.URL})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.GetSandbox(t.Context(), "a")
		e := wantKind(t, err, kind)
		if len(e.Body) > 16<<10 {
			t.Errorf("%d bytes of the body are kept", len(e.Body))
		}
		c.Close()
		server.Close()
	}
}

// A long reason is read whole, and kept in part.
func TestLongErrors(t *testing.T) {
	long := strings.Repeat("x", 100<<10)
	c, _ := serve(t, answer{400, `{"detail":{"error":"Odd","message":"` + long + `"}}`, nil})
	_, err := c.GetSandbox(t.Context(), "a")
	e := wantKind(t, err, ErrClient)
	wantEqual(t, "type", e.ErrorType, "Odd")
	wantEqual(t, "lengths", []int{len(e.Message), len(e.Body)}, []int{100 << 10, 16 << 10})
}

func TestAnAnswerThatEndsEarly(t *testing.T) {
	c, _ := serve(t, answer{200, `{"name":"a"}`, http.Header{"Content-Length": {"100"}}})
	_, err := c.GetSandbox(t.Context(), "a")
	e := wantKind(t, err, ErrConnection)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
	if strings.Count(e.Error(), "GET") != 1 {
		t.Errorf("the request is not named once: %v", e)
	}
}

func TestRequestsAndAnswers(t *testing.T) {
	number := func(n int) *int { return &n }
	name := "n"
	for _, x := range []struct {
		what, answer, want string
		do                 func(c *Client) (any, error)
	}{
		{"create, waiting", `{"name":"a"}`, `POST /v2/sandboxes/boxes {"template_name":"t","wait_for_ready":true,"timeout":30}`, func(c *Client) (any, error) {
			return c.CreateSandbox(t.Context(), wire.BoxCreate{TemplateName: "t", WaitForReady: true})
		}},
		{"create, waiting for long", `{}`, `POST /v2/sandboxes/boxes {"wait_for_ready":true,"timeout":90}`, func(c *Client) (any, error) {
			return c.CreateSandbox(t.Context(), wire.BoxCreate{WaitForReady: true, Timeout: number(90)})
		}},
		{"create, not waiting", `{}`, `POST /v2/sandboxes/boxes {"name":"a","wait_for_ready":false}`, func(c *Client) (any, error) {
			return c.CreateSandbox(t.Context(), wire.BoxCreate{Name: "a", Timeout: number(90)})
		}},
		{"update", `{}`, `PATCH /v2/sandboxes/boxes/a {"name":"n","ttl_seconds":0}`, func(c *Client) (any, error) {
			return c.UpdateSandbox(t.Context(), "a", wire.BoxUpdate{Name: &name, TTLSeconds: number(0)})
		}},
		{"update nothing", `{}`, `GET /v2/sandboxes/boxes/a `, func(c *Client) (any, error) { return c.UpdateSandbox(t.Context(), "a", wire.BoxUpdate{}) }},
		{"create with the fields of late", `{}`, `POST /v2/sandboxes/boxes {"wait_for_ready":false,"access_delegation":{"mode":"INHERIT"},"preserve_memory_on_stop":false,"restore_memory":true,"persistent":false}`, func(c *Client) (any, error) {
			return c.CreateSandbox(t.Context(), wire.BoxCreate{AccessDelegation: []byte(`{"mode":"INHERIT"}`), PreserveMemoryOnStop: new(false), RestoreMemory: new(true), Persistent: new(false)})
		}},
		{"list", `{}`, `GET /v2/sandboxes/boxes?limit=50 `, func(c *Client) (any, error) { return c.ListSandboxes(t.Context()) }},
		{"list some", `{}`, `GET /v2/sandboxes/boxes?label=a%3Db%26c&label=d%3D&limit=2&name_contains=n&offset=4&status=ready `, func(c *Client) (any, error) {
			return c.FindSandboxes(t.Context(), ListQuery{NameContains: "n", Status: "ready", Labels: map[string]string{"d": "", "a": "b&c"}, Limit: 2, Offset: 4})
		}},
		{"status", `{}`, `GET /v2/sandboxes/boxes/a/status `, func(c *Client) (any, error) { return c.SandboxStatus(t.Context(), "a") }},
		{"delete", ``, `DELETE /v2/sandboxes/boxes/a `, func(c *Client) (any, error) { return nil, c.DeleteSandbox(t.Context(), "a") }},
		{"info", `{}`, `GET /v2/sandboxes/info `, func(c *Client) (any, error) { return c.Info(t.Context()) }},
		{"template", `{}`, `POST /v2/sandboxes/templates {"name":"t","image":"i","resources":{"cpu":"1","memory":"1Gi"}}`, func(c *Client) (any, error) {
			return c.CreateTemplate(t.Context(), wire.TemplateCreate{Name: "t", Image: "i", Resources: wire.Resources{CPU: "1", Memory: "1Gi"}})
		}},
		{"rename", `{}`, `PATCH /v2/sandboxes/templates/t {"name":"n"}`, func(c *Client) (any, error) {
			return c.UpdateTemplate(t.Context(), "t", wire.TemplateUpdate{Name: "n"})
		}},
		{"execute", `{}`, `POST /execute {"command":"true","timeout":2,"timeout_seconds":2,"shell":"/bin/bash","env":{}}`, func(c *Client) (any, error) {
			box := boxAt(c, strings.TrimSuffix(c.Endpoint(), "/v2/sandboxes"))
			return box.Exec(t.Context(), RunOptions{Command: "true", Timeout: 1500 * time.Millisecond, Env: map[string]string{}})
		}},
	} {
		wantRequest(t, x.what, x.answer, x.want, x.do)
	}
}

func TestAccessDelegation(t *testing.T) {
	for raw, want := range map[string]string{
		`{"mode":"INHERIT"}`: "", `{"mode":"INHERIT","permissions":[]}`: "", `{"mode":"EXPLICIT","permissions":["p"]}`: "",
		`{}`: "INHERIT or EXPLICIT", `{"mode":"ALL"}`: "INHERIT or EXPLICIT", `{"mode":"EXPLICIT","permissions":"p"}`: "a list of permissions", `[]`: "object",
		`{"mode":"INHERIT","permissions":["p"]}`: "excludes permissions", `{"mode":"EXPLICIT"}`: "at least one", `{"mode":"EXPLICIT","permissions":[]}`: "at least one",
	} {
		c, _ := serve(t, answer{200, `{}`, nil})
		_, err := c.CreateSandbox(t.Context(), wire.BoxCreate{AccessDelegation: []byte(raw)})
		if want == "" && err == nil {
			continue
		}
		if e := wantKind(t, err, ErrValidation); want == "" || e.Field != "access_delegation" || !strings.Contains(e.Message, want) {
			t.Errorf("%s: %v (field %s)", raw, err, e.Field)
		}
	}
}

// A running sandbox is needed where the server stores no proxy_config for later.
func TestAProxyConfigThatComesTooSoon(t *testing.T) {
	refusal := answer{400, `{"detail":{"error":"InvalidRequest","message":"not ready"}}`, nil}
	for kind, u := range map[*Kind]wire.BoxUpdate{ErrNotReady: {ProxyConfig: []byte(`{}`)}, ErrClient: {Name: new("b")}} {
		c, _ := serve(t, refusal)
		_, err := c.UpdateSandbox(t.Context(), "a", u)
		wantKind(t, err, kind)
	}
}

// wantRequest compares the first request of a call, "METHOD uri body", which is
// answered with 200, and returns what came of it.
func wantRequest(t *testing.T, what, body, want string, do func(*Client) (any, error)) any {
	t.Helper()
	c, s := serve(t, answer{200, body, nil})
	got, err := do(c)
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if asked := s.asked(); len(asked) == 0 {
		t.Errorf("%s: nothing was asked", what)
	} else {
		wantEqual(t, what, asked[0].method+" "+asked[0].uri+" "+asked[0].body, want)
	}
	return got
}

func TestMissingFieldsHaveDefaults(t *testing.T) {
	c, s := serve(t, answer{200, `{"unknown":1}`, nil})
	box, err := c.GetSandbox(t.Context(), "a")
	if err != nil || box.Status != wire.StatusReady {
		t.Errorf("box: %+v, %v", box, err)
	}
	status, err := c.SandboxStatus(t.Context(), "a")
	if err != nil || status.Status != wire.StatusProvisioning {
		t.Errorf("status: %+v, %v", status, err)
	}
	boxes, err := c.ListSandboxes(t.Context())
	if err != nil || len(boxes) != 0 {
		t.Errorf("list: %v, %v", boxes, err)
	}
	result, err := boxAt(c, s.url).Exec(t.Context(), RunOptions{Command: "x"})
	if err != nil || result.ExitCode != -1 {
		t.Errorf("execute: %+v, %v", result, err)
	}
}

func TestArgumentsThatAreRefused(t *testing.T) {
	c, s := serve(t, answer{200, `{}`, nil})
	box := boxAt(c, s.url)
	odd := 61
	for what, err := range map[string]error{
		"two sources": func() error {
			_, err := c.CreateSandbox(t.Context(), wire.BoxCreate{TemplateName: "t", SnapshotID: "s"})
			return err
		}(),
		"odd ttl": func() error {
			_, err := c.CreateSandbox(t.Context(), wire.BoxCreate{IdleTTLSeconds: &odd})
			return err
		}(),
		"odd ttl of an update": func() error {
			_, err := c.UpdateSandbox(t.Context(), "a", wire.BoxUpdate{DeleteAfterStopSeconds: &odd})
			return err
		}(),
	} {
		if err == nil {
			t.Errorf("%s is accepted", what)
			continue
		}
		wantKind(t, err, ErrValidation)
	}
	for what, o := range map[string]RunOptions{
		"no command":         {},
		"run_config and env": {Command: "x", RunConfig: &wire.RunConfig{}, Env: map[string]string{}},
		"run_config and cwd": {Command: "x", RunConfig: &wire.RunConfig{}, Cwd: "/"},
		"negative timeout":   {Command: "x", Timeout: -time.Second},
	} {
		for way, run := range map[string]func(context.Context, RunOptions) error{
			"Start": func(ctx context.Context, o RunOptions) error { _, err := box.Start(ctx, o); return err },
			"Exec":  func(ctx context.Context, o RunOptions) error { _, err := box.Exec(ctx, o); return err },
			"Run":   func(ctx context.Context, o RunOptions) error { _, err := box.Run(ctx, o); return err },
		} {
			err := run(t.Context(), o)
			if err == nil {
				t.Errorf("%s accepts %s", way, what)
				continue
			}
			wantKind(t, err, ErrValidation)
		}
	}
	if asked := s.asked(); len(asked) != 0 {
		t.Errorf("sent %v", asked)
	}
}

func TestASandboxWithoutADataplane(t *testing.T) {
	c, s := serve(t, answer{200, `{}`, nil})
	box := boxAt(c, "")
	_, err := box.Exec(t.Context(), RunOptions{Command: "x"})
	wantKind(t, err, ErrDataplaneNotConfigured)
	_, err = box.Start(t.Context(), RunOptions{Command: "x"})
	wantKind(t, err, ErrDataplaneNotConfigured)
	wantKind(t, box.Upload(t.Context(), "f", strings.NewReader("")), ErrDataplaneNotConfigured)
	cmd := box.Reconnect("id", ReconnectOptions{})
	defer cmd.Close()
	_, err = cmd.Next(t.Context())
	wantKind(t, err, ErrDataplaneNotConfigured)
	if asked := s.asked(); len(asked) != 0 {
		t.Errorf("sent %v", asked)
	}
}

// §2.5: wait_for_sandbox.
func TestWaitForSandbox(t *testing.T) {
	status := func(s string) answer { return answer{200, fmt.Sprintf(`{"status":%q,"status_message":"why"}`, s), nil} }
	t.Run("ready", func(t *testing.T) {
		c, s := serve(t, status("provisioning"), status("stopped"), status("ready"), answer{200, `{"name":"a"}`, nil})
		box, err := c.WaitForSandbox(t.Context(), "a", time.Hour, 3*time.Second)
		if err != nil || box.Name != "a" {
			t.Fatalf("got %+v, %v", box, err)
		}
		wantEqual(t, "waits", s.slept(), []time.Duration{3 * time.Second, 3 * time.Second})
		wantEqual(t, "last", s.asked()[3].uri, "/v2/sandboxes/boxes/a")
	})
	t.Run("failed", func(t *testing.T) {
		c, _ := serve(t, status("failed"))
		_, err := c.WaitForSandbox(t.Context(), "a", 0, time.Second)
		wantEqual(t, "error", wantKind(t, err, ErrCreation).Error(), "why")
	})
	t.Run("too late, after one look", func(t *testing.T) {
		c, s := serve(t, status("stopped"))
		_, err := c.WaitForSandbox(t.Context(), "a", 0, time.Second)
		e := wantKind(t, err, ErrTimeout)
		wantEqual(t, "last status", e.LastStatus, "stopped")
		wantEqual(t, "requests", len(s.asked()), 1)
	})
	t.Run("the last wait is cut", func(t *testing.T) {
		looks := 0
		inBubble(t, Options{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			looks++
			io.WriteString(w, `{}`)
		}), func(t *testing.T, c *Client) {
			start := time.Now()
			_, err := c.WaitForSandbox(t.Context(), "a", 5*time.Second, 2*time.Second)
			wantEqual(t, "last status", wantKind(t, err, ErrTimeout).LastStatus, "provisioning")
			wantEqual(t, "looks", looks, 4) // after 0, 2, 4 and 5 seconds
			wantEqual(t, "time", time.Since(start), 5*time.Second)
		})
	})
	t.Run("no interval is one of a second", func(t *testing.T) {
		c, s := serve(t, status("provisioning"), status("failed"))
		_, err := c.WaitForSandbox(t.Context(), "a", time.Hour, 0)
		wantKind(t, err, ErrCreation)
		wantEqual(t, "waits", s.slept(), []time.Duration{time.Second})
	})
	t.Run("cancelled", func(t *testing.T) {
		c, _ := serve(t, status("provisioning"))
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("why")
		c.sleep = func(ctx context.Context, d time.Duration) error { cancel(why); return sleep(ctx, d) }
		if _, err := c.WaitForSandbox(ctx, "a", time.Hour, time.Hour); err != why {
			t.Errorf("got %v", err)
		}
	})
}

func TestRefreshSeesTheSandboxAgain(t *testing.T) {
	c, _ := serve(t, answer{200, `{"name":"sb-1","status":"stopped"}`, nil}, answer{204, "", nil})
	box := boxAt(c, "http://h")
	if err := box.Refresh(t.Context()); err != nil || box.Status != "stopped" || box.DataplaneURL != "" {
		t.Errorf("got %+v, %v", box.Box, err)
	}
	if err := box.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}

// messageOf is a wire message as one line of JSON, for comparisons.
func messageOf(t *testing.T, m wire.Message) string {
	t.Helper()
	text, err := wire.EncodeMessage(m)
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(text) {
		t.Fatalf("%s is no JSON", text)
	}
	return string(text)
}
