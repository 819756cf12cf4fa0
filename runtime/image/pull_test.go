//go:build linux

package image

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sbx-star/sbx-star/internal/testimage"
	"github.com/sbx-star/sbx-star/runtime"
)

// This file defines tests of pulls from registries that fail in many ways.

// inProcess is a Worker without another process.
type inProcess struct{}

func (inProcess) Unpack(_ context.Context, dir string, archive io.Reader, most Limits) (Unpacked, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return Unpacked{}, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return Unpacked{}, err
	}
	defer f.Close()
	return Unpack(f, archive, 1, most)
}

func (inProcess) Sum(_ context.Context, dir string) (string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return Sum(f)
}

func newStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := New(Options{Dir: dir, Worker: inProcess{}, Owner: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// moody is a registry with one image, and in front of it whatever a test puts there.
type moody struct {
	ref   string
	blobs atomic.Int64 // requests of layers
	moods []func(w http.ResponseWriter, r *http.Request, pass http.Handler)
	mu    sync.Mutex
}

// newMoody answers requests of the layer's bytes by moods, one each, and then well.
func newMoody(t testing.TB, moods ...func(http.ResponseWriter, *http.Request, http.Handler)) *moody {
	t.Helper()
	layer, err := testimage.Layer(testimage.File("f", strings.Repeat("some text ", 1000)))
	if err != nil {
		t.Fatal(err)
	}
	img, err := testimage.Image(v1.Config{Env: []string{"A=1"}}, layer)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layer.Digest()
	if err != nil {
		t.Fatal(err)
	}
	m := &moody{}
	registry := testimage.Registry()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, digest.String()) {
			registry.ServeHTTP(w, r)
			return
		}
		m.blobs.Add(1)
		m.mu.Lock()
		mood := func(w http.ResponseWriter, r *http.Request, pass http.Handler) { pass.ServeHTTP(w, r) }
		if len(m.moods) > 0 {
			mood, m.moods = m.moods[0], m.moods[1:]
		}
		m.mu.Unlock()
		mood(w, r, registry)
	}))
	t.Cleanup(server.Close)
	m.ref = strings.TrimPrefix(server.URL, "http://") + "/app:1"
	if err := testimage.Push(m.ref, img); err != nil {
		t.Fatal(err)
	}
	m.moods = moods
	return m
}

// cut sends a few bytes of a whole answer and breaks off.
func cut(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	whole := httptest.NewRecorder()
	pass.ServeHTTP(whole, r)
	for name, values := range whole.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(whole.Code)
	w.Write(whole.Body.Bytes()[:20])
	http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// garble sends as many other bytes.
func garble(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	whole := httptest.NewRecorder()
	pass.ServeHTTP(whole, r)
	w.WriteHeader(http.StatusOK)
	w.Write(make([]byte, whole.Body.Len()))
}

func fails(code int) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(code) }
}

// deaf ignores that it is asked for a part.
func deaf(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	r.Header.Del("Range")
	pass.ServeHTTP(w, r)
}

func wantWhole(t *testing.T, s *Store, got runtime.Image) {
	t.Helper()
	layers, err := s.Layers(t.Context(), got.Digest)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(layers[0], "f"))
	if err != nil || string(text) != strings.Repeat("some text ", 1000) {
		t.Errorf("the file has %d bytes (%v)", len(text), err)
	}
	if left, _ := filepath.Glob(s.path("blobs", "*-test")); len(left) > 0 {
		t.Errorf("downloads are left: %v", left)
	}
}

func TestPullGoesOn(t *testing.T) {
	for name, moods := range map[string][]func(http.ResponseWriter, *http.Request, http.Handler){
		"cut":                      {cut, cut, cut, cut, cut, cut, cut},
		"cut, then from the start": {cut, deaf},
		"overloaded":               {fails(503), fails(429)},
		"garbled once":             {garble},
		"cut, then another part":   {cut, fails(416)},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMoody(t, moods...)
			s := newStore(t, t.TempDir())
			var last, total int64
			got, err := s.Pull(t.Context(), runtime.ImageRequest{Ref: m.ref, Progress: func(d, of int64) { last, total = d, of }})
			if err != nil {
				t.Fatal(err)
			}
			wantWhole(t, s, got)
			if last != total || total == 0 {
				t.Errorf("the last report is %d of %d", last, total)
			}
			if want := int64(len(moods) + 1); m.blobs.Load() != want && name != "cut, then from the start" {
				t.Errorf("the layer was asked for %d times, want %d", m.blobs.Load(), want)
			}
		})
	}
}

// TestPullAfterFailure has a later call go on with what an earlier one got.
func TestPullAfterFailure(t *testing.T) {
	m := newMoody(t, cut, fails(404))
	dir := t.TempDir()
	if _, err := newStore(t, dir).Pull(t.Context(), runtime.ImageRequest{Ref: m.ref}); err == nil {
		t.Fatal("the pull has not failed")
	}
	parts, _ := filepath.Glob(filepath.Join(dir, "blobs", "*-test"))
	if info, err := os.Stat(strings.Join(parts, "")); err != nil || info.Size() != 20 {
		t.Fatalf("what was got is not there: %v, %v", info, err)
	}
	// As a process leaves it that is killed while it unpacks.
	if err := os.MkdirAll(filepath.Join(dir, "layers", strings.TrimSuffix(filepath.Base(parts[0]), "-test")+"-test.new", "files"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := newStore(t, dir)
	got, err := s.Pull(t.Context(), runtime.ImageRequest{Ref: m.ref})
	if err != nil {
		t.Fatal(err)
	}
	wantWhole(t, s, got)
}

// TestPullsAreShared has two stores in one folder pull at once, many times each.
func TestPullsAreShared(t *testing.T) {
	m := newMoody(t)
	dir := t.TempDir()
	stores := []*Store{newStore(t, dir), newStore(t, dir)}
	var pulls sync.WaitGroup
	for i := range 10 {
		pulls.Go(func() {
			if _, err := stores[i%2].Pull(t.Context(), runtime.ImageRequest{Ref: m.ref}); err != nil {
				t.Error(err)
			}
		})
	}
	pulls.Wait()
	if n := m.blobs.Load(); n != 1 {
		t.Errorf("the layer was asked for %d times", n)
	}
}

func TestPullFailures(t *testing.T) {
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
		if user, password, _ := r.BasicAuth(); user == "ann" && password == "secret" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(refusing.Close)
	host := strings.TrimPrefix(refusing.URL, "http://")
	garbled := newMoody(t, garble, garble, garble, garble, garble, garble)
	ann := []runtime.Login{{Host: host, Username: "ann", Password: "secret"}}
	for _, test := range []struct {
		request runtime.ImageRequest
		want    string
	}{
		{runtime.ImageRequest{Ref: host + "/app:1"}, "does not let it be read (401)"},
		{runtime.ImageRequest{Ref: host + "/app:1", Logins: ann}, "has no app:1"},
		{runtime.ImageRequest{Ref: "127.0.0.1:1/app"}, "can't be reached"},
		{runtime.ImageRequest{Ref: "not a name"}, "not the name of an image"},
		{runtime.ImageRequest{Ref: garbled.ref}, "has another digest"},
		{runtime.ImageRequest{Ref: "docker-archive:/dev/null"}, "is not a file"},
		{runtime.ImageRequest{Ref: "oci:" + t.TempDir()}, "is not an OCI layout"},
		{runtime.ImageRequest{Ref: "dir:/nonexistent"}, "no such file"},
		{runtime.ImageRequest{Ref: "dir:../up"}, "is not a whole path"},
	} {
		_, err := newStore(t, t.TempDir()).Pull(t.Context(), test.request)
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") || strings.Contains(fmt.Sprint(err), "secret") {
			t.Errorf("%s: got %v, want %q", test.request.Ref, err, test.want)
		}
	}
}
