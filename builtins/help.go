package builtins

import (
	"fmt"
	"slices"
	"strings"

	"go.starlark.net/starlark"
)

// This file defines help: what the stubs, or a function's own text, say of a value.

func help(c *invocation) (starlark.Value, error) {
	var value starlark.Value
	if err := c.unpack(&value); err != nil {
		return nil, err
	}
	return print(&invocation{Task: c.Task, stub: "print", name: "print", args: starlark.Tuple{starlark.String(strings.TrimSuffix(Help(value), "\n"))}})
}

// Help is the documentation of a value: of a function its signature and its
// text, of any other what it is and what members it has. It ends with a newline.
func Help(v starlark.Value) string {
	if v == starlark.None {
		return "help(x) tells what x is and how it is used. What there is:\n" + columns(topLevelNames())
	}
	if fn, ok := v.(*starlark.Function); ok {
		return describe(fn.Name()+"("+parameters(fn)+")", fn.Doc())
	}
	name := stubOf(v)
	stub := Signature(name)
	var text string
	switch _, callable := v.(starlark.Callable); {
	case stub != nil && callable:
		shown := strings.ToLower(name[:1]) + name[1:]
		text = describe(shown+"("+parameters(stub)+")", stub.Doc())
	case stub != nil:
		text = describe(v.Type(), stub.Doc())
	case callable:
		return fmt.Sprintf("%s, a function of the Starlark language: see its specification\n", v.(starlark.Callable).Name())
	default:
		text = describe(v.Type(), "A value of the Starlark language: "+v.String())
	}
	if v, ok := v.(starlark.HasAttrs); ok && len(v.AttrNames()) > 0 {
		text += "\nIt has: " + strings.Join(v.AttrNames(), ", ") + "\n"
	}
	return text
}

// describe is a heading and a docstring without the indentation of its stub.
func describe(head, doc string) string {
	var b strings.Builder
	b.WriteString(head + "\n\n")
	for i, line := range strings.Split(strings.TrimSpace(doc), "\n") {
		if i > 0 {
			line = strings.TrimPrefix(line, "    ")
		}
		b.WriteString(strings.TrimRight("    "+line, " ") + "\n")
	}
	return b.String()
}

// topLevelNames are the builtins that are no member of another.
func topLevelNames() (names []string) {
	for name := range stubs() {
		if !strings.Contains(name, ".") && name[0] >= 'a' {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// columns is a list of words in lines of less than 80 characters.
func columns(words []string) string {
	var b strings.Builder
	width := 0
	for _, word := range words {
		if width+len(word) > 76 {
			b.WriteString("\n")
			width = 0
		}
		if width == 0 {
			b.WriteString("   ")
		}
		b.WriteString(" " + word)
		width += len(word) + 1
	}
	b.WriteString("\n")
	return b.String()
}
