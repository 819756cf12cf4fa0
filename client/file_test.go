package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file tests the transfer of files.

// part is the one part that an upload has, and what is wrong with the rest.
func part(contentType string, body io.Reader) (*multipart.Part, *multipart.Reader, error) {
	mediaType, params, err := mime.ParseMediaType(contentType)
	if err != nil || mediaType != "multipart/form-data" {
		return nil, nil, fmt.Errorf("content type %q: %v", contentType, err)
	}
	parts := multipart.NewReader(body, params["boundary"])
	p, err := parts.NextRawPart()
	return p, parts, err
}

func wantUpload(t *testing.T, r request, want []byte) {
	t.Helper()
	p, parts, err := part(r.header.Get("Content-Type"), strings.NewReader(r.body))
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(p)
	if err != nil || !bytes.Equal(content, want) {
		t.Errorf("%d bytes arrived, of %d; %v", len(content), len(want), err)
	}
	wantEqual(t, "part", []string{p.FormName(), p.FileName(), p.Header.Get("Content-Type")}, []string{"file", "file", "application/octet-stream"})
	if _, err := parts.NextRawPart(); err != io.EOF {
		t.Errorf("after the part: %v", err)
	}
}

// noise is n bytes of every value, no UTF-8 and with line ends of every kind.
func noise(n int) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i*i/255 + i)
	}
	return data
}

// only hides all methods of a reader but Read.
type only struct{ io.Reader }

func TestUpload(t *testing.T) {
	for _, n := range []int{0, 1, 100_000} {
		c, s := serve(t, answer{200, "ignored", nil})
		if err := boxAt(c, s.url+"/sb-1").Upload(t.Context(), "/app/ä b+c.txt", only{bytes.NewReader(noise(n))}); err != nil {
			t.Fatal(err)
		}
		r := s.asked()[0]
		wantEqual(t, "request", r.method+" "+r.uri, "POST /sb-1/upload?path=%2Fapp%2F%C3%A4+b%2Bc.txt")
		wantUpload(t, r, noise(n))
	}
}

func TestUploadStartsWhereTheReaderStands(t *testing.T) {
	c, s := serve(t, answer{503, "", nil}, answer{200, "", nil})
	r := strings.NewReader("not this, but this")
	r.Seek(10, io.SeekStart)
	if err := boxAt(c, s.url).Upload(t.Context(), "f", r); err != nil {
		t.Fatal(err)
	}
	wantUpload(t, s.asked()[1], []byte("but this"))
}

// The content is sent while it is read: what comes late depends on what was
// received before.
func TestUploadIsStreamed(t *testing.T) {
	source, fill := io.Pipe()
	received := make(chan string)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, _, err := part(r.Header.Get("Content-Type"), r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		for range 3 {
			piece := make([]byte, 5)
			if _, err := io.ReadFull(p, piece); err != nil {
				t.Error(err)
			}
			received <- string(piece)
		}
		io.Copy(io.Discard, r.Body)
	}))
	defer server.Close()
	c, err := New(Options{Endpoint: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	uploaded := make(chan error)
	go func() { uploaded <- boxAt(c, server.URL).Upload(t.Context(), "f", source) }()
	for _, piece := range []string{"first", "secnd", "third"} {
		io.WriteString(fill, piece)
		wantEqual(t, "received", <-received, piece)
	}
	fill.Close()
	if err := <-uploaded; err != nil {
		t.Error(err)
	}
}

func TestUploadIsRepeatedWhole(t *testing.T) {
	data := noise(100_000)
	c, s := serve(t, answer{503, "", nil}, answer{502, "", nil}, answer{504, "", nil}, answer{200, "", nil})
	if err := boxAt(c, s.url).Upload(t.Context(), "f", bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "requests", len(s.asked()), 4)
	for _, r := range s.asked() {
		wantUpload(t, r, data)
	}
}

func TestUploadOfAStreamIsNotRepeated(t *testing.T) {
	c, s := serve(t, answer{503, form("ServiceUnavailable", "booting"), nil})
	err := boxAt(c, s.url).Upload(t.Context(), "f", only{strings.NewReader("text")})
	wantKind(t, err, ErrNotReady)
	wantEqual(t, "requests", len(s.asked()), 1)
}

// The transport may go on reading an attempt's body after its answer came.
func TestAnAttemptThatWasGivenUpReadsNoMore(t *testing.T) {
	c, err := newContent(strings.NewReader("text"), -1)
	if err != nil {
		t.Fatal(err)
	}
	first := c.open()
	if _, err := io.ReadFull(first, make([]byte, len(c.head)+1)); err != nil {
		t.Fatal(err)
	}
	if !c.rewind() {
		t.Fatal("not rewound")
	}
	second := c.open()
	if rest, err := io.ReadAll(first); err == nil {
		t.Errorf("the first attempt read on: %q", rest)
	}
	whole, err := io.ReadAll(second)
	if err != nil || string(whole) != string(c.head)+"text"+string(c.tail) {
		t.Errorf("the second attempt read %q, %v", whole, err)
	}
	third := c.open()
	c.abandon()
	if rest, err := io.ReadAll(third); err == nil {
		t.Errorf("the call is over, and yet read: %q", rest)
	}
}

func TestAReaderThatFails(t *testing.T) {
	c, s := serve(t, answer{200, "", nil})
	broken := errors.New("broken")
	err := boxAt(c, s.url).Upload(t.Context(), "f", io.MultiReader(strings.NewReader("te"), brokenReader{broken}))
	wantKind(t, err, ErrConnection)
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

type brokenReader struct{ err error }

func (r brokenReader) Read([]byte) (int, error) { return 0, r.err }

func TestPathsOfFiles(t *testing.T) {
	c, s := serve(t, answer{200, "", nil})
	box := boxAt(c, s.url)
	for _, path := range []string{"", "a\x00b"} {
		wantKind(t, box.Upload(t.Context(), path, nil), ErrValidation)
		_, err := box.Download(t.Context(), path)
		wantKind(t, err, ErrValidation)
		_, err = box.Exists(t.Context(), path)
		wantKind(t, err, ErrValidation)
	}
	wantEqual(t, "requests", len(s.asked()), 0)
	body, err := box.Download(t.Context(), "/app/test.txt") // §14
	if err != nil {
		t.Fatal(err)
	}
	body.Close()
	wantEqual(t, "uri", s.asked()[0].uri, "/download?path=%2Fapp%2Ftest.txt")
}

func TestDownload(t *testing.T) {
	data := noise(200_000)
	c, s := serve(t, answer{200, string(data), http.Header{"Content-Type": {"application/octet-stream"}}})
	body, err := boxAt(c, s.url).Download(t.Context(), "f")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(body)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	if err := body.Close(); err != nil {
		t.Error(err)
	}
}

func TestDownloadIsStreamed(t *testing.T) {
	next := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for range 3 {
			io.WriteString(w, "piece")
			http.NewResponseController(w).Flush()
			<-next
		}
	}))
	defer server.Close()
	c, err := New(Options{Endpoint: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	body, err := boxAt(c, server.URL).Download(t.Context(), "f")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	for range 3 {
		if _, err := io.ReadFull(body, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		next <- struct{}{}
	}
	if rest, err := io.ReadAll(body); len(rest) != 0 || err != nil {
		t.Errorf("got %q, %v", rest, err)
	}
}

func TestADownloadThatEndsEarly(t *testing.T) {
	for what, header := range map[string]http.Header{
		"of a known length": {"Content-Length": {"10"}},
		"in chunks":         {},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for name, values := range header {
				w.Header()[name] = values
			}
			io.WriteString(w, "some")
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}))
		c, err := New(Options{Endpoint: server.URL})
		if err != nil {
			t.Fatal(err)
		}
		body, err := boxAt(c, server.URL).Download(t.Context(), "f")
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(body)
		e := wantKind(t, err, ErrConnection)
		if string(got) != "some" || !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(e.Error(), "GET /download: ") {
			t.Errorf("%s: got %q, %v", what, got, err)
		}
		body.Close()
		c.Close()
		server.Close()
	}
}

func TestStalledTransfers(t *testing.T) {
	inBubble(t, Options{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			io.WriteString(w, "some")
			http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
	}), func(t *testing.T, c *Client) {
		start := time.Now()
		err := boxAt(c, pipeURL).Upload(t.Context(), "f", struct{ io.Reader }{bytes.NewReader(noise(1 << 20))}) // of no length, or the server would linger
		e := wantKind(t, err, ErrConnection)
		wantEqual(t, "upload", time.Since(start), fileTimeout)
		if !strings.Contains(e.Error(), "timed out") {
			t.Errorf("got %v", e)
		}

		start = time.Now()
		body, err := boxAt(c, pipeURL).Download(t.Context(), "f")
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		got, err := io.ReadAll(body)
		e = wantKind(t, err, ErrConnection)
		wantEqual(t, "download", fmt.Sprint(string(got), time.Since(start)), fmt.Sprint("some", fileTimeout))
		if !strings.Contains(e.Error(), "timed out") {
			t.Errorf("got %v", e)
		}
	})
}

// Only silence ends a transfer: not its length, and not a slow reader.
func TestSlowTransfers(t *testing.T) {
	inBubble(t, Options{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			for buf := make([]byte, 4<<10); ; time.Sleep(5 * time.Second) {
				if _, err := io.ReadFull(r.Body, buf); err != nil {
					return
				}
			}
		}
		for range 10 {
			io.WriteString(w, "x")
			http.NewResponseController(w).Flush()
			time.Sleep(30 * time.Second)
		}
	}), func(t *testing.T, c *Client) {
		if err := boxAt(c, pipeURL).Upload(t.Context(), "f", bytes.NewReader(noise(64<<10))); err != nil {
			t.Errorf("slow server: %v", err)
		}
		body, err := boxAt(c, pipeURL).Download(t.Context(), "f")
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		for range 10 {
			if _, err := io.ReadFull(body, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Minute)
		}
		if rest, err := io.ReadAll(body); len(rest) != 0 || err != nil {
			t.Errorf("slow reader: %q, %v", rest, err)
		}
	})
}

func TestCancellationEndsTransfers(t *testing.T) {
	inBubble(t, Options{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			io.WriteString(w, "some")
			http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
	}), func(t *testing.T, c *Client) {
		why := errors.New("why")
		soon := func() context.Context {
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Second, func() { cancel(why) })
			return ctx
		}
		start := time.Now()
		source, fill := io.Pipe() // which says nothing
		if err := boxAt(c, pipeURL).Upload(soon(), "f", source); err != why {
			t.Errorf("upload: %v", err)
		}
		fill.Close()
		body, err := boxAt(c, pipeURL).Download(soon(), "f")
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		if _, err := io.ReadAll(body); err != why {
			t.Errorf("download: %v", err)
		}
		wantEqual(t, "time", time.Since(start), 2*time.Second)
	})
}

func TestExists(t *testing.T) {
	for _, x := range []struct {
		path     string
		head     int
		exitCode int
		exists   bool
		command  string // "" if none is to be asked
	}{
		{"f", 200, 0, true, ""},
		{"/f", 404, 1, false, "test -e '/f' || test -L '/f'"},
		{"/f", 404, 0, true, "test -e '/f' || test -L '/f'"},
		{"/d", 400, 0, true, "test -e '/d' || test -L '/d'"},
		{"/it's", 405, 0, true, `test -e '/it'\''s' || test -L '/it'\''s'`},
		{"/f", 403, 1, false, "test -e '/f' || test -L '/f'"},
		{"/f", 501, 1, false, "test -e '/f' || test -L '/f'"},
		{"-n f", 404, 0, true, "cd /home/user 2>/dev/null; test -e ./'-n f' || test -L ./'-n f'"}, // §5
	} {
		var asked wire.ExecRequest
		mux := http.NewServeMux()
		mux.HandleFunc("HEAD /download", func(w http.ResponseWriter, r *http.Request) {
			wantEqual(t, "path", r.URL.Query().Get("path"), x.path)
			w.WriteHeader(x.head)
		})
		mux.HandleFunc("POST /execute", func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if err := asked.UnmarshalJSON(body); err != nil {
				t.Error(err)
			}
			fmt.Fprintf(w, `{"exit_code":%d}`, x.exitCode)
		})
		server := httptest.NewServer(mux)
		c, err := New(Options{Endpoint: server.URL})
		if err != nil {
			t.Fatal(err)
		}
		got, err := boxAt(c, server.URL).Exists(t.Context(), x.path)
		if err != nil || got != x.exists || asked.Command.Line != x.command {
			t.Errorf("%s, %d: got %v, %v by %q", x.path, x.head, got, err, asked.Command.Line)
		}
		c.Close()
		server.Close()
	}
}

func TestExistsWhereNothingCanBeAsked(t *testing.T) {
	c, s := serve(t, answer{401, "", nil})
	_, err := boxAt(c, s.url).Exists(t.Context(), "f")
	wantKind(t, err, ErrAuthentication)
	c, s = serve(t, answer{404, "", nil})
	_, err = boxAt(c, s.url).Exists(t.Context(), "f")
	wantKind(t, err, ErrNotFound)
	wantEqual(t, "requests", s.methods(), "HEAD GET POST")
}
