package client

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestOutputIsKept adds pieces of all sizes, with and without raw bytes of their
// own, and compares with what they are put together.
func TestOutputIsKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := output{last: rapid.SampledFrom([]int64{0, 1, 1000, 100_000}).Draw(t, "last")}
		var text, raw strings.Builder
		for n := range rapid.IntRange(0, 40).Draw(t, "pieces") {
			size := rapid.SampledFrom([]int{0, 1, 5, 300, smallPieces - 1, smallPieces, 40_000}).Draw(t, "size")
			c := Chunk{Data: strings.Repeat(string(rune('a'+n%26)), size)}
			c.Raw = c.Data
			if size < 10 && rapid.Bool().Draw(t, "differs") {
				c.Raw = strings.Repeat("\xff", size)
			}
			text.WriteString(c.Data)
			raw.WriteString(c.Raw)
			o.add(c)
			if n%7 == 3 {
				_ = o.text.String() // as a result in the middle does
			}
		}
		for name, got := range map[string]string{"text": o.text.String(), "raw": o.bytes()} {
			all := map[string]string{"text": text.String(), "raw": raw.String()}[name]
			if !strings.HasSuffix(all, got) {
				t.Fatalf("%s: %d bytes are not the end of what came", name, len(got))
			}
			if o.last == 0 && got != all || int64(len(got)) < min(o.last, int64(len(all))) {
				t.Fatalf("%s: %d bytes of %d are left, of which %d are to stay", name, len(got), len(all), o.last)
			}
		}
		if got := int64(len(o.text.String())) + o.text.forgotten; got != int64(text.Len()) {
			t.Fatalf("%d bytes are kept or forgotten of %d", got, text.Len())
		}
	})
}

// TestKeepLastHoldsLittle: what was handed out long ago is let go.
func TestKeepLastHoldsLittle(t *testing.T) {
	o := output{last: 100_000}
	for range 10_000 {
		o.add(Chunk{Data: strings.Repeat("x", 1000), Raw: strings.Repeat("x", 1000)})
	}
	if got := o.text.size; got > o.last+2*smallPieces || cap(o.text.pieces) > 100 {
		t.Errorf("%d bytes in %d places are held of the last %d", got, cap(o.text.pieces), o.last)
	}
}
