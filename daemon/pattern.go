package daemon

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// This file defines the patterns of paths (protocol.md §16.5).

// pattern is a path of which each segment is ** for any number of segments, or
// a text with *, ?, [a-z], [!a-z] and \ within one.
type pattern []string

const (
	anySegments    = "**"
	longestPattern = 4096 // bytes
)

// compilePattern checks the syntax.
func compilePattern(text string) (pattern, error) {
	if text == "" {
		return nil, errors.New("is empty")
	}
	if len(text) > longestPattern {
		return nil, fmt.Errorf("is longer than %d bytes", longestPattern)
	}
	var p pattern
	for segment := range strings.SplitSeq(text, "/") {
		switch {
		case segment == "" || segment == "." || segment == "..":
			return nil, fmt.Errorf("has the segment %q, which nothing below the path is called", segment)
		case segment == anySegments && len(p) > 0 && p[len(p)-1] == anySegments:
			continue // means the same once
		}
		for rest := segment; rest != ""; {
			_, n := matchOne(rest, "")
			if n == 0 {
				return nil, errors.New("has a [ that is not closed in its segment")
			}
			rest = rest[n:]
		}
		p = append(p, segment)
	}
	return p, nil
}

// progress is how far a path may have got in a pattern: every position whose
// segment may come next, in order. Behind the last segment it is a match.
type progress []int

func (p pattern) begin() progress { return p.add(nil, 0) }

// step goes one segment on.
func (p pattern) step(at progress, name string) (next progress) {
	for _, i := range at {
		switch {
		case i == len(p):
		case p[i] == anySegments:
			next = p.add(next, i)
		case matchSegment(p[i], name):
			next = p.add(next, i+1)
		}
	}
	return next
}

// add puts position i into at, and the next one too if i may be passed over.
func (p pattern) add(at progress, i int) progress {
	if len(at) == 0 || at[len(at)-1] < i {
		at = append(at, i)
	}
	if i < len(p) && p[i] == anySegments && at[len(at)-1] == i {
		at = append(at, i+1)
	}
	return at
}

// matched reports whether the path is a match as it is.
func (p pattern) matched(at progress) bool { return len(at) > 0 && at[len(at)-1] == len(p) }

// open reports whether a longer path can be one.
func (p pattern) open(at progress) bool { return len(at) > 0 && at[0] < len(p) }

// matchSegment compares one name. When something does not fit, the last * takes
// one character more.
func matchSegment(p, name string) bool {
	star, taken := -1, 0
	i, j := 0, 0
	for j < len(name) {
		if i < len(p) && p[i] == '*' {
			star, taken = i, j
			i++
			continue
		}
		if i < len(p) {
			if n, m := matchOne(p[i:], name[j:]); n > 0 {
				i, j = i+m, j+n
				continue
			}
		}
		if star < 0 {
			return false
		}
		_, size := utf8.DecodeRuneInString(name[taken:])
		taken += size
		i, j = star+1, taken
	}
	return strings.Trim(p[i:], "*") == ""
}

// matchOne compares the first element of p, which is m bytes long, with the
// start of name, of which it takes n bytes, or none if it does not fit. An
// element that is not closed has no length.
func matchOne(p, name string) (n, m int) {
	r, size := utf8.DecodeRuneInString(name)
	switch p[0] {
	case '*':
		return 0, 1
	case '?':
		return size, 1
	case '[':
		in, m := matchClass(p, r)
		if !in {
			size = 0
		}
		return size, m
	case '\\':
		if len(p) > 1 {
			p, m = p[1:], 1
		}
	}
	if name != "" && name[0] == p[0] {
		n = 1
	}
	return n, m + 1
}

// matchClass reports whether r is in the class that p starts with, and how long
// the class is: 0 if it is not closed.
func matchClass(p string, r rune) (in bool, length int) {
	i := 1
	not := i < len(p) && (p[i] == '!' || p[i] == '^')
	if not {
		i++
	}
	for first := true; i < len(p) && (p[i] != ']' || first); first = false {
		low, n := classMember(p[i:])
		i += n
		high := low
		if i+1 < len(p) && p[i] == '-' && p[i+1] != ']' {
			high, n = classMember(p[i+1:])
			i += 1 + n
		}
		in = in || low <= r && r <= high
	}
	if i >= len(p) {
		return false, 0
	}
	return in != not, i + 1
}

func classMember(p string) (rune, int) {
	escape := 0
	if p[0] == '\\' && len(p) > 1 {
		escape = 1
	}
	r, n := utf8.DecodeRuneInString(p[escape:])
	return r, n + escape
}
