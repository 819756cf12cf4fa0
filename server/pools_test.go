package server_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/server"
	"github.com/sbx-star/sbx-star/wire"
)

// This file tests pools and quotas (protocol.md §2.3, §3.1).

// specs are those of the sandboxes that were made so far.
func (h *host) specs() []runtime.Spec {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.created)
}

// sandboxes waits until so many live.
func (f *fixture) sandboxes(h *host, n int) {
	f.t.Helper()
	eventually(f.t, fmt.Sprintf("%d sandboxes", n), func() bool { return h.alive() == n && f.settled() })
}

// settled reports whether no sandbox, hidden or not, is being made or deleted.
func (f *fixture) settled() bool {
	records, _ := filepath.Glob(filepath.Join(f.dir, "boxes", "*", "box.json"))
	for _, path := range records {
		if data, err := os.ReadFile(path); err != nil || !strings.Contains(string(data), `"status":"ready"`) {
			return false
		}
	}
	return true
}

func (f *fixture) pool(replicas int) {
	f.t.Helper()
	f.do("POST", "/templates", `{"name":"t","image":"host"}`).want(f.t, 201)
	f.do("POST", "/pools", fmt.Sprintf(`{"name":"p","template_name":"t","replicas":%d,"wait_for_ready":true,"timeout":30}`, replicas)).want(f.t, 201)
}

func TestPools(t *testing.T) {
	h := &host{}
	f := serve(t, h, loose)
	pool := func(name, template string, replicas int) string {
		return fmt.Sprintf(`{"id":"%s","name":"%s","template_name":"%s","replicas":%d,"created_at":"%s","updated_at":"%s"}`, id2, name, template, replicas, at, at)
	}
	const create = `{"name":"p","template_name":"t","replicas":1,"wait_for_ready":true,"timeout":30}`
	f.do("POST", "/templates", `{"name":"t","image":"host"}`).want(t, 201)
	f.steps([]step{
		{"GET", "/pools", "", 200, `{"pools":[]}`},
		{"POST", "/pools", create, 201, pool("p", "t", 1)},
		{"POST", "/pools", create, 409, `{"detail":"there is a pool \"p\" already"}`},
		{"POST", "/pools", `{"name":"q","template_name":"nope","replicas":1}`, 400, `{"detail":{"error":"TemplateNotFound","message":"there is no template \"nope\""}}`},
		{"POST", "/pools", `{"name":"q","template_name":"t","replicas":0}`, 422, badInput(`"body","replicas"`, "want an integer from 1 to 100, got 0")},
		{"POST", "/pools", `{"name":"q","template_name":"t","replicas":101}`, 422, badInput(`"body","replicas"`, "want an integer from 1 to 100, got 101")},
		{"POST", "/pools", `{"name":"Q","template_name":"t","replicas":1}`, 422, badInput(`"body","name"`, `the name \"Q\" is not one: want `+wire.NameRule)},
		{"GET", "/pools", "", 200, `{"pools":[` + pool("p", "t", 1) + `]}`},
		{"GET", "/pools/p", "", 200, pool("p", "t", 1)},
		{"GET", "/pools/" + id2, "", 200, pool("p", "t", 1)},
		{"GET", "/pools/q", "", 404, notFound(`pool \"q\"`)},
		{"PATCH", "/pools/q", `{"replicas":2}`, 404, notFound(`pool \"q\"`)},
		{"PATCH", "/pools/p", `{}`, 200, pool("p", "t", 1)},
		{"PATCH", "/pools/p", `{"replicas":-1}`, 422, badInput(`"body","replicas"`, "want an integer from 0 to 100, got -1")},
		{"PATCH", "/pools/p", `{"replicas":101}`, 422, badInput(`"body","replicas"`, "want an integer from 0 to 100, got 101")},
		{"GET", "/boxes", "", 200, listed("sandboxes", 0, "")},
		{"GET", "/boxes/" + id3, "", 404, notFound(`sandbox \"` + id3 + `\"`)},
		{"GET", "!/sb/" + id3 + "/download?path=x", "", 404, notFound(`sandbox with the id \"` + id3 + `\"`)},
		{"DELETE", "/boxes/" + id3, "", 404, notFound(`sandbox \"` + id3 + `\"`)},
		{"DELETE", "/templates/t", "", 409, conflict(`the template \"t\" is in use by the pool \"p\": delete that first`)},
	})
	f.do("PATCH", "/templates/t", `{"name":"tt"}`).want(t, 200)
	f.steps([]step{
		{"GET", "/pools/p", "", 200, pool("p", "tt", 1)},
		{"PATCH", "/pools/p", `{"name":"q"}`, 200, pool("q", "tt", 1)},
		{"DELETE", "/pools/p", "", 404, notFound(`pool \"p\"`)},
		{"DELETE", "/pools/q", "", 204, ""},
		{"GET", "/pools", "", 200, `{"pools":[]}`},
		{"DELETE", "/templates/tt", "", 204, ""},
	})
	f.empty(h)
	f.nothing("pools")

	f.do("POST", "/volumes", `{"name":"v","size":"1Gi"}`).want(t, 201)
	f.do("POST", "/templates", `{"name":"t","image":"host","volume_mounts":[{"volume_name":"v","mount_path":"/v"}]}`).want(t, 201)
	f.do("POST", "/pools", create).want(t, 400, `"error":"ValidationError"`, "mounts volumes")
}

func TestPoolHandsOut(t *testing.T) {
	h := &host{}
	f := serve(t, h, loose)
	f.pool(2)
	f.sandboxes(h, 2)
	for i, c := range []struct {
		ask  string
		warm bool
	}{
		{`"wait_for_ready":true,"timeout":30`, true},
		{`"name":"web","labels":{"a":"1"},"wait_for_ready":false,"ttl_seconds":0,"env_vars":{},"vcpus":null`, true},
		{`"env_vars":{"A":"1"}`, false},
		{`"vcpus":1`, false},
		{`"fs_capacity_bytes":1024`, false},
	} {
		f.sandboxes(h, 2+i)
		before := h.specs()
		var b wire.Box
		a := f.do("POST", "/boxes", `{"template_name":"t",`+c.ask+`}`)
		a.want(t, 201, `"template_name":"t"`)
		a.decode(t, &b)
		made := slices.ContainsFunc(before, func(s runtime.Spec) bool { return s.ID == b.ID })
		if made != c.warm || c.warm && b.Status != wire.StatusReady {
			t.Errorf("%s: made beforehand is %v, want %v: %s", c.ask, made, c.warm, a.body)
		}
		eventually(t, "ready", func() bool { return strings.Contains(f.do("GET", "/boxes/"+b.Name, "").body, `"ready"`) })
		f.do("GET", path(b, "/download?path=x"), "").want(t, 200, "GET /download")
	}
	f.do("GET", "/boxes/web", "").want(t, 200, `"labels":{"a":"1"}`)
	f.do("POST", "/boxes", `{"template_name":"t","name":"web"}`).want(t, 409)
	f.sandboxes(h, 2+5)
	f.do("GET", "/pools/p", "").want(t, 200, `"replicas":2`)

	// A sandbox that was handed out is not the pool's any more.
	f.do("DELETE", "/pools/p", "").want(t, 204)
	f.sandboxes(h, 5)
	f.do("DELETE", "/templates/t", "").want(t, 409, "in use by the sandbox")
}

func TestPoolScales(t *testing.T) {
	h := &host{}
	f := serve(t, h, loose)
	f.pool(1)
	for _, n := range []int{7, 3, 0, 2} {
		f.do("PATCH", "/pools/p", fmt.Sprintf(`{"replicas":%d}`, n)).want(t, 200, fmt.Sprintf(`"replicas":%d`, n))
		f.sandboxes(h, n)
	}
	f.do("DELETE", "/pools/p", "").want(t, 204)
	f.empty(h)
}

// A daemon that died while it waited is replaced, and never handed out.
func TestPoolReplacesTheDead(t *testing.T) {
	h := &host{}
	f := serve(t, h, loose)
	f.pool(2)
	f.sandboxes(h, 2)
	for _, spec := range h.specs() {
		h.kill(spec.Dir)
	}
	var b wire.Box
	f.do("POST", "/boxes", `{"template_name":"t","wait_for_ready":true}`).decode(t, &b)
	f.do("GET", path(b, "/download?path=x"), "").want(t, 200)
	f.sandboxes(h, 3)

	f.server.Close()
	for _, spec := range h.specs() {
		if spec.ID != b.ID {
			h.kill(spec.Dir)
		}
	}
	next := serve(t, h, func(o *server.Options) { o.BestEffort = true; o.StateDir = f.dir; o.NewID = nil })
	next.sandboxes(h, 3)
	next.do("GET", path(b, "/download?path=x"), "").want(t, 200)
}

func TestPoolOutlivesServers(t *testing.T) {
	h := &host{}
	f := serve(t, h, loose)
	f.pool(3)
	f.sandboxes(h, 3)
	f.server.Close()
	if h.alive() != 3 {
		t.Fatalf("%d sandboxes outlive the server", h.alive())
	}
	// One was killed while it made a sandbox, another while it deleted a pool.
	// And so was one that tried the image of a snapshot.
	for name, record := range map[string]string{
		"boxes/trial/box.json":       `{"box":{"id":"trial","name":"trial","status":"ready"},"pool":"sn","runtime":"memory"}`,
		"snapshots/sn/snapshot.json": `{"snapshot":{"id":"sn","name":"sn","status":"building"},"tag":"latest","image":"x","owner":"dead"}`,
		"boxes/half/box.json":        `{"box":{"id":"half","name":"half","status":"provisioning"},"pool":"` + id2 + `","unmade":true,"runtime":"memory","owner":"dead"}`,
		"boxes/left/box.json":        `{"box":{"id":"left","name":"left","status":"ready"},"pool":"gone","runtime":"memory"}`,
		"pools/gone.json":            `{"pool":{"id":"gone","name":"gone","replicas":5},"runtime":"memory","deleting":true}`,
		"pools/far.json":             `{"pool":{"id":"far","name":"far","replicas":5},"runtime":"other"}`,
	} {
		path := filepath.Join(f.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(record), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	next := serve(t, h, func(o *server.Options) { o.BestEffort = true; o.StateDir = f.dir; o.NewID = nil })
	eventually(t, "cleared away", func() bool {
		records, _ := os.ReadDir(filepath.Join(f.dir, "boxes"))
		pools, _ := os.ReadDir(filepath.Join(f.dir, "pools"))
		return len(records) == 3 && len(pools) == 2
	})
	next.do("DELETE", "/pools/far", "").want(t, 409, "keeps sandboxes of the other runtime")
	next.do("GET", "/pools/gone", "").want(t, 404)
	warm := h.specs()
	var b wire.Box
	next.do("POST", "/boxes", `{"template_name":"t"}`).decode(t, &b)
	if !slices.ContainsFunc(warm, func(s runtime.Spec) bool { return s.ID == b.ID }) {
		t.Errorf("got %+v, which is none of those that were ready", b)
	}
	next.sandboxes(h, 4)
	next.do("DELETE", "/pools/p", "").want(t, 204)
	next.sandboxes(h, 1)
}

// Two servers on one folder hand out each sandbox once and fill no gap twice.
func TestPoolOfTwoServers(t *testing.T) {
	h := &host{}
	f := serve(t, h, loose)
	both := []*fixture{f, serve(t, h, func(o *server.Options) { o.BestEffort = true; o.StateDir = f.dir; o.NewID = nil })}
	f.pool(5)
	f.sandboxes(h, 5)
	var mu sync.Mutex
	got := map[string]bool{}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			a, err := both[i%2].send(context.Background(), "POST", "/boxes", `{"template_name":"t","wait_for_ready":true}`)
			if err != nil || a.StatusCode != 201 {
				t.Errorf("%v: %s", err, a.body)
				return
			}
			var b wire.Box
			a.decode(t, &b)
			mu.Lock()
			defer mu.Unlock()
			if got[b.ID] {
				t.Errorf("the sandbox %s was handed out twice", b.ID)
			}
			got[b.ID] = true
		})
	}
	wg.Wait()
	f.sandboxes(h, 25)
	if n := len(h.specs()); n != 25 {
		t.Errorf("%d sandboxes were made, want 25", n)
	}
	if got := atOnce(t, 10, both, "DELETE", "/pools/p", ""); got[204] != 1 || got[404] != 9 {
		t.Errorf("answers to delete: %v", got)
	}
	f.sandboxes(h, 20)
}

func TestOneNameOnePool(t *testing.T) {
	h := &host{}
	f := serve(t, h, loose)
	both := []*fixture{f, serve(t, h, func(o *server.Options) { o.BestEffort = true; o.StateDir = f.dir; o.NewID = nil })}
	f.do("POST", "/templates", `{"name":"t","image":"host"}`).want(t, 201)
	if got := atOnce(t, 20, both, "POST", "/pools", `{"name":"p","template_name":"t","replicas":2}`); got[201] != 1 || got[409] != 19 {
		t.Errorf("answers to create: %v", got)
	}
	f.sandboxes(h, 2)
}

// A pool that cannot be filled is rolled back, and says why.
func TestPoolFails(t *testing.T) {
	h := &host{}
	f := serve(t, h, loose)
	f.do("POST", "/templates", `{"name":"t","image":"host"}`).want(t, 201)
	h.failure = &runtime.Unsupported{What: "no user namespaces", Hint: "allow them"}
	f.do("POST", "/pools", `{"name":"p","template_name":"t","replicas":1,"wait_for_ready":true}`).want(t, 422, `"error":"SandboxConfig"`, "no user namespaces")
	f.do("GET", "/pools/p", "").want(t, 404)
	f.empty(h)
}

// A pool that is deleted while its first sandboxes are being made leaves none.
func TestPoolDeletedMeanwhile(t *testing.T) {
	h := &host{gate: make(chan struct{})}
	f := serve(t, h, loose)
	f.do("POST", "/templates", `{"name":"t","image":"host"}`).want(t, 201)
	for name, end := range map[string]func(cancel func()){
		"deleted":     func(func()) { f.do("DELETE", "/pools/p", "").want(t, 204) },
		"caller gone": func(cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			answered := make(chan struct{})
			go func() {
				defer close(answered)
				if a, err := f.send(ctx, "POST", "/pools", `{"name":"p","template_name":"t","replicas":3,"wait_for_ready":true}`); err == nil && a.StatusCode != 410 {
					t.Errorf("the create was answered with %d: %s", a.StatusCode, a.body)
				}
			}()
			eventually(t, "under way", func() bool {
				boxes, _ := os.ReadDir(filepath.Join(f.dir, "boxes"))
				return len(boxes) > 0
			})
			end(cancel)
			<-answered
			eventually(t, "gone", func() bool {
				boxes, _ := os.ReadDir(filepath.Join(f.dir, "boxes"))
				pools, _ := os.ReadDir(filepath.Join(f.dir, "pools"))
				return len(boxes) == 0 && len(pools) == 0
			})
		})
	}
}

func TestPoolNotReadyInTime(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s, err := server.New(server.Options{Runtime: &host{gate: make(chan struct{})}, StateDir: dir, BestEffort: true})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		post := func(path, body string) *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			s.ServeHTTP(w, httptest.NewRequest("POST", "http://localhost"+base+path, strings.NewReader(body)))
			return w
		}
		post("/templates", `{"name":"t","image":"host"}`)
		for range 2 { // the name is free again
			w := post("/pools", `{"name":"p","template_name":"t","replicas":2,"wait_for_ready":true,"timeout":1}`)
			want := `{"detail":{"error":"Timeout","message":"the pool \"p\" had no sandbox ready within 10s","error_id":`
			if w.Code != 504 || !strings.HasPrefix(w.Body.String(), want) {
				t.Errorf("got %d %s", w.Code, w.Body)
			}
		}
	})
}

func TestQuotas(t *testing.T) {
	h := &host{}
	f := serve(t, h, func(o *server.Options) {
		o.BestEffort = true
		o.Quota = server.Quota{Sandboxes: 3, Volumes: 2, VolumeBytes: 3 << 30, Pools: 1, Snapshots: 2}
	})
	f.do("POST", "/templates", `{"name":"t","image":"host"}`).want(t, 201)
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"POST", "/volumes", `{"name":"v","size":"1Gi"}`, 201, ""},
		{"POST", "/volumes", `{"name":"w","size":"3Gi"}`, 429, `{"detail":{"error":"QuotaExceeded","message":"a volume of 3Gi does not fit: all together may take up 3221225472 bytes of storage"}}`},
		{"POST", "/volumes", `{"name":"w","size":"2Gi"}`, 201, ""},
		{"POST", "/volumes", `{"name":"x","size":"1Ki"}`, 429, `{"detail":{"error":"QuotaExceeded","message":"the limit of 2 volumes is reached: delete what is not needed"}}`},
		{"PATCH", "/volumes/v", `{"size":"2Gi"}`, 429, `storage`},
		{"PATCH", "/volumes/v", `{"size":"1024Mi"}`, 200, ""},
		{"POST", "/pools", `{"name":"p","template_name":"t","replicas":4}`, 429, `{"detail":"the limit of 3 sandboxes would be exceeded: there would be 4"}`},
		{"POST", "/pools", `{"name":"p","template_name":"t","replicas":2,"wait_for_ready":true}`, 201, ""},
		{"POST", "/pools", `{"name":"q","template_name":"t","replicas":1}`, 429, `{"detail":"the limit of 1 pools is reached: delete what is not needed"}`},
		{"PATCH", "/pools/p", `{"replicas":4}`, 429, `{"detail":"the limit of 3 sandboxes would be exceeded: there would be 4"}`},
		{"POST", "/snapshots", `{"name":"s","docker_image":"host"}`, 201, ""},
		{"POST", "/snapshots", `{"name":"s","docker_image":"host"}`, 201, ""},
		{"POST", "/snapshots", `{"name":"s","docker_image":"host"}`, 429, `{"detail":{"error":"QuotaExceeded","message":"the limit of 2 snapshots is reached: delete what is not needed"}}`},
	} {
		a := f.do(c.method, c.path, c.body)
		a.want(t, c.status, c.want)
		if retry := a.Header.Get("Retry-After"); (retry == "1") != (c.status == 429) {
			t.Errorf("%s %s: %d with Retry-After %q", c.method, c.path, c.status, retry)
		}
	}
	f.sandboxes(h, 2)
	f.box("web")
	f.do("POST", "/boxes", `{"name":"www"}`).want(t, 429, `{"detail":{"error":"QuotaExceeded","message":"the limit of 3 sandboxes is reached: delete what is not needed"}}`)
	// What a pool has ready is counted already.
	f.do("POST", "/boxes", `{"template_name":"t","wait_for_ready":true}`).want(t, 201)
	f.do("DELETE", "/boxes/web", "").want(t, 204)
}
