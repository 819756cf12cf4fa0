//go:build linux

package conformance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/server"
)

// This file tests the errors that clients tell apart (protocol.md §3). That
// every error is of form A or B, with an error_id from 500 on, is looked at in
// every step of every test.

const (
	hanging = "hanging" // a sandbox of this image is never ready
	deaf    = "deaf"    // one of this image cannot be reached
)

// serveStrange serves a runtime that some sandboxes are too much for.
func serveStrange(t *testing.T, set func(*server.Options)) *fixture {
	t.Helper()
	return serve(t, func(o *server.Options) {
		whole := o.Runtime
		o.Runtime = strange{whole, func(ctx context.Context, spec runtime.Spec) error {
			switch spec.Image {
			case hanging:
				<-ctx.Done()
				return ctx.Err()
			case "broken":
				return errors.New("it crashed")
			case "full":
				return fmt.Errorf("%w: its layer has no place", runtime.ErrDiskFull)
			case "unknown":
				return &runtime.Unsupported{What: "there is no such image", Hint: "use another"}
			}
			return nil
		}}
		if set != nil {
			set(o)
		}
	})
}

func (f *fixture) templates(images ...string) {
	f.Helper()
	for _, image := range images {
		f.do(step{"POST /templates", `{"name":"` + image + `","image":"` + image + `","resources":{"cpu":"1","memory":"1Gi"}}`, 201, ``})
	}
}

// One row for each status and its body (§3.3, §3.4, §3.6).
func TestStatuses(t *testing.T) {
	t.Parallel() // it waits
	f := serveStrange(t, func(o *server.Options) { o.Quota = server.Quota{Sandboxes: 3, Volumes: 1, VolumeBytes: 2 << 30} })
	f.templates(hanging, deaf, "broken", "full", "unknown")
	f.box(`"name":"b"`)
	f.do(
		step{"POST /boxes", `{"template_name":"none"}`, 400, formA("TemplateNotFound")},
		step{"POST /boxes", `{"snapshot_id":"none"}`, 400, formA("SnapshotNotFound")},
		step{"GET /boxes\nX-Api-Key: ", ``, 401, formA("Unauthorized")},
		step{"GET $url/download?path=x\nX-Api-Key: ", ``, 401, formA("Unauthorized")},
		upload("%2Fsys%2Fx", "text", 403, formA("PermissionDenied")),
		step{"GET /boxes/none", ``, 404, formA("NotFound")},
		step{"PUT /boxes/b", ``, 405, "Allow: ~GET\n" + formA("MethodNotAllowed")},
		step{"POST /boxes", `{"template_name":"hanging","timeout":1}`, 408, `{"detail":{"error":"Timeout","message":"~provisioning"}}`},
		step{"POST /boxes", `{"name":"b"}`, 409, formA("Conflict")},
		step{"POST /boxes", `{"name":"` + strings.Repeat("x", 1<<20) + `"}`, 413, `{"detail":{"error":"*"}}`},
		step{"GET $url/download?path=%2Fetc%2Fpasswd\nRange: bytes=99999999-", ``, 416, ``},
		step{"POST /boxes", `{"name":"B"}`, 422, formB("body", "name")},
		step{"POST /boxes", `{"template_name":"broken"}`, 422, formA("CrashLoop")},
		step{"POST /boxes", `{"template_name":"unknown"}`, 422, formA("ImagePull")},
		step{"POST /boxes", `{"persistent":false}`, 422, formA("SandboxConfig")},
		step{"POST /boxes", `{"template_name":"full"}`, 503, "Retry-After: *\n" + formA("Unschedulable")},
		step{"POST /boxes", `{"name":"deaf","template_name":"deaf"}`, 201, `{"dataplane_url":"$deaf"}`},
		step{"GET $deaf/download?path=x", ``, 502, formA("ConnectionError")},
		step{"POST $deaf/execute", `{"command":"true"}`, 502, formA("ConnectionError")}, // it has not run
		step{"DELETE /boxes/deaf", ``, 204, ``},
		step{"POST /volumes", `{"name":"v","size":"3Gi"}`, 429, "Retry-After: *\n" + `{"detail":{"error":"*","message":"~storage"}}`},
		step{"POST /volumes", `{"name":"v","size":"1Gi"}`, 201, ``},
		step{"POST /volumes", `{"name":"w","size":"1Gi"}`, 429, "Retry-After: *\n" + `{"detail":{"error":"*","message":"~volumes"}}`},
		step{"POST /boxes", `{"name":"waits","template_name":"hanging","wait_for_ready":false}`, 201, `{"dataplane_url":"$waiting"}`},
		step{"POST /boxes", `{"name":"fails","template_name":"broken","wait_for_ready":false}`, 201, `{"dataplane_url":"$failing"}`},
		step{"POST /boxes", `{}`, 429, "Retry-After: *\n" + `{"detail":{"error":"*","message":"~sandbox"}}`},
		step{"POST /boxes", `{}`, 429, `{"detail":{"error":"*","message":"~limit"}}`},
		step{"GET $url/download?path=%2Fproc%2Fself%2Fmem", ``, 500, formA("ReadError")},
		step{"POST /boxes/b/service-url", `{"port":1}`, 200, `{"service_url":"$service","token":"$token"}`},
		step{"GET $service/\nX-Langsmith-Sandbox-Service-Token: $token", ``, 502, formA("ConnectionError")},
		step{"POST $waiting/execute", `{"command":"true"}`, 503, formA("ServiceUnavailable")},
	)
	f.until(step{"GET /boxes/fails/status", ``, 200, `{"status":"failed","status_message":"~crashed"}`})
	f.do(step{"POST $failing/execute", `{"command":"true"}`, 400, formA("NotReady")})
	f.do(step{"DELETE /boxes/waits", ``, 204, ``})
	f.server.Close()
	f.do(step{"GET /boxes", ``, 503, formA("ServiceUnavailable")})
}
