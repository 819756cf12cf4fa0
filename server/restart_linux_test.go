package server_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/runtime/process"
	"github.com/sbx-star/sbx-star/server"
)

// This file tests what outlives a server, with real sandboxes.

// frame is a message of an exec socket (protocol.md §6.3).
type frame struct {
	Type      string `json:"type"`
	CommandID string `json:"command_id"`
	Data      string `json:"data"`
	Offset    int    `json:"offset"`
	ExitCode  int    `json:"exit_code"`
	Error     string `json:"error"`
}

type execSocket struct {
	t *testing.T
	*websocket.Conn
}

func (f *fixture) exec(name, first string) execSocket {
	f.t.Helper()
	c, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(f.boxes(name).DataplaneURL, "http")+"/execute/ws", nil)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	s := execSocket{f.t, c}
	s.send(first)
	return s
}

func (s execSocket) send(text string) {
	s.t.Helper()
	if err := s.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		s.t.Fatal(err)
	}
}

func (s execSocket) next() (f frame) {
	s.t.Helper()
	_, data, err := s.ReadMessage()
	if err == nil {
		err = json.Unmarshal(data, &f)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return f
}

func (s execSocket) want(f frame) {
	s.t.Helper()
	if got := s.next(); got != f {
		s.t.Fatalf("got %+v, want %+v", got, f)
	}
}

func (s execSocket) closed(code int) {
	s.t.Helper()
	if _, data, err := s.ReadMessage(); !websocket.IsCloseError(err, code) {
		s.t.Fatalf("got %s, %v, want close code %d", data, err, code)
	}
}

func processes(t *testing.T, dir string) *fixture {
	return serve(t, &host{}, func(o *server.Options) { o.Runtime, o.StateDir = process.New(process.Options{}), dir })
}

// A command goes on while its server restarts, and its output from where the
// client was.
func TestCommandOutlivesServer(t *testing.T) {
	dir := t.TempDir()
	f := processes(t, dir)
	b := f.box("one")
	c := f.exec("one", `{"type":"execute","command":"echo one; while [ ! -e go ]; do sleep 0.02; done; echo two; read x; echo got $x; exit 3","timeout_seconds":0,"shell":"/bin/sh","idle_timeout_seconds":300,"kill_on_disconnect":false,"ttl_seconds":600,"command_id":"cmd1"}`)
	c.want(frame{Type: "started", CommandID: "cmd1"})
	c.want(frame{Type: "stdout", Data: "one\n"})
	f.server.Close()
	c.closed(websocket.CloseGoingAway)
	f.close()
	if err := os.WriteFile(filepath.Join(dir, "boxes", b.ID, "fs", "home", "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}

	f = processes(t, dir)
	c = f.exec("one", `{"type":"reconnect","command_id":"cmd1","stdout_offset":4,"stderr_offset":0}`)
	c.want(frame{Type: "started", CommandID: "cmd1"})
	c.want(frame{Type: "stdout", Data: "two\n", Offset: 4})
	c.send(`{"type":"input","data":"more\n"}`)
	c.want(frame{Type: "stdout", Data: "got more\n", Offset: 8})
	c.want(frame{Type: "exit", ExitCode: 3})
	c.closed(websocket.CloseNormalClosure)
	f.do("DELETE", "/boxes/one", "").want(t, 204)
}

// A stop ends commands and keeps files.
func TestFilesOutliveStop(t *testing.T) {
	f := processes(t, t.TempDir())
	b := f.box("one")
	f.do("POST", path(b, "/execute"), `{"command":"echo kept > file","timeout":30,"shell":"/bin/sh"}`).want(t, 200, `"exit_code":0`)
	const command = `{"type":"execute","command":"echo up; sleep 1000","timeout_seconds":0,"shell":"/bin/sh","idle_timeout_seconds":-1,"kill_on_disconnect":false,"ttl_seconds":600,"command_id":"cmd1"}`
	c := f.exec("one", command)
	c.want(frame{Type: "started", CommandID: "cmd1"})
	c.want(frame{Type: "stdout", Data: "up\n"})
	f.do("POST", "/boxes/one/stop", "{}").want(t, 204)
	c.want(frame{Type: "error", Error: "the sandbox was stopped"})
	c.closed(websocket.CloseNormalClosure)
	f.is("one", "stopped")

	f.do("POST", path(b, "/execute"), `{"command":"cat file","timeout":30,"shell":"/bin/sh"}`).want(t, 200, `"stdout":"kept\n"`) // it wakes
	c = f.exec("one", `{"type":"reconnect","command_id":"cmd1","stdout_offset":3,"stderr_offset":0}`)
	if got := c.next(); got.Type != "error" || !strings.Contains(got.Error, "cmd1") {
		t.Errorf("got %+v", got)
	}
	f.do("DELETE", "/boxes/one", "").want(t, 204)
}
