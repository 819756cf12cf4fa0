package wire

import (
	"bytes"
	"strconv"
	"unicode/utf8"
)

// This file defines the two directions of the output message by hand: a command
// that writes much has the others' JSON take most of the time. What it does not
// know for certain it leaves to encoding/json.

const hexDigits = "0123456789abcdef"

// appendOutput appends what EncodeMessage makes of m.
func appendOutput(p []byte, m *Output) []byte {
	p = append(p, `{"type":"`...)
	p = append(p, m.Stream...)
	p = append(p, `","data":`...)
	p = appendString(p, string(m.Data))
	p = append(p, `,"offset":`...)
	p = strconv.AppendInt(p, m.Offset, 10)
	return append(p, '}')
}

// appendString appends s as a JSON string, as encoding/json does without the
// escapes for HTML: bytes that are not UTF-8 become U+FFFD.
func appendString(p []byte, s string) []byte {
	p = append(p, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf && c >= ' ' && c != '"' && c != '\\' {
			i++
			continue
		}
		size := 1
		var escape string
		switch c {
		case '"':
			escape = `\"`
		case '\\':
			escape = `\\`
		case '\b':
			escape = `\b`
		case '\f':
			escape = `\f`
		case '\n':
			escape = `\n`
		case '\r':
			escape = `\r`
		case '\t':
			escape = `\t`
		default:
			if c < ' ' {
				escape = `\u00` + hexDigits[c>>4:c>>4+1] + hexDigits[c&0xf:c&0xf+1]
				break
			}
			var r rune
			r, size = utf8.DecodeRuneInString(s[i:])
			switch {
			case r == utf8.RuneError && size == 1:
				escape = `\ufffd`
			case r == '\u2028':
				escape = `\u2028`
			case r == '\u2029':
				escape = `\u2029`
			default:
				i += size
				continue
			}
		}
		p = append(append(p, s[from:i]...), escape...)
		i += size
		from = i
	}
	return append(append(p, s[from:]...), '"')
}

// decodeOutput reads an output message in the shape that appendOutput gives it;
// nil is any other, which need not be wrong.
func decodeOutput(data []byte) *Output {
	rest, ok := bytes.CutPrefix(data, []byte(`{"type":"std`))
	if !ok {
		return nil
	}
	m := &Output{Stream: Stdout}
	if rest, ok = bytes.CutPrefix(rest, []byte(`out","data":"`)); !ok {
		m.Stream = Stderr
		if rest, ok = bytes.CutPrefix(rest, []byte(`err","data":"`)); !ok {
			return nil
		}
	}
	end := endOfString(rest)
	if end < 0 {
		return nil
	}
	text := rest[:end]
	if rest, ok = bytes.CutPrefix(rest[end:], []byte(`","offset":`)); !ok {
		return nil
	}
	number, ok := bytes.CutSuffix(rest, []byte("}"))
	if !ok || len(number) == 0 || number[0] < '0' || number[0] > '9' || len(number) > 1 && number[0] == '0' {
		return nil
	}
	offset, err := strconv.ParseInt(string(number), 10, 64)
	if err != nil {
		return nil
	}
	m.Data, m.Offset = unescapeText(text), offset
	return m
}

// endOfString is where the quote stands that ends the string whose inside s
// starts with; -1 is that it is no valid one.
func endOfString(s []byte) int {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return i
		case c < ' ':
			return -1
		case c != '\\':
			continue
		}
		i++
		if i == len(s) {
			return -1
		}
		switch s[i] {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		case 'u':
			if len(s) < i+5 {
				return -1
			}
			for _, c := range s[i+1 : i+5] {
				if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'f') {
					return -1
				}
			}
			i += 4
		default:
			return -1
		}
	}
	return -1
}
