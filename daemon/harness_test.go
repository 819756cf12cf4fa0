//go:build linux

package daemon_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/daemon"
	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/runtime/process"
)

func TestMain(m *testing.M) {
	process.Child()
	daemon.Child()
	os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0") // of the daemons, which end all the time
	os.Exit(m.Run())
}

// patience is how long a test waits for what must come; none measures time.
const patience = 30 * time.Second

// box is a sandbox, spoken to in plain HTTP and WebSocket.
type box struct {
	t    testing.TB
	home string
	dial func(context.Context) (net.Conn, error)
	http *http.Client
}

// newBox makes a sandbox of runtime/process.
func newBox(t testing.TB) *box {
	t.Helper()
	dir := t.TempDir()
	inst, err := process.New(process.Options{}).Create(t.Context(), runtime.Spec{ID: "b", Dir: dir, Env: map[string]string{"BOX": "yes"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		said, _ := os.ReadFile(filepath.Join(dir, "daemon.log"))
		if len(said) > 0 {
			t.Errorf("the daemon's log: %s", said)
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := inst.Remove(ctx); err != nil {
			t.Error(err)
		}
	})
	return wrap(t, filepath.Join(dir, "home"), inst.Dial)
}

// newLimitedBox makes a daemon with other limits.
func newLimitedBox(t testing.TB, limits daemon.Limits) *box {
	t.Helper()
	return spawn(t, t.TempDir(), limits, &syscall.SysProcAttr{})
}

// newOrdinaryBox makes a daemon that is not root, whoever runs the test.
func newOrdinaryBox(t *testing.T) *box {
	t.Helper()
	dir := openDir(t)
	attr := &syscall.SysProcAttr{}
	if os.Getuid() == 0 {
		attr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
		os.Chown(dir, 65534, 65534)
	}
	return spawn(t, dir, daemon.Limits{}, attr)
}

// openDir is a folder that, unlike those of t.TempDir, others can reach.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func spawn(t testing.TB, dir string, limits daemon.Limits, attr *syscall.SysProcAttr) *box {
	t.Helper()
	ln, err := runtime.ListenUnix(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	socket, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	cmd := exec.Command("/proc/self/exe", encode(limits), encode(daemon.Config{Home: dir}))
	cmd.Args[0] = daemon.UnderTest
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the daemon ended with %v", err)
		}
	})
	return wrap(t, dir, func(ctx context.Context) (net.Conn, error) { return runtime.DialUnix(ctx, dir) })
}

func wrap(t testing.TB, home string, dial func(context.Context) (net.Conn, error)) *box {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}
	t.Cleanup(transport.CloseIdleConnections)
	return &box{t, home, dial, &http.Client{Transport: transport, Timeout: patience}}
}

func encode(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// reply is an answer whose body was read.
type reply struct {
	status int
	header http.Header
	body   string
}

func (b *box) do(method, path string, body io.Reader, header ...string) reply {
	b.t.Helper()
	req, err := http.NewRequest(method, "http://box"+path, body)
	if err != nil {
		b.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := b.http.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return reply{res.StatusCode, res.Header, string(text)}
}

func (b *box) execute(body string) reply {
	b.t.Helper()
	return b.do("POST", "/execute", strings.NewReader(body))
}

// multipartBody has one part for each pair of a name and a content.
func multipartBody(parts ...string) (io.Reader, string) {
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	for i := 0; i < len(parts); i += 2 {
		part, _ := w.CreateFormFile(parts[i], "file")
		io.WriteString(part, parts[i+1])
	}
	w.Close()
	return &body, w.FormDataContentType()
}

func (b *box) upload(path string, parts ...string) reply {
	b.t.Helper()
	body, kind := multipartBody(parts...)
	return b.do("POST", "/upload?path="+url.QueryEscape(path), body, "Content-Type", kind)
}

func (b *box) download(path string, header ...string) reply {
	b.t.Helper()
	return b.do("GET", "/download?path="+url.QueryEscape(path), nil, header...)
}

// problem is what form A says.
type problem struct {
	Detail struct{ Error, Message, Reason, ErrorID string }
}

// wantProblem checks that r is form A.
func (r reply) wantProblem(t *testing.T, status int, kind, message string) {
	t.Helper()
	var p problem
	err := json.Unmarshal([]byte(r.body), &p)
	if err != nil || r.header.Get("Content-Type") != "application/json" {
		t.Errorf("answer %d %q is not form A: %v", r.status, r.body, err)
	}
	if r.status != status || p.Detail.Error != kind || !strings.Contains(p.Detail.Message, message) {
		t.Errorf("got %d %s %q, want %d %s with %q", r.status, p.Detail.Error, p.Detail.Message, status, kind, message)
	}
}

// socket is one exec WebSocket.
type socket struct {
	t    testing.TB
	conn *websocket.Conn
	most int // bytes of output in one message
}

func (b *box) socket() *socket { b.t.Helper(); return b.dialSocket(64 << 10) }

// socketV1 speaks exec.v1.
func (b *box) socketV1() *socket { b.t.Helper(); return b.dialSocket(256<<10, "sbx.exec.v1") }

func (b *box) dialSocket(most int, protocols ...string) *socket {
	b.t.Helper()
	dialer := websocket.Dialer{NetDialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return b.dial(ctx) }, Subprotocols: protocols}
	conn, res, err := dialer.Dial("ws://box/execute/ws", nil)
	if err != nil {
		b.t.Fatal(err)
	}
	res.Body.Close()
	b.t.Cleanup(func() { conn.Close() })
	if got := conn.Subprotocol(); got != strings.Join(protocols, "") {
		b.t.Fatalf("the socket speaks %q, want %q", got, protocols)
	}
	return &socket{b.t, conn, most}
}

// start opens a socket, sends the messages, and reads started.
func (b *box) start(messages ...string) (*socket, frame) {
	b.t.Helper()
	s := b.socket()
	return s, s.begin(messages...)
}

func (b *box) startV1(messages ...string) (*socket, frame) {
	b.t.Helper()
	s := b.socketV1()
	return s, s.begin(messages...)
}

func (s *socket) begin(messages ...string) frame {
	s.t.Helper()
	for _, m := range messages {
		s.send(m)
	}
	first := s.next()
	if first.Type != "started" {
		s.t.Fatalf("first message is %+v, want started", first)
	}
	return first
}

func (s *socket) send(message string) {
	s.t.Helper()
	s.conn.SetWriteDeadline(time.Now().Add(patience))
	if err := s.conn.WriteMessage(websocket.TextMessage, []byte(message)); err != nil {
		s.t.Fatal(err)
	}
}

// frame is any message of the server.
type frame struct {
	Type      string `json:"type"`
	CommandID string `json:"command_id"`
	PID       int    `json:"pid"`
	Data      string `json:"data"`
	Offset    int64  `json:"offset"`
	ExitCode  int    `json:"exit_code"`
	Error     string `json:"error"`
	ErrorType string `json:"error_type"`
	raw       string
}

func (s *socket) read() (frame, error) {
	s.conn.SetReadDeadline(time.Now().Add(patience))
	kind, data, err := s.conn.ReadMessage()
	if err != nil {
		return frame{}, err
	}
	f := frame{raw: string(data)}
	if kind == websocket.BinaryMessage {
		if len(data) < 9 || data[0] != 1 && data[0] != 2 || s.conn.Subprotocol() == "" {
			s.t.Fatalf("unexpected binary message %.200q", data)
		}
		f.Type, f.Data = [...]string{"", "stdout", "stderr"}[data[0]], string(data[9:])
		f.Offset = int64(binary.BigEndian.Uint64(data[1:9]))
		return f, nil
	}
	if err := json.Unmarshal(data, &f); err != nil {
		s.t.Fatalf("message %q: %v", data, err)
	}
	return f, nil
}

func (s *socket) next() frame {
	s.t.Helper()
	f, err := s.read()
	if err != nil {
		s.t.Fatal(err)
	}
	return f
}

// output is what one socket brought.
type output struct {
	stdout, stderr string
	next           [2]int64 // offsets behind what came
	last           frame
}

// rest reads to the last message and checks the order, the offsets and the closing.
func (s *socket) rest() output { s.t.Helper(); return s.restFrom(0, 0) }

func (s *socket) restFrom(stdout, stderr int64) output {
	s.t.Helper()
	out := output{next: [2]int64{stdout, stderr}}
	var texts [2]strings.Builder
	for {
		f := s.next()
		if f.Type == "exit" || f.Type == "error" {
			out.last = f
			break
		}
		i := map[string]int{"stdout": 0, "stderr": 1}[f.Type]
		if f.Type != "stdout" && f.Type != "stderr" || f.Offset != out.next[i] || len(f.Data) == 0 || len(f.Data) > s.most {
			s.t.Fatalf("unexpected %.200q, want output from %d", f.raw, out.next[i])
		}
		texts[i].WriteString(f.Data)
		out.next[i] += int64(len(f.Data))
	}
	out.stdout, out.stderr = texts[0].String(), texts[1].String()
	s.wantClose(websocket.CloseNormalClosure)
	return out
}

func (s *socket) wantClose(code int) {
	s.t.Helper()
	f, err := s.read()
	if !websocket.IsCloseError(err, code) {
		s.t.Fatalf("got %q, %v; want the socket to be closed with %d", f.raw, err, code)
	}
}

func (o output) wantExit(t *testing.T, code int) {
	t.Helper()
	if o.last.Type != "exit" || o.last.ExitCode != code {
		t.Errorf("last message is %s, want exit %d", o.last.raw, code)
	}
}

// message builds an execute message with every field that is always there.
func message(command string, more ...string) string {
	m := map[string]any{"type": "execute", "command": command, "timeout_seconds": 60, "shell": "/bin/bash",
		"idle_timeout_seconds": 300, "kill_on_disconnect": false, "ttl_seconds": 600}
	for _, text := range more {
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			panic(err)
		}
	}
	return encode(m)
}

// await waits until ok, which looks at something that another process does.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
