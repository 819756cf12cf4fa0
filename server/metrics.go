package server

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines how a server is watched: GET /healthz, which asks for no
// key, and GET /metrics in the text format of Prometheus. What is counted lives
// with the server, and says nothing of who asked for what.

const (
	healthPath  = "/healthz"
	metricsPath = "/metrics"
)

// metrics are what was counted since the server began.
type metrics struct {
	mu       sync.Mutex
	requests map[requestKind]uint64
	took     map[string]duration // by plane
}

type requestKind struct {
	plane, method string
	status        int
}

type duration struct {
	count uint64
	sum   time.Duration
}

// methods are those that are counted by name: a client can make up any other.
var methods = []string{"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}

func (m *metrics) count(plane, method string, status int, took time.Duration) {
	if !slices.Contains(methods, method) {
		method = "other"
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.requests[requestKind{plane, method, status}]++
	if status != http.StatusSwitchingProtocols { // those last as long as they are used
		d := m.took[plane]
		m.took[plane] = duration{d.count + 1, d.sum + took}
	}
}

// plane is what a request is for.
func (s *Server) plane(r *http.Request) string {
	path := r.URL.Path
	if _, ok := s.serviceOf(r); ok {
		return "service"
	}
	switch {
	case strings.HasPrefix(path, sandboxPath):
		return "data"
	case strings.HasPrefix(path, downloadPath):
		return "download"
	case slices.ContainsFunc(prefixes[:], func(prefix string) bool { return strings.HasPrefix(path, prefix) }):
		return "control"
	}
	return "other"
}

// serveHealth tells that the server answers and finds its books.
func (s *Server) serveHealth(w *recorder, r *http.Request) error {
	if err := s.guardHost(r); err != nil {
		return err
	}
	if _, err := os.Stat(s.store.boxes.dir); err != nil {
		f := fail(http.StatusServiceUnavailable, wire.ErrServiceUnavailable, "the state folder cannot be read")
		f.cause = err
		return f
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	io.WriteString(w, "ok\n")
	return nil
}

func (s *Server) serveMetrics(w *recorder) error {
	all, err := s.store.boxes.all()
	if err != nil {
		return err
	}
	boxes := map[string]int{wire.StatusProvisioning: 0, wire.StatusReady: 0, wire.StatusStopped: 0, wire.StatusFailed: 0, wire.StatusDeleting: 0}
	for _, b := range all {
		status, _ := s.status(b)
		boxes[status]++
	}
	var text strings.Builder
	family := func(name, kind, help string) {
		fmt.Fprintf(&text, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
	}
	family("sbx_star_info", "gauge", "Constant 1, with what this server is.")
	fmt.Fprintf(&text, "sbx_star_info{runtime=%s,version=%s} 1\n", label(s.options.Runtime.Info().Name), label(s.options.Version))
	family("sbx_star_sandboxes", "gauge", "Sandboxes in the state folder.")
	for _, status := range slices.Sorted(maps.Keys(boxes)) {
		fmt.Fprintf(&text, "sbx_star_sandboxes{status=%s} %d\n", label(status), boxes[status])
	}
	family("sbx_star_websockets", "gauge", "WebSockets to sandboxes that are open.")
	fmt.Fprintf(&text, "sbx_star_websockets %d\n", s.sockets.Load())
	s.metrics.write(&text, family)
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	io.WriteString(w, text.String())
	return nil
}

func (m *metrics) write(w io.Writer, family func(name, kind, help string)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	family("sbx_star_requests_total", "counter", "Requests that were answered.")
	kinds := slices.SortedFunc(maps.Keys(m.requests), func(a, b requestKind) int {
		return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
	})
	for _, k := range kinds {
		fmt.Fprintf(w, "sbx_star_requests_total{method=%s,plane=%s,status=\"%d\"} %d\n", label(k.method), label(k.plane), k.status, m.requests[k])
	}
	family("sbx_star_request_duration_seconds", "summary", "How long requests took, less those that became WebSockets.")
	for _, plane := range slices.Sorted(maps.Keys(m.took)) {
		d := m.took[plane]
		fmt.Fprintf(w, "sbx_star_request_duration_seconds_sum{plane=%s} %g\n", label(plane), d.sum.Seconds())
		fmt.Fprintf(w, "sbx_star_request_duration_seconds_count{plane=%s} %d\n", label(plane), d.count)
	}
}

// label is a label's value as the format has it.
func label(value string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(value) + `"`
}
