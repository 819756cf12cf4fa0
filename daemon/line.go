package daemon

import (
	"bytes"
	"io"
	"unicode/utf8"
)

// This file defines how the lines that hold a text are found in a file
// (protocol.md §16.5).

const (
	binaryHead   = 8 << 10 // bytes in which a zero byte makes a file one that is not searched
	longestText  = 4 << 10 // bytes of a line in an answer
	searchBuffer = 64 << 10
	// lineHead is enough of a line that an answer has all it takes.
	lineHead = longestText + utf8.UTFMax
)

var newline = []byte("\n")

// lineSearch looks for a text that holds no line end, in one file after another.
type lineSearch struct {
	pattern []byte
	buf     []byte // larger than binaryHead, lineHead and twice the pattern
}

// search calls found for each line that holds the text, with what the line holds
// or at least its first lineHead bytes. An error of found ends the search and is
// returned, as is one of read, which is that of an io.Reader. What has a zero
// byte near its beginning is no text and has no lines.
func (s *lineSearch) search(read func([]byte) (int, error), found func(line int, text []byte) error) error {
	n, line := 0, 1
	var long []byte // the head of a line that does not fit into the buffer
	holds := false  // what has been seen of that line
	for first, eof := true, false; !eof; first = false {
		least := n + 1
		if first {
			least = binaryHead
		}
		for n < least && !eof {
			m, err := read(s.buf[n:])
			n += m
			if eof = err == io.EOF; err != nil && !eof {
				return err
			}
		}
		if first && bytes.IndexByte(s.buf[:min(n, binaryHead)], 0) >= 0 {
			return nil
		}
		whole := bytes.LastIndexByte(s.buf[:n], '\n') + 1
		if eof {
			whole = n
		}
		if whole == 0 && n == len(s.buf) {
			if long == nil {
				long = bytes.Clone(s.buf[:lineHead])
			}
			holds = holds || bytes.Contains(s.buf, s.pattern)
			n = copy(s.buf, s.buf[n-len(s.pattern)+1:]) // it may have begun there
			continue
		}
		block := s.buf[:whole]
		if long != nil && (whole > 0 || eof) {
			var end []byte
			end, block = cutLine(block)
			if holds || bytes.Contains(end, s.pattern) {
				if err := found(line, long); err != nil {
					return err
				}
			}
			line++
			long, holds = nil, false
		}
		for {
			i := bytes.Index(block, s.pattern)
			if i < 0 {
				line += bytes.Count(block, newline)
				break
			}
			start := bytes.LastIndexByte(block[:i], '\n') + 1
			line += bytes.Count(block[:start], newline)
			var text []byte
			text, block = cutLine(block[start:])
			if err := found(line, text); err != nil {
				return err
			}
			line++
		}
		n = copy(s.buf, s.buf[whole:n])
	}
	return nil
}

// cutLine takes the first line off, without its end.
func cutLine(block []byte) (line, rest []byte) {
	line, rest, _ = bytes.Cut(block, newline)
	return line, rest
}

// lineText makes an answer of a line.
func lineText(line []byte) string {
	line = bytes.TrimSuffix(line, []byte("\r"))
	return string(cutText(appendValid(nil, line[:min(len(line), lineHead)]), longestText))
}
