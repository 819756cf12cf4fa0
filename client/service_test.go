package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file tests the URLs of what runs in a sandbox.

func serviceAnswer(url, token, expires string) answer {
	return answer{200, fmt.Sprintf(`{"browser_url":"%s/b?%s","service_url":%q,"token":%q,"expires_at":%q}`, url, token, url, token, expires), nil}
}

func TestRequestsForURLs(t *testing.T) {
	const made = `{"service_url":"https://s","browser_url":"https://b","token":"t"}`
	for _, x := range []struct {
		what, answer, want string
		do                 func(c *Client) (any, error)
	}{
		{"service", made, `POST /v2/sandboxes/boxes/a%20b/service-url {"port":80,"expires_in_seconds":600}`, func(c *Client) (any, error) {
			return c.Service(t.Context(), "a b", wire.ServiceURLRequest{Port: 80})
		}},
		{"service for a while", made, `POST /v2/sandboxes/boxes/a/service-url {"port":65535,"expires_in_seconds":1,"embed_origins":["https://o"]}`, func(c *Client) (any, error) {
			return c.Service(t.Context(), "a", wire.ServiceURLRequest{Port: 65535, ExpiresInSeconds: new(1), EmbedOrigins: []string{"https://o"}})
		}},
		{"service with a login", `{"browser_url":"https://b","access":"workspace"}`, `POST /v2/sandboxes/boxes/a/service-url {"port":80,"access":"workspace"}`, func(c *Client) (any, error) {
			s, err := c.Service(t.Context(), "a", wire.ServiceURLRequest{Port: 80, Access: "workspace"})
			if err == nil {
				wantEqual(t, "URL", s.URL(), "https://b")
				_, err := s.Do(t.Context(), "GET", "/", nil, nil)
				wantKind(t, err, ErrValidation)
			}
			return s, err
		}},
		{"list", `{"items":[]}`, `GET /v2/sandboxes/boxes/a%20b/service-urls `, func(c *Client) (any, error) { return c.ServiceURLs(t.Context(), "a b") }},
		{"revoke", ``, `DELETE /v2/sandboxes/boxes/a/service-urls?port=80 `, func(c *Client) (any, error) {
			return nil, c.RevokeServiceURLs(t.Context(), "a", 80)
		}},
		{"revoke all", ``, `DELETE /v2/sandboxes/boxes/a/service-urls `, func(c *Client) (any, error) {
			return nil, c.RevokeServiceURLs(t.Context(), "a", 0)
		}},
		{"download", `{"download_url":"https://d"}`, `POST /v2/sandboxes/boxes/a/download-url {"path":"/f"}`, func(c *Client) (any, error) {
			d, err := c.DownloadURL(t.Context(), "a", wire.DownloadURLRequest{Path: "/f"})
			if err == nil {
				wantEqual(t, "link", *d, wire.DownloadURL{DownloadURL: "https://d"})
			}
			return d, err
		}},
		{"download with everything", `{}`, `POST /v2/sandboxes/boxes/a/download-url {"path":"f","expires_in_seconds":1,"content_type":"text/x","content_disposition":"inline"}`, func(c *Client) (any, error) {
			return c.DownloadURL(t.Context(), "a", wire.DownloadURLRequest{Path: "f", ExpiresInSeconds: new(1), ContentType: "text/x", ContentDisposition: "inline"})
		}},
	} {
		wantRequest(t, x.what, x.answer, x.want, x.do)
	}
}

func TestPagesOfServiceURLs(t *testing.T) {
	c, s := serve(t, answer{200, `{"items":[{"port":1,"access":"token"}],"next_cursor":"a&b"}`, nil}, answer{200, `{"items":[{"port":2,"access":"workspace"}],"next_cursor":null}`, nil})
	got, err := c.ServiceURLs(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "ports", got, []wire.ServiceGrant{{Port: 1, Access: "token"}, {Port: 2, Access: "workspace"}})
	wantEqual(t, "second request", s.asked()[1].uri, "/v2/sandboxes/boxes/a/service-urls?cursor=a%26b")
}

func TestURLsThatAreRefused(t *testing.T) {
	c, s := serve(t, answer{200, `{}`, nil})
	for _, r := range []wire.ServiceURLRequest{{}, {Port: -1}, {Port: 65536}, {Port: 80, ExpiresInSeconds: new(0)}, {Port: 80, Access: "all"},
		{Port: 80, Access: "restricted", ExpiresInSeconds: new(60)}} {
		_, err := c.Service(t.Context(), "a", r)
		wantKind(t, err, ErrValidation)
	}
	for _, r := range []wire.DownloadURLRequest{{}, {Path: "a\x00"}, {Path: "f", ExpiresInSeconds: new(0)}, {Path: "f", ContentDisposition: "all"}} {
		_, err := c.DownloadURL(t.Context(), "a", r)
		wantKind(t, err, ErrValidation)
	}
	wantEqual(t, "requests", len(s.asked()), 0)
	for what, body := range map[string]string{"service_url": `{"token":"t"}`, "token": `{"service_url":"https://s"}`} {
		c, _ := serve(t, answer{200, body, nil})
		_, err := c.Service(t.Context(), "a", wire.ServiceURLRequest{Port: 80})
		if e := wantKind(t, err, ErrClient); !strings.Contains(e.Error(), "has no "+what) {
			t.Errorf("got %v", e)
		}
	}
}

func TestStatusMapsOfURLs(t *testing.T) {
	missing := row{404, `{}`, ErrNotFound, Error{ResourceType: "sandbox"}}
	checkMap(t, "service", func(c *Client, _ *Sandbox) error {
		_, err := c.Service(context.Background(), "a", wire.ServiceURLRequest{Port: 80})
		return err
	}, over(missing))
	checkMap(t, "download", func(c *Client, _ *Sandbox) error {
		_, err := c.DownloadURL(context.Background(), "a", wire.DownloadURLRequest{Path: "f"})
		return err
	}, over(missing))
}

// Sixty seconds before its end, the token and all that goes with it are replaced.
func TestAServiceRefreshesItself(t *testing.T) {
	minted := 0
	layout := time.RFC3339
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		minted++
		io.WriteString(w, serviceAnswer(fmt.Sprint("http://s", minted), fmt.Sprint("t", minted), time.Now().UTC().Add(10*time.Minute).Format(layout)).body)
	})
	for _, layout = range []string{time.RFC3339, "2006-01-02T15:04:05.000000"} { // without a zone it is UTC
		minted = 0
		inBubble(t, Options{}, handler, func(t *testing.T, c *Client) {
			s, err := c.Service(t.Context(), "a", wire.ServiceURLRequest{Port: 80})
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range []struct {
				after time.Duration
				want  int
			}{{0, 1}, {9*time.Minute - time.Second, 1}, {time.Second, 2}, {0, 2}, {time.Hour, 3}} {
				time.Sleep(x.after)
				var looking sync.WaitGroup
				for range 4 { // and once for all who ask
					looking.Go(func() {
						v, err := s.Values(t.Context())
						if err != nil {
							t.Error(err)
						}
						wantEqual(t, "values", v.ServiceURL+" "+v.Token+" "+v.BrowserURL, fmt.Sprintf("http://s%d t%[1]d http://s%[1]d/b?t%[1]d", x.want))
					})
				}
				looking.Wait()
			}
			wantEqual(t, "URL and text", s.URL()+fmt.Sprintf(" %v %+v", s, s), "http://s1 service at http://s1 service at http://s1")
		})
	}
}

func TestAServiceWithoutAnEnd(t *testing.T) {
	for _, end := range []string{"", "soon"} {
		c, script := serve(t, serviceAnswer("http://s", "t", end))
		s, err := c.Service(t.Context(), "a", wire.ServiceURLRequest{Port: 80})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Values(t.Context()); err != nil {
			t.Error(err)
		}
		wantEqual(t, "requests", len(script.asked()), 1)
	}
}

func TestAServiceThatCannotBeRefreshed(t *testing.T) {
	c, _ := serve(t, serviceAnswer("http://s", "t", "2001-01-01T00:00:00Z"), answer{404, `{}`, nil})
	s, err := c.Service(t.Context(), "a", wire.ServiceURLRequest{Port: 80})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Values(t.Context())
	wantEqual(t, "resource", wantKind(t, err, ErrNotFound).ResourceType, "sandbox")
	_, err = s.Do(t.Context(), "GET", "/", nil, nil)
	wantKind(t, err, ErrNotFound)
	s.using <- struct{}{} // somebody else is at it
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Values(ctx); err != context.Canceled {
		t.Errorf("got %v", err)
	}
}

func TestRequestsToAService(t *testing.T) {
	there := &script{answers: []answer{{200, "hello", http.Header{"X-A": {"1"}}}, {503, "busy", nil}, {302, "", http.Header{"Location": {"/x"}}}, {0, "", nil}}}
	server := httptest.NewServer(there)
	defer server.Close()
	c, _ := serve(t, serviceAnswer(server.URL+"/base/", "secret", ""))
	s, err := c.Service(t.Context(), "a", wire.ServiceURLRequest{Port: 80})
	if err != nil {
		t.Fatal(err)
	}
	for i, x := range []struct {
		method, path, body, want string
		status                   int
	}{
		{"POST", "/p/q?r=1", "text", "POST /base/p/q?r=1 text", 200},
		{"GET", "", "", "GET /base/ ", 503},
		{"DELETE", "z", "", "DELETE /base/z ", 302},
	} {
		var body io.Reader
		if x.body != "" {
			body = strings.NewReader(x.body)
		}
		response, err := s.Do(t.Context(), x.method, x.path, http.Header{"x-langsmith-sandbox-service-token": {"mine"}, "X-Mine": {"2"}}, body)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(response.Body)
		if err != nil || string(text) != there.answers[i].body || response.StatusCode != x.status {
			t.Errorf("got %d %q, %v", response.StatusCode, text, err)
		}
		response.Body.Close()
		asked := there.asked()
		if len(asked) != i+1 {
			t.Fatalf("%d requests were sent, want %d", len(asked), i+1)
		}
		r := asked[i]
		wantEqual(t, "request", r.method+" "+r.uri+" "+r.body, x.want)
		for name, want := range map[string][]string{ServiceTokenHeader: {"secret"}, "X-Api-Key": nil, "X-Mine": {"2"}, "User-Agent": {"sbx-star"}} {
			wantEqual(t, name, r.header[name], want)
		}
		if x.body != "" {
			wantEqual(t, "length", r.header.Get("Content-Length"), "4")
		}
	}
	_, err = s.Do(t.Context(), "POST", "/", nil, strings.NewReader("x"))
	if e := wantKind(t, err, ErrConnection); strings.Contains(e.Error(), "secret") {
		t.Errorf("the token is shown: %v", e)
	}
	_, err = s.Do(t.Context(), "BAD METHOD", "/", nil, nil)
	wantKind(t, err, ErrValidation)
}

// §1.3, for the token.
func TestTheTokenStaysEncrypted(t *testing.T) {
	c, err := New(Options{Endpoint: "https://api.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	s := &Service{client: c, using: make(chan struct{}, 1), values: wire.ServiceURL{ServiceURL: "http://s.example.com", Token: "t"}}
	_, err = s.Do(t.Context(), "GET", "/", nil, nil)
	if e := wantKind(t, err, ErrClient); !strings.Contains(e.Error(), "https") {
		t.Errorf("got %v", e)
	}
}

func TestAServiceThatIsSilent(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "service-url") {
			io.WriteString(w, serviceAnswer(pipeURL, "t", "").body)
			return
		}
		<-r.Context().Done()
	})
	inBubble(t, Options{}, handler, func(t *testing.T, c *Client) {
		s, err := c.Service(t.Context(), "a", wire.ServiceURLRequest{Port: 80})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_, err = s.Do(t.Context(), "GET", "/", nil, nil)
		if e := wantKind(t, err, ErrConnection); !errors.Is(e, errStalled) {
			t.Errorf("got %v", e)
		}
		wantEqual(t, "time", time.Since(start), time.Minute)
		why := errors.New("why")
		if _, err := s.Do(after(t, time.Second, why), "GET", "/", nil, nil); err != why {
			t.Errorf("got %v", err)
		}
	})
}
