//go:build linux

package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/runtime/process"
	"github.com/sbx-star/sbx-star/server"
)

// This file defines the fixture: a server, steps of request and answer, and
// scripts of WebSocket messages, which share variables.

func TestMain(m *testing.M) {
	process.Child()
	flag.Set("test.parallel", "8")                                // those that are parallel wait, and take no processor
	os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0") // of the daemons, which end all the time
	os.Exit(m.Run())
}

const (
	key  = "sesame"
	base = "/v2/sandboxes"
)

// The generations of protocol.md, by their first letters.
const (
	seed    = "seed"
	classic = "classic"
	head    = "head"
	late    = "late"
)

// fixture is a server with its clients. What one step binds to a variable, the
// next ones can send.
type fixture struct {
	*testing.T
	options    server.Options
	server     *server.Server
	url        string // of the server, less any path
	generation string // of the server, if it is of one alone
	vars       map[string]any
}

// serve starts a server, which ends with the test and everything of it.
func serve(t *testing.T, set func(*server.Options)) *fixture {
	t.Helper()
	options := server.Options{
		Runtime:    process.New(process.Options{AnyImage: true}),
		StateDir:   t.TempDir(),
		APIKey:     key,
		BestEffort: true,
	}
	if set != nil {
		set(&options)
	}
	f := &fixture{T: t, options: options, vars: map[string]any{}}
	f.start()
	t.Cleanup(f.deleteAll)
	return f
}

// start starts a server, beside or after the one before it.
func (f *fixture) start() {
	f.Helper()
	s, err := server.New(f.options)
	if err != nil {
		f.Fatal(err)
	}
	h := httptest.NewServer(s)
	f.Cleanup(func() {
		s.Close()
		h.Close()
	})
	f.server, f.url = s, h.URL
}

// serveAs starts a server of some generations.
func serveAs(t *testing.T, generations ...string) *fixture {
	t.Helper()
	return serve(t, func(o *server.Options) { o.Generations = generations })
}

// generations are those that the server offers.
func generations(t *testing.T) []string {
	t.Helper()
	f := serve(t, nil)
	f.do(step{"GET /info", "", 200, `{"generations":"$g"}`})
	var names []string
	for _, name := range f.vars["g"].([]any) {
		names = append(names, name.(string))
	}
	return names
}

// eachGeneration runs a test against a server of each generation alone.
func eachGeneration(t *testing.T, test func(f *fixture, generation string)) {
	for _, g := range generations(t) {
		t.Run(g, func(t *testing.T) { test(serveAs(t, g), g) })
	}
}

// each runs a test against a server of all generations together, and against
// one of each of those that have what is tested, alone. What a sandbox has to be
// made from there is $source, with a comma.
func each(t *testing.T, in string, test func(t *testing.T, f *fixture)) {
	eachWith(t, in, nil, test)
}

// eachWith is each, with servers that are set up further.
func eachWith(t *testing.T, in string, set func(*server.Options), test func(t *testing.T, f *fixture)) {
	t.Run("together", func(t *testing.T) {
		test(t, serve(t, set))
	})
	for _, g := range generations(t) {
		if in != "all" && !slices.Contains(strings.Fields(in), g) {
			continue
		}
		t.Run(g, func(t *testing.T) {
			f := serve(t, func(o *server.Options) {
				o.Generations = []string{g}
				if set != nil {
					set(o)
				}
			})
			f.generation = g
			test(t, f)
		})
	}
}

// has reports whether the server is of one of these generations.
func (f *fixture) has(generations string) bool {
	return f.generation == "" || slices.Contains(strings.Fields(generations), f.generation)
}

// doIn is do, on a server of these generations.
func (f *fixture) doIn(generations string, steps ...step) {
	f.Helper()
	if f.has(generations) {
		f.do(steps...)
	}
}

// old reports whether every sandbox of the server is made from a template.
func (f *fixture) old() bool { return f.generation == seed || f.generation == classic }

// source is what every sandbox has to be made from.
func (f *fixture) source() string {
	if !f.old() {
		return ""
	}
	if f.vars["source"] == nil {
		f.vars["source"] = `"template_name":"source",`
		f.do(step{"POST /templates", `{"name":"source",` + template + `}`, 201, ``})
	}
	return f.vars["source"].(string)
}

// deleteAll removes every sandbox. Those of pools are not listed and go first.
func (f *fixture) deleteAll() {
	s, err := server.New(server.Options{Runtime: process.New(process.Options{AnyImage: true}), StateDir: f.options.StateDir})
	if err != nil {
		f.Error(err)
		return
	}
	defer s.Close()
	for _, kind := range []struct{ path, list string }{{"/pools", "pools"}, {"/boxes", "sandboxes"}} {
		var answer map[string][]struct{ ID string }
		json.Unmarshal(direct(s, "GET", kind.path).Body.Bytes(), &answer)
		for _, item := range answer[kind.list] {
			if a := direct(s, "DELETE", kind.path+"/"+item.ID); a.Code != 204 {
				f.Errorf("clean up %s: %s", kind.path, a.Body)
			}
		}
	}
}

func direct(s *server.Server, method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest(method, "http://127.0.0.1"+base+path, nil))
	return w
}

// step is a request and what its answer must be.
//
// ask is "METHOD path", below the base URL, or absolute if it starts with "!" or
// a scheme; lines after it are headers. $name stands for a variable.
//
// want is a JSON value that the answer must have, in which objects may lack
// fields, null is also an absent one, "*" is any text that is not empty, "~x" is
// text with x in it, "$name/x" is that with the variable in it, and "$name" binds a variable, or is what it was bound to.
// "=x" is the text x instead of JSON, "" is anything. Lines "Name: value" before
// it are headers, in the same way.
type step struct {
	ask, body string
	status    int
	want      string
}

func (f *fixture) do(steps ...step) {
	f.Helper()
	for _, s := range steps {
		if problem := f.try(s); problem != "" {
			f.Errorf("%s %s: %s", s.ask, cut(s.body), problem)
		}
	}
}

// until repeats a step until it holds.
func (f *fixture) until(s step) {
	f.Helper()
	problem := f.try(s)
	for end := time.Now().Add(20 * time.Second); problem != ""; problem = f.try(s) {
		if time.Now().After(end) {
			f.Fatalf("%s %s: %s", s.ask, cut(s.body), problem)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (f *fixture) try(s step) (problem string) {
	res, body, err := f.send(context.Background(), s.ask, s.body)
	if err != nil {
		return err.Error()
	}
	if res.StatusCode != s.status {
		return fmt.Sprintf("got %d %s, want %d", res.StatusCode, cut(string(body)), s.status)
	}
	if problem := form(res, body, strings.Contains(s.ask, " /pools")); problem != "" {
		return problem
	}
	want := s.want
	for wantHeader.MatchString(want) {
		line, rest, _ := strings.Cut(want, "\n")
		name, value, _ := strings.Cut(line, ": ")
		if problem := f.match(name, value, res.Header.Get(name)); problem != "" {
			return problem
		}
		want = rest
	}
	switch {
	case want == "":
		return ""
	case want[0] == '=':
		if got := string(body); got != f.expand(want[1:]) {
			return fmt.Sprintf("got %q, want %q", cut(got), want[1:])
		}
		return ""
	}
	return f.matchJSON(want, body)
}

var wantHeader = regexp.MustCompile(`^[A-Z][A-Za-z-]+: `)

// send sends a request.
func (f *fixture) send(ctx context.Context, ask, body string) (*http.Response, []byte, error) {
	lines := strings.Split(f.expand(ask), "\n")
	method, target, _ := strings.Cut(lines[0], " ")
	if rest, ok := strings.CutPrefix(target, "!"); ok {
		target = f.url + rest
	} else if strings.HasPrefix(target, "/") {
		target = f.url + base + target
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, target, strings.NewReader(f.expand(body)))
	if err != nil {
		return nil, nil, err
	}
	r.Header.Set("X-Api-Key", key)
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ": ")
		switch {
		case name == "Host":
			r.Host = value
		case value == "":
			r.Header.Del(name)
		default:
			r.Header.Set(name, value)
		}
	}
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	return res, data, err
}

func (f *fixture) expand(text string) string {
	return os.Expand(text, func(name string) string {
		if name == "source" && f.vars[name] == nil {
			return f.source()
		}
		if value, ok := f.vars[name]; ok {
			return fmt.Sprint(value)
		}
		return "$" + name
	})
}

// form checks what holds for every answer (protocol.md §3.1, §13).
func form(res *http.Response, body []byte, plain bool) string {
	switch {
	case res.StatusCode == 204 && len(body) > 0:
		return fmt.Sprintf("204 with the body %q", body)
	case res.StatusCode < 400, res.Request.Method == "HEAD":
		return ""
	case res.Header.Get("Content-Type") != "application/json":
		return "an error that is " + res.Header.Get("Content-Type")
	}
	var answer struct{ Detail json.RawMessage }
	if err := json.Unmarshal(body, &answer); err != nil {
		return err.Error()
	}
	var a struct {
		Error, Message string
		ErrorID        string `json:"error_id"`
	}
	var b []struct {
		Loc       []any
		Msg, Type string
	}
	switch {
	case json.Unmarshal(answer.Detail, &a) == nil:
		if a.Error == "" || a.Message == "" || (a.ErrorID != "") != (res.StatusCode >= 500) {
			return fmt.Sprintf("not form A: %d %s", res.StatusCode, body)
		}
	case json.Unmarshal(answer.Detail, &b) == nil:
		if len(b) == 0 || len(b[0].Loc) == 0 || b[0].Msg == "" || b[0].Type == "" || res.StatusCode != 422 {
			return fmt.Sprintf("not form B: %d %s", res.StatusCode, body)
		}
	case !plain || answer.Detail[0] != '"':
		return fmt.Sprintf("neither form A nor B: %s", body)
	}
	return ""
}

// formA is what an error of this type looks like.
func formA(kind string) string {
	return fmt.Sprintf(`{"detail":{"error":%q,"message":"*"}}`, kind)
}

// formB is what wrong input at a place looks like.
func formB(loc ...any) string {
	place, _ := json.Marshal(loc)
	return fmt.Sprintf(`{"detail":[{"loc":%s,"msg":"*","type":"value_error"}]}`, place)
}

// refused is the refusal of a field that cannot be honoured (protocol.md §15).
func refused(field string) string {
	return fmt.Sprintf(`{"detail":{"error":"SandboxConfig","message":"~%s"}}`, field)
}

func (f *fixture) matchJSON(want string, got []byte) string {
	var wanted, have any
	if err := json.Unmarshal([]byte(want), &wanted); err != nil {
		return fmt.Sprintf("the test wants %s: %v", want, err)
	}
	if err := json.Unmarshal(got, &have); err != nil {
		return fmt.Sprintf("%v in %s", err, cut(string(got)))
	}
	return f.match("", wanted, have)
}

func (f *fixture) match(at string, want, got any) string {
	wrong := fmt.Sprintf("%s is %v, want %v", at, got, want)
	switch want := want.(type) {
	case map[string]any:
		have, ok := got.(map[string]any)
		if !ok {
			return wrong
		}
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if problem := f.match(at+"."+name, want[name], have[name]); problem != "" {
				return problem
			}
		}
		return ""
	case []any:
		have, ok := got.([]any)
		if !ok || len(have) != len(want) {
			return wrong
		}
		for i := range want {
			if problem := f.match(fmt.Sprintf("%s[%d]", at, i), want[i], have[i]); problem != "" {
				return problem
			}
		}
		return ""
	case string:
		text, isText := got.(string)
		if name, ok := strings.CutPrefix(want, "$"); ok && strings.Contains(name, "/") {
			if text == f.expand(want) && isText {
				return ""
			}
			return wrong
		} else if ok {
			if f.vars[name] == nil && got != nil {
				f.vars[name] = got
			}
			want := f.vars[name]
			if a, b := fmt.Sprint(want), fmt.Sprint(got); a != b || got == nil {
				return fmt.Sprintf("%s is %s, want %s", at, b, a)
			}
			return ""
		}
		if part, ok := strings.CutPrefix(want, "~"); ok && isText && strings.Contains(text, f.expand(part)) || want == "*" && text != "" {
			return ""
		}
	}
	if got != want {
		return wrong
	}
	return ""
}

func cut(text string) string {
	if len(text) > 300 {
		return text[:300] + "…"
	}
	return text
}

// box makes a sandbox with some more fields, such as `"name":"b"`, and binds $id,
// $name and $url to it.
func (f *fixture) box(fields string) {
	f.Helper()
	for _, name := range []string{"id", "name", "url"} {
		delete(f.vars, name)
	}
	if !strings.Contains(fields, `"template_name"`) && !strings.Contains(fields, `"snapshot_`) {
		fields = strings.TrimSuffix(f.source()+fields, ",")
	}
	f.do(step{"POST /boxes", "{" + fields + "}", 201, `{"id":"$id","name":"$name","dataplane_url":"$url","status":"ready"}`})
	if f.vars["url"] == nil {
		f.FailNow()
	}
}

// upload is a step that writes a file of the sandbox at $url.
func upload(path, text string, status int, want string) step {
	return step{"POST $url/upload?path=" + path + "\nContent-Type: multipart/form-data; boundary=b",
		"--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"file\"\r\nContent-Type: application/octet-stream\r\n\r\n" + text + "\r\n--b--\r\n", status, want}
}

// execute is a step that runs a command in the sandbox at $url.
func execute(command string, code int, stdout string) step {
	body, _ := json.Marshal(map[string]any{"command": command, "timeout": 20, "shell": "/bin/bash"})
	want, _ := json.Marshal(map[string]any{"exit_code": code, "stdout": stdout})
	return step{"POST $url/execute", string(body), 200, string(want)}
}

// socket is a WebSocket to the sandbox at $url.
type socket struct {
	*fixture
	*websocket.Conn
}

func (f *fixture) dial(protocols ...string) *socket {
	f.Helper()
	url := "ws" + strings.TrimPrefix(f.vars["url"].(string), "http") + "/execute/ws"
	c, res, err := (&websocket.Dialer{EnableCompression: true, Subprotocols: protocols}).Dial(url, http.Header{"X-Api-Key": {key}})
	if err != nil {
		f.Fatalf("upgrade: %v, %v", err, res)
	}
	f.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	return &socket{f, c}
}

// play follows a script on a new socket: lines that start with C are messages of
// the client, those with S what the server must send, and a number the code with
// which it must close; then the client leaves. Binary messages of the client
// start with CB and of the server with SB, and are Go strings in quotes.
func (f *fixture) play(lines ...string) *socket {
	f.Helper()
	s := f.dial()
	s.play(lines...)
	return s
}

func (s *socket) play(lines ...string) {
	s.Helper()
	for _, line := range lines {
		who, message, _ := strings.Cut(line, " ")
		switch who {
		case "C":
			if err := s.WriteMessage(websocket.TextMessage, []byte(s.expand(message))); err != nil {
				s.Fatalf("%s: %v", line, err)
			}
		case "CB":
			if err := s.WriteMessage(websocket.BinaryMessage, []byte(unquote(message))); err != nil {
				s.Fatalf("%s: %v", line, err)
			}
		case "SB":
			if kind, data, err := s.ReadMessage(); err != nil || kind != websocket.BinaryMessage || string(data) != unquote(message) {
				s.Fatalf("got %q of kind %d, %v, want %s", cut(string(data)), kind, err, message)
			}
		case "S":
			_, data, err := s.ReadMessage()
			if err != nil {
				s.Fatalf("want %s: %v", message, err)
			}
			if problem := s.matchJSON(message, data); problem != "" {
				s.Fatalf("got %s: %s", cut(string(data)), problem)
			}
		default:
			_, data, err := s.ReadMessage()
			if closed, ok := errors.AsType[*websocket.CloseError](err); !ok || fmt.Sprint(closed.Code) != line {
				s.Fatalf("got %q, %v, want the close code %s", cut(string(data)), err, line)
			}
			s.Close()
		}
	}
}

func unquote(text string) string {
	plain, err := strconv.Unquote(text)
	if err != nil {
		panic(text + " is no string") // of a test
	}
	return plain
}

// message is any message of the server.
type message struct {
	Type, Data, Error string
	ErrorType         string `json:"error_type"`
	Offset            int64
	ExitCode          int `json:"exit_code"`
}

// rest reads the messages up to the last one, which it returns with the text of
// each stream. The streams must be contiguous from the given offsets.
func (s *socket) rest(stdout, stderr int64) (texts map[string]string, last message) {
	s.Helper()
	type stream struct {
		strings.Builder
		at int64
	}
	streams := map[string]*stream{"stdout": {at: stdout}, "stderr": {at: stderr}}
	for {
		var m message
		if err := s.ReadJSON(&m); err != nil {
			s.Fatal(err)
		}
		stream := streams[m.Type]
		if stream == nil {
			return map[string]string{"stdout": streams["stdout"].String(), "stderr": streams["stderr"].String()}, m
		}
		if m.Offset != stream.at || len(m.Data) > 64<<10 {
			s.Errorf("%s: %d bytes at %d, want them at %d", m.Type, len(m.Data), m.Offset, stream.at)
		}
		stream.WriteString(m.Data)
		stream.at = m.Offset + int64(len(m.Data))
	}
}

// strange is a runtime that may fail to do what the real one can.
type strange struct {
	runtime.Runtime
	create func(context.Context, runtime.Spec) error // comes first: a sandbox is made, unless there is an error
}

func (r strange) Create(ctx context.Context, spec runtime.Spec) (runtime.Instance, error) {
	if err := r.create(ctx, spec); err != nil {
		return nil, err
	}
	i, err := r.Runtime.Create(ctx, spec)
	if err == nil && strangeness(spec) == deaf {
		i = unheard{i}
	}
	return i, err
}

// unheard is a sandbox that cannot be reached, and lives.
type unheard struct{ runtime.Instance }

func (unheard) Dial(context.Context) (net.Conn, error) {
	return nil, errors.New("all its places are taken")
}

// raw sends bytes and returns what comes back.
func (f *fixture) raw(text string) string {
	f.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
	if err != nil {
		f.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		f.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		f.Fatal(err)
	}
	return string(answer)
}
