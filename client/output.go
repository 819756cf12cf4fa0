package client

import "strings"

// This file defines what a handle keeps of a command's output.

// output is all that has come of a stream, less what KeepLast forgets.
type output struct {
	text kept
	raw  *kept // nil as long as it is the text
	last int64 // bytes that are kept at least; 0 is all
	lost int64 // bytes, in gaps
}

func (o *output) add(c Chunk) {
	o.lost += c.Gap
	if o.raw == nil && c.Raw != c.Data {
		raw := o.text.clone()
		o.raw = &raw
	}
	if o.raw != nil {
		o.raw.add(c.Raw, o.last)
	}
	o.text.add(c.Data, o.last)
}

func (o *output) bytes() string {
	if o.raw != nil {
		return o.raw.String()
	}
	return o.text.String()
}

// kept is a text in pieces, so that neither to add to it nor to forget its
// beginning copies what is there.
type kept struct {
	pieces    []string
	small     []byte // what came in pieces that are not worth an entry
	size      int64
	forgotten int64 // bytes before the first piece
}

const smallPieces = 16 << 10

// add appends s. If last is not 0, so much stays and whole pieces before it go.
func (k *kept) add(s string, last int64) {
	k.size += int64(len(s))
	if len(s) < smallPieces {
		k.small = append(k.small, s...)
		s = ""
	}
	if s != "" || len(k.small) >= smallPieces {
		k.flush()
	}
	if s != "" {
		k.pieces = append(k.pieces, s)
	}
	for last > 0 && len(k.pieces) > 0 && k.size-int64(len(k.pieces[0])) >= last {
		n := int64(len(k.pieces[0]))
		k.size -= n
		k.forgotten += n
		k.pieces[0] = ""
		k.pieces = k.pieces[1:]
	}
}

func (k *kept) flush() {
	if len(k.small) > 0 {
		k.pieces = append(k.pieces, string(k.small))
		k.small = k.small[:0]
	}
}

func (k *kept) clone() kept {
	return kept{pieces: append([]string(nil), k.pieces...), small: append([]byte(nil), k.small...), size: k.size, forgotten: k.forgotten}
}

// String puts the pieces together, once.
func (k *kept) String() string {
	k.flush()
	if len(k.pieces) > 1 {
		k.pieces = []string{strings.Join(k.pieces, "")}
	}
	if len(k.pieces) == 0 {
		return ""
	}
	return k.pieces[0]
}
