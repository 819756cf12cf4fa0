//go:build linux

package conformance

import (
	"slices"
	"strings"
	"testing"
)

// This file tests which endpoints there are (protocol.md §2.0, §1.2, §15, §16.1).

const (
	template = `"image":"python:3.12","resources":{"cpu":"500m","memory":"512Mi"}`
	missing  = `{"detail":{"error":"NotImplemented","message":"*"}}`
)

// One row for each of the endpoint index. The rows are one history: what the
// later ones ask for, earlier ones made.
func TestEndpointIndex(t *testing.T) {
	rows := []struct {
		in string // generations that have it
		step
	}{
		{"seed classic", step{"POST /volumes", `{"name":"v","size":"1Gi","wait_for_ready":true,"timeout":60}`, 201, `{"name":"v"}`}},
		{"seed classic", step{"GET /volumes", ``, 200, `{"volumes":[{"name":"v"}]}`}},
		{"seed classic", step{"GET /volumes/v", ``, 200, `{"name":"v"}`}},
		{"seed classic", step{"PATCH /volumes/v", `{"size":"2Gi"}`, 200, `{"size":"2Gi"}`}},
		{"seed classic", step{"DELETE /volumes/v", ``, 204, ``}},
		{"seed classic", step{"POST /templates", `{"name":"t",` + template + `}`, 201, `{"name":"t"}`}},
		{"seed classic", step{"GET /templates", ``, 200, `{"templates":[{"name":"t"}]}`}},
		{"seed classic", step{"GET /templates/t", ``, 200, `{"name":"t"}`}},
		{"seed classic", step{"PATCH /templates/t", `{"name":"u"}`, 200, `{"name":"u"}`}},
		{"seed classic", step{"POST /pools", `{"name":"p","template_name":"u","replicas":1,"wait_for_ready":true,"timeout":30}`, 201, `{"name":"p"}`}},
		{"seed classic", step{"GET /pools", ``, 200, `{"pools":[{"name":"p"}]}`}},
		{"seed classic", step{"GET /pools/p", ``, 200, `{"replicas":1}`}},
		{"seed classic", step{"PATCH /pools/p", `{"replicas":0}`, 200, `{"replicas":0}`}},
		{"seed classic", step{"DELETE /pools/p", ``, 204, ``}},
		{"all", step{"POST /boxes", `{$source"name":"b","wait_for_ready":true,"timeout":30}`, 201, `{"name":"b"}`}},
		{"all", step{"GET /boxes", ``, 200, `{"sandboxes":[{"name":"b"}]}`}},
		{"all", step{"GET /boxes/b", ``, 200, `{"name":"b"}`}},
		{"all", step{"PATCH /boxes/b", `{"name":"c"}`, 200, `{"name":"c"}`}},
		{"all", step{"GET /boxes/c/status", ``, 200, `{"status":"ready"}`}},
		{"classic head late", step{"POST /boxes/c/service-url", `{"port":8080,"expires_in_seconds":600}`, 200, `{"token":"*"}`}},
		{"head late", step{"POST /boxes/c/download-url", `{"path":"/f"}`, 200, `{"token":"*"}`}},
		{"classic head late", step{"POST /boxes/c/snapshot", `{"name":"s"}`, 201, `{"name":"s"}`}},
		{"classic head late", step{"POST /boxes/c/stop", `{}`, 204, ``}},
		{"classic head late", step{"POST /boxes/c/start", `{}`, 202, ``}},
		{"classic head late", step{"POST /snapshots", `{"name":"i","docker_image":"host","fs_capacity_bytes":1073741824}`, 201, `{"id":"$snapshot"}`}},
		{"classic head late", step{"GET /snapshots", ``, 200, `{"snapshots":[{},{}],"offset":0}`}},
		{"classic head late", step{"GET /snapshots/$snapshot", ``, 200, `{"id":"$snapshot"}`}},
		{"head late", step{"GET /snapshots-by-name/i", ``, 200, `{"name":"i","tags":[{"tag":"latest","snapshot_id":"$snapshot"}]}`}},
		{"classic head late", step{"DELETE /snapshots/$snapshot", ``, 204, ``}},
		{"head late", step{"POST /registries", `{"name":"r","url":"https://r.example","username":"u","password":"p"}`, 201, `{"name":"r"}`}},
		{"head late", step{"GET /registries", ``, 200, `{"registries":[{"name":"r"}],"offset":0}`}},
		{"head late", step{"GET /registries/r", ``, 200, `{"name":"r"}`}},
		{"head late", step{"PATCH /registries/r", `{"url":"https://q.example"}`, 200, `{"url":"https://q.example"}`}},
		{"head late", step{"DELETE /registries/r", ``, 204, ``}},
		{"all", step{"DELETE /boxes/c", ``, 204, ``}},
		{"seed classic", step{"DELETE /templates/u", ``, 204, ``}},
		{"all", step{"GET /info", ``, 200, `{"server":"sbx-star"}`}},
	}
	eachGeneration(t, func(f *fixture, generation string) {
		if generation == seed || generation == classic {
			f.vars["source"] = `"template_name":"u",`
		}
		for _, row := range rows {
			if row.in == "all" || slices.Contains(strings.Fields(row.in), generation) {
				f.do(row.step)
			} else {
				f.do(step{row.ask, row.body, 404, missing})
			}
		}
	})
}

// A box's sources by generation (§2.4, §12).
func TestSourcesByGeneration(t *testing.T) {
	for body, in := range map[string]string{
		`{"template_name":"none"}`: "seed classic",
		`{"snapshot_id":"none"}`:   "classic head late",
		`{"snapshot_name":"none"}`: "head late",
	} {
		eachGeneration(t, func(f *fixture, generation string) {
			if slices.Contains(strings.Fields(in), generation) {
				f.do(step{"POST /boxes", body, 400, `{"detail":{"error":"~NotFound"}}`})
			} else {
				f.do(step{"POST /boxes", body, 422, refused(body[2:strings.Index(body, `":`)])})
			}
		})
	}
}

// The same tree at three prefixes, and nothing elsewhere (§1.2).
func TestPrefixes(t *testing.T) {
	f := serve(t, nil)
	f.do(
		step{"POST !/v2/sandboxes/registries", `{"name":"r","url":"https://r.example","username":"u","password":"p"}`, 201, ``},
		step{"GET !/api/v2/sandboxes/registries/r", ``, 200, `{"name":"r"}`},
		step{"GET !/api/api/v2/sandboxes/registries/r", ``, 200, `{"name":"r"}`},
		step{"GET !/v2/sandboxes/registries/r/", ``, 200, `{"name":"r"}`},
		step{"GET !/v1/sandboxes/registries/r", ``, 404, formA("NotFound")},
		step{"GET !/", ``, 404, formA("NotFound")},
	)
}
