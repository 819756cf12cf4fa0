package daemon

import (
	"strings"
	"unicode/utf8"
)

// This file defines how the output of a command that is answered at once becomes
// UTF-8 (protocol.md §5).

// sanitizer turns a stream of bytes into UTF-8. Each byte that is part of no
// code point becomes U+FFFD, wherever the stream was cut into pieces.
type sanitizer struct {
	held []byte // the start of a code point whose rest is still to come
	out  []byte
}

// feed returns the text of held and p, up to the last whole code point. It is
// valid until the next call and while p is.
func (s *sanitizer) feed(p []byte) []byte {
	if len(s.held) > 0 {
		s.held = append(s.held, p...)
		p = s.held
	}
	whole := len(p) - partial(p)
	if utf8.Valid(p[:whole]) {
		s.out = append(s.out[:0], p[:whole]...)
	} else {
		s.out = appendValid(s.out[:0], p[:whole])
	}
	s.held = append(s.held[:0], p[whole:]...)
	return s.out
}

// flush returns what stands for the bytes that were held back at the end.
func (s *sanitizer) flush() []byte {
	s.out = appendValid(s.out[:0], s.held)
	s.held = s.held[:0]
	return s.out
}

func appendValid(out, p []byte) []byte {
	for len(p) > 0 {
		_, size := utf8.DecodeRune(p)
		if size == 1 && p[0] >= utf8.RuneSelf {
			out = utf8.AppendRune(out, utf8.RuneError)
		} else {
			out = append(out, p[:size]...)
		}
		p = p[size:]
	}
	return out
}

// partial returns how many bytes at the end of p may be the start of a code
// point: at most three.
func partial(p []byte) int {
	for n := 1; n <= min(len(p), utf8.UTFMax-1); n++ {
		if tail := p[len(p)-n:]; utf8.RuneStart(tail[0]) {
			if utf8.FullRune(tail) {
				return 0
			}
			return n
		}
	}
	return 0
}

// cutText returns the longest start of valid text that has at most n bytes.
func cutText(text []byte, n int) []byte {
	if len(text) <= n {
		return text
	}
	text = text[:n]
	return text[:n-partial(text)]
}

// capped keeps the first bytes of a stream, as UTF-8.
type capped struct {
	limit   int
	text    sanitizer
	kept    strings.Builder
	dropped int64
}

// add takes what was written, and end that nothing more will be.
func (c *capped) add(p []byte) { c.keep(c.text.feed(p)) }
func (c *capped) end()         { c.keep(c.text.flush()) }

func (c *capped) keep(text []byte) {
	var keep []byte
	if c.dropped == 0 {
		keep = cutText(text, c.limit-c.kept.Len())
	}
	c.kept.Write(keep)
	c.dropped += int64(len(text) - len(keep))
}
