// Package event holds what happened in a run as typed values. Whoever tells the
// user about it, the terminal first of all, reads this one stream.
package event

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
)

// An Event is one of the types of this package.
type Event interface {
	// line is the event as the terminal shows it, without a newline.
	line() string
}

// A Sink takes events, from any goroutine. A nil Sink drops them.
type Sink func(Event)

// Emit hands e to the sink if there is one.
func (s Sink) Emit(e Event) {
	if s != nil {
		s(e)
	}
}

// Warning is something that the user should know although nothing failed.
type Warning struct{ Text string }

// Log is a message of the workflow itself.
type Log struct {
	Level  string // "info", "warn" or "error"
	Text   string
	Fields []Field // in the order in which they were given
}

// Field is a name and a value that a log message carries.
type Field struct{ Name, Value string }

// Kept says that something was left because the user asked for it. Reach and
// Delete are what a workflow has to say to do so.
type Kept struct{ Kind, Name, Reach, Delete string }

func (e Warning) line() string { return "warning: " + e.Text }

func (e Log) line() string {
	level := e.Level
	if level == "warn" {
		level = "warning"
	}
	var b strings.Builder
	b.WriteString(level + ": " + e.Text)
	for _, f := range e.Fields {
		value := f.Value
		if value == "" || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r == '"' || r == '=' }) {
			value = strconv.Quote(value)
		}
		b.WriteString(" " + f.Name + "=" + value)
	}
	return b.String()
}

func (e Kept) line() string {
	return fmt.Sprintf("kept: %s %q: reach it with %s, delete it with %s", e.Kind, e.Name, e.Reach, e.Delete)
}

// Terminal returns a sink that writes one line for each event to w.
func Terminal(w io.Writer) Sink {
	var mu sync.Mutex
	return func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(w, "sbx-star: %s\n", e.line())
	}
}
