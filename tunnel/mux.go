package tunnel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// This file defines a yamux session over one connection: its reader, its writers
// and its end. Either end of a tunnel has one.

const (
	defaultWindow    = 16 << 20
	defaultKeepAlive = 30 * time.Second

	// maxUnanswered is how many streams may be open that the peer has not shown to
	// know: other servers reset what goes beyond their backlog.
	maxUnanswered = 256
	// maxQueue is how much a peer may make wait by not reading.
	maxQueue = 512 << 10
	// small frames are collected while another is written.
	small = 4 << 10
	// farewell bounds the sending of GO_AWAY.
	farewell = time.Second
	// creditStep is the largest credit that is held back, so that a peer on a slow
	// link hears something now and then.
	creditStep = 1 << 20
	// windowsFull is how many streams get their whole window while the windows of
	// all streams stay within memoryWindows times that window.
	windowsFull   = 8
	memoryWindows = 16
)

type muxOptions struct {
	client       bool
	window       int64
	keepAlive    time.Duration // negative: none
	writeTimeout time.Duration
	streams      int           // that the peer may open
	accept       func(*stream) // of the daemon's end; must not block
}

type mux struct {
	o       muxOptions
	conn    net.Conn
	buffers buffers

	mu      sync.Mutex
	streams map[uint32]*stream
	nextID  uint32
	offered int64 // the windows of all streams beyond the base
	err     error // why it ended

	done       chan struct{} // closed when err is set
	unanswered chan struct{} // one element per stream that the peer has not shown to know

	writing  chan struct{} // held while the connection is written
	queueing sync.Mutex    // guards queue; may be taken with any other mutex held
	queue    []byte        // whole frames that wait to be written
	spare    []byte        // the queue before, to be used again; of the holder of writing
	wake     chan struct{} // tells flush of a queue

	heard   atomic.Bool // something came since the last tick
	running sync.WaitGroup
}

// newMux begins a session. It owns conn from now on; close or die, and then wait,
// release it.
func newMux(conn net.Conn, o muxOptions) *mux {
	if ws, ok := conn.(*webSocket); ok {
		conn = ws.messages
	}
	m := &mux{
		o: o, conn: conn, streams: map[uint32]*stream{}, nextID: 1,
		done: make(chan struct{}), unanswered: make(chan struct{}, maxUnanswered),
		writing: make(chan struct{}, 1), wake: make(chan struct{}, 1),
	}
	m.running.Go(func() { m.die(m.read()) })
	m.running.Go(m.flush)
	if o.keepAlive > 0 {
		m.running.Go(m.keepAlive)
	}
	return m
}

func (m *mux) wait() { m.running.Wait() }

func (m *mux) ended() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

// close says GO_AWAY and ends the session.
func (m *mux) close() { m.leave(goAwayNormal, ErrClosed) }

func (m *mux) leave(code uint32, reason error) {
	m.enqueue(header{kind: kindGoAway, length: code})
	timer := time.NewTimer(farewell)
	defer timer.Stop()
	select {
	case m.writing <- struct{}{}:
		if queue := m.takeQueue(); len(queue) > 0 {
			m.conn.SetWriteDeadline(time.Now().Add(farewell))
			m.conn.Write(queue)
		}
		m.release()
	case <-timer.C: // the peer does not read
	case <-m.done:
	}
	m.die(reason)
}

// die ends the session. The streams keep what they have received.
func (m *mux) die(reason error) {
	m.mu.Lock()
	if m.err != nil {
		m.mu.Unlock()
		return
	}
	m.err = reason
	streams := m.streams
	m.streams = nil
	close(m.done)
	m.mu.Unlock()
	for _, s := range streams {
		s.fail(&SessionError{reason})
	}
	m.conn.Close()
}

// open begins a stream and sends first on it.
func (m *mux) open(ctx context.Context, first []byte) (*stream, error) {
	select {
	case m.unanswered <- struct{}{}:
	case <-m.done:
		return nil, &SessionError{m.err}
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	m.mu.Lock()
	if m.err != nil || m.nextID > 1<<31 {
		defer m.mu.Unlock()
		<-m.unanswered
		if m.err == nil {
			return nil, errors.New("the session has no stream numbers left")
		}
		return nil, &SessionError{m.err}
	}
	s := newStream(m, m.nextID)
	m.nextID += 2
	m.streams[s.id] = s
	extra := m.shareLocked(0, 0)
	s.extra = extra
	s.recvWindow += extra
	s.window -= int64(len(first))
	m.queueing.Lock() // before the next stream gets its number
	m.mu.Unlock()
	m.queue = header{kindWindow, flagSYN, s.id, 0}.append(m.queue)
	if extra > 0 { // in a frame of its own: not every peer looks for it in a SYN
		m.queue = header{kindWindow, 0, s.id, uint32(extra)}.append(m.queue)
	}
	m.queue = header{kindData, 0, s.id, uint32(len(first))}.append(m.queue)
	m.queue = append(m.queue, first...)
	m.queueing.Unlock()
	m.tryFlush()
	return s, nil
}

// share says how much more than the base a stream may offer as its window, which
// offers now so much, and at least so much. The first few streams get all, and
// however many there are, together they stay within memoryWindows windows.
func (m *mux) share(now, least int64) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shareLocked(now, least)
}

func (m *mux) shareLocked(now, least int64) int64 {
	free := memoryWindows*m.o.window - m.offered + now
	share := max(min(m.o.window-baseWindow, free/windowsFull), least)
	m.offered += share - now
	return share
}

// forget takes a stream out of the table.
func (m *mux) forget(id uint32) {
	m.mu.Lock()
	delete(m.streams, id)
	m.mu.Unlock()
}

func (m *mux) unshare(extra int64) {
	m.mu.Lock()
	m.offered -= extra
	m.mu.Unlock()
}

// Writing. A frame is written by the goroutine that has it, since a hand-over
// costs more than a write; frames that come meanwhile wait in the queue if they
// are small, and in line if not.

// enqueue leaves a frame without payload to flush. It never blocks.
func (m *mux) enqueue(h header) {
	m.queueing.Lock()
	m.queue = h.append(m.queue)
	m.queueing.Unlock()
	m.wakeFlush()
}

// answer enqueues what a frame of the peer calls for.
func (m *mux) answer(h header) error {
	m.enqueue(h)
	m.queueing.Lock()
	defer m.queueing.Unlock()
	if len(m.queue) > maxQueue {
		return errors.New("the peer sends but does not read")
	}
	return nil
}

func (m *mux) wakeFlush() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// flush writes what others have left in the queue.
func (m *mux) flush() {
	for {
		select {
		case <-m.wake:
		case <-m.done:
			return
		}
		select {
		case m.writing <- struct{}{}:
			m.writeLocked(nil)
			m.release()
		case <-m.done:
			return
		}
	}
}

// tryFlush writes the queue unless somebody else is writing, whose release sees
// to it.
func (m *mux) tryFlush() {
	select {
	case m.writing <- struct{}{}:
		m.writeLocked(nil)
		m.release()
	default:
	}
}

// release gives writing back, and leaves what was queued meanwhile to flush.
func (m *mux) release() {
	<-m.writing
	m.queueing.Lock()
	queued := len(m.queue) > 0
	m.queueing.Unlock()
	if queued {
		m.wakeFlush()
	}
}

// send writes one frame, or has it written soon if it is small. It blocks no
// longer than the connection does, which the write timeout bounds.
func (m *mux) send(frame []byte) error {
	if len(frame) <= small {
		m.queueing.Lock()
		room := len(m.queue) < maxPayload
		if room {
			m.queue = append(m.queue, frame...)
		}
		m.queueing.Unlock()
		if room {
			m.tryFlush()
			return nil // and if the session dies, the next one fails
		}
	}
	select {
	case m.writing <- struct{}{}:
	case <-m.done:
		return &SessionError{m.err}
	}
	err := m.writeLocked(frame)
	m.release()
	if err != nil {
		return &SessionError{err}
	}
	return nil
}

// writeLocked writes the queue and a frame behind it. The caller holds writing.
func (m *mux) writeLocked(frame []byte) error {
	queue := m.takeQueue()
	if len(queue) == 0 && len(frame) == 0 {
		return nil
	}
	m.conn.SetWriteDeadline(time.Now().Add(m.o.writeTimeout))
	var err error
	for _, b := range [...][]byte{queue, frame} {
		if len(b) > 0 && err == nil {
			_, err = m.conn.Write(b)
		}
	}
	if err != nil {
		m.die(err)
	}
	return err
}

func (m *mux) takeQueue() []byte {
	m.queueing.Lock()
	defer m.queueing.Unlock()
	queue := m.queue
	m.queue, m.spare = m.spare[:0], queue
	if cap(m.spare) > maxPayload {
		m.spare = nil
	}
	return queue
}

// keepAlive pings, and ends the session when nothing at all comes in two thirds of
// the time of keepAlive. That is noticed within the whole of it, and a peer has
// a third to answer.
func (m *mux) keepAlive() {
	ticker := time.NewTicker(m.o.keepAlive / 3)
	defer ticker.Stop()
	silent := 0
	for count := uint32(1); ; count++ {
		select {
		case <-m.done:
			return
		case <-ticker.C:
		}
		if silent++; m.heard.Swap(false) {
			silent = 0
		}
		if silent == 2 {
			m.die(fmt.Errorf("the peer has been silent for %v", m.o.keepAlive*2/3))
			return
		}
		m.enqueue(header{kindPing, flagSYN, 0, count})
	}
}

// hearing notes that something comes.
type hearing struct{ m *mux }

func (h hearing) Read(p []byte) (int, error) {
	n, err := h.m.conn.Read(p)
	if n > 0 {
		h.m.heard.Store(true)
	}
	return n, err
}

// read takes frames until the session ends, and says why. It waits for nothing
// but the connection: streams have room for what they have offered, and answers
// are queued.
func (m *mux) read() error {
	r := bufio.NewReaderSize(hearing{m}, maxPayload)
	var raw [headerSize]byte
	for {
		if _, err := io.ReadFull(r, raw[:]); err != nil {
			return m.readError(err)
		}
		h, err := parseHeader(raw[:])
		if err == nil {
			err = m.handle(h, r)
		}
		var wrong protocolError
		if errors.As(err, &wrong) {
			m.leave(goAwayProtocol, err)
		}
		if err != nil {
			return m.readError(err)
		}
	}
}

func (m *mux) readError(err error) error {
	if err == io.EOF {
		return errPeerLeft
	}
	return err
}

func (m *mux) handle(h header, r io.Reader) error {
	switch h.kind {
	case kindPing:
		if h.flags&flagSYN != 0 {
			return m.answer(header{kindPing, flagACK, 0, h.length})
		}
		return nil
	case kindGoAway:
		if h.length == goAwayNormal {
			return errPeerLeft
		}
		return fmt.Errorf("the peer ended the session with code %d", h.length)
	}
	s, err := m.find(h)
	if err != nil {
		return err
	}
	if s == nil {
		if h.kind == kindData {
			return discard(r, int64(h.length))
		}
		return nil
	}
	s.answered()
	if h.kind == kindWindow {
		s.enlarge(h.length)
	} else if err := s.receive(r, int64(h.length)); err != nil {
		return err
	}
	if h.flags&flagRST != 0 {
		s.fail(ErrReset)
	} else if h.flags&flagFIN != 0 {
		s.receiveEnd()
	}
	return nil
}

func discard(r io.Reader, n int64) error {
	_, err := io.CopyN(io.Discard, r, n)
	return unexpected(err)
}

// unexpected is an error of reading in the middle of a frame.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// find returns the stream of a frame, which may open it, and nil for one that is
// not known or not wanted.
func (m *mux) find(h header) (*stream, error) {
	m.mu.Lock()
	s := m.streams[h.stream]
	if h.flags&flagSYN == 0 || m.err != nil {
		m.mu.Unlock()
		return s, nil
	}
	switch {
	case s != nil:
		m.mu.Unlock()
		return nil, protocolError(fmt.Sprintf("stream %d was opened twice", h.stream))
	case m.o.client || h.stream%2 == 0 || len(m.streams) >= m.o.streams:
		m.mu.Unlock()
		return nil, m.answer(header{kindWindow, flagRST, h.stream, 0})
	}
	s = newStream(m, h.stream)
	s.isAnswered = true
	m.streams[s.id] = s
	extra := m.shareLocked(0, 0)
	s.extra = extra
	s.recvWindow += extra
	m.mu.Unlock()
	if err := m.answer(header{kindWindow, flagACK, s.id, 0}); err != nil {
		return nil, err
	}
	if extra > 0 {
		m.enqueue(header{kindWindow, 0, s.id, uint32(extra)})
	}
	m.o.accept(s)
	return s, nil
}
