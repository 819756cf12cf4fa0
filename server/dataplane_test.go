package server_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/server"
	"github.com/sbx-star/sbx-star/wire"
)

// This file tests the way to the daemons.

func TestProxy(t *testing.T) {
	f := serve(t, &host{}, func(o *server.Options) { o.APIKey = "sesame" })
	b := f.box("one")
	f.do("POST", path(b, "/upload?path=%2Fa%20b&x=1;2"), "body", "Content-Type", "text/plain", "Cookie", "a=b", "Authorization", "Bearer sesame", "X-Service-Key", "k", "Range", "bytes=0-1").
		want(t, 200, "POST /upload?path=%2Fa%20b", "Content-Type: text/plain", "Range: bytes=0-1", "\nbody")
	a := f.do("GET", path(b, "/download?path=%2Fa/../c"), "", "X-Service-Key", "k", "Cookie", "a=b")
	a.want(t, 200, "GET /download?path=%2Fa/../c")
	for _, secret := range []string{"sesame", "X-Service-Key", "Cookie"} {
		if strings.Contains(a.body, secret) {
			t.Errorf("the daemon was told %s: %s", secret, a.body)
		}
	}
	if a.Header.Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(a.Header.Get("Content-Security-Policy"), "sandbox") {
		t.Errorf("headers %v", a.Header)
	}
	f.do("GET", "!/sb/"+b.Name+"/x", "").want(t, 404, "no sandbox with the id")
	f.do("GET", "!/sb/..%2f..%2fx/x", "").want(t, 404)
	f.do("GET", "!/sb/", "").want(t, 404)
}

// A daemon stands inside the sandbox: nothing but its plain answer gets out.
func TestStrangeDaemons(t *testing.T) {
	h := &host{}
	f := serve(t, h, nil)
	var daemon atomic.Value
	h.daemon = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { daemon.Load().(http.HandlerFunc)(w, r) })
	behave := func(as http.HandlerFunc) { daemon.Store(as) }
	b := f.box("one")

	behave(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</evil>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		header := w.Header()
		header.Set("Set-Cookie", "a=b")
		header.Set("Location", "http://evil.example")
		header.Set("Content-Security-Policy", "script-src *")
		header.Set("Access-Control-Allow-Origin", "*")
		header.Set("Content-Type", "text/html")
		header.Set("Trailer", "Set-Cookie")
		io.WriteString(w, "<script>")
		header.Set("Set-Cookie", "late=1")
		header.Set(http.TrailerPrefix+"X-Late", "1")
	})
	a := f.do("GET", path(b, "/download?path=x"), "")
	a.want(t, 200, "<script>")
	for name := range a.Header {
		switch name {
		case "Content-Type", "Content-Security-Policy", "X-Content-Type-Options", "X-Request-Id", "Date":
		default:
			t.Errorf("the daemon's header %s came through", name)
		}
	}
	if csp := a.Header.Values("Content-Security-Policy"); len(csp) != 1 || strings.Contains(csp[0], "script") || len(a.Trailer) > 0 {
		t.Errorf("policy %q, trailers %v", csp, a.Trailer)
	}

	for name, strange := range map[string]func(http.ResponseWriter, *http.Request){
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://evil.example", http.StatusFound)
		},
		"long head": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 100<<10)) },
		"cut":       func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"upgrade": func(w http.ResponseWriter, _ *http.Request) {
			c, _, _ := http.NewResponseController(w).Hijack()
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\n\r\nHTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\n\r\n")
			c.Close()
		},
		"garbage": func(w http.ResponseWriter, _ *http.Request) {
			c, _, _ := http.NewResponseController(w).Hijack()
			io.WriteString(c, "not HTTP\r\n\r\n")
			c.Close()
		},
	} {
		behave(strange)
		t.Run(name, func(t *testing.T) {
			f.do("GET", path(b, "/download?path=x"), "").want(t, 502, `"error":"ConnectionError"`, "error_id")
			// A command that may have run must not be repeated for a 502.
			f.do("POST", path(b, "/execute"), "{}").want(t, 500, `"error":"CommandError"`)
		})
	}

	// A body that breaks off must not look whole.
	behave(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, "half")
	})
	if a, err := f.send(context.Background(), "GET", path(b, "/download?path=x"), ""); err == nil {
		t.Errorf("got %q as if it were whole", a.body)
	}
}

func TestStreaming(t *testing.T) {
	h := &host{}
	next := make(chan struct{})
	h.daemon = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "one\n")
		http.NewResponseController(w).Flush()
		<-next
		io.WriteString(w, "two\n")
	})
	f := serve(t, h, nil)
	b := f.box("one")
	res, err := http.Get(b.DataplaneURL + "/download?path=x")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewReader(res.Body)
	for _, want := range []string{"one\n", "two\n"} {
		if line, err := lines.ReadString('\n'); line != want { // the first arrives before the second is there
			t.Fatalf("got %q, %v", line, err)
		}
		if want == "one\n" {
			close(next)
		}
	}
}

func TestDaemonGone(t *testing.T) {
	h := &host{}
	f := serve(t, h, nil)
	b := f.box("one")
	h.kill(h.created[0].Dir)
	f.do("POST", path(b, "/execute"), "{}").want(t, 502, `"error":"ConnectionError"`) // nothing ran
	f.do("POST", path(b, "/execute"), "{}").want(t, 400, `"error":"NotReady"`, "daemon is gone")
	f.do("GET", "/boxes/one/status", "").want(t, 200, `"failed"`, "daemon is gone")
	f.do("DELETE", "/boxes/one", "").want(t, 204)
	f.empty(h)
}

func (f *fixture) socket(b wire.Box, rest string) *websocket.Conn {
	f.t.Helper()
	dialer := websocket.Dialer{Subprotocols: []string{"sbx.exec.v1"}}
	c, res, err := dialer.Dial("ws"+strings.TrimPrefix(b.DataplaneURL, "http")+rest, http.Header{"X-Api-Key": {f.key}})
	if err != nil {
		f.t.Fatalf("upgrade: %v, %v", err, res)
	}
	f.t.Cleanup(func() { c.Close() })
	if c.Subprotocol() != "sbx.exec.v1" {
		f.t.Errorf("the subprotocol is %q", c.Subprotocol())
	}
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	return c
}

func exchange(t *testing.T, c *websocket.Conn, text string) {
	t.Helper()
	if err := c.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		t.Fatal(err)
	}
	if _, got, err := c.ReadMessage(); err != nil || string(got) != text {
		t.Fatalf("got %.50q, %v", got, err)
	}
}

func TestWebSocket(t *testing.T) {
	for name, c := range map[string]struct {
		path string
		end  func(f *fixture)
		last string // message
		code int
	}{
		"deleted":        {"/execute/ws", func(f *fixture) { f.do("DELETE", "/boxes/one", "").want(f.t, 204) }, `{"type":"error","error":"the sandbox was deleted","error_type":"CommandError"}`, 1000},
		"tunnel deleted": {"/tunnel", func(f *fixture) { f.do("DELETE", "/boxes/one", "").want(f.t, 204) }, "", 1000},
		"server closed":  {"/execute/ws", func(f *fixture) { f.server.Close() }, "", 1001},
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t, &host{}, func(o *server.Options) { o.APIKey = "sesame" })
			conn := f.socket(f.box("one"), c.path)
			exchange(t, conn, "hello")
			exchange(t, conn, strings.Repeat("long ", 100_000))
			done := make(chan struct{})
			go func() { defer close(done); c.end(f) }()
			if c.last != "" {
				if _, got, err := conn.ReadMessage(); err != nil || string(got) != c.last {
					t.Errorf("got %q, %v", got, err)
				}
			}
			_, _, err := conn.ReadMessage()
			if !websocket.IsCloseError(err, c.code) {
				t.Errorf("got %v, want close code %d", err, c.code)
			}
			conn.Close()
			<-done
		})
	}
}

func TestWebSocketRefused(t *testing.T) {
	h := &host{daemon: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(503)
		io.WriteString(w, `{"detail":{"error":"ServiceUnavailable"}}`)
	})}
	f := serve(t, h, nil)
	b := f.box("one")
	upgrade := []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-Websocket-Version", "13", "Sec-Websocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="}
	a := f.do("GET", path(b, "/execute/ws"), "", upgrade...)
	a.want(t, 503, `{"detail":{"error":"ServiceUnavailable"}}`)
	if a.Header.Get("Set-Cookie") != "" {
		t.Error("the daemon's cookie came through")
	}
	h.kill(h.created[0].Dir)
	f.do("GET", path(b, "/execute/ws"), "", upgrade...).want(t, 502, `"error":"ConnectionError"`)
}

// A request that is under way ends with its sandbox.
func TestDeleteEndsRequests(t *testing.T) {
	arrived := make(chan struct{})
	h := &host{daemon: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
	})}
	f := serve(t, h, nil)
	b := f.box("one")
	status := make(chan int, 1)
	go func() {
		a, _ := f.send(context.Background(), "GET", path(b, "/download?path=x"), "")
		status <- a.StatusCode
	}()
	<-arrived
	f.do("DELETE", "/boxes/one", "").want(t, 204)
	if got := <-status; got != 404 {
		t.Errorf("got %d", got)
	}
}

func TestServe(t *testing.T) {
	h := &host{}
	newServer := func(key string) *server.Server {
		s, err := server.New(server.Options{Runtime: h, StateDir: t.TempDir(), APIKey: key})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	open, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := newServer("").Serve(t.Context(), open); err == nil || !strings.Contains(err.Error(), "without an API key") {
		t.Errorf("got %v", err)
	}
	if _, err := open.Accept(); err == nil {
		t.Error("the listener is open")
	}

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newServer("")
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()
	url := fmt.Sprintf("http://%s%s/boxes", ln.Addr(), base)
	res, err := http.Post(url, "application/json", strings.NewReader(`{"name":"x"}`))
	if err != nil || res.StatusCode != 201 {
		t.Fatalf("%v, %v", res, err)
	}
	res.Body.Close()
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := http.Get(url); err == nil {
		t.Error("it still serves")
	}
	s.Close()
	if h.alive() != 1 {
		t.Error("the sandbox went with its server")
	}
	h.kill(h.created[0].Dir)
}

func TestTooManySockets(t *testing.T) {
	f := serve(t, &host{}, func(o *server.Options) { o.MaxSockets = 2 })
	b := f.box("one")
	first, second := f.socket(b, "/execute/ws"), f.socket(b, "/tunnel")
	upgrade := []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-Websocket-Version", "13", "Sec-Websocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="}
	a := f.do("GET", path(b, "/execute/ws"), "", upgrade...)
	a.want(t, 429, `"error":"QuotaExceeded"`)
	if a.Header.Get("Retry-After") != "5" {
		t.Errorf("headers %v", a.Header)
	}
	exchange(t, second, "still there")
	first.Close()
	eventually(t, "room for one more", func() bool { return !f.server.Full() })
	exchange(t, f.socket(b, "/execute/ws"), "hello")
}
