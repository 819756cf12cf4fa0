package client

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the URLs of what runs in a sandbox: those of its ports,
// which need a token that lapses, and those of its files (protocol.md §2.8,
// §2.9, §16.8).

// ServiceTokenHeader carries the token of a service URL.
const ServiceTokenHeader = "X-Langsmith-Sandbox-Service-Token"

// refreshBefore is how long before its end a token is replaced (§16.8).
const refreshBefore = time.Minute

// defaultServiceTTL is asked for where the caller names none, because servers
// up to head want to be told.
const defaultServiceTTL = 600 // seconds

// Service reaches a port of a sandbox over HTTP. It asks for a new token when
// the one at hand is about to lapse. Its methods may be called from several
// goroutines.
type Service struct {
	client  *Client
	name    string
	request wire.ServiceURLRequest
	url     string

	using  chan struct{} // held while what follows is looked at or replaced
	values wire.ServiceURL
	until  time.Time // when values have to be replaced; zero is never
}

// Service returns the service URL of a port. One with access is for browsers,
// which log in, and has neither a token nor an end.
func (c *Client) Service(ctx context.Context, name string, r wire.ServiceURLRequest) (*Service, error) {
	switch {
	case r.Port < 1 || r.Port > 65535:
		return nil, argumentError("port %d is not between 1 and 65535", r.Port)
	case r.Access != "" && r.Access != "restricted" && r.Access != "workspace":
		return nil, argumentError("access is %q, and must be restricted or workspace", r.Access)
	case r.Access != "" && r.ExpiresInSeconds != nil:
		return nil, argumentError("a service URL with access never expires: it excludes expires_in_seconds")
	case r.ExpiresInSeconds != nil && *r.ExpiresInSeconds < 1:
		return nil, argumentError("expires_in_seconds is %d, and must be positive", *r.ExpiresInSeconds)
	case r.Access == "" && r.ExpiresInSeconds == nil:
		r.ExpiresInSeconds = new(defaultServiceTTL)
	}
	s := &Service{client: c, name: name, request: r, using: make(chan struct{}, 1)}
	if err := s.refresh(ctx); err != nil {
		return nil, err
	}
	s.url = cmp.Or(s.values.ServiceURL, s.values.BrowserURL)
	return s, nil
}

// refresh replaces all the values together.
func (s *Service) refresh(ctx context.Context) error {
	made, err := send[wire.ServiceURL](ctx, s.client, call{method: http.MethodPost, path: s.client.path("boxes", s.name, "service-url"), body: s.request, errors: of("sandbox")})
	if err != nil {
		return err
	}
	missing := ""
	switch {
	case s.request.Access != "":
		if made.BrowserURL == "" && made.ServiceURL == "" {
			missing = "browser_url"
		}
	case made.ServiceURL == "":
		missing = "service_url"
	case made.Token == "":
		missing = "token"
	}
	if missing != "" {
		return &Error{Kind: ErrClient, Message: fmt.Sprintf("the server's answer to the request for a service URL of sandbox %s has no %s", s.name, missing)}
	}
	s.values, s.until = *made, time.Time{}
	if end, ok := parseTime(made.ExpiresAt); ok && s.request.Access == "" {
		s.until = end.Add(-refreshBefore)
	}
	return nil
}

// parseTime reads RFC 3339; a time without a zone is UTC (§2.8).
func parseTime(value string) (time.Time, bool) {
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05"} {
		if at, err := time.Parse(layout, value); err == nil {
			return at, true
		}
	}
	return time.Time{}, false
}

// String shows the URL and never the token.
func (s *Service) String() string { return "service at " + s.url }

// URL is the service's base URL, as the server gave it at first.
func (s *Service) URL() string { return s.url }

// Values are the URLs and the token, good for a minute at least unless the
// server gives less.
func (s *Service) Values(ctx context.Context) (wire.ServiceURL, error) {
	select {
	case s.using <- struct{}{}:
		defer func() { <-s.using }()
	case <-ctx.Done():
		return wire.ServiceURL{}, context.Cause(ctx)
	}
	if !s.until.IsZero() && !time.Now().Before(s.until) {
		if err := s.refresh(ctx); err != nil {
			return wire.ServiceURL{}, err
		}
	}
	return s.values, nil
}

// Do sends a request to the service and returns its answer, whatever the status.
// The path, which may have a query, is put below the service's URL. The token is
// the only credential that goes along. Nothing is sent twice, no redirect is
// followed, and the request ends when nothing has moved for a minute. The caller
// closes the answer's body.
func (s *Service) Do(ctx context.Context, method, path string, header http.Header, body io.Reader) (_ *http.Response, err error) {
	if s.request.Access != "" {
		return nil, argumentError("a service URL with access is for browsers, which log in; ask for one without, to send requests")
	}
	values, err := s.Values(ctx)
	if err != nil {
		return nil, err
	}
	url := strings.TrimRight(values.ServiceURL, "/") + "/" + strings.TrimLeft(path, "/")
	stall := newStall(ctx, fileTimeout)
	defer func() {
		if err != nil {
			stall.stop()
		}
	}()
	request, err := http.NewRequestWithContext(stall.ctx, method, url, body)
	if err != nil {
		return nil, argumentError("%s %s is no request: %v", method, url, err)
	}
	if request.Body != nil {
		request.Body = stall.reader(request.Body)
	}
	if again := request.GetBody; again != nil {
		request.GetBody = func() (io.ReadCloser, error) {
			body, err := again()
			return stall.reader(body), err
		}
	}
	request.Header = merge(http.Header{"User-Agent": {"sbx-star"}}, header, http.Header{ServiceTokenHeader: {values.Token}})
	if err = s.client.mayHoldKey(request.URL, request.Header); err != nil {
		return nil, err
	}
	response, err := s.client.http.Do(request)
	if err != nil {
		return nil, s.client.failed(ctx, request, err)
	}
	response.Body = stall.body(response)
	return response, nil
}

// ServiceURLs lists the ports of a sandbox that can be reached, by whatever URLs.
// Servers before the generation late answer ErrNotFound.
func (c *Client) ServiceURLs(ctx context.Context, name string) ([]wire.ServiceGrant, error) {
	var all []wire.ServiceGrant
	for query := (url.Values{}); ; {
		page, err := send[wire.ServiceGrantList](ctx, c, call{path: c.path("boxes", name, "service-urls"), query: query, errors: of("sandbox")})
		if err != nil {
			return nil, err
		}
		all = append(all, page.Items...)
		if page.NextCursor == nil || len(page.Items) == 0 {
			return all, nil
		}
		query.Set("cursor", *page.NextCursor)
	}
}

// RevokeServiceURLs ends the access to a port of a sandbox, or to all of them if
// it is 0: logins at once, while tokens are good until they expire.
func (c *Client) RevokeServiceURLs(ctx context.Context, name string, port int) error {
	query := url.Values{}
	if port != 0 {
		query.Set("port", strconv.Itoa(port))
	}
	return c.delete(ctx, call{path: c.path("boxes", name, "service-urls"), query: query, errors: of("sandbox")})
}

// DownloadURL makes a link to one file of a sandbox, which needs no credential
// and, unless r says when, never expires.
func (c *Client) DownloadURL(ctx context.Context, name string, r wire.DownloadURLRequest) (*wire.DownloadURL, error) {
	if err := validatePath(r.Path); err != nil {
		return nil, err
	}
	switch {
	case r.ExpiresInSeconds != nil && *r.ExpiresInSeconds < 1:
		return nil, argumentError("expires_in_seconds is %d, and must be positive", *r.ExpiresInSeconds)
	case r.ContentDisposition != "" && r.ContentDisposition != "attachment" && r.ContentDisposition != "inline":
		return nil, argumentError("content_disposition is %q, and must be attachment or inline", r.ContentDisposition)
	}
	return send[wire.DownloadURL](ctx, c, call{method: http.MethodPost, path: c.path("boxes", name, "download-url"), body: r, errors: of("sandbox")})
}
