package tunnel

import (
	"encoding/binary"
	"fmt"
)

// This file defines the frames of yamux version 0 (§7.2).

const (
	headerSize = 12
	maxPayload = 64 << 10  // of a DATA frame that is sent; Python peers accept 1 MiB a message
	baseWindow = 256 << 10 // what either end may send on a new stream
)

type kind byte

const (
	kindData kind = iota
	kindWindow
	kindPing
	kindGoAway
)

const (
	flagSYN uint16 = 1 << iota
	flagACK
	flagFIN
	flagRST
)

// Codes of GO_AWAY.
const (
	goAwayNormal   = 0
	goAwayProtocol = 1
)

type header struct {
	kind   kind
	flags  uint16
	stream uint32
	length uint32 // of the payload of DATA, the delta of a window, the value of a ping, the code of GO_AWAY
}

func (h header) put(b []byte) {
	_ = b[headerSize-1]
	b[0], b[1] = 0, byte(h.kind)
	binary.BigEndian.PutUint16(b[2:], h.flags)
	binary.BigEndian.PutUint32(b[4:], h.stream)
	binary.BigEndian.PutUint32(b[8:], h.length)
}

func (h header) append(b []byte) []byte {
	var raw [headerSize]byte
	h.put(raw[:])
	return append(b, raw[:]...)
}

func parseHeader(b []byte) (header, error) {
	h := header{kind(b[1]), binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])}
	switch forStream := h.kind == kindData || h.kind == kindWindow; {
	case b[0] != 0:
		return h, protocolError(fmt.Sprintf("a frame of version %d", b[0]))
	case h.kind > kindGoAway:
		return h, protocolError(fmt.Sprintf("a frame of type %d", h.kind))
	case forStream && h.stream == 0:
		return h, protocolError("a frame of a stream with number 0")
	case !forStream && h.stream != 0:
		return h, protocolError(fmt.Sprintf("a frame of the session with stream number %d", h.stream))
	}
	return h, nil
}
