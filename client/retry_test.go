package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file tests which requests are sent again, when, and what is made of a
// repetition's answer (protocol.md §4.1).

// operations are calls of every policy, each on the sandbox's own server.
var operations = map[policy]map[string]func(context.Context, *Sandbox) error{
	idempotent: {
		"GET": func(ctx context.Context, b *Sandbox) error { _, err := b.client.GetSandbox(ctx, "a"); return err },
		"PATCH": func(ctx context.Context, b *Sandbox) error {
			_, err := b.client.UpdateSandbox(ctx, "a", wire.BoxUpdate{})
			return err
		},
		"DELETE": func(ctx context.Context, b *Sandbox) error { return b.client.DeleteSandbox(ctx, "a") },
		"upload": func(ctx context.Context, b *Sandbox) error { return b.Upload(ctx, "f", strings.NewReader("text")) },
		"download": func(ctx context.Context, b *Sandbox) error {
			body, err := b.Download(ctx, "f")
			if err == nil {
				err = body.Close()
			}
			return err
		},
	},
	creating: {
		"create": func(ctx context.Context, b *Sandbox) error {
			_, err := b.client.CreateSandbox(ctx, wire.BoxCreate{})
			return err
		},
	},
	namedCreating: {
		"create by name": func(ctx context.Context, b *Sandbox) error {
			_, err := b.client.CreateSandbox(ctx, wire.BoxCreate{Name: "a"})
			return err
		},
		"template": func(ctx context.Context, b *Sandbox) error {
			_, err := b.client.CreateTemplate(ctx, wire.TemplateCreate{Name: "a"})
			return err
		},
	},
	executing: {
		"execute": func(ctx context.Context, b *Sandbox) error {
			_, err := b.Exec(ctx, RunOptions{Command: "x"})
			return err
		},
	},
}

func TestWhatIsRepeated(t *testing.T) {
	repeated := map[policy][]int{
		idempotent: {429, 502, 503, 504}, creating: {429, 503}, namedCreating: {429, 502, 503, 504},
	}
	for policy, calls := range operations {
		for name, do := range calls {
			for _, status := range []int{0, 301, 400, 401, 403, 404, 408, 409, 422, 429, 500, 501, 502, 503, 504} {
				c, s := serve(t, answer{status, `{"detail":"no"}`, nil}, answer{200, `{}`, nil})
				err := do(t.Context(), boxAt(c, s.url))
				again := false
				for _, r := range repeated[policy] {
					again = again || r == status
				}
				if got := len(s.asked()) == 2; got != again || again != (err == nil) {
					t.Errorf("%s after %d: repeated %v, want %v; %v", name, status, got, again, err)
				}
			}
		}
	}
}

func TestTheLastAnswerIsTheError(t *testing.T) {
	c, s := serve(t, answer{503, `{"detail":"first"}`, nil}, answer{503, `{"detail":"second"}`, nil}, answer{502, `{"detail":"third"}`, nil}, answer{504, `{"detail":"fourth"}`, nil})
	_, err := c.GetSandbox(t.Context(), "a")
	e := wantKind(t, err, ErrClient)
	wantEqual(t, "error", fmt.Sprint(e.Status, " ", e), "504 fourth")
	wantEqual(t, "requests", s.methods(), "GET GET GET GET")
}

func TestRetriesCanBeTurnedOff(t *testing.T) {
	c, s := serve(t, answer{503, `{}`, nil})
	once, err := New(Options{Endpoint: c.Endpoint(), MaxRetries: new(int)})
	if err != nil {
		t.Fatal(err)
	}
	defer once.Close()
	_, err = once.Info(t.Context())
	wantKind(t, err, ErrClient)
	wantEqual(t, "requests", len(s.asked()), 1)
}

// The vectors of §14.
func TestWaitsBetweenRepetitions(t *testing.T) {
	for _, x := range []struct {
		status     int
		retryAfter string
		want       []time.Duration
	}{
		{502, "", inTurn(1, 2, 4)},
		{503, "", inTurn(1, 2, 4)},
		{504, "9", inTurn(1, 2, 4)},
		{429, "2", inTurn(2, 4, 8)},
		{429, "0.5", inTurn(.5, 1, 2)},
		{429, "0", inTurn(0, 0, 0)},
		{429, "-3", inTurn(0, 0, 0)},
		{429, "", inTurn(1, 2, 4)},
		{429, "soon", inTurn(1, 2, 4)},
		{429, "NaN", inTurn(1, 2, 4)},
		{429, "Mon, 02 Jan 2006 15:04:05 GMT", inTurn(0, 0, 0)},
		{429, "20", inTurn(20, 30, 30)},
		{429, "1e30", inTurn(30, 30, 30)},
		{429, time.Now().Add(time.Hour).UTC().Format(http.TimeFormat), inTurn(30, 30, 30)},
	} {
		c, s := serve(t, answer{x.status, `{}`, http.Header{"Retry-After": {x.retryAfter}}})
		if _, err := c.Info(t.Context()); err == nil {
			t.Fatal("no error")
		}
		wantEqual(t, fmt.Sprint(x.status, " ", x.retryAfter), s.slept(), x.want)
	}
}

func TestBackoff(t *testing.T) {
	for _, x := range []struct {
		n, status int
		asked     time.Duration
		jitter    float64
		want      time.Duration
	}{
		{0, 503, 0, 0.5, 1500 * time.Millisecond},
		{3, 503, 0, 0, 8 * time.Second},
		{4, 503, 0, 0.9, 10 * time.Second},
		{1 << 20, 503, 0, 0, 10 * time.Second},
		{64, 0, 0, 0, 10 * time.Second},
		{0, 429, 0, 0.25, 250 * time.Millisecond},
		{1, 429, -1, 0, 2 * time.Second},
		{1, 429, 2 * time.Second, 0.5, 4500 * time.Millisecond},
		{100, 429, time.Second, 0, 30 * time.Second},
		{100, 429, 0, 0, 0},
	} {
		wantEqual(t, fmt.Sprint(x), backoff(x.n, x.status, x.asked, x.jitter), x.want)
	}
}

func TestRetryAfterADate(t *testing.T) {
	at := time.Now().Add(100 * time.Second)
	got := retryAfter(http.Header{"Retry-After": {at.UTC().Format(http.TimeFormat)}})
	if got < 90*time.Second || got > 100*time.Second {
		t.Errorf("got %v", got)
	}
}

func TestAServerThatCannotBeReached(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + listener.Addr().String()
	listener.Close()
	for _, calls := range operations {
		for name, do := range calls {
			var s script
			c := clientOf(t, Options{Endpoint: url, APIKey: apiKey}, &s.mu, &s.waits)
			err := do(t.Context(), boxAt(c, url))
			e := wantKind(t, err, ErrConnection)
			if !strings.Contains(e.Error(), "4 attempts") || errors.Unwrap(e) == nil {
				t.Errorf("%s: got %v", name, e)
			}
			wantEqual(t, name, s.slept(), []time.Duration{time.Second, 2 * time.Second, 4 * time.Second})
		}
	}
}

func TestAServerThatIsReachedAtLast(t *testing.T) {
	for _, calls := range operations {
		for name, do := range calls {
			s := &script{answers: []answer{{200, `{}`, nil}}}
			server := httptest.NewServer(s)
			var dials atomic.Int32
			c := clientOf(t, Options{Endpoint: server.URL, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				if dials.Add(1) < 4 {
					return nil, errors.New("refused")
				}
				return new(net.Dialer).DialContext(ctx, network, addr)
			}}, &s.mu, &s.waits)
			if err := do(t.Context(), boxAt(c, server.URL)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			wantEqual(t, name, len(s.asked()), 1)
			c.Close()
			server.Close()
		}
	}
}

// A connection that is never made is given up and tried again; a request that
// was sent and is not answered is given up for good.
func TestTimeouts(t *testing.T) {
	inBubble(t, Options{Timeout: 3 * time.Second}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
	}), func(t *testing.T, c *Client) {
		start := time.Now()
		_, err := c.GetSandbox(t.Context(), "a")
		e := wantKind(t, err, ErrConnection)
		wantEqual(t, "unanswered", time.Since(start), 3*time.Second)
		wantEqual(t, "error", e.Error(), "GET http://localhost/v2/sandboxes/boxes/a: timed out")

		start = time.Now()
		_, err = boxAt(c, pipeURL).Exec(t.Context(), RunOptions{Command: "x", Timeout: 5 * time.Second})
		wantKind(t, err, ErrConnection)
		wantEqual(t, "execute", time.Since(start), 15*time.Second)

		start = time.Now()
		_, err = c.CreateSandbox(t.Context(), wire.BoxCreate{WaitForReady: true})
		wantKind(t, err, ErrConnection)
		wantEqual(t, "create", time.Since(start), 60*time.Second)

		start = time.Now()
		long := -1000
		_, err = c.CreateSandbox(t.Context(), wire.BoxCreate{WaitForReady: true, Timeout: &long})
		wantKind(t, err, ErrConnection)
		wantEqual(t, "create with a wait that makes no sense", time.Since(start), 30*time.Second)

		c.http.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		start = time.Now()
		_, err = c.GetSandbox(t.Context(), "a")
		wantKind(t, err, ErrConnection)
		wantEqual(t, "unreachable", time.Since(start), 4*3*time.Second+7*time.Second)
	})
}

func TestCancellationEndsAWait(t *testing.T) {
	inBubble(t, Options{}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(503)
	}), func(t *testing.T, c *Client) {
		why := &Error{Kind: ErrClient, Message: "why"}
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(500*time.Millisecond, func() { cancel(why) })
		start := time.Now()
		if _, err := c.GetSandbox(ctx, "a"); err != why {
			t.Errorf("got %v", err)
		}
		wantEqual(t, "time", time.Since(start), 500*time.Millisecond)
	})
}

func TestCancellationEndsARequest(t *testing.T) {
	inBubble(t, Options{}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
	}), func(t *testing.T, c *Client) {
		for _, calls := range operations {
			for name, do := range calls {
				why := &Error{Kind: ErrClient, Message: "why"}
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(time.Second, func() { cancel(why) })
				start := time.Now()
				if err := do(ctx, boxAt(c, pipeURL)); err != why || why.ambiguous {
					t.Errorf("%s: got %v", name, err)
				}
				wantEqual(t, name, time.Since(start), time.Second)
			}
		}
	})
}

// §4.1: a name that is taken after an answer was lost may be our own.
func TestACreationWhoseAnswerWasLost(t *testing.T) {
	lost, taken := answer{502, "<html>", nil}, answer{409, form("Conflict", "taken"), nil}
	got := func(box string) answer { return answer{200, box, nil} }
	for what, x := range map[string]struct {
		ask     wire.BoxCreate
		answers []answer
		methods string
		kind    *Kind
	}{
		"ours, ready":         {wire.BoxCreate{Name: "a", TemplateName: "t", WaitForReady: true}, []answer{lost, taken, got(`{"name":"a","template_name":"t"}`)}, "POST POST GET", nil},
		"ours, after a 504":   {wire.BoxCreate{Name: "a"}, []answer{{504, "", nil}, taken, got(`{"name":"a"}`)}, "POST POST GET", nil},
		"ours, not waited":    {wire.BoxCreate{Name: "a"}, []answer{lost, taken, got(`{"name":"a","status":"provisioning"}`)}, "POST POST GET", nil},
		"ours, not ready":     {wire.BoxCreate{Name: "a", WaitForReady: true}, []answer{lost, taken, got(`{"name":"a","status":"provisioning"}`), got(`{"status":"ready"}`), got(`{"name":"a"}`)}, "POST POST GET GET GET", nil},
		"ours, failed":        {wire.BoxCreate{Name: "a", WaitForReady: true}, []answer{lost, taken, got(`{"name":"a","status":"failed"}`), got(`{"status":"failed"}`)}, "POST POST GET GET", ErrCreation},
		"a third try":         {wire.BoxCreate{Name: "a"}, []answer{lost, {503, "", nil}, taken, got(`{"name":"a"}`)}, "POST POST POST GET", nil},
		"another's template":  {wire.BoxCreate{Name: "a", TemplateName: "t"}, []answer{lost, taken, got(`{"name":"a","template_name":"u"}`)}, "POST POST GET", ErrAlreadyExists},
		"another's snapshot":  {wire.BoxCreate{Name: "a", SnapshotID: "s"}, []answer{lost, taken, got(`{"name":"a"}`)}, "POST POST GET", ErrAlreadyExists},
		"gone again":          {wire.BoxCreate{Name: "a"}, []answer{lost, taken, {404, "", nil}}, "POST POST GET", ErrAlreadyExists},
		"nothing lost":        {wire.BoxCreate{Name: "a"}, []answer{taken}, "POST", ErrAlreadyExists},
		"refused, then taken": {wire.BoxCreate{Name: "a"}, []answer{{503, "", nil}, taken}, "POST POST", ErrAlreadyExists},
	} {
		c, s := serve(t, x.answers...)
		box, err := c.CreateSandbox(t.Context(), x.ask)
		if x.kind != nil {
			wantKind(t, err, x.kind)
		} else if err != nil || box.Name != "a" {
			t.Errorf("%s: got %+v, %v", what, box, err)
		}
		wantEqual(t, what, s.methods(), x.methods)
	}
}

func TestATemplateWhoseAnswerWasLost(t *testing.T) {
	ask := wire.TemplateCreate{Name: "a", Image: "i", Resources: wire.Resources{CPU: "1", Memory: "1Gi"}, VolumeMounts: []wire.VolumeMount{{VolumeName: "v", MountPath: "/v"}}}
	lost, taken := answer{502, "", nil}, answer{409, form("Conflict", "taken"), nil}
	const ours = `{"name":"a","image":"i","resources":{"cpu":"1","memory":"1Gi","storage":null},"volume_mounts":[{"volume_name":"v","mount_path":"/v"}]}`
	for what, x := range map[string]struct {
		answers []answer
		ok      bool
	}{
		"ours":             {[]answer{lost, taken, {200, ours, nil}}, true},
		"another's":        {[]answer{lost, taken, {200, strings.Replace(ours, "1Gi", "2Gi", 1), nil}}, false},
		"another's mounts": {[]answer{lost, taken, {200, strings.Replace(ours, "/v", "/w", 1), nil}}, false},
		"nothing lost":     {[]answer{taken, {200, ours, nil}}, false},
	} {
		c, _ := serve(t, x.answers...)
		made, err := c.CreateTemplate(t.Context(), ask)
		if x.ok && (err != nil || made.Image != "i") {
			t.Errorf("%s: got %+v, %v", what, made, err)
		}
		if !x.ok {
			wantKind(t, err, ErrAlreadyExists)
		}
	}
}

func TestADeletionWhoseAnswerWasLost(t *testing.T) {
	for what, do := range map[string]func(*Client) error{
		"sandbox":  func(c *Client) error { return c.DeleteSandbox(context.Background(), "a") },
		"template": func(c *Client) error { return c.DeleteTemplate(context.Background(), "a") },
	} {
		c, _ := serve(t, answer{502, "", nil}, answer{404, `{}`, nil})
		if err := do(c); err != nil {
			t.Errorf("%s, lost: %v", what, err)
		}
		for _, first := range []int{404, 503, 429} {
			c, _ := serve(t, answer{first, "", nil}, answer{404, `{}`, nil})
			wantKind(t, do(c), ErrNotFound)
		}
	}
}

// A POST is not sent twice because the answer's connection broke.
func TestAConnectionThatBreaksAfterTheRequest(t *testing.T) {
	for _, calls := range operations {
		for name, do := range calls {
			c, s := serve(t, answer{0, "", nil})
			wantKind(t, do(t.Context(), boxAt(c, s.url)), ErrConnection)
			if n := len(s.asked()); n != 1 {
				t.Errorf("%s: sent %d times", name, n)
			}
		}
	}
}

// Waiting for an answer that never ends costs no more than its timeout.
func TestAStalledAnswer(t *testing.T) {
	inBubble(t, Options{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"name":`)
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}), func(t *testing.T, c *Client) {
		start := time.Now()
		_, err := c.GetSandbox(t.Context(), "a")
		e := wantKind(t, err, ErrConnection)
		wantEqual(t, "time", time.Since(start), 10*time.Second)
		if !strings.Contains(e.Error(), "GET /v2/sandboxes/boxes/a: timed out") {
			t.Errorf("got %v", e)
		}
	})
}
