package event

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync"
	"time"
	"unicode"
)

// This file defines what becomes of events: lines on a terminal, lines of JSON.

// Level says how much of the events the terminal shows.
type Level int

const (
	Quiet   Level = iota - 1 // errors
	Normal                   // what the user should know
	Verbose                  // everything
)

// shows reports whether an event is told as a line.
func (l Level) shows(e Event) bool {
	switch e := e.(type) {
	case Failure:
		return false // it is rendered when the run has ended
	case Log:
		return l >= Normal || e.Level == "error"
	case Warning, Kept, Transfer:
		return l >= Normal
	case Tunnel:
		if e.State != TunnelOpened && e.State != TunnelClosed {
			return l >= Normal
		}
	}
	return l >= Verbose
}

// Terminal returns a sink that writes a line to w for each event that the user
// should know of.
func Terminal(w io.Writer) Sink { return Lines(w, Normal) }

// Lines is Terminal for the events of a level.
func Lines(w io.Writer, level Level) Sink {
	var mu sync.Mutex
	return func(e Event) {
		if !level.shows(e) {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(w, "sbx-star: %s\n", printable(e.line()))
	}
}

// printable makes control characters visible: text that comes out of a sandbox
// must not command the terminal.
func printable(text string) string {
	var b strings.Builder
	for _, c := range strings.ToValidUTF8(text, "\ufffd") {
		switch {
		case c == '\n':
			b.WriteString("\n  ")
		case unicode.IsControl(c) && c != '\t':
			fmt.Fprintf(&b, "\\x%02x", c)
		default:
			b.WriteRune(c)
		}
	}
	return b.String()
}

// kinds are the events, by their names in JSON.
var kinds = []struct {
	name  string
	event Event
	about string
}{
	{"create", Create{}, "A resource is about to be asked for."},
	{"created", Created{}, "What came of that."},
	{"start", Start{}, "A command is run."},
	{"output", Output{}, "A command wrote something. What it wrote is not told."},
	{"exit", Exit{}, "A command has ended, or nobody listens to it any more."},
	{"tunnel", Tunnel{}, "Something happened to a tunnel."},
	{"transfer", Transfer{}, "A long transfer of files has come so far. A short one tells nothing."},
	{"release", Release{}, "A resource is about to be deleted, because its scope ends."},
	{"released", Released{}, "What came of that; also of a deletion that the workflow asked for itself."},
	{"kept", Kept{}, "A resource was left because of `--keep` or `--keep-on-failure`."},
	{"warning", Warning{}, "Something that the user should know although nothing failed."},
	{"log", Log{}, "A message of the workflow: `log.info`, `log.warn`, `log.error`."},
	{"failure", Failure{}, "Why the run failed. It comes once, before `end`."},
	{"end", End{}, "The last event of every run that was not killed."},
}

func nameOf(e Event) string {
	for _, k := range kinds {
		if reflect.TypeOf(k.event) == reflect.TypeOf(e) {
			return k.name
		}
	}
	panic("an event of this package has no name")
}

// JSON returns a sink that writes a line of JSON to w for each event, each by
// one write; docs/events.md says what is in it. After the first failure it
// writes nothing more, and tells failed of it.
func JSON(w io.Writer, now func() time.Time, failed func(error)) Sink {
	var mu sync.Mutex
	broken := false
	return func(e Event) {
		var encoded bytes.Buffer
		encoder := json.NewEncoder(&encoded)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(e); err != nil {
			panic(err) // events hold texts and numbers
		}
		body := encoded.Bytes() // with a newline
		mu.Lock()
		if broken {
			mu.Unlock()
			return
		}
		line := fmt.Appendf(nil, `{"time":%q,"event":%q`, now().UTC().Format("2006-01-02T15:04:05.000Z"), nameOf(e))
		line = append(line, ',') // no event is without fields
		_, err := w.Write(append(line, body[1:]...))
		broken = err != nil
		mu.Unlock()
		if err != nil {
			failed(err)
		}
	}
}

// Schema is docs/events.md: all events and what is in each.
func Schema() string {
	var b strings.Builder
	b.WriteString("# Events\n\n" +
		"`sbx-star --events FILE` writes what happens in a run to FILE, a JSON object on each line, as it happens. FILE is emptied first; it may be a pipe or `/dev/fd/N`.\n" +
		"Every object has the fields below, then those of its event. Fields and events may be added; none is taken away. Fields marked with ? are absent when they are empty.\n" +
		"The values of `host.secret` are masked. This page is made from the types of the package `event`.\n\n" +
		"| field | type | what |\n|---|---|---|\n" +
		"| `time` | string | when, in UTC, to the millisecond |\n| `event` | string | which event |\n")
	for _, k := range kinds {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| field | type | what |\n|---|---|---|\n", k.name, k.about)
		for _, f := range reflect.VisibleFields(reflect.TypeOf(k.event)) {
			if f.Anonymous {
				continue
			}
			name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
			optional := ""
			if rest == "omitempty" {
				optional = "?"
			}
			fmt.Fprintf(&b, "| `%s`%s | %s | %s |\n", name, optional, typeName(f.Type), f.Tag.Get("doc"))
		}
	}
	return b.String()
}

func typeName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		return typeName(t.Elem())
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "boolean"
	case reflect.Slice:
		return "list"
	}
	return "number"
}
