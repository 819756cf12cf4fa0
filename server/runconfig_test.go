package server_test

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sbx-star/sbx-star/server"
	"github.com/sbx-star/sbx-star/wire"
)

// This file tests the layers of run_config that a sandbox has (protocol.md
// §16.3, §16.6), and the lists of sandboxes.

func TestRunConfig(t *testing.T) {
	var mu sync.Mutex
	var told []string
	h := &host{daemon: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/config" {
			echo(w, r)
			return
		}
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		told = append(told, string(body))
		mu.Unlock()
		if strings.Contains(string(body), "picky") {
			w.WriteHeader(400)
			io.WriteString(w, `{"detail":{"error":"InvalidRequest","message":"no such thing"}}`)
			return
		}
		w.WriteHeader(204)
	})}
	f := serve(t, h, nil)
	last := func(want string) {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		if len(told) == 0 || told[len(told)-1] != want {
			t.Errorf("the daemon was told %q, want %s last", told, want)
		}
	}
	f.do("POST", "/boxes", `{"name":"plain","run_config":{"env_vars":{"A":"low","B":"2"}},"env_vars":{"A":"high"}}`).want(t, 201, `"run_config":{"env_vars":{"A":"low","B":"2"}}`)
	if got := h.created[0].Env; len(told) != 0 || got["A"] != "high" || got["B"] != "2" {
		t.Errorf("placed with %v, and the daemon was told %q", got, told)
	}
	f.do("POST", "/boxes", `{"name":"x","run_config":{"user":"1000:100","work_dir":"/srv","env_vars":{"A":"1"}}}`).want(t, 201, `"run_config":{"user":"1000:100","work_dir":"/srv","env_vars":{"A":"1"}}`)
	last(`{"env":{"A":"1"},"user":"1000:100","work_dir":"/srv"}`)

	// PATCH merges, and what runs hears of it at once.
	f.do("PATCH", "/boxes/x", `{"run_config":{"work_dir":"/opt","env_vars":{"B":"2"}}}`).want(t, 200, `"run_config":{"user":"1000:100","work_dir":"/opt","env_vars":{"A":"1","B":"2"}}`)
	last(`{"env":{"A":"1","B":"2"},"user":"1000:100","work_dir":"/opt"}`)
	before := len(told)
	f.do("PATCH", "/boxes/x", `{"run_config":{"env_vars":{"B":"2"}}}`).want(t, 200)
	f.do("PATCH", "/boxes/x", `{"run_config":null,"name":"y"}`).want(t, 200, `"work_dir":"/opt"`)
	if len(told) != before {
		t.Error("the daemon was told what it knows")
	}

	// What is stopped takes it up when it starts.
	f.do("POST", "/boxes/y/stop", "").want(t, 204)
	f.do("PATCH", "/boxes/y", `{"run_config":{"user":"root"}}`).want(t, 200, `"user":"root"`)
	if len(told) != before {
		t.Error("a daemon was told")
	}
	f.do("POST", "/boxes/y/start", "").want(t, 202)
	f.ready("y")
	last(`{"env":{"A":"1","B":"2"},"user":"root","work_dir":"/opt"}`)

	f.do("POST", "/boxes", `{"run_config":{"user":"picky"}}`).want(t, 422, `"error":"SandboxConfig"`, "run_config: no such thing")
	f.do("PATCH", "/boxes/y", `{"run_config":{"user":"picky"}}`).want(t, 422, `"error":"SandboxConfig"`, "run_config: no such thing")
}

func TestBoxOrder(t *testing.T) {
	clock := &clock{}
	f := serve(t, &host{}, func(o *server.Options) { clock.set(o) })
	for i, name := range []string{"a", "b", "c"} {
		f.do("POST", "/boxes", fmt.Sprintf(`{"name":%q,"labels":{"n":"%d","all":""}}`, name, i)).want(t, 201)
		clock.pass(1)
	}
	for _, name := range []string{"c", "a"} {
		f.do("POST", "/boxes/"+name+"/stop", "").want(t, 204)
		clock.pass(1)
	}
	for query, want := range map[string]string{
		"":                                   "cba",
		"?sort_by=stopped_at":                "acb",
		"?sort_by=stopped_at&sort_order=asc": "bca",
		"?sort_by=name&sort_direction=asc":   "abc",
		"?label=all&status=stopped":          "ca",
		"?label=all&label=n%3D1":             "b",
	} {
		var list wire.BoxList
		f.do("GET", "/boxes"+query, "").decode(t, &list)
		var names string
		for _, b := range list.Boxes {
			names += b.Name
		}
		if names != want {
			t.Errorf("%q gives %s, want %s", query, names, want)
		}
	}
}

// TestProxyConfig has the configuration of an egress proxy kept, its secrets told
// to nobody, and the variables of its rules set.
func TestProxyConfig(t *testing.T) {
	h := &host{}
	f := serve(t, h, func(o *server.Options) { o.BestEffort = true })
	const (
		keys   = `"aws":{"access_key_id":{"type":"opaque","value":"AKIA"},"secret_access_key":{"type":"workspace_secret","value":"{KEY}"}}`
		header = `"headers":[{"name":"Authorization","type":"opaque","value":"s3cret"},{"name":"X-Plain","type":"plaintext","value":"seen"}]`
		hidden = `"aws":{"access_key_id":{"type":"opaque","is_set":true},"secret_access_key":{"type":"workspace_secret","is_set":true}}`
		shown  = `"headers":[{"name":"Authorization","type":"opaque","is_set":true},{"name":"X-Plain","type":"plaintext","value":"seen"}]`
		rules  = `{"name":"cloud","type":"aws",` + keys + `,"env_vars":{"A":"rule","B":"rule"}},{"name":"api","enabled":false,` + header + `,"env_vars":{"C":"off"}}`
	)
	body := `{"name":"x","env_vars":{"B":"box"},"run_config":{"env_vars":{"A":"run","D":"run"}},"proxy_config":{"rules":[` + rules + `],"no_proxy":["h"],"access_control":{"allow_list":["*.example.com"]}}}`
	f.do("POST", "/boxes", body).want(t, 201, hidden, shown, `"access_control":{"allow_list":["*.example.com"]}`)
	if env := h.created[0].Env; !maps.Equal(env, map[string]string{"A": "rule", "B": "box", "D": "run"}) {
		t.Errorf("the environment is %v", env)
	}
	stored := func() string {
		data, err := os.ReadFile(filepath.Join(f.dir, "boxes", f.boxes("x").ID, "box.json"))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	// What is left out of an update stays, and the rest is replaced.
	f.do("PATCH", "/boxes/x", `{"proxy_config":{"rules":[{"name":"cloud","type":"aws","aws":{"access_key_id":{"type":"opaque"},"secret_access_key":{"type":"opaque"}}},{"name":"api","headers":[{"name":"Authorization","type":"opaque"}]}]}}`).
		want(t, 200, `"secret_access_key":{"type":"opaque","is_set":false}`, `"access_key_id":{"type":"opaque","is_set":true}`, `{"name":"Authorization","type":"opaque","is_set":true}`)
	for text, want := range map[string]bool{"AKIA": true, "s3cret": true, "{KEY}": false, "allow_list": false} {
		if strings.Contains(stored(), text) != want {
			t.Errorf("whether %s is kept should be %v: %s", text, want, stored())
		}
	}
	for _, path := range []string{"/boxes/x", "/boxes"} {
		if a := f.do("GET", path, ""); strings.Contains(a.body, "AKIA") || strings.Contains(a.body, "s3cret") || !strings.Contains(a.body, "is_set") {
			t.Errorf("%s: %s", path, a.body)
		}
	}
	f.do("PATCH", "/boxes/x", `{"name":"x"}`).want(t, 200, "is_set")
	// Two rules may have one name, and a blank role is none.
	f.do("PATCH", "/boxes/x", `{"proxy_config":{"rules":[{"name":"cloud","type":"aws",`+keys+`},{"name":"cloud","type":"aws","aws":{"role_arn":" ",`+strings.TrimPrefix(keys, `"aws":{`)+`}]}}`).
		want(t, 200, hidden, `"aws":{"access_key_id":{"type":"opaque","is_set":true},"secret_access_key":{"type":"workspace_secret","is_set":true},"role_arn":" "}`)
	if a := f.do("GET", "/boxes/x", ""); strings.Contains(a.body, "AKIA") {
		t.Errorf("a secret is told: %s", a.body)
	}
	if a := f.do("PATCH", "/boxes/x", `{"proxy_config":{}}`); strings.Contains(a.body, "proxy_config") || strings.Contains(stored(), "AKIA") {
		t.Errorf("it is there still: %s", a.body)
	}
}
