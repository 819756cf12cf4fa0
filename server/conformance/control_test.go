//go:build linux

package conformance

import (
	"strings"
	"testing"

	"github.com/sbx-star/sbx-star/server"
)

// This file tests the control plane, table by table (protocol.md §2.1–§2.10,
// §16.6–§16.8).

func TestVolumes(t *testing.T) { // §2.1
	each(t, "seed classic", func(t *testing.T, f *fixture) {
		f.do(
			step{"GET /volumes", ``, 200, `{"volumes":[]}`},
			step{"POST /volumes", `{"name":"v","size":"10Gi","wait_for_ready":true,"timeout":60}`, 201,
				`{"id":"$id","name":"v","size":"10Gi","storage_class":"*","created_at":"*","updated_at":"*"}`},
			step{"POST /volumes", `{"name":"v","size":"1Gi"}`, 409, formA("Conflict")},
			step{"POST /volumes", `{"name":"w","size":"much"}`, 422, formB("body", "size")},
			step{"GET /volumes/v", ``, 200, `{"id":"$id"}`},
			step{"GET /volumes/$id", ``, 200, `{"name":"v"}`},
			step{"GET /volumes/none", ``, 404, formA("NotFound")},
			step{"PATCH /volumes/v", `{"size":"20Gi"}`, 200, `{"size":"20Gi"}`},
			step{"PATCH /volumes/v", `{"size":"1Gi"}`, 400, formA("ResizeError")},
			step{"PATCH /volumes/v", `{"name":"w"}`, 200, `{"id":"$id","name":"w","size":"20Gi"}`},
			step{"PATCH /volumes/v", `{"name":"x"}`, 404, formA("NotFound")},
			step{"POST /volumes", `{"name":"v","size":"1Gi"}`, 201, ``},
			step{"PATCH /volumes/w", `{"name":"v"}`, 409, formA("Conflict")},
			step{"POST /templates", `{"name":"t",` + template + `,"volume_mounts":[{"volume_name":"w","mount_path":"/data"}]}`, 201, ``},
			step{"DELETE /volumes/w", ``, 409, formA("Conflict")},
			step{"DELETE /templates/t", ``, 204, ``},
			step{"DELETE /volumes/w", ``, 204, ``},
			step{"DELETE /volumes/w", ``, 404, formA("NotFound")},
		)
	})
}

func TestTemplates(t *testing.T) { // §2.2
	each(t, "seed classic", func(t *testing.T, f *fixture) {
		f.do(
			step{"GET /templates", ``, 200, `{"templates":[]}`},
			step{"POST /volumes", `{"name":"v","size":"1Gi"}`, 201, ``},
			step{"POST /templates", `{"name":"t","image":"python:3.12","resources":{"cpu":"2","memory":"1Gi","storage":"10Gi"},"volume_mounts":[{"volume_name":"v","mount_path":"/data"}]}`, 201,
				`{"id":"$t","name":"t","image":"python:3.12","resources":{"cpu":"2","memory":"1Gi","storage":"10Gi"},"volume_mounts":[{"volume_name":"v","mount_path":"/data"}],"created_at":"*","updated_at":"*"}`},
			step{"POST /templates", `{"name":"u",` + template + `}`, 201, `{"resources":{"cpu":"500m","memory":"512Mi","storage":null},"volume_mounts":[]}`},
			step{"POST /templates", `{"name":"t",` + template + `}`, 409, formA("Conflict")},
			step{"POST /templates", `{"name":"w","image":"i","resources":{"cpu":"lots","memory":"1Gi"}}`, 422, formB("body", "resources", "cpu")},
			step{"GET /templates/t", ``, 200, `{"id":"$t"}`},
			step{"GET /templates/none", ``, 404, formA("NotFound")},
			step{"PATCH /templates/t", `{"name":"x"}`, 200, `{"id":"$t","name":"x"}`},
			step{"PATCH /templates/x", `{"name":"u"}`, 409, formA("Conflict")},
			step{"PATCH /templates/t", `{"name":"y"}`, 404, formA("NotFound")},
			step{"DELETE /templates/t", ``, 404, formA("NotFound")},
			step{"DELETE /templates/x", ``, 204, ``},
		)
		f.box(`"template_name":"u"`)
		f.do(
			step{"DELETE /templates/u", ``, 409, formA("Conflict")},
			step{"DELETE /boxes/$id", ``, 204, ``},
			step{"POST /pools", `{"name":"p","template_name":"u","replicas":1,"wait_for_ready":false}`, 201, ``},
			step{"DELETE /templates/u", ``, 409, formA("Conflict")},
			step{"DELETE /pools/p", ``, 204, ``},
			step{"DELETE /templates/u", ``, 204, ``},
		)
	})
}

func TestPools(t *testing.T) { // §2.3
	f := serve(t, func(o *server.Options) {
		o.Generations = []string{seed}
		o.Quota.Sandboxes = 3
	})
	f.do(
		step{"POST /volumes", `{"name":"v","size":"1Gi"}`, 201, ``},
		step{"POST /templates", `{"name":"t",` + template + `}`, 201, ``},
		step{"POST /templates", `{"name":"mounts",` + template + `,"volume_mounts":[{"volume_name":"v","mount_path":"/data"}]}`, 201, ``},
		step{"GET /pools", ``, 200, `{"pools":[]}`},
		step{"POST /pools", `{"name":"p","template_name":"t","replicas":1,"wait_for_ready":true,"timeout":30}`, 201,
			`{"id":"$p","name":"p","template_name":"t","replicas":1,"created_at":"*","updated_at":"*"}`},
		step{"GET /boxes", ``, 200, `{"sandboxes":[]}`},
		step{"POST /pools", `{"name":"q","template_name":"none","replicas":1}`, 400, formA("TemplateNotFound")},
		step{"POST /pools", `{"name":"q","template_name":"mounts","replicas":1}`, 400, formA("ValidationError")},
		step{"POST /pools", `{"name":"p","template_name":"t","replicas":1}`, 409, `{"detail":"~p"}`},
		step{"POST /pools", `{"name":"q","template_name":"t","replicas":9}`, 429, `{"detail":"~sandbox"}`},
		step{"POST /pools", `{"name":"q","template_name":"t","replicas":0}`, 422, formB("body", "replicas")},
		step{"POST /pools", `{"name":"q","template_name":"t","replicas":101}`, 422, formB("body", "replicas")},
		step{"POST /pools", `{"name":"Q","template_name":"t","replicas":1}`, 422, formB("body", "name")},
		step{"GET /pools/p", ``, 200, `{"id":"$p"}`},
		step{"GET /pools/none", ``, 404, formA("NotFound")},
		step{"PATCH /pools/p", `{"name":"q"}`, 200, `{"id":"$p","name":"q"}`},
		step{"PATCH /pools/p", `{"replicas":2}`, 404, formA("NotFound")},
		step{"PATCH /pools/q", `{"replicas":101}`, 422, formB("body", "replicas")},
		step{"PATCH /pools/q", `{"replicas":0}`, 200, `{"replicas":0}`},
		step{"POST /pools", `{"name":"r","template_name":"t","replicas":1,"wait_for_ready":true,"timeout":30}`, 201, ``},
		step{"PATCH /pools/q", `{"name":"r"}`, 409, ``},
	)
	f.box(`"template_name":"t"`)
	f.do(
		execute("echo warm", 0, "warm\n"),
		step{"DELETE /pools/q", ``, 204, ``},
		step{"DELETE /pools/q", ``, 404, formA("NotFound")},
	)
}

// The fields of a box by generation, and what answers them (§2.4).
func TestBoxFields(t *testing.T) {
	eachGeneration(t, func(f *fixture, generation string) {
		f.do(step{"POST /boxes", `{"snapshot_id":"a","template_name":"b"}`, 422, ``})
		switch generation {
		case seed:
			f.do(
				step{"POST /templates", `{"name":"t",` + template + `}`, 201, ``},
				step{"POST /boxes", `{"template_name":"t","name":"b","wait_for_ready":true,"timeout":30}`, 201,
					`{"id":"*","name":"b","template_name":"t","dataplane_url":"*","status":"ready","status_message":null,"created_at":"*","updated_at":"*"}`})
		case classic:
			f.do(
				step{"POST /templates", `{"name":"t",` + template + `}`, 201, ``},
				step{"POST /boxes", `{"template_name":"t","name":"b","wait_for_ready":true,"timeout":30,"ttl_seconds":3600,"idle_ttl_seconds":600,"vcpus":1,"mem_bytes":4294967296,"fs_capacity_bytes":1073741824,"proxy_config":{}}`, 201,
					`{"template_name":"t","ttl_seconds":3600,"expires_at":"*","idle_ttl_seconds":600,"vcpus":1,"mem_bytes":4294967296,"fs_capacity_bytes":1073741824,"snapshot_id":null}`},
				step{"POST /boxes", `{"template_name":"none"}`, 400, formA("TemplateNotFound")},
				step{"POST /boxes", `{"template_name":"t","name":"b"}`, 409, formA("Conflict")})
		default:
			f.do(
				step{"POST /boxes", `{"name":"b","wait_for_ready":true,"timeout":30,"idle_ttl_seconds":600,"delete_after_stop_seconds":1200,"vcpus":1,"mem_bytes":4294967296,"fs_capacity_bytes":1073741824}`, 201,
					`{"template_name":null,"idle_ttl_seconds":600,"delete_after_stop_seconds":1200,"stopped_at":null,"expires_at":null,"vcpus":1}`},
				step{"POST /boxes", `{"snapshot_id":"a","snapshot_name":"b"}`, 422, ``},
				step{"POST /boxes", `{"snapshot_name":"none"}`, 400, formA("SnapshotNotFound")},
				step{"POST /boxes", `{"mount_config":{"auth":{},"mounts":[{"id":"m","type":"s3"}]}}`, 422, refused("mount_config")})
		}
		f.do(step{"POST /boxes", `{"name":"B"}`, 422, formB("body", "name")})
	})
}

// Not waited for: 201 at once, and a URL that comes alive (§2.4).
func TestCreateWithoutWaiting(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.do(step{"POST /boxes", `{$source"wait_for_ready":false}`, 201, `{"id":"$id","name":"$name","status":"provisioning","dataplane_url":"$url"}`})
		f.until(step{"GET /boxes/$id/status", ``, 200, `{"status":"ready","status_message":null}`})
		f.do(execute("echo up", 0, "up\n"), step{"GET /boxes/$id", ``, 200, `{"status":"ready","dataplane_url":"$url"}`})
	})
}

func TestBoxes(t *testing.T) { // §2.5
	each(t, "all", func(t *testing.T, f *fixture) {
		f.do(step{"GET /boxes", ``, 200, `{"sandboxes":[],"offset":0}`})
		f.box(`"name":"b","labels":{"team":"a"}`)
		f.do(
			step{"GET /boxes/b", ``, 200, `{"id":"$id","status":"ready","dataplane_url":"$url"}`},
			step{"GET /boxes/none", ``, 404, formA("NotFound")},
			step{"PATCH /boxes/b", `{}`, 200, `{"id":"$id","name":"b"}`},
			step{"PATCH /boxes/b", `{"name":"c","idle_ttl_seconds":600,"delete_after_stop_seconds":1200}`, 200,
				`{"name":"c","idle_ttl_seconds":600,"delete_after_stop_seconds":1200,"dataplane_url":"$url"}`},
			step{"PATCH /boxes/c", `{"ttl_seconds":3600,"idle_ttl_seconds":null}`, 200, `{"ttl_seconds":3600,"expires_at":"*","idle_ttl_seconds":600}`},
			step{"PATCH /boxes/b", `{"name":"d"}`, 404, formA("NotFound")},
			step{"GET /boxes/c/status", ``, 200, `{"status":"ready","status_message":null}`},
			step{"GET /boxes/none/status", ``, 404, formA("NotFound")},
		)
		f.box(`"name":"other"`)
		f.do(
			step{"PATCH /boxes/other", `{"name":"c"}`, 409, formA("Conflict")},
			step{"GET /boxes", ``, 200, `{"sandboxes":[{"name":"other"},{"name":"c"}]}`},
			step{"GET /boxes?sort_by=name&sort_direction=asc", ``, 200, `{"sandboxes":[{"name":"c"},{"name":"other"}]}`},
			step{"GET /boxes?limit=1&offset=1", ``, 200, `{"sandboxes":[{"name":"c"}],"offset":1}`},
			step{"GET /boxes?name_contains=the&created_by=me", ``, 200, `{"sandboxes":[{"name":"other"}]}`},
			step{"GET /boxes?status=stopped", ``, 200, `{"sandboxes":[]}`},
			step{"GET /boxes?label=team", ``, 200, `{"sandboxes":[{"name":"c"}]}`},
			step{"GET /boxes?label=team%3Db", ``, 200, `{"sandboxes":[]}`},
			step{"DELETE /boxes/other", ``, 204, ``},
			step{"DELETE /boxes/other", ``, 404, formA("NotFound")},
		)
	})
}

func TestStartAndStop(t *testing.T) { // §2.6
	each(t, "classic head late", func(t *testing.T, f *fixture) {
		f.box(`"name":"b"`)
		f.do(
			execute("echo kept > file; echo gone > /dev/shm/conformance-$$; rm /dev/shm/conformance-$$", 0, ""),
			step{"POST /boxes/b/stop", `{}`, 204, ``},
			step{"GET /boxes/b", ``, 200, `{"status":"stopped","stopped_at":"*","dataplane_url":"$url"}`},
			step{"POST /boxes/b/stop", `{}`, 204, ``},
			step{"POST /boxes/b/start", `{}`, 202, ``},
		)
		f.until(step{"GET /boxes/b", ``, 200, `{"status":"ready","stopped_at":null,"dataplane_url":"$url"}`})
		f.do(
			step{"POST /boxes/b/start", `{}`, 202, ``},
			execute("cat file", 0, "kept\n"),
			step{"POST /boxes/none/start", `{}`, 404, formA("NotFound")},
			step{"POST /boxes/none/stop", `{}`, 404, formA("NotFound")},
		)
	})
}

// Multiples of 60, 0 is off, the classic pair and the pair of head (§2.7).
func TestTTLs(t *testing.T) {
	each(t, "classic head late", func(t *testing.T, f *fixture) {
		for _, field := range []string{"ttl_seconds", "idle_ttl_seconds", "delete_after_stop_seconds"} {
			f.do(
				step{"POST /boxes", `{$source"` + field + `":61}`, 422, formB("body", field)},
				step{"POST /boxes", `{$source"` + field + `":-60}`, 422, formB("body", field)},
			)
		}
		f.box(`"ttl_seconds":0,"idle_ttl_seconds":0,"delete_after_stop_seconds":0`)
		f.do(
			step{"GET /boxes/$id", ``, 200, `{"idle_ttl_seconds":0,"delete_after_stop_seconds":0,"expires_at":null}`},
			step{"PATCH /boxes/$id", `{"idle_ttl_seconds":61}`, 422, formB("body", "idle_ttl_seconds")},
		)
	})
}

func TestServiceURLs(t *testing.T) { // §2.8
	each(t, "classic head late", func(t *testing.T, f *fixture) {
		f.box(`"name":"b"`)
		f.do(
			step{"POST /boxes/b/service-url", `{"port":1,"expires_in_seconds":600}`, 200,
				`{"browser_url":"~--1.","service_url":"$service","token":"$token","expires_at":"*"}`},
			step{"POST /boxes/b/service-url", `{"port":2,"expires_in_seconds":600}`, 200, `{"service_url":"$service2"}`},
			step{"POST /boxes/none/service-url", `{"port":1}`, 404, formA("NotFound")},
			step{"POST /boxes/b/service-url", `{"port":0}`, 422, formB("body", "port")},
			step{"POST /boxes/b/service-url", `{"port":65536}`, 422, formB("body", "port")},
			step{"GET $service/", ``, 401, ``},
			step{"GET $service/\nX-Langsmith-Sandbox-Service-Token: x$token", ``, 401, ``},
			step{"GET $service2/\nX-Langsmith-Sandbox-Service-Token: $token", ``, 403, ``},
			step{"GET $service/\nX-Langsmith-Sandbox-Service-Token: $token\nX-Api-Key: ", ``, 502, ``}, // nothing listens
		)
	})
}

func TestServiceURLsOfLate(t *testing.T) { // §16.8
	each(t, "late", func(t *testing.T, f *fixture) {
		f.box(`"name":"b"`)
		f.do(
			step{"POST /boxes/b/service-url", `{"port":8080}`, 200, `{"token":"*","embed_url":null}`},
			step{"POST /boxes/b/service-url", `{"port":8080,"embed_origins":["https://a.example","http://localhost:3000"]}`, 200,
				`{"embed_url":"~#token=","embed_origins":["https://a.example","http://localhost:3000"]}`},
			step{"POST /boxes/b/service-url", `{"port":8080,"embed_origins":["http://a.example"]}`, 422, ``},
			step{"POST /boxes/b/service-url", `{"port":8080,"embed_origins":["https://a","https://b","https://c","https://d","https://e","https://f"]}`, 422, ``},
			step{"POST /boxes/b/service-url", `{"port":8080,"access":"restricted"}`, 422, refused("access")},
			step{"POST /boxes/b/service-url", `{"port":8080,"access":"workspace"}`, 422, refused("access")},
		)
	})
}

func TestDownloadURLs(t *testing.T) { // §2.9
	each(t, "head late", func(t *testing.T, f *fixture) {
		f.box(`"name":"b"`)
		f.do(
			upload("page", "0123456789", 200, ``),
			step{"POST /boxes/b/download-url", `{"path":"page"}`, 200, `{"download_url":"$link","token":"*","expires_at":null}`},
			step{"GET $link\nX-Api-Key: ", ``, 200, "Content-Type: application/octet-stream\n=0123456789"},
			step{"HEAD $link\nX-Api-Key: ", ``, 200, "Content-Length: 10\n="},
			step{"GET $link\nRange: bytes=2-4", ``, 206, "Content-Range: bytes 2-4/10\n=234"},
			step{"GET ${link}x", ``, 403, ``},
			step{"POST /boxes/b/download-url", `{"path":"page","expires_in_seconds":60,"content_type":"text/html","content_disposition":"attachment"}`, 200, `{"download_url":"$dressed","expires_at":"*"}`},
			step{"GET $dressed\nX-Api-Key: ", ``, 200, "Content-Type: text/html\nContent-Disposition: attachment; filename=page\n=0123456789"},
			step{"POST /boxes/b/download-url", `{"path":"page","content_disposition":"inline"}`, 200, `{"download_url":"$inline"}`},
			step{"GET $inline", ``, 200, "Content-Disposition: inline\n=0123456789"},
			step{"POST /boxes/b/download-url", `{"path":"none"}`, 200, `{"download_url":"$none"}`},
			step{"GET $none", ``, 404, ``},
			step{"POST /boxes/b/download-url", `{"path":"page","expires_in_seconds":0}`, 422, formB("body", "expires_in_seconds")},
			step{"POST /boxes/b/download-url", `{"path":"page","content_disposition":"other"}`, 422, formB("body", "content_disposition")},
			step{"POST /boxes/b/download-url", `{}`, 422, formB("body", "path")},
			step{"POST /boxes/b/download-url", `{"path":"page","csp_sandbox":null,"csp_sandbox_flags":[],"csp_source_bundles":[]}`, 200, ``},
			step{"POST /boxes/b/download-url", `{"path":"page","csp_sandbox":true}`, 422, refused("csp_sandbox")},
			step{"POST /boxes/b/download-url", `{"path":"page","csp_sandbox_flags":["allow-scripts"]}`, 422, refused("csp_sandbox_flags")},
			step{"POST /boxes/b/download-url", `{"path":"page","csp_source_bundles":["cdnjs"]}`, 422, refused("csp_source_bundles")},
			step{"POST /boxes/none/download-url", `{"path":"page"}`, 404, formA("NotFound")},
			step{"POST /boxes/b/stop", `{}`, 204, ``},
			step{"GET $link", ``, 200, `=0123456789`}, // it woke
		)
	})
}

func TestSnapshots(t *testing.T) { // §2.10
	each(t, "classic head late", func(t *testing.T, f *fixture) {
		f.box(`"name":"b"`)
		f.do(
			execute("echo captured > file", 0, ""),
			step{"GET /snapshots", ``, 200, `{"snapshots":[],"offset":0}`},
			step{"POST /boxes/b/snapshot", `{"name":"s"}`, 201, `{"id":"$s","name":"s","status":"building","source_sandbox_id":"$id","created_at":"*","updated_at":"*"}`},
			step{"POST /boxes/none/snapshot", `{"name":"s"}`, 404, formA("NotFound")},
			step{"POST /boxes/b/snapshot", `{"name":"a:b"}`, 422, formB("body", "name")},
			step{"POST /boxes/b/snapshot", `{"name":"t","checkpoint":"2026-01-01T00:00:00Z"}`, 422, refused("checkpoint")},
			step{"POST /boxes/b/snapshot", `{"name":"t","docker_image":"i"}`, 422, refused("docker_image")},
			step{"POST /boxes/b/snapshot", `{"name":"t","include_memory":true}`, 422, refused("include_memory")},
			step{"POST /snapshots", `{"name":"Big","docker_image":"python:3.12","fs_capacity_bytes":1073741824}`, 422, formB("body", "name")},
			step{"POST /snapshots", `{"name":"i","fs_capacity_bytes":1073741824}`, 422, formB("body", "docker_image")},
			step{"POST /snapshots", `{"name":"i_1.0","docker_image":"python:3.12","fs_capacity_bytes":1073741824,"registry_id":"none"}`, 400, ``},
			step{"POST /snapshots", `{"name":"i_1.0","docker_image":"python:3.12","fs_capacity_bytes":1073741824}`, 201,
				`{"id":"$i","status":"building","docker_image":"python:3.12","fs_capacity_bytes":1073741824}`},
			step{"GET /snapshots/none", ``, 404, formA("NotFound")},
		)
		f.until(step{"GET /snapshots/$s", ``, 200, `{"status":"ready"}`})
		f.until(step{"GET /snapshots/$i", ``, 200, `{"status":"ready"}`})
		f.do(
			step{"GET /snapshots/s:latest", ``, 200, `{"id":"$s","tags":["latest"]}`},
			step{"GET /snapshots?name_contains=I_1", ``, 200, `{"snapshots":[{"id":"$i"}],"offset":0}`},
			step{"GET /snapshots?limit=1&offset=1", ``, 200, `{"snapshots":[{"id":"$s"}],"offset":1}`},
		)
		f.box(`"snapshot_id":"` + f.expand("$s") + `"`)
		f.do(execute("cat file", 0, "captured\n"), step{"GET /boxes/$id", ``, 200, `{"snapshot_id":"$s"}`})
		if f.generation == classic { // which has snapshots by their ids alone
			f.box(`"snapshot_id":"` + f.expand("$i") + `"`)
		} else {
			f.box(`"snapshot_name":"i_1.0"`)
		}
		f.do(
			step{"GET /boxes/$id", ``, 200, `{"snapshot_id":"$i"}`},
			step{"DELETE /snapshots/$s", ``, 204, ``},
			step{"DELETE /snapshots/$s", ``, 404, formA("NotFound")},
		)
	})
}

func TestRegistries(t *testing.T) { // §2.10
	each(t, "head late", func(t *testing.T, f *fixture) {
		const whole = `{"name":"r","url":"https://r.example","username":"me","password":"secret"}`
		f.do(
			step{"POST /registries", whole, 201, `{"id":"$id","name":"r","url":"https://r.example","username":null,"password":null,"created_at":"*","updated_at":"*"}`},
			step{"POST /registries", whole, 409, formA("Conflict")},
			step{"POST /registries", `{"name":"Q","url":"https://r.example","username":"me","password":"secret"}`, 422, formB("body", "name")},
			step{"GET /registries?limit=1&offset=0&name_contains=r", ``, 200, `{"registries":[{"id":"$id","password":null}],"offset":0}`},
			step{"GET /registries/r", ``, 200, `{"id":"$id","password":null}`},
			step{"PATCH /registries/r", `{"name":"q","username":"you","password":"other"}`, 200, `{"id":"$id","name":"q","username":null}`},
			step{"GET /registries/r", ``, 404, formA("NotFound")},
			step{"PATCH /registries/q", `{"auth_type":"DOCKER_CONFIG"}`, 200, `{"id":"$id"}`},
			step{"PATCH /registries/q", `{"aws_role_arn":"arn"}`, 422, refused("aws_role_arn")},
			step{"POST /registries", `{"name":"a","url":"https://r.example","auth_type":"AWS_ROLE","aws_role_arn":"arn"}`, 422, refused("auth_type")},
			step{"DELETE /registries/q", ``, 204, ``},
			step{"DELETE /registries/q", ``, 404, formA("NotFound")},
		)
		for _, field := range []string{"name", "url", "username", "password"} {
			f.do(step{"POST /registries", strings.Replace(whole, `"`+field+`"`, `"no"`, 1), 422, formB("body", field)})
		}
	})
}

func TestBoxFieldsOfLate(t *testing.T) { // §16.6
	each(t, "late", func(t *testing.T, f *fixture) {
		f.do(
			step{"POST /boxes", `{"access_delegation":{"mode":"INHERIT"}}`, 422, refused("access_delegation")},
			step{"POST /boxes", `{"access_delegation":{"mode":"EXPLICIT","permissions":["a"]}}`, 422, refused("access_delegation")},
			step{"POST /boxes", `{"preserve_memory_on_stop":true}`, 422, refused("preserve_memory_on_stop")},
			step{"POST /boxes", `{"restore_memory":true}`, 422, refused("restore_memory")},
			step{"POST /boxes", `{"persistent":false}`, 422, refused("persistent")},
		)
		f.box(`"name":"b","labels":{"a":"1","b":"1"},"run_config":{"env_vars":{"A":"1"}},"preserve_memory_on_stop":false,"restore_memory":false,"persistent":true`)
		f.do(
			step{"GET /boxes/b", ``, 200, `{"labels":{"a":"1","b":"1"},"run_config":{"env_vars":{"A":"1"}}}`},
			step{"POST /boxes/b/snapshot", `{"name":"s","labels":{"b":"2"}}`, 201, `{"id":"$s","labels":{"a":"1","b":"2"}}`},
		)
		f.until(step{"GET /snapshots/$s", ``, 200, `{"status":"ready"}`})
		f.do(step{"POST /boxes", `{"snapshot_id":"$s","labels":{"a":"3"}}`, 201, `{"labels":{"a":"3","b":"2"}}`})
	})
}

func TestSnapshotFieldsOfLate(t *testing.T) { // §16.7
	each(t, "late", func(t *testing.T, f *fixture) {
		f.do(step{"POST /snapshots", `{"name":"i","docker_image":"host","fs_capacity_bytes":1073741824,"run_config":{"env_vars":{"A":"1","B":"1"}}}`, 201,
			`{"id":"$i","status":"ready","run_config":{"env_vars":{"A":"1","B":"1"}}}`})
		f.box(`"snapshot_id":"` + f.expand("$i") + `","run_config":{"env_vars":{"B":"2"}}`)
		f.do(
			execute("echo $A$B", 0, "12\n"),
			step{"POST /boxes/$id/snapshot", `{"name":"s","run_config":{"env_vars":{"C":"3"}}}`, 201, `{"run_config":{"env_vars":{"A":"1","B":"2","C":"3"}}}`},
			step{"POST /snapshots", `{"name":"i","docker_image":"host","run_config":{"work_dir":"relative"}}`, 422, formB("body", "run_config", "work_dir")},
		)
	})
}
