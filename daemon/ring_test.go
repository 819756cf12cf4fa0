package daemon

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// A ring holds the same as a stream that forgets nothing, from its start on.
func TestRing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := ring{limit: rapid.Int64Range(8, 100).Draw(t, "limit")}
		if rapid.Bool().Draw(t, "large") {
			r.limit *= 1000
		}
		var all []byte
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				data := rapid.SliceOf(rapid.Byte()).Draw(t, "data")
				data = bytes.Repeat(data, rapid.SampledFrom([]int{1, 1, 100}).Draw(t, "times"))
				all = append(all, data...)
				r.write(data)
			},
			"": func(t *rapid.T) {
				if r.end != int64(len(all)) || int64(len(r.buf)) > r.limit {
					t.Fatalf("end %d of %d, %d bytes of memory", r.end, len(all), len(r.buf))
				}
				if kept := r.end - r.start; kept < min(r.end, r.limit) {
					t.Fatalf("only %d bytes are kept", kept)
				}
				from := rapid.Int64Range(r.start, r.end).Draw(t, "from")
				size := rapid.IntRange(0, 200).Draw(t, "size")
				if got, want := r.appendFrom([]byte("x"), from, size), all[from:min(from+int64(size), r.end)]; string(got) != "x"+string(want) {
					t.Fatalf("%d bytes at %d are %q, want %q", size, from, got, want)
				}
				if got := r.appendFrom(nil, r.start, len(all)); !bytes.Equal(got, all[r.start:]) {
					t.Fatalf("all from %d is %q, want %q", r.start, got, all[r.start:])
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
