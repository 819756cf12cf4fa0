package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/server"
	"github.com/sbx-star/sbx-star/wire"
)

// This file tests the control plane by what goes over the wire (protocol.md
// §2.0, §2.2, §2.4, §2.5, §13).

func TestWire(t *testing.T) {
	h := &host{}
	f := serve(t, h, func(o *server.Options) { o.BestEffort = true })
	const (
		id1  = "00000000-0000-4000-8000-000000000001"
		id2  = "00000000-0000-4000-8000-000000000002"
		id3  = "00000000-0000-4000-8000-000000000003"
		at   = "2026-01-02T12:00:00.123456Z"
		tmpl = `{"id":"` + id1 + `","name":"py","image":"python:3.12","resources":{"cpu":"500m","memory":"512Mi"},"volume_mounts":[],"created_at":"` + at + `","updated_at":"` + at + `"}`
		box  = `{"id":"` + id2 + `","name":"web","template_name":"py","dataplane_url":"URL/sb/` + id2 + `","status":"ready","created_at":"` + at + `","updated_at":"` + at + `","labels":{"team":"a"}}`
		box3 = `{"id":"` + id3 + `","name":"sandbox-00000003","dataplane_url":"URL/sb/` + id3 + `","status":"ready","created_at":"` + at + `","updated_at":"` + at + `"}`
	)
	notFound := func(what string) string {
		return `{"detail":{"error":"NotFound","message":"there is no ` + what + `"}}`
	}
	for _, step := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/templates", "", 200, `{"templates":[]}`},
		{"GET", "/boxes", "", 200, listed("sandboxes", 0, "")},
		{"POST", "/templates", `{"name":"py","image":"python:3.12","resources":{"cpu":"500m","memory":"512Mi"},"future":[1]}`, 201, tmpl},
		{"POST", "/templates", `{"name":"py","image":"x","resources":{"cpu":"1","memory":"1Gi"}}`, 409, `{"detail":{"error":"Conflict","message":"there is a template \"py\" already"}}`},
		{"GET", "/templates/py", "", 200, tmpl},
		{"GET", "/templates/" + id1, "", 200, tmpl},
		{"GET", "/templates/", "", 200, `{"templates":[` + tmpl + `]}`},
		{"GET", "/templates/nope", "", 404, notFound(`template \"nope\"`)},
		{"PATCH", "/templates/py", `{}`, 200, tmpl},
		{"PATCH", "/templates/py", `{"name":"py"}`, 200, tmpl},
		{"PATCH", "/templates/nope", `{"name":"x"}`, 404, notFound(`template \"nope\"`)},

		{"POST", "/boxes", `{"template_name":"py","name":"web","wait_for_ready":true,"timeout":30,"env_vars":{"A":"1"},"labels":{"team":"a"},"ttl_seconds":null}`, 201, box},
		{"POST", "/boxes", `{"name":"web"}`, 409, `{"detail":{"error":"Conflict","message":"there is a sandbox \"web\" already"}}`},
		{"POST", "/boxes", `{"template_name":"nope"}`, 400, `{"detail":{"error":"TemplateNotFound","message":"there is no template \"nope\""}}`},
		{"POST", "/boxes", `{}`, 201, box3},
		{"GET", "/boxes/web", "", 200, box},
		{"GET", "/boxes/" + id2, "", 200, box},
		{"GET", "/boxes/web/status", "", 200, `{"status":"ready","status_message":null}`},
		{"GET", "/boxes/nope/status", "", 404, notFound(`sandbox \"nope\"`)},
		{"GET", "/boxes/..%2Fweb", "", 404, notFound(`sandbox \"../web\"`)},
		{"GET", "/boxes", "", 200, listed("sandboxes", 0, box3+`,`+box)},
		{"GET", "/boxes?limit=1&offset=1", "", 200, listed("sandboxes", 1, box)},
		{"GET", "/boxes?sort_by=name&sort_direction=desc&name_contains=e", "", 200, listed("sandboxes", 0, box)},
		{"GET", "/boxes?label=team&created_by=me", "", 200, listed("sandboxes", 0, box)},
		{"GET", "/boxes?label=team%3Db", "", 200, listed("sandboxes", 0, "")},
		{"GET", "/boxes?status=failed", "", 200, listed("sandboxes", 0, "")},
		{"GET", "/boxes?limit=0", "", 422, `{"detail":[{"loc":["query","limit"],"msg":"want an integer from 1","type":"value_error"}]}`},

		{"PATCH", "/boxes/web", `{}`, 200, box},
		{"PATCH", "/boxes/web", `{"name":"sandbox-00000003"}`, 409, `{"detail":{"error":"Conflict","message":"there is a sandbox \"sandbox-00000003\" already"}}`},
		{"PATCH", "/boxes/web", `{"name":"www"}`, 200, strings.Replace(box, `"web"`, `"www"`, 1)},
		{"GET", "/boxes/web", "", 404, notFound(`sandbox \"web\"`)},
		{"PATCH", "/boxes/nope", `{"name":"x"}`, 404, notFound(`sandbox \"nope\"`)},

		{"DELETE", "/templates/py", "", 409, `{"detail":{"error":"Conflict","message":"the template \"py\" is in use by the sandbox \"www\": delete that first"}}`},
		{"PATCH", "/templates/py", `{"name":"python"}`, 200, strings.Replace(tmpl, `"py"`, `"python"`, 1)},
		{"GET", "/boxes/www", "", 200, strings.NewReplacer(`"web"`, `"www"`, `"py"`, `"python"`).Replace(box)},
		{"DELETE", "/boxes/www", "", 204, ``},
		{"DELETE", "/boxes/www", "", 404, notFound(`sandbox \"www\"`)},
		{"DELETE", "/templates/python", "", 204, ``},
		{"DELETE", "/templates/python", "", 404, notFound(`template \"python\"`)},
		{"DELETE", "/boxes/" + id3, "", 204, ``},
		{"GET", "/info", "", 200, `{"server":"sbx-star","version":"test","generations":["seed","classic","head","late"],"runtime":"memory","isolation":"none","extensions":["exec.v1","leases"],"limits":{"json_bytes":1048576,"wait_seconds":600},"enforces":{"cpu":false,"memory":false,"pids":false,"storage":false,"network":false,"access_control":false}}`},
	} {
		got := f.do(step.method, step.path, step.body)
		want := strings.ReplaceAll(step.want, "URL", f.http.URL)
		if got.StatusCode != step.status || got.body != want {
			t.Fatalf("%s %s %s\n got %d %s\nwant %d %s", step.method, step.path, step.body, got.StatusCode, got.body, step.status, want)
		}
	}
	f.empty(h)
	if got := h.created[0]; got.Hostname != "web" || got.Image != "python:3.12" || got.Env["A"] != "1" || got.ID != id2 {
		t.Errorf("the runtime was asked for %+v", got)
	}
	if got := h.created[1]; got.Image != runtime.HostImage {
		t.Errorf("without a template the image is %q", got.Image)
	}
}

func TestPrefixes(t *testing.T) {
	f := serve(t, &host{}, nil)
	b := f.box("one")
	for _, prefix := range []string{"/v2/sandboxes", "/api/v2/sandboxes", "/api/api/v2/sandboxes"} {
		f.do("GET", "!"+prefix+"/boxes/one", "").want(t, 200, `"dataplane_url":"`+b.DataplaneURL+`"`)
	}
	f.do("GET", "!/api/api/api/v2/sandboxes/boxes/one", "").want(t, 404, `"error":"NotFound"`)
}

func TestPublicURL(t *testing.T) {
	f := serve(t, &host{}, func(o *server.Options) { o.PublicURL = "https://sandboxes.example/x/" })
	if b := f.box("one"); b.DataplaneURL != "https://sandboxes.example/x/sb/"+b.ID {
		t.Errorf("got %s", b.DataplaneURL)
	}
	f.do("GET", "/info", "", "Host", "sandboxes.example").want(t, 200)
}

// Every answer to what is wrong has form A, or B with the place in the request.
func TestRefusals(t *testing.T) {
	enforcing := &host{enforces: wire.Enforces{CPU: true, Memory: true}}
	f := serve(t, enforcing, nil)
	loc := func(path, msg string) string {
		return `{"detail":[{"loc":["` + strings.ReplaceAll(path, ".", `","`) + `"],"msg":"` + msg
	}
	config := func(field string) string { return `{"detail":{"error":"SandboxConfig","message":"` + field + `: ` }
	const template = `{"name":"t","image":"i","resources":{"cpu":"1","memory":"1Gi"`
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "!/", "", 404, `"error":"NotFound"`},
		{"GET", "/nope", "", 404, `"error":"NotFound"`},
		{"GET", "", "", 404, `"error":"NotFound"`},
		{"GET", "//boxes", "", 404, `"error":"NotFound"`},
		{"GET", "!/v2/sandboxesboxes", "", 404, `"error":"NotFound"`},
		{"PUT", "/boxes", "", 405, `"error":"MethodNotAllowed"`},
		{"OPTIONS", "/boxes", "", 405, `GET, POST, HEAD`},
		{"POST", "/boxes/x/status", "{}", 405, `only GET, HEAD`},
		{"POST", "/boxes", `{"template_name":"t","snapshot_id":"x"}`, 422, loc("body.snapshot_id", "a sandbox is made from one thing")},
		{"POST", "/boxes", `{"snapshot_name":"x","snapshot_id":"x"}`, 422, loc("body.snapshot_name", "a sandbox is made from one thing")},
		{"POST", "/boxes", `{"snapshot_id":"x"}`, 400, `"error":"SnapshotNotFound"`},
		{"POST", "/boxes", `{"template_name":"t","snapshot_id":"x"}`, 422, loc("body.snapshot_id", "a sandbox is made from one thing")},
		{"POST", "/boxes", `{"snapshot_name":"x","snapshot_id":"x"}`, 422, loc("body.snapshot_name", "a sandbox is made from one thing")},
		{"POST", "/boxes", `{"snapshot_id":"x"}`, 400, `"error":"SnapshotNotFound"`},

		{"POST", "/boxes", ``, 422, loc("body", "the body is empty")},
		{"POST", "/boxes", `{`, 422, loc("body", "not JSON")},
		{"POST", "/boxes", `{} x`, 422, loc("body", "not JSON")},
		{"POST", "/boxes", `[]`, 422, loc("body", "want an object, got array")},
		{"POST", "/boxes", `{"name":1}`, 422, loc("body.name", "want a string, got number")},
		{"POST", "/boxes", `{"wait_for_ready":"yes"}`, 422, loc("body.wait_for_ready", "want true or false, got string")},
		{"POST", "/boxes", `{"timeout":1.5}`, 422, loc("body.timeout", "want an integer, got number 1.5")},
		{"POST", "/boxes", `{"mem_bytes":99999999999999999999}`, 422, loc("body.mem_bytes", "want an integer, got number 9")},
		{"POST", "/boxes", `{"labels":{"a":1}}`, 422, loc("body.labels.a", "want a string, got number")},
		{"POST", "/boxes", `{"env_vars":[]}`, 422, loc("body.env_vars", "want an object, got array")},
		{"POST", "/boxes", `{"name":"Big"}`, 422, loc("body.name", `the name \"Big\" is not one`)},
		{"POST", "/boxes", `{"name":"` + strings.Repeat("a", 64) + `"}`, 422, loc("body.name", "the name")},
		{"POST", "/boxes", `{"env_vars":{"A=B":"1"}}`, 422, loc("body.env_vars", `the environment variable \"A=B\"`)},
		{"POST", "/boxes", `{"idle_ttl_seconds":61}`, 422, loc("body.idle_ttl_seconds", "want 0 or a multiple of 60 up to")},
		{"POST", "/boxes", `{"ttl_seconds":-60}`, 422, loc("body.ttl_seconds", "want 0")},
		{"POST", "/boxes", `{"vcpus":0}`, 422, loc("body.vcpus", "want a number above 0")},
		{"POST", "/boxes", `{"proxy_config":{"rules":[]}}`, 422, config("proxy_config")},
		{"POST", "/boxes", `{"mount_config":{"auth":{}}}`, 422, loc("body.mount_config.mounts", "want a list that is not empty")},
		{"POST", "/boxes", `{"mount_config":{"mounts":[{"type":"s3"}]}}`, 422, config("mount_config")},
		{"POST", "/boxes", `{"run_config":{"user":"a b"}}`, 422, loc("body.run_config.user", `the user \"a b\" is not one`)},
		{"POST", "/boxes", `{"run_config":{"user":1}}`, 422, loc("body.run_config.user", "want a string, got number")},
		{"POST", "/boxes", `{"run_config":{"work_dir":"x"}}`, 422, loc("body.run_config.work_dir", `the folder \"x\" is relative`)},
		{"POST", "/boxes", `{"run_config":{"env_vars":{"A=":"1"}}}`, 422, loc("body.run_config.env_vars", `the environment variable`)},
		{"PATCH", "/boxes/x", `{"run_config":{"work_dir":"x"}}`, 422, loc("body.run_config.work_dir", `the folder`)},
		{"POST", "/boxes", `{"access_delegation":{"mode":"INHERIT"}}`, 422, config("access_delegation")},
		{"POST", "/boxes", `{"preserve_memory_on_stop":true}`, 422, config("preserve_memory_on_stop")},
		{"POST", "/boxes", `{"restore_memory":true}`, 422, config("restore_memory")},
		{"POST", "/boxes", `{"persistent":false}`, 422, config("persistent")},
		{"POST", "/boxes", `{"fs_capacity_bytes":1000}`, 422, config("fs_capacity_bytes")},
		{"PATCH", "/boxes/x", `{"name":""}`, 422, loc("body.name", "the name")},
		{"PATCH", "/boxes/x", `{"idle_ttl_seconds":90}`, 422, loc("body.idle_ttl_seconds", "want 0 or a multiple of 60 up to 3162240000, got 90")},
		{"POST", "/boxes", `{"delete_after_stop_seconds":9999999960}`, 422, loc("body.delete_after_stop_seconds", "want 0")},
		{"POST", "/boxes", `{"lease":{"id":"","ttl_seconds":1}}`, 422, loc("body.lease.id", "want 1 to 128")},
		{"POST", "/boxes", `{"lease":{"id":"a b","ttl_seconds":1}}`, 422, loc("body.lease.id", "want 1 to 128")},
		{"POST", "/boxes", `{"lease":{"id":"x"}}`, 422, loc("body.lease.ttl_seconds", "want an integer from 1 to 86400")},
		{"POST", "/boxes", `{"lease":"x"}`, 422, loc("body.lease", "want an object")},
		{"POST", "/leases/x/renew", `{}`, 404, `there is no sandbox under the lease`},
		{"POST", "/boxes", `{"proxy_config":[]}`, 422, loc("body.proxy_config", "want an object, got array")},
		{"POST", "/boxes", `{"proxy_config":{"rules":"all"}}`, 422, loc("body.proxy_config.rules", "want a list, got string")},
		{"POST", "/boxes", `{"proxy_config":{"rules":[{},{"aws":{"session_tags":{"a":"b"},"access_key_id":"AKIA"}}]}}`, 422, `"loc":["body","proxy_config","rules",1,"aws","access_key_id"],"msg":"want an object, got string"`},
		{"POST", "/boxes", `{"proxy_config":{"rules":[{"aws":{"access_key_id":{"value":4711}}}]}}`, 422, `"loc":["body","proxy_config","rules",0,"aws","access_key_id","value"],"msg":"want a string, got number"`},
		{"POST", "/boxes", `{"proxy_config":{"callbacks":{"url":"x"}}}`, 422, loc("body.proxy_config.callbacks", "want a list, got object")},
		{"PATCH", "/boxes/x", `{"proxy_config":{"rules":[{"env_vars":{"a.b":[{"c":1}]}}]}}`, 422, `"loc":["body","proxy_config","rules",0,"env_vars","a.b"],"msg":"want a string, got array"`},
		{"POST", "/boxes", `{"proxy_config":{"rules":[{"type":"aws"}]}}`, 422, `"loc":["body","proxy_config","rules",0,"name"]`},
		{"POST", "/boxes", `{"proxy_config":{"access_control":{"allow_list":["a"],"deny_list":["b"]}}}`, 422, loc("body.proxy_config.access_control", "allow_list and deny_list exclude")},
		{"PATCH", "/boxes/x", `{"proxy_config":1}`, 422, loc("body.proxy_config", "want an object, got number")},
		{"POST", "/boxes", `{"mount_config":"x"}`, 422, loc("body.mount_config", "want an object, got string")},
		{"POST", "/boxes", `{"mount_config":{"mounts":{}}}`, 422, loc("body.mount_config.mounts", "want a list, got object")},
		{"POST", "/boxes", `{"access_delegation":[]}`, 422, loc("body.access_delegation", "want an object, got array")},
		{"POST", "/boxes", `{"access_delegation":{"mode":1}}`, 422, loc("body.access_delegation.mode", "want a string, got number")},
		{"PATCH", "/boxes/x", `{"proxy_config":{"rules":[]}}`, 422, config("proxy_config")},
		{"GET", "/boxes?sort_by=age", "", 422, loc("query.sort_by", "want one of created_at, delete_after_stop_seconds, idle_ttl_seconds, name, status, stopped_at")},
		{"GET", "/boxes?sort_order=up", "", 422, loc("query.sort_order", "want asc")},
		{"GET", "/boxes?page_size=501", "", 422, loc("query.page_size", "want an integer from 1 to 500")},
		{"GET", "/boxes?cursor=x", "", 422, loc("query.cursor", "want the next_cursor")},
		{"GET", "/boxes?tag_value_id=x", "", 422, config("tag_value_id")},
		{"GET", "/registries?page_size=101", "", 422, loc("query.page_size", "want an integer from 1 to 100")},
		{"GET", "/usage/costs", "", 404, `"error":"NotImplemented"`},
		{"POST", "/boxes/batch-delete", `{}`, 404, `"error":"NotImplemented"`},
		{"POST", "/boxes", `{"volumes":[{"volume":"v","mount_path":"/v"}]}`, 422, config("volumes")},
		{"PATCH", "/boxes/x", `{"vcpus":2}`, 422, config("vcpus")},
		{"PATCH", "/boxes/x", `{"mem_bytes":2}`, 422, config("mem_bytes")},
		{"POST", "/boxes/x/snapshot", `{"name":"s","include":["all"]}`, 422, config("include")},
		{"POST", "/boxes/x/snapshot", `{"name":"s","image_config":{"cmd":["x"]}}`, 422, config("image_config")},
		{"POST", "/boxes/x/snapshot", `{"name":"s","checkpoint":"2026-01-01T00:00:00Z"}`, 422, config("checkpoint")},
		{"POST", "/boxes/x/snapshot", `{"name":"system/s"}`, 422, loc("body.name", "the name")},
		{"POST", "/boxes/x/snapshot", `{"name":"s","tag":"a/b"}`, 422, loc("body.tag", "the tag")},
		{"POST", "/boxes/x/snapshot", `{"name":"s","description":"` + strings.Repeat("é", 1025) + `"}`, 422, loc("body.description", "want 1024")},
		{"GET", "/boxes?sort_direction=up", "", 422, loc("query.sort_direction", "want asc")},
		{"GET", "/boxes?offset=-1", "", 422, loc("query.offset", "want an integer from 0")},
		{"GET", "/templates?limit=x", "", 422, loc("query.limit", "want an integer from 1")},

		{"POST", "/templates", `{"image":"i"}`, 422, loc("body.name", "the name")},
		{"POST", "/templates", `{"name":"t"}`, 422, loc("body.image", "an image is required")},
		{"POST", "/templates", `{"name":"t","image":"i","resources":{"cpu":1}}`, 422, loc("body.resources.cpu", "want a string, got number")},
		{"POST", "/templates", `{"name":"t","image":"i","resources":{"cpu":"lots"}}`, 422, loc("body.resources.cpu", "the CPU limit")},
		{"POST", "/templates", `{"name":"t","image":"i","resources":{"cpu":"0m"}}`, 422, loc("body.resources.cpu", "the CPU limit")},
		{"POST", "/templates", `{"name":"t","image":"i","resources":{"memory":"1GB"}}`, 422, loc("body.resources.memory", "the memory limit")},
		{"POST", "/templates", template + `,"storage":"-1Gi"}}`, 422, loc("body.resources.storage", "the storage limit")},
		{"POST", "/templates", template + `,"storage":"1Gi"}}`, 422, config("resources.storage")},
		{"POST", "/templates", template + `},"volume_mounts":[{"volume_name":"v","mount_path":"/v"}]}`, 422, `{"detail":[{"loc":["body","volume_mounts",0,"volume_name"],"msg":"there is no volume \"v\""`},
		{"POST", "/volumes", `{"name":"v","size":"1Gi"}`, 422, config("size")},
		{"PATCH", "/templates/t", `{"name":"A"}`, 422, loc("body.name", "the name")},
	} {
		f.do(c.method, c.path, c.body).want(t, c.status, c.want)
	}
	if a := f.do("PUT", "/boxes/x", ""); a.Header.Get("Allow") != "GET, PATCH, DELETE, HEAD" {
		t.Errorf("a 405 allows %q", a.Header.Get("Allow"))
	}
	// What asks for nothing is no reason to refuse.
	f.do("POST", "/boxes", `{"name":"x","ttl_seconds":0,"idle_ttl_seconds":0,"delete_after_stop_seconds":0,"proxy_config":{},"mount_config":null,"run_config":{},`+
		`"persistent":true,"restore_memory":false,"preserve_memory_on_stop":false,"vcpus":2,"mem_bytes":1024,"lease":null}`).want(t, 201, `"ttl_seconds":0`, `"vcpus":2`, `"mem_bytes":1024`)
	f.do("PATCH", "/boxes/x", `{"idle_ttl_seconds":0,"labels":{}}`).want(t, 200, `"idle_ttl_seconds":0`)
	f.do("POST", "/templates", template+`}}`).want(t, 201)
	f.do("HEAD", "/boxes/x", "").want(t, 200)
}

// Without --best-effort a limit that is not enforced is refused, at the template
// and again at a sandbox of a template that another server took.
func TestUnenforcedLimits(t *testing.T) {
	h := &host{}
	loose := serve(t, h, func(o *server.Options) { o.BestEffort = true })
	strict := serve(t, h, func(o *server.Options) { o.StateDir = loose.dir })
	const template = `{"name":"t","image":"host","resources":{"cpu":"1","memory":"1Gi"}}`
	strict.do("POST", "/templates", template).want(t, 422, `"error":"SandboxConfig"`, "resources.cpu", "memory runtime", "--best-effort")
	loose.do("POST", "/templates", template).want(t, 201)
	strict.do("POST", "/boxes", `{"template_name":"t"}`).want(t, 422, `"error":"SandboxConfig"`, "resources.cpu", "--best-effort")
	loose.do("POST", "/boxes", `{"template_name":"t","vcpus":1}`).want(t, 201)
	for _, field := range []string{"vcpus", "cpu_millicores", "mem_bytes", "fs_capacity_bytes"} {
		strict.do("POST", "/boxes", `{"`+field+`":1}`).want(t, 422, `"error":"SandboxConfig"`, field+":")
	}
}

func TestBodyLimit(t *testing.T) {
	f := serve(t, &host{}, nil)
	body := `{"name":"x","pad":"` + strings.Repeat("a", 1<<20) + `"}`
	f.do("POST", "/boxes", body).want(t, 413, `"error":"PayloadTooLarge"`)
	f.do("POST", "/boxes", body[:len(body)-100]+`"}`).want(t, 201)
}

func TestKey(t *testing.T) {
	var log bytes.Buffer
	const key = "sesame-open"
	f := serve(t, &host{}, func(o *server.Options) { o.APIKey = key; o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	b := f.box("one")
	f.key = ""
	for _, path := range []string{"/boxes", "/info", "/nope", path(b, "/download?path=x"), "!/"} {
		f.do("GET", path, "").want(t, 401, `"error":"Unauthorized"`)
		f.do("GET", path, "", "X-Api-Key", key+"x").want(t, 401)
		f.do("GET", path, "", "Authorization", "Basic "+key).want(t, 401)
	}
	f.do("GET", "/boxes", "", "X-Api-Key", key).want(t, 200)
	f.do("GET", "/boxes", "", "Authorization", "Bearer "+key).want(t, 200)
	f.do("GET", "/boxes", "", "authorization", "bearer  "+key).want(t, 200)

	r, _ := http.NewRequest("GET", f.http.URL+base+"/boxes", nil)
	for keys, want := range map[string]int{"wrong " + key: 200, key + " wrong": 401} { // the last one counts
		r.Header["X-Api-Key"] = strings.Fields(keys)
		res, err := http.DefaultTransport.RoundTrip(r)
		if err != nil || res.StatusCode != want {
			t.Errorf("keys %q: %v, %v", keys, res.Status, err)
		}
		res.Body.Close()
	}
	f.close()
	if strings.Contains(log.String(), key) || !strings.Contains(log.String(), "status=401") {
		t.Errorf("the log is\n%s", log.String())
	}
}

func TestWebPagesAreKeptOut(t *testing.T) {
	f := serve(t, &host{}, nil)
	b := f.box("one")
	own := strings.TrimPrefix(f.http.URL, "http://")
	_, port, _ := strings.Cut(own, ":")
	for _, c := range []struct {
		header, value string
		status        int
	}{
		{"Host", own, 200},
		{"Host", "localhost:" + port, 200},
		{"Host", "LOCALHOST", 200},
		{"Host", "sbx-star.localhost", 200},
		{"Host", "[::1]:" + port, 200},
		{"Host", "127.9.9.9", 200},
		{"Host", "evil.example", 403},
		{"Host", "evil.example:" + port, 403},
		{"Host", "localhost.evil.example", 403},
		{"Host", "127.0.0.1.nip.io:" + port, 403},
		{"Host", "10.1.2.3:" + port, 403},
		{"Host", "0.0.0.0:" + port, 403},
		{"Origin", "http://" + own, 200},
		{"Origin", "http://evil.example", 403},
		{"Origin", "https://" + own + ".evil.example", 403},
		{"Origin", "http://localhost:1", 403},
		{"Origin", "null", 403},
		{"Origin", "", 403},
		{"Sec-Fetch-Site", "none", 200},
		{"Sec-Fetch-Site", "same-origin", 200},
		{"Sec-Fetch-Site", "same-site", 403},
		{"Sec-Fetch-Site", "cross-site", 403},
	} {
		for _, path := range []string{"/boxes", path(b, "/download")} {
			a := f.do("GET", path, "", c.header, c.value)
			if a.StatusCode != c.status {
				t.Errorf("%s: %s %s: %d, want %d: %s", path, c.header, c.value, a.StatusCode, c.status, a.body)
			}
			if c.status == 403 {
				a.want(t, 403, `"error":"Forbidden"`)
			}
		}
	}
	f.do("POST", "/boxes", `{"name":"two"}`, "Origin", "http://evil.example", "Content-Type", "text/plain").want(t, 403)
	f.do("GET", "/boxes/two", "").want(t, 404)
	f.do("GET", path(b, "/execute/ws"), "", "Origin", "http://evil.example", "Connection", "Upgrade", "Upgrade", "websocket",
		"Sec-Websocket-Version", "13", "Sec-Websocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==").want(t, 403)
}

func TestServerErrorsHaveAnID(t *testing.T) {
	var log bytes.Buffer
	f := serve(t, &host{}, func(o *server.Options) {
		o.Log = slog.New(slog.NewTextHandler(&log, nil))
		o.RequestID = func() string { return "request-7" }
	})
	if err := os.RemoveAll(filepath.Join(f.dir, "boxes")); err != nil {
		t.Fatal(err)
	}
	a := f.do("GET", "/boxes", "")
	a.want(t, 500, `"error_id":"request-7"`, `"error":"InternalError"`)
	if a.Header.Get("X-Request-Id") != "request-7" || strings.Contains(a.body, f.dir) {
		t.Errorf("answer %s", a.body)
	}
	f.close()
	if !strings.Contains(log.String(), "request-7") || !strings.Contains(log.String(), "no such file") {
		t.Errorf("the log is\n%s", log.String())
	}
}

func TestOneNameOneSandbox(t *testing.T) {
	h := &host{}
	f := serve(t, h, nil)
	other := serve(t, h, func(o *server.Options) { o.StateDir = f.dir; o.NewID = nil })
	statuses := make([]int, 20)
	var wg sync.WaitGroup
	for i := range statuses {
		wg.Go(func() {
			a, err := []*fixture{f, other}[i%2].send(context.Background(), "POST", "/boxes", `{"name":"web","wait_for_ready":true}`)
			if err != nil {
				t.Error(err)
				return
			}
			statuses[i] = a.StatusCode
		})
	}
	wg.Wait()
	count := map[int]int{}
	for _, status := range statuses {
		count[status]++
	}
	if count[201] != 1 || count[409] != 19 || h.alive() != 1 {
		t.Errorf("answers %v, %d daemons", count, h.alive())
	}
}

func TestCreateFailures(t *testing.T) {
	for name, c := range map[string]struct {
		failure error
		body    string
		want    string
	}{
		"unsupported": {&runtime.Unsupported{What: "no user namespaces", Hint: "allow them"}, `{"name":"x"}`, `"error":"SandboxConfig","message":"the sandbox could not be made: no user namespaces: allow them`},
		"image":       {&runtime.Unsupported{What: "no images", Hint: "use host"}, `{"name":"x","template_name":"t"}`, `"error":"ImagePull"`},
		"disk":        {fmt.Errorf("write the layer: %w", syscall.ENOSPC), `{"name":"x"}`, "the disk is full: there is no room left in the state folder "},
		"overlay":     {fmt.Errorf("%w: a sandbox could not lay the layers", runtime.ErrDiskFull), `{"name":"x"}`, `"error":"Unschedulable"`},
		"crash":       {errors.New("the daemon died"), `{"name":"x"}`, `"error":"CrashLoop"`},
	} {
		t.Run(name, func(t *testing.T) {
			h := &host{}
			f := serve(t, h, func(o *server.Options) { o.BestEffort = true })
			f.do("POST", "/templates", `{"name":"t","image":"exotic"}`).want(t, 201)
			h.failure = c.failure
			status, message := 422, "the sandbox could not be made: "
			if name == "disk" || name == "overlay" {
				status, message = 503, "the disk is full: there is no room left in the state folder "+f.dir+": delete sandboxes"
			}
			f.do("POST", "/boxes", c.body).want(t, status, c.want)
			f.empty(h)

			// Without waiting, the failure stays to be seen, and can be deleted.
			f.do("POST", "/boxes", strings.Replace(c.body, "{", `{"wait_for_ready":false,`, 1)).want(t, 201, `"status":"provisioning"`, `"dataplane_url":"`)
			eventually(t, "failed", func() bool {
				return strings.Contains(f.do("GET", "/boxes/x/status", "").body, `"status":"failed","status_message":"`+message)
			})
			var b wire.Box
			f.do("GET", "/boxes/x", "").decode(t, &b)
			f.do("GET", path(b, "/download?path=x"), "").want(t, 400, `"error":"NotReady"`)
			f.do("DELETE", "/boxes/x", "").want(t, 204)
			f.empty(h)
		})
	}
}

func TestNotReadyInTime(t *testing.T) {
	t.Parallel()
	h := &host{gate: make(chan struct{})}
	f := serve(t, h, nil)
	a := f.do("POST", "/boxes", `{"name":"x","timeout":0}`)
	a.want(t, 408, `"error":"Timeout"`, "within 1s", "last status: provisioning")
	if a.Header.Get("X-Should-Retry") != "false" {
		t.Error("some clients send it again")
	}
	f.empty(h)
	f.do("GET", "/boxes/x", "").want(t, 404)
}

func TestProvisioning(t *testing.T) {
	h := &host{gate: make(chan struct{})}
	f := serve(t, h, nil)
	var b wire.Box
	f.do("POST", "/boxes", `{"name":"x","wait_for_ready":false}`).decode(t, &b)
	f.do("GET", "/boxes/x/status", "").want(t, 200, `"provisioning"`)
	f.do("GET", path(b, "/download?path=x"), "").want(t, 503, `"error":"ServiceUnavailable"`)
	f.do("PATCH", "/boxes/x", `{"name":"y"}`).want(t, 200, `"provisioning"`)
	h.gate <- struct{}{}
	eventually(t, "ready", func() bool {
		return strings.Contains(f.do("GET", "/boxes/y/status", "").body, `"ready"`)
	})
	f.do("GET", path(b, "/download?path=x"), "").want(t, 200, "GET /download?path=x")
}

// A caller that goes away leaves nothing, and neither does one whose sandbox is
// deleted, by this server or another, or whose server stops.
func TestCreateInterrupted(t *testing.T) {
	for name, interrupt := range map[string]func(f, other *fixture, cancel func()){
		"caller gone":       func(_, _ *fixture, cancel func()) { cancel() },
		"deleted":           func(f, _ *fixture, _ func()) { f.do("DELETE", "/boxes/x", "").want(f.t, 204) },
		"deleted by a peer": func(_, other *fixture, _ func()) { other.do("DELETE", "/boxes/x", "").want(other.t, 204) },
		"server closed":     func(f, _ *fixture, _ func()) { f.server.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			h := &host{gate: make(chan struct{})}
			f := serve(t, h, nil)
			other := serve(t, h, func(o *server.Options) { o.StateDir = f.dir })
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			created := make(chan int, 1)
			go func() {
				a, err := f.send(ctx, "POST", "/boxes", `{"name":"x","wait_for_ready":true,"timeout":60}`)
				if err != nil {
					created <- 0
					return
				}
				created <- a.StatusCode
			}()
			eventually(t, "provisioning", func() bool { return other.do("GET", "/boxes/x", "").StatusCode == 200 })
			deleted := make(chan struct{})
			go func() { defer close(deleted); interrupt(f, other, cancel) }()
			if name == "deleted by a peer" { // who cannot stop it, and has to wait
				eventually(t, "marked", func() bool { return other.do("GET", "/boxes/x", "").StatusCode == 404 })
				h.gate <- struct{}{}
			}
			<-deleted
			want := map[string]int{"caller gone": 0, "deleted": 410, "deleted by a peer": 410, "server closed": 503}[name]
			if got := <-created; got != want {
				t.Errorf("the create was answered with %d, want %d", got, want)
			}
			eventually(t, "gone", func() bool { return other.do("GET", "/boxes/x", "").StatusCode == 404 })
			f.server.Close()
			f.empty(h)
		})
	}
}

func TestClosingKeepsSandboxes(t *testing.T) {
	h := &host{gate: make(chan struct{}, 1)}
	f := serve(t, h, nil)
	h.gate <- struct{}{}
	b := f.box("kept")
	f.do("POST", "/boxes", `{"name":"half","wait_for_ready":false}`).want(t, 201)
	f.server.Close()
	f.do("GET", "/boxes", "").want(t, 503, `"error":"ServiceUnavailable"`, "error_id")

	next := serve(t, h, func(o *server.Options) { o.StateDir = f.dir })
	next.do("GET", "/boxes/half", "").want(t, 200, `"status":"failed"`, "the server is stopping")
	next.do("GET", "/boxes/kept", "").want(t, 200, `"status":"ready"`)
	next.do("GET", path(b, "/download?path=x"), "").want(t, 200, "GET /download")
	h.kill(h.created[0].Dir)

	third := serve(t, h, func(o *server.Options) { o.StateDir = f.dir })
	third.do("GET", "/boxes", "").want(t, 200, `"name":"kept"`, `"status_message":"the sandbox's daemon is gone"`)
	// The second one learns it from the record, as it would from the daemon.
	next.do("GET", path(b, "/download?path=x"), "").want(t, 400, `"error":"NotReady"`, "daemon is gone")
	for _, name := range []string{"kept", "half"} {
		third.do("DELETE", "/boxes/"+name, "").want(t, 204)
	}
	third.empty(h)
}

// What cannot be removed stays to be seen, and can be deleted later.
func TestRemovalFails(t *testing.T) {
	h := &host{}
	f := serve(t, h, nil)
	other := serve(t, h, func(o *server.Options) { o.StateDir = f.dir })
	b := f.box("x")
	h.jam(errors.New("device busy"))
	other.do("GET", path(b, "/download"), "").want(t, 502, `"error":"ConnectionError"`)
	for _, by := range []*fixture{f, other} { // one that holds it, and one that would have to adopt it
		by.do("DELETE", "/boxes/x", "").want(t, 500, `"error":"InternalError"`, "could not be removed wholly: device busy", "error_id")
		by.do("GET", "/boxes/x", "").want(t, 200, `"status":"failed"`, `"status_message":"it could not be removed: device busy"`)
	}
	h.jam(nil)
	f.do("DELETE", "/boxes/x", "").want(t, 204)
	f.empty(h)
}

// A server that is killed leaves records that name it as their owner.
func TestOrphans(t *testing.T) {
	h := &host{}
	f := serve(t, h, nil)
	for name, record := range map[string]string{
		"making":   `{"box":{"id":"making","name":"making","status":"provisioning"},"runtime":"memory","unmade":true,"owner":"dead"}`,
		"deleting": `{"box":{"id":"deleting","name":"deleting","status":"deleting"},"runtime":"memory","owner":"dead"}`,
		"foreign":  `{"box":{"id":"foreign","name":"foreign","status":"ready"},"runtime":"other"}`,
		"torn":     `{"box":{"id":"torn","na`,
	} {
		dir := filepath.Join(f.dir, "boxes", name)
		if err := os.MkdirAll(filepath.Join(dir, "fs"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "box.json"), []byte(record), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var list wire.BoxList
	f.do("GET", "/boxes", "").decode(t, &list)
	if len(list.Boxes) != 3 {
		t.Errorf("got %d sandboxes, want all but the one whose record is torn", len(list.Boxes))
	}
	for _, name := range []string{"making", "deleting"} {
		f.do("GET", "/boxes/"+name, "").want(t, 200, `"status":"failed"`, "the server stopped in the middle")
		f.do("POST", "/boxes", fmt.Sprintf(`{"name":%q}`, name)).want(t, 409)
		f.do("DELETE", "/boxes/"+name, "").want(t, 204)
	}
	f.do("GET", "!/sb/foreign/download", "").want(t, 400, `"error":"NotReady"`, "made by the other runtime")
	f.do("DELETE", "/boxes/foreign", "").want(t, 409, `"error":"Conflict"`, "other runtime")
	f.do("GET", "!/sb/torn/download", "").want(t, 500, "error_id")
}
