package workflow

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	"go.starlark.net/resolve"
	"go.starlark.net/syntax"

	"github.com/sbx-star/sbx-star/builtins"
	"github.com/sbx-star/sbx-star/client"
)

// This file defines how errors look: the only place where they become text for
// the user.

// Render writes what the user has to know of an error: where it happened, with
// the source line; what it is; and what to do about it, where that is known.
// Nothing is written for no error, and for an exit that was asked for.
func Render(w io.Writer, err error, color bool) {
	if err == nil {
		return
	}
	r := &renderer{color: color, mask: func(text string) string { return text }}
	var failure *Failure
	if errors.As(err, &failure) {
		r.sources = failure.sources
		if failure.mask != nil {
			r.mask = failure.mask
		}
		for _, report := range failure.Reports {
			r.report(report)
		}
		if failure.Left != nil {
			r.left(failure.Left)
		}
	} else {
		for _, report := range builtins.Reports(err) {
			r.report(report)
		}
	}
	io.WriteString(w, r.mask(r.out.String()))
}

type renderer struct {
	out     strings.Builder
	color   bool
	sources map[string][]byte
	mask    func(string) string
}

// What colours stand for.
const (
	red  = "1;31"
	cyan = "36"
	dim  = "2"
)

func (r *renderer) paint(color, text string) string {
	if !r.color {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

func (r *renderer) printf(format string, args ...any) { fmt.Fprintf(&r.out, format, args...) }

func (r *renderer) report(report builtins.Report) {
	err := report.Err
	var exit *ExitError
	var interrupted *Interrupted
	var load *LoadError
	switch {
	case errors.As(err, &exit):
		return
	case errors.As(err, &interrupted):
		at := ""
		if n := len(report.Traces); n > 0 {
			frames := report.Traces[n-1].Frames
			at = ", at " + frames[len(frames)-1].Pos.String()
		}
		r.printf("sbx-star: %s%s\n", clean(interrupted.Error()), at)
		return
	case errors.As(err, &load):
		for _, l := range load.Chain {
			r.printf("%s\n", r.paint(dim, l.Pos.String()+": loads "+l.Module))
		}
		err = load.Err
	}
	for i, trace := range report.Traces {
		r.trace(trace, i == len(report.Traces)-1)
	}

	var several resolve.ErrorList
	var syntaxError syntax.Error
	var at *positioned
	switch {
	case errors.As(err, &several):
		for _, e := range several {
			r.placed(e.Pos, e.Msg)
		}
	case errors.As(err, &syntaxError):
		r.placed(syntaxError.Pos, syntaxError.Msg)
	case errors.As(err, &at):
		r.placed(at.pos, at.err.Error())
	default:
		r.failure(err)
	}
}

// trace prints one stack, and of the last one the line that it ends in.
func (r *renderer) trace(trace builtins.Trace, last bool) {
	r.printf("%s", r.paint(dim, trace.String()))
	if last {
		frames := trace.Frames
		for len(frames) > 1 && builtins.InStd(frames[len(frames)-1]) {
			frames = frames[:len(frames)-1] // to the line that is the user's
		}
		r.line(frames[len(frames)-1].Pos, "    ")
	}
}

// placed prints an error that has a place in a file and no stack.
func (r *renderer) placed(pos syntax.Position, message string) {
	r.error(pos.String()+": "+message, "")
	r.line(pos, "    ")
}

// line prints a line of source, and below it where in the line.
func (r *renderer) line(pos syntax.Position, indent string) {
	lines := strings.Split(string(r.sources[pos.Filename()]), "\n")
	if pos.Line < 1 || int(pos.Line) > len(lines) {
		return
	}
	text := []rune(strings.TrimRight(lines[pos.Line-1], "\r"))
	if len(text) == 0 {
		return
	}
	before := text[:min(max(int(pos.Col)-1, 0), len(text))]
	below := strings.Map(func(c rune) rune {
		if c == '\t' {
			return c
		}
		return ' '
	}, string(before))
	r.printf("%s%s\n%s%s%s\n", indent, clean(string(text)), indent, below, r.paint(red, "^"))
}

// failure prints what an error is.
func (r *renderer) failure(err error) {
	var failed *builtins.CommandFailedError
	if errors.As(err, &failed) {
		first, _, _ := strings.Cut(err.Error(), "\n")
		r.error(first, builtins.TypeName(err))
		r.tail("  "+where(failed.Sandbox), failed.Result)
	} else {
		r.error(err.Error(), builtins.TypeName(err))
	}
	var command *builtins.CommandError
	if errors.As(err, &command) {
		r.printf("  %s; the command was: %s\n", clean(where(command.Sandbox)), clean(command.Command))
		var api *client.Error
		if errors.As(err, &api) && api.Stderr != "" {
			r.printf("  its stderr ends with:\n%s", indented(builtins.Tail(r.mask(api.Stderr)), "  "))
		}
	}
	var internal *builtins.InternalError
	if errors.As(err, &internal) {
		r.printf("%s", indented(string(internal.GoStack), "  "))
	}
	if hint := hintFor(err); hint != "" {
		r.printf("%s %s\n", r.paint(cyan, "sbx-star: hint:"), hint)
	}
}

func where(sandbox string) string {
	if sandbox == "" {
		return "on this machine"
	}
	return "in sandbox " + sandbox
}

// tail prints where a command ran and what it said last: most write to stderr
// why they fail, and some tools for tests to stdout.
func (r *renderer) tail(where string, result *client.Result) {
	if result.Reason != "" {
		r.printf("  %s\n", clean(r.mask(result.Reason)))
	}
	name, text := "stderr", builtins.Tail(r.mask(result.Stderr))
	if text == "" {
		name, text = "stdout", builtins.Tail(r.mask(result.Stdout))
	}
	if text == "" {
		r.printf("%s; it wrote nothing\n", clean(where))
		return
	}
	r.printf("%s; its %s ends with:\n%s", clean(where), name, indented(text, "    "))
}

// error prints the line, or the lines, that say what is wrong.
func (r *renderer) error(message, typeName string) {
	first, more, found := strings.Cut(r.mask(message), "\n")
	if typeName != "" {
		first = typeName + ": " + first
	}
	r.printf("%s %s\n", r.paint(red, "sbx-star: error:"), clean(first))
	if found {
		r.printf("%s", indented(more, "  "))
	}
}

func (r *renderer) left(e *ReleaseError) {
	r.error("what this run created and could not release is left behind:", "")
	for _, left := range e.Left {
		reason := left.Err.Error()
		if name := builtins.TypeName(left.Err); name != "" {
			reason = name + ": " + reason
		}
		r.printf("  %s %q: %s\n    delete it with: sbx-star -c '%s'\n", left.Kind, left.Name, clean(reason), left.Delete())
	}
	r.printf("%s sbx-star gc tries again to delete all of it\n", r.paint(cyan, "sbx-star: hint:"))
}

// indented is text with every line indented, ending with a newline.
func indented(text, indent string) string {
	var b strings.Builder
	for line := range strings.Lines(strings.TrimRight(text, "\n")) {
		b.WriteString(indent + clean(strings.TrimRight(line, "\r\n")) + "\n")
	}
	return b.String()
}

// clean makes control characters visible: text that comes out of a sandbox must
// not command the terminal.
func clean(text string) string {
	text = strings.ToValidUTF8(text, "\ufffd")
	if strings.IndexFunc(text, isControl) < 0 {
		return text
	}
	var b strings.Builder
	for _, c := range text {
		if isControl(c) {
			fmt.Fprintf(&b, "\\x%02x", c)
		} else {
			b.WriteRune(c)
		}
	}
	return b.String()
}

func isControl(c rune) bool { return unicode.IsControl(c) && c != '\t' && c != '\n' }

// hintFor is what to do about an error: what it says itself, or what goes for
// all errors of its kind.
func hintFor(err error) string {
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) {
		return hinted.Hint()
	}
	var usage *UsageError
	if errors.As(err, &usage) {
		return usage.Hint
	}
	var internal *builtins.InternalError
	if errors.As(err, &internal) {
		return "this is a bug of sbx-star; please report it with the lines above"
	}
	switch text := err.Error(); {
	case strings.Contains(text, "frozen "):
		return "what a module defines, and what crosses into a task, can no longer be changed: make a copy, or return what is new"
	case text == "Starlark stack overflow":
		return "a recursion that does not end? no more than 100,000 calls can be inside one another"
	}
	for _, h := range hints {
		if errors.Is(err, h.kind) {
			return h.hint
		}
	}
	return ""
}

var hints = []struct {
	kind *client.Kind
	hint string
}{
	{client.ErrAuthentication, "check the key: --api-key or SBX_STAR_API_KEY, or LANGSMITH_API_KEY with --remote"},
	{client.ErrCommandTimeout, "give the command more time with timeout = SECONDS; 0 is no limit"},
	{client.ErrQuotaExceeded, "delete what is no longer needed; sandbox.list() shows the sandboxes"},
	{client.ErrInUse, "delete first what was made from it"},
	{client.ErrNotReady, "wait until it is ready with sandbox.wait(name)"},
}
