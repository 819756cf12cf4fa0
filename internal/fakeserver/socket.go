//go:build linux

package fakeserver

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines upgraded connections: the frames that pass are logged, cut
// and replaced as ordered (RFC 6455 §5.2).

var errEnded = errors.New("the connection was ended by order")

// socket is the client's side of an upgraded connection, as the server has it.
type socket struct {
	net.Conn
	fromClient *bufio.Reader
	s          *Server
	faults     map[string]*fault
	opaque     bool // a tunnel's: when it is pinged, and in what pieces, is chance

	heard    []byte // from the client, up to the end of a frame
	message  []byte // of the client, up to its last frame
	pending  []byte // for the client, up to the end of a frame
	upgraded bool
	messages int // sent to the client
	sent     int // bytes to the client since the upgrade
	ended    error

	ctx  context.Context // ends when the client is gone, or the socket is closed
	gone context.CancelFunc
}

func (c *socket) Close() error {
	c.s.mu.Lock()
	delete(c.s.conns, c.Conn)
	c.s.mu.Unlock()
	c.gone()
	return c.Conn.Close()
}

// CloseWrite ends the way to the client.
func (c *socket) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

func (c *socket) Read(p []byte) (int, error) {
	n, err := c.fromClient.Read(p)
	if err != nil {
		c.gone()
	}
	if c.opaque {
		return n, err
	}
	c.heard = append(c.heard, p[:n]...)
	for {
		f, size := parseFrame(c.heard)
		if size == 0 {
			return n, err
		}
		c.heard = c.heard[size:]
		if f.control() {
			continue
		}
		if f.opcode != 0 {
			c.message = []byte{f.opcode}
		}
		c.message = append(c.message, f.payload...)
		if f.fin {
			c.s.logMessage(c.message[0], c.message[1:])
		}
	}
}

func (s *Server) logMessage(opcode byte, data []byte) {
	if opcode == websocket.TextMessage {
		s.log.add("WS > " + compact(data))
	} else {
		s.log.add(fmt.Sprintf("WS > <binary %d bytes>", len(data)))
	}
}

// Write takes the head of the answer and then frames, in pieces of any size.
// The one who writes learns at the next piece that the connection was ended.
func (c *socket) Write(p []byte) (int, error) {
	if c.ended == nil && !c.s.pass(c.ctx, "a piece of a WebSocket") {
		c.ended = errEnded
	}
	if c.ended != nil {
		return 0, c.ended
	}
	c.pending = append(c.pending, p...)
	if !c.upgraded {
		i := bytes.Index(c.pending, []byte("\r\n\r\n"))
		if i < 0 {
			return len(p), nil
		}
		if _, err := c.Conn.Write(c.pending[:i+4]); err != nil {
			return 0, err
		}
		c.pending = c.pending[i+4:]
		c.upgraded = true
		c.ended = c.misbehave()
	}
	for c.ended == nil {
		f, size := parseFrame(c.pending)
		if size == 0 {
			break
		}
		raw := c.pending[:size]
		c.pending = c.pending[size:]
		c.ended = c.deliver(f, raw)
	}
	return len(p), nil
}

// deliver sends one frame of the server on its way.
func (c *socket) deliver(f frame, raw []byte) error {
	if c.faults["split-utf8"] != nil && f.opcode == websocket.TextMessage && f.fin {
		raw = splitUTF8(f.payload, raw)
	}
	if err := c.emit(raw); err != nil {
		return err
	}
	if f.control() || !f.fin {
		return nil
	}
	c.messages++
	return c.misbehave()
}

// misbehave does what was ordered for the present number of messages.
func (c *socket) misbehave() error {
	if f := c.faults["cut-ws"]; f != nil && f.after == 0 {
		return c.emit(nil)
	}
	if f := c.faults["garbage-ws"]; f != nil && f.after == c.messages {
		return c.emit([]byte{0xff, 0xff, 0xff, 0xff}) // reserved bits, reserved opcode
	}
	if f := c.faults["close"]; f != nil && f.after == c.messages {
		c.emit(binary.BigEndian.AppendUint16([]byte{0x88, 2}, f.code))
		return errEnded
	}
	return nil
}

// emit sends bytes, up to the one after which the connection is to be cut.
func (c *socket) emit(p []byte) error {
	cut := false
	if f := c.faults["cut-ws"]; f != nil && f.after <= c.sent+len(p) {
		p, cut = p[:f.after-c.sent], true
	}
	n, err := c.Conn.Write(p)
	c.sent += n
	if cut {
		c.Conn.Close()
		return errEnded
	}
	return err
}

type frame struct {
	fin     bool
	opcode  byte
	payload []byte // without its mask
}

func (f frame) control() bool { return f.opcode >= 8 }

// parseFrame reads the frame that p starts with; size 0 is that it is not whole.
func parseFrame(p []byte) (f frame, size int) {
	if len(p) < 2 {
		return f, 0
	}
	length, at := uint64(p[1]&0x7f), 2
	switch {
	case length == 126 && len(p) >= 4:
		length, at = uint64(binary.BigEndian.Uint16(p[2:])), 4
	case length == 127 && len(p) >= 10:
		length, at = binary.BigEndian.Uint64(p[2:]), 10
	case length >= 126:
		return f, 0
	}
	var mask []byte
	if p[1]&0x80 != 0 {
		if len(p) < at+4 {
			return f, 0
		}
		mask = p[at : at+4]
		at += 4
	}
	if uint64(len(p)-at) < length {
		return f, 0
	}
	size = at + int(length)
	f = frame{fin: p[0]&0x80 != 0, opcode: p[0] & 0xf, payload: bytes.Clone(p[at:size])}
	for i := range f.payload {
		if mask != nil {
			f.payload[i] ^= mask[i%4]
		}
	}
	return f, size
}

// textFrame is a whole message as a server sends it.
func textFrame(payload []byte) []byte {
	head := []byte{0x81}
	switch n := len(payload); {
	case n < 126:
		head = append(head, byte(n))
	case n < 1<<16:
		head = binary.BigEndian.AppendUint16(append(head, 126), uint16(n))
	default:
		head = binary.BigEndian.AppendUint64(append(head, 127), uint64(n))
	}
	return append(head, payload...)
}

// splitUTF8 is the fault "split-utf8": it returns the frames in place of that
// of one message, which it cuts before every byte that begins no character.
func splitUTF8(text, raw []byte) []byte {
	message, err := wire.DecodeMessage(text)
	out, ok := message.(*wire.Output)
	if err != nil || !ok || out.Stream != wire.Stdout {
		return raw
	}
	var frames []byte
	data := []byte(out.Data)
	for start, end := 0, 1; start < len(data); end++ {
		if end == len(data) || !utf8.RuneStart(data[end]) {
			piece := fmt.Appendf(nil, `{"type":"stdout","data":"%s","offset":%d}`, escape(data[start:end]), out.Offset+int64(start))
			frames = append(frames, textFrame(piece)...)
			start = end
		}
	}
	return frames
}

// escape is the inside of a JSON string whose other bytes stay as they are.
func escape(data []byte) []byte {
	var out []byte
	for _, b := range data {
		switch {
		case b == '"' || b == '\\':
			out = append(out, '\\', b)
		case b < ' ':
			out = fmt.Appendf(out, `\u%04x`, b)
		default:
			out = append(out, b)
		}
	}
	return out
}

const playTimeout = 10 * time.Second // for a client to say or to read something

// play is the fault "frames": it answers one command by a script.
func (s *Server) play(w http.ResponseWriter, r *http.Request, script []string) {
	upgrader := websocket.Upgrader{}
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer conn.Close()
	read := func() []byte {
		conn.SetReadDeadline(time.Now().Add(playTimeout))
		_, data, err := conn.ReadMessage() // the socket below logs it
		if err != nil {
			return nil
		}
		return data
	}
	first, _ := wire.DecodeMessage(read())
	id := ""
	switch m := first.(type) {
	case *wire.Execute:
		id = m.CommandID
	case *wire.Reconnect:
		id = m.CommandID
	}
	for _, line := range append(script, "close 1000") {
		word, arg, _ := strings.Cut(line, " ")
		switch word {
		case "cut":
			return
		case "read":
			read()
		case "close":
			code, _ := strconv.Atoi(arg)
			conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, ""), time.Now().Add(playTimeout))
			for read() != nil {
			}
			return
		default:
			conn.SetWriteDeadline(time.Now().Add(playTimeout))
			if conn.WriteMessage(websocket.TextMessage, []byte(strings.ReplaceAll(line, "$ID", id))) != nil {
				return
			}
		}
	}
}
