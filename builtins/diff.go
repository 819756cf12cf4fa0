package builtins

import (
	"fmt"
	"slices"
	"strings"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
)

// This file defines how two values that should be the same are shown.

const (
	shortValue  = 70      // characters that fit beside each other
	deepest     = 20      // levels of nesting that are shown line by line
	around      = 3       // lines of a difference that are shown for their place
	mostLines   = 60      // of a difference
	mostCompare = 4 << 20 // pairs of lines that are compared
)

// excerpt is a value on one line of bearable length.
func excerpt(v starlark.Value) string {
	text := []rune(v.String())
	if len(text) > 3*shortValue {
		return fmt.Sprintf("%s … (%d characters)", string(text[:3*shortValue]), len(text))
	}
	return string(text)
}

// difference says how two values differ.
func difference(got, want starlark.Value) string {
	g, w := got.String(), want.String()
	if len(g) <= shortValue && len(w) <= shortValue {
		if g == w {
			return fmt.Sprintf("got %s, want %s: the one is %s, the other %s", g, w, withArticle(got.Type()), withArticle(want.Type()))
		}
		return fmt.Sprintf("got %s, want %s", g, w)
	}
	a, b := pretty(got), pretty(want)
	if len(a) == 1 && len(b) == 1 {
		a[0], b[0] = fromDifference(a[0], b[0])
	}
	return "got what the lines with - show, want what those with + show\n" + lineDiff(a, b)
}

// fromDifference leaves out what two long lines begin with both.
func fromDifference(a, b string) (string, string) {
	x, y := []rune(a), []rune(b)
	same := 0
	for same < min(len(x), len(y)) && x[same] == y[same] {
		same++
	}
	if from := same - shortValue; from > 0 {
		left := fmt.Sprintf("(%d characters) … ", from)
		return left + string(x[from:]), left + string(y[from:])
	}
	return a, b
}

// pretty is a value over as many lines as make it readable: a string has its
// own, anything nested one for each element.
func pretty(v starlark.Value) []string {
	if s, ok := v.(starlark.String); ok && strings.Contains(string(s), "\n") {
		lines := strings.SplitAfter(string(s), "\n")
		if last := len(lines) - 1; lines[last] == "" {
			lines = lines[:last]
		} else {
			lines[last] += " \\ no newline at the end"
		}
		for i := range lines {
			lines[i] = strings.TrimSuffix(lines[i], "\n")
		}
		return lines
	}
	return prettyAt(nil, "", "", v, "", 0)
}

// prettyAt appends v between prefix and suffix.
// Pretty is a value as repr would show it, over several lines if it is long and
// has parts.
func Pretty(v starlark.Value) string { return strings.Join(prettyAt(nil, "", "", v, "", 0), "\n") }

func prettyAt(lines []string, indent, prefix string, v starlark.Value, suffix string, depth int) []string {
	text := v.String()
	begin, end := "[", "]"
	switch v.(type) {
	case starlark.Tuple:
		begin, end = "(", ")"
	case *starlark.Dict:
		begin, end = "{", "}"
	case *starlarkstruct.Struct:
		begin, end = "struct(", ")"
	case *starlark.List:
	default:
		return append(lines, indent+prefix+text+suffix)
	}
	if len(text) <= shortValue || depth == deepest {
		return append(lines, indent+prefix+text+suffix)
	}
	lines = append(lines, indent+prefix+begin)
	inner := indent + "  "
	switch v := v.(type) {
	case *starlark.Dict:
		items := v.Items()
		slices.SortStableFunc(items, func(a, b starlark.Tuple) int { return strings.Compare(a[0].String(), b[0].String()) })
		for _, item := range items {
			lines = prettyAt(lines, inner, item[0].String()+": ", item[1], ",", depth+1)
		}
	case *starlarkstruct.Struct:
		for name, field := range v.Entries() {
			lines = prettyAt(lines, inner, name+" = ", field, ",", depth+1)
		}
	case starlark.Iterable:
		for element := range starlark.Elements(v) {
			lines = prettyAt(lines, inner, "", element, ",", depth+1)
		}
	}
	return append(lines, indent+end+suffix)
}

// lineDiff shows which lines must go from a and come to make it b, and those
// around them.
func lineDiff(a, b []string) string {
	script := edits(a, b)
	near := make([]bool, len(script))
	for i, line := range script {
		if line[0] != ' ' {
			for j := max(0, i-around); j <= min(len(script)-1, i+around); j++ {
				near[j] = true
			}
		}
	}
	var shown []string
	skipped := 0
	for i, line := range script {
		if len(shown) >= mostLines {
			shown = append(shown, fmt.Sprintf("  … (%s more)", count(len(script)-i, "line")))
			skipped = 0
			break
		}
		if !near[i] {
			skipped++
			continue
		}
		if skipped > 0 {
			shown = append(shown, fmt.Sprintf("  … (%s the same)", count(skipped, "line")))
			skipped = 0
		}
		if text := []rune(line); len(text) > 3*shortValue {
			line = string(text[:3*shortValue]) + " …"
		}
		shown = append(shown, line)
	}
	if skipped > 0 {
		shown = append(shown, fmt.Sprintf("  … (%s the same)", count(skipped, "line")))
	}
	return strings.Join(shown, "\n")
}

// edits is the shortest way from a to b, each line with "-", "+" or " " before
// it; where that takes too long to find, what
// is between their common ends goes and comes as a whole.
func edits(a, b []string) (script []string) {
	begin := 0
	for begin < min(len(a), len(b)) && a[begin] == b[begin] {
		begin++
	}
	end := 0
	for end < min(len(a), len(b))-begin && a[len(a)-1-end] == b[len(b)-1-end] {
		end++
	}
	add := func(mark string, lines ...string) {
		for _, line := range lines {
			script = append(script, mark+" "+line)
		}
	}
	add(" ", a[:begin]...)
	x, y := a[begin:len(a)-end], b[begin:len(b)-end]
	if len(x)*len(y) > mostCompare {
		add("-", x...)
		add("+", y...)
		x, y = nil, nil
	}
	common := make([][]int32, len(x)+1) // lines that x[i:] and y[j:] have in common
	for i := range common {
		common[i] = make([]int32, len(y)+1)
	}
	for i := len(x) - 1; i >= 0; i-- {
		for j := len(y) - 1; j >= 0; j-- {
			if x[i] == y[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(x) || j < len(y) {
		switch {
		case i < len(x) && j < len(y) && x[i] == y[j]:
			add(" ", x[i])
			i, j = i+1, j+1
		case j == len(y) || i < len(x) && common[i+1][j] >= common[i][j+1]:
			add("-", x[i])
			i++
		default:
			add("+", y[j])
			j++
		}
	}
	add(" ", a[len(a)-end:]...)
	return script
}
