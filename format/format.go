// Package format lays workflows out as buildifier does.
package format

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/bazelbuild/buildtools/build"
	"go.starlark.net/syntax"
)

// This file defines the formatting of one file. The formatter's own parser
// knows the Starlark of build files, which has no while and no bytes literals,
// and whose strings are Latin-1. Each such thing is shown to it as something
// that it lays out in the same way, and put back.

// Source returns the formatted form of a file. The name is what errors call
// it; those are of the type syntax.Error, and then nothing is formatted.
func Source(name string, src []byte) ([]byte, error) {
	src = bytes.ReplaceAll(bytes.ReplaceAll(src, []byte("\r\n"), []byte("\n")), []byte("\r"), []byte("\n"))
	options := syntax.FileOptions{} // what they refuse, the parser takes all the same
	if !utf8.Valid(src) {
		return nil, syntax.Error{Pos: syntax.MakePosition(&name, 1, 1), Msg: "the file is not valid UTF-8"}
	}
	file, err := options.Parse(name, src, 0)
	if err != nil {
		return nil, err
	}
	hidden := hide(file, src)
	parsed, err := build.ParseDefault(name, hidden.text)
	if err != nil {
		return nil, fmt.Errorf("cannot format %w", err)
	}
	out := hidden.restore(build.Format(parsed))
	if _, err := options.Parse(name, out, 0); err != nil {
		return nil, fmt.Errorf("cannot format %s without breaking it: %w", name, err)
	}
	return out, nil
}

// A disguise is a text in which names stand for what the formatter cannot read.
type disguise struct {
	text   []byte
	mark   string            // a name that does not occur in the text
	hidden map[string]string // what to put back, by what stands for it
}

// edit replaces a part of a text.
type edit struct {
	at, end int
	text    string
}

func hide(file *syntax.File, src []byte) disguise {
	d := disguise{mark: "_", hidden: map[string]string{}}
	for bytes.Contains(src, []byte(d.mark)) {
		d.mark += "_"
	}
	lines := lineStarts(src)
	var edits []edit
	syntax.Walk(file, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.WhileStmt:
			// A for is the one statement with an expression and a body that
			// nothing else is merged with, as an if is with the else above it.
			at := lines.offset(src, n.While)
			loop := "for " + d.mark + " in "
			end := at + len("while")
			for end < len(src) && (src[end] == ' ' || src[end] == '\t') {
				end++
			}
			edits = append(edits, edit{at, end, loop})
			d.hidden[loop] = "while "
		case *syntax.Literal:
			at := lines.offset(src, n.TokenPos)
			end := at + len(n.Raw)
			switch {
			case n.Token == syntax.BYTES, n.Token == syntax.STRING && strings.Contains(n.Raw, `\`):
				name := fmt.Sprintf("%sb%d%s", d.mark, len(edits), d.mark)
				edits = append(edits, edit{at, end, name})
				d.hidden[name] = n.Raw
			case n.Token == syntax.STRING && n.Raw[0] == '\'' && !strings.Contains(n.Raw, `"`):
				width := 1
				if strings.HasPrefix(n.Raw, "'''") {
					width = 3
				}
				quotes := strings.Repeat(`"`, width)
				edits = append(edits, edit{at, end, quotes + n.Raw[width:len(n.Raw)-width] + quotes})
			}
		}
		return true
	})
	slices.SortFunc(edits, func(a, b edit) int { return cmp.Compare(a.at, b.at) })
	from := 0
	for _, e := range edits {
		d.text = append(append(d.text, src[from:e.at]...), e.text...)
		from = e.end
	}
	d.text = append(d.text, src[from:]...)
	return d
}

func (d disguise) restore(text []byte) []byte {
	var pairs []string
	for mark, was := range d.hidden {
		pairs = append(pairs, mark, was)
	}
	return []byte(strings.NewReplacer(pairs...).Replace(string(text)))
}

// lineStarts are the offsets at which the lines of a text begin.
type lines []int

func lineStarts(src []byte) lines {
	starts := lines{0}
	for i, c := range src {
		if c == '\n' {
			starts = append(starts, i+1)
		}
	}
	return starts
}

// offset is where a position lies in the text; its columns count characters.
func (l lines) offset(src []byte, pos syntax.Position) int {
	at := l[pos.Line-1]
	for range pos.Col - 1 {
		_, size := utf8.DecodeRune(src[at:])
		at += size
	}
	return at
}
