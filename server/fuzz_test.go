package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/runtime"
)

// This file fuzzes what strangers send to the server, and the records that it
// finds in its folder.

// barren is a runtime that makes nothing.
type barren struct{}

func (barren) Info() runtime.Info { return runtime.Info{Name: "barren", Isolation: "none"} }

func (barren) Create(context.Context, runtime.Spec) (runtime.Instance, error) {
	return nil, errors.New("nothing grows here")
}

func (barren) Adopt(context.Context, runtime.Spec) (runtime.Instance, error) {
	return nil, runtime.ErrGone
}

func newBarren(t testing.TB) *Server {
	t.Helper()
	s, err := New(Options{Runtime: barren{}, StateDir: t.TempDir(), BestEffort: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

var fuzzMethods = []string{"GET", "POST", "PATCH", "DELETE", "HEAD", "PUT", "OPTIONS"}

// ask sends a request, whose answer must have the form of one: no failure of the
// server, and errors in form A, B or C (protocol.md §3.1).
func ask(t *testing.T, s *Server, method, target, host string, body []byte) *httptest.ResponseRecorder {
	t.Helper()
	u, err := url.ParseRequestURI(target)
	if err != nil || !strings.HasPrefix(target, "/") {
		return nil // net/http refuses it
	}
	r := httptest.NewRequest(method, "http://127.0.0.1/", bytes.NewReader(body))
	r.URL, r.RequestURI = u, target
	if host != "" {
		r.Host = host
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if w.Code < 200 || w.Code > 599 || w.Code == http.StatusInternalServerError {
		t.Errorf("%s %s %q: got %d %s", method, target, body, w.Code, w.Body)
	}
	if w.Code < 400 || method == "HEAD" {
		return w
	}
	var problem struct {
		Detail json.RawMessage
	}
	if err := json.Unmarshal(w.Body.Bytes(), &problem); err != nil || len(problem.Detail) == 0 || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("%s %s %q: got %d %s, %v", method, target, body, w.Code, w.Body, err)
	}
	for _, leak := range []string{"wire.", "server.", "json:", "*string", "map["} {
		if strings.Contains(w.Body.String(), leak) && !bytes.Contains(body, []byte(leak)) && !strings.Contains(target, leak) {
			t.Errorf("%s %s %q: the answer speaks of %q: %s", method, target, body, leak, w.Body)
		}
	}
	return w
}

// Any request is answered.
func FuzzRequest(f *testing.F) {
	for i, e := range (&Server{}).routes() {
		f.Add(uint8(i), prefixes[i%len(prefixes)]+strings.ReplaceAll(e.path, "{name}", "x"), "", []byte(`{"name":"x"}`))
	}
	for _, body := range []string{
		`{"name":"v","size":"1Gi"}`, `{"name":"t","image":"i","resources":{"cpu":"1","memory":"1Gi"},"volume_mounts":[{"volume_name":"v","mount_path":"/d"}]}`,
		`{"name":"p","template_name":"t","replicas":1}`, `{"name":"s","docker_image":"host","fs_capacity_bytes":1,"labels":{"a":"b"}}`, `[]`, `{"name":1}`, ``,
		`{"name":"r","url":"https://r.example","username":"u","password":"p"}`, `{"port":1,"embed_origins":["https://a"],"expires_in_seconds":1}`,
	} {
		for _, path := range []string{"/volumes", "/templates", "/pools", "/snapshots", "/registries", "/boxes/x/service-url"} {
			f.Add(uint8(1), prefixes[0]+path, "", []byte(body))
		}
	}
	for _, target := range []string{"/", "/sb/x/execute", "/sb/%2e%2e/download?path=x", "/dl/x?token=x.y.z", "/svc/x/80/", "/svc/x/99999/a", "/v2/sandboxes/boxes/%2e%2e", "/v2/sandboxes/snapshots?limit=-1&offset=x&label=a%3Db", "/healthz", "/metrics", "//v2/sandboxes/boxes"} {
		f.Add(uint8(0), target, "", []byte(nil))
	}
	f.Add(uint8(0), "/_svc/auth?token=x&redirect=//x", "x--80.localhost", []byte(nil))
	f.Add(uint8(1), "/_svc/embed", "x--80.localhost:1", []byte("x.y.z"))
	f.Fuzz(func(t *testing.T, method uint8, target, host string, body []byte) {
		if len(body) > 1<<14 || strings.Contains(host, "\n") {
			return
		}
		ask(t, newBarren(t), fuzzMethods[int(method)%len(fuzzMethods)], target, host, body)
	})
}

// Only what the server has signed is a token, and for what it was signed.
func FuzzToken(f *testing.F) {
	s := newBarren(f)
	ctx := f.Context()
	var good []string
	for _, c := range []claims{
		{Audience: forService, Box: "b", Port: 80, Expires: time.Now().Add(time.Hour).Unix()},
		{Audience: forDownload, Box: "b", Path: "/f"},
	} {
		token, err := s.sign(ctx, c)
		if err != nil {
			f.Fatal(err)
		}
		good = append(good, token)
		f.Add(token, "/f", 80)
		f.Add(token+"A", "é", 0)
		f.Add(strings.Replace(token, ".", "..", 1), "", -1)
	}
	f.Add("eyJhbGciOiJub25lIn0.e30.", "", 1)
	f.Fuzz(func(t *testing.T, token, path string, port int) {
		for i, audience := range []string{forService, forDownload} {
			c, err := s.verify(context.Background(), token, audience)
			if err == nil && token != good[i] {
				t.Errorf("%q is taken for %+v", token, c)
			}
		}
		want := claims{Audience: forDownload, Box: "b", Path: strings.ToValidUTF8(path, "?"), Port: port}
		signed, err := s.sign(context.Background(), want)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.verify(context.Background(), signed, forDownload); err != nil || got.Path != want.Path || got.Port != port {
			t.Errorf("%+v comes back as %+v, %v", want, got, err)
		}
		if _, err := s.verify(context.Background(), signed, forService); !errors.Is(err, errToken) {
			t.Errorf("a token for files is one for services: %v", err)
		}
	})
}

// Whatever stands in a record, the server starts, lists the others, and does not
// fail.
func FuzzRecord(f *testing.F) {
	kinds := []struct{ file, path string }{
		{"boxes/x/box.json", "/boxes"}, {"templates/x.json", "/templates"}, {"volumes/x/volume.json", "/volumes"},
		{"pools/x.json", "/pools"}, {"snapshots/x/snapshot.json", "/snapshots"}, {"registries/x.json", "/registries"},
	}
	for i := range kinds {
		for _, text := range []string{`{}`, `null`, ``, `{"id":"x","name":"x"}`, `{"box":{"id":"x","name":"x","status":"ready","run_config":null},"runtime":"barren","lease":{},"mounts":[{}]}`,
			`{"pool":{"id":"x","name":"x","replicas":1},"template_id":"x"}`, `{"snapshot":{"id":"x","name":"x","status":"building"},"owner":"gone"}`, `{"registry":{"id":"x","name":"x"}}`} {
			f.Add(uint8(i), []byte(text))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, record []byte) {
		kind := kinds[int(which)%len(kinds)]
		dir := t.TempDir()
		path := filepath.Join(dir, kind.file)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, record, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := New(Options{Runtime: barren{}, StateDir: dir, BestEffort: true})
		if err != nil {
			t.Fatalf("%s %q: %v", kind.file, record, err)
		}
		defer s.Close()
		for _, path := range []string{"", "/x", "/x/status"} {
			ask(t, s, "GET", prefixes[0]+kind.path+path, "", nil)
		}
		s.tidy()
	})
}

// The frames of a WebSocket are followed alike, however they are cut.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{0x81, 1, 'x', 0x88, 2, 3, 232}, uint8(1))
	f.Add([]byte{0x01, 126, 0, 3, 'a', 'b', 'c', 0x80, 0}, uint8(3))
	f.Add([]byte{0x82, 127, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0x89, 0}, uint8(2))
	f.Fuzz(func(t *testing.T, stream []byte, size uint8) {
		var whole, cut frames
		whole.follow(stream)
		for piece := range slices.Chunk(stream, int(size%16)+1) {
			cut.follow(piece)
		}
		if whole.between() != cut.between() {
			t.Errorf("%x: between %v and %v", stream, whole.between(), cut.between())
		}
	})
}

// A path is matched with what it was made from.
func FuzzMatch(f *testing.F) {
	for _, s := range []string{"a", "a b", "a/b", "..", "%2F", "é", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got, ok := match("/boxes/{name}/stop", "/boxes/"+url.PathEscape(name)+"/stop")
		if ok != (name != "") || got != name {
			t.Errorf("%q: got %q, %v", name, got, ok)
		}
		match("/boxes/{name}", name)
	})
}

// A quantity is one whose text is read alike by everybody.
func FuzzQuantity(f *testing.F) {
	for _, s := range []string{"1Gi", "500m", "1e3", "0", "-1", "1.5Gi", "9999999999999999999Ei", "1e999999999", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if q := quantity(text); q != nil && q.Sign() < 0 {
			t.Errorf("%q is %s", text, q)
		}
	})
}
