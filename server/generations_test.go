package server_test

import (
	"strings"
	"testing"

	"github.com/sbx-star/sbx-star/server"
	"github.com/sbx-star/sbx-star/wire"
)

// This file tests what each generation of the API lacks (protocol.md §2.0).

func TestGenerations(t *testing.T) {
	const absent = `"error":"NotImplemented"`
	paths := map[string]string{ // and the generations that have them
		"GET /volumes": "seed classic", "POST /volumes": "seed classic", "GET /volumes/x": "seed classic",
		"GET /templates": "seed classic", "PATCH /templates/x": "seed classic",
		"GET /pools": "seed classic", "DELETE /pools/x": "seed classic",
		"GET /boxes": "seed classic head late", "GET /boxes/x": "seed classic head late", "GET /boxes/x/status": "seed classic head late", "GET /info": "seed classic head late",
		"POST /boxes/x/start": "classic head late", "POST /boxes/x/stop": "classic head late",
		"GET /boxes/x/service-urls": "late", "POST /boxes/x/service-url": "classic head late", "POST /boxes/x/download-url": "head late",
		"POST /boxes/x/snapshot": "classic head late", "GET /snapshots": "classic head late", "GET /snapshots/x": "classic head late",
		"GET /registries": "head late", "DELETE /registries/x": "head late", "GET /snapshots-by-name/x": "head late",
	}
	for _, g := range []string{wire.Seed, wire.Classic, wire.Head, wire.Late} {
		t.Run(g, func(t *testing.T) {
			f := serve(t, &host{}, func(o *server.Options) { o.BestEffort = true; o.Generations = []string{g} })
			for request, have := range paths {
				method, path, _ := strings.Cut(request, " ")
				a := f.do(method, path, `{}`)
				if got, want := strings.Contains(a.body, absent), !strings.Contains(have, g); got != want {
					t.Errorf("%s: absent is %v, want %v: %d %s", request, got, want, a.StatusCode, a.body)
				}
			}
			f.do("GET", "/info", "").want(t, 200, `"generations":["`+g+`"]`)
			for source, have := range map[string]string{"template_name": "seed classic", "snapshot_id": "classic head late", "snapshot_name": "head late", "snapshot": "head late"} {
				a := f.do("POST", "/boxes", `{"`+source+`":"x"}`)
				if strings.Contains(have, g) {
					a.want(t, 400, `NotFound"`)
				} else {
					a.want(t, 422, `"error":"SandboxConfig"`, source+": ", "generation "+g)
				}
			}
			if g == wire.Head || g == wire.Late {
				f.do("POST", "/boxes", `{}`).want(t, 201)
			} else {
				f.do("POST", "/boxes", `{}`).want(t, 422, `"loc":["body","template_name"]`)
			}
		})
	}
	_, err := server.New(server.Options{Runtime: &host{}, StateDir: t.TempDir(), Generations: []string{"next"}})
	if err == nil || !strings.Contains(err.Error(), `no generation "next"`) {
		t.Errorf("got %v", err)
	}
}
