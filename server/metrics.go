package server

import (
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines how a server is watched: GET /healthz, which asks for no
// key, and GET /metrics in the text format of Prometheus. What is counted lives
// with the server, and says nothing of who asked for what. promhttp is left out:
// it would add to the start of every daemon, which is the same program.

const (
	healthPath  = "/healthz"
	metricsPath = "/metrics"
)

// metrics are what was counted since the server began.
type metrics struct {
	registry *prometheus.Registry
	boxes    *prometheus.GaugeVec
	requests *prometheus.CounterVec
	took     *prometheus.SummaryVec
}

func (s *Server) newMetrics() metrics {
	m := metrics{
		registry: prometheus.NewRegistry(),
		boxes:    prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sbx_star_sandboxes", Help: "Sandboxes in the state folder."}, []string{"status"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sbx_star_requests_total", Help: "Requests that were answered."}, []string{"plane", "method", "status"}),
		took:     prometheus.NewSummaryVec(prometheus.SummaryOpts{Name: "sbx_star_request_duration_seconds", Help: "How long requests took, less those that became WebSockets."}, []string{"plane"}),
	}
	m.registry.MustRegister(m.boxes, m.requests, m.took,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sbx_star_info", Help: "Constant 1, with what this server is.",
			ConstLabels: prometheus.Labels{"runtime": s.options.Runtime.Info().Name, "version": s.options.Version}}, func() float64 { return 1 }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sbx_star_websockets", Help: "WebSockets to sandboxes that are open."},
			func() float64 { return float64(s.sockets.Load()) }))
	return m
}

// methods are those that are counted by name: a client can make up any other.
var methods = []string{"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}

func (m *metrics) count(plane, method string, status int, took time.Duration) {
	if !slices.Contains(methods, method) {
		method = "other"
	}
	m.requests.WithLabelValues(plane, method, strconv.Itoa(status)).Inc()
	if status != http.StatusSwitchingProtocols { // those last as long as they are used
		m.took.WithLabelValues(plane).Observe(took.Seconds())
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
	for status, n := range boxes {
		s.metrics.boxes.WithLabelValues(status).Set(float64(n))
	}
	families, err := s.metrics.registry.Gather()
	if err != nil {
		return err
	}
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	w.Header().Set("Content-Type", string(format))
	text := expfmt.NewEncoder(w, format)
	for _, family := range families {
		if text.Encode(family) != nil {
			return nil // the client has gone
		}
	}
	return nil
}
