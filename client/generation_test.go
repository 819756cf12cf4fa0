package client

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file tests how a generation is found out, and what only some of them
// have: starting, stopping and leases.

func TestGeneration(t *testing.T) {
	none, empty := answer{404, `{}`, nil}, answer{200, `{}`, nil}
	for what, x := range map[string]struct {
		answers []answer
		want    string
		methods string
	}{
		"ours":                     {[]answer{{200, `{"generations":["seed","classic","head","late"]}`, nil}}, wire.Late, "GET"},
		"ours, an older one":       {[]answer{{200, `{"generations":["seed","classic"]}`, nil}}, wire.Classic, "GET"},
		"ours, which does not say": {[]answer{empty}, wire.Late, "GET"},
		"no templates":             {[]answer{none, none}, wire.Head, "GET GET"},
		"templates":                {[]answer{none, empty, empty}, wire.Classic, "GET GET GET"},
		"templates only":           {[]answer{{405, "", nil}, empty, {404, form("NotImplemented", "none"), nil}}, wire.Seed, "GET GET GET"},
	} {
		c, s := serve(t, x.answers...)
		var asking sync.WaitGroup
		for range 3 {
			asking.Go(func() {
				if got, err := c.Generation(t.Context()); err != nil || got != x.want {
					t.Errorf("%s: got %q, %v", what, got, err)
				}
			})
		}
		asking.Wait()
		wantEqual(t, what, s.methods(), x.methods)
	}
}

func TestInfoIsAskedOnce(t *testing.T) {
	for _, status := range []int{200, 404, 405, 501} {
		c, s := serve(t, answer{status, `{"server":"sbx-star","generations":["late"]}`, nil})
		for range 2 {
			info, err := c.Info(t.Context())
			if status == 200 {
				wantEqual(t, "server", info.Server, "sbx-star")
			} else {
				wantKind(t, err, ErrNotFound)
			}
		}
		wantEqual(t, "requests", len(s.asked()), 1)
	}
}

func TestAGenerationThatCannotBeFoundOut(t *testing.T) {
	c, s := serve(t, answer{401, `{}`, nil}, answer{404, `{}`, nil}, answer{500, `{}`, nil}, answer{404, `{}`, nil})
	_, err := c.Generation(t.Context())
	wantKind(t, err, ErrAuthentication)
	_, err = c.Generation(t.Context())
	wantKind(t, err, ErrAPI)
	if got, err := c.Generation(t.Context()); err != nil || got != wire.Head {
		t.Errorf("got %q, %v", got, err)
	}
	wantEqual(t, "requests", len(s.asked()), 4) // what is known is not asked again
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c.probing <- struct{}{} // somebody else is at it
	if _, err := c.Generation(ctx); err != context.Canceled {
		t.Errorf("got %v", err)
	}
}

func TestStartAndStopOfASandbox(t *testing.T) {
	c, s := serve(t, answer{202, "", nil}, answer{200, `{"status":"provisioning"}`, nil}, answer{200, `{"status":"ready"}`, nil}, answer{200, `{"name":"a b"}`, nil}, answer{204, "", nil})
	box, err := c.StartSandbox(t.Context(), "a b", 0)
	if err != nil || box.Name != "a b" {
		t.Fatalf("got %+v, %v", box, err)
	}
	if err := c.StopSandbox(t.Context(), "a b"); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "waits", s.slept(), []time.Duration{time.Second})
	for i, want := range []string{"POST /v2/sandboxes/boxes/a%20b/start {}", "GET /v2/sandboxes/boxes/a%20b/status ", "GET /v2/sandboxes/boxes/a%20b/status ",
		"GET /v2/sandboxes/boxes/a%20b ", "POST /v2/sandboxes/boxes/a%20b/stop {}"} {
		r := s.asked()[i]
		wantEqual(t, "request", r.method+" "+r.uri+" "+r.body, want)
	}

	c, _ = serve(t, answer{202, "", nil}, answer{200, `{"status":"failed","status_message":"why"}`, nil})
	_, err = c.StartSandbox(t.Context(), "a", 0)
	wantEqual(t, "failed", wantKind(t, err, ErrCreation).Error(), "why")

	c, _ = serve(t, answer{202, "", nil}, answer{200, `{"status":"stopped"}`, nil})
	_, err = c.StartSandbox(t.Context(), "a", time.Nanosecond)
	wantEqual(t, "too late", wantKind(t, err, ErrTimeout).LastStatus, "stopped")
}

func TestRenewLease(t *testing.T) {
	wantRequest(t, "renew", ``, `POST /v2/sandboxes/leases/l%2F1/renew {}`, func(c *Client) (any, error) { return nil, c.RenewLease(t.Context(), "l/1") })
	wantRequest(t, "create", `{}`, `POST /v2/sandboxes/boxes {"wait_for_ready":false,"lease":{"id":"l","ttl_seconds":60}}`, func(c *Client) (any, error) {
		return c.CreateSandbox(t.Context(), wire.BoxCreate{Lease: &wire.Lease{ID: "l", TTLSeconds: 60}})
	})
}

func TestStatusMapsOfStartStopAndLeases(t *testing.T) {
	start := func(c *Client, _ *Sandbox) error { _, err := c.StartSandbox(context.Background(), "a", 0); return err }
	checkMap(t, "start", start, over(row{404, `{}`, ErrNotFound, Error{ResourceType: "sandbox"}}))
	stop := func(c *Client, _ *Sandbox) error { return c.StopSandbox(context.Background(), "a") }
	checkMap(t, "stop", stop, over(row{404, `{}`, ErrNotFound, Error{ResourceType: "sandbox"}}))
	renew := func(c *Client, _ *Sandbox) error { return c.RenewLease(context.Background(), "l") }
	checkMap(t, "renew", renew, over(row{404, `{}`, ErrNotFound, Error{ResourceType: "lease"}}))
}
