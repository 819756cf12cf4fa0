package server_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/server"
	"github.com/sbx-star/sbx-star/wire"
)

// This file tests service URLs and download URLs (protocol.md §2.8, §2.9, §16.8).

const tokenHeader = "X-Langsmith-Sandbox-Service-Token"

// inside is a daemon that joins connections with ports of this machine, as if
// they were the sandbox's.
func inside(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/connect" {
		echo(w, r)
		return
	}
	service, err := net.Dial("tcp", "127.0.0.1:"+r.URL.Query().Get("port"))
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		io.WriteString(w, `{"detail":{"error":"ConnectionError","message":"refused"}}`)
		return
	}
	defer service.Close()
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		io.Copy(service, buffered)
		service.(*net.TCPConn).CloseWrite()
	}()
	io.Copy(conn, service)
	conn.(interface{ CloseWrite() error }).CloseWrite()
	<-asked // closed with something unread, a connection would be reset
}

// app is a service in a sandbox: it tells what it is sent, and echoes WebSockets.
func app(t *testing.T) (port int) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case websocket.IsWebSocketUpgrade(r):
			echo(w, r)
		case r.URL.Path == "/moved":
			w.Header().Set("Location", "/there")
			w.WriteHeader(302)
		default:
			http.SetCookie(w, &http.Cookie{Name: "own", Value: "1"})
			w.Header().Set("Content-Security-Policy", "default-src *")
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %s %s %s\n", r.Method, r.Host, r.RequestURI, body)
			json.NewEncoder(w).Encode(r.Header)
		}
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().(*net.TCPAddr).Port
}

func (f *fixture) link(name, body string) (link wire.ServiceURL) {
	f.t.Helper()
	a := f.do("POST", "/boxes/"+name+"/service-url", body)
	a.want(f.t, 200)
	a.decode(f.t, &link)
	return link
}

// visit sends a request to an absolute URL, whose host need not resolve.
func (f *fixture) visit(method, link, body string, headers ...string) answer {
	f.t.Helper()
	u, err := url.Parse(link)
	if err != nil {
		f.t.Fatal(err)
	}
	key := f.key
	f.key = ""
	defer func() { f.key = key }()
	return f.do(method, "!"+u.RequestURI(), body, append([]string{"Host", u.Host}, headers...)...)
}

func TestServiceURL(t *testing.T) {
	port := app(t)
	h, clock := &host{daemon: http.HandlerFunc(inside)}, &clock{}
	f := serve(t, h, func(o *server.Options) { clock.set(o); o.APIKey = "sesame" })
	b := f.box("web")
	link := f.link("web", fmt.Sprintf(`{"port":%d,"expires_in_seconds":600}`, port))
	_, own, _ := strings.Cut(f.http.URL, "127.0.0.1")
	site := fmt.Sprintf("http://%s--%d.localhost%s", b.ID, port, own)
	if link.ServiceURL != fmt.Sprintf("%s/svc/%s/%d", f.http.URL, b.ID, port) || link.BrowserURL != site+"/_svc/auth?token="+link.Token ||
		link.ExpiresAt != "2026-01-02T12:10:01.000000Z" || link.EmbedURL != "" {
		t.Fatalf("got %+v", link)
	}

	// Programs send the token as a header.
	f.visit("GET", link.ServiceURL+"/a%2Fb?x=1;2", "").want(t, 401, `"error":"Unauthorized"`, "token is missing")
	a := f.visit("POST", link.ServiceURL+"/a%2Fb?x=1;2", "body", tokenHeader, link.Token, "Cookie", "a=b", "Authorization", "Basic x", "X-Langsmith-User-Id", "root", "x-langsmith-user-email", "a@b")
	a.want(t, 200, fmt.Sprintf("POST localhost:%d /a%%2Fb?x=1;2 body", port), `"Cookie":["a=b"]`, `"Authorization":["Basic x"]`, `"X-Forwarded-Prefix":["/svc/`)
	for _, secret := range []string{link.Token, "Service-Token", "User-Id", "User-Email", "sesame"} {
		if strings.Contains(a.body, secret) {
			t.Errorf("the service was told %s: %s", secret, a.body)
		}
	}
	if csp := a.Header.Values("Content-Security-Policy"); !strings.Contains(csp[0], "sandbox") {
		t.Errorf("the policy of what programs get is %q", csp)
	}
	if a := f.visit("GET", link.ServiceURL+"/moved", "", tokenHeader, link.Token); a.StatusCode != 302 || !strings.HasSuffix(a.Header.Get("Location"), fmt.Sprintf("/%d/there", port)) {
		t.Errorf("redirected to %q", a.Header.Get("Location"))
	}
	f.visit("GET", link.ServiceURL+"/", "", tokenHeader, link.Token, "X-Api-Key", "sesame").want(t, 200)
	if a := f.visit("GET", link.ServiceURL+"/", "", tokenHeader, link.Token, "X-Api-Key", "sesame"); strings.Contains(a.body, "sesame") {
		t.Errorf("the service was told the key")
	}

	// Browsers trade it for a cookie.
	a = f.visit("GET", link.BrowserURL+"&redirect=/start", "")
	cookies := a.Cookies()
	if a.StatusCode != 303 || a.Header.Get("Location") != "/start" || len(cookies) != 1 || !cookies[0].HttpOnly || cookies[0].SameSite != http.SameSiteLaxMode ||
		cookies[0].Domain != "" || cookies[0].MaxAge != 601 || a.Header.Get("Referrer-Policy") != "no-referrer" {
		t.Fatalf("%d %v", a.StatusCode, a.Header)
	}
	for _, evil := range []string{"//evil.example", "http://evil.example", "/%5Cevil.example", "x"} {
		if a := f.visit("GET", link.BrowserURL+"&redirect="+evil, ""); a.Header.Get("Location") != "/" {
			t.Errorf("%s redirects to %q", evil, a.Header.Get("Location"))
		}
	}
	cookie := cookies[0].Name + "=" + cookies[0].Value
	a = f.visit("GET", site+"/start", "", "Cookie", "a=b; "+cookie+"; c=d", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate")
	a.want(t, 200, "GET "+strings.TrimPrefix(site, "http://")+" /start", `"Cookie":["a=b; c=d"]`)
	if csp := a.Header.Values("Content-Security-Policy"); len(csp) != 2 || csp[1] != "frame-ancestors 'self'" || a.Header.Get("Set-Cookie") != "own=1" {
		t.Errorf("headers %v", a.Header)
	}
	f.visit("GET", site+"/", "").want(t, 401, "token is missing")
	f.visit("POST", site+"/", "", "Cookie", cookie, "Origin", "http://evil.example").want(t, 403, `"error":"Forbidden"`)
	f.visit("POST", site+"/", "", "Cookie", cookie, "Origin", site).want(t, 200)
	f.visit("GET", link.ServiceURL+"/", "", "Cookie", cookie).want(t, 401) // an origin that all share
	f.visit("GET", link.ServiceURL+"/", "", tokenHeader, link.Token, "Origin", "http://evil.example").want(t, 403)

	// The pages of a service reach no API, there or elsewhere.
	for _, path := range []string{base + "/boxes", "/sb/" + b.ID + "/download", "/dl/x", "/svc/" + b.ID + "/1/"} {
		f.visit("GET", site+path, "", "Cookie", cookie, "X-Api-Key", "sesame").want(t, 200, path) // from the service
		f.visit("GET", f.http.URL+path, "", "Origin", site, "X-Api-Key", "sesame", tokenHeader, link.Token).want(t, 403)
		f.visit("GET", f.http.URL+path, "", "Sec-Fetch-Site", "cross-site", "X-Api-Key", "sesame", tokenHeader, link.Token).want(t, 403)
		f.visit("GET", strings.Replace(site, "--", "--x", 1)+path, "", "X-Api-Key", "sesame").want(t, 404)
	}

	// Other ports, other sandboxes, other tokens.
	f.visit("GET", fmt.Sprintf("%s/svc/%s/%d/", f.http.URL, b.ID, 1), "", tokenHeader, link.Token).want(t, 403, "another port")
	f.visit("GET", fmt.Sprintf("%s/svc/%s/%d/", f.http.URL, "other", port), "", tokenHeader, link.Token).want(t, 403)
	f.visit("GET", fmt.Sprintf("%s/svc/%s/%s/", f.http.URL, b.ID, "x"), "", tokenHeader, link.Token).want(t, 404)
	quiet := f.link("web", `{"port":1}`)
	f.visit("GET", quiet.ServiceURL, "", tokenHeader, quiet.Token).want(t, 502, `"error":"ConnectionError"`, "nothing listens on port 1 in the sandbox")
	for _, bad := range []string{"x", "a.b.c", link.Token + "x", link.Token[:len(link.Token)-1], strings.Replace(link.Token, ".", "..", 1)} {
		f.visit("GET", link.ServiceURL, "", tokenHeader, bad).want(t, 401, "not one of this server")
	}
	parts := strings.Split(link.Token, ".")
	for _, head := range []string{`{"alg":"none","typ":"JWT"}`, `{"alg":"HS256"}`} {
		f.visit("GET", link.ServiceURL, "", tokenHeader, base64.RawURLEncoding.EncodeToString([]byte(head))+"."+parts[1]+"."+parts[2]).want(t, 401)
	}

	// It wakes the sandbox, and keeps it from being idle.
	f.do("PATCH", "/boxes/web", `{"idle_ttl_seconds":60}`).want(t, 200)
	f.do("POST", "/boxes/web/stop", "").want(t, 204)
	for range 3 {
		f.visit("GET", link.ServiceURL, "", tokenHeader, link.Token).want(t, 200)
		clock.pass(59, f)
	}
	f.is("web", "ready")

	f.do("DELETE", "/boxes/web", "").want(t, 204)
	f.visit("GET", link.ServiceURL, "", tokenHeader, link.Token).want(t, 404)
	clock.pass(600 - 3*59)
	f.visit("GET", link.ServiceURL, "", tokenHeader, link.Token).want(t, 404) // the second that was begun
	clock.pass(1)
	f.visit("GET", link.ServiceURL, "", tokenHeader, link.Token).want(t, 401, "has expired")
	f.visit("GET", link.BrowserURL, "").want(t, 401, "has expired")
	if mode, err := os.Stat(filepath.Join(f.dir, "key")); err != nil || mode.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", mode, err)
	}
}

func TestServiceEmbedding(t *testing.T) {
	port := app(t)
	f := serve(t, &host{daemon: http.HandlerFunc(inside)}, nil)
	f.box("web")
	link := f.link("web", fmt.Sprintf(`{"port":%d,"embed_origins":["https://a.example","http://localhost:3000"]}`, port))
	page, fragment, _ := strings.Cut(link.EmbedURL, "#")
	if fragment != "token="+link.Token || len(link.EmbedOrigins) != 2 {
		t.Fatalf("got %+v", link)
	}
	a := f.visit("GET", page, "")
	a.want(t, 200, "<script>", `fetch("/_svc/auth"`)
	if csp := a.Header.Values("Content-Security-Policy"); len(csp) != 1 || !strings.Contains(csp[0], "sha256-") {
		t.Errorf("policy %q", csp)
	}
	site := strings.TrimSuffix(page, "/_svc/embed")
	f.visit("POST", site+"/_svc/auth", link.Token, "Origin", "https://a.example").want(t, 403)
	a = f.visit("POST", site+"/_svc/auth", link.Token, "Origin", site)
	if cookies := a.Cookies(); a.StatusCode != 204 || len(cookies) != 1 || cookies[0].SameSite != http.SameSiteNoneMode || !cookies[0].Secure || !cookies[0].Partitioned {
		t.Fatalf("%d %v", a.StatusCode, a.Header)
	}
	a = f.visit("GET", site+"/", "", tokenHeader, link.Token)
	if csp := a.Header.Values("Content-Security-Policy"); csp[len(csp)-1] != "frame-ancestors 'self' https://a.example http://localhost:3000" {
		t.Errorf("policy %q", csp)
	}
	f.visit("GET", site+"/_svc/nope", "", tokenHeader, link.Token).want(t, 404)
	f.visit("PUT", site+"/_svc/auth", "").want(t, 405)
}

func TestServiceWebSocket(t *testing.T) {
	port := app(t)
	f := serve(t, &host{daemon: http.HandlerFunc(inside)}, nil)
	b := f.box("web")
	link := f.link("web", `{"port":`+strconv.Itoa(port)+`}`)
	dial := func(link string, header http.Header) (*websocket.Conn, *http.Response) {
		u, _ := url.Parse(link)
		dialer := websocket.Dialer{Subprotocols: []string{"sbx.exec.v1"}, NetDialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, f.http.Listener.Addr().String())
		}}
		u.Scheme = "ws"
		c, res, err := dialer.Dial(u.String(), header)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			c.SetReadDeadline(time.Now().Add(30 * time.Second))
		}
		return c, res
	}
	site, _, _ := strings.Cut(link.BrowserURL, "/_svc")
	cookie := "sbx_service_token=" + link.Token
	byHeader, _ := dial(link.ServiceURL+"/ws", http.Header{tokenHeader: {link.Token}})
	byCookie, _ := dial(site+"/ws", http.Header{"Cookie": {cookie}, "Origin": {site}})
	for _, c := range []*websocket.Conn{byHeader, byCookie} {
		if c == nil {
			t.Fatal("no socket")
		}
		exchange(t, c, "hello")
	}
	if _, res := dial(site+"/ws", http.Header{"Cookie": {cookie}, "Origin": {"http://evil.example"}}); res == nil || res.StatusCode != 403 {
		t.Errorf("another origin got %v", res)
	}
	if !f.server.Used(b.ID) {
		t.Error("they do not count as use")
	}
	f.do("POST", "/boxes/web/stop", "").want(t, 204)
	for _, c := range []*websocket.Conn{byHeader, byCookie} {
		if _, _, err := c.ReadMessage(); err == nil {
			t.Error("a socket outlives its sandbox")
		}
	}
}

func TestServiceRefusals(t *testing.T) {
	f := serve(t, &host{}, nil)
	f.box("web")
	for body, want := range map[string]string{
		`{"port":0}`:                             `["body","port"]`,
		`{"port":65536}`:                         `["body","port"]`,
		`{"port":"80"}`:                          `["body","port"]`,
		`{}`:                                     `["body","port"]`,
		`{"port":80,"expires_in_seconds":0}`:     `["body","expires_in_seconds"]`,
		`{"port":80,"expires_in_seconds":86401}`: `["body","expires_in_seconds"]`,
		`{"port":80,"access":"restricted"}`:      `"error":"SandboxConfig","message":"access: `,
		`{"port":80,"access":"nonsense"}`:        `"error":"SandboxConfig","message":"access: `,
		`{"port":80,"embed_origins":["http://a.example"]}`:                                                      `["body","embed_origins",0]`,
		`{"port":80,"embed_origins":["https://a.example","https://a.example/x"]}`:                               `["body","embed_origins",1]`,
		`{"port":80,"embed_origins":["https://a.example; script-src *"]}`:                                       `["body","embed_origins",0]`,
		`{"port":80,"embed_origins":["https://*.example"]}`:                                                     `["body","embed_origins",0]`,
		`{"port":80,"embed_origins":["https://u:p@a.example"]}`:                                                 `["body","embed_origins",0]`,
		`{"port":80,"embed_origins":["'none'"]}`:                                                                `["body","embed_origins",0]`,
		`{"port":80,"embed_origins":["https://a","https://b","https://c","https://d","https://e","https://f"]}`: `["body","embed_origins"]`,
	} {
		f.do("POST", "/boxes/web/service-url", body).want(t, 422, want)
	}
	f.do("POST", "/boxes/nope/service-url", `{"port":80}`).want(t, 404)
	f.do("POST", "/boxes/web/service-url", `{"port":80,"access":"off"}`).want(t, 200)

	public := serve(t, &host{}, func(o *server.Options) { o.PublicURL = "https://sandboxes.example:8443/x" })
	public.box("web")
	public.do("POST", "/boxes/web/service-url", `{"port":80}`).want(t, 422, "SandboxConfig", "--service-domain")
	named := serve(t, &host{}, func(o *server.Options) {
		o.PublicURL, o.ServiceDomain = "https://sandboxes.example:8443/x", "services.example"
	})
	b := named.box("web")
	if link := named.link("web", `{"port":80}`); !strings.HasPrefix(link.BrowserURL, "https://"+b.ID+"--80.services.example:8443/_svc/auth?token=") {
		t.Errorf("got %+v", link)
	}
}

func TestDownloadURL(t *testing.T) {
	clock := &clock{}
	file := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("path") != "/home/user/a b.html" {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(404)
			io.WriteString(w, `{"detail":{"error":"FileNotFound","message":"no such file"}}`)
			return
		}
		w.Header().Set("Content-Disposition", "evil")
		w.Header().Set("Set-Cookie", "a=b")
		http.ServeContent(w, r, "x.html", noon, strings.NewReader("0123456789"))
	})
	f := serve(t, &host{daemon: file}, func(o *server.Options) { clock.set(o); o.APIKey = "sesame" })
	f.box("one")
	link := func(body string) string {
		t.Helper()
		var link wire.DownloadURL
		a := f.do("POST", "/boxes/one/download-url", body)
		a.want(t, 200)
		a.decode(t, &link)
		if (link.ExpiresAt == nil) != !strings.Contains(body, "expires") || !strings.HasSuffix(link.DownloadURL, link.Token) {
			t.Errorf("%s gives %s", body, a.body)
		}
		return link.DownloadURL
	}
	plain := link(`{"path":"/home/user/a b.html"}`)
	if !strings.HasPrefix(plain, f.http.URL+"/dl/a%20b.html?token=") {
		t.Errorf("the link is %s", plain)
	}
	a := f.visit("GET", plain, "", "Sec-Fetch-Site", "cross-site", "Origin", "https://elsewhere.example")
	a.want(t, 200, "0123456789")
	for name, want := range map[string]string{"Content-Type": "application/octet-stream", "Content-Disposition": "", "X-Content-Type-Options": "nosniff",
		"Content-Security-Policy": "default-src 'none'; sandbox", "Accept-Ranges": "bytes", "Set-Cookie": "", "Content-Length": "10"} {
		if got := a.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if a := f.visit("HEAD", plain, ""); a.StatusCode != 200 || a.body != "" || a.Header.Get("Content-Length") != "10" {
		t.Errorf("HEAD: %d %v", a.StatusCode, a.Header)
	}
	if a := f.visit("GET", plain, "", "Range", "bytes=2-4"); a.StatusCode != 206 || a.body != "234" || a.Header.Get("Content-Range") != "bytes 2-4/10" {
		t.Errorf("Range: %d %v", a.StatusCode, a.Header)
	}
	for body, want := range map[string][2]string{
		`,"content_disposition":"attachment","content_type":"text/html; charset=utf-8"`: {"text/html; charset=utf-8", `attachment; filename="a b.html"`},
		`,"content_disposition":"inline","content_type":"text/html"`:                    {"text/html", "inline"},
	} {
		a := f.visit("GET", link(`{"path":"/home/user/a b.html"`+body+`}`), "")
		if a.Header.Get("Content-Type") != want[0] || a.Header.Get("Content-Disposition") != want[1] || !strings.Contains(a.Header.Get("Content-Security-Policy"), "sandbox") {
			t.Errorf("%s gives %v", body, a.Header)
		}
	}
	f.visit("GET", link(`{"path":"/nope","content_type":"text/plain"}`), "").want(t, 404, `"error":"FileNotFound"`)
	f.visit("POST", plain, "").want(t, 405)
	f.visit("GET", plain+"x", "").want(t, 403, `"error":"Forbidden"`)
	f.visit("GET", f.http.URL+"/dl/x", "").want(t, 403)
	f.visit("GET", plain, "", "Host", "evil.example").want(t, 403)

	// A token is for one thing only.
	service := f.link("one", `{"port":80}`)
	f.visit("GET", f.http.URL+"/dl/x?token="+service.Token, "").want(t, 403)
	_, token, _ := strings.Cut(plain, "token=")
	f.visit("GET", service.ServiceURL, "", tokenHeader, token).want(t, 401)

	short := link(`{"path":"/home/user/a b.html","expires_in_seconds":60}`)
	f.do("POST", "/boxes/one/stop", "").want(t, 204)
	clock.pass(60)
	f.visit("GET", short, "").want(t, 200) // it wakes
	clock.pass(1)
	f.visit("GET", short, "").want(t, 401, "has expired")
	f.visit("GET", plain, "").want(t, 200)

	for body, field := range map[string]string{
		`{}`: "path", `{"path":""}`: "path", `{"path":"/x","expires_in_seconds":0}`: "expires_in_seconds",
		`{"path":"/x","content_type":"a b"}`: "content_type", `{"path":"/x","content_type":"text/html\r\nX: y"}`: "content_type",
		`{"path":"/x","content_disposition":"other"}`: "content_disposition",
	} {
		f.do("POST", "/boxes/one/download-url", body).want(t, 422, `["body","`+field+`"]`)
	}
	f.do("DELETE", "/boxes/one", "").want(t, 204)
	f.visit("GET", plain, "").want(t, 404)
	f.do("POST", "/boxes/one/download-url", `{"path":"/x"}`).want(t, 404)
}

// old is a service that speaks as HTTP/1.0 did: its answer ends with the
// connection. A request to change the protocol it answers when it has heard all.
func old(t *testing.T, body string) (port int) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	t.Cleanup(func() { ln.Close(); work.Wait() })
	answer := func(conn net.Conn) {
		defer conn.Close()
		reader := bufio.NewReader(conn)
		r, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		if r.Header.Get("Upgrade") == "" {
			io.WriteString(conn, "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n"+body)
			return
		}
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: lines\r\n\r\n")
		all, err := io.ReadAll(reader)
		fmt.Fprintf(conn, "heard %s %v, %s", all, err, body)
	}
	work.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			work.Go(func() { answer(conn) })
		}
	})
	return ln.Addr().(*net.TCPAddr).Port
}

// TestServiceEnds has every answer arrive whole that ends with its connection,
// and one side speak on when the other has ended.
func TestServiceEnds(t *testing.T) {
	body := strings.Repeat("0123456789abcdef", 16<<10)
	f := serve(t, &host{daemon: http.HandlerFunc(inside)}, nil)
	f.box("web")
	link := f.link("web", fmt.Sprintf(`{"port":%d}`, old(t, body)))
	u, err := url.Parse(link.ServiceURL)
	if err != nil {
		t.Fatal(err)
	}
	ask := func() error {
		a, err := f.send(t.Context(), "GET", "!"+u.Path+"/", "", tokenHeader, link.Token)
		if err == nil && (a.StatusCode != 200 || a.body != body) {
			err = fmt.Errorf("status %d, %d bytes", a.StatusCode, len(a.body))
		}
		return err
	}
	upgrade := func() error {
		conn, err := net.Dial("tcp", f.http.Listener.Addr().String())
		if err != nil {
			return err
		}
		defer conn.Close()
		fmt.Fprintf(conn, "GET %s/ HTTP/1.1\r\nHost: %s\r\n%s: %s\r\nConnection: Upgrade\r\nUpgrade: lines\r\n\r\n", u.Path, u.Host, tokenHeader, link.Token)
		reader := bufio.NewReader(conn)
		res, err := http.ReadResponse(reader, nil)
		if err != nil {
			return err
		}
		if res.StatusCode != 101 {
			return fmt.Errorf("status %d", res.StatusCode)
		}
		io.WriteString(conn, "last words")
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
		if all, err := io.ReadAll(reader); err != nil || string(all) != "heard last words <nil>, "+body {
			return fmt.Errorf("got %d bytes, %v", len(all), err)
		}
		return nil
	}
	for name, once := range map[string]func() error{"an answer that ends with its connection": ask, "an upgraded connection": upgrade} {
		var work sync.WaitGroup
		for range 8 {
			work.Go(func() {
				for range 25 {
					if err := once(); err != nil {
						t.Errorf("%s: %v", name, err)
						return
					}
				}
			})
		}
		work.Wait()
	}
}

// TestServiceAnswersFirst has services that do not wait for a request, as a line
// of shell with nc does: their answers arrive all the same.
func TestServiceAnswersFirst(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	t.Cleanup(func() { ln.Close(); work.Wait() })
	work.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "HTTP/1.0 200 OK\r\n\r\nhello")
			conn.(*net.TCPConn).CloseWrite()
			work.Go(func() { io.Copy(io.Discard, conn); conn.Close() })
		}
	})
	f := serve(t, &host{daemon: http.HandlerFunc(inside)}, nil)
	f.box("web")
	link := f.link("web", fmt.Sprintf(`{"port":%d}`, ln.Addr().(*net.TCPAddr).Port))
	u, err := url.Parse(link.ServiceURL)
	if err != nil {
		t.Fatal(err)
	}
	for range 300 {
		a, err := f.send(t.Context(), "GET", "!"+u.Path+"/", "", tokenHeader, link.Token)
		if err != nil || a.StatusCode != 200 || a.body != "hello" {
			t.Fatalf("%v: %+v", err, a)
		}
	}
}
