package server

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines which path leads where (protocol.md §2.0).

// prefixes of the control plane; all serve the same (protocol.md §1.2).
var prefixes = [...]string{"/v2/sandboxes", "/api/v2/sandboxes", "/api/api/v2/sandboxes"}

// sandboxPath comes before the id in the path of every dataplane_url.
const sandboxPath = "/sb/"

// endpoint answers one method on one path with a status and a JSON body. The
// path may hold {name}, which is one segment, decoded.
type endpoint struct {
	method string // "" is any
	path   string
	serve  func(call) (status int, body any, err error)
}

// call is a request to the control plane.
type call struct {
	*http.Request
	name string // what stands for {name}
	body []byte
}

func (s *Server) routes() []endpoint {
	routes := []endpoint{
		{"GET", "/info", s.info},
		{"GET", "/templates", s.listTemplates},
		{"POST", "/templates", s.createTemplate},
		{"GET", "/templates/{name}", s.getTemplate},
		{"PATCH", "/templates/{name}", s.updateTemplate},
		{"DELETE", "/templates/{name}", s.deleteTemplate},
		{"GET", "/volumes", s.listVolumes},
		{"POST", "/volumes", s.createVolume},
		{"GET", "/volumes/{name}", s.getVolume},
		{"PATCH", "/volumes/{name}", s.updateVolume},
		{"DELETE", "/volumes/{name}", s.deleteVolume},
		{"GET", "/pools", s.listPools},
		{"POST", "/pools", s.createPool},
		{"GET", "/pools/{name}", s.getPool},
		{"PATCH", "/pools/{name}", s.updatePool},
		{"DELETE", "/pools/{name}", s.deletePool},
		{"GET", "/snapshots", s.listSnapshots},
		{"POST", "/snapshots", s.createSnapshot},
		{"GET", "/snapshots/{name}", s.getSnapshot},
		{"DELETE", "/snapshots/{name}", s.deleteSnapshot},
		{"GET", "/snapshots-by-name/{name}", s.snapshotTags},
		{"POST", "/boxes/{name}/snapshot", s.captureSnapshot},
		{"GET", "/registries", s.listRegistries},
		{"POST", "/registries", s.createRegistry},
		{"GET", "/registries/{name}", s.getRegistry},
		{"PATCH", "/registries/{name}", s.updateRegistry},
		{"DELETE", "/registries/{name}", s.deleteRegistry},
		{"GET", "/boxes", s.listBoxes},
		{"POST", "/boxes", s.createBox},
		{"GET", "/boxes/{name}", s.getBox},
		{"PATCH", "/boxes/{name}", s.updateBox},
		{"DELETE", "/boxes/{name}", s.deleteBox},
		{"GET", "/boxes/{name}/status", s.boxStatus},
		{"POST", "/boxes/{name}/start", s.startBox},
		{"POST", "/boxes/{name}/service-url", s.serviceURL},
		{"GET", "/boxes/{name}/service-urls", s.listServices},
		{"DELETE", "/boxes/{name}/service-urls", s.forgetServices},
		{"POST", "/boxes/{name}/download-url", s.downloadURL},
		{"POST", "/leases/{name}/renew", s.renewLease},
		{"POST", "/boxes/{name}/stop", s.stopBox},
	}
	for path, why := range hosted {
		routes = append(routes, endpoint{"", path, func(call) (int, any, error) {
			return 0, nil, notImplemented(why)
		}})
	}
	return routes
}

// hosted are the paths of what only the hosted service can do, and why
// (protocol.md §2.14, §16.12).
var hosted = map[string]string{
	"/usage":               "this server counts nothing by user: GET " + metricsPath + " tells how much there is",
	"/usage/costs":         "nothing on this server costs anything",
	"/auth/sandbox-access": "this server knows no users: whoever has its key may do everything",
	"/boxes/batch-delete":  "this server deletes one sandbox at a time: DELETE /boxes/{name}",
}

// route answers a request, or returns the error to answer it with.
func (s *Server) route(w *recorder, r *http.Request) error {
	if to, ok := s.serviceOf(r); ok {
		return s.serveService(w, r, to)
	}
	path := r.URL.EscapedPath()
	if strings.HasPrefix(path, downloadPath) {
		return s.serveDownload(w, r)
	}
	if path == healthPath {
		return s.serveHealth(w, r)
	}
	if err := s.guard(r); err != nil {
		return err
	}
	if path == metricsPath {
		return s.serveMetrics(w)
	}
	if rest, ok := strings.CutPrefix(path, sandboxPath); ok {
		return s.dataPlane(w, r, rest)
	}
	for _, prefix := range prefixes {
		if rest, ok := strings.CutPrefix(path, prefix); ok {
			return s.controlPlane(w, r, rest)
		}
	}
	return notFound(r)
}

func notFound(r *http.Request) error {
	return fail(http.StatusNotFound, kindNotFound, "there is nothing at %s: the API is under %s", r.URL.Path, prefixes[0])
}

func (s *Server) controlPlane(w *recorder, r *http.Request, path string) error {
	var allow []string
	for _, e := range s.endpoints {
		name, ok := match(e.path, path)
		if !ok {
			continue
		}
		if e.method == "" || e.method == r.Method || e.method == "GET" && r.Method == "HEAD" {
			body, err := readBody(w, r)
			if err != nil {
				return err
			}
			status, result, err := e.serve(call{r, name, body})
			if err == nil {
				answer(w, status, result)
			}
			return err
		}
		allow = append(allow, e.method)
	}
	if allow == nil {
		return notFound(r)
	}
	if slices.Contains(allow, "GET") {
		allow = append(allow, "HEAD")
	}
	f := fail(http.StatusMethodNotAllowed, kindMethod, "%s is not possible here, only %s", r.Method, strings.Join(allow, ", "))
	f.allow = strings.Join(allow, ", ")
	return f
}

// match compares an escaped path with a pattern, segment by segment, and
// returns what stands for {name}. One slash at the end does not count.
func match(pattern, path string) (name string, ok bool) {
	want, got := strings.Split(pattern, "/"), strings.Split(strings.TrimSuffix(path, "/"), "/")
	if len(want) != len(got) {
		return "", false
	}
	for i, segment := range want {
		if segment == "{name}" {
			var err error
			if name, err = url.PathUnescape(got[i]); err != nil || name == "" {
				return "", false
			}
		} else if segment != got[i] {
			return "", false
		}
	}
	return name, true
}

// info is the discovery document (protocol.md §15).
func (s *Server) info(call) (int, any, error) {
	rt := s.options.Runtime.Info()
	limits := map[string]any{"json_bytes": maxJSON, "wait_seconds": maxWait}
	if rt.Storage != "" {
		limits["storage"] = rt.Storage
	}
	return http.StatusOK, wire.Info{
		Server:      "sbx-star",
		Version:     s.options.Version,
		Generations: s.options.Generations,
		Runtime:     rt.Name,
		Isolation:   rt.Isolation,
		Extensions:  []string{"exec.v1", "leases"},
		Limits:      limits,
		Enforces:    rt.Enforces,
	}, nil
}
