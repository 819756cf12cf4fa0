// Package client is the Go client of the sandbox API: it manages templates and
// sandboxes, runs commands in them, moves their files and reaches their ports. It
// speaks all the generations of the protocol that protocol.md describes and finds
// out by itself what the server at hand can do.
//
// Every method takes a context and returns as soon as it ends. Failures are
// *Error values, told apart with errors.Is and the Err… kinds. The package
// reads no environment, but for the proxy's, and prints nothing.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// DefaultEndpoint is the hosted service.
const DefaultEndpoint = "https://api.smith.langchain.com/v2/sandboxes"

// The bounds on what is read from a server that may send anything.
const (
	maxAnswer      = 64 << 20 // JSON of a success
	maxErrorAnswer = 1 << 20
	maxErrorBody   = 16 << 10 // of it, to be kept
)

// Options configure a Client; the zero value talks to the hosted service
// without a key.
type Options struct {
	Endpoint   string        // base URL, which ends in /v2/sandboxes
	APIKey     string        // sent as X-Api-Key
	Headers    http.Header   // sent with every request and every upgrade
	Timeout    time.Duration // of a request without a longer one of its own; 0 means 10 s
	MaxRetries *int          // nil means 3

	// Dial opens the connections to the endpoint; nil means over TCP, and
	// through the proxy that the environment names.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	WebSocket WebSocketTimeouts
}

// Client talks to one server. It can be used from several goroutines.
type Client struct {
	base      *url.URL
	headers   http.Header // the key, then Options.Headers
	http      *http.Client
	dial      func(ctx context.Context, network, addr string) (net.Conn, error)
	timeout   time.Duration
	retries   int
	websocket WebSocketTimeouts

	// ignoresIDs is set once the server has started a command under another id
	// than the one it was given: it knows no idempotent start (§12).
	ignoresIDs atomic.Bool

	tunnels tunnelSessions

	probing    chan struct{} // held while what follows is looked at or found out
	generation string
	info       *wire.Info
	infoErr    error // ErrNotFound, from a server that has none

	// The clock of waits and the dice of their jitter, which tests replace.
	sleep  func(context.Context, time.Duration) error
	jitter func() float64
}

// New returns a client. It opens no connection.
func New(o Options) (*Client, error) {
	if o.Endpoint == "" {
		o.Endpoint = DefaultEndpoint
	}
	base, err := url.Parse(strings.TrimRight(o.Endpoint, "/"))
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" || strings.ContainsAny(o.Endpoint, "?#") {
		return nil, argumentError("endpoint %q is no http or https URL without a query", o.Endpoint)
	}
	headers := merge(http.Header{"User-Agent": {"sbx-star"}}, key(o.APIKey), o.Headers)
	if err := checkHeaders(headers); err != nil {
		return nil, err
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	retries := 3
	if o.MaxRetries != nil {
		retries = max(*o.MaxRetries, 0)
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true,
		MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second,
		TLSHandshakeTimeout: 10 * time.Second, DisableCompression: true,
	}
	if o.Dial != nil {
		transport.Proxy, transport.DialContext = nil, o.Dial
	}
	c := &Client{
		base: base, dial: o.Dial, timeout: o.Timeout, retries: retries, websocket: o.WebSocket.withDefaults(),
		headers: headers, probing: make(chan struct{}, 1), sleep: sleep, jitter: rand.Float64,
	}
	c.http = &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// Endpoint is the base URL in use.
func (c *Client) Endpoint() string { return c.base.String() }

// String shows the endpoint and never the key.
func (c *Client) String() string { return "client of " + c.base.Redacted() }

// Close drops idle connections. Commands that are attached stay so.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func key(k string) http.Header {
	if k == "" {
		return nil
	}
	return http.Header{"X-Api-Key": {k}}
}

// merge lays headers over each other, low to high, by canonical name: of each
// name only the values of the highest layer that has it are kept (§1.4).
func merge(layers ...http.Header) http.Header {
	merged := http.Header{}
	for _, layer := range layers {
		for name, values := range layer {
			merged[http.CanonicalHeaderKey(name)] = values
		}
	}
	return merged
}

// checkHeaders refuses values that would not be one line.
func checkHeaders(headers http.Header) error {
	for name, values := range headers {
		if strings.ContainsAny(strings.Join(values, ""), "\r\n\x00") {
			return argumentError("the value of header %s contains a line break or a NUL character", name)
		}
	}
	return nil
}

type headersKey struct{}

// WithHeaders returns a context whose calls send the headers over those of the
// client, by name whatever its case (§1.4). Commands that are started and tunnels
// that are opened with it send them again whenever they reconnect. Requests to
// services carry none of them, as they go to what runs in a sandbox.
func WithHeaders(ctx context.Context, headers http.Header) context.Context {
	return context.WithValue(ctx, headersKey{}, merge(headersIn(ctx), headers))
}

// headersIn are those of WithHeaders.
func headersIn(ctx context.Context) http.Header {
	headers, _ := ctx.Value(headersKey{}).(http.Header)
	return headers
}

// headersFor are all that a request to u carries, with those of its own on top.
func (c *Client) headersFor(ctx context.Context, u *url.URL, own http.Header) (http.Header, error) {
	headers := merge(c.headers, headersIn(ctx), own)
	if err := checkHeaders(headers); err != nil {
		return nil, err
	}
	return headers, c.mayHoldKey(u, headers)
}

// A call is one request in the making.
type call struct {
	method  string   // "" is GET
	path    endpoint // where to
	query   url.Values
	body    any         // to be sent as JSON; nil sends none
	content *content    // or, in its place, a stream
	headers http.Header // over the client's own and those of WithHeaders
	policy  policy
	timeout time.Duration // of each attempt; 0 is the client's
	errors  mapper        // nil is mapGeneric
	passes  []int         // statuses beyond 2xx that are the caller's to deal with
}

// An endpoint is an absolute URL, or why there is none.
type endpoint struct {
	url string
	err error
}

// path is an endpoint of the control plane. Segments are escaped, and refused
// where escaping would not keep them apart (§1.5).
func (c *Client) path(segments ...string) endpoint {
	u := c.base.String()
	for _, s := range segments {
		if s == "" || s == "." || s == ".." || strings.ContainsRune(s, 0) {
			return endpoint{err: argumentError("%q cannot be the name of a resource", s)}
		}
		u += "/" + escape(s)
	}
	return endpoint{url: u}
}

// escape percent-encodes all but the unreserved characters.
func escape(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}

// mayHoldKey refuses to send credentials in the clear to another machine than
// an encrypted control plane (§1.3).
func (c *Client) mayHoldKey(u *url.URL, headers http.Header) error {
	secret := headers.Get("X-Api-Key") + headers.Get("X-Service-Key") + headers.Get("Authorization") + headers.Get(ServiceTokenHeader)
	if c.base.Scheme != "https" || u.Scheme == "https" || u.Scheme == "wss" || secret == "" {
		return nil
	}
	if ip := net.ParseIP(u.Hostname()); u.Hostname() == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	return &Error{Kind: ErrClient, Message: fmt.Sprintf("the server sends us to %s without encryption, where the API key or token would be readable on the way; ask its operator for an https URL", u.Host)}
}

// json sends a request and reads the JSON answer into out, unless out is nil.
func (c *Client) json(ctx context.Context, call call, out any) error {
	response, err := c.do(ctx, call)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	request := response.Request
	switch {
	case err != nil:
		return err
	case len(raw) > maxAnswer:
		return &Error{Kind: ErrClient, Message: fmt.Sprintf("%s %s was answered with more than %d MiB", request.Method, request.URL.Path, maxAnswer>>20)}
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return &Error{Kind: ErrClient, Message: fmt.Sprintf("%s %s was answered with something else than the JSON of the protocol: %v", request.Method, request.URL.Path, err),
			Status: response.StatusCode, Method: request.Method, Path: request.URL.Path, Body: raw[:min(len(raw), maxErrorBody)], Err: err}
	}
	return nil
}

// do is the one way to the server: it sends the request, again where the
// policy allows, and returns the answer if its status is a success, or one that
// the call lets pass. The caller
// closes the body; reading it fails once the attempt's time is over without
// progress.
func (c *Client) do(ctx context.Context, call call) (*http.Response, error) {
	if call.path.err != nil {
		return nil, call.path.err
	}
	var body []byte
	if call.body != nil {
		var err error
		if body, err = json.Marshal(call.body); err != nil {
			return nil, argumentError("the request cannot be written as JSON: %v", err)
		}
	}
	ambiguous := false
	for n := 0; ; n++ {
		response, connected, err := c.attempt(ctx, call, body)
		if err == nil {
			return response, nil
		}
		var e *Error
		if ctx.Err() != nil || !errors.As(err, &e) {
			return nil, err
		}
		e.ambiguous = ambiguous
		repeat := e.Status != 0 && call.policy.repeats(e.Status) || e.Status == 0 && !connected
		if call.content != nil && repeat && connected {
			repeat = call.content.rewind()
		}
		if !repeat || n == c.retries {
			if !connected && n > 0 {
				e.Message = fmt.Sprintf("%s (after %d attempts)", e.Message, n+1)
			}
			return nil, err
		}
		ambiguous = ambiguous || e.Status == http.StatusBadGateway || e.Status == http.StatusGatewayTimeout
		if err := c.sleep(ctx, backoff(n, e.Status, e.RetryAfter, c.jitter())); err != nil {
			return nil, err
		}
	}
}

// attempt sends the request once. connected tells whether the server was reached.
func (c *Client) attempt(ctx context.Context, call call, body []byte) (_ *http.Response, connected bool, err error) {
	timeout := call.timeout
	if timeout == 0 {
		timeout = c.timeout
	}
	stall := newStall(ctx, timeout)
	defer func() {
		if err != nil {
			stall.stop()
		}
	}()
	method := call.method
	if method == "" {
		method = http.MethodGet
	}
	var sent io.Reader
	if body != nil {
		sent = bytes.NewReader(body)
	} else if call.content != nil {
		sent = stall.reader(call.content.open())
	}
	traced := httptrace.WithClientTrace(stall.ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected = true },
	})
	request, err := http.NewRequestWithContext(traced, method, call.path.url, sent)
	if err != nil {
		return nil, true, argumentError("bad request to %s: %v", call.path.url, err)
	}
	request.URL.RawQuery = call.query.Encode()
	if request.Header, err = c.headersFor(ctx, request.URL, call.headers); err != nil {
		return nil, true, err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	} else if call.content != nil {
		request.Header.Set("Content-Type", call.content.contentType)
		request.ContentLength = call.content.length
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, connected, c.failed(ctx, request, err)
	}
	if response.StatusCode/100 != 2 && !slices.Contains(call.passes, response.StatusCode) {
		raw, _ := io.ReadAll(io.LimitReader(response.Body, maxErrorAnswer))
		response.Body.Close()
		stall.stop()
		m := call.errors
		if m == nil {
			m = mapGeneric
		}
		return nil, true, answerError(method, request.URL.Path, response.StatusCode, response.Header, raw, m)
	}
	response.Body = stall.body(response)
	return response, true, nil
}

// failed turns a failure without an answer into an error: the caller's own
// cancellation stays what it is.
func (c *Client) failed(ctx context.Context, request *http.Request, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err // without the URL, which the message names already
	}
	if cause := context.Cause(request.Context()); errors.Is(cause, errStalled) {
		err = cause
	}
	return connectionError(ErrConnection, request.Method, request.URL.Redacted(), err)
}
