//go:build linux

package daemon

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The way through a tree is in the order of the bytes of the paths, and leads to
// every match, however little of a directory is held at a time.
func TestWalk(t *testing.T) {
	base := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		root, err := os.MkdirTemp(base, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range rapid.SliceOfN(rapid.StringMatching(`[ab]([-.0]|/[ab]){0,3}`), 1, 12).Draw(t, "paths") {
			path = filepath.Join(root, path)
			os.MkdirAll(filepath.Dir(path), 0o755)
			switch rapid.SampledFrom([]string{"file", "dir", "link"}).Draw(t, "kind") {
			case "file":
				os.WriteFile(path, nil, 0o644)
			case "dir":
				os.Mkdir(path, 0o755)
			case "link":
				os.Symlink(root, path)
			}
		}
		text := rapid.SampledFrom([]string{"**", "*", "**/a*", "a*/**", "*/*", "b/**/a"}).Draw(t, "pattern")
		p, err := compilePattern(text)
		if err != nil {
			t.Fatal(err)
		}
		var all, got []string
		filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if path != root && matchPath(p, strings.TrimPrefix(path, root+"/")) {
				all = append(all, path)
			}
			return err
		})
		slices.Sort(all)
		w := walker{ctx: context.Background(), pattern: p, batch: rapid.SampledFrom([]int{1, 2, 3, 100}).Draw(t, "batch"),
			found: func(path string, _ fs.FileMode) error { got = append(got, path); return nil }}
		if err := w.walk(root); err != nil || !slices.Equal(got, all) {
			t.Fatalf("%s: got %q, %v; want %q", text, got, err, all)
		}
		// What found returns ends it at once.
		stop := errors.New("stop")
		n := 0
		w.found = func(string, fs.FileMode) error { n++; return stop }
		if err := w.walk(root); len(all) > 0 && (err != stop || n != 1) {
			t.Fatalf("got %v after %d", err, n)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		w.ctx, n = ctx, 0
		if err := w.walk(root); err != context.Canceled || n != 0 {
			t.Fatalf("without time: got %v after %d", err, n)
		}
	})
}

func TestSearchRoot(t *testing.T) {
	for path, want := range map[string]string{"/": "/", "//": "/", "/.": "/", "/a": "/a", "/a/": "/a", "//a/./b//": "/a/b", "/a/../b": "/a/../b"} {
		if got, err := searchRoot(path); got != want || err != nil {
			t.Errorf("%s: got %q, %v; want %q", path, got, err, want)
		}
	}
	for _, path := range []string{"", "a", "./a", "/a\x00"} {
		if got, err := searchRoot(path); err == nil {
			t.Errorf("%q: got %q", path, got)
		}
	}
}
