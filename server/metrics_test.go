package server_test

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

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
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(a.body + "\n"))
	if a.StatusCode != 200 || err != nil {
		t.Fatalf("%d, %v: %s", a.StatusCode, err, a.body)
	}
	kinds := map[string]string{}
	values := map[string]float64{}
	for name, family := range families {
		kinds[name] = family.GetType().String()
		for _, m := range family.GetMetric() {
			labels := []string{}
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			values[name+" "+strings.Join(labels, " ")] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetSummary().GetSampleCount())
		}
	}
	if want := map[string]string{"sbx_star_info": "GAUGE", "sbx_star_sandboxes": "GAUGE", "sbx_star_websockets": "GAUGE",
		"sbx_star_requests_total": "COUNTER", "sbx_star_request_duration_seconds": "SUMMARY"}; !maps.Equal(kinds, want) {
		t.Errorf("got %v, want %v", kinds, want)
	}
	for name, want := range map[string]float64{
		`sbx_star_info memory a"b`:                  1,
		"sbx_star_sandboxes deleting":               0,
		"sbx_star_sandboxes ready":                  1,
		"sbx_star_sandboxes stopped":                1,
		"sbx_star_websockets ":                      1,
		"sbx_star_requests_total POST control 201":  2,
		"sbx_star_requests_total GET data 200":      1,
		"sbx_star_requests_total GET control 404":   1,
		"sbx_star_requests_total other control 404": 1,
		"sbx_star_requests_total GET other 200":     1,
		"sbx_star_requests_total GET other 401":     1,
		"sbx_star_request_duration_seconds data":    1,
	} {
		if got, ok := values[name]; !ok || got != want {
			t.Errorf("%s is %v, want %v; there is %v", name, got, want, values)
		}
	}
	if a.Header.Get("Content-Type") != "text/plain; version=0.0.4; charset=utf-8" {
		t.Errorf("headers %v", a.Header)
	}
}
