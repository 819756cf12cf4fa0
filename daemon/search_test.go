//go:build linux

package daemon_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/daemon"
)

// tree is a folder to search: files by their paths and contents, "/" as the
// content of a folder, and "-> x" as that of a link.
func (b *box) tree(files map[string]string) {
	b.t.Helper()
	for name, content := range files {
		path := b.path(name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		target, link := strings.CutPrefix(content, "-> ")
		switch {
		case err != nil:
		case content == "/":
			err = os.MkdirAll(path, 0o755)
		case link:
			err = os.Symlink(target, path)
		default:
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err == nil && !link {
			at := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
			err = os.Chtimes(path, at, at)
		}
		if err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *box) search(kind string, request any) reply {
	b.t.Helper()
	return b.do("POST", "/"+kind, strings.NewReader(encode(request)))
}

type object = map[string]any

// found are the matches of an answer, in short: the paths below the home.
func (b *box) found(r reply) (matches []string, truncated bool) {
	b.t.Helper()
	var got struct {
		Matches []struct {
			Path  string
			IsDir bool `json:"is_dir"`
			Line  int
			Text  string
		}
		Truncated *bool
	}
	if err := json.Unmarshal([]byte(r.body), &got); err != nil || r.status != 200 || got.Truncated == nil || got.Matches == nil || r.header.Get("Content-Type") != "application/json" {
		b.t.Fatalf("got %d %s", r.status, r.body)
	}
	for _, m := range got.Matches {
		short := strings.TrimPrefix(m.Path, b.home+"/")
		if m.IsDir {
			short += "/"
		}
		if m.Line > 0 {
			short += fmt.Sprintf(":%d:%s", m.Line, m.Text)
		}
		matches = append(matches, short)
	}
	return matches, *got.Truncated
}

func TestGlob(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.tree(map[string]string{
		"s/a.go": "12", "s/b.txt": "", "s/.hidden": "1", "s/d/c.go": "", "s/d/e/f.go": "", "s/d-x": "", "s/d.x": "", "s/empty": "/",
		"s/file": "-> a.go", "s/folder": "-> d", "s/dangling": "-> nothing", "s/loop": "-> .", "s/circle": "-> circle",
	})
	for _, tt := range []struct{ pattern, path, want string }{
		{"*", "s", ".hidden a.go b.txt circle d/ d-x d.x dangling empty/ file folder/ loop/"},
		{"*.go", "s", "a.go"},
		{"**/*.go", "s", "a.go d/c.go d/e/f.go"},
		{"**", "s", ".hidden a.go b.txt circle d/ d-x d.x d/c.go d/e/ d/e/f.go dangling empty/ file folder/ loop/"},
		{"d*/**", "s", "d/ d-x d.x d/c.go d/e/ d/e/f.go dangling"},
		{"folder/*", "s", ""},
		{"*", "s/folder", "c.go e/"}, // the root may be a link
		{"*", "s//./d/", "c.go e/"},
		{"*", "s/empty", ""},
		{"[de]*/?.go", "s", "d/c.go"},
		{"nothing", "s", ""},
	} {
		got, truncated := b.found(b.search("glob", object{"pattern": tt.pattern, "path": b.path("") + "/" + tt.path}))
		for i := range got {
			_, got[i], _ = strings.Cut(got[i], "/")
			if tt.path != "s" {
				_, got[i], _ = strings.Cut(got[i], "/")
			}
		}
		if strings.Join(got, " ") != tt.want || truncated {
			t.Errorf("%s in %s: got %q, %v; want %q", tt.pattern, tt.path, got, truncated, tt.want)
		}
	}
	want := `{"matches":[{"path":"H/s/a.go","is_dir":false,"size_bytes":2,"modified_at":"2026-01-02T03:04:05.000000678Z"},` +
		`{"path":"H/s/dangling","is_dir":false,"size_bytes":0},{"path":"H/s/empty","is_dir":true,"size_bytes":0,"modified_at":"2026-01-02T03:04:05.000000678Z"},` +
		`{"path":"H/s/file","is_dir":false,"size_bytes":2,"modified_at":"2026-01-02T03:04:05.000000678Z"}],"truncated":false}`
	if r := b.search("glob", object{"pattern": "[!bc]*[eyog]", "path": b.path("s"), "limit": 10_000}); r.body != strings.ReplaceAll(want, "H/", b.home+"/") {
		t.Errorf("got %s, want %s", r.body, want)
	}
	if r := b.search("glob", object{"pattern": "nothing", "path": "/"}); r.body != `{"matches":[],"truncated":false}` {
		t.Errorf("got %s", r.body)
	}
}

func TestGrep(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.tree(map[string]string{
		"s/a.py": "no\nan x.y\nX.Y\nxzy x.y x.y\r\n", "s/b.txt": "x.y", "s/d/c.py": "\n\nx.y\xff\n", "s/d.py": "x.y\n", "s/.h": "x.y\n",
		"s/binary": "x.y\n\x00", "s/link": "-> b.txt", "s/folder": "-> d", "s/dangling": "-> nothing", "s/long": strings.Repeat("z", 100_000) + "x.y",
	})
	syscall.Mkfifo(b.path("s/fifo"), 0o644)
	const a = "s/a.py:2:an x.y s/a.py:4:xzy x.y x.y"
	long := "s/long:1:" + strings.Repeat("z", 4096)
	for _, tt := range []struct{ path, glob, want string }{
		{"s", "", "s/.h:1:x.y " + a + " s/b.txt:1:x.y s/d.py:1:x.y s/d/c.py:3:x.y\ufffd s/link:1:x.y " + long},
		{"s", "*.py", a + " s/d.py:1:x.y s/d/c.py:3:x.y\ufffd"},
		{"s", "d/*", "s/d/c.py:3:x.y\ufffd"},
		{"s", "**/c*", "s/d/c.py:3:x.y\ufffd"},
		{"s", "*/*.py", "s/d/c.py:3:x.y\ufffd"},
		{"s", "**.py", a + " s/d.py:1:x.y"},
		{"s", "*.c", ""},
		{"s/d", "", "s/d/c.py:3:x.y\ufffd"},
		{"s/a.py", "", a},
		{"s/link", "", "s/link:1:x.y"},
		{"s/a.py", "*.py", a},
		{"s/a.py", "*.txt", ""},
		{"s/fifo", "", ""},
		{"s/binary", "", ""},
	} {
		request := object{"pattern": "x.y", "path": b.path(tt.path)}
		if tt.glob != "" {
			request["glob"] = tt.glob
		}
		got, truncated := b.found(b.search("grep", request))
		if strings.Join(got, " ") != tt.want || truncated {
			t.Errorf("%s in %s: got %.300q, %v; want %.300q", tt.glob, tt.path, got, truncated, tt.want)
		}
	}
	if r := b.search("grep", object{"pattern": "an x", "path": b.path("s")}); r.body != `{"matches":[{"path":`+encode(b.path("s/a.py"))+`,"line":2,"text":"an x.y"}],"truncated":false}` {
		t.Errorf("got %s", r.body)
	}
	// The files of /proc say a size that they do not have.
	if got, _ := b.found(b.search("grep", object{"pattern": "Linux", "path": "/proc/version"})); len(got) != 1 {
		t.Errorf("got %q", got)
	}
}

func TestSearchRefused(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.put("f", "x", 0o644)
	for _, tt := range []struct {
		kind           string
		change         object
		status         int
		error, message string
	}{
		{"glob", object{"pattern": ""}, 400, "InvalidRequest", `the pattern "" is empty`},
		{"glob", object{"pattern": "[a"}, 400, "InvalidRequest", "a [ that is not closed"},
		{"glob", object{"pattern": "/etc/*"}, 400, "InvalidRequest", `segment ""`},
		{"glob", object{"pattern": 5}, 400, "InvalidRequest", "pattern: want a string, got number"},
		{"glob", object{"path": "relative"}, 400, "InvalidRequest", `the path "relative" is not absolute`},
		{"glob", object{"path": ""}, 400, "InvalidRequest", "is not absolute"},
		{"glob", object{"path": "/a\x00"}, 400, "InvalidRequest", "zero byte"},
		{"glob", object{"path": b.path("nothing")}, 404, "FileNotFound", "nothing: no such file or directory"},
		{"glob", object{"path": b.path("f/x")}, 404, "FileNotFound", "not a directory"},
		{"glob", object{"path": b.path("f")}, 400, "ReadError", "f is not a directory"},
		{"grep", object{"pattern": ""}, 400, "InvalidRequest", "the pattern is empty"},
		{"grep", object{"pattern": "a\nb"}, 400, "InvalidRequest", "the end of a line"},
		{"grep", object{"pattern": strings.Repeat("x", 4097)}, 400, "InvalidRequest", "longer than 4096 bytes"},
		{"grep", object{"glob": "[a"}, 400, "InvalidRequest", `the glob "[a" has a [ that is not closed`},
		{"grep", object{"path": "relative"}, 400, "InvalidRequest", "is not absolute"},
		{"grep", object{"path": b.path("nothing")}, 404, "FileNotFound", "no such file"},
	} {
		request := object{"pattern": "x", "path": "/"}
		for name, value := range tt.change {
			request[name] = value
		}
		b.search(tt.kind, request).wantProblem(t, tt.status, tt.error, tt.message)
	}
	for _, kind := range []string{"glob", "grep"} {
		for _, limit := range []int{0, -1, 10_001} {
			r := b.search(kind, object{"pattern": "x", "path": "/", "limit": limit})
			if want := fmt.Sprintf(`{"detail":[{"loc":["body","limit"],"msg":"limit is %d: give a number from 1 to 10000","type":"value_error"}]}`, limit); r.status != 422 || r.body != want {
				t.Errorf("got %d %s, want %s", r.status, r.body, want)
			}
		}
		if r := b.do("GET", "/"+kind, nil); r.status != 405 || r.header.Get("Allow") != "POST" {
			t.Errorf("GET: %d", r.status)
		}
	}
}

// An answer that is not whole says so, and is the first part of the whole one.
func TestSearchTruncated(t *testing.T) {
	t.Parallel()
	b := newLimitedBox(t, daemon.Limits{Matches: 20_000, Batch: 7})
	files := map[string]string{}
	for i := range 1001 {
		files[fmt.Sprintf("s/%d/%d", i%10, i)] = "x\nx\n"
	}
	b.tree(files)
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for limit, cut := range map[int]bool{1: true, 50: true, 100: true, 101: false, 102: false} {
		got, truncated := b.found(b.search("glob", object{"pattern": "0/*", "path": b.path("s"), "limit": limit}))
		if want := names[:min(limit, 101)]; !slices.Equal(got, want) || truncated != cut {
			t.Errorf("%d: got %d matches, %v", limit, len(got), truncated)
		}
	}
	got, truncated := b.found(b.search("grep", object{"pattern": "x", "path": b.path("s"), "limit": 3}))
	if strings.Join(got, " ") != names[0]+":1:x "+names[0]+":2:x "+names[1]+":1:x" || !truncated {
		t.Errorf("got %q, %v", got, truncated)
	}
	r := b.search("glob", object{"pattern": "*/*", "path": b.path("s"), "limit": 10_000})
	got, truncated = b.found(r)
	if len(got) == 0 || !slices.Equal(got, names[:len(got)]) || !truncated || len(r.body) > 20_100 || len(r.body) < 19_000 {
		t.Errorf("got %d matches in %d bytes, %v", len(got), len(r.body), truncated)
	}
	// Without a limit there are a thousand.
	wide := newBox(t)
	wide.tree(files)
	if got, truncated := wide.found(wide.search("glob", object{"pattern": "*/*", "path": wide.path("s")})); len(got) != 1000 || !truncated {
		t.Errorf("got %d, %v", len(got), truncated)
	}
	late := newLimitedBox(t, daemon.Limits{Search: 1})
	for _, kind := range []string{"glob", "grep"} {
		if got, truncated := late.found(late.search(kind, object{"pattern": "x", "path": "/"})); got != nil || !truncated {
			t.Errorf("without time: got %q, %v", got, truncated)
		}
	}
}

// What describes the machine is searched only when the search starts there.
func TestSearchOfPseudoFiles(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	for root, want := range map[string]bool{"/": false, "//.": false, "/proc": true, "/proc/": true} {
		name := "proc/version"
		if want {
			name = "version"
		}
		if got, _ := b.found(b.search("glob", object{"pattern": name, "path": root})); (got != nil) != want {
			t.Errorf("%s from %s: got %q", name, root, got)
		}
	}
	if got, _ := b.found(b.search("glob", object{"pattern": "proc", "path": "/"})); strings.Join(got, " ") != "/proc/" {
		t.Errorf("the folder itself: got %q", got)
	}
}

// What may not be read is passed over, and is an error at the root alone.
func TestSearchForbidden(t *testing.T) {
	t.Parallel()
	b := newOrdinaryBox(t)
	b.tree(map[string]string{"s/a": "x", "s/closed/b": "x", "s/secret": "x", "s/z": "x", "s/names/c": "x", "s/names/l": "-> c"})
	os.Chmod(b.path("s/closed"), 0)
	os.Chmod(b.path("s/secret"), 0)
	os.Chmod(b.path("s/names"), 0o444) // can be listed, and no more
	for _, name := range []string{"s/closed", "s/secret", "s/names"} {
		os.Chown(b.path(name), 0, 0)
	}
	if got, truncated := b.found(b.search("glob", object{"pattern": "**", "path": b.path("s")})); strings.Join(got, " ") != "s/a s/closed/ s/names/ s/names/l s/secret s/z" || truncated {
		t.Errorf("got %q, %v", got, truncated)
	}
	if got, truncated := b.found(b.search("grep", object{"pattern": "x", "path": b.path("s")})); strings.Join(got, " ") != "s/a:1:x s/z:1:x" || truncated {
		t.Errorf("got %q, %v", got, truncated)
	}
	b.search("glob", object{"pattern": "*", "path": b.path("s/closed")}).wantProblem(t, 403, "PermissionDenied", "closed: permission denied")
}

// The search is the configured user's.
func TestSearchOfUser(t *testing.T) {
	t.Parallel()
	b := newRootBox(t)
	b.tree(map[string]string{"s/a": "x", "s/closed/b": "x"})
	os.Chmod(b.path("s/closed"), 0o700)
	b.configure(`{"user":"12345"}`)
	if got, _ := b.found(b.search("glob", object{"pattern": "**", "path": b.path("s")})); strings.Join(got, " ") != "s/a s/closed/" {
		t.Errorf("got %q", got)
	}
}
