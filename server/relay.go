package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the way of a WebSocket to the daemon of a sandbox: bytes
// both ways, and a last word to the client when the sandbox or the server goes.

const (
	upgradeTimeout = 30 * time.Second
	writeTimeout   = time.Minute     // for a client that does not read; the daemon gives up earlier
	closeTimeout   = 5 * time.Second // for a client to answer the end
	maxSockets     = 1024
	smallBuffer    = 16 << 10 // which grows while it is filled
	largeBuffer    = 256 << 10
	socketPause    = "5" // seconds before asking again (protocol.md §16.2)
)

// relay asks the daemon to upgrade, and serves the client until one side ends.
func (s *Server) relay(w *recorder, r *http.Request, target *url.URL, h *handle, id string) error {
	if s.sockets.Add(1) > int64(s.options.MaxSockets) {
		s.sockets.Add(-1)
		f := fail(http.StatusTooManyRequests, kindQuota, "there are too many WebSockets to this server: ask again soon")
		f.retryAfter = socketPause
		return f
	}
	defer s.sockets.Add(-1)
	ctx, cancel := context.WithTimeout(r.Context(), upgradeTimeout)
	defer cancel()
	header := pick(r.Header, slices.Concat(requestHeaders, upgradeHeaders))
	header.Set(wire.GenerationHeader, s.newest(r))
	ask := (&http.Request{Method: r.Method, URL: target, Host: target.Host, Header: header}).WithContext(ctx)
	daemon, res, err := h.upgrade(ask)
	if err != nil {
		return s.broken(r, id, h, err)
	}
	defer daemon.Close()
	if res.StatusCode != http.StatusSwitchingProtocols {
		defer context.AfterFunc(ctx, func() { daemon.Close() })()
		maps.Copy(w.Header(), res.Header)
		w.WriteHeader(res.StatusCode)
		io.Copy(w, io.LimitReader(res.Body, maxJSON))
		return nil
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return fmt.Errorf("take over the connection: %w", err)
	}
	defer conn.Close()
	w.status = res.StatusCode
	conn.SetDeadline(time.Time{})

	var head bytes.Buffer
	(&http.Response{StatusCode: res.StatusCode, ProtoMajor: 1, ProtoMinor: 1, Header: res.Header}).Write(&head)
	conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := conn.Write(head.Bytes()); err != nil {
		return nil // the client has gone
	}
	t := &tunnel{ctx: h.ctx, client: conn, fromClient: buffered.Reader, daemon: daemon, left: make(chan struct{})}
	t.exec = strings.HasSuffix(r.URL.Path, "/execute/ws")
	t.gone = func() error { return s.gone(id) }
	s.mu.Lock()
	h.tunnels[t] = true
	s.mu.Unlock()
	t.run()
	s.mu.Lock()
	delete(h.tunnels, t)
	s.mu.Unlock()
	return nil
}

// maxHead is how long the head of a daemon's answer may be.
const maxHead = 64 << 10

// upgrade sends a request to the daemon on a connection of its own, and reads
// the head of the answer, which need not be an upgrade. The caller closes the
// connection. It is done here and not by the transport, because that has two
// goroutines for each connection that an upgrade has no use for.
func (h *handle) upgrade(ask *http.Request) (*daemonConn, *http.Response, error) {
	ctx := ask.Context()
	conn, err := h.dial(ctx, "", "")
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	head := &io.LimitedReader{R: conn, N: maxHead}
	daemon := &daemonConn{conn, bufio.NewReader(head)}
	var res *http.Response
	if err = ask.Write(conn); err == nil {
		res, err = http.ReadResponse(daemon.from, ask)
	}
	if err == nil {
		res, err = cleaned(ask, res)
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	head.N = math.MaxInt64
	return daemon, res, nil
}

// daemonConn is a connection of which the beginning has been read.
type daemonConn struct {
	net.Conn
	from *bufio.Reader
}

func (c *daemonConn) Read(p []byte) (int, error) { return c.from.Read(p) }

// gone says why a sandbox has no daemon: because some server has stopped or
// deleted it, or nil.
func (s *Server) gone(id string) error {
	b, err := s.store.boxes.peek(id)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && b.Box.Status == wire.StatusDeleting:
		return errDeleted
	case err == nil && b.Box.Status == wire.StatusStopped:
		return errStopped
	}
	return nil
}

// takeLeave waits, once its handle has ended, until the clients of a sandbox
// have been told so. One that does not read is not waited for.
func (s *Server) takeLeave(h *handle) {
	s.mu.Lock()
	tunnels := slices.Collect(maps.Keys(h.tunnels))
	s.mu.Unlock()
	late := time.After(closeTimeout)
	for _, t := range tunnels {
		select {
		case <-t.left:
		case <-late:
			return
		}
	}
}

// tunnel joins an upgraded client with its daemon.
type tunnel struct {
	ctx        context.Context // ends when the sandbox or the server goes
	client     net.Conn
	fromClient *bufio.Reader
	daemon     io.ReadWriteCloser
	exec       bool          // a command's, and not a TCP tunnel's
	gone       func() error  // why another server may have ended the daemon
	left       chan struct{} // closed when nothing goes to the client any more

	mu       sync.Mutex
	frames   frames // to the client
	answered bool   // the client has sent a close frame: nothing comes after it
}

// run returns when both directions have ended.
func (t *tunnel) run() {
	ended := make(chan struct{})
	stop := context.AfterFunc(t.ctx, t.end)
	defer stop()
	go func() {
		defer close(ended)
		t.copyToDaemon()
	}()
	t.copyToClient()
	close(t.left)
	// The client's last words are read: closing before would take ours from it.
	if half, ok := t.client.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
	late := time.Now().Add(closeTimeout)
	t.mu.Lock()
	if t.answered {
		late = time.Unix(1, 0)
	}
	t.client.SetReadDeadline(late)
	t.mu.Unlock()
	<-ended
}

// copyToDaemon ends with the client, or once it has said its last word and
// nothing goes to it any more.
func (t *tunnel) copyToDaemon() {
	defer t.daemon.Close()
	buf := make([]byte, smallBuffer)
	var from frames
	closing, broken := false, false
	for n := 0; ; {
		buf = larger(buf, n)
		var err error
		n, err = t.fromClient.Read(buf)
		_, at := from.follow(buf[:n])
		closing = closing || at >= 0
		if !broken {
			if _, werr := t.daemon.Write(buf[:n]); werr != nil {
				broken = true
				t.daemon.Close()
			}
		}
		if err != nil {
			return
		}
		if closing && from.whole() && t.saidLast() {
			return
		}
	}
}

// larger returns a buffer for the next read after one of n bytes.
func larger(buf []byte, n int) []byte {
	if n < len(buf) || n >= largeBuffer {
		return buf
	}
	return make([]byte, 2*len(buf))
}

// saidLast notes that the client has answered the end, and reports whether
// nothing goes to it any more.
func (t *tunnel) saidLast() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.answered = true
	select {
	case <-t.left:
		return true
	default:
		return false
	}
}

// end has copyToClient end where a message ends: at once, or where the daemon
// gets to. A daemon that takes long is cut off.
func (t *tunnel) end() {
	t.mu.Lock()
	between := t.frames.between()
	t.mu.Unlock()
	if !between {
		select {
		case <-t.left:
		case <-time.After(closeTimeout):
		}
	}
	t.daemon.Close()
}

func (t *tunnel) copyToClient() {
	buf := make([]byte, smallBuffer)
	for n := 0; ; {
		buf = larger(buf, n)
		var err error
		n, err = t.daemon.Read(buf)
		t.mu.Lock()
		whole, closing := t.frames.follow(buf[:n])
		between := t.frames.between()
		t.mu.Unlock()
		cause := context.Cause(t.ctx)
		if cause == nil && (closing >= 0 || err != nil && between) {
			// The daemon ends, and says at most that it does.
			if cause = t.gone(); closing >= 0 {
				whole = closing
			} else {
				whole = n
			}
		}
		if cause != nil && whole >= 0 {
			t.client.SetWriteDeadline(time.Now().Add(closeTimeout))
			t.client.Write(append(buf[:whole], t.farewell(cause)...))
			return
		}
		t.client.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, werr := t.client.Write(buf[:n]); werr != nil || err != nil {
			return
		}
	}
}

// farewell is what a client is told at the end (protocol.md §6.6, §6.7, §16.6):
// that it can come back, or that the sandbox has been stopped or deleted. To
// come back to a stopped one would wake it.
func (t *tunnel) farewell(cause error) []byte {
	switch {
	case errors.Is(cause, errClosing):
		return closeFrame(1001)
	case !errors.Is(cause, errDeleted) && !errors.Is(cause, errStopped):
		return closeFrame(1011)
	case !t.exec:
		return closeFrame(1000)
	}
	text, err := wire.EncodeMessage(&wire.ExecError{Error: cause.Error(), ErrorType: wire.ErrCommand})
	if err != nil || len(text) > 125 {
		panic("a farewell that fits no short frame") // it is ours
	}
	return append(append([]byte{0x81, byte(len(text))}, text...), closeFrame(1000)...)
}

// closeFrame is a close frame without a reason (RFC 6455 §5.5.1).
func closeFrame(code uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{0x88, 2}, code)
}

// frames follows the frames of a WebSocket that pass by (RFC 6455 §5.2).
type frames struct {
	head     []byte // of the frame that begins
	payload  uint64 // bytes still to come of the frame that is open
	fragment bool   // a message is open
}

// whole reports whether no frame is open, and between whether no message is, so
// that one can be put in here.
func (f *frames) whole() bool   { return len(f.head) == 0 && f.payload == 0 }
func (f *frames) between() bool { return f.whole() && !f.fragment }

// follow takes in what passes by. It returns how much of it belongs to the
// message that was open before, and where a close frame begins; -1 is not here.
func (f *frames) follow(p []byte) (ends, closing int) {
	ends, closing = -1, -1
	all, begin := len(p), -1
	for len(p) > 0 {
		if ends < 0 && f.between() {
			ends = all - len(p)
		}
		if f.payload > 0 {
			n := min(f.payload, uint64(len(p)))
			f.payload -= n
			p = p[n:]
			continue
		}
		if len(f.head) == 0 {
			begin = all - len(p)
		}
		f.head = append(f.head, p[0])
		p = p[1:]
		if len(f.head) < 2 {
			continue
		}
		size := uint64(f.head[1] & 0x7f)
		extra := f.head[2:]
		if f.head[1]&0x80 != 0 { // masked: four bytes more
			if len(extra) < 4 {
				continue
			}
			extra = extra[:len(extra)-4]
		}
		switch {
		case size == 126 && len(extra) == 2:
			size = uint64(binary.BigEndian.Uint16(extra))
		case size == 127 && len(extra) == 8:
			size = binary.BigEndian.Uint64(extra)
		case size >= 126:
			continue
		}
		if control := f.head[0]&0x8 != 0; !control {
			f.fragment = f.head[0]&0x80 == 0
		}
		if f.head[0]&0xf == 0x8 && closing < 0 {
			closing = begin
		}
		f.payload, f.head = size, f.head[:0]
	}
	if ends < 0 && f.between() {
		ends = all
	}
	return ends, closing
}
