//go:build unix

package client

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sbx-star/sbx-star/wire"
)

// This file tests how folders move. The sandbox of these tests is a folder of
// this machine, on a server that has nothing but the oldest endpoints.

// tb is what testing.TB and rapid.T have in common.
type tb interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

type treeServer struct {
	*httptest.Server
	fault func(n int, r *http.Request) int // a status in place of the answer to request n, or 0

	mu       sync.Mutex
	requests []string
}

func newTreeServer(t testing.TB) *treeServer {
	s := &treeServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.Close)
	return s
}

func (s *treeServer) box(t testing.TB) *Sandbox {
	retries := 1
	c, err := New(Options{Endpoint: s.URL, MaxRetries: &retries})
	if err != nil {
		t.Fatal(err)
	}
	c.sleep = func(ctx context.Context, _ time.Duration) error { return ctx.Err() }
	t.Cleanup(c.Close)
	return boxAt(c, s.URL)
}

func (s *treeServer) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	path := r.URL.Query().Get("path")
	s.mu.Lock()
	n := len(s.requests)
	text := r.Method + " " + r.URL.Path + " " + path
	if r.URL.Path == "/execute" {
		text += string(body)
	}
	s.requests = append(s.requests, text)
	s.mu.Unlock()
	if s.fault != nil {
		if status := s.fault(n, r); status != 0 {
			w.WriteHeader(status)
			return
		}
	}
	switch r.URL.Path {
	case "/execute":
		var request wire.ExecRequest
		json.NewDecoder(r.Body).Decode(&request)
		cmd := exec.CommandContext(r.Context(), request.Shell, "-c", request.Command.Line)
		var answer wire.ExecResponse
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		cmd.Run()
		answer.Stdout, answer.Stderr, answer.ExitCode = stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
		json.NewEncoder(w).Encode(answer)
	case "/upload":
		p, _, err := part(r.Header.Get("Content-Type"), r.Body)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(path), 0o755)
		}
		var content []byte
		if err == nil {
			content, err = io.ReadAll(p)
		}
		if err == nil {
			err = os.WriteFile(path, content, 0o644)
		}
		if err != nil {
			w.WriteHeader(500)
		}
	case "/download":
		http.ServeFile(w, r, path)
	default:
		w.WriteHeader(404) // there are no WebSockets
	}
}

// stages are the temporary folders that transfers have named.
func (s *treeServer) stages() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []string
	for _, r := range s.requests {
		found = append(found, regexp.MustCompile(`/var/tmp/\.sbx-transfer-[0-9a-f]{16}`).FindAllString(r, -1)...)
	}
	return found
}

// treeText is a tree as text: names, modes, links and what the files hold.
func treeText(t tb, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		fmt.Fprintf(&b, "%q %v", name, info.Mode())
		switch {
		case info.Mode().IsRegular():
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			h := sha256.New()
			n, err := io.Copy(h, f)
			fmt.Fprintf(&b, " %d %x %d", n, h.Sum(nil), info.ModTime().Unix())
			if err != nil {
				return err
			}
		case info.Mode().Type() == fs.ModeSymlink:
			link, _ := os.Readlink(path)
			fmt.Fprintf(&b, " %q", link)
		}
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

var treeNames = rapid.OneOf(
	rapid.StringMatching(`[a-c]{1,2}`),
	rapid.SampledFrom([]string{"with space", "new\nline", "ünï", "\xff\xfe", "-rf", "*", "'quoted'", `back\slash`, "$HOME", "..dots", strings.Repeat("long", 60), " "}),
)

// drawTree makes a random tree in dir.
func drawTree(t *rapid.T, dir string, depth int) {
	for range rapid.IntRange(0, 4).Draw(t, "entries") {
		path := filepath.Join(dir, treeNames.Draw(t, "name"))
		if filepath.Dir(path) != dir {
			continue
		}
		if _, err := os.Lstat(path); err == nil {
			continue
		}
		var err error
		switch kind := rapid.IntRange(0, 4).Draw(t, "kind"); {
		case kind == 0:
			err = os.Symlink(rapid.SampledFrom([]string{"a", "../..", "/etc/passwd", "nowhere", ".", "\xff", strings.Repeat("l/", 80)}).Draw(t, "link"), path)
		case kind <= 2 && depth < 4:
			if err = os.Mkdir(path, 0o700); err == nil {
				drawTree(t, path, depth+1)
				err = os.Chmod(path, rapid.SampledFrom([]fs.FileMode{0o700, 0o755, 0o777, 0o711}).Draw(t, "mode"))
			}
		default:
			content := rapid.SliceOfN(rapid.Byte(), 0, 2000).Draw(t, "content")
			if err = os.WriteFile(path, content, 0o600); err == nil {
				err = os.Chmod(path, rapid.SampledFrom([]fs.FileMode{0o600, 0o644, 0o755, 0o400, 0o444, 0o777}).Draw(t, "mode"))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestTreeUpAndDown: a tree that went up and down again is the same tree.
func TestTreeUpAndDown(t *testing.T) {
	needTools(t)
	s := newTreeServer(t)
	box := s.box(t)
	base := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(base, "tree")
		if err != nil {
			t.Fatal(err)
		}
		src, up, down := filepath.Join(dir, "src"), filepath.Join(dir, "a b", "'up'"), filepath.Join(dir, "c", "down")
		if err := os.Mkdir(src, 0o755); err != nil {
			t.Fatal(err)
		}
		drawTree(t, src, 0)
		sent, err := box.UploadTree(context.Background(), src, up, TransferOptions{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := box.DownloadTree(context.Background(), up, down, TransferOptions{})
		if err != nil {
			t.Fatal(err)
		}
		want := treeText(t, src)
		if treeText(t, up) != want || treeText(t, down) != want || sent.Files != got.Files || sent.Bytes != got.Bytes {
			t.Fatalf("up %+v:\n%s\ndown %+v:\n%s\nwant:\n%s", sent, treeText(t, up), got, treeText(t, down), want)
		}
		again, err := box.DownloadTree(context.Background(), up, down, TransferOptions{}) // over what is there
		if err != nil || treeText(t, down) != want || again.Files != got.Files {
			t.Fatal(again, err)
		}
	})
	noStages(t, s)
}

func needTools(t testing.TB) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("there is no tar to pack with")
	}
}

// noStages fails if a transfer of this server has left something in the sandbox.
func noStages(t testing.TB, s *treeServer) {
	t.Helper()
	for _, stage := range s.stages() {
		if _, err := os.Lstat(stage); err == nil {
			t.Errorf("%s is left", stage)
			os.RemoveAll(stage)
		}
	}
}

// A large file comes in pieces, one of which fails at first.
func TestLargeFile(t *testing.T) {
	needTools(t)
	s := newTreeServer(t)
	failed := false
	s.fault = func(n int, r *http.Request) int {
		if !failed && strings.HasSuffix(r.URL.Query().Get("path"), "/00000001") {
			failed = true
			return 503
		}
		return 0
	}
	box, dir := s.box(t), t.TempDir()
	src := filepath.Join(dir, "src")
	os.Mkdir(src, 0o755)
	f, err := os.Create(filepath.Join(src, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	f.Write(noise(1 << 20))
	f.Truncate(20 << 20)
	f.WriteAt(noise(100), 17<<20)
	f.Close()
	moved := int64(0)
	options := TransferOptions{Progress: func(p Transfer) { moved = p.Bytes }}
	if _, err := box.UploadTree(t.Context(), src, filepath.Join(dir, "up"), options); err != nil || moved != 20<<20 || !failed {
		t.Fatal(err, moved, failed)
	}
	if _, err := box.DownloadTree(t.Context(), filepath.Join(dir, "up"), filepath.Join(dir, "down"), options); err != nil || moved != 20<<20 {
		t.Fatal(err, moved)
	}
	if treeText(t, filepath.Join(dir, "down")) != treeText(t, src) {
		t.Error("the file is another one")
	}
	noStages(t, s)
}

// A large file by itself moves as itself, is sent again where a server asks for
// that, and takes the place of a link.
func TestOneLargeFile(t *testing.T) {
	needTools(t)
	s := newTreeServer(t)
	uploads := 0
	s.fault = func(n int, r *http.Request) int {
		if r.Method == http.MethodPost && strings.Contains(r.URL.Path, "upload") {
			if uploads++; uploads == 1 {
				return 503
			}
		}
		return 0
	}
	box, dir := s.box(t), t.TempDir()
	src, up, down := filepath.Join(dir, "src"), filepath.Join(dir, "deep", "er", "up it's"), filepath.Join(dir, "down")
	content := noise(largeFile + 12345)
	if err := os.WriteFile(src, content, 0o600); err != nil {
		t.Fatal(err)
	}
	os.Chmod(src, 0o751)
	old := time.Unix(1_000_000_000, 0)
	os.Chtimes(src, old, old)
	os.MkdirAll(filepath.Dir(up), 0o755)
	elsewhere := filepath.Join(dir, "elsewhere")
	os.WriteFile(elsewhere, []byte("stays"), 0o644)
	for _, link := range []string{up, down} {
		if err := os.Symlink(elsewhere, link); err != nil {
			t.Fatal(err)
		}
	}
	moved := int64(0)
	options := TransferOptions{Progress: func(p Transfer) { moved = p.Bytes }}
	if done, err := box.UploadTree(t.Context(), src, up, options); err != nil || done.Files != 1 || done.Bytes != int64(len(content)) || moved != done.Bytes || uploads != 2 {
		t.Fatal(done, err, moved, uploads)
	}
	if done, err := box.DownloadTree(t.Context(), up, down, options); err != nil || done.Files != 1 || done.Bytes != int64(len(content)) {
		t.Fatal(done, err)
	}
	for _, path := range []string{up, down} {
		info, err := os.Lstat(path)
		if err != nil || info.Mode() != 0o751 || !info.ModTime().Equal(old) {
			t.Error(path, info.Mode(), info.ModTime(), err)
		}
		if got, _ := os.ReadFile(path); !bytes.Equal(got, content) {
			t.Errorf("%s is another file", path)
		}
	}
	if got, _ := os.ReadFile(elsewhere); string(got) != "stays" {
		t.Errorf("what the link led to is %.20q", got)
	}

	folder := filepath.Join(dir, "folder")
	os.Mkdir(folder, 0o755)
	if _, err := box.UploadTree(t.Context(), src, folder, options); err == nil || !strings.Contains(err.Error(), "there is a folder of this name") {
		t.Error(err)
	}
	s.fault = func(n int, r *http.Request) int {
		if r.Method == http.MethodPost && strings.Contains(r.URL.Path, "upload") {
			return 500
		}
		return 0
	}
	if _, err := box.UploadTree(t.Context(), src, filepath.Join(dir, "no"), options); err == nil {
		t.Error("it went up in spite of the fault")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".sbx-*")); len(left) != 0 {
		t.Errorf("%v are left", left)
	}
	noStages(t, s)
}

// What a sandbox tells of a large file need not be true.
func TestALargeFileThatIsNotAsTold(t *testing.T) {
	for told, want := range map[string]string{
		"large 9000000 644 17": "ok", "large 9000000 644": "", "large -1 644 17": "", "large 1 9 17": "", "large 1 644 x": "", "folder 3": "", "": "",
	} {
		if _, ok := large(told); ok != (want != "") {
			t.Errorf("%q: %v", told, ok)
		}
	}
	for name, sent := range map[string]string{"shorter": "abc", "longer": "abcdef"} {
		e := &exactly{&countingReader{r: strings.NewReader(sent)}, 5}
		if _, err := io.ReadAll(e); err == nil {
			t.Errorf("a %s file was taken for one of 5 bytes", name)
		}
	}
	f := &wholeFile{progressReader{r: strings.NewReader("abc"), ctx: t.Context(), done: &Transfer{}}, nil, 5}
	if _, err := io.ReadAll(f); err == nil || !strings.Contains(err.Error(), "became shorter") {
		t.Error(err)
	}
}

// However a transfer is interrupted, nothing of it is left in the sandbox, and
// an upload that did not begin to unpack wrote nothing.
func TestTransferIsInterrupted(t *testing.T) {
	needTools(t)
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	os.Mkdir(src, 0o755)
	os.WriteFile(filepath.Join(src, "large"), noise(17<<20), 0o644)
	os.WriteFile(filepath.Join(src, "small"), []byte("small"), 0o644)
	for _, upload := range []bool{true, false} {
		requests := 3 // before those that tidy up: what is refused over WebSockets is asked for over HTTP
		if upload {
			requests = 5
		}
		for at := range requests {
			for _, cut := range []bool{true, false} {
				s := newTreeServer(t)
				ctx, cancel := context.WithCancelCause(t.Context())
				cause := errors.New("enough")
				reached := false
				s.fault = func(n int, r *http.Request) int {
					if n != at {
						return 0
					}
					reached = true
					if cut {
						return 500
					}
					cancel(cause)
					<-r.Context().Done()
					return 500
				}
				target := filepath.Join(dir, fmt.Sprint("target", upload, at, cut))
				var err error
				if upload {
					_, err = s.box(t).UploadTree(ctx, src, target, TransferOptions{})
				} else {
					_, err = s.box(t).DownloadTree(ctx, src, target, TransferOptions{})
				}
				cancel(nil)
				_, missing := os.Stat(target)
				if err == nil && treeText(t, target) != treeText(t, src) {
					t.Errorf("upload=%v at=%d cut=%v: success, and the target is another tree", upload, at, cut)
				}
				if err != nil && upload && missing == nil && at < 3 {
					t.Errorf("at=%d cut=%v: the target was touched: %v", at, cut, err)
				}
				if !reached || !cut && !errors.Is(err, cause) {
					t.Errorf("upload=%v at=%d cut=%v: got %v", upload, at, cut, err)
				}
				s.Close() // and so wait for what it still serves
				noStages(t, s)
			}
		}
	}
}

type entry struct {
	kind       byte
	name, link string
	content    string
}

func stream(t tb, entries ...entry) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Typeflag: e.kind, Name: e.name, Linkname: e.link, Mode: 0o644, Size: int64(len(e.content)), Format: tar.FormatGNU}
		if e.kind == tar.TypeDir {
			h.Mode = 0o555
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, e.content)
	}
	w.Close()
	return b.Bytes()
}

func unpackInto(dir string, stream []byte) (Transfer, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Transfer{}, err
	}
	defer root.Close()
	u := &unpacker{ctx: context.Background(), root: root, size: int64(len(stream)), ignore: "ignored"}
	err = u.unpack(bytes.NewReader(stream))
	return u.done, err
}

func hostile() map[string][]entry {
	reg, link, sym, dir := byte(tar.TypeReg), byte(tar.TypeLink), byte(tar.TypeSymlink), byte(tar.TypeDir)
	return map[string][]entry{
		"absolute":                  {{kind: reg, name: "/outside", content: "x"}},
		"parent":                    {{kind: reg, name: "../outside", content: "x"}},
		"parent within":             {{kind: dir, name: "a/"}, {kind: reg, name: "a/../../outside", content: "x"}},
		"through a link":            {{kind: sym, name: "l", link: ".."}, {kind: reg, name: "l/outside", content: "x"}},
		"through an absolute link":  {{kind: sym, name: "l", link: "/"}, {kind: reg, name: "l/outside", content: "x"}},
		"through two links":         {{kind: sym, name: "a", link: "."}, {kind: sym, name: "a/b", link: ".."}, {kind: reg, name: "b/outside", content: "x"}},
		"folder through a link":     {{kind: sym, name: "l", link: ".."}, {kind: dir, name: "l/outside/"}},
		"link through a link":       {{kind: sym, name: "l", link: ".."}, {kind: sym, name: "l/outside", link: "x"}},
		"hard link out":             {{kind: link, name: "h", link: "../sentinel"}, {kind: reg, name: "h", content: "x"}},
		"hard link absolute":        {{kind: link, name: "h", link: "/etc/passwd"}},
		"hard link through a link":  {{kind: sym, name: "l", link: ".."}, {kind: link, name: "h", link: "l/sentinel"}},
		"hard link to nothing":      {{kind: link, name: "h", link: "none"}},
		"hard link to itself":       {{kind: reg, name: "h", content: "x"}, {kind: link, name: "h", link: "./h"}},
		"empty name":                {{kind: reg, name: "", content: "x"}},
		"file in place of a folder": {{kind: dir, name: "d/"}, {kind: reg, name: "d", content: "x"}},
		"link in place of a folder": {{kind: dir, name: "d/"}, {kind: sym, name: "d", link: ".."}},
		"folder below a file":       {{kind: reg, name: "f", content: "x"}, {kind: dir, name: "f/d/"}},
	}
}

// outside is a folder with a sentinel, in which the target lies.
func outside(t testing.TB) (dir, target string, check func()) {
	dir = t.TempDir()
	target = filepath.Join(dir, "target")
	os.Mkdir(target, 0o755)
	os.WriteFile(filepath.Join(dir, "sentinel"), []byte("untouched"), 0o640)
	return dir, target, func() {
		t.Helper()
		names, err := filepath.Glob(filepath.Join(dir, "*"))
		content, _ := os.ReadFile(filepath.Join(dir, "sentinel"))
		info, _ := os.Stat(filepath.Join(dir, "sentinel"))
		if err != nil || len(names) != 2 || string(content) != "untouched" || info.Mode() != 0o640 || info.Sys().(*syscall.Stat_t).Nlink != 1 {
			t.Fatalf("something outside of the target was touched: %q %q %v", names, content, info.Mode())
		}
	}
}

func TestHostileStreams(t *testing.T) {
	for name, entries := range hostile() {
		_, target, check := outside(t)
		if _, err := unpackInto(target, stream(t, entries...)); err == nil {
			t.Errorf("%s: it was written", name)
		}
		check()
		if left, _ := filepath.Glob(filepath.Join(target, ".sbx-*")); len(left) > 0 {
			t.Errorf("%s: %q is left", name, left)
		}
	}
}

// What is in the target before is replaced, and never written through.
func TestLinksInTheTargetAreReplaced(t *testing.T) {
	_, target, check := outside(t)
	os.Symlink("../sentinel", filepath.Join(target, "file"))
	os.Symlink("..", filepath.Join(target, "folder"))
	os.Link(filepath.Join(target, "file"), filepath.Join(target, "again"))
	done, err := unpackInto(target, stream(t,
		entry{kind: tar.TypeReg, name: "./file", content: "new"},
		entry{kind: tar.TypeDir, name: "./folder/"},
		entry{kind: tar.TypeReg, name: "./folder/f", content: "inner"},
		entry{kind: tar.TypeLink, name: "./hard", link: "./file"},
		entry{kind: tar.TypeFifo, name: "./pipe"},
		entry{kind: tar.TypeChar, name: "./device"},
		entry{kind: tar.TypeReg, name: "./ignored/x", content: "x"},
	))
	if err != nil || done.Files != 3 || !slices.Equal(done.Skipped, []string{"pipe", "device"}) {
		t.Fatal(done, err)
	}
	check()
	got, err := os.ReadFile(filepath.Join(target, "hard"))
	if info, e := os.Lstat(filepath.Join(target, "folder")); err != nil || string(got) != "new" || e != nil || info.Mode() != fs.ModeDir|0o555 {
		t.Error(string(got), err, info, e)
	}
	os.Chmod(filepath.Join(target, "folder"), 0o755)
}

// A folder that stays open for the next entry is not the one of that name any more
// once a link has become another one.
func TestLinksChangeWithinAStream(t *testing.T) {
	_, target, check := outside(t)
	link := func(name, to string) entry { return entry{kind: tar.TypeSymlink, name: name, link: to} }
	file := func(name string) entry { return entry{kind: tar.TypeReg, name: name, content: name} }
	_, err := unpackInto(target, stream(t,
		file("d1/s/a"), file("d2/s/b"),
		link("l", "d1"), file("l/c"), link("l", "d2"), file("l/d"),
		link("m", "d1"), file("m/s/e"), link("m", "d2"), file("m/s/f"),
		link("n", "d1"), file("n/g"), entry{kind: tar.TypeDir, name: "n/"}, file("n/h"),
	))
	os.Chmod(filepath.Join(target, "n"), 0o755)
	var got []string
	filepath.WalkDir(target, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			name, _ := filepath.Rel(target, path)
			got = append(got, name)
		}
		return err
	})
	if want := []string{"d1/c", "d1/g", "d1/s/a", "d1/s/e", "d2/d", "d2/s/b", "d2/s/f", "n/h"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("written are %q %v, want %q", got, err, want)
	}
	check()
}

// Ten thousand files of all modes, deep in folders, and links between them.
func TestTenThousandFiles(t *testing.T) {
	needTools(t)
	s := newTreeServer(t)
	base, err := os.MkdirTemp("/dev/shm", "sbx-star-test-")
	if err != nil { // there is no memory to put them into
		base = t.TempDir()
	}
	defer func() {
		filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				err = os.Chmod(path, 0o700)
			}
			return err
		})
		os.RemoveAll(base)
	}()
	src, up, down := filepath.Join(base, "src"), filepath.Join(base, "up"), filepath.Join(base, "down")
	const folders, perFolder = 100, 100
	for d := range folders {
		dir := filepath.Join(src, "a", "deep", fmt.Sprint(d%10), fmt.Sprintf("folder %d", d))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for f := range perFolder {
			path := filepath.Join(dir, fmt.Sprint(f))
			if f%10 == 9 {
				if err := os.Symlink(fmt.Sprintf("../folder %d/%d", d, f-1), path); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if err := os.WriteFile(path, []byte(path), 0o600); err != nil {
				t.Fatal(err)
			}
			os.Chmod(path, []fs.FileMode{0o600, 0o644, 0o755, 0o400, 0o711}[f%5])
		}
		os.Chmod(dir, []fs.FileMode{0o755, 0o700, 0o555}[d%3])
	}
	want := treeText(t, src)
	box := s.box(t)
	last := 0
	options := TransferOptions{Progress: func(p Transfer) {
		if p.Files < last {
			t.Errorf("%d files after %d", p.Files, last)
		}
		last = p.Files
	}}
	sent, err := box.UploadTree(t.Context(), src, up, options)
	if err != nil || sent.Files != folders*perFolder || treeText(t, up) != want {
		t.Fatal("up: ", sent, err)
	}
	last = 0
	got, err := box.DownloadTree(t.Context(), up, down, options)
	if err != nil || got.Files != sent.Files || got.Bytes != sent.Bytes || treeText(t, down) != want {
		t.Fatal("down: ", got, err)
	}
	noStages(t, s)
}

// A stream that breaks off leaves whole files only.
func TestBrokenStream(t *testing.T) {
	whole := stream(t, entry{kind: tar.TypeReg, name: "a", content: strings.Repeat("a", 700)}, entry{kind: tar.TypeReg, name: "b", content: strings.Repeat("b", 700)})
	for n := 100; n < len(whole)-1024; n += 100 {
		dir := t.TempDir()
		_, err := unpackInto(dir, whole[:n])
		if err == nil && n < 512+700 { // later on it may look like a shorter one; DownloadTree counts
			t.Errorf("%d bytes: no error", n)
		}
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if content, _ := os.ReadFile(filepath.Join(dir, e.Name())); len(e.Name()) != 1 || string(content) != strings.Repeat(e.Name(), 700) {
				t.Errorf("%d bytes: %s has %d bytes", n, e.Name(), len(content))
			}
		}
	}
}

// A short stream cannot become a long file: here a header of GNU's sparse files
// says that a terabyte of nothing follows.
func TestSparseFileIsRefused(t *testing.T) {
	b := stream(t, entry{kind: tar.TypeReg, name: "a"})
	b[156] = tar.TypeGNUSparse
	copy(b[483:], "100000000000")
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	if h, err := tar.NewReader(bytes.NewReader(b)).Next(); err != nil || h.Size < 1<<32 {
		t.Fatal("this is no sparse file: ", h, err)
	}
	if _, err := unpackInto(t.TempDir(), b); err == nil || !strings.Contains(err.Error(), "fill the disk") {
		t.Error("it was written: ", err)
	}
}

// Whatever the stream says, nothing outside of the target changes.
func FuzzUnpack(f *testing.F) {
	f.Add([]byte("no tar"))
	for _, entries := range hostile() {
		f.Add(stream(f, entries...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		_, target, check := outside(t)
		unpackInto(target, data)
		check()
		filepath.WalkDir(target, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				os.Chmod(path, 0o700)
			}
			return nil
		})
	})
}

func TestExclude(t *testing.T) {
	needTools(t)
	s := newTreeServer(t)
	dir := t.TempDir()
	for _, name := range []string{"src/keep", "src/a.o", "src/.git/config", "src/sub/.git/x", "src/sub/b.o/c"} {
		os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755)
		os.WriteFile(filepath.Join(dir, name), nil, 0o644)
	}
	moved, err := s.box(t).UploadTree(t.Context(), filepath.Join(dir, "src"), dir+"/up/", TransferOptions{Exclude: []string{".git", "*.o"}})
	if err != nil || moved.Files != 1 || strings.Count(treeText(t, dir+"/up"), "\n") != 2 {
		t.Fatal(moved, err, treeText(t, dir+"/up"))
	}
	for _, bad := range []string{"", "a/b", "["} {
		if _, err := s.box(t).UploadTree(t.Context(), dir, "/x", TransferOptions{Exclude: []string{bad}}); !errors.Is(err, ErrValidation) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// The benchmarks move ten thousand small files, or a large one, beside what the
// system's own programs take for it.
func BenchmarkTransfer(b *testing.B) {
	needTools(b)
	dir := b.TempDir()
	many, large := filepath.Join(dir, "many"), filepath.Join(dir, "large")
	for i := range 10_000 {
		name := fmt.Sprintf("%s/%02d/%04d", many, i%100, i)
		os.MkdirAll(filepath.Dir(name), 0o755)
		os.WriteFile(name, noise(1000), 0o644)
	}
	os.MkdirAll(large, 0o755)
	f, err := os.Create(filepath.Join(large, "file"))
	if err != nil {
		b.Fatal(err)
	}
	for range 1 << 10 {
		f.Write(noise(1 << 20))
	}
	f.Close()
	box := newTreeServer(b).box(b)
	for _, tree := range []string{many, large} {
		to := filepath.Join(dir, "to")
		for name, move := range map[string]func() error{
			"upload": func() error {
				_, err := box.UploadTree(b.Context(), tree, to, TransferOptions{})
				return err
			},
			"download": func() error {
				_, err := box.DownloadTree(b.Context(), tree, to, TransferOptions{})
				return err
			},
			"tar": func() error {
				os.Mkdir(to, 0o755)
				return exec.Command("sh", "-c", "tar -cf - -C "+tree+" . | tar -xf - -C "+to).Run()
			},
			"cp": func() error { return exec.Command("cp", "-r", tree, to).Run() },
		} {
			b.Run(filepath.Base(tree)+"/"+name, func(b *testing.B) {
				for b.Loop() {
					if err := move(); err != nil {
						b.Fatal(err)
					}
					b.StopTimer()
					os.RemoveAll(to)
					b.StartTimer()
				}
			})
		}
	}
}
