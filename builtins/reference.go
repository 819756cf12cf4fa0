package builtins

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"go.starlark.net/starlark"
)

// This file defines the reference: of all builtins, made from their stubs, and
// of the standard library.

// Reference is the documentation of every builtin as Markdown: what a workflow
// can name first, in the order of the alphabet, then the values and their
// members; and after them that of the standard library.
func Reference() string {
	all := stubs()
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	isValue := func(name string) bool { return name[0] >= 'A' && name[0] <= 'Z' }
	slices.SortFunc(names, func(a, b string) int {
		if isValue(a) != isValue(b) {
			return cmp.Compare(b, a) // capitals come first in ASCII
		}
		return cmp.Compare(a, b)
	})
	var b strings.Builder
	b.WriteString("# Reference\n\nWhat a workflow can name, and the values that come of it.\n")
	for _, name := range names {
		head := "\n## "
		if strings.Contains(name, ".") {
			head = "\n### "
		}
		shown := name
		if isValue(name) && !strings.Contains(name, ".") {
			fmt.Fprintf(&b, "%sthe value %s\n\n", head, strings.ToLower(name))
		} else {
			shown = strings.ToLower(name[:1]) + name[1:]
			fmt.Fprintf(&b, "%s%s\n\n", head, shown)
			fmt.Fprintf(&b, "`%s(%s)`\n\n", shown, parameters(all[name]))
		}
		b.WriteString(markdown(all[name].Doc()))
	}
	b.WriteString(modulesReference())
	return b.String()
}

// parameters is a function's parameter list as it is written.
func parameters(fn *starlark.Function) string {
	named := fn.NumParams()
	kwargs, varargs := "", ""
	if fn.HasKwargs() {
		named--
		name, _ := fn.Param(named)
		kwargs = "**" + name
	}
	if fn.HasVarargs() {
		named--
		name, _ := fn.Param(named)
		varargs = "*" + name
	} else if fn.NumKwonlyParams() > 0 {
		varargs = "*"
	}
	var list []string
	for i := range named {
		if i == named-fn.NumKwonlyParams() {
			list = append(list, varargs)
		}
		name, _ := fn.Param(i)
		if v := fn.ParamDefault(i); v != nil {
			name += " = " + v.String()
		}
		list = append(list, name)
	}
	if fn.NumKwonlyParams() == 0 && varargs != "" {
		list = append(list, varargs)
	}
	if kwargs != "" {
		list = append(list, kwargs)
	}
	return strings.Join(list, ", ")
}

// markdown is a docstring, whose sections Args and Attributes become lists.
func markdown(doc string) string {
	var b strings.Builder
	inList := false
	for line := range strings.Lines(doc) {
		text := strings.TrimSpace(line)
		switch {
		case text == "":
			b.WriteString("\n")
		case strings.HasSuffix(text, ":") && !strings.Contains(text, " "):
			inList = text != "Returns:"
			b.WriteString(text + "\n\n")
		case inList && strings.HasPrefix(line, "      ") && !strings.HasPrefix(line, "       "):
			name, what, _ := strings.Cut(text, ": ")
			fmt.Fprintf(&b, "- `%s`: %s\n", name, what)
		case inList:
			b.WriteString("  " + text + "\n")
		default:
			b.WriteString(text + "\n")
		}
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}
