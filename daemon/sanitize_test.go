package daemon

import (
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// wantText is the definition of sanitizer: what ranging over a string yields.
func wantText(raw []byte) string { return string([]rune(string(raw))) }

// sanitize feeds raw in pieces that end at the given places.
func sanitize(t interface {
	Helper()
	Fatalf(string, ...any)
}, raw []byte, cuts []int) string {
	t.Helper()
	var s sanitizer
	var out strings.Builder
	at := 0
	for _, cut := range append(cuts, len(raw)) {
		if cut < at || cut > len(raw) {
			continue
		}
		text := s.feed(raw[at:cut])
		if !utf8.Valid(text) {
			t.Fatalf("%q is not valid", text)
		}
		out.Write(text)
		at = cut
		if len(s.held) > 3 {
			t.Fatalf("%d bytes are held back", len(s.held))
		}
	}
	out.Write(s.flush())
	return out.String()
}

// bytesOfText are bytes that often are code points, whole and cut.
var bytesOfText = rapid.SliceOf(rapid.SampledFrom([]byte("ab\x00\x7f\x80\x82\xac\xbf\xc0\xc3\xa9\xe2\xed\xa0\xf0\x9f\x98\x80\xf4\x90\xff")))

func TestSanitizer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := bytesOfText.Draw(t, "raw")
		cuts := rapid.SliceOf(rapid.IntRange(0, len(raw))).Draw(t, "cuts")
		if got, want := sanitize(t, raw, cuts), wantText(raw); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	})
}

func FuzzSanitizer(f *testing.F) {
	f.Add([]byte("a€\xe2\x82"), uint8(2), uint8(5))
	f.Add([]byte("\xf0\x9f\x98\x80\xff"), uint8(1), uint8(3))
	f.Fuzz(func(t *testing.T, raw []byte, one, two uint8) {
		if got, want := sanitize(t, raw, []int{int(one), int(two)}), wantText(raw); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	})
}

// Whole code points are not held back.
func TestSanitizerHoldsBackNothingWhole(t *testing.T) {
	for raw, want := range map[string]string{"a": "a", "é": "é", "€": "€", "😀": "😀", "a\xe2\x82": "a", "\xff": "\ufffd", "\xf0\x9f\x98": "", "\x80": "\ufffd", "\xe2x": "\ufffdx"} {
		var s sanitizer
		if got := string(s.feed([]byte(raw))); got != want {
			t.Errorf("%q: got %q, want %q", raw, got, want)
		}
	}
}

func TestCapped(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := capped{limit: rapid.IntRange(0, 50).Draw(t, "limit")}
		var all string
		for _, text := range rapid.SliceOf(rapid.String()).Draw(t, "texts") {
			c.add([]byte(text))
			all += text
		}
		c.end()
		kept := c.kept.String()
		if !strings.HasPrefix(all, kept) || len(kept) > c.limit || utf8.ValidString(all) && !utf8.ValidString(kept) {
			t.Fatalf("kept %q of %q", kept, all)
		}
		if c.dropped != int64(len(all)-len(kept)) || c.dropped > 0 && len(kept) <= c.limit-utf8.UTFMax {
			t.Fatalf("kept %q and dropped %d of %q", kept, c.dropped, all)
		}
	})
}
