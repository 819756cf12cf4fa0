package wire

import (
	"bytes"
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Text is a JSON string that keeps the bytes it was sent with. encoding/json
// replaces a byte that is not UTF-8 by three others, and a server that cuts a
// code point at the border of two messages would then shift every offset
// behind it (§6.4 counts bytes).
type Text string

func (t *Text) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return nil
	}
	if len(data) < 2 || data[0] != '"' {
		return fmt.Errorf("want a string, got %.20s", data)
	}
	*t = unescapeText(data[1 : len(data)-1]) // encoding/json has checked the syntax
	return nil
}

// unescapeText is the text of a JSON string, whose syntax has been checked.
func unescapeText(data []byte) Text {
	i := bytes.IndexByte(data, '\\')
	if i < 0 {
		return Text(data)
	}
	out := make([]byte, 0, len(data))
	for ; i >= 0; i = bytes.IndexByte(data, '\\') {
		out = append(out, data[:i]...)
		data = data[i:]
		size := 2
		switch c := data[1]; c {
		case 'u':
			var r rune
			r, size = unescape(data)
			out = utf8.AppendRune(out, r)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		default: // quote, backslash and slash stand for themselves
			out = append(out, c)
		}
		data = data[size:]
	}
	return Text(append(out, data...))
}

// unescape reads the \uXXXX, or the surrogate pair of two, that s starts with,
// and how long it is. Half a pair is U+FFFD.
func unescape(s []byte) (rune, int) {
	r := hex4(s)
	if !utf16.IsSurrogate(r) {
		return r, 6
	}
	if len(s) >= 12 && s[6] == '\\' && s[7] == 'u' {
		if pair := utf16.DecodeRune(r, hex4(s[6:])); pair != utf8.RuneError {
			return pair, 12
		}
	}
	return utf8.RuneError, 6
}

func hex4(s []byte) rune {
	v, _ := strconv.ParseUint(string(s[2:6]), 16, 32)
	return rune(v)
}
