package event

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
)

// This file defines the live view: below what the workflow prints stands a line
// for each thing that runs now, and goes when it is done.
//
// All that is written to the terminal passes through the view, which takes its
// lines away before and puts them back after it. While a line of output is not
// finished, there is no view: the terminal's cursor belongs to the output then.

// What the view does when. What is done sooner than noticeable is not shown.
const (
	viewEvery  = 100 * time.Millisecond
	noticeable = 300 * time.Millisecond
	viewLines  = 8 // at most, and half of the terminal
)

// View is the live view on one terminal. Start begins it, and Close ends it.
type View struct {
	terminal io.Writer
	size     func() (columns, rows int)

	quit, done chan struct{}

	mu      sync.Mutex
	running []running
	drawn   []string // the lines that stand there now
	partial bool     // the output ends within a line
	frame   int
}

// running is one thing that has begun.
type running struct {
	span  int
	what  string
	since time.Time
}

// StartView returns a view on a terminal whose size may change. Whatever else is
// written to that terminal is written through Writer. The caller closes it.
func StartView(terminal io.Writer, size func() (columns, rows int)) *View {
	v := &View{terminal: terminal, size: size, quit: make(chan struct{}), done: make(chan struct{})}
	go v.tick()
	return v
}

// Close takes the view away, for good.
func (v *View) Close() {
	close(v.quit)
	<-v.done
	v.mu.Lock()
	defer v.mu.Unlock()
	v.running = nil
	v.draw(nil)
}

func (v *View) tick() {
	defer close(v.done)
	ticker := time.NewTicker(viewEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			v.mu.Lock()
			v.frame++
			v.draw(nil)
			v.mu.Unlock()
		case <-v.quit:
			return
		}
	}
}

// Sink is where the view learns what runs.
func (v *View) Sink(e Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch e := e.(type) {
	case Create:
		v.begin(e.Span, "creating "+e.Resource.String())
	case Created:
		v.end(e.Span)
	case Start:
		v.begin(e.Span, e.line())
	case Exit:
		v.end(e.Span)
	case Release:
		v.begin(e.Span, "deleting "+e.Resource.String())
	case Released:
		v.end(e.Span)
	}
}

func (v *View) begin(span int, what string) {
	line, _, more := strings.Cut(strings.TrimSpace(what), "\n")
	if more {
		line += " …"
	}
	line = strings.ReplaceAll(printable(line), "\t", " ")
	v.running = append(v.running, running{span, line, time.Now()})
}

func (v *View) end(span int) {
	for i, r := range v.running {
		if r.span == span {
			v.running = slices.Delete(v.running, i, i+1)
			break
		}
	}
	if len(v.running) == 0 {
		v.draw(nil)
	}
}

// Writer returns a writer to w, which shows on the view's terminal.
func (v *View) Writer(w io.Writer) io.Writer { return &viewWriter{v, w} }

type viewWriter struct {
	view *View
	to   io.Writer
}

func (w *viewWriter) Write(p []byte) (n int, err error) {
	v := w.view
	v.mu.Lock()
	defer v.mu.Unlock()
	v.draw(func() {
		n, err = w.to.Write(p)
		if n > 0 {
			v.partial = p[n-1] != '\n'
		}
	})
	return n, err
}

// draw takes the view away, has something else written, and puts the view back.
func (v *View) draw(other func()) {
	columns, rows := v.size()
	if columns <= 0 || rows <= 0 {
		columns, rows = 80, 24
	}
	lines := v.lines(columns, rows)
	if other == nil && slices.Equal(lines, v.drawn) {
		return
	}
	var out strings.Builder
	v.erase(&out, columns)
	if other != nil {
		io.WriteString(v.terminal, out.String())
		out.Reset()
		other()
	}
	if v.partial {
		lines = nil
	}
	out.WriteString(strings.Join(lines, "\r\n"))
	v.drawn = lines
	if out.Len() > 0 {
		io.WriteString(v.terminal, out.String()) // in one write: nothing is seen in between
	}
}

// erase clears what was drawn. The cursor stands behind the last line of it,
// and a terminal that has become narrower has broken the lines.
func (v *View) erase(out *strings.Builder, columns int) {
	if len(v.drawn) == 0 {
		return
	}
	up := -1
	for _, line := range v.drawn {
		up += max(1, (width(line)+columns-1)/columns)
	}
	out.WriteString("\r")
	if up > 0 {
		fmt.Fprintf(out, "\x1b[%dA", up)
	}
	out.WriteString("\x1b[J")
	v.drawn = nil
}

var spinner = []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")

// lines are what is to be seen now. Each leaves room for the "^C" that a
// terminal shows.
func (v *View) lines(columns, rows int) (lines []string) {
	limit := max(1, min(viewLines, rows/2))
	hidden := 0
	for _, r := range v.running {
		age := time.Since(r.since)
		switch {
		case age < noticeable:
		case len(lines) == limit:
			hidden++
		default:
			took := fmt.Sprintf("  %ds", int(age.Seconds()))
			room := columns - len("^C") - 1
			mark := string(spinner[v.frame%len(spinner)]) + " "
			if text := cut(r.what, room-width(mark)-len(took)); text != "" {
				lines = append(lines, mark+text+took)
			} else {
				lines = append(lines, cut(mark+r.what, room))
			}
		}
	}
	if hidden > 0 {
		lines[len(lines)-1] = cut(fmt.Sprintf("  and %d more", hidden+1), columns-len("^C")-1)
	}
	return lines
}

// cut is text in so many columns at most.
func cut(text string, columns int) string {
	if width(text) <= columns {
		return text
	}
	used := 0
	for i, c := range text {
		if used += runeWidth(c); used > columns-1 {
			if i == 0 {
				return ""
			}
			return text[:i] + "…"
		}
	}
	return text
}

func width(text string) (columns int) {
	for _, c := range text {
		columns += runeWidth(c)
	}
	return columns
}

// runeWidth is how many columns a terminal gives to a character.
func runeWidth(c rune) int {
	switch {
	case unicode.In(c, unicode.Mn, unicode.Me, unicode.Cf):
		return 0
	case unicode.Is(wide, c):
		return 2
	}
	return 1
}

// wide are the characters of two columns: those of East Asian scripts, and
// pictures.
var wide = &unicode.RangeTable{
	R16: []unicode.Range16{
		{Lo: 0x1100, Hi: 0x115f, Stride: 1}, {Lo: 0x231a, Hi: 0x231b, Stride: 1}, {Lo: 0x23e9, Hi: 0x23f3, Stride: 1},
		{Lo: 0x2614, Hi: 0x2615, Stride: 1}, {Lo: 0x26a1, Hi: 0x26a1, Stride: 1}, {Lo: 0x2705, Hi: 0x2705, Stride: 1},
		{Lo: 0x2728, Hi: 0x2728, Stride: 1}, {Lo: 0x274c, Hi: 0x274e, Stride: 1}, {Lo: 0x2753, Hi: 0x2757, Stride: 1},
		{Lo: 0x2b1b, Hi: 0x2b1c, Stride: 1}, {Lo: 0x2b50, Hi: 0x2b55, Stride: 1}, {Lo: 0x2e80, Hi: 0x303e, Stride: 1},
		{Lo: 0x3041, Hi: 0x4dbf, Stride: 1}, {Lo: 0x4e00, Hi: 0xa4cf, Stride: 1}, {Lo: 0xa960, Hi: 0xa97c, Stride: 1},
		{Lo: 0xac00, Hi: 0xd7a3, Stride: 1}, {Lo: 0xf900, Hi: 0xfaff, Stride: 1}, {Lo: 0xfe30, Hi: 0xfe6f, Stride: 1},
		{Lo: 0xff01, Hi: 0xff60, Stride: 1}, {Lo: 0xffe0, Hi: 0xffe6, Stride: 1},
	},
	R32: []unicode.Range32{
		{Lo: 0x16fe0, Hi: 0x18aff, Stride: 1}, {Lo: 0x1b000, Hi: 0x1b2ff, Stride: 1}, {Lo: 0x1f18e, Hi: 0x1f19a, Stride: 1},
		{Lo: 0x1f200, Hi: 0x1f64f, Stride: 1}, {Lo: 0x1f680, Hi: 0x1f6ff, Stride: 1}, {Lo: 0x1f7e0, Hi: 0x1f7eb, Stride: 1},
		{Lo: 0x1f900, Hi: 0x1faff, Stride: 1}, {Lo: 0x20000, Hi: 0x3fffd, Stride: 1},
	},
}
