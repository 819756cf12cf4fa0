//go:build linux

package conformance

import (
	"cmp"
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
	hanging = "hanging" // such a sandbox is never ready
	deaf    = "deaf"    // such a one cannot be reached
)

// strangeness is what a sandbox is in: its variable STRANGE, or its image.
func strangeness(spec runtime.Spec) string { return cmp.Or(spec.Env["STRANGE"], spec.Image) }

// strangely is the field of a sandbox that is strange in such a way.
func strangely(how string) string { return `"env_vars":{"STRANGE":"` + how + `"}` }

// eachStrange is each, over a runtime that some sandboxes are too much for.
func eachStrange(t *testing.T, in string, set func(*server.Options), test func(t *testing.T, f *fixture)) {
	eachWith(t, in, func(o *server.Options) {
		whole := o.Runtime
		o.Runtime = strange{whole, func(ctx context.Context, spec runtime.Spec) error {
			switch strangeness(spec) {
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
	}, test)
}

// One row for each status and its body (§3.3, §3.4, §3.6).
func TestStatuses(t *testing.T) {
	t.Parallel() // it waits
	quota := func(o *server.Options) {
		o.Quota = server.Quota{Sandboxes: 3, Volumes: 1, VolumeBytes: 2 << 30}
	}
	eachStrange(t, "all", quota, func(t *testing.T, f *fixture) {
		t.Parallel()
		f.box(`"name":"b"`)
		f.doIn("seed classic", step{"POST /boxes", `{"template_name":"none"}`, 400, formA("TemplateNotFound")})
		f.doIn("seed classic",
			step{"POST /templates", `{"name":"unknown","image":"unknown","resources":{"cpu":"1","memory":"1Gi"}}`, 201, ``},
			step{"POST /boxes", `{"template_name":"unknown"}`, 422, formA("ImagePull")},
		)
		f.doIn("classic head late", step{"POST /boxes", `{"snapshot_id":"none"}`, 400, formA("SnapshotNotFound")})
		f.do(
			step{"GET /boxes\nX-Api-Key: ", ``, 401, formA("Unauthorized")},
			step{"GET $url/download?path=x\nX-Api-Key: ", ``, 401, formA("Unauthorized")},
			upload("%2Fsys%2Fx", "text", 403, formA("PermissionDenied")),
			step{"GET /boxes/none", ``, 404, formA("NotFound")},
			step{"PUT /boxes/b", ``, 405, "Allow: ~GET\n" + formA("MethodNotAllowed")},
			step{"POST /boxes", `{$source` + strangely(hanging) + `,"timeout":1}`, 408, `{"detail":{"error":"Timeout","message":"~provisioning"}}`},
			step{"POST /boxes", `{$source"name":"b"}`, 409, formA("Conflict")},
			step{"POST /boxes", `{$source"name":"` + strings.Repeat("x", 1<<20) + `"}`, 413, `{"detail":{"error":"*"}}`},
			step{"GET $url/download?path=%2Fetc%2Fpasswd\nRange: bytes=99999999-", ``, 416, ``},
			step{"POST /boxes", `{$source"name":"B"}`, 422, formB("body", "name")},
			step{"POST /boxes", `{$source` + strangely("broken") + `}`, 422, formA("CrashLoop")},
			step{"POST /boxes", `{$source"persistent":false}`, 422, formA("SandboxConfig")},
			step{"POST /boxes", `{$source` + strangely("full") + `}`, 503, "Retry-After: *\n" + formA("Unschedulable")},
			step{"POST /boxes", `{$source"name":"deaf",` + strangely(deaf) + `}`, 201, `{"dataplane_url":"$deaf"}`},
			step{"GET $deaf/download?path=x", ``, 502, formA("ConnectionError")},
			step{"POST $deaf/execute", `{"command":"true"}`, 502, formA("ConnectionError")}, // it has not run
			step{"DELETE /boxes/deaf", ``, 204, ``},
		)
		f.doIn("seed classic",
			step{"POST /volumes", `{"name":"v","size":"3Gi"}`, 429, "Retry-After: *\n" + `{"detail":{"error":"*","message":"~storage"}}`},
			step{"POST /volumes", `{"name":"v","size":"1Gi"}`, 201, ``},
			step{"POST /volumes", `{"name":"w","size":"1Gi"}`, 429, "Retry-After: *\n" + `{"detail":{"error":"*","message":"~volumes"}}`},
		)
		f.do(
			step{"POST /boxes", `{$source"name":"waits",` + strangely(hanging) + `,"wait_for_ready":false}`, 201, `{"dataplane_url":"$waiting"}`},
			step{"POST /boxes", `{$source"name":"fails",` + strangely("broken") + `,"wait_for_ready":false}`, 201, `{"dataplane_url":"$failing"}`},
			step{"POST /boxes", `{$source"env_vars":{}}`, 429, "Retry-After: *\n" + `{"detail":{"error":"*","message":"~sandbox"}}`},
			step{"POST /boxes", `{$source"env_vars":{}}`, 429, `{"detail":{"error":"*","message":"~limit"}}`},
			step{"GET $url/download?path=%2Fproc%2Fself%2Fmem", ``, 500, formA("ReadError")},
			step{"POST $waiting/execute", `{"command":"true"}`, 503, formA("ServiceUnavailable")},
		)
		f.doIn("classic head late",
			step{"POST /boxes/b/service-url", `{"port":1}`, 200, `{"service_url":"$service","token":"$token"}`},
			step{"GET $service/\nX-Langsmith-Sandbox-Service-Token: $token", ``, 502, formA("ConnectionError")},
		)
		f.until(step{"GET /boxes/fails/status", ``, 200, `{"status":"failed","status_message":"~crashed"}`})
		f.do(
			step{"POST $failing/execute", `{"command":"true"}`, 400, formA("NotReady")},
			step{"DELETE /boxes/waits", ``, 204, ``},
		)
		f.server.Close()
		f.do(step{"GET /boxes", ``, 503, formA("ServiceUnavailable")})
	})
}
