package server_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/server"
	"github.com/sbx-star/sbx-star/wire"
)

// This file tests snapshots and registries (protocol.md §2.10, §13).

// snapshot captures a sandbox and returns the snapshot once it is made.
func (f *fixture) snapshot(box, body string) wire.Snapshot {
	f.t.Helper()
	var sn wire.Snapshot
	a := f.do("POST", "/boxes/"+box+"/snapshot", body)
	a.want(f.t, 201, `"status":"building"`)
	a.decode(f.t, &sn)
	eventually(f.t, "built", func() bool {
		f.do("GET", "/snapshots/"+sn.ID, "").decode(f.t, &sn)
		return sn.Status != wire.StatusBuilding
	})
	return sn
}

func TestSnapshots(t *testing.T) {
	h := &host{}
	f := serve(t, h, loose)
	f.do("POST", "/boxes", `{"name":"web","labels":{"team":"a","env":"dev"},"fs_capacity_bytes":4096}`).want(t, 201)
	sn := f.snapshot("web", `{"name":"py","labels":{"env":"prod"}}`)
	layer := filepath.Join(f.dir, "snapshots", sn.ID, "layer")
	size := len(h.created[0].Dir)
	snapshot := fmt.Sprintf(`{"id":"%s","name":"py","status":"ready","fs_capacity_bytes":4096,"source_sandbox_id":"%s","fs_used_bytes":%d,"created_at":"%s","updated_at":"%s","labels":{"env":"prod","team":"a"},"tags":["latest"]}`,
		id2, id1, size, at, at)
	box := `{"id":"` + id3 + `","name":"two","dataplane_url":"URL/sb/` + id3 + `","status":"ready","created_at":"` + at + `","updated_at":"` + at + `","snapshot_id":"` + id2 + `","labels":{"env":"test","team":"a"}}`
	f.steps([]step{
		{"GET", "/snapshots/" + id2, "", 200, snapshot},
		{"GET", "/snapshots/py", "", 200, snapshot},
		{"GET", "/snapshots/py:latest", "", 200, snapshot},
		{"GET", "/snapshots/py%3Alatest", "", 200, snapshot},
		{"GET", "/snapshots/py:v1", "", 404, notFound(`snapshot \"py:v1\"`)},
		{"GET", "/snapshots", "", 200, listed("snapshots", 0, snapshot+"")},
		{"GET", "/snapshots?name_contains=P&status=ready&label=team&label=env%3Dprod&limit=500", "", 200, listed("snapshots", 0, snapshot+"")},
		{"GET", "/snapshots?name_contains=x", "", 200, listed("snapshots", 0, "")},
		{"GET", "/snapshots?status=failed", "", 200, listed("snapshots", 0, "")},
		{"GET", "/snapshots?label=team%3Db", "", 200, listed("snapshots", 0, "")},
		{"GET", "/snapshots?offset=1", "", 200, listed("snapshots", 1, "")},
		{"GET", "/snapshots?limit=0", "", 422, badInput(`"query","limit"`, "want an integer from 1 to 500")},
		{"GET", "/snapshots?limit=501", "", 422, badInput(`"query","limit"`, "want an integer from 1 to 500")},
		{"GET", "/snapshots?offset=-1", "", 422, badInput(`"query","offset"`, "want an integer from 0")},
		{"GET", "/snapshots?sort_by=age", "", 422, badInput(`"query","sort_by"`, "want one of created_at, name, status")},
		{"GET", "/snapshots-by-name/py", "", 200, `{"name":"py","tags":[{"tag":"latest","snapshot_id":"` + id2 + `"}]}`},
		{"GET", "/snapshots-by-name/x", "", 404, notFound(`snapshot \"x\"`)},
		{"POST", "/boxes/nope/snapshot", `{"name":"x"}`, 404, notFound(`sandbox \"nope\"`)},
		{"POST", "/boxes/web/snapshot", `{"name":"a:b"}`, 422, badInput(`"body","name"`, `the name \"a:b\" is not one: want `+wire.SnapshotNameRule)},
		{"POST", "/boxes", `{"name":"two","snapshot_name":"py","labels":{"env":"test"},"wait_for_ready":true}`, 201, box},
		{"DELETE", "/snapshots/nope", "", 404, notFound(`snapshot \"nope\"`)},
		{"DELETE", "/snapshots/py", "", 204, ""},
		{"DELETE", "/snapshots/" + id2, "", 404, notFound(`snapshot \"` + id2 + `\"`)},
		{"GET", "/snapshots", "", 200, listed("snapshots", 0, "")},
		{"GET", "/boxes/two", "", 200, box},
		{"POST", "/boxes", `{"snapshot_id":"` + id2 + `"}`, 400, `{"detail":{"error":"SnapshotNotFound","message":"there is no snapshot \"` + id2 + `\""}}`},
	})
	if got := h.created[1]; got.Snapshot != layer || got.Image != "host" {
		t.Errorf("the sandbox was made from %+v, want the files of %s", got, layer)
	}
	f.nothing("snapshots")
	for field, body := range map[string]string{
		"checkpoint":        `{"name":"x","checkpoint":"2026-01-01T00:00:00Z"}`,
		"docker_image":      `{"name":"x","docker_image":"built"}`,
		"include_memory":    `{"name":"x","include_memory":true}`,
		"fs_capacity_bytes": `{"name":"x","fs_capacity_bytes":-1}`,
		"tag":               `{"name":"x","tag":"a b"}`,
	} {
		f.do("POST", "/boxes/web/snapshot", body).want(t, 422, field)
	}
}

// Of several snapshots with one name, the newest that is ready counts.
func TestSnapshotReferences(t *testing.T) {
	h := &host{}
	f := serve(t, h, nil)
	f.box("web")
	old := f.snapshot("web", `{"name":"py"}`)
	now := f.snapshot("web", `{"name":"py"}`)
	v1 := f.snapshot("web", `{"name":"py","tag":"v1"}`)
	h.capture = func(context.Context, string) error { return errors.New("disk full") }
	broken := f.snapshot("web", `{"name":"py"}`)
	if broken.Status != wire.StatusFailed || broken.StatusMessage != "the sandbox could not be captured: disk full" {
		t.Errorf("a capture that failed is %+v", broken)
	}
	if left, err := os.ReadDir(filepath.Join(f.dir, "snapshots", broken.ID)); err != nil || len(left) != 1 {
		t.Errorf("a capture that failed has left %v, %v", left, err)
	}
	f.do("POST", "/boxes", `{"snapshot_id":"`+broken.ID+`"}`).want(t, 400, `"error":"SnapshotNotFound"`, "disk full")
	for ref, want := range map[string]string{"py": now.ID, "py:latest": now.ID, "py:v1": v1.ID, old.ID: old.ID} {
		for _, field := range []string{"snapshot_name", "snapshot", "snapshot_id"} {
			f.do("POST", "/boxes", `{"`+field+`":"`+ref+`"}`).want(t, 201, `"snapshot_id":"`+want+`"`)
		}
	}
	f.do("GET", "/snapshots-by-name/py", "").want(t, 200, fmt.Sprintf(`"tags":[{"tag":"latest","snapshot_id":"%s"},{"tag":"v1","snapshot_id":"%s"}]`, now.ID, v1.ID))
	f.do("DELETE", "/snapshots/py", "").want(t, 204)
	f.do("GET", "/snapshots/py", "").want(t, 200, `"id":"`+old.ID+`"`)

	var list wire.SnapshotList
	f.do("GET", "/snapshots?limit=2&offset=1", "").decode(t, &list)
	if len(list.Snapshots) != 2 || list.Offset != 1 || list.Snapshots[0].ID != v1.ID || list.Snapshots[1].ID != old.ID {
		t.Errorf("the page is %+v", list)
	}
	f.do("GET", "/snapshots?sort_by=status&sort_direction=asc", "").decode(t, &list)
	if len(list.Snapshots) != 3 || list.Snapshots[0].ID != broken.ID {
		t.Errorf("by status: %+v", list)
	}
}

func TestSnapshotPages(t *testing.T) {
	f := serve(t, &host{}, nil)
	for i := range 52 {
		f.do("POST", "/snapshots", fmt.Sprintf(`{"name":"s%d","docker_image":"host"}`, i)).want(t, 201)
	}
	for query, want := range map[string]int{"": 50, "?limit=500": 52, "?offset=50": 2, "?limit=1": 1} {
		var list wire.SnapshotList
		f.do("GET", "/snapshots"+query, "").decode(t, &list)
		if len(list.Snapshots) != want {
			t.Errorf("%q: %d snapshots, want %d", query, len(list.Snapshots), want)
		}
	}
}

func TestSnapshotsOfImages(t *testing.T) {
	h := &host{}
	f := serve(t, h, loose)
	f.steps([]step{
		{"POST", "/snapshots", `{"name":"base","docker_image":"host","fs_capacity_bytes":1024,"labels":{"a":"1"}}`, 201,
			`{"id":"` + id1 + `","name":"base","status":"ready","fs_capacity_bytes":1024,"docker_image":"host","fs_used_bytes":0,"created_at":"` + at + `","updated_at":"` + at + `","labels":{"a":"1"},"tags":["latest"]}`},
		{"POST", "/snapshots", `{"name":"py","docker_image":"python:3.12","fs_capacity_bytes":0,"registry_password":"secret"}`, 201,
			`{"id":"` + id2 + `","name":"py","status":"building","fs_capacity_bytes":0,"docker_image":"python:3.12","created_at":"` + at + `","updated_at":"` + at + `"}`},
		{"POST", "/snapshots", `{"name":"x"}`, 422, badInput(`"body","docker_image"`, `an image is required, such as \"host\"`)},
		{"POST", "/snapshots", `{"name":"x","docker_image":"host","fs_capacity_bytes":-1}`, 422, badInput(`"body","fs_capacity_bytes"`, "want a number above 0")},
		{"POST", "/snapshots", `{"name":"x","docker_image":"host","registry_id":"nope"}`, 400, `{"detail":{"error":"RegistryNotFound","message":"there is no registry \"nope\""}}`},
	})
	settled := func() {
		eventually(t, "built", func() bool { return !strings.Contains(f.do("GET", "/snapshots", "").body, "building") })
	}
	settled()
	f.empty(h)
	f.do("GET", "/snapshots/py", "").want(t, 200, `"status":"ready"`, `"docker_image":"python:3.12"`)
	h.failure = &runtime.Unsupported{What: "no images", Hint: "use host"}
	f.do("POST", "/snapshots", `{"name":"odd","docker_image":"odd"}`).want(t, 201, `"building"`)
	settled()
	f.do("GET", "/snapshots/odd", "").want(t, 200, `"status":"failed"`, `"status_message":"the image \"odd\" cannot be had: no images: use host"`)
	f.do("POST", "/boxes", `{"snapshot_name":"odd"}`).want(t, 400, `"error":"SnapshotNotFound"`, "use host")
	h.failure = nil
	f.empty(h)
	f.do("POST", "/registries", `{"name":"r","url":"https://r.example","username":"u","password":"p"}`).want(t, 201)
	f.do("POST", "/snapshots", `{"name":"x","docker_image":"host","registry_id":"r"}`).want(t, 201, `"registry_id":"`)
	f.do("POST", "/boxes", `{"snapshot_name":"base"}`).want(t, 201, `"snapshot_id":"`+id1+`"`, `"labels":{"a":"1"}`)
	f.do("POST", "/boxes", `{"snapshot_name":"py"}`).want(t, 201)
	for i, image := range []string{"python:3.12", "host", "python:3.12"} { // the first was to try it
		if got := h.created[i]; got.Snapshot != "" || got.Image != image {
			t.Errorf("the sandbox %d was made from %+v", i, got)
		}
	}
	strict := serve(t, h, nil)
	strict.do("POST", "/snapshots", `{"name":"x","docker_image":"host","fs_capacity_bytes":1}`).want(t, 422, `"error":"SandboxConfig"`, "fs_capacity_bytes")
}

// A capture that is cut short fails, or leaves nothing.
func TestCaptureInterrupted(t *testing.T) {
	for name, c := range map[string]struct {
		interrupt func(f, peer *fixture)
		want      string
	}{
		"server closed":      {func(f, _ *fixture) { f.server.Close() }, "the server is stopping"},
		"box deleted":        {func(f, _ *fixture) { f.do("DELETE", "/boxes/web", "").want(f.t, 204) }, "the sandbox was deleted"},
		"box deleted afar":   {func(_, peer *fixture) { peer.do("DELETE", "/boxes/web", "").want(peer.t, 204) }, "the sandbox was deleted"},
		"deleted":            {func(f, _ *fixture) { f.do("DELETE", "/snapshots/py", "").want(f.t, 204) }, ""},
		"deleted afar":       {func(_, peer *fixture) { peer.do("DELETE", "/snapshots/py", "").want(peer.t, 204) }, ""},
		"not interrupted":    {func(*fixture, *fixture) {}, "ready"},
		"box renamed midway": {func(f, _ *fixture) { f.do("PATCH", "/boxes/web", `{"name":"www"}`).want(f.t, 200) }, "ready"},
	} {
		t.Run(name, func(t *testing.T) {
			begun, finish := make(chan struct{}), make(chan struct{})
			h := &host{capture: func(ctx context.Context, _ string) error {
				close(begun)
				select {
				case <-finish:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}}
			f := serve(t, h, nil)
			peer := serve(t, h, func(o *server.Options) { o.StateDir = f.dir })
			f.box("web")
			f.do("POST", "/boxes/web/snapshot", `{"name":"py"}`).want(t, 201)
			<-begun
			peer.do("GET", "/snapshots/py", "").want(t, 200, `"building"`)
			peer.do("POST", "/boxes", `{"snapshot":"py"}`).want(t, 400, `"error":"SnapshotNotFound"`, "it is building")
			c.interrupt(f, peer)
			if name != "server closed" && name != "box deleted" { // these end it themselves
				close(finish)
			}
			if c.want == "" {
				peer.do("GET", "/snapshots/py", "").want(t, 404)
				eventually(t, "cleared away", func() bool {
					left, err := os.ReadDir(filepath.Join(f.dir, "snapshots"))
					return err == nil && len(left) == 0
				})
				return
			}
			var answer string
			eventually(t, "over", func() bool {
				answer = peer.do("GET", "/snapshots/py", "").body
				return !strings.Contains(answer, `"building"`)
			})
			if !strings.Contains(answer, c.want) || c.want != "ready" && !strings.Contains(answer, `"failed"`) {
				t.Errorf("got %s, want %q", answer, c.want)
			}
		})
	}
}

// A server that is killed leaves a snapshot that is failed, and one that is
// deleted is swept up later.
func TestOrphanedSnapshots(t *testing.T) {
	f := serve(t, &host{}, nil)
	for name, status := range map[string]string{"half": "building", "gone": "deleting", "done": "ready"} {
		dir := filepath.Join(f.dir, "snapshots", name)
		record := fmt.Sprintf(`{"snapshot":{"id":%q,"name":%q,"status":%q},"tag":"latest","image":"host","layer":true,"owner":"dead"}`, name, name, status)
		if err := os.MkdirAll(filepath.Join(dir, "layer", "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "snapshot.json"), []byte(record), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.do("GET", "/snapshots/half", "").want(t, 200, `"status":"failed"`, "the server stopped in the middle")
	f.do("POST", "/boxes", `{"snapshot_id":"half"}`).want(t, 400, "the server stopped in the middle")
	f.do("GET", "/snapshots/gone", "").want(t, 404)
	f.do("GET", "/snapshots/done", "").want(t, 200, `"status":"ready"`)
	f.do("DELETE", "/snapshots/half", "").want(t, 204)
	f.do("DELETE", "/snapshots/done", "").want(t, 204)
	f.nothing("snapshots")
}

// The files of a deleted snapshot stay as long as a sandbox is being made from them.
func TestSnapshotDeletedWhileBooting(t *testing.T) {
	h := &host{gate: make(chan struct{}, 1)}
	f := serve(t, h, nil)
	h.gate <- struct{}{}
	f.box("web")
	sn := f.snapshot("web", `{"name":"py"}`)
	f.do("POST", "/boxes", `{"name":"two","snapshot_id":"`+sn.ID+`","wait_for_ready":false}`).want(t, 201)
	f.do("DELETE", "/snapshots/py", "").want(t, 204)
	f.do("GET", "/snapshots/"+sn.ID, "").want(t, 404)
	if _, err := os.Stat(filepath.Join(f.dir, "snapshots", sn.ID, "layer", "of")); err != nil {
		t.Errorf("the files are gone: %v", err)
	}
	h.gate <- struct{}{}
	eventually(t, "ready", func() bool { return strings.Contains(f.do("GET", "/boxes/two", "").body, `"ready"`) })
	f.server.Close() // waits for all that is under way
	f.nothing("snapshots")
}

func TestOneSnapshotDeletedByMany(t *testing.T) {
	h := &host{}
	f := serve(t, h, nil)
	both := []*fixture{f, serve(t, h, func(o *server.Options) { o.StateDir = f.dir; o.NewID = nil })}
	f.box("web")
	if got := atOnce(t, 20, both, "POST", "/boxes/web/snapshot", `{"name":"py"}`); got[201] != 20 {
		t.Errorf("answers to capture: %v", got)
	}
	eventually(t, "built", func() bool {
		return !strings.Contains(f.do("GET", "/snapshots", "").body, "building")
	})
	if got := atOnce(t, 30, both, "DELETE", "/snapshots/py", ""); got[204] != 20 || got[404] != 10 {
		t.Errorf("answers to delete: %v", got)
	}
	f.close()
	both[1].close()
	f.nothing("snapshots")
}

func TestRegistries(t *testing.T) {
	f := serve(t, &host{}, nil)
	registry := func(name, url string) string {
		return `{"id":"` + id1 + `","name":"` + name + `","url":"` + url + `","created_at":"` + at + `","updated_at":"` + at + `"}`
	}
	body := `{"name":"r","url":"https://r.example","username":"somebody","password":"secret"}`
	const badURL = "want the address of a registry, such as https://registry.example, without credentials"
	f.steps([]step{
		{"GET", "/registries", "", 200, listed("registries", 0, "")},
		{"POST", "/registries", body, 201, registry("r", "https://r.example")},
		{"POST", "/registries", body, 409, conflict(`there is a registry \"r\" already`)},
		{"POST", "/registries", strings.Replace(body, `"r"`, `"R"`, 1), 422, badInput(`"body","name"`, `the name \"R\" is not one: want `+wire.NameRule)},
		{"POST", "/registries", `{"name":"q","url":"https://q.example","username":"u"}`, 422, badInput(`"body","password"`, "a password is required")},
		{"POST", "/registries", `{"name":"q","username":"u","password":"p"}`, 422, badInput(`"body","url"`, badURL)},
		{"POST", "/registries", `{"name":"q","url":"https://u:p@q.example","username":"u","password":"p"}`, 422, badInput(`"body","url"`, badURL)},
		{"GET", "/registries", "", 200, listed("registries", 0, registry("r", "https://r.example")+"")},
		{"GET", "/registries?name_contains=R&limit=1", "", 200, listed("registries", 0, registry("r", "https://r.example")+"")},
		{"GET", "/registries?name_contains=x&offset=3", "", 200, listed("registries", 3, "")},
		{"GET", "/registries/" + id1, "", 200, registry("r", "https://r.example")},
		{"GET", "/registries/nope", "", 404, notFound(`registry \"nope\"`)},
		{"PATCH", "/registries/r", `{}`, 200, registry("r", "https://r.example")},
		{"PATCH", "/registries/r", `{"name":"q","url":"https://q.example","password":"changed"}`, 200, registry("q", "https://q.example")},
		{"PATCH", "/registries/q", `{"password":""}`, 422, badInput(`"body","password"`, "a password is required")},
		{"PATCH", "/registries/r", `{}`, 404, notFound(`registry \"r\"`)},
	})
	path := filepath.Join(f.dir, "registries", id1+".json")
	data, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(data), `"username":"somebody","password":"changed"`) {
		t.Errorf("the record is %s, %v", data, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the record has mode %v, %v", info.Mode(), err)
	}
	f.do("DELETE", "/registries/q", "").want(t, 204)
	f.do("DELETE", "/registries/q", "").want(t, 404)
	f.nothing("registries")
}
