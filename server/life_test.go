package server_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/server"
	"github.com/sbx-star/sbx-star/wire"
)

// This file tests how sandboxes stop, start and wake (protocol.md §2.6, §5).

func (f *fixture) ready(name string) {
	f.t.Helper()
	eventually(f.t, name+" is ready", func() bool {
		return strings.Contains(f.do("GET", "/boxes/"+name+"/status", "").body, `"ready"`)
	})
}

func TestStopAndStart(t *testing.T) {
	h := &host{}
	f := serve(t, h, nil)
	b := f.box("one")
	f.do("POST", "/boxes/nope/stop", "{}").want(t, 404, `"error":"NotFound"`)
	f.do("POST", "/boxes/nope/start", "{}").want(t, 404, `"error":"NotFound"`)
	f.do("POST", "/boxes/one/start", "{}").want(t, 202, `"status":"ready"`) // nothing to do
	for range 2 {
		if a := f.do("POST", "/boxes/one/stop", "{}"); a.StatusCode != 204 || a.body != "" {
			t.Fatalf("stop: %d %s", a.StatusCode, a.body)
		}
	}
	if h.alive() != 0 {
		t.Error("its daemon lives")
	}
	f.do("GET", "/boxes/one", "").want(t, 200, `"status":"stopped"`, `"stopped_at":"2026-01-02T12:00:00.123456Z"`, `"dataplane_url":"`+b.DataplaneURL+`"`)
	f.do("GET", "/boxes/one/status", "").want(t, 200, `{"status":"stopped","status_message":null}`)
	f.do("GET", "/boxes?status=stopped", "").want(t, 200, `"name":"one"`)

	f.do("POST", "/boxes/one/start", "").want(t, 202, `"name":"one"`, `"dataplane_url":"`+b.DataplaneURL+`"`)
	f.ready("one")
	if a := f.do("GET", "/boxes/one", ""); strings.Contains(a.body, "stopped_at") {
		t.Errorf("it runs, and says %s", a.body)
	}
	f.do("GET", path(b, "/download?path=x"), "").want(t, 200, "GET /download")
	f.do("POST", "/boxes/one/stop", "{}").want(t, 204)
	f.do("DELETE", "/boxes/one", "").want(t, 204)
	f.empty(h)
}

// Between 202 and readiness a sandbox is provisioning, also one that had failed.
func TestStartOfFailed(t *testing.T) {
	h := &host{}
	f := serve(t, h, nil)
	b := f.box("gone")
	h.kill(h.created[0].Dir)
	h.failure = errors.New("no room")
	f.do("POST", "/boxes", `{"name":"unmade","wait_for_ready":false}`).want(t, 201)
	eventually(t, "failed", func() bool { return strings.Contains(f.do("GET", "/boxes/unmade/status", "").body, `"failed"`) })
	f.do("POST", "/boxes/unmade/stop", "{}").want(t, 409, `"error":"Conflict"`, "cannot be stopped: the sandbox could not be made: no room")

	h.failure, h.gate = nil, make(chan struct{})
	for _, name := range []string{"gone", "unmade"} {
		f.do("POST", "/boxes/"+name+"/start", "{}").want(t, 202, `"status":"provisioning"`)
		f.do("GET", "/boxes/"+name+"/status", "").want(t, 200, `{"status":"provisioning","status_message":null}`)
		f.do("POST", "/boxes/"+name+"/start", "{}").want(t, 202, `"status":"provisioning"`)
		h.gate <- struct{}{}
		f.ready(name)
	}
	f.do("GET", path(b, "/download?path=x"), "").want(t, 200)

	h.failure = errors.New("no room")
	f.do("POST", "/boxes/gone/stop", "{}").want(t, 204)
	f.do("GET", path(b, "/download?path=x"), "").want(t, 400, `"error":"NotReady"`, "no room")
	f.do("GET", "/boxes/gone/status", "").want(t, 200, `{"status":"failed","status_message":"no room"}`)
	f.do("POST", "/boxes/gone/stop", "{}").want(t, 204) // its files are there
	f.do("GET", "/boxes/gone/status", "").want(t, 200, `"stopped"`)
	for _, name := range []string{"gone", "unmade"} {
		f.do("DELETE", "/boxes/"+name, "").want(t, 204)
	}
	f.empty(h)
}

// Requests wake a sandbox, all of them together once, and are held until it is
// ready, also by a server that did not stop it.
func TestWake(t *testing.T) {
	h := &host{}
	f := serve(t, h, nil)
	other := serve(t, h, func(o *server.Options) { o.StateDir = f.dir })
	b := f.box("one")
	other.do("GET", path(b, "/download?path=x"), "").want(t, 200) // it has a handle of the life that ends now
	f.do("POST", "/boxes/one/stop", "{}").want(t, 204)

	h.gate = make(chan struct{})
	statuses := make(chan int)
	for i := range 6 {
		go func() {
			a, _ := []*fixture{f, other}[i%2].send(context.Background(), "GET", path(b, "/download?path=x"), "")
			statuses <- a.StatusCode
		}()
	}
	h.gate <- struct{}{}
	for range 6 {
		if status := <-statuses; status != 200 {
			t.Errorf("a held request got %d", status)
		}
	}
	h.gate = nil
	f.do("POST", "/boxes/one/stop", "{}").want(t, 204)
	exchange(t, other.socket(other.boxes("one"), "/execute/ws"), "awake")
	if h.alive() != 1 {
		t.Errorf("%d daemons", h.alive())
	}
}

// A caller that goes away while a sandbox wakes does not keep it from waking.
func TestWakeAndLeave(t *testing.T) {
	h := &host{}
	f := serve(t, h, nil)
	b := f.box("one")
	f.do("POST", "/boxes/one/stop", "{}").want(t, 204)
	h.gate = make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	left := make(chan struct{})
	go func() {
		defer close(left)
		f.send(ctx, "GET", path(b, "/download?path=x"), "")
	}()
	eventually(t, "provisioning", func() bool { return strings.Contains(f.do("GET", "/boxes/one/status", "").body, "provisioning") })
	cancel()
	<-left
	h.gate <- struct{}{}
	f.ready("one")
}

// What is deleted, or whose server closes, while it starts.
func TestStartInterrupted(t *testing.T) {
	for name, c := range map[string]struct {
		interrupt func(f, other *fixture)
		status    int // of the sandbox afterwards
	}{
		"deleted":       {func(f, _ *fixture) { f.do("DELETE", "/boxes/one", "").want(f.t, 204) }, 404},
		"server closed": {func(f, _ *fixture) { f.server.Close() }, 200},
	} {
		t.Run(name, func(t *testing.T) {
			h := &host{}
			f := serve(t, h, nil)
			other := serve(t, h, func(o *server.Options) { o.StateDir = f.dir })
			b := f.box("one")
			f.do("POST", "/boxes/one/stop", "{}").want(t, 204)
			h.gate = make(chan struct{})
			f.do("POST", "/boxes/one/start", "{}").want(t, 202)
			c.interrupt(f, other)
			a := other.do("GET", "/boxes/one", "")
			a.want(t, c.status)
			if c.status == 404 {
				f.empty(h)
				return
			}
			a.want(t, 200, `"status":"stopped"`, `"stopped_at":"`)
			h.gate = nil
			other.do("GET", path(b, "/download?path=x"), "").want(t, 200)
		})
	}
}

// A server that dies in the middle leaves a sandbox that counts as stopped, and
// perhaps with a daemon.
func TestHalfStopped(t *testing.T) {
	for _, status := range []string{wire.StatusStopped, wire.StatusProvisioning} {
		h := &host{}
		f := serve(t, h, nil)
		b := f.box("one")
		f.server.Close()
		record := filepath.Join(f.dir, "boxes", b.ID, "box.json")
		text, err := os.ReadFile(record)
		if err != nil {
			t.Fatal(err)
		}
		half := strings.Replace(string(text), `"status":"ready"`, `"status":"`+status+`"`, 1)
		half = strings.TrimSuffix(half, "}") + `,"owner":"dead"}`
		if err := os.WriteFile(record, []byte(half), 0o600); err != nil {
			t.Fatal(err)
		}
		next := serve(t, h, func(o *server.Options) { o.StateDir = f.dir })
		next.do("GET", "/boxes/one", "").want(t, 200, `"status":"stopped"`)
		next.do("POST", "/boxes/one/stop", "").want(t, 204)
		if h.alive() != 0 {
			t.Errorf("%s: its daemon lives", status)
		}
		next.do("GET", path(b, "/download?path=x"), "").want(t, 200)
	}
}

func TestStopFails(t *testing.T) {
	h := &host{}
	f := serve(t, h, nil)
	b := f.box("one")
	h.jam(errors.New("device busy"))
	f.do("POST", "/boxes/one/stop", "{}").want(t, 500, `"error":"InternalError"`, "could not be stopped: device busy")
	f.do("GET", "/boxes/one/status", "").want(t, 200, `{"status":"failed","status_message":"device busy"}`)
	h.jam(nil)
	f.do("POST", "/boxes/one/start", "{}").want(t, 202) // ends what is left first
	f.ready("one")
	f.do("GET", path(b, "/download?path=x"), "").want(t, 200)
}

// A stop takes leave of the sockets so that their clients do not come back, and
// answers the requests that are under way so that they are not repeated.
func TestStopWhileInUse(t *testing.T) {
	arrived := make(chan struct{})
	h := &host{daemon: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if websocket.IsWebSocketUpgrade(r) {
			echo(w, r)
			return
		}
		io.Copy(io.Discard, r.Body)
		close(arrived)
		<-r.Context().Done()
	})}
	f := serve(t, h, nil)
	b := f.box("one")
	exec, tunnel := f.socket(b, "/execute/ws"), f.socket(b, "/tunnel")
	for _, c := range []*websocket.Conn{exec, tunnel} {
		exchange(t, c, "hello")
	}
	under := make(chan answer, 1)
	go func() {
		a, _ := f.send(context.Background(), "POST", path(b, "/execute"), "{}")
		under <- a
	}()
	<-arrived
	f.do("POST", "/boxes/one/stop", "{}").want(t, 204)
	if a := <-under; a.StatusCode != 400 || !strings.Contains(a.body, `"error":"NotReady"`) || !strings.Contains(a.body, "was stopped") {
		t.Errorf("the command was answered with %d %s", a.StatusCode, a.body)
	}
	if _, text, err := exec.ReadMessage(); err != nil || string(text) != `{"type":"error","error":"the sandbox was stopped","error_type":"CommandError"}` {
		t.Errorf("got %s, %v", text, err)
	}
	for _, c := range []*websocket.Conn{exec, tunnel} {
		if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
			t.Errorf("got %v", err)
		}
	}
	f.do("GET", "/boxes/one/status", "").want(t, 200, `"stopped"`)
}

// A daemon that sends without end is cut where a message ends.
func TestStopWhileSending(t *testing.T) {
	text := strings.Repeat("x", 100<<10) // more than passes at once
	h := &host{daemon: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for c.WriteMessage(websocket.TextMessage, []byte(text)) == nil {
		}
	})}
	f := serve(t, h, nil)
	b := f.box("one")
	c, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(b.DataplaneURL, "http")+"/execute/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, _, err := c.ReadMessage(); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan int, 1)
	go func() {
		a, _ := f.send(context.Background(), "POST", "/boxes/one/stop", "{}")
		stopped <- a.StatusCode
	}()
	var last string
	for {
		_, got, err := c.ReadMessage()
		if err != nil {
			if !websocket.IsCloseError(err, websocket.CloseNormalClosure) || !strings.Contains(last, "the sandbox was stopped") {
				t.Errorf("the end: %v after %.80q", err, last)
			}
			break
		}
		last = string(got)
		if len(last) != len(text) && !strings.Contains(last, "error") {
			t.Fatalf("a torn message of %d bytes", len(last))
		}
	}
	if got := <-stopped; got != 204 {
		t.Errorf("got %d", got)
	}
}

// Of a daemon only the data plane can be reached.
func TestDaemonPaths(t *testing.T) {
	f := serve(t, &host{}, nil)
	b := f.box("one")
	for _, name := range []string{"execute", "upload", "download", "glob", "grep", "tunnel", "execute/ws"} {
		f.do("POST", path(b, "/"+name+"?a=b"), "{}").want(t, 200, "POST /"+name+"?a=b")
	}
	for _, name := range []string{"", "connect?port=1", "config", "activity", "execute/", "execute/../config", "execute%2f..%2fconfig", "%63onfig", "download/x"} {
		f.do("PUT", path(b, "/"+name), "{}").want(t, 404, `"error":"NotFound"`)
	}
}

// Clients are told, too, when another server on the state folder stops or
// deletes a sandbox, although the daemon says that they can come back.
func TestStopByPeer(t *testing.T) {
	for _, c := range []struct{ method, path, want string }{
		{"POST", "/boxes/one/stop", "the sandbox was stopped"},
		{"DELETE", "/boxes/one", "the sandbox was deleted"},
	} {
		h := &host{}
		ended := make(chan struct{})
		h.ending = sync.OnceFunc(func() { close(ended) })
		h.daemon = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			conn, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
			if err != nil {
				return
			}
			defer conn.Close()
			conn.WriteMessage(websocket.TextMessage, []byte("hello"))
			<-ended
			conn.WriteMessage(websocket.TextMessage, []byte("last words"))
			conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseGoingAway, ""), time.Time{})
		})
		f := serve(t, h, nil)
		other := serve(t, h, func(o *server.Options) { o.StateDir = f.dir })
		conn, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(f.box("one").DataplaneURL, "http")+"/execute/ws", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, text, err := conn.ReadMessage(); err != nil || string(text) != "hello" {
			t.Fatal(string(text), err)
		}
		other.do(c.method, c.path, "").want(t, 204)
		last := ""
		for {
			_, text, err := conn.ReadMessage()
			if err == nil {
				last = string(text)
				continue
			}
			if !websocket.IsCloseError(err, websocket.CloseNormalClosure) || !strings.Contains(last, c.want) {
				t.Errorf("%s %s: %v after %s", c.method, c.path, err, last)
			}
			break
		}
	}
}
