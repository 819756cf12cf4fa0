package builtins

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// This file defines expect: what a workflow takes for granted.

// AssertionError is something that was expected and is not so. It counts as an
// ExpectError, too, which is what output that was waited for fails with.
type AssertionError struct{ Message string }

func (e *AssertionError) Error() string { return e.Message }

func newExpect() *namespace {
	return &namespace{name: "expect", members: starlark.StringDict{
		"eq":       builtin("expect.eq", expectEq),
		"ne":       builtin("expect.ne", expectNe),
		"true":     builtin("expect.true", expectTrue),
		"contains": builtin("expect.contains", expectContains),
		"matches":  builtin("expect.matches", expectMatches),
		"fails":    builtin("expect.fails", expectFails),
		"success":  builtin("expect.success", expectSuccess),
		"golden":   builtin("expect.golden", expectGolden),
	}}
}

// unmet is a failed expectation. The user's own message comes first.
func unmet(message optional[string], format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if message.ptr != nil {
		text = *message.ptr + ": " + text
	}
	return &AssertionError{text}
}

func expectEq(c *invocation) (starlark.Value, error) {
	var got, want starlark.Value
	var message optional[string]
	if err := c.unpack(&got, &want, &message); err != nil {
		return nil, err
	}
	equal, err := starlark.Equal(got, want)
	if err != nil {
		return nil, err
	}
	if !equal {
		return nil, unmet(message, "%s", difference(got, want))
	}
	return starlark.None, nil
}

func expectNe(c *invocation) (starlark.Value, error) {
	var got, other starlark.Value
	var message optional[string]
	if err := c.unpack(&got, &other, &message); err != nil {
		return nil, err
	}
	equal, err := starlark.Equal(got, other)
	if err != nil {
		return nil, err
	}
	if equal {
		return nil, unmet(message, "got %s, want anything else", excerpt(got))
	}
	return starlark.None, nil
}

func expectTrue(c *invocation) (starlark.Value, error) {
	var condition starlark.Value
	var message optional[string]
	if err := c.unpack(&condition, &message); err != nil {
		return nil, err
	}
	if !condition.Truth() {
		return nil, unmet(message, "got %s, want something true", excerpt(condition))
	}
	return starlark.None, nil
}

func expectContains(c *invocation) (starlark.Value, error) {
	var whole, part starlark.Value
	var message optional[string]
	if err := c.unpack(&whole, &part, &message); err != nil {
		return nil, err
	}
	found, err := starlark.Binary(syntax.IN, part, whole)
	if err != nil {
		return nil, c.argumentError("%s is nothing that could contain %s", withArticle(whole.Type()), withArticle(part.Type()))
	}
	if !found.Truth() {
		return nil, unmet(message, "%s is not in %s", excerpt(part), excerpt(whole))
	}
	return starlark.None, nil
}

func expectMatches(c *invocation) (starlark.Value, error) {
	var s searched
	var re pattern
	var message optional[string]
	if err := c.unpack(&s, &re, &message); err != nil {
		return nil, err
	}
	match := s.first(re.Regexp)
	if match == starlark.None {
		return nil, unmet(message, "%s does not match %q", excerpt(output(s.text, s.isText)), re)
	}
	return match, nil
}

func expectFails(c *invocation) (starlark.Value, error) {
	var fn starlark.Callable
	var re optional[pattern]
	var kind optional[*errorType]
	var message optional[string]
	if err := c.unpack(&fn, &re, &kind, &message); err != nil {
		return nil, err
	}
	value, err := call(c.Task, fn, nil, nil)
	if err == nil {
		return nil, unmet(message, "%s returned %s, and should have failed", fn.Name(), excerpt(value))
	}
	if c.uncatchable(err) {
		return nil, err
	}
	caught := newErrorValue(err)
	if kind.ptr != nil && !(*kind.ptr).is(caught.err) {
		return nil, unmet(message, "%s failed with %s, which is no %s: %v", fn.Name(), caught.typeName(), (*kind.ptr).name, caught.err)
	}
	if re.ptr != nil && !re.ptr.MatchString(caught.err.Error()) {
		return nil, unmet(message, "%s failed, and its message does not match %q: %v", fn.Name(), re.ptr, caught.err)
	}
	return caught, nil
}

// uncatchable tells whether an error is none of what the workflow can deal with:
// the end of it, or a bug.
func (c *invocation) uncatchable(err error) bool {
	return c.cancelled() != nil || as[*ExitError](err) || as[*InternalError](err)
}

func expectSuccess(c *invocation) (starlark.Value, error) {
	var value starlark.Value
	var message optional[string]
	if err := c.unpack(&value, &message); err != nil {
		return nil, err
	}
	r, ok := value.(*record)
	if !ok || r.typ != "result" {
		return nil, c.argumentError("parameter result: got %s, want the result of a command", value.Type())
	}
	fields := r.msg.(resultFields)
	if fields.Success {
		return value, nil
	}
	text := fmt.Sprintf("the command exited with code %d", fields.ExitCode)
	for _, stream := range []struct {
		name string
		text starlark.Value
	}{{"stdout", fields.Stdout}, {"stderr", fields.Stderr}} {
		if tail := Tail(c.Run.Mask(joinText(starlark.Tuple{stream.text}, ""))); tail != "" {
			text += fmt.Sprintf("; its %s ends with\n%s\n", stream.name, tail)
		}
	}
	return nil, unmet(message, "%s", strings.TrimRight(text, "\n"))
}

func withArticle(noun string) string {
	if strings.ContainsRune("aeiou", rune(noun[0])) {
		return "an " + noun
	}
	return "a " + noun
}

func expectGolden(c *invocation) (starlark.Value, error) {
	var got data
	var file hostPath
	var message optional[string]
	if err := c.unpack(&got, &file, &message); err != nil {
		return nil, err
	}
	name := file.beside(c.Task)
	want, err := os.ReadFile(name)
	missing := errors.Is(err, fs.ErrNotExist)
	switch {
	case err == nil && string(want) == string(got):
		return starlark.None, nil
	case err != nil && !missing:
		return nil, err
	case c.Run.options.UpdateGolden:
		if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
			return nil, err
		}
		return starlark.None, os.WriteFile(name, got, 0o666)
	case missing:
		return nil, unmet(message, "there is no golden file %s; sbx-star test --update writes it", name)
	}
	return nil, unmet(message, "%s\nif that is right, sbx-star test --update makes it what is wanted", difference(starlark.String(got), starlark.String(want)))
}
