package wire

import (
	"encoding/json"
	"testing"

	"pgregory.net/rapid"
)

// byJSON is what encoding/json makes of an output message.
func byJSON(t interface{ Fatal(...any) }, m *Output) string {
	fields, err := plainJSON(m)
	if err != nil {
		t.Fatal(err)
	}
	return `{"type":"` + m.Stream + `",` + string(fields[1:])
}

// TestOutputIsTheJSONThatItWas compares what is written by hand with
// encoding/json, and reads it again.
func TestOutputIsTheJSONThatItWas(t *testing.T) {
	piece := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"\"", "\\", "\\u0041", "\n\t\r\b\f", "\x00\x1f\x7f", "<&>", "\u2028\u2029", "\xff", "\xe2\x82", "é😀", "/", "�"}))
	rapid.Check(t, func(t *rapid.T) {
		m := &Output{Stream: rapid.SampledFrom([]string{Stdout, Stderr}).Draw(t, "stream"), Offset: rapid.Int64Min(0).Draw(t, "offset")}
		for _, s := range rapid.SliceOf(piece).Draw(t, "data") {
			m.Data += Text(s)
		}
		text, err := EncodeMessage(m)
		if err != nil || string(text) != byJSON(t, m) {
			t.Fatalf("got %s (%v)\nwant %s", text, err, byJSON(t, m))
		}
		want := *m
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatal(err)
		}
		if got := decodeOutput(text); got == nil || *got != want {
			t.Fatalf("%s was read as %+v, want %+v", text, got, want)
		}
	})
}

// FuzzDecodeOutput: what is read by hand is what encoding/json reads.
func FuzzDecodeOutput(f *testing.F) {
	for _, s := range []string{
		`{"type":"stdout","data":"a\nb","offset":7}`, `{"type":"stderr","data":"\ud83d\ude00\ud83d\/","offset":0}`,
		`{"type":"stdout","data":"","offset":01}`, `{"type":"stdout","data":"\x","offset":1}`, "{\"type\":\"stdout\",\"data\":\"\xff\n\",\"offset\":1}",
		`{"type":"stdout","data":"a","offset":-1}`, `{"type":"stdout","data":"a","offset":9223372036854775808}`, `{"type":"stdout","data":"a","offset":1}}`,
		`{"type":"stdout","data":"a","offset":1,"data":"b"}`, `{"type":"stdout","data":"\u12`, `{"type":"stdout","data":"a\`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got := decodeOutput(data)
		if got == nil {
			return
		}
		want := Output{Stream: got.Stream}
		if err := json.Unmarshal(data, &want); err != nil {
			t.Fatalf("%q was read as %+v, and is an error: %v", data, got, err)
		}
		if *got != want {
			t.Fatalf("%q was read as %+v, want %+v", data, got, want)
		}
	})
}
