package server_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/sbx-star/sbx-star/wire"
)

// This file tests how lists are cut into pages (protocol.md §16.12), and the list
// of what can be reached in a sandbox (§16.8).

// pages reads a list page by page; between two pages it calls change.
func (f *fixture) pages(path, more string, change func(name string)) (names []string) {
	f.t.Helper()
	for cursor := ""; ; {
		var page struct {
			Items []struct {
				Name string
				Port int
			}
			NextCursor *string `json:"next_cursor"`
		}
		f.do("GET", path+"?"+more+cursor, "").decode(f.t, &page)
		for _, item := range page.Items {
			if item.Port > 0 {
				item.Name = fmt.Sprint(item.Port)
			}
			names = append(names, item.Name)
		}
		if page.NextCursor == nil {
			return names
		}
		if len(page.Items) == 0 {
			f.t.Fatal("an empty page has a cursor")
		}
		change(names[len(names)-1])
		cursor = "&cursor=" + *page.NextCursor
	}
}

func TestPaging(t *testing.T) {
	f := serve(t, &host{}, nil)
	var want []string
	for i := range 5 {
		name := fmt.Sprintf("b%d", i)
		f.box(name)
		f.do("POST", "/snapshots", `{"name":"team/`+name+`","docker_image":"host"}`).want(t, 201)
		f.do("POST", "/registries", `{"name":"`+name+`","url":"https://r.example","username":"u","password":"p"}`).want(t, 201)
		want = append(want, name)
	}
	nothing := func(string) {}
	for _, path := range []string{"/boxes", "/registries"} {
		if got := f.pages(path, "page_size=2&sort_by=name&sort_order=asc", nothing); !slices.Equal(got, want) {
			t.Errorf("%s: got %v", path, got)
		}
	}
	slices.Reverse(want)
	for _, size := range []string{"1", "4", "5", "500"} {
		if got := f.pages("/boxes", "page_size="+size, nothing); !slices.Equal(got, want) {
			t.Errorf("in pages of %s: got %v", size, got)
		}
	}
	if got := f.pages("/snapshots", "limit=3", nothing); len(got) != 5 || got[0] != "team/b4" {
		t.Errorf("got %v", got)
	}
	// A cursor is a place, not a number: what comes and goes moves nothing.
	if got := f.pages("/boxes", "page_size=2", func(last string) { f.do("DELETE", "/boxes/"+last, "").want(t, 204) }); !slices.Equal(got, want) {
		t.Errorf("while sandboxes go: got %v", got)
	}
	f.do("GET", "/snapshots/team%2Fb1", "").want(t, 200, `"name":"team/b1"`)
	f.do("POST", "/boxes", `{"name":"x","snapshot_name":"team/b1:latest"}`).want(t, 201)
	f.do("DELETE", "/snapshots/team%2Fb1:latest", "").want(t, 204)
	f.do("GET", "/snapshots/team%2Fb1", "").want(t, 404)
}

// TestServiceGrants lists ports and forgets them.
func TestServiceGrants(t *testing.T) {
	clock := &clock{}
	f := serve(t, &host{}, clock.set)
	f.box("web")
	list := func() (grants []wire.ServiceGrant) {
		t.Helper()
		var page struct{ Items []wire.ServiceGrant }
		f.do("GET", "/boxes/web/service-urls", "").decode(t, &page)
		return page.Items
	}
	f.do("GET", "/boxes/web/service-urls", "").want(t, 200, `{"items":[],"next_cursor":null,`)
	f.link("web", `{"port":80,"expires_in_seconds":600}`)
	clock.pass(60)
	f.link("web", `{"port":80,"expires_in_seconds":60}`) // the first one is good for longer
	long := f.link("web", `{"port":81,"expires_in_seconds":3600,"embed_origins":["https://a.example"]}`)
	f.link("web", `{"port":82}`)
	got := list()
	if len(got) != 3 || got[2].Port != 80 || got[2].CreatedAt != "2026-01-02T12:00:00.123456Z" || got[2].ExpiresAt != "2026-01-02T12:10:01.000000Z" {
		t.Errorf("got %+v", got)
	}
	text, err := json.Marshal(got[1])
	if want := `{"access":"token","port":81,"created_at":"2026-01-02T12:01:00.123456Z","embed_origins":["https://a.example"],"expires_at":"` + long.ExpiresAt + `"}`; err != nil || string(text) != want {
		t.Errorf("got %s, want %s", text, want)
	}
	if ports := f.pages("/boxes/web/service-urls", "page_size=1", func(string) {}); !slices.Equal(ports, []string{"82", "81", "80"}) {
		t.Errorf("page by page: %v", ports)
	}
	f.do("DELETE", "/boxes/web/service-urls?port=x", "").want(t, 422, `"loc":["query","port"]`)
	f.do("DELETE", "/boxes/web/service-urls?port=82", "").want(t, 204)
	if got := list(); len(got) != 2 {
		t.Errorf("after one is forgotten: %+v", got)
	}
	clock.pass(600)
	if got := list(); len(got) != 1 || got[0].Port != 81 {
		t.Errorf("lapsed ones are listed: %+v", got)
	}
	f.do("DELETE", "/boxes/web/service-urls", "").want(t, 204)
	if got := list(); len(got) != 0 {
		t.Errorf("after all are forgotten: %+v", got)
	}
	f.do("GET", "/boxes/nope/service-urls", "").want(t, 404)
	f.do("DELETE", "/boxes/nope/service-urls", "").want(t, 404)
}
