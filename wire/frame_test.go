package wire

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

func TestFrames(t *testing.T) {
	for _, tt := range []struct {
		stream string
		offset int64
		data   string
		want   string
	}{
		{Stdout, 0, "", "01 0000000000000000"},
		{Stdout, 258, "hi", "01 0000000000000102 6869"},
		{Stderr, 1 << 40, "\xff", "02 0000010000000000 ff"},
	} {
		frame := append(AppendOutputHeader(nil, tt.stream, tt.offset), tt.data...)
		if got := hex.EncodeToString(frame); got != strings.ReplaceAll(tt.want, " ", "") {
			t.Errorf("got %s, want %s", got, tt.want)
		}
		stream, offset, data, err := DecodeOutput(frame)
		if stream != tt.stream || offset != tt.offset || string(data) != tt.data || err != nil {
			t.Errorf("%s: got %q at %d of %s, %v", tt.want, data, offset, stream, err)
		}
	}
	if got := AppendStdin(nil, []byte("a\x00\xff")); string(got) != "\x00a\x00\xff" {
		t.Errorf("got %q", got)
	}
	if data, err := DecodeStdin([]byte("\x00a\x00")); string(data) != "a\x00" || err != nil {
		t.Errorf("got %q, %v", data, err)
	}
}

func TestFramesRefused(t *testing.T) {
	for frame, want := range map[string]string{
		"":                                              "0 bytes",
		"\x01\x00\x00":                                  "3 bytes",
		"\x00\x00\x00\x00\x00\x00\x00\x00\x00":          "kind 0",
		"\x03\x00\x00\x00\x00\x00\x00\x00\x00":          "kind 3",
		"\x01\xff\xff\xff\xff\xff\xff\xff\xff":          "no stream reaches",
		"\x01\x7f\xff\xff\xff\xff\xff\xff\xff":          "no stream reaches",
		"\x01" + strings.Repeat("\x00", MaxOutputFrame): "carries 262145 bytes",
	} {
		if _, _, _, err := DecodeOutput([]byte(frame)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: got %v, want …%s…", frame, err, want)
		}
	}
	for frame, want := range map[string]string{"": "is empty", "\x01x": "kind 1 is no input"} {
		if _, err := DecodeStdin([]byte(frame)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want …%s…", frame, err, want)
		}
	}
}

// What is read as a frame is written as the same bytes again.
func FuzzFrame(f *testing.F) {
	f.Add(AppendStdin(nil, []byte("x")))
	f.Add(append(AppendOutputHeader(nil, Stderr, 7), "x"...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, frame []byte) {
		if data, err := DecodeStdin(frame); err == nil && !bytes.Equal(AppendStdin(nil, data), frame) {
			t.Errorf("%q carries %q", frame, data)
		}
		stream, offset, data, err := DecodeOutput(frame)
		if err == nil && (offset < 0 || offset+int64(len(data)) < 0 || !bytes.Equal(append(AppendOutputHeader(nil, stream, offset), data...), frame)) {
			t.Errorf("%q carries %q at %d of %s", frame, data, offset, stream)
		}
	})
}
