package server

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines service URLs: HTTP and WebSockets to a port of a sandbox
// (protocol.md §2.8, §16.8). A service is reached in two ways:
//
//	http://<id>--<port>.<service domain>/   for browsers; the token is in a cookie
//	<base>/svc/<id>/<port>/                 for programs; the token is in a header
//
// The first gives each service an origin of its own, whose pages can do nothing
// to another or to the API. The second needs no name that resolves, and takes no
// cookie, so no page is ever shown there.

const (
	servicePath   = "/svc/"
	serviceInner  = "/_svc/" // of a service's host: the server's own pages
	serviceHeader = "X-Langsmith-Sandbox-Service-Token"
	serviceCookie = "sbx_service_token"

	defaultExpiry    = 600 // seconds (protocol.md §2.8)
	maxExpiry        = 24 * 60 * 60
	maxEmbedOrigins  = 5
	maxServiceHeader = 1 << 20
)

// userHeaders would tell a service who is calling. Without a login nobody is
// known, and what a client sends under these names is not true (§16.9).
var userHeaders = []string{"X-Langsmith-User-Token", "X-Langsmith-User-Id", "X-Langsmith-User-Email"}

func (s *Server) serviceURL(c call) (int, any, error) {
	var in wire.ServiceURLRequest
	if err := decode(c.body, &in); err != nil {
		return 0, nil, err
	}
	if err := checkService(&in); err != nil {
		return 0, nil, err
	}
	b, err := s.findBox(c.name)
	if err != nil {
		return 0, nil, err
	}
	base, err := url.Parse(s.baseURL(c.Request))
	if err != nil {
		return 0, nil, err
	}
	if s.serviceDomain() == localDomain && !isLocal(base.Hostname()) {
		return 0, nil, unsupported("port", "this server has no domain for services that can be reached from elsewhere: start it with --service-domain")
	}
	token := claims{Audience: forService, Box: b.Box.ID, Port: in.Port, EmbedOrigins: in.EmbedOrigins}
	expiry := defaultExpiry
	if in.ExpiresInSeconds != nil {
		expiry = *in.ExpiresInSeconds
	}
	answer := wire.ServiceURL{EmbedOrigins: in.EmbedOrigins, ExpiresAt: s.expire(&token, expiry)}
	if answer.Token, err = s.sign(c.Context(), token); err != nil {
		return 0, nil, err
	}
	grant := wire.ServiceGrant{Access: "token", Port: in.Port, CreatedAt: s.now(), EmbedOrigins: in.EmbedOrigins, ExpiresAt: answer.ExpiresAt}
	if err := s.grant(c.Context(), b.Box.ID, grant); err != nil {
		return 0, nil, err
	}
	answer.ServiceURL = fmt.Sprintf("%s%s%s/%d", base, servicePath, b.Box.ID, in.Port)
	host := fmt.Sprintf("%s--%d.%s", b.Box.ID, in.Port, s.serviceDomain())
	if port := base.Port(); port != "" {
		host += ":" + port
	}
	answer.BrowserURL = base.Scheme + "://" + host + serviceInner + "auth?token=" + answer.Token
	if len(in.EmbedOrigins) > 0 {
		answer.EmbedURL = base.Scheme + "://" + host + serviceInner + "embed#token=" + answer.Token
	}
	return http.StatusOK, answer, nil
}

// grant writes down that there is a token for a port, until the last one lapses.
func (s *Server) grant(ctx context.Context, id string, g wire.ServiceGrant) error {
	err := s.store.update(ctx, func() error {
		b, err := s.store.boxes.get(id)
		if err != nil {
			return err
		}
		kept := []wire.ServiceGrant{}
		for _, old := range s.grants(b) {
			if old.Port != g.Port {
				kept = append(kept, old)
				continue
			}
			g.CreatedAt, g.ExpiresAt = old.CreatedAt, max(g.ExpiresAt, old.ExpiresAt)
		}
		b.Services = append(kept, g)
		return s.store.boxes.put(id, b)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return noSandbox(id)
	}
	return err
}

// grants are the ports of a sandbox whose tokens have not lapsed.
func (s *Server) grants(b *box) []wire.ServiceGrant {
	return slices.DeleteFunc(slices.Clone(b.Services), func(g wire.ServiceGrant) bool { return g.ExpiresAt <= s.now() })
}

func (s *Server) listServices(c call) (int, any, error) {
	b, err := s.findBox(c.name)
	if err != nil {
		return 0, nil, err
	}
	l := listing[wire.ServiceGrant]{
		field: "service_urls", whole: defaultPage, page: defaultPage, most: maxPage,
		keys: map[string]func(wire.ServiceGrant) string{"created_at": func(g wire.ServiceGrant) string { return g.CreatedAt }},
		id:   func(g wire.ServiceGrant) string { return sortable(&g.Port) },
	}
	return l.answer(c.URL.Query(), s.grants(b))
}

// forgetServices takes ports off the list. A token that is out is good until it
// lapses, because nothing but its signature is looked at (protocol.md §16.8).
func (s *Server) forgetServices(c call) (int, any, error) {
	query := c.URL.Query()
	port, err := number(query, "port", 0, 1, 65535)
	if err != nil {
		return 0, nil, err
	}
	err = s.store.update(c.Context(), func() error {
		b, err := s.findBox(c.name)
		if err != nil {
			return err
		}
		b.Services = slices.DeleteFunc(s.grants(b), func(g wire.ServiceGrant) bool { return port == 0 || g.Port == port })
		return s.store.boxes.put(b.Box.ID, b)
	})
	return http.StatusNoContent, nil, err
}

func checkService(in *wire.ServiceURLRequest) error {
	if in.Access != "" && in.Access != "off" {
		return unsupported("access", "this server knows no users who could log in; leave it out for a link with a token")
	}
	if in.Port < 1 || in.Port > 65535 {
		return invalid("body.port", "want an integer from 1 to 65535")
	}
	if e := in.ExpiresInSeconds; e != nil && (*e < 1 || *e > maxExpiry) {
		return invalid("body.expires_in_seconds", "want an integer from 1 to %d", maxExpiry)
	}
	if len(in.EmbedOrigins) > maxEmbedOrigins {
		return invalid("body.embed_origins", "want %d at most", maxEmbedOrigins)
	}
	for i, origin := range in.EmbedOrigins {
		u, err := url.Parse(origin)
		if err != nil || u.Host == "" || u.String() != u.Scheme+"://"+u.Host || strings.ContainsAny(origin, " ;,'\"*") ||
			u.Scheme != "https" && (u.Scheme != "http" || !isLocal(u.Hostname())) {
			return invalid("body.embed_origins."+strconv.Itoa(i), "want https://host or https://host:port; http is for localhost only")
		}
	}
	return nil
}

const localDomain = "localhost"

func (s *Server) serviceDomain() string {
	if s.options.ServiceDomain != "" {
		return s.options.ServiceDomain
	}
	return localDomain
}

// isLocal reports whether a host is this machine by its name.
func isLocal(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback() || err != nil && (strings.EqualFold(host, localDomain) || strings.HasSuffix(strings.ToLower(host), "."+localDomain))
}

// service is what a request to one is for.
type service struct {
	id     string
	port   int
	path   string // escaped, with a slash first
	prefix string // of the path, at the server; "" if the service has a host of its own
}

// serviceOf reports whether a request is for a service. Nothing else may be
// served on a service's host: its pages are the sandbox's.
func (s *Server) serviceOf(r *http.Request) (to service, ok bool) {
	path := r.URL.EscapedPath()
	var target string
	if label, found := strings.CutSuffix(strings.ToLower(hostname(r.Host)), "."+s.serviceDomain()); found && strings.Contains(label, "--") {
		to.path, target = path, label
	} else if rest, found := strings.CutPrefix(path, servicePath); found {
		id, rest, _ := strings.Cut(rest, "/")
		port, rest, _ := strings.Cut(rest, "/")
		to.path, target = "/"+rest, id+"--"+port
		to.prefix = servicePath + id + "/" + port
	} else {
		return service{}, false
	}
	i := strings.LastIndex(target, "--")
	port, err := strconv.ParseUint(target[i+2:], 10, 16)
	if err == nil && port > 0 {
		to.id, to.port = target[:i], int(port)
	}
	return to, true
}

func (s *Server) serveService(w *recorder, r *http.Request, to service) error {
	if to.prefix != "" {
		if err := s.guardPages(r); err != nil {
			return err
		}
	}
	if to.port == 0 {
		return notFound(r)
	}
	if to.prefix == "" && strings.HasPrefix(to.path, serviceInner) {
		return s.servicePages(w, r, to)
	}
	token, err := s.serviceToken(r, to)
	if err != nil {
		return err
	}
	return s.with(r, to.id, func(r *http.Request, h *handle) error { return s.toService(w, r, to, token, h) })
}

// serviceToken returns the token that a request has for its service.
func (s *Server) serviceToken(r *http.Request, to service) (claims, error) {
	var tokens []string
	if values := r.Header.Values(serviceHeader); len(values) > 0 {
		tokens = values[len(values)-1:]
	} else if to.prefix == "" {
		for _, cookie := range r.CookiesNamed(serviceCookie) {
			tokens = append(tokens, cookie.Value)
		}
		// A cookie goes along with what other pages send, too.
		if len(tokens) > 0 && crossOrigin(r) {
			return claims{}, fail(http.StatusForbidden, kindForbidden, "requests from pages of other origins are refused")
		}
	}
	err := error(fail(http.StatusUnauthorized, kindUnauthorized, "the service token is missing: open the browser_url, or send the token as %s", serviceHeader))
	for _, token := range tokens {
		var c claims
		if c, err = s.checkToken(r, token, to); err == nil {
			return c, nil
		}
	}
	return claims{}, err
}

func (s *Server) checkToken(r *http.Request, token string, to service) (claims, error) {
	c, err := s.verify(r.Context(), token, forService)
	switch {
	case errors.Is(err, errToken), errors.Is(err, errExpired):
		return c, fail(http.StatusUnauthorized, kindUnauthorized, "%v: ask for a new service URL", err)
	case err != nil:
		return c, err
	case c.Box != to.id || c.Port != to.port:
		return c, fail(http.StatusForbidden, kindForbidden, "the service token is for another port or sandbox")
	}
	return c, nil
}

func crossOrigin(r *http.Request) bool {
	for _, origin := range r.Header.Values("Origin") {
		if u, err := url.Parse(origin); err != nil || !strings.EqualFold(u.Host, r.Host) {
			return true
		}
	}
	return false
}

// embedScript trades the token in the fragment, which no server is sent, for the
// cookie.
const embedScript = `const given = new URLSearchParams(location.hash.slice(1));
const to = given.get("redirect") || "/";
fetch("` + serviceInner + `auth", {method: "POST", body: given.get("token")}).then(answer => {
  if (answer.ok) location.replace(new URL(to, location.origin).origin === location.origin ? to : "/");
  else document.body.textContent = "This link has expired.";
});`

// servicePages are the server's own pages on the host of a service: they turn a
// token into a cookie.
func (s *Server) servicePages(w *recorder, r *http.Request, to service) error {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("Referrer-Policy", "no-referrer")
	switch {
	case to.path == serviceInner+"embed" && r.Method == http.MethodGet:
		sum := sha256.Sum256([]byte(embedScript))
		header.Set("Content-Security-Policy", "default-src 'none'; connect-src 'self'; script-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'")
		header.Set("Content-Type", "text/html; charset=utf-8")
		io.WriteString(w, "<!doctype html><title>Sandbox</title><body><script>"+embedScript+"</script>")
		return nil
	case to.path != serviceInner+"auth":
		return notFound(r)
	}
	token, next := r.URL.Query().Get("token"), r.URL.Query().Get("redirect")
	switch r.Method {
	case http.MethodGet:
	case http.MethodPost:
		body, err := readBody(w, r)
		if err != nil {
			return err
		}
		if crossOrigin(r) {
			return fail(http.StatusForbidden, kindForbidden, "requests from pages of other origins are refused")
		}
		token = string(body)
	default:
		f := fail(http.StatusMethodNotAllowed, kindMethod, "%s is not possible here, only GET, POST", r.Method)
		f.allow = "GET, POST"
		return f
	}
	c, err := s.checkToken(r, token, to)
	if err != nil {
		return err
	}
	cookie := &http.Cookie{Name: serviceCookie, Value: token, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode,
		MaxAge: int(c.Expires - s.options.Now().Unix()), Secure: r.TLS != nil || s.publicURL != nil && s.publicURL.Scheme == "https"}
	if len(c.EmbedOrigins) > 0 { // browsers take localhost for secure, whatever its scheme
		cookie.Secure, cookie.SameSite, cookie.Partitioned = true, http.SameSiteNoneMode, true
	}
	http.SetCookie(w, cookie)
	if r.Method == http.MethodPost {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	if !strings.HasPrefix(next, "/") || strings.HasPrefix(next, "//") || strings.ContainsAny(next, "\\\r\n\t") {
		next = "/"
	}
	header.Set("Location", next)
	w.WriteHeader(http.StatusSeeOther)
	return nil
}

// toService passes a request on to a port of a sandbox. Its answer is the
// sandbox's, whose pages have an origin of their own.
func (s *Server) toService(w *recorder, r *http.Request, to service, token claims, h *handle) (err error) {
	path, err := url.PathUnescape(to.path)
	if err != nil {
		return notFound(r)
	}
	target := &url.URL{Scheme: "http", Host: net.JoinHostPort(localDomain, strconv.Itoa(to.port)), Path: path, RawPath: to.path, RawQuery: r.URL.RawQuery}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetXForwarded()
			p.Out.URL = target
			if to.prefix != "" {
				p.Out.Host = target.Host
				p.Out.Header.Set("X-Forwarded-Prefix", to.prefix)
			}
			s.stripSecrets(p.Out.Header)
		},
		Transport: &http.Transport{
			DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return h.connect(ctx, to.port) },
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxServiceHeader,
		},
		ModifyResponse: func(res *http.Response) error {
			if res.StatusCode == http.StatusSwitchingProtocols {
				w.status = res.StatusCode
			}
			if to.prefix != "" {
				if next := res.Header.Get("Location"); strings.HasPrefix(next, "/") && !strings.HasPrefix(next, "//") {
					res.Header.Set("Location", to.prefix+next)
				}
				return nil
			}
			w.Header().Del("Content-Security-Policy")
			w.Header().Del("X-Content-Type-Options")
			res.Header.Add("Content-Security-Policy", strings.Join(append([]string{"frame-ancestors 'self'"}, token.EmbedOrigins...), " "))
			return nil
		},
		FlushInterval: -1,
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, failed error) {
			if nobody, ok := errors.AsType[*notListening](failed); ok {
				err = fail(http.StatusBadGateway, wire.ErrConnection, "%v", nobody)
			} else {
				err = s.broken(r, to.id, h, failed)
			}
		},
		ErrorLog: slog.NewLogLogger(s.options.Log.Handler(), slog.LevelInfo),
	}
	proxy.ServeHTTP(w, whole(r))
	return err
}

// stripSecrets takes from a request what is meant for this server.
func (s *Server) stripSecrets(header http.Header) {
	header.Del(serviceHeader)
	for _, name := range userHeaders {
		header.Del(name)
	}
	if s.hasKey(header) {
		header.Del("X-Api-Key")
		header.Del("Authorization")
	}
	var kept []string
	for _, line := range header.Values("Cookie") {
		for cookie := range strings.SplitSeq(line, ";") {
			cookie = strings.TrimSpace(cookie)
			if name, _, _ := strings.Cut(cookie, "="); strings.TrimSpace(name) != serviceCookie && cookie != "" {
				kept = append(kept, cookie)
			}
		}
	}
	header.Del("Cookie")
	if kept != nil {
		header.Set("Cookie", strings.Join(kept, "; "))
	}
}

// notListening is a port of a sandbox that takes no connections.
type notListening struct{ port int }

func (e *notListening) Error() string {
	return fmt.Sprintf("nothing listens on port %d in the sandbox", e.port)
}

// connect has the daemon join a connection with a port inside the sandbox.
func (h *handle) connect(ctx context.Context, port int) (net.Conn, error) {
	conn, err := h.dial(ctx, "", "")
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	conn.SetDeadline(time.Now().Add(upgradeTimeout))
	joined, err := join(conn, port)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	conn.SetDeadline(time.Time{})
	return joined, nil
}

func join(conn net.Conn, port int) (net.Conn, error) {
	if _, err := fmt.Fprintf(conn, "GET /connect?port=%d HTTP/1.1\r\nHost: sandbox\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n", port); err != nil {
		return nil, &unreachable{err}
	}
	limited := &io.LimitedReader{R: conn, N: maxServiceHeader}
	reader := bufio.NewReader(limited)
	res, err := http.ReadResponse(reader, nil)
	if err != nil {
		return nil, fmt.Errorf("the daemon's answer: %w", err)
	}
	limited.N = 1<<63 - 1
	switch res.StatusCode {
	case http.StatusSwitchingProtocols:
		return &joined{Conn: conn, reader: reader, begun: make(chan struct{})}, nil
	case http.StatusBadGateway:
		return nil, &notListening{port}
	}
	return nil, fmt.Errorf("the daemon answered with status %d", res.StatusCode)
}

// joined is a connection of which something may have been read already. Nothing
// is read from it before something was written: net/http takes an answer that
// comes before the request for nobody's, and there are services that answer
// whoever connects.
type joined struct {
	net.Conn
	reader *bufio.Reader
	begin  sync.Once
	begun  chan struct{} // closed with the first write, and by Close
}

func (j *joined) Read(p []byte) (int, error) {
	<-j.begun
	return j.reader.Read(p)
}

func (j *joined) Write(p []byte) (int, error) {
	defer j.begin.Do(func() { close(j.begun) })
	return j.Conn.Write(p)
}

func (j *joined) Close() error {
	defer j.begin.Do(func() { close(j.begun) })
	return j.Conn.Close()
}

// CloseWrite passes on that one side has said its last word. Without it the
// other would be cut off in the middle of its answer.
func (j *joined) CloseWrite() error {
	half, ok := j.Conn.(interface{ CloseWrite() error })
	if !ok {
		return j.Conn.Close()
	}
	return half.CloseWrite()
}
