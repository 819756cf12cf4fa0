//go:build linux

package conformance

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// This file tests what reaches a service in a sandbox, and what comes back
// (protocol.md §2.8, §16.8, §16.9). The runtime of these tests shares the ports
// of this machine with its sandboxes, so the services are the test's own.

// inside is a service that tells what it was sent.
func inside(t *testing.T, handler http.HandlerFunc) (port int) {
	t.Helper()
	h := httptest.NewServer(handler)
	t.Cleanup(h.Close)
	return h.Listener.Addr().(*net.TCPAddr).Port
}

// link binds $service, $token and $host to a service of the sandbox $id.
func (f *fixture) link(port int, more string) {
	f.Helper()
	for _, name := range []string{"service", "token", "browser"} {
		delete(f.vars, name)
	}
	f.do(step{"POST /boxes/$id/service-url", fmt.Sprintf(`{"port":%d%s}`, port, more), 200, `{"service_url":"$service","token":"$token","browser_url":"$browser"}`})
	f.vars["host"] = strings.Split(f.expand("$browser"), "/")[2]
}

// The token is for the server, and the service never sees it, the key, or who
// somebody says to be (§2.8, §16.9).
func TestServiceRequests(t *testing.T) {
	each(t, "classic head late", func(t *testing.T, f *fixture) {
		f.box(``)
		f.link(inside(t, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(201)
			json.NewEncoder(w).Encode(map[string]any{"method": r.Method, "uri": r.RequestURI, "body": string(body),
				"header": r.Header, "cookie": strings.Join(r.Header.Values("Cookie"), "; ")})
		}), "")
		const header = "\nX-Langsmith-Sandbox-Service-Token: $token"
		for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
			f.do(step{method + " $service/a%2Fb/c?q=%20" + header, "text", 201, `{"method":"` + method + `","uri":"/a%2Fb/c?q=%20","body":"text",
				"header":{"X-Langsmith-Sandbox-Service-Token":null,"X-Api-Key":null}}`})
		}
		for _, name := range []string{"X-Langsmith-User-Token", "X-Langsmith-User-Id", "X-Langsmith-User-Email"} {
			f.do(step{"GET $service/" + header + "\n" + name + ": me", ``, 201, `{"header":{"` + name + `":null}}`})
		}
		f.do(
			step{"GET !/_svc/auth?token=$token\nHost: $host", ``, 303, "Set-Cookie: $cookie\nLocation: /\n"},
		)
		f.vars["cookie"], _, _ = strings.Cut(f.expand("$cookie"), ";")
		f.do(
			step{"GET !/page\nHost: $host\nX-Api-Key: \nCookie: own=1; $cookie", ``, 201, "Content-Security-Policy: frame-ancestors 'self'\n" + `{"uri":"/page","cookie":"own=1"}`},
			step{"GET !/page\nHost: $host\nX-Api-Key: \nCookie: own=1", ``, 401, formA("Unauthorized")},
		)
		// It wakes what is stopped.
		f.do(step{"POST /boxes/$id/stop", `{}`, 204, ``}, step{"GET $service/" + header, ``, 201, ``},
			step{"GET /boxes/$id/status", ``, 200, `{"status":"ready"}`})
	})
}

// WebSocket upgrades take the token as well.
func TestServiceWebSockets(t *testing.T) {
	each(t, "classic head late", func(t *testing.T, f *fixture) {
		f.box(``)
		f.link(inside(t, func(w http.ResponseWriter, r *http.Request) {
			c, err := new(websocket.Upgrader).Upgrade(w, r, nil)
			if err != nil {
				return
			}
			defer c.Close()
			for {
				kind, data, err := c.ReadMessage()
				if err != nil || c.WriteMessage(kind, data) != nil {
					return
				}
			}
		}), "")
		url := "ws" + strings.TrimPrefix(f.expand("$service"), "http") + "/socket"
		if _, res, err := websocket.DefaultDialer.Dial(url, nil); err == nil || res == nil || res.StatusCode != 401 {
			t.Fatalf("without a token: %v, %v", res, err)
		}
		c, _, err := websocket.DefaultDialer.Dial(url, http.Header{"X-Langsmith-Sandbox-Service-Token": {f.expand("$token")}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		c.WriteMessage(websocket.BinaryMessage, []byte("echo\xff"))
		if kind, data, err := c.ReadMessage(); err != nil || kind != websocket.BinaryMessage || string(data) != "echo\xff" {
			t.Errorf("got %q of kind %d, %v", data, kind, err)
		}
	})
}

// What the list of service URLs shows, and what taking one back does (§16.8).
func TestServiceURLList(t *testing.T) {
	each(t, "late", func(t *testing.T, f *fixture) {
		f.box(`"name":"b"`)
		f.do(
			step{"GET /boxes/b/service-urls", ``, 200, `{"items":[],"next_cursor":null}`},
			step{"GET /boxes/none/service-urls", ``, 404, formA("NotFound")},
			step{"POST /boxes/b/service-url", `{"port":8080,"expires_in_seconds":600}`, 200, ``},
			step{"POST /boxes/b/service-url", `{"port":8081,"embed_origins":["https://a.example"]}`, 200, ``},
			step{"GET /boxes/b/service-urls?page_size=1", ``, 200, `{"items":[{}],"next_cursor":"*"}`},
			step{"DELETE /boxes/b/service-urls?port=8081", ``, 204, ``},
			step{"GET /boxes/b/service-urls", ``, 200, `{"items":[{"access":"token","port":8080,"created_at":"*","expires_at":"*"}],"next_cursor":null}`},
			step{"DELETE /boxes/b/service-urls", ``, 204, ``},
			step{"GET /boxes/b/service-urls", ``, 200, `{"items":[]}`},
			step{"DELETE /boxes/none/service-urls", ``, 404, formA("NotFound")},
		)
	})
}
