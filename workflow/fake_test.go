package workflow_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines a server that is as small as these tests allow. Its
// sandboxes run no shell: a command is a list of steps, separated by "; ", which
// are named at step below.

type fake struct {
	*httptest.Server
	t *testing.T

	mu        sync.Mutex
	requests  []string // "POST /boxes {…}", "exec …"
	boxes     map[string]*wire.Box
	templates map[string]*wire.Template
	snapshots *collection
	files     map[string][]byte
	sessions  map[string]*session
	info      *wire.Info
	faults    map[string]http.HandlerFunc // in place of what "POST /boxes" would do
	slept     bool
	sockets   sync.WaitGroup
}

type session struct {
	output [2]string
	exit   int
}

func newFake(t *testing.T) *fake {
	f := &fake{t: t, boxes: map[string]*wire.Box{}, templates: map[string]*wire.Template{}, files: map[string][]byte{},
		sessions: map[string]*session{}, faults: map[string]http.HandlerFunc{},
		info: &wire.Info{Generations: []string{wire.Seed, wire.Classic, wire.Head, wire.Late},
			Enforces: wire.Enforces{CPU: true, Memory: true, Pids: true, Storage: true}}}
	mux := http.NewServeMux()
	handle := func(pattern string, h http.HandlerFunc) {
		mux.HandleFunc(strings.Replace(pattern, " ", " /v2/sandboxes", 1), func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(strings.NewReader(string(body)))
			short := r.Method + " " + strings.TrimPrefix(r.URL.Path, "/v2/sandboxes")
			f.mu.Lock()
			f.requests = append(f.requests, strings.TrimSpace(short+" "+string(body)))
			fault := f.faults[short]
			f.mu.Unlock()
			if fault != nil {
				fault(w, r)
				return
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			h(w, r)
		})
	}
	handle("GET /info", func(w http.ResponseWriter, r *http.Request) {
		if f.info == nil {
			refuse(w, 404, "NotFound", "no such endpoint")
			return
		}
		answer(w, f.info)
	})
	handle("POST /boxes", f.createBox)
	handle("GET /boxes", func(w http.ResponseWriter, r *http.Request) {
		var list wire.BoxList
		for _, box := range f.boxes {
			list.Boxes = append(list.Boxes, *box)
		}
		slices.SortFunc(list.Boxes, func(a, b wire.Box) int { return strings.Compare(a.Name, b.Name) })
		answer(w, list)
	})
	handle("GET /boxes/{name}", f.box(func(w http.ResponseWriter, r *http.Request, box *wire.Box) { answer(w, box) }))
	handle("GET /boxes/{name}/status", f.box(func(w http.ResponseWriter, r *http.Request, box *wire.Box) {
		answer(w, wire.BoxStatus{Status: box.Status})
	}))
	handle("PATCH /boxes/{name}", f.box(func(w http.ResponseWriter, r *http.Request, box *wire.Box) {
		var u wire.BoxUpdate
		json.NewDecoder(r.Body).Decode(&u)
		if u.Name != nil {
			delete(f.boxes, box.Name)
			box.Name = *u.Name
			f.boxes[box.Name] = box
		}
		if u.IdleTTLSeconds != nil {
			box.IdleTTLSeconds = u.IdleTTLSeconds
		}
		answer(w, box)
	}))
	handle("DELETE /boxes/{name}", f.box(func(w http.ResponseWriter, r *http.Request, box *wire.Box) {
		delete(f.boxes, box.Name)
		w.WriteHeader(204)
	}))
	handle("POST /templates", func(w http.ResponseWriter, r *http.Request) {
		var c wire.TemplateCreate
		json.NewDecoder(r.Body).Decode(&c)
		if f.templates[c.Name] != nil {
			refuse(w, 409, "Conflict", "template "+c.Name+" exists")
			return
		}
		t := &wire.Template{ID: "t-" + c.Name, Name: c.Name, Image: c.Image, Resources: c.Resources, VolumeMounts: c.VolumeMounts}
		f.templates[c.Name] = t
		answer(w, t)
	})
	handle("GET /templates", func(w http.ResponseWriter, r *http.Request) {
		var list wire.TemplateList
		for _, t := range f.templates {
			list.Templates = append(list.Templates, *t)
		}
		answer(w, list)
	})
	template := func(h func(http.ResponseWriter, *http.Request, *wire.Template)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if t := f.templates[r.PathValue("name")]; t != nil {
				h(w, r, t)
			} else {
				refuse(w, 404, "NotFound", "no template "+r.PathValue("name"))
			}
		}
	}
	handle("GET /templates/{name}", template(func(w http.ResponseWriter, r *http.Request, t *wire.Template) { answer(w, t) }))
	handle("PATCH /templates/{name}", template(func(w http.ResponseWriter, r *http.Request, t *wire.Template) {
		var u wire.TemplateUpdate
		json.NewDecoder(r.Body).Decode(&u)
		delete(f.templates, t.Name)
		t.Name = u.Name
		f.templates[t.Name] = t
		answer(w, t)
	}))
	handle("DELETE /templates/{name}", template(func(w http.ResponseWriter, r *http.Request, t *wire.Template) {
		delete(f.templates, t.Name)
		w.WriteHeader(204)
	}))
	handle("POST /boxes/{name}/start", f.box(func(w http.ResponseWriter, r *http.Request, box *wire.Box) {
		box.Status = wire.StatusReady
		w.WriteHeader(202)
	}))
	handle("POST /boxes/{name}/stop", f.box(func(w http.ResponseWriter, r *http.Request, box *wire.Box) {
		box.Status = wire.StatusStopped
		w.WriteHeader(204)
	}))
	f.serveServices(handle, mux)
	f.serveSearches(mux)
	for _, col := range f.collections() {
		col.serve(handle)
	}
	handle("POST /boxes/{name}/snapshot", f.box(func(w http.ResponseWriter, r *http.Request, box *wire.Box) { f.snapshots.create(w, r) }))
	mux.HandleFunc("POST /data/{name}/upload", func(w http.ResponseWriter, r *http.Request) {
		file, _, err := r.FormFile(wire.UploadField)
		if err != nil {
			refuse(w, 400, wire.ErrWrite, err.Error())
			return
		}
		content, _ := io.ReadAll(file)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.files[r.URL.Query().Get("path")] = content
		answer(w, wire.Uploaded{})
	})
	mux.HandleFunc("GET /data/{name}/download", func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Query().Get("path")
		f.mu.Lock()
		content, ok := f.files[path]
		f.mu.Unlock()
		switch {
		case path == "/slow":
			<-r.Context().Done()
		case !ok:
			refuse(w, 404, wire.ErrFileNotFound, "no file "+path)
		default:
			w.Header().Set("ETag", `"e"`)
			w.Header().Set("Content-Type", "application/octet-stream")
			http.ServeContent(w, r, "", time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), bytes.NewReader(content))
		}
	})
	mux.HandleFunc("GET /data/{name}/execute/ws", f.socket)
	mux.HandleFunc("GET /data/{name}/tunnel", f.tunnel)
	f.Server = httptest.NewServer(mux)
	t.Cleanup(func() {
		f.Server.CloseClientConnections()
		f.Server.Close()
		f.sockets.Wait()
	})
	return f
}

func (f *fake) client() *client.Client {
	none := 0
	c, err := client.New(client.Options{Endpoint: f.URL + "/v2/sandboxes", MaxRetries: &none})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(c.Close)
	return c
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, status int, errorType, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(wire.Problem{Type: errorType, Message: message})
}

func (f *fake) createBox(w http.ResponseWriter, r *http.Request) {
	var c wire.BoxCreate
	if err := json.NewDecoder(r.Body).Decode(&c); err != nil {
		refuse(w, 400, "BadRequest", err.Error())
		return
	}
	if c.Name == "" {
		c.Name = fmt.Sprintf("box-%d", len(f.boxes)+1)
	}
	if f.boxes[c.Name] != nil {
		refuse(w, 409, "Conflict", "sandbox "+c.Name+" exists")
		return
	}
	box := &wire.Box{
		ID: "id-" + c.Name, Name: c.Name, TemplateName: c.TemplateName, Status: wire.StatusReady, DataplaneURL: f.URL + "/data/" + c.Name,
		CreatedAt: "2020-01-01T00:00:00Z", IdleTTLSeconds: c.IdleTTLSeconds, VCPUs: c.VCPUs, MemBytes: c.MemBytes, Labels: c.Labels,
		SnapshotID: c.SnapshotID, RunConfig: c.RunConfig,
	}
	f.boxes[c.Name] = box
	answer(w, box)
}

func (f *fake) box(h func(http.ResponseWriter, *http.Request, *wire.Box)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if box := f.boxes[r.PathValue("name")]; box != nil {
			h(w, r, box)
		} else {
			refuse(w, 404, "NotFound", "no sandbox "+r.PathValue("name"))
		}
	}
}

// socket runs one command.
func (f *fake) socket(w http.ResponseWriter, r *http.Request) {
	conn, err := new(websocket.Upgrader).Upgrade(w, r, nil)
	if err != nil {
		return
	}
	f.sockets.Add(1)
	defer f.sockets.Done()
	defer conn.Close()
	send := func(m wire.Message) {
		text, _ := wire.EncodeMessage(m)
		conn.WriteMessage(websocket.TextMessage, text)
	}
	receive := func() wire.Message {
		_, text, err := conn.ReadMessage()
		if err != nil {
			return nil
		}
		m, _ := wire.DecodeMessage(text)
		return m
	}
	switch first := receive().(type) {
	case *wire.Reconnect:
		f.mu.Lock()
		s := f.sessions[first.CommandID]
		f.mu.Unlock()
		if s == nil {
			send(&wire.ExecError{Error: "session expired", ErrorType: wire.ErrSessionExpired})
			return
		}
		send(&wire.Started{CommandID: first.CommandID, PID: 7})
		if rest := s.output[0][first.StdoutOffset:]; rest != "" {
			send(&wire.Output{Stream: wire.Stdout, Data: wire.Text(rest), Offset: first.StdoutOffset})
		}
		send(&wire.Exit{ExitCode: s.exit})
	case *wire.Execute:
		if strings.HasPrefix(first.Command.Line, "while :; do\nfor table in /proc/net/tcp") {
			first.Command.Line = "wait for " + portScript.FindString(first.Command.Line)
		}
		shown := *first
		shown.CommandID = ""
		text, _ := json.Marshal(&shown)
		f.mu.Lock()
		f.requests = append(f.requests, "exec "+string(text))
		f.mu.Unlock()
		send(&wire.Started{CommandID: first.CommandID, PID: 7})
		s := &session{}
		for _, step := range strings.Split(first.Command.Line, "; ") {
			if !f.step(s, first, step, conn, send, receive) {
				return
			}
		}
		f.mu.Lock()
		f.sessions[first.CommandID] = s
		f.mu.Unlock()
		send(&wire.Exit{ExitCode: s.exit})
	}
	for receive() != nil { // until the client goes
	}
}

var portScript = regexp.MustCompile(`0A:[0-9A-F]{4}`)

// step does one step of a command, and tells whether there is a next:
//
//	out TEXT, err TEXT   writes, where \n is a newline
//	exit N               sets the exit code
//	env NAME             writes a variable
//	cat                  copies stdin until it is closed
//	once                 copies one message from stdin
//	hang                 waits for kill
//	wait for 0A:PORT     is what the script of wait_for_port becomes: 8080 is
//	                     open, 8081 too, and there is no sleep to find that out
//	                     at once, and 8082 is never; anything else is an error
//	late                 ends with CommandTimeout
//	gap                  leaves out 5 bytes of stdout
//	cut                  closes with 1001, and forgets the command
func (f *fake) step(s *session, e *wire.Execute, step string, conn *websocket.Conn, send func(wire.Message), receive func() wire.Message) bool {
	name, arg, _ := strings.Cut(step, " ")
	write := func(i int, text string) {
		send(&wire.Output{Stream: []string{wire.Stdout, wire.Stderr}[i], Data: wire.Text(text), Offset: int64(len(s.output[i]))})
		s.output[i] += text
	}
	arg = strings.ReplaceAll(arg, `\n`, "\n")
	switch name {
	case "out":
		write(0, arg)
	case "err":
		write(1, arg)
	case "exit":
		s.exit, _ = strconv.Atoi(arg)
	case "env":
		write(0, e.Env[arg])
	case "cat":
		for !e.CloseStdin {
			switch m := receive().(type) {
			case *wire.Input:
				write(0, m.Data)
				continue
			case *wire.Kill:
				s.exit = 137
			case nil:
				return false
			}
			break
		}
	case "once":
		if m, ok := receive().(*wire.Input); ok {
			write(0, m.Data)
		}
	case "hang":
		for {
			switch receive().(type) {
			case *wire.Kill:
				s.exit = 137
				return true
			case nil:
				return false
			}
		}
	case "wait":
		switch arg {
		case "for 0A:1F90":
		case "for 0A:1F91":
			if f.slept = !f.slept; f.slept {
				s.exit = 3
			}
		case "for 0A:1F92":
			return f.step(s, e, "late", conn, send, receive)
		default:
			s.exit = 127
		}
	case "late":
		send(&wire.ExecError{Error: "the command took too long", ErrorType: wire.ErrCommandTimeout})
		return false
	case "gap":
		s.output[0] += "-----"
	case "cut":
		conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseGoingAway, ""), time.Now().Add(time.Second))
		return false
	default:
		send(&wire.ExecError{Error: "no such step: " + name, ErrorType: wire.ErrCommand})
		return false
	}
	return true
}
