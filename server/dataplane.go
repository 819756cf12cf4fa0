package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the way of a request to the daemon of a sandbox. The daemon
// is a stranger: it learns no credential, and of what it answers only the
// listed headers pass.

// What a daemon is told of a request, a client of the answer, and both of each
// other when they change to a WebSocket.
var (
	requestHeaders = []string{"Accept", "Content-Type", "If-Match", "If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since", "Range"}
	answerHeaders  = []string{"Accept-Ranges", "Allow", "Cache-Control", "Content-Disposition", "Content-Length", "Content-Range", "Content-Type", "Etag", "Last-Modified", "Retry-After"}
	upgradeHeaders = []string{"Connection", "Upgrade", "Sec-Websocket-Accept", "Sec-Websocket-Extensions", "Sec-Websocket-Key", "Sec-Websocket-Protocol", "Sec-Websocket-Version"}
)

// daemonPaths are what clients may ask a daemon for. It has more, for the server
// alone.
var daemonPaths = []string{"execute", "execute/ws", "upload", "download", "tunnel", "glob", "grep"}

func pick(from http.Header, names []string) http.Header {
	picked := http.Header{}
	for _, name := range names {
		if values, ok := from[name]; ok {
			picked[name] = values
		}
	}
	return picked
}

// dataPlane passes a request on to the daemon of the sandbox that path, which
// is escaped, starts with.
func (s *Server) dataPlane(w *recorder, r *http.Request, path string) error {
	id, path, _ := strings.Cut(path, "/")
	if _, err := s.store.boxes.peek(id); errors.Is(err, fs.ErrNotExist) {
		return noSandbox(id)
	}
	if !slices.Contains(daemonPaths, path) {
		return fail(http.StatusNotFound, kindNotFound, "there is nothing at /%s of a sandbox: it has %s", path, strings.Join(daemonPaths, ", "))
	}
	target := &url.URL{Scheme: "http", Host: "sandbox", Path: "/" + path, RawQuery: r.URL.RawQuery}
	return s.with(r, id, func(r *http.Request, h *handle) error {
		if r.Method == http.MethodGet && strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
			return s.relay(w, r, target, h, id)
		}
		return s.forward(w, r, target, h, id, nil)
	})
}

// with calls serve for a request that is for a sandbox, which it wakes. What is
// under way ends with the sandbox.
func (s *Server) with(r *http.Request, id string, serve func(*http.Request, *handle) error) error {
	defer s.use(id)()
	b, h, err := s.awake(r.Context(), id)
	if unreachable, ok := errors.AsType[*unreachable](err); ok {
		return s.broken(r, id, nil, unreachable)
	}
	if err != nil {
		return err
	}
	s.touch(b)
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	defer context.AfterFunc(h.ctx, func() { cancel(context.Cause(h.ctx)) })()
	return serve(r.WithContext(ctx), h)
}

// forward passes a request on to the daemon, and its answer back with what
// finish, which may be nil, makes of its headers.
func (s *Server) forward(w *recorder, r *http.Request, target *url.URL, h *handle, id string, finish func(*http.Response)) (err error) {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL, p.Out.Host, p.Out.Header = target, target.Host, pick(p.Out.Header, requestHeaders)
		},
		ModifyResponse: func(res *http.Response) error {
			if finish != nil {
				finish(res)
			}
			return nil
		},
		Transport:     stranger{h.transport, r.Context()},
		FlushInterval: -1,
		ErrorHandler:  func(_ http.ResponseWriter, _ *http.Request, failed error) { err = s.broken(r, id, h, failed) },
		ErrorLog:      slog.NewLogLogger(s.options.Log.Handler(), slog.LevelInfo),
	}
	proxy.ServeHTTP(w, whole(r))
	return err
}

// whole ends a request's body with its last byte. Transports look for an end
// beyond it, and fail if net/http has taken the body away by then, as it does
// when the answer begins: a quick answer would be dropped.
func whole(r *http.Request) *http.Request {
	if r.ContentLength > 0 {
		r = r.WithContext(r.Context()) // a copy
		r.Body = &promised{r.Body, r.ContentLength}
	}
	return r
}

type promised struct {
	io.ReadCloser
	left int64
}

func (p *promised) Read(buf []byte) (int, error) {
	if p.left <= 0 {
		return 0, io.EOF
	}
	n, err := p.ReadCloser.Read(buf)
	if p.left -= int64(n); p.left <= 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

func noSandbox(id string) error {
	return fail(http.StatusNotFound, kindNotFound, "there is no sandbox with the id %q", id)
}

func notReady(b *box, why string) error {
	return fail(http.StatusBadRequest, wire.ErrNotReady, "the sandbox %q cannot be used: %s", b.Box.Name, why)
}

// broken answers a request whose way to the daemon broke. Clients repeat what
// fails with 502, so a command that may have run fails otherwise
// (protocol.md §5, §13 #18).
func (s *Server) broken(r *http.Request, id string, h *handle, err error) error {
	_, notSent := errors.AsType[*unreachable](err)
	if h != nil && errors.Is(err, runtime.ErrGone) {
		s.forget(id, h, err) // the next request adopts it, and finds it dead or alive
	}
	cause := context.Cause(r.Context())
	var f *failure
	switch {
	case errors.Is(cause, errDeleted):
		return noSandbox(id)
	case errors.Is(cause, errStopped): // to be asked again it would have to wake
		f = fail(http.StatusBadRequest, wire.ErrNotReady, "%v", errStopped)
	case s.ctx.Err() != nil:
		return fail(http.StatusServiceUnavailable, wire.ErrServiceUnavailable, "%v", errClosing)
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/execute") && !notSent:
		f = fail(http.StatusInternalServerError, wire.ErrCommand, "the connection to the sandbox broke while the command ran")
	default:
		f = fail(http.StatusBadGateway, wire.ErrConnection, "the sandbox does not answer")
	}
	f.cause = err
	return f
}

// stranger is the transport to a daemon. It passes on clean answers only.
type stranger struct {
	http.RoundTripper
	ctx context.Context // of the request, less the traces that would pass on 1xx answers
}

func (t stranger) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := t.RoundTripper.RoundTrip(r.WithContext(t.ctx))
	if err != nil {
		return nil, err
	}
	clean, err := cleaned(r, res)
	if err != nil {
		res.Body.Close()
	}
	return clean, err
}

// cleaned is a daemon's answer as it may pass, or why it may not.
func cleaned(r *http.Request, res *http.Response) (*http.Response, error) {
	// A copy, because trailers are filled into the original later.
	clean := *res
	clean.Header, clean.Trailer = pick(res.Header, answerHeaders), nil
	switch code := res.StatusCode; {
	case code == http.StatusSwitchingProtocols && r.Header.Get("Upgrade") != "":
		maps.Copy(clean.Header, pick(res.Header, upgradeHeaders))
	case code < 200, code >= 300 && code < 400 && code != http.StatusNotModified:
		return nil, fmt.Errorf("the daemon answered with status %d", code)
	}
	return &clean, nil
}
