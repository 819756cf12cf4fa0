package daemon

import (
	"bytes"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// streamModel forgets nothing.
type streamModel struct {
	all  []byte
	over bool
	base *place // where the second numbering began
}

// places are the starts of all code points from the base on, and of bytes that
// are part of none. The last is where what is whole ends.
func (m *streamModel) places() []place {
	at := *m.base
	places := []place{at}
	for at.raw < int64(len(m.all)) {
		if !m.over && !utf8.FullRune(m.all[at.raw:]) {
			break
		}
		r, size := utf8.DecodeRune(m.all[at.raw:])
		at = place{at.raw + int64(size), at.text + int64(utf8.RuneLen(r))}
		places = append(places, at)
	}
	return places
}

// A stream gives out the same text, under the same offsets, as one that forgets
// nothing and counts from the beginning.
func TestStream(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s stream
		var m streamModel
		s.limit = rapid.Int64Range(smallestRing, 60).Draw(t, "limit")
		large := rapid.Bool().Draw(t, "large")
		if large {
			s.limit *= 300
		}
		valid := rapid.Bool().Draw(t, "valid")
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				data := bytesOfText.Draw(t, "data")
				if valid {
					data = []byte(rapid.StringOf(rapid.RuneFrom([]rune("xé€😀"))).Draw(t, "text"))
				}
				if large {
					data = bytes.Repeat(data, rapid.SampledFrom([]int{1, 10, 1000}).Draw(t, "times"))
				}
				if !m.over {
					m.all = append(m.all, data...)
					s.write(data)
				}
			},
			"count": func(t *rapid.T) {
				s.count()
				if m.base == nil {
					base := s.mark
					m.base = &base
					if base.raw < s.start || base.raw > s.start+utf8.UTFMax-1 || base.text != base.raw {
						t.Fatalf("counting begins at %+v, the ring at %d", base, s.start)
					}
					if valid && base.raw < s.end && !utf8.RuneStart(m.all[base.raw]) {
						t.Fatalf("counting begins at %+v, within a code point", base)
					}
				}
			},
			"end": func(t *rapid.T) {
				if len(m.all) > 100 || rapid.Bool().Draw(t, "really") {
					s.over, m.over = true, true
				}
			},
			"read": func(t *rapid.T) {
				if m.base == nil {
					return
				}
				places := m.places()
				last := places[len(places)-1]
				asked := rapid.Int64Range(0, last.text+5).Draw(t, "asked")
				i := 0
				for i+1 < len(places) && (places[i].raw < s.start || places[i+1].text <= asked) {
					i++
				}
				at := s.seek(asked)
				if at != places[i] {
					t.Fatalf("seek(%d) is %+v, want %+v; start %d, end %d", asked, at, places[i], s.start, s.end)
				}
				size := rapid.IntRange(utf8.UTFMax, 200).Draw(t, "size")
				got, next := s.appendText([]byte("x"), at, size)
				j := i
				for places[j].raw < next.raw {
					j++
				}
				if want := string([]rune(string(m.all[at.raw:next.raw]))); next != places[j] || string(got) != "x"+want || len(want) > size {
					t.Fatalf("at %+v: got %q to %+v, want %q to %+v", at, got, next, want, places[j])
				}
				if next == at && at != last {
					t.Fatalf("nothing at %+v, before %+v", at, last)
				}
			},
			"": func(t *rapid.T) {
				if m.base != nil && (s.mark.raw < s.start || s.mark.raw >= s.start+utf8.UTFMax && s.start > m.base.raw) {
					t.Fatalf("the mark is %+v, the start %d", s.mark, s.start)
				}
			},
		})
	})
}

func TestSeekRaw(t *testing.T) {
	s := stream{ring: ring{limit: 10}}
	s.write([]byte("0123456789abcde"))
	for asked, want := range map[int64]int64{0: 5, 5: 5, 7: 7, 15: 15, 16: 15} {
		if got := s.seekRaw(asked); got != (place{raw: want}) {
			t.Errorf("%d: got %+v, want %d", asked, got, want)
		}
	}
}
