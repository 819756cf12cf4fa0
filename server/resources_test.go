package server_test

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/server"
	"github.com/sbx-star/sbx-star/wire"
)

// This file tests the resources beside sandboxes and templates by what goes
// over the wire (protocol.md §2.1, §2.3, §2.10).

const (
	id1 = "00000000-0000-4000-8000-000000000001"
	id2 = "00000000-0000-4000-8000-000000000002"
	id3 = "00000000-0000-4000-8000-000000000003"
	at  = "2026-01-02T12:00:00.123456Z"
)

func loose(o *server.Options) { o.BestEffort = true }

// step is a request and the whole of its answer, in which URL is the server's.
type step struct {
	method, path, body string
	status             int
	want               string
}

func (f *fixture) steps(steps []step) {
	f.t.Helper()
	for _, step := range steps {
		got := f.do(step.method, step.path, step.body)
		want := strings.ReplaceAll(step.want, "URL", f.http.URL)
		if got.StatusCode != step.status || got.body != want {
			f.t.Fatalf("%s %s %s\n got %d %s\nwant %d %s", step.method, step.path, step.body, got.StatusCode, got.body, step.status, want)
		}
	}
}

func notFound(what string) string {
	return `{"detail":{"error":"NotFound","message":"there is no ` + what + `"}}`
}

func conflict(message string) string {
	return `{"detail":{"error":"Conflict","message":"` + message + `"}}`
}

func badInput(loc, message string) string {
	return `{"detail":[{"loc":[` + loc + `],"msg":"` + message + `","type":"value_error"}]}`
}

func TestVolumes(t *testing.T) {
	h := &host{}
	f := serve(t, h, loose)
	volume := func(name, size string) string {
		return `{"id":"` + id1 + `","name":"` + name + `","size":"` + size + `","storage_class":"standard","created_at":"` + at + `","updated_at":"` + at + `"}`
	}
	template := func(volume string) string {
		return `{"id":"` + id2 + `","name":"t","image":"host","resources":{"cpu":"500m","memory":"512Mi"},"volume_mounts":[{"volume_name":"` + volume +
			`","mount_path":"/data"},{"volume_name":"` + volume + `","mount_path":"/data2"}],"created_at":"` + at + `","updated_at":"` + at + `"}`
	}
	mount := func(path string) string {
		return `{"name":"x","image":"host","volume_mounts":[{"volume_name":"v","mount_path":"/a/b"},{"volume_name":"v","mount_path":"` + path + `"}]}`
	}
	const where = `"body","volume_mounts",1,"mount_path"`
	f.steps([]step{
		{"GET", "/volumes", "", 200, `{"volumes":[]}`},
		{"POST", "/volumes", `{"name":"v","size":"1Gi","wait_for_ready":true,"timeout":60}`, 201, volume("v", "1Gi")},
		{"POST", "/volumes", `{"name":"v","size":"1Gi","wait_for_ready":true,"timeout":60}`, 409, conflict(`there is a volume \"v\" already`)},
		{"POST", "/volumes", `{"name":"w","size":"big"}`, 422, badInput(`"body","size"`, `the size \"big\" is not one: want a quantity such as 512Mi or 10Gi`)},
		{"POST", "/volumes", `{"name":"w"}`, 422, badInput(`"body","size"`, `the size \"\" is not one: want a quantity such as 512Mi or 10Gi`)},
		{"POST", "/volumes", `{"name":"W","size":"1Gi"}`, 422, badInput(`"body","name"`, `the name \"W\" is not one: want `+wire.NameRule)},
		{"GET", "/volumes", "", 200, `{"volumes":[` + volume("v", "1Gi") + `]}`},
		{"GET", "/volumes/v", "", 200, volume("v", "1Gi")},
		{"GET", "/volumes/" + id1, "", 200, volume("v", "1Gi")},
		{"GET", "/volumes/w", "", 404, notFound(`volume \"w\"`)},
		{"PATCH", "/volumes/w", `{"size":"2Gi"}`, 404, notFound(`volume \"w\"`)},
		{"PATCH", "/volumes/v", `{}`, 200, volume("v", "1Gi")},
		{"PATCH", "/volumes/v", `{"size":"1024Mi"}`, 200, volume("v", "1Gi")},
		{"PATCH", "/volumes/v", `{"size":"1023Mi"}`, 400, `{"detail":{"error":"ResizeError","message":"the volume \"v\" cannot shrink from 1Gi to 1023Mi"}}`},
		{"PATCH", "/volumes/v", `{"size":"0"}`, 422, badInput(`"body","size"`, `the size \"0\" is not one: want a quantity such as 512Mi or 10Gi`)},
		{"PATCH", "/volumes/v", `{"size":"2Gi"}`, 200, volume("v", "2Gi")},

		{"POST", "/templates", mount("/a/b"), 422, badInput(where, `the paths \"/a/b\" and \"/a/b\" overlap`)},
		{"POST", "/templates", mount("/a"), 422, badInput(where, `the paths \"/a/b\" and \"/a\" overlap`)},
		{"POST", "/templates", `{"name":"t","image":"host","volume_mounts":[{"volume_name":"v","mount_path":"/data"},{"volume_name":"` + id1 + `","mount_path":"/data2"}]}`, 201, template("v")},
		{"POST", "/boxes", `{"template_name":"t","name":"one","wait_for_ready":true}`, 201, `{"id":"` + id3 + `","name":"one","template_name":"t","dataplane_url":"URL/sb/` + id3 + `","status":"ready","created_at":"` + at + `","updated_at":"` + at + `"}`},
		{"DELETE", "/volumes/v", "", 409, conflict(`the volume \"v\" is in use by the template \"t\": delete that first`)},
		{"PATCH", "/volumes/v", `{"name":"w"}`, 200, volume("w", "2Gi")},
		{"GET", "/templates/t", "", 200, template("w")},
		{"GET", "/templates", "", 200, `{"templates":[` + template("w") + `]}`},
		{"PATCH", "/templates/t", `{"name":"t"}`, 200, template("w")},
	})
	for _, bad := range []string{"", "/", "rel", "/a/../b", "/a/", "//a", "/proc", "/dev/shm", "/sys/fs", "/a\\u0000"} {
		f.do("POST", "/templates", strings.Replace(mount(bad), `"v","mount_path":"/a/b"`, `"w","mount_path":"/a/b"`, 1)).want(t, 422, "volume_mounts")
		f.do("POST", "/templates", `{"name":"x","image":"host","volume_mounts":[{"volume_name":"w","mount_path":"`+bad+`"}]}`).want(t, 422, `"volume_mounts",0,"mount_path"`, "is not one to mount at")
	}
	data := filepath.Join(f.dir, "volumes", id1, "data")
	if got, want := h.created[0].Mounts, []runtime.Mount{{Source: data, Target: "/data"}, {Source: data, Target: "/data2"}}; !slices.Equal(got, want) {
		t.Errorf("the sandbox has the mounts %v, want %v", got, want)
	}

	// A volume outlives sandbox, template and server, and goes with all it has.
	locked := filepath.Join(data, "dir")
	if err := os.MkdirAll(filepath.Join(locked, "file"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(locked, 0); err != nil {
		t.Fatal(err)
	}
	f.close()
	f = serve(t, h, func(o *server.Options) { o.BestEffort = true; o.StateDir = f.dir })
	f.do("DELETE", "/boxes/one", "").want(t, 204)
	f.do("DELETE", "/volumes/w", "").want(t, 409, `in use by the template`)
	f.do("DELETE", "/templates/t", "").want(t, 204)
	f.do("GET", "/volumes/w", "").want(t, 200, `"size":"2Gi"`)
	f.do("DELETE", "/volumes/w", "").want(t, 204)
	f.do("DELETE", "/volumes/w", "").want(t, 404)
	f.nothing("volumes")
}

// nothing fails if one of the state folder's folders holds anything.
func (f *fixture) nothing(kind string) {
	f.t.Helper()
	if left, err := os.ReadDir(filepath.Join(f.dir, kind)); err != nil || len(left) > 0 {
		f.t.Errorf("left in %s: %v, %v", kind, left, err)
	}
}

// What a process leaves that is killed while it makes or deletes a volume.
func TestTornVolumes(t *testing.T) {
	f := serve(t, &host{}, loose)
	f.do("POST", "/volumes", `{"name":"v","size":"1Gi"}`).want(t, 201)
	f.close()
	for _, dir := range []string{"half/data", "gone.deleted/data/x"} {
		if err := os.MkdirAll(filepath.Join(f.dir, "volumes", dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	f = serve(t, &host{}, func(o *server.Options) { o.BestEffort = true; o.StateDir = f.dir })
	f.do("GET", "/volumes", "").want(t, 200, `"name":"v"`)
	f.do("DELETE", "/volumes/v", "").want(t, 204)
	f.nothing("volumes")
}

// atOnce sends a request from many clients to two servers in turn, and counts
// the answers by status.
func atOnce(t *testing.T, clients int, servers []*fixture, method, path, body string) map[int]int {
	t.Helper()
	var mu sync.Mutex
	count := map[int]int{}
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			a, err := servers[i%len(servers)].send(context.Background(), method, path, body)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			count[a.StatusCode]++
		})
	}
	wg.Wait()
	return count
}

func TestOneNameOneVolume(t *testing.T) {
	h := &host{}
	f := serve(t, h, loose)
	both := []*fixture{f, serve(t, h, func(o *server.Options) { o.BestEffort = true; o.StateDir = f.dir; o.NewID = nil })}
	if got := atOnce(t, 20, both, "POST", "/volumes", `{"name":"v","size":"1Gi"}`); got[201] != 1 || got[409] != 19 {
		t.Errorf("answers to create: %v", got)
	}
	if got := atOnce(t, 20, both, "DELETE", "/volumes/v", ""); got[204] != 1 || got[404] != 19 {
		t.Errorf("answers to delete: %v", got)
	}
	f.nothing("volumes")
}

// TestStorage follows a limit on storage from wherever it is asked for to the
// runtime.
func TestStorage(t *testing.T) {
	h := &host{inMemory: true, enforces: wire.Enforces{CPU: true, Memory: true, Storage: true}}
	f := serve(t, h, nil)
	f.do("POST", "/templates", `{"name":"t","image":"host","resources":{"cpu":"1","memory":"1Gi","storage":"1.5Ki"}}`).want(t, 201)
	f.do("POST", "/templates", `{"name":"huge","image":"host","resources":{"cpu":"1","memory":"1Gi","storage":"99999E"}}`).want(t, 201)
	f.do("POST", "/snapshots", `{"name":"s","docker_image":"host","fs_capacity_bytes":7000}`).want(t, 201)
	for i, c := range []struct {
		body string
		want int64
	}{
		{`{}`, 0},
		{`{"fs_capacity_bytes":5000}`, 5000},
		{`{"template_name":"t"}`, 1536},
		{`{"template_name":"t","fs_capacity_bytes":5000}`, 5000},
		{`{"template_name":"huge"}`, math.MaxInt64},
		{`{"snapshot":"s"}`, 7000},
		{`{"snapshot":"s","fs_capacity_bytes":8000}`, 8000},
	} {
		f.do("POST", "/boxes", c.body).want(t, 201)
		if got := h.created[i]; got.Limits.Storage != c.want || !got.InMemory {
			t.Errorf("%s: got %d, in memory %v, want %d", c.body, got.Limits.Storage, got.InMemory, c.want)
		}
	}
	// A server that enforces less does not take the snapshot up.
	h.inMemory, h.enforces = false, wire.Enforces{}
	strict := serve(t, h, func(o *server.Options) { o.StateDir = f.dir })
	strict.do("POST", "/boxes", `{"snapshot":"s"}`).want(t, 422, `"error":"SandboxConfig"`, "fs_capacity_bytes")
}
