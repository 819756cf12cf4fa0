package client

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the exec WebSocket: how it is opened, what its failures
// mean, and the goroutines that keep it alive (protocol.md §6.1, §6.7).

// WebSocketTimeouts bound the waits on a WebSocket. A zero field is the default
// of protocol.md §4.2, a negative one is no bound.
type WebSocketTimeouts struct {
	Open          time.Duration // connecting and upgrading; 30 s
	PingInterval  time.Duration // 30 s
	Pong          time.Duration // how long an answer to a ping may take; 60 s
	Close         time.Duration // 10 s
	ConnectBudget time.Duration // all attempts to start one command; 120 s
}

const unbounded = 1000 * time.Hour

func (t WebSocketTimeouts) withDefaults() WebSocketTimeouts {
	for d, standard := range map[*time.Duration]time.Duration{
		&t.Open: 30 * time.Second, &t.PingInterval: 30 * time.Second, &t.Pong: 60 * time.Second,
		&t.Close: 10 * time.Second, &t.ConnectBudget: 120 * time.Second,
	} {
		if *d == 0 {
			*d = standard
		} else if *d < 0 {
			*d = unbounded
		}
	}
	return t
}

// maxMessage is what a client accepts in one message: 64 KiB of raw output can
// grow sixfold in JSON, and other servers may send more.
const maxMessage = 16 << 20

// upgrade opens a WebSocket within the timeout. The dialer says what buffers it
// has and which subprotocols it offers, of which the server may choose none.
func (c *Client) upgrade(ctx context.Context, to endpoint, headers http.Header, timeout time.Duration, dialer websocket.Dialer) (*websocket.Conn, error) {
	if to.err != nil {
		return nil, to.err
	}
	request, err := http.NewRequest(http.MethodGet, to.url, nil)
	if err != nil {
		return nil, argumentError("bad WebSocket URL %s: %v", to.url, err)
	}
	if request.Header, err = c.headersFor(ctx, request.URL, headers); err != nil {
		return nil, err
	}
	opening, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	dial, below := c.dial, &openingConn{}
	if dial == nil {
		dial, dialer.Proxy = new(net.Dialer).DialContext, http.ProxyFromEnvironment
	}
	dialer.NetDialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err == nil {
			below.Conn, below.release = conn, context.AfterFunc(ctx, func() { conn.Close() })
		}
		return below, err
	}
	conn, response, err := dialer.DialContext(opening, to.url, request.Header)
	if below.release != nil && !below.release() && err == nil {
		conn.Close()
		err = context.Cause(opening)
	}
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case response != nil && errors.Is(err, websocket.ErrBadHandshake):
		return nil, upgradeError(request.URL.Path, response)
	case timedOut(err), isSocketError(err), below.ended:
		return nil, connectionError(ErrConnectTimeout, "GET", request.URL.Redacted(), err)
	}
	return nil, connectionError(ErrConnection, "GET", request.URL.Redacted(), fmt.Errorf("the sandbox is stopped or unreachable, or something else than a sandbox server answers there: %w", err))
}

// openingConn ends with the context, which the dialer does not look at once it
// is connected, and knows whether it ended, which an answer that breaks off in
// the middle of a line does not tell.
type openingConn struct {
	net.Conn
	release func() bool // from the context; nil if there is no connection
	ended   bool
}

func (c *openingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.ended = c.ended || err != nil
	return n, err
}

// isSocketError tells failures below HTTP from answers that make no sense.
func isSocketError(err error) bool {
	var op *net.OpError
	var errno syscall.Errno
	return errors.As(err, &op) || errors.As(err, &errno) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

// upgradeError reads an answer that is no upgrade.
func upgradeError(path string, response *http.Response) *Error {
	raw, _ := io.ReadAll(io.LimitReader(response.Body, maxErrorAnswer))
	return answerError("GET", path, response.StatusCode, response.Header, raw, func(e *Error, _ wire.Problem) {
		switch e.Status {
		case http.StatusUnauthorized, http.StatusForbidden:
			e.Kind = ErrAuthentication
		case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			e.Kind = ErrRetryableConnection
		default:
			e.Kind = ErrConnection
		}
	})
}

// A socket is one attached WebSocket. Its two goroutines end with close.
type socket struct {
	conn     *websocket.Conn
	timeouts WebSocketTimeouts
	v1       bool              // exec.v1 is spoken here (§15), and §6 if not
	frames   chan wire.Message // closed after the last one, when err is set
	err      error
	again    bool // opened to re-attach
	quit     chan struct{}
	once     sync.Once
	running  sync.WaitGroup

	writing chan struct{} // held while a message is written
}

// largeMessage is more than exec.v1 has, and is not kept for the next one.
const largeMessage = 1 << 20

// queuedFrames is how far the socket reads ahead of who iterates.
const queuedFrames = 16

func newSocket(conn *websocket.Conn, timeouts WebSocketTimeouts) *socket {
	s := &socket{conn: conn, timeouts: timeouts, v1: conn.Subprotocol() == wire.ExecV1, frames: make(chan wire.Message, queuedFrames), quit: make(chan struct{}), writing: make(chan struct{}, 1)}
	conn.SetReadLimit(maxMessage)
	conn.SetPongHandler(func(string) error { return s.expectSomething() })
	answer := conn.PingHandler()
	conn.SetPingHandler(func(data string) error {
		s.expectSomething()
		return answer(data)
	})
	s.running.Go(s.read)
	s.running.Go(s.ping)
	return s
}

func (s *socket) dialect() dialect {
	if s.v1 {
		return asBytes
	}
	return asText
}

// expectSomething moves the time by which the peer must have shown life.
func (s *socket) expectSomething() error {
	return s.conn.SetReadDeadline(time.Now().Add(s.timeouts.PingInterval + s.timeouts.Pong))
}

// read hands messages on in order. While nobody takes them it does not read, so
// the deadline starts anew with each read: a slow reader is no dead peer.
func (s *socket) read() {
	defer close(s.frames)
	var message bytes.Buffer // what is decoded holds nothing of it
	for {
		s.expectSomething()
		kind, from, err := s.conn.NextReader()
		if err == nil {
			if message.Cap() > largeMessage {
				message = bytes.Buffer{}
			}
			message.Reset()
			_, err = message.ReadFrom(from)
		}
		if err != nil {
			s.err = lostError(err)
			return
		}
		m, err := s.decode(kind, message.Bytes())
		if err != nil {
			s.err = &Error{Kind: ErrClient, Message: "the server sent something that is not of the protocol: " + err.Error(), Err: err}
			return
		}
		select {
		case s.frames <- m:
		case <-s.quit:
			s.err = errDetached
			return
		}
	}
}

// decode reads a message. Output is bytes under exec.v1 and text otherwise, which
// are not mixed, because their offsets count different things.
func (s *socket) decode(kind int, data []byte) (wire.Message, error) {
	if s.v1 && kind == websocket.BinaryMessage {
		stream, offset, raw, err := wire.DecodeOutput(data)
		return &wire.Output{Stream: stream, Data: wire.Text(raw), Offset: offset}, err
	}
	m, err := wire.DecodeMessage(data)
	switch m := m.(type) {
	case *wire.Output:
		if s.v1 {
			return nil, fmt.Errorf("it agreed to %s, and sends output as text", wire.ExecV1)
		}
	case *wire.Gap:
		if !s.v1 {
			return &wire.Unknown{Type: wire.MessageType(m)}, nil
		}
		if m.Stream != wire.Stdout && m.Stream != wire.Stderr {
			return nil, fmt.Errorf("a gap in the stream %q", m.Stream)
		}
	}
	return m, err
}

var errDetached = &Error{Kind: ErrConnection, Message: "the handle was closed"}

// lostError says why a socket ended. Only a planned restart has a kind of its
// own; whether the end came too early is for the command to know.
func lostError(err error) *Error {
	if errors.Is(err, websocket.ErrReadLimit) {
		return &Error{Kind: ErrClient, Message: fmt.Sprintf("the server sent a message of more than %d MiB", maxMessage>>20), Err: err}
	}
	var closed *websocket.CloseError
	if errors.As(err, &closed) {
		e := &Error{Kind: ErrConnection, Message: strings.TrimSuffix(fmt.Sprintf("the server closed the connection with code %d: %s", closed.Code, closed.Text), ": "), Err: err}
		if closed.Code == websocket.CloseGoingAway {
			e.Kind, e.Message = ErrServerReload, "the server is restarting"
		}
		return e
	}
	if timedOut(err) {
		return &Error{Kind: ErrConnection, Message: "the server stopped responding", Err: err}
	}
	return &Error{Kind: ErrConnection, Message: fmt.Sprintf("the connection was lost: %v", err), Err: err}
}

func (s *socket) ping() {
	tick := time.NewTicker(s.timeouts.PingInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			select {
			case s.writing <- struct{}{}:
			default: // input that the command does not read yet is in the way
				s.expectSomething()
				continue
			}
			err := s.conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(s.timeouts.Close))
			<-s.writing
			if err != nil {
				s.conn.Close() // wakes the reader, which reports it
				return
			}
		case <-s.quit:
			return
		}
	}
}

// write sends one message within the limit. Where an error comes from sending,
// and not from waiting for another message to be sent, the socket has ended.
func (s *socket) write(ctx context.Context, limit time.Duration, m wire.Message) error {
	text, err := wire.EncodeMessage(m)
	if err != nil {
		return argumentError("the message cannot be written as JSON: %v", err)
	}
	return s.send(ctx, limit, websocket.TextMessage, text)
}

// writeInput is write for input, of which each piece may take as long as the
// command does not read it.
func (s *socket) writeInput(ctx context.Context, piece []byte) error {
	if s.v1 {
		return s.send(ctx, unbounded, websocket.BinaryMessage, wire.AppendStdin(nil, piece))
	}
	return s.write(ctx, unbounded, &wire.Input{Data: string(piece)})
}

func (s *socket) send(ctx context.Context, limit time.Duration, kind int, message []byte) error {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case s.writing <- struct{}{}:
		defer func() { <-s.writing }()
	case <-limited.Done():
		return cmp.Or(context.Cause(ctx), error(errBusy))
	}
	stop := context.AfterFunc(limited, func() { s.conn.Close() })
	err := s.conn.WriteMessage(kind, message)
	if stopped := stop(); stopped && err == nil {
		return nil
	}
	s.conn.Close() // wakes the reader
	return cmp.Or(context.Cause(ctx), error(lostError(cmp.Or(err, context.Cause(limited)))))
}

var errBusy = &Error{Kind: ErrConnection, Message: "the connection is taken up by input that the command does not read"}

// close says goodbye, does not wait for the answer, and ends both goroutines.
func (s *socket) close() {
	s.once.Do(func() {
		close(s.quit)
		goodbye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
		s.conn.WriteControl(websocket.CloseMessage, goodbye, time.Now().Add(time.Second))
		s.conn.Close()
	})
	s.running.Wait()
}
