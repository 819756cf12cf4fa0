// Package yamuxpeer is the other end of a tunnel, for tests: yamux, over a
// WebSocket or a plain connection, written from protocol.md §7 and RFC 6455 alone, so that it shares no
// mistake with package tunnel. A Peer sends and reads frames as it is told; a
// Session is a Peer that behaves as the reference client does, 256 KiB windows
// and all, and that writes down what the other end does against the table.
package yamuxpeer

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// This file defines frames, and a peer that sends any of them.

// The types and flags of frames.
const (
	Data         = 0
	WindowUpdate = 1
	Ping         = 2
	GoAway       = 3

	SYN = 1
	ACK = 2
	FIN = 4
	RST = 8
)

// Frame is a frame of yamux. Length is that of the payload for Data, and a value
// for the other types.
type Frame struct {
	Version, Type  byte
	Flags          uint16
	Stream, Length uint32
	Payload        []byte
}

// Bytes is the frame on the wire.
func (f Frame) Bytes() []byte {
	b := []byte{f.Version, f.Type}
	b = binary.BigEndian.AppendUint16(b, f.Flags)
	b = binary.BigEndian.AppendUint32(b, f.Stream)
	b = binary.BigEndian.AppendUint32(b, f.Length)
	return append(b, f.Payload...)
}

// DataFrame is a frame of data.
func DataFrame(stream uint32, flags uint16, payload string) Frame {
	return Frame{Flags: flags, Stream: stream, Length: uint32(len(payload)), Payload: []byte(payload)}
}

// Hex reads bytes that are written as in protocol.md §14. It panics at others.
func Hex(text string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// maxMessage is what the reference takes in one message (§7.1).
const maxMessage = 1 << 20

// patience is how long a peer waits for anything.
const patience = 60 * time.Second

// Peer is a connection and what was read of it. One goroutine reads; any may
// send.
type Peer struct {
	Socket *websocket.Conn // or nil
	plain  net.Conn        // or nil

	mu      sync.Mutex // held while a message is sent
	message io.Reader  // the one that is being read
}

// New makes a peer of a connection that is no WebSocket.
func New(conn net.Conn) *Peer { return &Peer{plain: conn} }

// Dial opens a tunnel's WebSocket. The answer is there also if it fails.
func Dial(ctx context.Context, dialer *websocket.Dialer, url string, header http.Header) (*Peer, *http.Response, error) {
	conn, res, err := dialer.DialContext(ctx, url, header)
	if err != nil {
		return nil, res, err
	}
	return newPeer(conn), res, nil
}

// Upgrade takes a WebSocket of a client.
func Upgrade(w http.ResponseWriter, r *http.Request) (*Peer, error) {
	conn, err := new(websocket.Upgrader).Upgrade(w, r, nil)
	if err != nil {
		return nil, err
	}
	return newPeer(conn), nil
}

func newPeer(conn *websocket.Conn) *Peer {
	conn.SetReadLimit(maxMessage)
	conn.SetReadDeadline(time.Now().Add(patience))
	return &Peer{Socket: conn}
}

// Close ends the connection without a word.
func (p *Peer) Close() {
	if p.Socket == nil {
		p.plain.Close()
		return
	}
	p.Socket.Close()
}

// Write sends bytes in one message.
func (p *Peer) Write(b []byte) (int, error) {
	return len(b), p.Message(websocket.BinaryMessage, b)
}

// Message sends a message of this kind.
func (p *Peer) Message(kind int, b []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.Socket == nil {
		_, err := p.plain.Write(b)
		return err
	}
	p.Socket.SetWriteDeadline(time.Now().Add(patience))
	return p.Socket.WriteMessage(kind, b)
}

// Send sends frames, each in a message of its own.
func (p *Peer) Send(frames ...Frame) error {
	for _, f := range frames {
		if _, err := p.Write(f.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// Read reads the stream of bytes that the messages form.
func (p *Peer) Read(b []byte) (int, error) {
	if p.Socket == nil {
		return p.plain.Read(b)
	}
	for {
		if p.message == nil {
			kind, message, err := p.Socket.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, errors.New("a text message came")
			}
			p.message = message
		}
		n, err := p.message.Read(b)
		if err == io.EOF {
			p.message = nil
			err = nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Next reads the next frame.
func (p *Peer) Next() (Frame, error) {
	var head [12]byte
	if _, err := io.ReadFull(p, head[:]); err != nil {
		return Frame{}, err
	}
	f := Frame{
		Version: head[0], Type: head[1], Flags: binary.BigEndian.Uint16(head[2:]),
		Stream: binary.BigEndian.Uint32(head[4:]), Length: binary.BigEndian.Uint32(head[8:]),
	}
	if f.Type != Data {
		return f, nil
	}
	if f.Length > maxMessage {
		return f, fmt.Errorf("a frame of %d bytes", f.Length)
	}
	f.Payload = make([]byte, f.Length)
	_, err := io.ReadFull(p, f.Payload)
	return f, err
}

// NextOf reads up to a frame of this stream, and answers pings on the way.
func (p *Peer) NextOf(stream uint32) (Frame, error) {
	for {
		f, err := p.Next()
		if err != nil || f.Type < Ping && f.Stream == stream {
			return f, err
		}
		if f.Type == Ping && f.Flags&SYN != 0 {
			p.Send(Frame{Type: Ping, Flags: ACK, Length: f.Length})
		}
	}
}

// Ended reads until the other end has closed the WebSocket, and returns the code
// with which it did, or 0 if it was cut.
func (p *Peer) Ended() (code int, err error) {
	for {
		if _, err := p.Next(); err != nil {
			if closed, ok := errors.AsType[*websocket.CloseError](err); ok && closed.Code != websocket.CloseAbnormalClosure {
				return closed.Code, nil
			}
			if timeout, ok := errors.AsType[interface {
				error
				Timeout() bool
			}](err); ok && timeout.Timeout() {
				return 0, fmt.Errorf("it is still open: %w", err)
			}
			return 0, nil
		}
	}
}
