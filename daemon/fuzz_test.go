//go:build linux

package daemon

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file fuzzes what clients send to a daemon beside the first message of a
// socket: files, paths, ranges, searches and later messages.

// idle is a daemon that serves files alone, below home.
func idle(home string) *daemon {
	d := &daemon{lim: defaultLimits()}
	d.lim.search = time.Second
	cfg := Config{Home: home}
	cfg.complete()
	d.cfg.Store(&cfg)
	return d
}

func wantForm(t *testing.T, w *httptest.ResponseRecorder, of string) {
	t.Helper()
	var answer struct {
		Detail struct{ Error, Message string }
	}
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || answer.Detail.Error == "" || answer.Detail.Message == "" {
		t.Errorf("%s: got %d %s", of, w.Code, w.Body)
	}
}

// An upload is written whole or not at all.
func FuzzUpload(f *testing.F) {
	const part = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"file\"\r\n\r\ntext\r\n"
	for _, body := range []string{part + "--b--\r\n", part, part + part + "--b--\r\n", "--b--\r\n", "", strings.Replace(part, "file", "other", 1) + "--b--\r\n",
		"--b\r\nContent-Disposition: form-data; name=file\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=41\r\n--b--\r\n"} {
		f.Add("multipart/form-data; boundary=b", []byte(body))
	}
	f.Add("text/plain", []byte("x"))
	f.Add("multipart/form-data; boundary=", []byte("--\r\n"))
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		d := idle(t.TempDir())
		r := httptest.NewRequest("POST", "/upload?path=f", bytes.NewReader(body))
		r.Header.Set("Content-Type", kind)
		w := httptest.NewRecorder()
		d.upload(w, r)
		got, err := os.ReadFile(filepath.Join(d.cfg.Load().Home, "f"))
		if w.Code != http.StatusOK {
			wantForm(t, w, string(body))
			if left, _ := os.ReadDir(d.cfg.Load().Home); len(left) > 0 || w.Code >= 500 {
				t.Errorf("%q: got %d %s, and %v is left", body, w.Code, w.Body, left)
			}
			return
		}
		var answer wire.Uploaded
		if err2 := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || err2 != nil || answer.Written != int64(len(got)) {
			t.Errorf("%q: written %q, %v, %s", body, got, err, w.Body)
		}
		_, params, _ := mime.ParseMediaType(kind)
		first, err := multipart.NewReader(bytes.NewReader(body), params["boundary"]).NextPart()
		if err != nil {
			t.Fatal(err)
		}
		if want, err := io.ReadAll(first); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%q: written %q, want %q, %v", body, got, want, err)
		}
	})
}

// Every path is a file, none, or refused; what is refused is left alone.
func FuzzFilePath(f *testing.F) {
	for _, s := range []string{"f", "d/f", "../x", "/etc/passwd", "a\x00b", "", ".", "d/", "//", "%2e", "é", strings.Repeat("a", 5000), "f/x", "link"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		home := t.TempDir()
		d := idle(home)
		os.WriteFile(filepath.Join(home, "f"), []byte("text"), 0o600)
		os.Symlink("link", filepath.Join(home, "link"))
		query := "?path=" + url.QueryEscape(path)
		for _, method := range []string{"GET", "HEAD"} {
			w := httptest.NewRecorder()
			// Files outside are another matter: this machine's.
			if strings.HasPrefix(path, "/") || strings.Contains(path, "..") {
				continue
			}
			d.download(w, httptest.NewRequest(method, "/download"+query, nil))
			if w.Code >= 500 || w.Code != http.StatusOK && method == "GET" && !json.Valid(w.Body.Bytes()) {
				t.Errorf("%s %q: got %d %s", method, path, w.Code, w.Body)
			}
		}
		if resolved, err := d.resolve(path, wire.ErrRead); (err == nil) != (path != "" && !strings.Contains(path, "\x00")) || err == nil && !strings.HasPrefix(resolved, "/") {
			t.Errorf("%q becomes %q, %v", path, resolved, err)
		}
	})
}

// A part of a file is the part that its Content-Range says, or all of it.
func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes=2-4", "bytes=8-99", "bytes=-3", "bytes=-99", "bytes=10-", "bytes=0-1,3-4", "bytes=x", "bytes=-0", "bytes= 1-2", "bytes=1-2 ", "BYTES=1-2", "bytes=99999999999999999999-", "bytes=0-99999999999999999999", "bytes=-99999999999999999999"} {
		f.Add(s, "", "", uint8(10))
	}
	f.Add("bytes=0-", `"x"`, "", uint8(0))
	f.Add("bytes=0-", "", `"x", W/"y"`, uint8(3))
	f.Add("bytes=0-", "Thu, 01 Jan 1970 00:00:00 GMT", "*", uint8(3))
	f.Fuzz(func(t *testing.T, value, ifRange, ifNone string, size uint8) {
		home := t.TempDir()
		d := idle(home)
		whole := strings.Repeat("0123456789", 26)[:size]
		if err := os.WriteFile(filepath.Join(home, "f"), []byte(whole), 0o600); err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest("GET", "/download?path=f", nil)
		for name, value := range map[string]string{"Range": value, "If-Range": ifRange, "If-None-Match": ifNone} {
			if value != "" {
				r.Header.Set(name, value)
			}
		}
		w := httptest.NewRecorder()
		d.download(w, r)
		got, content := w.Body.String(), w.Header().Get("Content-Range")
		switch w.Code {
		case http.StatusOK:
			if got != whole || content != "" {
				t.Errorf("%q of %d: got %q, %s", value, size, got, content)
			}
		case http.StatusPartialContent:
			var first, last, total int
			if n, err := fmt.Sscanf(content, "bytes %d-%d/%d", &first, &last, &total); n != 3 || err != nil || total != int(size) || first > last || last >= total || got != whole[first:last+1] {
				t.Errorf("%q of %d: got %q, %s", value, size, got, content)
			}
		case http.StatusNotModified:
			if ifNone == "" || got != "" {
				t.Errorf("%q: 304 with %q", ifNone, got)
			}
		case http.StatusRequestedRangeNotSatisfiable:
			if content != fmt.Sprintf("bytes */%d", size) || size == 0 {
				t.Errorf("%q of %d: 416 with %s", value, size, content)
			}
		default:
			t.Errorf("%q: got %d %s", value, w.Code, got)
		}
	})
}

// Any search is answered.
func FuzzSearch(f *testing.F) {
	for _, s := range []string{`{"pattern":"*","path":"$"}`, `{"pattern":"x","path":"$","glob":"[a-","limit":1}`, `{"pattern":"**/a","path":"$/d"}`, `{"pattern":1}`, `{}`, ``, `{"pattern":"[","path":"/nowhere"}`} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	home := f.TempDir()
	if err := os.MkdirAll(filepath.Join(home, "d"), 0o700); err != nil {
		f.Fatal(err)
	}
	for _, name := range []string{"a", "d/a", "d/.hidden"} {
		if err := os.WriteFile(filepath.Join(home, name), []byte("x y\nx\xff"), 0o600); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, glob bool) {
		d := idle(home)
		d.ctx = t.Context()
		var request wire.GlobRequest
		json.Unmarshal(body, &request)
		if path := strings.ReplaceAll(request.Path, "$", home); !strings.HasPrefix(path, home) && strings.HasPrefix(path, "/") || strings.Contains(path, "..") {
			return // this machine's files
		}
		r := httptest.NewRequest("POST", "/", bytes.NewReader(bytes.ReplaceAll(body, []byte("$"), []byte(home))))
		w := httptest.NewRecorder()
		if glob {
			d.glob(w, r)
		} else {
			d.grep(w, r)
		}
		if w.Code >= 500 {
			t.Errorf("%q: got %d %s", body, w.Code, w.Body)
		} else if w.Code != http.StatusOK {
			var answer struct{ Detail any }
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || answer.Detail == nil {
				t.Errorf("%q: got %d %s", body, w.Code, w.Body)
			}
		}
	})
}

// Names of signals are those of the kernel, whatever is sent.
func FuzzSignal(f *testing.F) {
	for _, s := range []string{"TERM", "SIGUSR1", "9", "", "SIG", "RTMIN+1", "term", "-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if sig, err := signalNumber(name); err == nil && (sig < 1 || sig > 64) {
			t.Errorf("%q is signal %d", name, sig)
		}
	})
}
