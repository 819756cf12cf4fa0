//go:build linux

package daemon_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func (b *box) path(name string) string { return filepath.Join(b.home, name) }

func (b *box) put(name, content string, mode os.FileMode) {
	b.t.Helper()
	if err := os.WriteFile(b.path(name), []byte(content), 0o600); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Chmod(b.path(name), mode); err != nil {
		b.t.Fatal(err)
	}
}

// wantFiles checks that nothing else is in the home directory.
func (b *box) wantFiles(want string) {
	b.t.Helper()
	var names []string
	filepath.WalkDir(b.home, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, strings.TrimPrefix(path, b.home+"/"))
		}
		return nil
	})
	if got := strings.Join(names, " "); got != want {
		b.t.Errorf("files are %q, want %q", got, want)
	}
}

func TestUpload(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.put("script", "old", 0o755)
	b.put("secret", "old", 0o4600)
	b.put("behind", "old", 0o644)
	os.Mkdir(b.path("dir"), 0o755)
	os.Symlink("behind", b.path("link"))
	os.Symlink("dir/../deep/made", b.path("dangling"))
	for _, tt := range []struct {
		name, path, file string
		mode             os.FileMode
	}{
		{"relative", "a.txt", "a.txt", 0o644},
		{"absolute", b.path("b.txt"), "b.txt", 0o644},
		{"parents", "new/er/c.txt", "new/er/c.txt", 0o644},
		{"dots", "dir/../d.txt", "d.txt", 0o644},
		{"any name", "ü \n%2F&=.txt", "ü \n%2F&=.txt", 0o644},
		{"longest name", strings.Repeat("n", 255), strings.Repeat("n", 255), 0o644},
		{"keeps the mode", "script", "script", 0o755},
		{"but not setuid", "secret", "secret", 0o600},
		{"through a link", "link", "behind", 0o644},
		{"through a dangling link", "dangling", "deep/made", 0o644},
	} {
		t.Run(tt.name, func(t *testing.T) {
			content := "bytes of " + tt.name + "\x00\xff\r\n"
			r := b.upload(tt.path, "file", content)
			if want := encode(map[string]any{"path": tt.path, "written": len(content)}); r.status != 200 || r.body != want {
				t.Errorf("got %d %s, want %s", r.status, r.body, want)
			}
			if got, err := os.ReadFile(b.path(tt.file)); string(got) != content || err != nil {
				t.Errorf("%s holds %q, %v", tt.file, got, err)
			}
			if info, err := os.Stat(b.path(tt.file)); err != nil || info.Mode() != tt.mode {
				t.Errorf("mode is %v, want %v", info.Mode(), tt.mode)
			}
		})
	}
	for _, link := range []string{"link", "dangling"} {
		if info, err := os.Lstat(b.path(link)); err != nil || info.Mode()&os.ModeSymlink == 0 {
			t.Errorf("%s is no longer a link", link)
		}
	}
	if info, err := os.Stat(b.path("new/er")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("a parent has mode %v", info.Mode())
	}
}

func TestUploadRefused(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.put("plain", "old", 0o644)
	os.Mkdir(b.path("dir"), 0o755)
	syscall.Mkfifo(b.path("fifo"), 0o644)
	os.Symlink("/dev/null", b.path("null"))
	os.Symlink("loop", b.path("loop"))
	for _, tt := range []struct {
		name, path    string
		parts         []string
		status        int
		kind, message string
	}{
		{"no path", "", []string{"file", ""}, 400, "WriteError", "path is missing or empty"},
		{"zero byte", "a\x00b", []string{"file", ""}, 400, "WriteError", "zero byte"},
		{"directory", "dir", []string{"file", ""}, 400, "WriteError", "dir is a directory"},
		{"slash", "plain/", []string{"file", ""}, 400, "WriteError", "names a directory"},
		{"dots", "..", []string{"file", ""}, 400, "WriteError", "names a directory"},
		{"parent is a file", "plain/x", []string{"file", ""}, 400, "WriteError", "not a directory"},
		{"grandparent is a file", "plain/x/y", []string{"file", ""}, 400, "WriteError", "not a directory"},
		{"fifo", "fifo", []string{"file", ""}, 400, "WriteError", "is not a regular file"},
		{"device", "null", []string{"file", ""}, 400, "WriteError", "/dev/null is not a regular file"},
		{"loop", "loop", []string{"file", ""}, 400, "WriteError", "too many levels of symbolic links"},
		{"name too long", strings.Repeat("n", 256), []string{"file", ""}, 400, "WriteError", "file name too long"},
		{"permission", "/proc/x/y", []string{"file", ""}, 400, "WriteError", "no such file"}, // nothing can be made there
		{"read-only", "/proc/version", []string{"file", ""}, 400, "WriteError", ""},
		{"no part", "x", nil, 400, "InvalidRequest", `no part "file"`},
		{"other part", "x", []string{"data", ""}, 400, "InvalidRequest", `called "data"`},
		{"two parts", "x", []string{"file", "1", "file", "2"}, 400, "InvalidRequest", "more than one part"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b.t = t
			b.upload(tt.path, tt.parts...).wantProblem(t, tt.status, tt.kind, tt.message)
		})
	}
	b.do("POST", "/upload?path=x", strings.NewReader("raw")).wantProblem(t, 400, "InvalidRequest", "multipart/form-data")
	if got, _ := os.ReadFile(b.path("plain")); string(got) != "old" {
		t.Errorf("plain holds %q", got)
	}
	b.wantFiles("fifo loop null plain")
}

// A client that breaks off leaves nothing behind, not even a part of the file.
func TestUploadAborted(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.put("f", "old", 0o644)
	pr, pw := io.Pipe()
	w := multipart.NewWriter(pw)
	req, _ := http.NewRequest("POST", "http://box/upload?path=f", pr)
	req.Header.Set("Content-Type", w.FormDataContentType())
	done := make(chan error, 1)
	go func() {
		_, err := b.http.Do(req)
		done <- err
	}()
	part, _ := w.CreateFormFile("file", "file")
	part.Write(make([]byte, 1<<20))
	await(t, "the temporary file", func() bool {
		found, _ := filepath.Glob(b.path(".sbx-upload-*"))
		return len(found) == 1
	})
	pw.CloseWithError(io.ErrClosedPipe)
	if err := <-done; err == nil {
		t.Error("the broken request was answered")
	}
	await(t, "the temporary file to go", func() bool {
		found, _ := filepath.Glob(b.path(".sbx-upload-*"))
		return len(found) == 0
	})
	if got, _ := os.ReadFile(b.path("f")); string(got) != "old" {
		t.Errorf("f holds %q", got)
	}
}

// A large file goes up and comes down as it was, without standing in memory.
func TestTransfer(t *testing.T) {
	t.Parallel()
	const size = 64 << 20
	b := newBox(t)
	pid := b.daemon()
	source := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{1}), size) }
	pr, pw := io.Pipe()
	w := multipart.NewWriter(pw)
	go func() {
		part, _ := w.CreateFormFile("file", "file")
		_, err := io.Copy(part, source())
		w.Close()
		pw.CloseWithError(err)
	}()
	if r := b.do("POST", "/upload?path=big", pr, "Content-Type", w.FormDataContentType()); r.status != 200 || !strings.Contains(r.body, fmt.Sprint(size)) {
		t.Fatalf("got %d %s", r.status, r.body)
	}
	want := sha256.New()
	io.Copy(want, source())
	res, err := b.http.Get("http://box/download?path=big")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got := sha256.New()
	if n, err := io.Copy(got, res.Body); n != size || err != nil || res.ContentLength != size {
		t.Errorf("%d bytes of %d came down, %v", n, res.ContentLength, err)
	}
	if a, b := hex.EncodeToString(got.Sum(nil)), hex.EncodeToString(want.Sum(nil)); a != b {
		t.Errorf("checksum %s, want %s", a, b)
	}
	if peak := memory(t, pid, "VmHWM"); peak > size {
		t.Errorf("the daemon took %d bytes of memory at most for a file of %d", peak, size)
	}
}

// daemon is the number of the daemon's process.
func (b *box) daemon() int {
	b.t.Helper()
	if r := b.execute(`{"command":"echo $PPID > ppid"}`); r.status != 200 {
		b.t.Fatal(r)
	}
	pid := b.pid("ppid")
	os.Remove(b.path("ppid"))
	return pid
}

// memory reads a line of /proc/PID/status, in bytes.
func memory(t *testing.T, pid int, line string) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), line+":")
	kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

func TestDownload(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.put("f", "0123456789", 0o644)
	b.put("empty", "", 0o644)
	b.put("large", strings.Repeat("0123456789", 1000), 0o644)
	etag := b.download("f").header.Get("ETag")
	modified := b.download("f").header.Get("Last-Modified")
	const before, after = "Thu, 01 Jan 1970 00:00:01 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"
	for _, tt := range []struct {
		name, file string
		header     []string
		status     int
		body       string
		content    string // Content-Range
	}{
		{"whole", "f", nil, 200, "0123456789", ""},
		{"middle", "f", []string{"Range", "bytes=2-4"}, 206, "234", "bytes 2-4/10"},
		{"open", "f", []string{"Range", "bytes=7-"}, 206, "789", "bytes 7-9/10"},
		{"past the end", "f", []string{"Range", "bytes=8-99"}, 206, "89", "bytes 8-9/10"},
		{"far past the end", "f", []string{"Range", "bytes=8-99999999999999999999999"}, 206, "89", "bytes 8-9/10"},
		{"suffix", "f", []string{"Range", "bytes=-3"}, 206, "789", "bytes 7-9/10"},
		{"long suffix", "f", []string{"Range", "bytes=-30"}, 206, "0123456789", "bytes 0-9/10"},
		{"same ETag", "f", []string{"Range", "bytes=2-4", "If-Range", etag}, 206, "234", "bytes 2-4/10"},
		{"stale", "f", []string{"Range", "bytes=2-4", "If-Range", `"x"`}, 200, "0123456789", ""},
		{"weak ETag", "f", []string{"Range", "bytes=2-4", "If-Range", "W/" + etag}, 200, "0123456789", ""},
		{"same date", "f", []string{"Range", "bytes=2-4", "If-Range", modified}, 206, "234", "bytes 2-4/10"},
		{"stale date", "f", []string{"Range", "bytes=2-4", "If-Range", before}, 200, "0123456789", ""},
		{"later date", "f", []string{"Range", "bytes=2-4", "If-Range", after}, 200, "0123456789", ""},
		{"If-Range without a range", "f", []string{"If-Range", etag}, 200, "0123456789", ""},
		{"unchanged", "f", []string{"Range", "bytes=0-", "If-None-Match", etag}, 304, "", ""},
		{"unchanged whole", "f", []string{"If-None-Match", etag}, 304, "", ""},
		{"unchanged, among others", "f", []string{"If-None-Match", `"x", W/` + etag}, 304, "", ""},
		{"unchanged wins over stale", "f", []string{"Range", "bytes=2-4", "If-Range", `"x"`, "If-None-Match", etag}, 304, "", ""},
		{"changed and stale", "f", []string{"Range", "bytes=2-4", "If-Range", `"x"`, "If-None-Match", `"x"`}, 200, "0123456789", ""},
		{"unchanged and malformed", "f", []string{"Range", "bytes=x", "If-None-Match", etag}, 304, "", ""},
		{"changed, malformed", "f", []string{"Range", "bytes=x", "If-None-Match", `"x"`}, 200, "0123456789", ""},
		{"unchanged and empty", "empty", []string{"Range", "bytes=0-", "If-None-Match", "*"}, 304, "", ""},
		{"changed, whatever the date", "f", []string{"If-None-Match", `"x"`, "If-Modified-Since", after}, 200, "0123456789", ""},
		{"changed", "f", []string{"Range", "bytes=0-1", "If-None-Match", `"x"`}, 206, "01", "bytes 0-1/10"},
		{"unchanged wins over beyond", "f", []string{"Range", "bytes=10-", "If-None-Match", etag}, 304, "", ""},
		{"stale wins over beyond", "f", []string{"Range", "bytes=10-", "If-Range", `"x"`}, 200, "0123456789", ""},
		{"several", "f", []string{"Range", "bytes=0-1,4-5"}, 200, "0123456789", ""},
		{"fraction", "f", []string{"Range", "bytes=1.5-"}, 200, "0123456789", ""},
		{"other unit", "f", []string{"Range", "lines=1-2"}, 200, "0123456789", ""},
		{"backwards", "f", []string{"Range", "bytes=5-2"}, 200, "0123456789", ""},
		{"sign", "f", []string{"Range", "bytes=+1-2"}, 200, "0123456789", ""},
		{"nothing", "f", []string{"Range", "bytes=-"}, 200, "0123456789", ""},
		{"empty", "empty", nil, 200, "", ""},
		{"empty from the start", "empty", []string{"Range", "bytes=0-"}, 200, "", ""},
		{"empty suffix", "empty", []string{"Range", "bytes=-5"}, 200, "", ""},
		{"empty beyond", "empty", []string{"Range", "bytes=5-"}, 200, "", ""},
		{"large", "large", []string{"Range", "bytes=9998-"}, 206, "89", "bytes 9998-9999/10000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := b.download(tt.file, tt.header...)
			if r.status != tt.status || r.body != tt.body || r.header.Get("Content-Range") != tt.content {
				t.Errorf("got %d %q %q, want %d %q %q", r.status, r.body, r.header.Get("Content-Range"), tt.status, tt.body, tt.content)
			}
			if r.header.Get("Accept-Ranges") != "bytes" || r.status != 304 && (r.header.Get("Content-Type") != "application/octet-stream" || r.header.Get("Content-Length") != strconv.Itoa(len(tt.body))) {
				t.Errorf("headers are %v", r.header)
			}
			if tt.file == "f" && (r.header.Get("ETag") != etag || r.header.Get("Last-Modified") != modified) {
				t.Errorf("validators are %v", r.header)
			}
			head := b.do("HEAD", "/download?path="+tt.file, nil, tt.header...)
			for _, name := range []string{"ETag", "Content-Range", "Content-Length", "Content-Type", "Last-Modified", "Accept-Ranges"} {
				if head.status != r.status || head.body != "" || head.header.Get(name) != r.header.Get(name) {
					t.Errorf("HEAD: %d %q, %s %q, GET has %q", head.status, head.body, name, head.header.Get(name), r.header.Get(name))
				}
			}
		})
	}
	for _, beyond := range []string{"bytes=10-", "bytes=10-11", "bytes=-0", "bytes=99999999999999999999-"} {
		r := b.download("f", "Range", beyond)
		r.wantProblem(t, 416, "ReadError", "begins behind the end")
		if r.header.Get("Content-Range") != "bytes */10" {
			t.Errorf("%s: Content-Range is %q", beyond, r.header.Get("Content-Range"))
		}
		if head := b.do("HEAD", "/download?path=f", nil, "Range", beyond); head.status != 416 || head.body != "" || head.header.Get("Content-Range") != "bytes */10" {
			t.Errorf("HEAD %s: %d %v", beyond, head.status, head.header)
		}
	}
	head := b.do("HEAD", "/download?path=f", nil)
	if head.header.Get("Content-Length") != "10" || !strings.HasPrefix(etag, `"`) || head.header.Get("ETag") != etag {
		t.Errorf("stat is %v, ETag of GET %s", head.header, etag)
	}
}

// The files of /proc and /sys say a size that they do not have.
func TestDownloadPseudoFile(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	for _, path := range []string{"/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled"} {
		want, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if r := b.download(path); r.status != 200 || r.body != string(want) {
			t.Errorf("%s: got %d %q, want %q", path, r.status, r.body, want)
		}
	}
}

func TestDownloadRefused(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.put("plain", "", 0o644)
	os.Mkdir(b.path("dir"), 0o755)
	syscall.Mkfifo(b.path("fifo"), 0o644)
	os.Symlink("loop", b.path("loop"))
	os.Symlink("nothing", b.path("dangling"))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	short := t.TempDir()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: short + "/s"}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path          string
		status        int
		kind, message string
	}{
		{"", 400, "ReadError", "path is missing or empty"},
		{"a\x00b", 400, "ReadError", "zero byte"},
		{"nothing", 404, "FileNotFound", "no such file"},
		{"dangling", 404, "FileNotFound", "no such file"},
		{"plain/x", 404, "FileNotFound", "not a directory"},
		{"dir", 400, "ReadError", "dir is a directory"},
		{"fifo", 400, "ReadError", "fifo is not a regular file"},
		{short + "/s", 400, "ReadError", "is not a regular file"},
		{"/dev/zero", 400, "ReadError", "is not a regular file"},
		{"loop", 400, "ReadError", "too many levels"},
		{"/proc/self/mem", 500, "ReadError", "input/output error"},
	} {
		b.download(tt.path).wantProblem(t, tt.status, tt.kind, tt.message)
		head := b.do("HEAD", "/download?path="+url.QueryEscape(tt.path), nil)
		if head.status != tt.status || head.body != "" {
			t.Errorf("HEAD %s: %d %q", tt.path, head.status, head.body)
		}
	}
	if r := b.download("/proc/self/mem"); !strings.Contains(r.body, `"error_id":"`) {
		t.Errorf("no error_id in %s", r.body)
	}
}

// The ETag changes with every rewrite, also one of the same size in the same second.
func TestETag(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	seen := map[string]bool{}
	var last, stat unix.Stat_t
	for range 5 {
		await(t, "the clock of the file system to tick", func() bool {
			b.put("f", "x", 0o644)
			os.Chtimes(b.path("f"), time.Unix(1, 0), time.Unix(1, 0))
			return unix.Stat(b.path("f"), &stat) == nil && stat.Ctim != last.Ctim
		})
		last = stat
		seen[b.download("f").header.Get("ETag")] = true
	}
	if len(seen) != 5 {
		t.Errorf("five versions have the ETags %v", seen)
	}
}

// An answer is of one version, though the file is replaced meanwhile.
func TestDownloadDuringUpload(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	old := bytes.Repeat([]byte("a"), 16<<20)
	os.WriteFile(b.path("f"), old, 0o644)
	res, err := b.http.Get("http://box/download?path=f")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if r := b.upload("f", "file", strings.Repeat("b", 1000)); r.status != 200 {
		t.Fatal(r)
	}
	if got, err := io.ReadAll(res.Body); !bytes.Equal(got, old) || err != nil {
		t.Errorf("the answer has %d bytes of the old version, %v", bytes.Count(got, []byte("a")), err)
	}
}

// What an ordinary user may not do is forbidden, and not missing or broken.
func TestFilesForbidden(t *testing.T) {
	t.Parallel()
	b := newOrdinaryBox(t)
	b.put("secret", "x", 0)
	os.Mkdir(b.path("closed"), 0)
	os.Mkdir(b.path("fixed"), 0o555)
	os.Chown(b.path("closed"), 65534, 65534)
	for _, path := range []string{"closed/x", "fixed/x", "fixed/new/x", "/etc/x"} {
		b.upload(path, "file", "").wantProblem(t, 403, "PermissionDenied", "permission denied")
	}
	for _, path := range []string{"secret", "closed/x"} {
		b.download(path).wantProblem(t, 403, "PermissionDenied", "permission denied")
		if r := b.do("HEAD", "/download?path="+path, nil); r.status != 403 {
			t.Errorf("HEAD: %d", r.status)
		}
	}
	b.wantFiles("daemon.sock secret")
	b.execute(`{"command":"echo","cwd":"closed"}`).wantProblem(t, 400, "CommandError", "closed: permission denied")
	b.execute(`{"command":"echo","run_config":{"user":"0"}}`).wantProblem(t, 400, "CommandError", `user is "0"`)
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	small := b.path("small")
	os.Mkdir(small, 0o755)
	if err := unix.Mount("none", small, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("it takes a small file system, which this user may not mount:", err)
	}
	t.Cleanup(func() { unix.Unmount(small, unix.MNT_DETACH) })
	b.put("small/f", "old", 0o644)
	r := b.upload("small/f", "file", strings.Repeat("x", 1<<20))
	r.wantProblem(t, 500, "WriteError", "no space left on device")
	if !strings.Contains(r.body, `"error_id":"`) {
		t.Errorf("no error_id in %s", r.body)
	}
	if got, _ := os.ReadFile(b.path("small/f")); string(got) != "old" {
		t.Errorf("the file holds %q", got)
	}
	b.wantFiles("small/f")
	if r := b.upload("small/g", "file", "fits"); r.status != 200 {
		t.Error(r)
	}
}
