package tunnel

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// This file defines a stream: its windows, its two halves and its end.

const (
	// stallTimeout is how long a peer that has sent FIN may keep the window at 0
	// (§7.6).
	stallTimeout = 60 * time.Second
	// lingerTimeout is how long a closed stream waits for the peer's FIN.
	lingerTimeout = 60 * time.Second
)

// stream is a connection over a session. Its two halves end independently; after
// both, or a reset, the session forgets it, and what it has received can still be
// read.
type stream struct {
	m  *mux
	id uint32

	mu       sync.Mutex // before the session's
	canRead  sync.Cond
	canWrite sync.Cond

	in         queue
	recvWindow int64 // what the peer may still send
	extra      int64 // how much was offered beyond the base window
	credit     int64 // taken, and not yet given back
	inEnd      error // what is read after the queue; nil while the half is open

	window int64 // what may still be sent
	outEnd error // why nothing can be sent any more; nil while the half is open

	closed     bool   // here
	isAnswered bool   // the peer has shown to know the stream
	forgotten  bool   // by the session
	reading    bool   // somebody is
	writing    bool   // somebody is
	starved    bool   // the writer waits for the window
	failed     bool   // by a reset or with the session
	failing    func() // called once failed, with mu held; may be nil

	readDeadline, writeDeadline deadline
	timer                       *time.Timer // of stallTimeout or lingerTimeout
}

func newStream(m *mux, id uint32) *stream {
	s := &stream{m: m, id: id, recvWindow: baseWindow, window: baseWindow}
	s.canRead.L, s.canWrite.L = &s.mu, &s.mu
	return s
}

// What the session's reader does.

func (s *stream) answered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answeredLocked()
}

func (s *stream) answeredLocked() {
	if !s.isAnswered {
		s.isAnswered = true
		<-s.m.unanswered
	}
}

func (s *stream) enlarge(n uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.window += int64(n)
	if s.starved && n > 0 {
		s.starved = false
		s.stopTimer()
	}
	s.canWrite.Broadcast()
}

// receive reads n bytes of payload.
func (s *stream) receive(r io.Reader, n int64) error {
	s.mu.Lock()
	if n > s.recvWindow {
		s.mu.Unlock()
		return protocolError("more data than the window allows")
	}
	s.recvWindow -= n
	for n > 0 {
		if s.closed || s.inEnd != nil {
			if s.closed && !s.forgotten {
				s.resetLocked() // as TCP answers data that nobody will read
			}
			s.mu.Unlock()
			return discard(r, n)
		}
		c := s.in.reserve(&s.m.buffers, int(min(n, maxPayload)))
		room := c.data[c.w:min(int64(len(c.data)), int64(c.w)+n)]
		s.mu.Unlock()
		if _, err := io.ReadFull(r, room); err != nil {
			return unexpected(err)
		}
		n -= int64(len(room))
		s.mu.Lock()
		s.in.commit(c, len(room))
		s.canRead.Signal()
	}
	s.mu.Unlock()
	return nil
}

func (s *stream) receiveEnd() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inEnd == nil {
		s.inEnd = io.EOF
	}
	s.watchStall()
	s.settle()
}

// fail ends both halves, because of a reset or of the session. An end that the
// peer had sent before stays one.
func (s *stream) fail(reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inEnd == nil {
		s.inEnd = reason
	}
	if s.outEnd == nil {
		s.outEnd = reason
	}
	s.failed = true
	if s.failing != nil {
		s.failing()
	}
	s.settle()
}

// whenFailed has f called once the stream has failed. f must not block.
func (s *stream) whenFailed(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failing = f; s.failed {
		f()
	}
}

// settle wakes everybody up after an end of something, and has the session forget
// the stream after the end of both halves.
func (s *stream) settle() {
	if s.inEnd != nil && s.outEnd != nil {
		if !s.forgotten {
			s.forgotten = true
			s.answeredLocked()
			s.m.forget(s.id)
			s.stopTimer()
		}
		if s.in.size == 0 && s.extra > 0 {
			s.m.unshare(s.extra)
			s.extra = 0
		}
	}
	s.canRead.Broadcast()
	s.canWrite.Broadcast()
}

func (s *stream) stopTimer() {
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
}

// watchStall resets the stream when its writer waits too long for a peer that
// has sent FIN and so may have gone.
func (s *stream) watchStall() {
	if s.timer != nil || !s.starved || s.inEnd != io.EOF {
		return
	}
	s.timer = time.AfterFunc(stallTimeout, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.starved && s.window == 0 && s.outEnd == nil {
			s.outEnd = errStalled
			s.m.enqueue(header{kindWindow, flagRST, s.id, 0})
			s.settle()
		}
	})
}

// Reading.

func (s *stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	var room [1][]byte
	front, err := s.peek(room[:0])
	if err != nil {
		return 0, err
	}
	n := copy(p, front[0])
	s.took(n)
	return n, nil
}

// peek waits for data and appends pieces of it, as far as they have room, which
// stay valid until took.
func (s *stream) peek(pieces [][]byte) ([][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.closed:
			return nil, ErrClosed
		case s.readDeadline.passed():
			return nil, os.ErrDeadlineExceeded
		case s.reading:
		case s.in.size > 0:
			s.reading = true
			return s.in.front(pieces), nil
		case s.inEnd != nil:
			return nil, s.inEnd
		}
		s.canRead.Wait()
	}
}

// took ends what peek has begun, and tells whether the stream has failed.
func (s *stream) took(n int) (failed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reading = false
	s.canRead.Signal()
	if s.closed {
		return s.failed
	}
	s.in.advance(&s.m.buffers, n)
	s.credit += int64(n)
	if s.inEnd != nil {
		s.settle()
		return s.failed
	}
	if s.credit < min((baseWindow+s.extra)/2, creditStep) {
		return s.failed
	}
	extra := s.m.share(s.extra, s.extra-s.credit)
	grant := s.credit + extra - s.extra
	s.extra, s.credit = extra, 0
	if grant > 0 {
		s.recvWindow += grant
		s.m.enqueue(header{kindWindow, 0, s.id, uint32(grant)})
	}
	return s.failed
}

// Writing.

func (s *stream) Write(p []byte) (n int, err error) {
	if err := s.beginWrite(); err != nil {
		return 0, err
	}
	defer s.endWrite()
	f := s.m.buffers.burst()
	defer s.m.buffers.bursts.Put(f)
	for n < len(p) && err == nil {
		rest := p[n:]
		var step int
		step, _ = f.fill(func(room []byte) (int, error) {
			m := copy(room, rest)
			rest = rest[m:]
			return m, nil
		})
		step, err = s.sendBurst(f, step, func() {})
		n += step
	}
	return n, err
}

// writeBurst writes n bytes that lie in the payloads of f. It calls waits, which
// must not block, whenever it has to wait for the window.
func (s *stream) writeBurst(f *burst, n int, waits func()) error {
	if err := s.beginWrite(); err != nil {
		return err
	}
	defer s.endWrite()
	_, err := s.sendBurst(f, n, waits)
	return err
}

// sendBurst sends n bytes as the window lets it, if it can as one message. It
// tells how much it has sent, and calls waits
// whenever it has to wait.
func (s *stream) sendBurst(f *burst, n int, waits func()) (sent int, err error) {
	for sent < n {
		step, err := s.grant(n-sent, waits)
		if err != nil {
			return sent, err
		}
		// What was sent ended somewhere in a frame. The header of what follows lies
		// over the end of it.
		first, within := sent/maxPayload, sent%maxPayload
		begin := first*frameSize + within
		at := begin
		for left := step; left > 0; {
			length := min(left, maxPayload-within)
			header{kindData, 0, s.id, uint32(length)}.put(f[at:])
			at += headerSize + length
			left -= length
			within = 0
		}
		if err := s.m.send(f[begin:at]); err != nil {
			return sent, err
		}
		sent += step
	}
	return sent, nil
}

// beginWrite waits for the other writers of the stream.
func (s *stream) beginWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if err := s.writeError(); err != nil {
			return err
		}
		if !s.writing {
			s.writing = true
			return nil
		}
		s.canWrite.Wait()
	}
}

func (s *stream) endWrite() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writing = false
	s.canWrite.Broadcast()
}

func (s *stream) writeError() error {
	switch {
	case s.closed:
		return ErrClosed
	case s.writeDeadline.passed():
		return os.ErrDeadlineExceeded
	}
	return s.outEnd
}

// grant waits for the window and takes up to n of it.
func (s *stream) grant(n int, waits func()) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if err := s.writeError(); err != nil {
			if s.starved {
				s.starved = false
				s.stopTimer()
			}
			return 0, err
		}
		if s.window > 0 {
			step := min(int64(n), s.window)
			s.window -= step
			return int(step), nil
		}
		s.starved = true
		s.watchStall()
		waits()
		s.canWrite.Wait()
	}
}

// Ending.

// CloseWrite sends FIN once a write that is under way is done.
func (s *stream) CloseWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.writing && !s.closed && s.outEnd == nil {
		s.canWrite.Wait()
	}
	switch {
	case s.closed:
		return ErrClosed
	case s.outEnd == errFinished:
		return nil
	case s.outEnd != nil:
		return s.outEnd
	}
	s.finish()
	return nil
}

func (s *stream) finish() {
	s.outEnd = errFinished
	s.m.enqueue(header{kindData, flagFIN, s.id, 0})
	s.settle()
}

// waitFinished waits until nothing can be sent any more, and returns nil if that
// is because of CloseWrite.
func (s *stream) waitFinished() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.closed:
			return ErrClosed
		case s.outEnd == errFinished:
			return nil
		case s.outEnd != nil:
			return s.outEnd
		}
		s.canWrite.Wait()
	}
}

// waitForgotten waits until both halves have ended.
func (s *stream) waitForgotten() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.forgotten {
		s.canWrite.Wait()
	}
}

// Close ends both halves as closing a TCP socket does: what was written still
// arrives, but what was or will be received and is not read makes a reset of it.
func (s *stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.settle()
	for s.writing { // the frame that is being written
		s.canWrite.Wait()
	}
	switch {
	case s.forgotten:
		s.in.drop()
		s.settle()
	case s.in.size > 0:
		s.resetLocked()
	default:
		if s.outEnd == nil {
			s.finish()
		}
		if !s.forgotten {
			s.stopTimer()
			s.timer = time.AfterFunc(lingerTimeout, func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.resetLocked()
			})
		}
	}
	return nil
}

// Reset drops both halves and tells the peer.
func (s *stream) Reset() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resetLocked()
	return nil
}

func (s *stream) resetLocked() {
	s.closed = true
	if !s.forgotten {
		s.m.enqueue(header{kindWindow, flagRST, s.id, 0})
	}
	if s.inEnd == nil {
		s.inEnd = ErrClosed
	}
	if s.outEnd == nil || s.outEnd == errFinished {
		s.outEnd = ErrClosed
	}
	s.in.drop()
	s.settle()
}

// Deadlines and addresses.

// deadline is guarded by the stream's mutex.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (d *deadline) set(t time.Time, waiting *sync.Cond) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = t
	if left := time.Until(t); !t.IsZero() && left > 0 {
		d.timer = time.AfterFunc(left, func() {
			waiting.L.Lock()
			defer waiting.L.Unlock()
			waiting.Broadcast()
		})
	}
	waiting.Broadcast()
}

func (s *stream) SetDeadline(t time.Time) error {
	s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}

func (s *stream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readDeadline.set(t, &s.canRead)
	return nil
}

func (s *stream) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writeDeadline.set(t, &s.canWrite)
	return nil
}

func (s *stream) LocalAddr() net.Addr  { return s.m.conn.LocalAddr() }
func (s *stream) RemoteAddr() net.Addr { return s.m.conn.RemoteAddr() }
