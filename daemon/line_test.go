package daemon

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

type foundLine struct {
	line int
	text string
}

func searchLines(t interface{ Fatal(...any) }, s *lineSearch, r io.Reader) (found []foundLine) {
	err := s.search(r.Read, func(line int, text []byte) error {
		found = append(found, foundLine{line, string(text[:min(len(text), lineHead)])})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A search finds what looking at every line by itself does, however the file is
// read, and whatever was searched before.
func TestLineSearch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &lineSearch{buf: make([]byte, searchBuffer)}
		for range 2 {
			s.pattern = []byte(rapid.StringMatching(`[ab\r]{1,4}`).Draw(t, "pattern"))
			var all strings.Builder
			for range rapid.IntRange(0, 8).Draw(t, "pieces") {
				piece := rapid.StringMatching(`[ab\r\nc]{0,12}`).Draw(t, "piece")
				all.WriteString(strings.Repeat(piece, rapid.SampledFrom([]int{1, 1, 3, 2000, 20_000}).Draw(t, "times")))
				if n := rapid.SampledFrom([]int{0, 0, searchBuffer - 3, searchBuffer, 3 * searchBuffer}).Draw(t, "long"); n > 0 {
					all.WriteString(strings.Repeat("c", n))
				}
			}
			var want []foundLine
			for i, line := range strings.Split(all.String(), "\n") {
				if strings.Contains(line, string(s.pattern)) {
					want = append(want, foundLine{i + 1, line[:min(len(line), lineHead)]})
				}
			}
			var r io.Reader = strings.NewReader(all.String())
			if rapid.Bool().Draw(t, "dribble") {
				r = iotest.DataErrReader(iotest.HalfReader(r))
			}
			if got := searchLines(t, s, r); !slices.Equal(got, want) {
				t.Fatalf("got %d lines, want %d: %.300v, want %.300v", len(got), len(want), got, want)
			}
		}
	})
}

func TestLineSearchPassesOver(t *testing.T) {
	s := &lineSearch{pattern: []byte("x"), buf: make([]byte, searchBuffer)}
	for name, text := range map[string]string{"": "", "zero": "x\n\x00", "zero at the end of the head": "x" + strings.Repeat("y", binaryHead-2) + "\x00"} {
		if got := searchLines(t, s, iotest.OneByteReader(strings.NewReader(text))); got != nil {
			t.Errorf("%s: got %v", name, got)
		}
	}
	if got := searchLines(t, s, strings.NewReader(strings.Repeat("y", binaryHead)+"\x00x")); len(got) != 1 {
		t.Errorf("a zero behind the head: got %v", got)
	}
	wrong := errors.New("wrong")
	if err := s.search(iotest.ErrReader(wrong).Read, nil); err != wrong {
		t.Errorf("got %v", err)
	}
	for _, text := range []string{"x", "a\nx\nx", strings.Repeat("x", 3*searchBuffer)} {
		calls := 0
		err := s.search(strings.NewReader(text).Read, func(int, []byte) error { calls++; return wrong })
		if err != wrong || calls != 1 {
			t.Errorf("%.10q: %d calls, %v", text, calls, err)
		}
	}
}

func TestLineText(t *testing.T) {
	for line, want := range map[string]string{
		"a\r": "a", "a\rb": "a\rb", "a\xffb": "a\ufffdb", "\xe2\x82": "\ufffd\ufffd", strings.Repeat("€", 2000): strings.Repeat("€", 1365),
		strings.Repeat("\xff", 5000): strings.Repeat("\ufffd", 1365), strings.Repeat("a", 4096): strings.Repeat("a", 4096),
	} {
		if got := lineText([]byte(line)); got != want {
			t.Errorf("%.20q: got %d bytes %.20q, want %d", line, len(got), got, len(want))
		}
	}
	if got := lineText(bytes.Repeat([]byte("😀"), 5000)); len(got) != longestText {
		t.Errorf("got %d bytes", len(got))
	}
}
