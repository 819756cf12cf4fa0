package daemon

import (
	"bytes"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// A ring holds the same as a stream that forgets nothing, from its start on,
// and gives it out in whole code points.
func TestRing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := ring{limit: rapid.Int64Range(8, 100).Draw(t, "limit")}
		if rapid.Bool().Draw(t, "large") {
			r.limit *= 1000
		}
		var all []byte
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				text := []byte(rapid.StringOf(rapid.RuneFrom([]rune("xé€😀"))).Draw(t, "text"))
				text = bytes.Repeat(text, rapid.SampledFrom([]int{1, 1, 100}).Draw(t, "times"))
				all = append(all, text...)
				r.write(text)
			},
			"read": func(t *rapid.T) {
				asked := rapid.Int64Range(0, int64(len(all))+5).Draw(t, "asked")
				from := r.seek(asked)
				size := rapid.IntRange(4, 200).Draw(t, "size")
				got := r.appendFrom(nil, from, size)
				if !bytes.HasPrefix(all[from:], got) || !utf8.Valid(got) || len(got) > size {
					t.Fatalf("at %d: got %q", from, got)
				}
				if len(got) == 0 && from < r.end {
					t.Fatalf("nothing at %d, before the end %d", from, r.end)
				}
				kept := min(max(asked, r.start), r.end)
				if d := from - kept; d < -3 || d > 3 || d > 0 && kept != r.start {
					t.Fatalf("seek(%d) is %d, start %d, end %d", asked, from, r.start, r.end)
				}
			},
			"": func(t *rapid.T) {
				if r.end != int64(len(all)) || int64(len(r.buf)) > r.limit {
					t.Fatalf("end %d of %d, %d bytes of memory", r.end, len(all), len(r.buf))
				}
				if kept := r.end - r.start; kept < min(r.end, r.limit) {
					t.Fatalf("only %d bytes are kept", kept)
				}
				for o := r.start; o < r.end; o++ {
					if r.at(o) != all[o] {
						t.Fatalf("byte %d is %q, want %q", o, r.at(o), all[o])
					}
				}
			},
		})
	})
}

// A ring takes no more memory than what is written needs, up to twice.
func TestRingIsLazy(t *testing.T) {
	r := ring{limit: 4 << 20}
	if r.write([]byte("x")); len(r.buf) != ringStart {
		t.Errorf("one byte takes %d", len(r.buf))
	}
	if r.write(make([]byte, 100_000)); len(r.buf) != 128<<10 {
		t.Errorf("100,001 bytes take %d", len(r.buf))
	}
	if r.write(make([]byte, 10<<20)); len(r.buf) != 4<<20 || r.start != r.end-4<<20 {
		t.Errorf("more than the limit takes %d", len(r.buf))
	}
}
