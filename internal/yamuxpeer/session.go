package yamuxpeer

import (
	"errors"
	"fmt"
	"io"
	"sync"
)

// This file defines the peer that behaves as the reference client does, or as a
// server of its kind would.

const (
	window   = 256 << 10
	credit   = 128 << 10 // arrived, until an update is sent
	mostData = 64 << 10  // in one frame (§7.2)
)

// ErrReset is what reading and writing a stream gives once either end has reset
// it or the session is over.
var ErrReset = errors.New("the stream was reset")

// Session is a peer with streams. Its goroutine ends with the WebSocket.
type Session struct {
	*Peer
	client bool
	ended  chan struct{}
	opened chan *Stream // by the other end

	mu      sync.Mutex
	changed *sync.Cond
	streams map[uint32]*Stream
	next    uint32
	gone    bool     // a GO_AWAY came, or the WebSocket has ended
	wrong   []string // what the other end did that it must not do
}

// NewSession makes a session of a peer that nobody else reads from.
func NewSession(p *Peer, client bool) *Session {
	s := &Session{Peer: p, client: client, ended: make(chan struct{}), opened: make(chan *Stream, 4096), streams: map[uint32]*Stream{}, next: 1}
	s.changed = sync.NewCond(&s.mu)
	go s.run()
	return s
}

// Close says GO_AWAY and ends the WebSocket, and waits for the session's end.
func (s *Session) Close() {
	s.Send(Frame{Type: GoAway})
	s.Peer.Close()
	<-s.ended
}

// Wrong lists what the other end did against the protocol so far.
func (s *Session) Wrong() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.wrong...)
}

func (s *Session) run() {
	defer close(s.ended)
	defer s.Peer.Close()
	for {
		f, err := s.Next()
		s.mu.Lock()
		if err != nil || f.Type == GoAway {
			s.gone = true
			for _, st := range s.streams {
				st.reset = true
			}
			close(s.opened)
			s.changed.Broadcast()
			s.mu.Unlock()
			return
		}
		answer := s.take(f)
		s.changed.Broadcast()
		s.mu.Unlock()
		if answer != nil {
			s.Send(*answer)
		}
	}
}

// take does what a frame says, and returns what is to be answered.
func (s *Session) take(f Frame) *Frame {
	note := func(format string, args ...any) {
		if len(s.wrong) < 20 {
			s.wrong = append(s.wrong, fmt.Sprintf(format, args...)+fmt.Sprintf(" (type %d flags %d stream %d length %d)", f.Type, f.Flags, f.Stream, f.Length))
		}
	}
	switch {
	case f.Version != 0 || f.Type > GoAway || f.Flags > 15:
		note("a frame that is none of the protocol")
		return nil
	case f.Type == Ping:
		if f.Stream != 0 {
			note("a ping on a stream")
		}
		if f.Flags&SYN != 0 {
			return &Frame{Type: Ping, Flags: ACK, Length: f.Length}
		}
		return nil
	}
	var answer *Frame
	st := s.streams[f.Stream]
	if f.Flags&SYN != 0 {
		switch {
		case s.client:
			note("the server opens a stream")
			return nil
		case st != nil || f.Stream != s.next:
			note("a stream that is out of turn: want %d", s.next)
			return nil
		}
		s.next += 2
		st = s.newStream(f.Stream)
		st.acked = true
		answer = &Frame{Type: WindowUpdate, Flags: ACK, Stream: f.Stream}
		s.opened <- st
	}
	if st == nil {
		if f.Flags&RST == 0 {
			note("a stream that was never opened")
		}
		return nil
	}
	if f.Flags&ACK != 0 {
		if !s.client || st.acked {
			note("an acknowledgement of nothing")
		}
		st.acked = true
	}
	if !st.acked && f.Flags&RST == 0 {
		note("a stream that is used before it is acknowledged")
	}
	switch f.Type {
	case WindowUpdate:
		st.send += int64(f.Length)
		if st.send > 1<<32 {
			note("a window beyond all bounds")
		}
	case Data:
		if f.Length > 0 && st.fin {
			note("data after the end")
		}
		if f.Length > mostData {
			note("a long frame")
		}
		if st.receive -= int64(f.Length); st.receive < 0 {
			note("more than the window takes: %d", st.receive)
		}
		st.arrived += int64(f.Length)
		if !st.deaf {
			st.buf = append(st.buf, f.Payload...)
		}
	}
	st.fin = st.fin || f.Flags&FIN != 0
	st.reset = st.reset || f.Flags&RST != 0
	return answer
}

func (s *Session) newStream(id uint32) *Stream {
	st := &Stream{s: s, id: id, send: window, receive: window}
	s.streams[id] = st
	return st
}

// Open opens a stream, and does not wait until that is acknowledged.
func (s *Session) Open() *Stream {
	s.mu.Lock()
	st := s.newStream(s.next)
	s.next += 2
	st.reset = s.gone
	s.mu.Unlock()
	s.Send(Frame{Type: WindowUpdate, Flags: SYN, Stream: st.id})
	return st
}

// Connect opens a stream to a port and returns it with the status byte.
func (s *Session) Connect(port uint16) (*Stream, byte, error) {
	st := s.Open()
	if _, err := st.Write([]byte{1, byte(port >> 8), byte(port)}); err != nil {
		return st, 0, err
	}
	var status [1]byte
	_, err := io.ReadFull(st, status[:])
	return st, status[0], err
}

// Accept returns the next stream of the other end, or nil after the last.
func (s *Session) Accept() *Stream { return <-s.opened }

// Stream is a stream. One goroutine reads it and one writes it.
type Stream struct {
	s  *Session
	id uint32

	// What follows is guarded by the session.
	acked, fin, reset bool
	deaf              bool
	buf               []byte
	send              int64 // bytes that the other end still takes
	receive           int64 // bytes that it may still send
	arrived           int64 // since the last update
}

// ID is the stream's number.
func (st *Stream) ID() uint32 { return st.id }

// Read reads what came. io.EOF is the other end's FIN.
func (st *Stream) Read(p []byte) (int, error) {
	s := st.s
	s.mu.Lock()
	for len(st.buf) == 0 && !st.fin && !st.reset {
		s.changed.Wait()
	}
	n := copy(p, st.buf)
	st.buf = st.buf[n:]
	var update int64
	if st.arrived >= credit && !st.fin && !st.reset {
		update, st.arrived = st.arrived, 0
		st.receive += update
	}
	reset := st.reset
	s.mu.Unlock()
	if update > 0 {
		s.Send(Frame{Type: WindowUpdate, Stream: st.id, Length: uint32(update)})
	}
	switch {
	case n > 0:
		return n, nil
	case reset:
		return 0, ErrReset
	}
	return 0, io.EOF
}

// Write sends as far as the window goes, and waits for more.
func (st *Stream) Write(p []byte) (int, error) {
	s, done := st.s, 0
	for done < len(p) {
		s.mu.Lock()
		for st.send == 0 && !st.reset {
			s.changed.Wait()
		}
		n := min(int64(len(p)-done), st.send, 16<<10)
		st.send -= n
		reset := st.reset
		s.mu.Unlock()
		if reset {
			return done, ErrReset
		}
		f := Frame{Stream: st.id, Length: uint32(n), Payload: p[done : done+int(n)]}
		if err := s.Send(f); err != nil {
			return done, err
		}
		done += int(n)
	}
	return done, nil
}

// CloseWrite sends FIN.
func (st *Stream) CloseWrite() error {
	return st.s.Send(Frame{Flags: FIN, Stream: st.id})
}

// Close is how the reference closes: FIN, and what still comes is not read, so
// that its window runs empty (§7.6).
func (st *Stream) Close() error {
	st.s.mu.Lock()
	st.deaf, st.buf = true, nil
	st.s.mu.Unlock()
	return st.CloseWrite()
}

// Reset sends RST.
func (st *Stream) Reset() error {
	st.s.mu.Lock()
	st.reset = true
	st.s.mu.Unlock()
	return st.s.Send(Frame{Type: WindowUpdate, Flags: RST, Stream: st.id})
}
