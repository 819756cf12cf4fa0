package wire

import (
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
	data = data[1 : len(data)-1] // encoding/json has checked the syntax
	out := make([]byte, 0, len(data))
	for i := 0; i < len(data); {
		if data[i] != '\\' {
			out = append(out, data[i])
			i++
			continue
		}
		switch c := data[i+1]; c {
		case 'u':
			r, n := unescape(data[i:])
			out = utf8.AppendRune(out, r)
			i += n
			continue
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
		i += 2
	}
	*t = Text(out)
	return nil
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
