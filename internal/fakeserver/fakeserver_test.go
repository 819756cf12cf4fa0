//go:build linux

package fakeserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sbx-star/sbx-star/runtime/process"
	"github.com/sbx-star/sbx-star/wire"
)

func TestMain(m *testing.M) {
	process.Child()
	os.Exit(m.Run())
}

func start(t *testing.T) *Server {
	t.Helper()
	s, err := Start(Options{APIKey: "k"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if n, err := s.Processes(); n != 0 || err != nil {
			t.Errorf("%d processes are left, %v", n, err)
		}
		if _, err := os.Stat(s.dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the folder is left: %v", err)
		}
	})
	return s
}

func (s *Server) order(t *testing.T, order string) {
	t.Helper()
	if err := s.Fault(strings.Fields(order)); err != nil {
		t.Fatal(err)
	}
}

func send(t *testing.T, method, url, kind, body string) (*http.Response, string, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Api-Key", "k")
	r.Header.Set("Content-Type", kind)
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	return res, strings.TrimSpace(string(data)), err
}

// call sends JSON to the control plane and returns status and body.
func call(t *testing.T, s *Server, method, path, body string) (int, string) {
	t.Helper()
	res, text, err := send(t, method, s.URL()+path, "application/json", body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, text
}

func makeBox(t *testing.T, s *Server) string {
	t.Helper()
	status, body := call(t, s, "POST", "/boxes", `{"wait_for_ready": true}`)
	var b wire.Box
	if json.Unmarshal([]byte(body), &b); status != 201 {
		t.Fatal(status, body)
	}
	return b.DataplaneURL
}

// dial opens the WebSocket of a sandbox and starts a command on it.
func dial(t *testing.T, dataplane, command string) *websocket.Conn {
	t.Helper()
	c, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(dataplane, "http")+"/execute/ws", http.Header{"X-Api-Key": {"k"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	text, err := wire.EncodeMessage(&wire.Execute{Command: wire.Command{Line: command}, Shell: "/bin/sh", TimeoutSeconds: 60, IdleTimeoutSeconds: 300, TTLSeconds: 600, CommandID: rand.Text()})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WriteMessage(websocket.TextMessage, text); err != nil {
		t.Fatal(err)
	}
	return c
}

// hear reads messages until the socket ends, and returns why it did.
func hear(c *websocket.Conn) (messages []string, err error) {
	for {
		_, text, err := c.ReadMessage()
		if err != nil {
			return messages, err
		}
		messages = append(messages, string(text))
	}
}

func TestDeterministic(t *testing.T) {
	s := start(t)
	status, body := call(t, s, "POST", "/boxes", ` {"wait_for_ready" : true, "command_id":"x"}`)
	root := strings.TrimSuffix(s.URL(), basePath)
	want := `{"id":"00000000-0000-4000-8000-000000000001","name":"sandbox-00000001","dataplane_url":"` + root +
		`/sb/00000000-0000-4000-8000-000000000001","status":"ready","created_at":"2026-01-02T03:04:05.000000Z","updated_at":"2026-01-02T03:04:05.000000Z"}`
	if status != 201 || body != want {
		t.Errorf("got %d %s\nwant %s", status, body, want)
	}
	dataplane := root + "/sb/00000000-0000-4000-8000-000000000001"

	var upload bytes.Buffer
	form := multipart.NewWriter(&upload)
	part, _ := form.CreateFormFile("file", "file")
	part.Write([]byte("hello"))
	form.Close()
	if res, text, err := send(t, "POST", dataplane+"/upload?path=a%20b", form.FormDataContentType(), upload.String()); err != nil || res.StatusCode != 200 {
		t.Errorf("upload: %v, %s", err, text)
	}
	if _, text, err := send(t, "GET", dataplane+"/download?path=a%20b", "", ""); err != nil || text != "hello" {
		t.Errorf("download: %q, %v", text, err)
	}
	call(t, s, "POST", "/boxes/sandbox-00000001/stop", "{}")
	if n, err := s.Processes(); n != 0 || err != nil {
		t.Errorf("what was stopped is %d processes, %v", n, err)
	}
	c := dial(t, dataplane, "cat") // which starts it
	c.ReadMessage()
	if n, err := s.Processes(); n < 2 || err != nil {
		t.Errorf("a daemon and a command are %d processes, %v", n, err)
	}
	c.WriteMessage(websocket.TextMessage, []byte(`{"type":"kill"}`))
	if messages, err := hear(c); !websocket.IsCloseError(err, 1000) || !strings.Contains(messages[len(messages)-1], "137") {
		t.Errorf("got %v, %v", messages, err)
	}
	c.WriteMessage(websocket.BinaryMessage, []byte("late"))
	call(t, s, "DELETE", "/boxes/sandbox-00000001", "")

	wantLog := []string{
		`POST /v2/sandboxes/boxes {"wait_for_ready":true,"command_id":"<id>"}`,
		`POST /sb/00000000-0000-4000-8000-000000000001/upload?path=a%20b <multipart 5 bytes>`,
		`GET /sb/00000000-0000-4000-8000-000000000001/download?path=a%20b`,
		`POST /v2/sandboxes/boxes/sandbox-00000001/stop {}`,
		`GET /sb/00000000-0000-4000-8000-000000000001/execute/ws`,
		`WS > {"type":"execute","command":"cat","timeout_seconds":60,"shell":"/bin/sh","idle_timeout_seconds":300,"kill_on_disconnect":false,"ttl_seconds":600,"command_id":"<id>"}`,
		`WS > {"type":"kill"}`,
		`DELETE /v2/sandboxes/boxes/sandbox-00000001`,
	}
	log := slices.DeleteFunc(s.Requests(), func(line string) bool { return line == "WS > <binary 4 bytes>" }) // it may come too late
	if !slices.Equal(log, wantLog) {
		t.Errorf("the log is\n%s\nwant\n%s", strings.Join(log, "\n"), strings.Join(wantLog, "\n"))
	}
	s.ResetLog()
	if log := s.Requests(); len(log) > 0 {
		t.Errorf("after a reset the log is %q", log)
	}
	if n, err := s.Sandboxes(); n != 0 || err != nil {
		t.Errorf("%d sandboxes, %v", n, err)
	}
}

func TestHTTPFaults(t *testing.T) {
	s := start(t)
	for _, order := range []string{
		"503 x2 POST /boxes retry-after=0 error=Unschedulable message=full",
		"429 GET /boxes/* detail=count",
		"502 GET /boxes/* body=<html>",
		"delay=1ms GET /info",
		"garbage-json PATCH",
		"garbage DELETE /boxes/x",
		"cut after=10B GET /templates",
	} {
		s.order(t, order)
	}
	for _, want := range []struct {
		method, path string
		status       int
		body         string
	}{
		{"POST", "/boxes", 503, `{"detail":{"error":"Unschedulable","message":"full"}}`},
		{"GET", "/boxes", 200, `{"items":[],"next_cursor":null,"offset":0,"sandboxes":[]}`},
		{"POST", "/boxes", 503, `{"detail":{"error":"Unschedulable","message":"full"}}`},
		{"GET", "/boxes/x", 429, `{"detail":"count"}`},
		{"GET", "/boxes/x", 502, `<html>`},
		{"GET", "/boxes/x", 404, `{"detail":{"error":"NotFound","message":"there is no sandbox \"x\""}}`},
		{"PATCH", "/boxes/x", 200, `{"name":`},
	} {
		if status, body := call(t, s, want.method, want.path, "{}"); status != want.status || body != want.body {
			t.Errorf("%s %s: %d %s, want %d %s", want.method, want.path, status, body, want.status, want.body)
		}
	}
	if _, _, err := send(t, "DELETE", s.URL()+"/boxes/x", "", ""); err == nil || !strings.Contains(err.Error(), "malformed HTTP") {
		t.Errorf("garbage is %v", err)
	}
	if _, body, err := send(t, "GET", s.URL()+"/templates", "", ""); !errors.Is(err, io.ErrUnexpectedEOF) || body != `{"template` {
		t.Errorf("a cut body is %q, %v", body, err)
	}
	if pending := s.Pending(); !slices.Equal(pending, []string{"delay=1ms GET /info"}) {
		t.Errorf("pending: %q", pending)
	}
	call(t, s, "GET", "/info", "")
	if pending := s.Pending(); len(pending) > 0 {
		t.Errorf("pending: %q", pending)
	}
}

func TestGenerations(t *testing.T) {
	s := start(t)
	for generation, want := range map[string][2]int{"ours": {200, 200}, "seed": {404, 200}, "classic": {404, 200}, "head": {404, 404}, "late": {404, 404}} {
		s.order(t, "generation "+generation)
		info, _ := call(t, s, "GET", "/info", "")
		templates, _ := call(t, s, "GET", "/templates", "")
		if info != want[0] || templates != want[1] {
			t.Errorf("%s: info %d, templates %d", generation, info, templates)
		}
	}
}

func TestBadOrders(t *testing.T) {
	s := start(t)
	for _, order := range []string{
		"", "nonsense", "503 nonsense", "503 after=3", "cut after=3", "cut-ws after=x", "close=1001 after=3B", "close", "close=70000",
		"delay", "delay=x", "frames=/no/such/file", "generation future", "503 /[", "garbage=x", "split-utf8 error=x",
	} {
		if err := s.Fault(strings.Fields(order)); err == nil {
			t.Errorf("%q is taken", order)
		}
	}
}

func TestDelayEndsWithTheServer(t *testing.T) {
	s := start(t)
	s.order(t, "delay=1h GET /boxes x*")
	done := make(chan struct{})
	go func() {
		defer close(done)
		r, _ := http.NewRequest("GET", s.URL()+"/boxes", nil)
		if res, err := http.DefaultTransport.RoundTrip(r); err == nil {
			res.Body.Close()
			t.Error("it was answered")
		}
	}()
	if err := s.Await(t.Context(), 1, func(line string) bool { return line == "GET /v2/sandboxes/boxes" }); err != nil {
		t.Fatal(err)
	}
	s.Close()
	<-done
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := s.Await(ctx, 2, func(string) bool { return true }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

const threeLines = `echo one; sleep 0.1; echo two; sleep 0.1; echo three`

func TestSocketFaults(t *testing.T) {
	s := start(t)
	dataplane := makeBox(t, s)

	t.Run("cut", func(t *testing.T) {
		for _, after := range []int{0, 1, 2, 17, 60, 90} {
			s.order(t, fmt.Sprintf("cut-ws after=%dB", after))
			c := dial(t, dataplane, threeLines)
			conn := c.NetConn()
			got, err := io.ReadAll(conn) // what comes after the upgrade, as it is
			if len(got) != after {
				t.Errorf("after=%dB: %d bytes came, %v", after, len(got), err)
			}
		}
	})
	t.Run("close", func(t *testing.T) {
		for _, after := range []int{0, 1, 2} {
			s.order(t, fmt.Sprintf("close=1001 after=%d", after))
			messages, err := hear(dial(t, dataplane, threeLines))
			if !websocket.IsCloseError(err, 1001) || len(messages) != after {
				t.Errorf("after=%d: %q, %v", after, messages, err)
			}
		}
	})
	t.Run("garbage", func(t *testing.T) {
		s.order(t, "garbage-ws after=1")
		messages, err := hear(dial(t, dataplane, threeLines))
		if err == nil || !strings.Contains(err.Error(), "RSV") || len(messages) != 1 {
			t.Errorf("got %q, %v", messages, err)
		}
	})
	t.Run("split", func(t *testing.T) {
		s.order(t, "split-utf8")
		messages, err := hear(dial(t, dataplane, `printf 'a"é😀\n'`))
		if !websocket.IsCloseError(err, 1000) {
			t.Error(err)
		}
		var pieces []string
		offset := int64(0)
		for _, text := range messages {
			m, err := wire.DecodeMessage([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			if out, ok := m.(*wire.Output); ok {
				if out.Offset != offset {
					t.Errorf("%q has offset %d, want %d", out.Data, out.Offset, offset)
				}
				pieces = append(pieces, string(out.Data))
				offset += int64(len(out.Data))
			}
		}
		if want := []string{"a\"\xc3", "\xa9\xf0", "\x9f", "\x98", "\x80\n"}; !slices.Equal(pieces, want) {
			t.Errorf("got %q, want %q", pieces, want)
		}
	})
	t.Run("script", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "frames")
		os.WriteFile(file, []byte("# a strange server\n{\"type\":\"started\",\"command_id\":\"$ID\",\"pid\":1}\nread\n{\"type\":\"error\",\"error_type\":\"Strange\"}\nclose 1011\n"), 0o600)
		s.order(t, "frames="+file)
		c := dial(t, dataplane, "true")
		c.WriteMessage(websocket.TextMessage, []byte(`{"type":"kill"}`))
		messages, err := hear(c)
		if !websocket.IsCloseError(err, 1011) || len(messages) != 2 || !strings.HasSuffix(messages[0], `","pid":1}`) || strings.Contains(messages[0], "$ID") {
			t.Errorf("got %q, %v", messages, err)
		}
	})
	t.Run("none", func(t *testing.T) {
		messages, err := hear(dial(t, dataplane, threeLines))
		if !websocket.IsCloseError(err, 1000) || !strings.HasPrefix(messages[len(messages)-1], `{"type":"exit"`) {
			t.Errorf("got %q, %v", messages, err)
		}
	})
	if pending := s.Pending(); len(pending) > 0 {
		t.Errorf("pending: %q", pending)
	}
}

// Closing while sockets are open and a command runs leaves nothing; start checks.
func TestCloseInTheMiddle(t *testing.T) {
	s := start(t)
	c := dial(t, makeBox(t, s), "sleep 1000")
	if _, text, err := c.ReadMessage(); err != nil || !strings.Contains(string(text), "started") {
		t.Fatal(string(text), err)
	}
}

func TestScriptCommands(t *testing.T) {
	dir := t.TempDir()
	script := `
call GET /boxes
fault 503 GET /boxes 'message=no room'
call GET /boxes
stdout 'no room'
requests
cmp stdout log
sent log
await 'GET .*boxes' 2
sandboxes 0
call POST /boxes
sandboxes 1
processes 1
requests -reset
sent empty
fault frames=empty x*
-- log --
GET /v2/sandboxes/boxes
GET /v2/sandboxes/boxes
-- empty --
`
	if err := os.WriteFile(filepath.Join(dir, "commands.txtar"), []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	commands := Commands()
	commands["call"] = func(ts *testscript.TestScript, _ bool, args []string) {
		body := ""
		if args[0] == "POST" {
			body = "{}"
		}
		r, err := http.NewRequest(args[0], ts.Getenv("SBX_STAR_ENDPOINT")+args[1], strings.NewReader(body))
		ts.Check(err)
		r.Header.Set("X-Api-Key", ts.Getenv("SBX_STAR_API_KEY"))
		res, err := http.DefaultTransport.RoundTrip(r)
		ts.Check(err)
		defer res.Body.Close()
		io.Copy(ts.Stdout(), res.Body)
	}
	testscript.Run(t, testscript.Params{Dir: dir, Setup: Setup, Cmds: commands})
}
