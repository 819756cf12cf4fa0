package server_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/sbx-star/sbx-star/server"
)

// This file tests how a server is watched.

func TestHealth(t *testing.T) {
	f := serve(t, &host{}, func(o *server.Options) { o.APIKey = "sesame" })
	f.key = ""
	if a := f.do("GET", "!/healthz", ""); a.StatusCode != 200 || a.body != "ok" {
		t.Errorf("got %d %s", a.StatusCode, a.body)
	}
	f.do("GET", "!/healthz", "", "Host", "evil.example").want(t, 403)
	if err := os.RemoveAll(filepath.Join(f.dir, "boxes")); err != nil {
		t.Fatal(err)
	}
	f.do("GET", "!/healthz", "").want(t, 503, `"error":"ServiceUnavailable"`)
	f.server.Close()
	f.do("GET", "!/healthz", "").want(t, 503)
}

func TestMetrics(t *testing.T) {
	f := serve(t, &host{}, func(o *server.Options) { o.APIKey, o.Version = "sesame", `a"b` })
	b := f.box("one")
	f.box("two")
	f.do("POST", "/boxes/two/stop", "").want(t, 204)
	f.do("GET", path(b, "/download?path=x"), "").want(t, 200)
	f.do("GET", "!/healthz", "").want(t, 200)
	f.do("GET", "/nope", "").want(t, 404)
	f.do("BREW", "/nope", "").want(t, 404)
	exchange(t, f.socket(b, "/execute/ws"), "hello")
	f.do("GET", "!/metrics", "", "X-Api-Key", "wrong").want(t, 401)
	a := f.do("GET", "!/metrics", "", "X-Api-Key", "", "Authorization", "Bearer sesame")
	a.want(t, 200,
		"# TYPE sbx_star_info gauge\nsbx_star_info{runtime=\"memory\",version=\"a\\\"b\"} 1\n",
		"# TYPE sbx_star_sandboxes gauge\nsbx_star_sandboxes{status=\"deleting\"} 0\n",
		"sbx_star_sandboxes{status=\"ready\"} 1\n", "sbx_star_sandboxes{status=\"stopped\"} 1\n",
		"\nsbx_star_websockets 1\n",
		"# TYPE sbx_star_requests_total counter\n",
		"sbx_star_requests_total{method=\"POST\",plane=\"control\",status=\"201\"} 2\n",
		"sbx_star_requests_total{method=\"GET\",plane=\"data\",status=\"200\"} 1\n",
		"sbx_star_requests_total{method=\"GET\",plane=\"control\",status=\"404\"} 1\n",
		"sbx_star_requests_total{method=\"other\",plane=\"control\",status=\"404\"} 1\n",
		"sbx_star_requests_total{method=\"GET\",plane=\"other\",status=\"200\"} 1\n",
		"sbx_star_requests_total{method=\"GET\",plane=\"other\",status=\"401\"} 1\n",
		"sbx_star_request_duration_seconds_count{plane=\"data\"} 1")
	if a.Header.Get("Content-Type") != "text/plain; version=0.0.4; charset=utf-8" {
		t.Errorf("headers %v", a.Header)
	}
}
