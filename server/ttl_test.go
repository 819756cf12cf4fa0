package server_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/server"
)

// This file tests what ends by itself (protocol.md §2.7, §15), by a clock that
// the test moves.

type clock struct{ passed atomic.Int64 }

func (c *clock) now() time.Time { return noon.Add(time.Duration(c.passed.Load())) }

// pass moves the clock and has the janitors of these servers look.
func (c *clock) pass(seconds int, janitors ...*fixture) {
	c.passed.Add(int64(time.Duration(seconds) * time.Second))
	for _, f := range janitors {
		f.server.Tidy()
	}
}

func (c *clock) set(o *server.Options) { o.Now = c.now }

// is fails unless a sandbox has this status, or is not there if that is "".
func (f *fixture) is(name, status string) {
	f.t.Helper()
	a := f.do("GET", "/boxes/"+name+"/status", "")
	if status == "" && a.StatusCode == 404 {
		return
	}
	if !strings.Contains(a.body, `"status":"`+status+`"`) {
		f.t.Fatalf("%s: want %q, got %d %s", name, status, a.StatusCode, a.body)
	}
}

// The steps are seconds that pass, and the status at their end; "" is gone.
func TestTTL(t *testing.T) {
	type step struct {
		seconds int
		status  string
	}
	for name, c := range map[string]struct {
		create string
		steps  []step
	}{
		"none":                     {``, []step{{100000000, "ready"}}},
		"hard":                     {`,"ttl_seconds":120`, []step{{119, "ready"}, {1, ""}}},
		"hard off":                 {`,"ttl_seconds":0,"idle_ttl_seconds":0`, []step{{100000, "ready"}}},
		"classic idle":             {`,"template_name":"t","idle_ttl_seconds":60`, []step{{69, "ready"}, {1, ""}}},
		"classic by ttl":           {`,"ttl_seconds":0,"idle_ttl_seconds":60`, []step{{70, ""}}},
		"earlier wins":             {`,"ttl_seconds":60,"idle_ttl_seconds":600`, []step{{60, ""}}},
		"idle":                     {`,"idle_ttl_seconds":60`, []step{{69, "ready"}, {1, "stopped"}, {100000000, "stopped"}}},
		"idle and then deleted":    {`,"idle_ttl_seconds":60,"delete_after_stop_seconds":120`, []step{{70, "stopped"}, {119, "stopped"}, {1, ""}}},
		"deleted only if stopped":  {`,"delete_after_stop_seconds":60`, []step{{100000, "ready"}}},
		"deletion after stop off":  {`,"idle_ttl_seconds":60,"delete_after_stop_seconds":0`, []step{{70, "stopped"}, {100000000, "stopped"}}},
		"lease":                    {`,"lease":{"id":"a","ttl_seconds":30}`, []step{{29, "ready"}, {1, ""}}},
		"lease of what is stopped": {`,"idle_ttl_seconds":60,"lease":{"id":"a","ttl_seconds":300}`, []step{{70, "stopped"}, {230, ""}}},
	} {
		t.Run(name, func(t *testing.T) {
			h, clock := &host{}, &clock{}
			f := serve(t, h, func(o *server.Options) { clock.set(o); o.BestEffort = true })
			other := serve(t, h, func(o *server.Options) { clock.set(o); o.StateDir = f.dir })
			f.do("POST", "/templates", `{"name":"t","image":"host"}`).want(t, 201)
			f.do("POST", "/boxes", `{"name":"x"`+c.create+`}`).want(t, 201)
			for _, step := range c.steps {
				clock.pass(step.seconds, other, f)
				other.is("x", step.status)
			}
			if last := c.steps[len(c.steps)-1].status; last == "" {
				f.empty(h)
			} else if want := map[string]int{"ready": 1, "stopped": 0}[last]; h.alive() != want {
				t.Errorf("%d daemons", h.alive())
			}
		})
	}
}

func TestTTLFields(t *testing.T) {
	clock := &clock{}
	f := serve(t, &host{}, func(o *server.Options) { clock.set(o); o.StopIdle, o.DeleteStopped = 10*time.Minute, 24*time.Hour })
	f.do("POST", "/boxes", `{"name":"head"}`).want(t, 201, `"idle_ttl_seconds":600`, `"delete_after_stop_seconds":86400`)
	f.do("POST", "/boxes", `{"name":"off","idle_ttl_seconds":0}`).want(t, 201, `"idle_ttl_seconds":0`)
	a := f.do("POST", "/boxes", `{"name":"classic","ttl_seconds":120}`)
	a.want(t, 201, `"ttl_seconds":120`, `"expires_at":"2026-01-02T12:02:00.123456Z"`)
	if strings.Contains(a.body, "idle_ttl") {
		t.Errorf("a classic one got an idle time: %s", a.body)
	}
	f.do("PATCH", "/boxes/classic", `{"idle_ttl_seconds":60}`).want(t, 200, `"ttl_seconds":120`, `"expires_at":"2026-01-02T12:02:00`, `"idle_ttl_seconds":60`)
	f.do("PATCH", "/boxes/classic", `{"ttl_seconds":60,"idle_ttl_seconds":null}`).want(t, 200, `"expires_at":"2026-01-02T12:01:00`, `"idle_ttl_seconds":60`)
	if a := f.do("PATCH", "/boxes/classic", `{"ttl_seconds":0,"idle_ttl_seconds":0}`); strings.Contains(a.body, "expires_at") {
		t.Errorf("switched off, it says %s", a.body)
	}
	clock.pass(3600, f)
	f.is("classic", "ready")
	f.is("off", "ready")
	f.is("head", "stopped")

	// To change the time after a stop moves the end of what is stopped.
	f.do("PATCH", "/boxes/head", `{"delete_after_stop_seconds":7200}`).want(t, 200, `"stopped_at":"2026-01-02T13:00:00.123456Z"`)
	clock.pass(7199, f)
	f.is("head", "stopped")
	f.do("PATCH", "/boxes/head", `{"delete_after_stop_seconds":3600}`).want(t, 200)
	clock.pass(0, f)
	f.is("head", "")
}

// A sandbox that is in use is not idle, for whatever server that is.
func TestActivity(t *testing.T) {
	h, clock := &host{}, &clock{}
	f := serve(t, h, clock.set)
	other := serve(t, h, func(o *server.Options) { clock.set(o); o.StateDir = f.dir })
	f.do("POST", "/boxes", `{"name":"x","idle_ttl_seconds":60}`).want(t, 201)
	b := other.boxes("x")
	for range 3 { // requests
		clock.pass(59, f, other)
		other.do("GET", path(b, "/download?path=x"), "").want(t, 200)
	}
	clock.pass(69, f, other)
	f.is("x", "ready")

	c := other.socket(b, "/execute/ws")
	exchange(t, c, "hello")
	for range 10 { // a command with a client
		clock.pass(59, other, f)
	}
	f.is("x", "ready")
	c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(time.Second))
	c.ReadMessage()
	eventually(t, "the client's end", func() bool { return !other.server.Used(b.ID) })
	clock.pass(60, f, other)
	f.is("x", "ready")
	clock.pass(10, f, other)
	f.is("x", "stopped")
	f.do("GET", path(b, "/download?path=x"), "").want(t, 200) // it wakes
	f.is("x", "ready")
	clock.pass(69, f, other)
	f.is("x", "ready")
	clock.pass(1, f, other)
	f.is("x", "stopped")

	clock.pass(100000)
	f.server.Close()
	other.server.Close()
	next := serve(t, h, func(o *server.Options) { clock.set(o); o.StateDir = f.dir })
	next.do("POST", "/boxes/x/start", "").want(t, 202)
	next.ready("x")
	next.server.Close()
	clock.pass(100000)
	last := serve(t, h, func(o *server.Options) { clock.set(o); o.StateDir = f.dir })
	last.server.Tidy()
	last.is("x", "ready") // nobody could use it meanwhile
	clock.pass(70, last)
	last.is("x", "stopped")
}

// Two janitors that look at the same moment end a sandbox once.
func TestTwoJanitors(t *testing.T) {
	h, clock := &host{}, &clock{}
	var stops atomic.Int64
	h.stopping = func() { stops.Add(1) }
	f := serve(t, h, clock.set)
	other := serve(t, h, func(o *server.Options) { clock.set(o); o.StateDir = f.dir })
	f.do("POST", "/boxes", `{"name":"x","idle_ttl_seconds":60}`).want(t, 201)
	clock.pass(100)
	done := make(chan struct{}, 2)
	for _, f := range []*fixture{f, other} {
		go func() { f.server.Tidy(); done <- struct{}{} }()
	}
	<-done
	<-done
	if f.is("x", "stopped"); stops.Load() != 1 {
		t.Errorf("it was stopped %d times", stops.Load())
	}
}

// What could not be ended is tried again.
func TestDueAndStuck(t *testing.T) {
	h, clock := &host{}, &clock{}
	f := serve(t, h, clock.set)
	f.do("POST", "/boxes", `{"name":"x","ttl_seconds":60}`).want(t, 201)
	h.jam(errors.New("device busy"))
	clock.pass(60, f)
	f.is("x", "failed")
	h.jam(nil)
	clock.pass(10, f)
	f.is("x", "")
	f.empty(h)
}

func TestLeases(t *testing.T) {
	h, clock := &host{}, &clock{}
	f := serve(t, h, clock.set)
	create := func(name, lease string) {
		t.Helper()
		if a := f.do("POST", "/boxes", `{"name":"`+name+`","lease":{"id":"`+lease+`","ttl_seconds":60}}`); a.StatusCode != 201 || strings.Contains(a.body, "lease") {
			t.Fatalf("create: %d %s", a.StatusCode, a.body)
		}
	}
	create("a1", "A")
	create("a2", "A")
	create("b", "B")
	clock.pass(50, f)
	if a := f.do("POST", "/leases/A/renew", "{}"); a.StatusCode != http.StatusNoContent {
		t.Fatalf("renew: %d %s", a.StatusCode, a.body)
	}
	clock.pass(10, f)
	f.is("a1", "ready")
	f.is("a2", "ready")
	f.is("b", "")
	f.do("POST", "/leases/B/renew", "").want(t, 404, `"error":"NotFound"`)

	// The lease of a client that died while no server ran.
	f.server.Close()
	clock.pass(60)
	next := serve(t, h, func(o *server.Options) { clock.set(o); o.StateDir = f.dir })
	eventually(t, "the end of what no client holds", func() bool {
		left, err := os.ReadDir(filepath.Join(f.dir, "boxes"))
		return err == nil && len(left) == 0
	})
	next.empty(h)
}
