package daemon

import (
	"bytes"
	"unicode/utf8"
)

// This file defines one output of a session under its two numberings: by the
// bytes that were written, for exec.v1 (protocol.md §15), and by the bytes of the
// UTF-8 that is made of them, for everybody else (§6.4).

// place is a position in a stream. It is where a code point starts, or a byte
// that is part of none; one for exec.v1 is anywhere and has no text.
type place struct {
	raw  int64 // bytes written before it
	text int64 // bytes of UTF-8 made of those
}

// stream keeps bytes as they were written. The two numberings run apart where
// these are not UTF-8, so one place is remembered under both, and moves on
// before the ring overwrites it: from it every later one is counted.
//
// Nothing is counted before somebody wants text. What the ring has lost by then
// enters the second numbering with as many bytes as were written.
type stream struct {
	ring
	counted bool
	mark    place // once counted: the first place that is kept
	over    bool  // nothing will be written any more
}

// smallestRing is the least limit of a stream's ring: a half of it holds a code
// point.
const smallestRing = 2 * utf8.UTFMax

// count begins the second numbering, unless that has happened.
func (s *stream) count() {
	if s.counted {
		return
	}
	s.counted = true
	var scratch [utf8.UTFMax]byte
	at := s.start
	if at > 0 { // perhaps within a code point
		for _, c := range s.appendFrom(scratch[:0], at, utf8.UTFMax-1) {
			if utf8.RuneStart(c) {
				break
			}
			at++
		}
	}
	s.mark = place{at, at}
}

// write appends p.
func (s *stream) write(p []byte) {
	for len(p) > 0 {
		// By halves, so that a code point that is about to be cut is whole in
		// the ring.
		piece := p[:min(int64(len(p)), s.limit/2)]
		if s.counted {
			s.passOver(s.end + int64(len(piece)) - s.limit)
		}
		s.ring.write(piece)
		p = p[len(piece):]
	}
}

// stride is how many bytes are looked at together.
const stride = 4 << 10

// passOver moves the mark to the first place at raw or behind it.
func (s *stream) passOver(raw int64) {
	var scratch [stride]byte
	for s.mark.raw < raw {
		p := s.whole(scratch[:0], s.mark.raw, stride)
		if s.mark.raw+int64(len(p)) > raw {
			n := 0
			for s.mark.raw+int64(n) < raw {
				_, size := utf8.DecodeRune(p[n:])
				n += size
			}
			p = p[:n]
		}
		s.mark.raw += int64(len(p))
		s.mark.text += textLen(p)
	}
}

// seek returns the place at offset text of the second numbering. From within a
// code point it goes back, so that nothing is lost; what is not kept, or not
// there, becomes what is nearest.
func (s *stream) seek(text int64) place {
	var scratch [stride]byte
	for at := s.mark; ; {
		p := s.whole(scratch[:0], at.raw, stride)
		if len(p) == 0 {
			return at
		}
		if n := textLen(p); at.text+n <= text {
			at.raw += int64(len(p))
			at.text += n
			continue
		}
		for {
			r, size := utf8.DecodeRune(p)
			if at.text+int64(utf8.RuneLen(r)) > text {
				return at
			}
			at.raw += int64(size)
			at.text += int64(utf8.RuneLen(r))
			p = p[size:]
		}
	}
}

// seekRaw returns the place at offset raw, or at the nearest byte that is there.
func (s *stream) seekRaw(raw int64) place {
	return place{raw: min(max(raw, s.start), s.end)}
}

// appendText appends what stands at a place as UTF-8, at most n bytes of it,
// and returns the place behind that. The first bytes of a code point wait for
// the others, unless none can come.
func (s *stream) appendText(p []byte, at place, n int) ([]byte, place) {
	from := len(p)
	p = s.whole(p, at.raw, n)
	if written := p[from:]; utf8.Valid(written) {
		at.raw += int64(len(written))
	} else {
		written = bytes.Clone(written)
		p = p[:from]
		for len(written) > 0 {
			r, size := utf8.DecodeRune(written)
			if len(p)-from+utf8.RuneLen(r) > n {
				break
			}
			p = utf8.AppendRune(p, r)
			at.raw += int64(size)
			written = written[size:]
		}
	}
	at.text += int64(len(p) - from)
	return p, at
}

// whole appends at most n bytes from offset o, without a code point at their
// end whose rest is to come.
func (s *stream) whole(p []byte, o int64, n int) []byte {
	from := len(p)
	p = s.appendFrom(p, o, n)
	if s.over && o+int64(len(p)-from) == s.end {
		return p
	}
	return p[:len(p)-partial(p[from:])]
}

// textLen is how many bytes of UTF-8 whole code points, and bytes that are part
// of none, become.
func textLen(p []byte) int64 {
	if utf8.Valid(p) {
		return int64(len(p))
	}
	var n int64
	for len(p) > 0 {
		r, size := utf8.DecodeRune(p)
		n += int64(utf8.RuneLen(r)) // that of U+FFFD for a byte of no code point
		p = p[size:]
	}
	return n
}
