package tunnel

import (
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// This file defines the WebSocket as a byte stream (§7.1).

const (
	// ReadBufferSize and WriteBufferSize suit the dialer of a tunnel's WebSocket: a
	// message is copied and masked in one piece, and the session has a buffer of its
	// own for reading. An upgrader does better with ServerWriteBufferSize, since what
	// goes beyond it is not copied.
	ReadBufferSize        = 4 << 10
	WriteBufferSize       = burstFrames * frameSize
	ServerWriteBufferSize = 1 << 10

	maxMessage   = 64 << 20 // only a bound: messages are read piece by piece
	closeTimeout = time.Second
)

// WebSocket makes a net.Conn of a WebSocket, whose user it becomes: nobody else
// may read or write it any more. It keeps to these rules:
//
//   - A Write is one binary message. Read takes messages piece by piece; their
//     borders carry no meaning, empty ones are skipped, and text is taken as its
//     bytes (§7.1).
//   - A close frame of code 1000 or 1001 is io.EOF from then on. Any other end is
//     an error, and stays that error.
//   - Deadlines may pass and be moved, and the connection stays whole: a read goes
//     on for the next Read. A Write that times out while its message is being sent
//     says that it took all of it.
//   - Reading answers pings; somebody must read. Messages beyond 64 MiB are refused.
//   - Close sends code 1000, waiting a second at most, closes the connection below
//     and waits for what was under way. Read and Write may be used concurrently, and
//     each by several goroutines.
func WebSocket(ws *websocket.Conn) net.Conn {
	ws.SetReadLimit(maxMessage)
	return &webSocket{
		messages: &messages{ws: ws}, closed: make(chan struct{}),
		reading: make(chan struct{}, 1), writing: make(chan struct{}, 1),
		read: make(chan result, 1), wrote: make(chan result, 1),
		readDeadline: newExpiry(), writeDeadline: newExpiry(),
	}
}

// messages is the byte stream without deadlines that can be survived. It wants
// one reader and one writer at a time.
type messages struct {
	ws     *websocket.Conn
	reader io.Reader // of the message under way
	err    error     // of the last read
	once   sync.Once
}

func (m *messages) Read(p []byte) (int, error) {
	for m.err == nil && len(p) > 0 {
		if m.reader == nil {
			if _, m.reader, m.err = m.ws.NextReader(); m.err != nil {
				break
			}
		}
		n, err := m.reader.Read(p)
		if err == io.EOF {
			m.reader, err = nil, nil
		}
		if m.err = err; n > 0 {
			return n, nil
		}
	}
	if websocket.IsCloseError(m.err, websocket.CloseNormalClosure, websocket.CloseGoingAway) {
		m.err = io.EOF
	}
	return 0, m.err
}

func (m *messages) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := m.ws.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (m *messages) Close() (err error) {
	m.once.Do(func() {
		m.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(closeTimeout))
		err = m.ws.Close()
	})
	return err
}

func (m *messages) LocalAddr() net.Addr                { return m.ws.LocalAddr() }
func (m *messages) RemoteAddr() net.Addr               { return m.ws.RemoteAddr() }
func (m *messages) SetDeadline(t time.Time) error      { m.SetReadDeadline(t); return m.SetWriteDeadline(t) }
func (m *messages) SetReadDeadline(t time.Time) error  { return m.ws.SetReadDeadline(t) }
func (m *messages) SetWriteDeadline(t time.Time) error { return m.ws.SetWriteDeadline(t) }

// webSocket adds deadlines: the library's end the connection, so reads and writes
// run in goroutines that one can stop waiting for. A session does without, and
// uses messages.
type webSocket struct {
	*messages
	once   sync.Once
	closed chan struct{}

	reading  chan struct{} // held by a Read; guards rest and readBusy
	rest     []byte        // read and not yet taken
	readBusy bool
	read     chan result

	writing   chan struct{} // held by a Write; guards writeBusy
	writeBusy bool
	wrote     chan result

	mu      sync.Mutex // between the last Add to running and Close
	ended   bool
	running sync.WaitGroup

	readDeadline, writeDeadline *expiry
}

type result struct {
	data []byte
	err  error
}

const webSocketChunk = 32 << 10

// begin runs f, which Close waits for.
func (w *webSocket) begin(f func()) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return net.ErrClosed
	}
	w.running.Go(f)
	return nil
}

// take holds a channel lock until the deadline.
func (w *webSocket) take(lock chan struct{}, d *expiry) error {
	passed := d.wait()
	select { // a deadline that has passed goes first
	case <-passed:
		return os.ErrDeadlineExceeded
	case <-w.closed:
		return net.ErrClosed
	default:
	}
	select {
	case lock <- struct{}{}:
		return nil
	case <-passed:
		return os.ErrDeadlineExceeded
	case <-w.closed:
		return net.ErrClosed
	}
}

// await waits for what runs.
func (w *webSocket) await(done chan result, d *expiry) (result, error) {
	select {
	case r := <-done:
		return r, nil
	case <-d.wait():
		return result{}, os.ErrDeadlineExceeded
	case <-w.closed:
		return result{}, net.ErrClosed
	}
}

func (w *webSocket) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := w.take(w.reading, w.readDeadline); err != nil {
		return 0, err
	}
	defer func() { <-w.reading }()
	if len(w.rest) == 0 {
		if !w.readBusy {
			if err := w.begin(w.readOne); err != nil {
				return 0, err
			}
			w.readBusy = true
		}
		r, err := w.await(w.read, w.readDeadline)
		if err != nil {
			return 0, err
		}
		w.readBusy = false
		if r.err != nil {
			return 0, r.err
		}
		w.rest = r.data
	}
	n := copy(p, w.rest)
	w.rest = w.rest[n:]
	return n, nil
}

func (w *webSocket) readOne() {
	buf := make([]byte, webSocketChunk)
	n, err := w.messages.Read(buf)
	w.read <- result{buf[:n], err}
}

func (w *webSocket) Write(p []byte) (int, error) {
	if err := w.take(w.writing, w.writeDeadline); err != nil {
		return 0, err
	}
	defer func() { <-w.writing }()
	if w.writeBusy { // a message whose Write has timed out
		r, err := w.await(w.wrote, w.writeDeadline)
		if err != nil {
			return 0, err
		}
		w.writeBusy = false
		if r.err != nil {
			return 0, r.err
		}
	}
	data := append([]byte(nil), p...)
	if err := w.begin(func() {
		_, err := w.messages.Write(data)
		w.wrote <- result{err: err}
	}); err != nil {
		return 0, err
	}
	w.writeBusy = true
	r, err := w.await(w.wrote, w.writeDeadline)
	if err != nil {
		return len(p), err
	}
	w.writeBusy = false
	if r.err != nil {
		return 0, r.err
	}
	return len(p), nil
}

func (w *webSocket) Close() error {
	var err error = net.ErrClosed
	w.once.Do(func() {
		close(w.closed)
		w.mu.Lock()
		w.ended = true
		w.mu.Unlock()
		err = w.messages.Close()
		w.running.Wait()
		w.readDeadline.set(time.Time{})
		w.writeDeadline.set(time.Time{})
	})
	return err
}

func (w *webSocket) SetDeadline(t time.Time) error {
	w.SetReadDeadline(t)
	return w.SetWriteDeadline(t)
}

func (w *webSocket) SetReadDeadline(t time.Time) error {
	w.readDeadline.set(t)
	return nil
}

func (w *webSocket) SetWriteDeadline(t time.Time) error {
	w.writeDeadline.set(t)
	return nil
}

// expiry is a deadline as a channel that is closed when it has passed.
type expiry struct {
	mu     sync.Mutex
	timer  *time.Timer
	passed chan struct{}
}

func newExpiry() *expiry { return &expiry{passed: make(chan struct{})} }

func (e *expiry) wait() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.passed
}

// set moves the deadline, also for who waits already unless it had passed.
func (e *expiry) set(t time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.timer != nil && !e.timer.Stop() { // it has fired, or is about to
		closeOnce(e.passed)
	}
	e.timer = nil
	select {
	case <-e.passed:
		e.passed = make(chan struct{})
	default:
	}
	passed := e.passed
	if left := time.Until(t); t.IsZero() {
		return
	} else if left <= 0 {
		close(passed)
	} else {
		e.timer = time.AfterFunc(left, func() {
			e.mu.Lock()
			defer e.mu.Unlock()
			closeOnce(passed)
		})
	}
}

func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}
