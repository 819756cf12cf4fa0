//go:build linux

package fakeserver

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sbx-star/sbx-star/server"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the orders to misbehave.

// ours is the generation of a server that has everything.
const ours = "ours"

// fault is one order.
type fault struct {
	order  string // as it was given
	kind   string
	value  string // after "kind="
	times  int    // still to come; negative is for ever
	method string // "" is any
	path   string // pattern of path.Match; "" is any
	after  int
	set    map[string]string

	delay  time.Duration
	code   uint16
	script []string
}

// kinds says what each kind of fault takes: the unit of its after, and its
// settings. WebSocket ones meet upgraded sockets only.
var kinds = map[string]struct {
	unit      string // "B", "messages" or ""
	settings  []string
	webSocket bool
}{
	"status":       {"", []string{"retry-after", "error", "message", "detail", "body"}, false},
	"delay":        {"", nil, false},
	"garbage":      {"", nil, false},
	"garbage-json": {"", nil, false},
	"cut":          {"B", nil, false},
	"cut-ws":       {"B", nil, true},
	"garbage-ws":   {"messages", nil, true},
	"close":        {"messages", nil, true},
	"split-utf8":   {"", nil, true},
	"frames":       {"", nil, true},
}

var (
	statusWord = regexp.MustCompile(`^[1-5][0-9][0-9]$`)
	timesWord  = regexp.MustCompile(`^x([0-9]+|\*)$`)
	methodWord = regexp.MustCompile(`^[A-Z]+$`)
	leaseID    = regexp.MustCompile(`"lease":{"id":"[^"]*"`)
	commandID  = regexp.MustCompile(`"command_id":"[^"]*"`)
)

// Fault orders the next misbehaviour. The first word says which, the others in
// any order whom it meets, "METHOD /path" with the path counted from behind the
// base URL or dataplane_url, and how often, "x3" or "x*"; it is once otherwise.
//
//	503 [retry-after=0] [error=Type] [message=…] [detail=…] [body=…]
//	                     answers with a status, in form A, C (detail) or raw
//	delay=200ms          answers later
//	garbage              answers with what is not HTTP
//	garbage-json         answers 200 with half a JSON object
//	cut after=100B       cuts the connection after so many bytes of a body
//
// and on the WebSocket of commands, unless a path is given, such as /tunnel, whose
// messages are not logged:
//
//	cut-ws after=17B     cuts the connection after so many bytes to the client
//	close=1001 after=2   closes with this code after so many messages
//	garbage-ws after=2   sends no frame after so many messages
//	split-utf8           cuts stdout inside of every character
//	frames=FILE          plays a script in place of the sandbox: each line a
//	                     message, in which $ID is the command's id, "close CODE",
//	                     "cut", or "read", which awaits a message
//
// "generation seed", "classic", "head" or "late" leaves out what a server of
// that time has not; "generation ours" has everything. "clear" takes all
// orders back.
func (s *Server) Fault(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("an order to misbehave says how")
	}
	switch args[0] {
	case "clear":
		s.faults.clear()
		return nil
	case "generation":
		if len(args) != 2 || !slices.Contains([]string{ours, wire.Seed, wire.Classic, wire.Head, wire.Late}, args[1]) {
			return fmt.Errorf("want: generation ours, seed, classic, head or late")
		}
		s.faults.setGeneration(args[1])
		return nil
	}
	f, err := parseFault(args)
	if err != nil {
		return fmt.Errorf("fault %s: %w", strings.Join(args, " "), err)
	}
	s.faults.add(f)
	return nil
}

func parseFault(args []string) (*fault, error) {
	f := &fault{order: strings.Join(args, " "), times: 1, set: map[string]string{}}
	f.kind, f.value, _ = strings.Cut(args[0], "=")
	if statusWord.MatchString(args[0]) {
		f.kind, f.value = "status", args[0]
	}
	kind, ok := kinds[f.kind]
	if !ok {
		return nil, fmt.Errorf("there is no such misbehaviour")
	}
	after := ""
	for _, word := range args[1:] {
		name, value, isSetting := strings.Cut(word, "=")
		switch {
		case timesWord.MatchString(word):
			if f.times = -1; word != "x*" {
				f.times, _ = strconv.Atoi(word[1:])
			}
		case methodWord.MatchString(word):
			f.method = word
		case strings.HasPrefix(word, "/"):
			f.path = word
			if _, err := path.Match(word, ""); err != nil {
				return nil, err
			}
		case isSetting && name == "after" && kind.unit != "":
			after = value
		case isSetting && slices.Contains(kind.settings, name):
			f.set[name] = value
		default:
			return nil, fmt.Errorf("what is %q here", word)
		}
	}
	if kind.webSocket && f.method == "" && f.path == "" {
		f.method, f.path = "GET", "/execute/ws"
	}
	if after != "" {
		number, isBytes := strings.CutSuffix(after, "B")
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 || isBytes != (kind.unit == "B") {
			return nil, fmt.Errorf("after takes a number of %s", map[bool]string{true: "bytes, such as 17B", false: "messages"}[kind.unit == "B"])
		}
		f.after = n
	}
	return f, f.parseValue()
}

// parseValue reads what the kind itself was given.
func (f *fault) parseValue() (err error) {
	switch f.kind {
	case "status":
	case "delay":
		f.delay, err = time.ParseDuration(f.value)
	case "close":
		var code uint64
		code, err = strconv.ParseUint(f.value, 10, 16)
		f.code = uint16(code)
	case "frames":
		var text []byte
		text, err = os.ReadFile(f.value)
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				f.script = append(f.script, line)
			}
		}
	default:
		if f.value != "" {
			err = fmt.Errorf("%s takes no value", f.kind)
		}
	}
	return err
}

func (f *fault) meets(r *http.Request) bool {
	if f.times == 0 || f.method != "" && f.method != r.Method || kinds[f.kind].webSocket && !isUpgrade(r) {
		return false
	}
	if f.path == "" {
		return true
	}
	ok, _ := path.Match(f.path, tail(r.URL.Path))
	return ok
}

// answerStatus is the fault "status".
func (f *fault) answerStatus(w http.ResponseWriter) {
	status, _ := strconv.Atoi(f.value)
	if v, ok := f.set["retry-after"]; ok {
		w.Header().Set("Retry-After", v)
	}
	body, raw := f.set["body"]
	if !raw {
		problem := wire.Problem{Type: f.set["error"], Message: f.set["message"]}
		if problem.Message == "" {
			problem.Message = http.StatusText(status)
		}
		var content any = problem
		if detail, ok := f.set["detail"]; ok {
			content = map[string]string{"detail": detail}
		}
		data, _ := json.Marshal(content) // strings only
		body = string(data)
		w.Header().Set("Content-Type", "application/json")
	}
	w.WriteHeader(status)
	fmt.Fprint(w, body)
}

// faults are the orders that stand.
type faults struct {
	mu         sync.Mutex
	orders     []*fault
	generation string
}

func (fs *faults) add(f *fault) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.orders = append(fs.orders, f)
}

func (fs *faults) clear() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.orders, fs.generation = nil, ""
}

func (fs *faults) setGeneration(name string) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.generation = name
}

// take returns the oldest fault of each kind that meets a request, and counts
// it. Of those that answer in place of the server one is enough.
func (fs *faults) take(r *http.Request) map[string]*fault {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	taken := map[string]*fault{}
	answered := false
	for _, f := range fs.orders {
		answers := f.kind == "status" || f.kind == "garbage" || f.kind == "garbage-json"
		if taken[f.kind] != nil || answers && answered || !f.meets(r) {
			continue
		}
		taken[f.kind] = f
		answered = answered || answers
		if f.times > 0 {
			f.times--
		}
	}
	return taken
}

// missing reports whether the generation that is played has no such endpoint.
func (fs *faults) missing(r *http.Request) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	words := strings.Split(strings.TrimPrefix(tail(r.URL.Path), "/"), "/")
	word := words[0]
	if word == "boxes" && len(words) > 2 {
		word += "/" + words[2]
	}
	if word == "download" && r.Method == http.MethodHead {
		word = "stat"
	}
	return slices.Contains(lacking[fs.generation], word)
}

// lacking is what a generation leaves out: first words of paths, and what is done
// to a box (protocol.md §2.0, §16.1).
var lacking = func() map[string][]string {
	before := []string{"info", "glob", "grep", "stat", "boxes/service-urls"}
	classic := append(before, "boxes/download-url", "registries")
	return map[string][]string{
		wire.Seed:    append(slices.Clone(classic), "snapshots", "boxes/snapshot", "boxes/start", "boxes/stop", "boxes/service-url"),
		wire.Classic: classic,
		wire.Head:    append(slices.Clone(before), "templates", "volumes", "pools"),
		wire.Late:    {"info", "templates", "volumes", "pools"},
	}
}()

// date takes from a request what the generation that is played does not know: the
// subprotocol of §15, before late ranges of files, and of the messages of commands
// what came later (§12).
func (fs *faults) date(r *http.Request) *http.Request {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.generation == "" || fs.generation == ours {
		return r
	}
	r.Header.Del("Sec-WebSocket-Protocol")
	if fs.generation != wire.Late {
		r.Header.Del("Range")
	}
	return server.Play(r, fs.generation)
}

// Pending lists the orders that have not come about as often as was said; those
// with "x*" never are.
func (s *Server) Pending() []string {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	var pending []string
	for _, f := range s.faults.orders {
		if f.times > 0 {
			pending = append(pending, f.order)
		}
	}
	return pending
}
