// Package event holds what happened in a run as typed values. Whoever tells the
// user about it, the terminal, the log and the file of --events, reads this one
// stream.
package event

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// This file defines the events. Their tags are what docs/events.md says of them.

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

// Tee returns a sink that hands each event to all of these in turn.
func Tee(sinks ...Sink) Sink {
	return func(e Event) {
		for _, s := range sinks {
			s.Emit(e)
		}
	}
}

// Place is where in the workflow something happened.
type Place struct {
	Task string `json:"task,omitempty" doc:"the line of execution, such as main"`
	Pos  string `json:"pos,omitempty" doc:"FILE:LINE:COLUMN of the call in the workflow"`
}

// Resource is what an event is about that is created and released.
type Resource struct {
	Kind string `json:"kind" doc:"sandbox, template, volume, pool or snapshot"`
	Name string `json:"name" doc:"what it is called"`
}

func (r Resource) String() string { return fmt.Sprintf("%s %q", r.Kind, r.Name) }

// Create says that a resource is about to be asked for.
type Create struct {
	Place
	Span int `json:"span" doc:"the number that the created event will have as well"`
	Resource
}

// Created says what came of it.
type Created struct {
	Place
	Span int `json:"span" doc:"the number of the create event"`
	Resource
	ID      string  `json:"id,omitempty" doc:"what the server calls it"`
	Seconds float64 `json:"seconds" doc:"how long it took"`
	Error   string  `json:"error,omitempty" doc:"why it was not created"`
}

// Start says that a command is run.
type Start struct {
	Place
	Span    int    `json:"span" doc:"the number that its output and exit events will have as well"`
	Sandbox string `json:"sandbox" doc:"in which sandbox"`
	Command string `json:"command" doc:"the command line"`
}

// Output says that a command wrote something. What it wrote is not told.
type Output struct {
	Place
	Span    int    `json:"span" doc:"the number of the start event"`
	Sandbox string `json:"sandbox" doc:"in which sandbox"`
	Stream  string `json:"stream" doc:"stdout or stderr"`
	Bytes   int    `json:"bytes" doc:"how much"`
}

// Exit says that a command has ended, or that nobody listens to it any more.
type Exit struct {
	Place
	Span     int     `json:"span" doc:"the number of the start event"`
	Sandbox  string  `json:"sandbox" doc:"in which sandbox"`
	Command  string  `json:"command" doc:"the command line"`
	ExitCode *int    `json:"exit_code,omitempty" doc:"its exit code; absent if it is not known"`
	Reason   string  `json:"reason,omitempty" doc:"why the sandbox's limits ended it"`
	Seconds  float64 `json:"seconds" doc:"since the start event"`
	Error    string  `json:"error,omitempty" doc:"why the exit code is not known"`
}

// Release says that a resource is about to be deleted because its scope ends.
type Release struct {
	Place
	Span int `json:"span" doc:"the number that the released event will have as well"`
	Resource
}

// Released says what came of it.
type Released struct {
	Place
	Span int `json:"span" doc:"the number of the release event"`
	Resource
	Seconds float64 `json:"seconds" doc:"how long it took"`
	Error   string  `json:"error,omitempty" doc:"why it is still there"`
}

// Kept says that something was left because the user asked for it.
type Kept struct {
	Place
	Kind   string `json:"kind" doc:"sandbox, template, volume, pool or snapshot"`
	Name   string `json:"name" doc:"what it is called"`
	Reach  string `json:"reach" doc:"what a workflow has to say to reach it"`
	Delete string `json:"delete" doc:"what a workflow has to say to delete it"`
}

// Warning is something that the user should know although nothing failed.
type Warning struct {
	Place
	Text string `json:"text" doc:"what"`
}

// Log is a message of the workflow itself.
type Log struct {
	Place
	Level  string  `json:"level" doc:"info, warn or error"`
	Text   string  `json:"text" doc:"the message"`
	Fields []Field `json:"fields,omitempty" doc:"the keyword arguments, in their order, each with name and value"`
}

// Field is a name and a value that a log message carries.
type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Failure says why the run failed. It comes once, before End.
type Failure struct {
	Text string `json:"text" doc:"all that stderr shows of it, without colours: traceback, error, hint, what is left"`
}

// End is the last event of a run.
type End struct {
	ExitCode int     `json:"exit_code" doc:"the exit status of sbx-star"`
	Seconds  float64 `json:"seconds" doc:"how long the run took"`
}

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

func (e Create) line() string { return "creating " + e.Resource.String() }
func (e Created) line() string {
	return done("created", "could not create", e.Resource, e.Seconds, e.Error)
}
func (e Release) line() string { return "deleting " + e.Resource.String() }
func (e Released) line() string {
	return done("deleted", "could not delete", e.Resource, e.Seconds, e.Error)
}

func done(did, didNot string, what Resource, seconds float64, failure string) string {
	if failure != "" {
		return fmt.Sprintf("%s %s: %s", didNot, what, failure)
	}
	return fmt.Sprintf("%s %s (%s)", did, what, elapsed(seconds))
}

func (e Start) line() string  { return e.Sandbox + " $ " + e.Command }
func (e Output) line() string { return fmt.Sprintf("%s: %d bytes of %s", e.Sandbox, e.Bytes, e.Stream) }
func (e Exit) line() string {
	how := e.Error
	if e.ExitCode != nil {
		how = fmt.Sprintf("exit code %d", *e.ExitCode)
	}
	if e.Reason != "" {
		how += ", " + e.Reason
	}
	return fmt.Sprintf("%s: %s (%s): %s", e.Sandbox, how, elapsed(e.Seconds), e.Command)
}

func (e Failure) line() string { return "failed" }
func (e End) line() string {
	return fmt.Sprintf("ended with exit status %d (%s)", e.ExitCode, elapsed(e.Seconds))
}

// elapsed is a time as people read it.
func elapsed(seconds float64) string {
	switch {
	case seconds < 9.95:
		return fmt.Sprintf("%.1fs", seconds)
	case seconds < 60:
		return fmt.Sprintf("%.0fs", seconds)
	case seconds < 3600:
		return fmt.Sprintf("%dm%02ds", int(seconds)/60, int(seconds)%60)
	}
	return fmt.Sprintf("%dh%02dm", int(seconds)/3600, int(seconds)/60%60)
}

// Mask returns a sink that passes every text of every event through mask before
// it hands the event on: the one place where secrets are taken out of events.
func Mask(to Sink, mask func(string) string) Sink {
	return func(e Event) {
		v := reflect.New(reflect.TypeOf(e)).Elem()
		v.Set(reflect.ValueOf(e))
		maskTexts(v, mask)
		to.Emit(v.Interface().(Event))
	}
}

func maskTexts(v reflect.Value, mask func(string) string) {
	switch v.Kind() {
	case reflect.String:
		if v.Len() > 0 {
			v.SetString(mask(v.String()))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			maskTexts(v.Field(i), mask)
		}
	case reflect.Slice: // which others hold as well
		masked := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		reflect.Copy(masked, v)
		for i := range masked.Len() {
			maskTexts(masked.Index(i), mask)
		}
		v.Set(masked)
	}
}
