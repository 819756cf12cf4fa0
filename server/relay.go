package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the way of a WebSocket to the daemon of a sandbox: bytes
// both ways, and a last word to the client when the sandbox or the server goes.

const (
	upgradeTimeout = 30 * time.Second
	writeTimeout   = time.Minute     // for a client that does not read; the daemon gives up earlier
	closeTimeout   = 5 * time.Second // for a client to answer the end
)

// relay asks the daemon to upgrade, and serves the client until one side ends.
func (s *Server) relay(w *recorder, r *http.Request, target *url.URL, h *handle, id string) error {
	ctx, cancel := context.WithTimeout(r.Context(), upgradeTimeout)
	defer cancel()
	header := pick(r.Header, slices.Concat(requestHeaders, upgradeHeaders))
	ask := (&http.Request{Method: r.Method, URL: target, Host: target.Host, Header: header}).WithContext(ctx)
	res, err := stranger{h.transport, ctx}.RoundTrip(ask)
	if err != nil {
		return s.broken(r, id, h, err)
	}
	defer res.Body.Close()
	daemon, upgraded := res.Body.(io.ReadWriteCloser)
	if !upgraded {
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
	t := &tunnel{ctx: h.ctx, client: conn, fromClient: buffered.Reader, daemon: daemon}
	if strings.HasSuffix(r.URL.Path, "/execute/ws") {
		t.lastMessage = &wire.ExecError{Error: errDeleted.Error(), ErrorType: wire.ErrCommand}
	}
	t.run()
	return nil
}

// tunnel joins an upgraded client with its daemon.
type tunnel struct {
	ctx         context.Context // ends when the sandbox or the server goes
	client      net.Conn
	fromClient  *bufio.Reader
	daemon      io.ReadWriteCloser
	lastMessage wire.Message // to the client when the sandbox is deleted; may be nil
}

// run returns when both directions have ended.
func (t *tunnel) run() {
	ended := make(chan struct{})
	stop := context.AfterFunc(t.ctx, func() { t.daemon.Close() })
	defer stop()
	go func() {
		defer close(ended)
		t.copyToDaemon()
	}()
	t.copyToClient()
	// The client's last words are read: closing before would take ours from it.
	if half, ok := t.client.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
	t.client.SetReadDeadline(time.Now().Add(closeTimeout))
	<-ended
}

func (t *tunnel) copyToDaemon() {
	io.Copy(t.daemon, t.fromClient)
	t.daemon.Close()
	io.Copy(io.Discard, t.fromClient)
}

func (t *tunnel) copyToClient() {
	var frames frames
	buf := make([]byte, 32<<10)
	for {
		n, err := t.daemon.Read(buf)
		if t.ctx.Err() != nil && frames.between() {
			t.client.SetWriteDeadline(time.Now().Add(closeTimeout))
			t.client.Write(t.farewell())
			return
		}
		frames.follow(buf[:n])
		t.client.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, werr := t.client.Write(buf[:n]); werr != nil || err != nil {
			return
		}
	}
}

// farewell is what a client is told at the end (protocol.md §6.6, §6.7): that
// it can come back, or that the sandbox is no more.
func (t *tunnel) farewell() []byte {
	if errors.Is(context.Cause(t.ctx), errClosing) {
		return closeFrame(1001)
	}
	if t.lastMessage == nil {
		return closeFrame(1000)
	}
	text, err := wire.EncodeMessage(t.lastMessage)
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

// between reports whether a whole message can be put in here.
func (f *frames) between() bool { return len(f.head) == 0 && f.payload == 0 && !f.fragment }

func (f *frames) follow(p []byte) {
	for len(p) > 0 {
		if f.payload > 0 {
			n := min(f.payload, uint64(len(p)))
			f.payload -= n
			p = p[n:]
			continue
		}
		f.head = append(f.head, p[0])
		p = p[1:]
		if len(f.head) < 2 {
			continue
		}
		size := uint64(f.head[1] & 0x7f)
		extra := f.head[2:]
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
		f.payload, f.head = size, f.head[:0]
	}
}
