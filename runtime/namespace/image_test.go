//go:build linux

package namespace

import (
	"archive/tar"
	"context"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sbx-star/sbx-star/internal/testimage"
	"github.com/sbx-star/sbx-star/runtime"
)

// This file defines tests of sandboxes that are made from images.

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func layerOf(t testing.TB, entries ...testimage.Entry) v1.Layer {
	t.Helper()
	return must[v1.Layer](t)(testimage.Layer(entries...))
}

// busybox is the lowest layer of the tests' images.
func busybox(t testing.TB) v1.Layer {
	t.Helper()
	return layerOf(t, must[[]testimage.Entry](t)(testimage.Busybox())...)
}

func imageOf(t testing.TB, config v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	return must[v1.Image](t)(testimage.Image(config, layers...))
}

// serveImage puts an image into a registry on loopback and returns its reference.
func serveImage(t testing.TB, img v1.Image) string {
	t.Helper()
	server := httptest.NewServer(testimage.Registry())
	t.Cleanup(server.Close)
	ref := strings.TrimPrefix(server.URL, "http://") + "/team/app:1"
	if err := testimage.Push(ref, img); err != nil {
		t.Fatal(err)
	}
	return ref
}

func imageRuntime(t testing.TB) *Runtime {
	t.Helper()
	dir, err := os.MkdirTemp(t.TempDir(), "images")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeTree(t, dir) })
	r, err := New(Options{Images: dir})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestImage(t *testing.T) {
	top := layerOf(t,
		testimage.Folder("etc"), testimage.File("etc/.wh.passwd", ""), testimage.File("etc/group", "root:x:0:\n"),
		testimage.Folder("data"), testimage.File("data/.wh..wh..opq", ""), testimage.File("data/new", "new"),
		testimage.Entry{Header: tar.Header{Name: "owned", Uid: 1000, Gid: 1001}, Content: "x"},
		testimage.Entry{Header: tar.Header{Name: "far", Uid: 1 << 20, Gid: 1 << 20}, Content: "x"},
		testimage.Entry{Header: tar.Header{Name: "setuid", Mode: 0o4755}, Content: "x"},
		testimage.Entry{Header: tar.Header{Name: "same", Typeflag: tar.TypeLink, Linkname: "setuid"}},
		testimage.Entry{Header: tar.Header{Name: "device", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		testimage.Entry{Header: tar.Header{Name: "closed", Mode: 0o1000}, Content: "closed"},
		testimage.Entry{Header: tar.Header{Name: "shut/", Typeflag: tar.TypeDir, Mode: 0o1000}}, testimage.File("shut/in", "in"),
	)
	middle := layerOf(t, testimage.Folder("data"), testimage.File("data/old", "old"), testimage.Folder("gone"), testimage.File("gone/x", "x"), testimage.Link("link", "/etc"), testimage.File("back", "low"))
	over := layerOf(t, testimage.File(".wh.gone", ""), testimage.Folder("gone"), testimage.File("gone/y", "y"), testimage.File(".wh.back", ""))
	img := imageOf(t, v1.Config{Env: []string{"A=1", "PATH=/bin"}, WorkingDir: "/data", User: "ann", Cmd: []string{"nothing"}}, busybox(t), middle, top, over)
	r := imageRuntime(t)
	ref := serveImage(t, img)
	var reports int
	pulled, err := r.Pull(t.Context(), runtime.ImageRequest{Ref: ref, Progress: func(done, total int64) { reports++ }})
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := img.Digest(); pulled.Digest != want.String() || pulled.User != "ann" || pulled.WorkDir != "/data" || pulled.Env["A"] != "1" || pulled.Bytes == 0 || reports == 0 {
		t.Errorf("got %+v after %d reports", pulled, reports)
	}
	spec := newSpec(t)
	spec.Image = pulled.Digest
	b := create(t, r, spec)
	ids := func(many string) string {
		if asRoot() {
			return many
		}
		return "0:0"
	}
	for _, test := range []struct{ command, want string }{
		{"ls / | grep -v lib", "bin\nclosed\ndata\ndev\netc\nfar\ngone\nhome\nlink\nowned\nproc\nrun\nsame\nsetuid\nshut\ntmp"},
		{"ls -A /data /gone", "/data:\nnew\n\n/gone:\ny"},
		{"cat /etc/hostname; ls /etc", "box-1\ngroup\nhostname\nhosts\nresolv.conf"},
		{"stat -c %u:%g /owned", ids("1000:1001")},
		{"stat -c %u:%g /far", ids("65535:65535")},
		{"stat -c '%a %u %h' /setuid /same", "4755 0 2\n4755 0 2"},
		{"cat /closed /shut/in", "closedin"},
		{"touch /bin/new /new /link/new && rm /owned && rm -r /data && mkdir /data && ls -A /data /etc/new", "/etc/new\n\n/data:"},
		{"ls -d /dev/null /tmp /run/lock /home/user; pwd", "/dev/null\n/home/user\n/run/lock\n/tmp\n/home/user"},
	} {
		if got := b.run(t, test.command); got != test.want {
			t.Errorf("%s\n got: %q\nwant: %q", test.command, got, test.want)
		}
	}
	// What it writes is its own, and stays.
	second := newSpec(t)
	second.Image = pulled.Digest
	if got := create(t, r, second).run(t, "ls -d /new /owned 2>/dev/null; cat /data/new"); got != "/owned\nnew" {
		t.Errorf("another sandbox has %q", got)
	}
	layer := filepath.Join(t.TempDir(), "layer")
	if err := b.Snapshot(t.Context(), layer); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeTree(t, layer) })
	third := newSpec(t)
	third.Image, third.Snapshot, third.Hostname = pulled.Digest, layer, "third"
	if got := create(t, r, third).run(t, "ls -d /new /owned 2>/dev/null; ls -A /data; cat /etc/hostname; hostname"); got != "/new\nthird\nthird" {
		t.Errorf("a sandbox of its snapshot has %q", got)
	}
	if err := b.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := b.run(t, "ls -d /new; cat /etc/hostname"); got != "/new\nbox-1" {
		t.Errorf("after a start there is %q", got)
	}
}

// TestImageChangedOnDisk has a file of a layer changed, its size and time kept.
func TestImageChangedOnDisk(t *testing.T) {
	r := imageRuntime(t)
	pulled, err := r.Pull(t.Context(), runtime.ImageRequest{Ref: serveImage(t, imageOf(t, v1.Config{}, busybox(t)))})
	if err != nil {
		t.Fatal(err)
	}
	store, err := r.images()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := store.Layers(t.Context(), pulled.Digest)
	if err != nil {
		t.Fatal(err)
	}
	victim := filepath.Join(layers[0], "etc/hostname")
	info, err := os.Stat(victim)
	if err == nil {
		err = os.WriteFile(victim, []byte("changed\n"), 0)
	}
	if err == nil {
		err = os.Chtimes(victim, info.ModTime(), info.ModTime())
	}
	if err != nil {
		t.Fatal(err)
	}
	again, err := New(Options{Images: filepath.Dir(filepath.Dir(filepath.Dir(layers[0])))})
	if err != nil {
		t.Fatal(err)
	}
	spec := newSpec(t)
	spec.Image = pulled.Digest
	_, err = again.Create(t.Context(), spec)
	if _, ok := errors.AsType[*runtime.ImageError](err); !ok || !strings.Contains(err.Error(), "were changed on disk") {
		t.Errorf("got %v", err)
	}
}

// TestImagesAreCollected keeps what is named, and nothing else.
func TestImagesAreCollected(t *testing.T) {
	r := imageRuntime(t)
	base := busybox(t)
	first := serveImage(t, imageOf(t, v1.Config{}, base, layerOf(t, testimage.File("a", "a"))))
	second := serveImage(t, imageOf(t, v1.Config{}, base, layerOf(t, testimage.File("b", "b"))))
	var digests []string
	for _, ref := range []string{first, second} {
		got, err := r.Pull(t.Context(), runtime.ImageRequest{Ref: ref})
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, got.Digest)
	}
	store, _ := r.images()
	layers, err := store.Layers(t.Context(), digests[0])
	if err != nil {
		t.Fatal(err)
	}
	count := func() int {
		all, err := os.ReadDir(filepath.Dir(filepath.Dir(layers[0])))
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	for _, step := range []struct {
		keep runtime.ImagesInUse
		want int
	}{
		{runtime.ImagesInUse{Refs: map[string]bool{first: true}, Digests: map[string]bool{digests[1]: true}}, 3},
		{runtime.ImagesInUse{Refs: map[string]bool{first: true}}, 2},
		{runtime.ImagesInUse{}, 0},
	} {
		if err := r.CollectImages(context.Background(), func() (runtime.ImagesInUse, error) { return step.keep, nil }); err != nil {
			t.Fatal(err)
		}
		if got := count(); got != step.want {
			t.Errorf("%v: %d layers are left, want %d", step.keep, got, step.want)
		}
	}
}
