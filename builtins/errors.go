package builtins

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/client"
)

// This file defines how failures look from Starlark: the types in errors, and
// the error values that attempt hands out.

// CommandFailedError is a command that was run with check=True and ended with
// another exit code than 0.
type CommandFailedError struct {
	Command string // without secrets
	Result  *client.Result
	Stderr  string // how it ends, without secrets
	Sandbox string // its name; "" is this machine
}

func (e *CommandFailedError) Error() string {
	text := fmt.Sprintf("the command exited with code %d: %s", e.Result.ExitCode, shorten(e.Command))
	if e.Result.Reason != "" {
		text += "\n" + e.Result.Reason
	}
	if e.Stderr != "" {
		text += "\n" + e.Stderr
	}
	return text
}

// CommandError is an error of the API that a command met.
type CommandError struct {
	Command string
	Err     error
	Sandbox string // its name; "" is this machine
}

func (e *CommandError) Error() string { return e.Err.Error() }
func (e *CommandError) Unwrap() error { return e.Err }

// ContextError is an error that has happened somewhere else than in the calls
// that led to it, such as in a deferred function.
type ContextError struct {
	What string // "deferred cleanup"
	Err  error
}

func (e *ContextError) Error() string { return e.What + ": " + e.Err.Error() }
func (e *ContextError) Unwrap() error { return e.Err }

// ExitError is how exit ends a workflow.
type ExitError struct{ Code int }

func (e *ExitError) Error() string { return fmt.Sprintf("exit(%d)", e.Code) }

// hinted is an error whose next step is known.
type hinted struct {
	error
	hint string
}

func (e *hinted) Unwrap() error { return e.error }
func (e *hinted) Hint() string  { return e.hint }

// What Tail keeps.
const (
	tailLines = 10
	tailBytes = 2000
)

// Tail is the end of a command's stderr, for messages: a few lines, without
// the newline after the last one.
func Tail(stderr string) string {
	s := strings.TrimRight(stderr, "\n")
	if len(s) > tailBytes {
		s = strings.ToValidUTF8(s[len(s)-tailBytes:], "")
	}
	lines := strings.Split(s, "\n")
	return strings.Join(lines[max(0, len(lines)-tailLines):], "\n")
}

// shorten is a command on one line of bearable length.
func shorten(command string) string {
	line, _, more := strings.Cut(strings.TrimSpace(command), "\n")
	if r := []rune(line); len(r) > 100 {
		line, more = string(r[:100]), true
	}
	if more {
		line += " …"
	}
	return line
}

// An errorType is a member of errors.
type errorType struct {
	name string
	is   func(error) bool
}

func (e *errorType) String() string        { return "errors." + e.name }
func (e *errorType) Type() string          { return "error_type" } // also of nil, for messages
func (e *errorType) Freeze()               {}
func (e *errorType) Truth() starlark.Bool  { return true }
func (e *errorType) Hash() (uint32, error) { return starlark.String(e.name).Hash() }

// ownErrors are the types that are not the SDK's, most special first.
var ownErrors = []*errorType{
	{"CommandFailedError", as[*CommandFailedError]},
	{"AssertionError", as[*AssertionError]},
	{"ExpectError", func(err error) bool { return as[*ExpectError](err) || as[*AssertionError](err) }},
	{"ArgumentError", as[*ArgumentError]},
	{"CancelledError", func(err error) bool { return errors.Is(err, context.Canceled) }},
}

// errorTypes are the types of errors in a list.
type errorTypes []*errorType

func (e *errorTypes) Unpack(v starlark.Value) error {
	list, ok := v.(starlark.Sequence)
	if !ok {
		return fmt.Errorf("got %s, want a list of types, as in [errors.ResourceTimeoutError]", v.Type())
	}
	*e = nil
	for element := range starlark.Elements(list) {
		typ, ok := element.(*errorType)
		if !ok {
			return fmt.Errorf("got %s in the list, want a type, as in errors.ResourceTimeoutError", element.Type())
		}
		*e = append(*e, typ)
	}
	return nil
}

func as[E error](err error) bool {
	var e E
	return errors.As(err, &e)
}

func newErrors() *namespace {
	members := starlark.StringDict{}
	for _, kind := range client.Kinds() {
		members[kind.Name()] = &errorType{kind.Name(), func(err error) bool { return errors.Is(err, kind) }}
	}
	for _, own := range ownErrors {
		members[own.name] = own
	}
	return &namespace{name: "errors", members: members}
}

// TypeName is the name of an error's type among errors, or "" if it has none
// there, as what fail raises and what Starlark itself finds wrong.
func TypeName(err error) string {
	var e *client.Error
	if errors.As(err, &e) && e.Kind != nil {
		return e.Kind.Name()
	}
	for _, own := range ownErrors {
		if own.is(err) {
			return own.name
		}
	}
	return ""
}

// attributesOf are the attributes that the SDK gives errors of a kind, beyond
// those of the kinds above it (protocol.md §3.2).
var attributesOf = map[*client.Kind][]string{
	client.ErrNotFound:                {"resource_type"},
	client.ErrTimeout:                 {"resource_type", "last_status"},
	client.ErrInUse:                   {"resource_type"},
	client.ErrAlreadyExists:           {"resource_type"},
	client.ErrNameConflict:            {"resource_type"},
	client.ErrValidation:              {"field", "details", "error_type"},
	client.ErrQuotaExceeded:           {"quota_type"},
	client.ErrCreation:                {"resource_type", "error_type"},
	client.ErrOperation:               {"operation", "error_type", "stdout", "stderr"},
	client.ErrCommandTimeout:          {"timeout"},
	client.ErrTunnelPortNotAllowed:    {"port"},
	client.ErrTunnelConnectionRefused: {"port"},
}

// errorValue is a failure that was caught.
type errorValue struct {
	caught error  // all of it, to be raised again
	err    error  // what went wrong
	trace  string // where
}

func newErrorValue(err error) *errorValue {
	first := Reports(err)[0]
	var trace strings.Builder
	for _, t := range first.Traces {
		trace.WriteString(t.String())
	}
	return &errorValue{caught: err, err: first.Err, trace: trace.String()}
}

var _ starlark.HasAttrs = (*errorValue)(nil)

func (e *errorValue) Type() string          { return "error" }
func (e *errorValue) Freeze()               {}
func (e *errorValue) Truth() starlark.Bool  { return true }
func (e *errorValue) Hash() (uint32, error) { return unhashable(e) }
func (e *errorValue) String() string {
	return fmt.Sprintf("error(type=%q, message=%q)", e.typeName(), e.err.Error())
}

func (e *errorValue) typeName() string {
	if name := TypeName(e.err); name != "" {
		return name
	}
	return "Error"
}

func (e *errorValue) AttrNames() []string {
	names := append([]string{"type", "message", "backtrace", "is_a"}, e.special()...)
	slices.Sort(names)
	return slices.Compact(names)
}

// special are the names of the attributes that depend on the type.
func (e *errorValue) special() (names []string) {
	var api *client.Error
	if errors.As(e.err, &api) {
		for k := api.Kind; k != nil; k = k.Parent() {
			names = append(names, attributesOf[k]...)
		}
	}
	if as[*CommandFailedError](e.err) {
		names = append(names, "command", "result")
	}
	if as[*TaskError](e.caught) {
		names = append(names, "index")
	}
	if as[*ExpectError](e.err) {
		names = append(names, "command", "pattern", "output")
	}
	return names
}

func (e *errorValue) Attr(name string) (starlark.Value, error) {
	switch name {
	case "type":
		return starlark.String(e.typeName()), nil
	case "message":
		return starlark.String(e.err.Error()), nil
	case "backtrace":
		return starlark.String(e.trace), nil
	case "is_a":
		return errorIsA.BindReceiver(e), nil
	}
	if !slices.Contains(e.special(), name) {
		return nil, noAttr(e.typeName(), name, e.AttrNames())
	}
	if name == "index" {
		var task *TaskError
		if errors.As(e.caught, &task) && task.Index >= 0 {
			return starlark.MakeInt(task.Index), nil
		}
		return starlark.None, nil
	}
	var failed *CommandFailedError
	if errors.As(e.err, &failed) {
		if name == "command" {
			return starlark.String(failed.Command), nil
		}
		return newResult(failed.Result, true), nil
	}
	var unmatched *ExpectError
	if errors.As(e.err, &unmatched) {
		return starlark.String(map[string]string{"command": unmatched.Command, "pattern": unmatched.Pattern, "output": unmatched.Output}[name]), nil
	}
	var api *client.Error
	errors.As(e.err, &api)
	text := map[string]string{
		"resource_type": api.ResourceType, "last_status": api.LastStatus, "field": api.Field, "quota_type": api.QuotaType,
		"error_type": api.ErrorType, "operation": api.Operation,
	}
	switch name {
	case "details":
		return toStarlark(reflect.ValueOf(api.Details), name), nil
	case "stdout":
		return starlark.String(api.Stdout), nil
	case "stderr":
		return starlark.String(api.Stderr), nil
	case "timeout":
		if api.Timeout > 0 {
			return starlark.Float(api.Timeout.Seconds()), nil
		}
	case "port":
		if api.Port > 0 {
			return starlark.MakeInt(api.Port), nil
		}
	default:
		if text[name] != "" {
			return starlark.String(text[name]), nil
		}
	}
	return starlark.None, nil
}

var errorIsA = builtin("Error.is_a", func(c *invocation) (starlark.Value, error) {
	var typ *errorType
	if err := c.unpack(&typ); err != nil {
		return nil, err
	}
	return starlark.Bool(typ.is(c.self.(*errorValue).err)), nil
})

// A Report is one thing that went wrong: what, and on the way to it the Starlark
// stacks of every thread that was involved, the outermost first.
type Report struct {
	Traces []Trace
	Err    error // without what only says where
}

// A Trace is the stack of one thread: its Starlark functions, not the builtins.
type Trace struct {
	Heading string // what ran on the thread, if that was not the workflow itself
	Frames  []starlark.CallFrame
}

func (t Trace) String() string {
	var b strings.Builder
	b.WriteString("Traceback (most recent call last)")
	if t.Heading != "" {
		b.WriteString(", in " + t.Heading)
	}
	b.WriteString(":\n")
	std := 0 // frames of the standard library in a row
	for i, f := range t.Frames {
		if InStd(f) {
			if std++; std > 1 {
				continue // how it does what it was called for
			}
		} else {
			std = 0
		}
		if more := len(t.Frames) - 2*framesShown; more > 1 && i >= framesShown && i < framesShown+more {
			if i == framesShown {
				fmt.Fprintf(&b, "  … %d more calls …\n", more)
			}
			continue
		}
		b.WriteString("  " + f.Pos.String() + ": in " + f.Name + "\n")
	}
	return b.String()
}

// InStd tells whether a frame is one of the standard library's.
func InStd(f starlark.CallFrame) bool { return strings.HasPrefix(f.Pos.Filename(), "@std//") }

// framesShown is how many frames of a long stack are shown at either end.
const framesShown = 8

// Reports takes an error apart: one report for each of several errors that were
// joined, in their order. That something was cancelled is left out where it was
// because of what else is reported.
func Reports(err error) []Report {
	var reports []Report
	var walk func(err error, heading string, traces []Trace) // heading: what runs where err was met
	walk = func(err error, heading string, traces []Trace) {
		switch e := err.(type) {
		case *starlark.EvalError:
			if cause := e.Unwrap(); cause != nil {
				walk(cause, heading, addTrace(traces, heading, e.CallStack))
				return
			}
			traces = addTrace(traces, heading, e.CallStack)
		case *StreamError:
			if n := len(traces); n > 0 && traces[n-1].Heading == heading {
				traces = traces[:n-1] // the thread was seen from a place that it came to later
			}
			walk(e.Err, heading, addTrace(traces, heading, e.Stack))
			return
		case *ContextError:
			walk(e.Err, e.What, traces)
			return
		case *TaskError:
			walk(e.Err, e.Task, traces)
			return
		case *InternalError:
			traces = addTrace(traces, heading, e.Stack)
		case interface{ Unwrap() []error }:
			for i, part := range e.Unwrap() {
				if i > 0 {
					traces = nil // the first report tells how it got here
				}
				walk(part, heading, traces)
			}
			return
		}
		if n := len(traces); heading != "" && (n == 0 || traces[n-1].Heading != heading) {
			err = &ContextError{heading, err} // no trace tells it
		}
		reports = append(reports, Report{traces, err})
	}
	walk(err, "", nil)
	var others []Report
	var pending []Trace // of the last one that was left out: the way to the next
	for _, r := range reports {
		if as[*CancelledError](r.Err) {
			pending = r.Traces
			continue
		}
		r.Traces = append(slices.Clone(pending), r.Traces...)
		others, pending = append(others, r), nil
	}
	if others != nil {
		return others
	}
	return reports
}

// addTrace appends a stack. One that goes on where the last one ends is the
// same thread, seen from a deeper call.
func addTrace(traces []Trace, heading string, stack starlark.CallStack) []Trace {
	frames := slices.DeleteFunc(slices.Clone(stack), func(f starlark.CallFrame) bool {
		return f.Pos.Filename() == "<builtin>"
	})
	if len(frames) == 0 {
		return traces
	}
	traces = slices.Clone(traces)
	if n := len(traces); n > 0 && traces[n-1].Heading == heading {
		last := traces[n-1].Frames
		if len(last) <= len(frames) && slices.Equal(last, frames[:len(last)]) {
			traces[n-1].Frames = frames
			return traces
		}
	}
	return append(traces, Trace{heading, frames})
}
