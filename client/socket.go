package client

import (
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

// upgrade opens a WebSocket within the timeout.
func (c *Client) upgrade(ctx context.Context, to endpoint, headers http.Header, timeout time.Duration) (*websocket.Conn, error) {
	if to.err != nil {
		return nil, to.err
	}
	request, err := http.NewRequest(http.MethodGet, to.url, nil)
	if err != nil {
		return nil, argumentError("bad WebSocket URL %s: %v", to.url, err)
	}
	if err := c.mayHoldKey(request.URL); err != nil {
		return nil, err
	}
	opening, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	dialer := websocket.Dialer{NetDialContext: c.dial, ReadBufferSize: 64 << 10, WriteBufferSize: 16 << 10}
	if c.dial == nil {
		dialer.Proxy = http.ProxyFromEnvironment
	}
	conn, response, err := dialer.DialContext(opening, to.url, merge(c.headers, headers))
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case response != nil && errors.Is(err, websocket.ErrBadHandshake):
		return nil, upgradeError(request.URL.Path, response)
	case timedOut(err), isSocketError(err):
		return nil, connectionError(ErrConnectTimeout, "GET", request.URL.Redacted(), err)
	}
	return nil, connectionError(ErrConnection, "GET", request.URL.Redacted(), fmt.Errorf("the sandbox is stopped or unreachable, or something else than a sandbox server answers there: %w", err))
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
	e := answerError("GET", path, response.StatusCode, response.Header, raw, func(e *Error, _ wire.Problem) {
		switch e.Status {
		case http.StatusUnauthorized, http.StatusForbidden:
			e.Kind = ErrAuthentication
		case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			e.Kind = ErrRetryableConnection
		default:
			e.Kind = ErrConnection
		}
	})
	if response.Header.Get("Retry-After") == "" {
		e.RetryAfter = -1 // there is none, so the backoff counts
	}
	return e
}

// A socket is one attached WebSocket. Its two goroutines end with close.
type socket struct {
	conn     *websocket.Conn
	timeouts WebSocketTimeouts
	frames   chan wire.Message // closed after the last one, when err is set
	err      error
	quit     chan struct{}
	once     sync.Once
	running  sync.WaitGroup

	writing sync.Mutex
}

// queuedFrames is how far the socket reads ahead of who iterates.
const queuedFrames = 16

func newSocket(conn *websocket.Conn, timeouts WebSocketTimeouts) *socket {
	s := &socket{conn: conn, timeouts: timeouts, frames: make(chan wire.Message, queuedFrames), quit: make(chan struct{})}
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

// expectSomething moves the time by which the peer must have shown life.
func (s *socket) expectSomething() error {
	return s.conn.SetReadDeadline(time.Now().Add(s.timeouts.PingInterval + s.timeouts.Pong))
}

// read hands messages on in order. While nobody takes them it does not read, so
// the deadline starts anew with each read: a slow reader is no dead peer.
func (s *socket) read() {
	defer close(s.frames)
	for {
		s.expectSomething()
		_, data, err := s.conn.ReadMessage()
		if err != nil {
			s.err = lostError(err)
			return
		}
		m, err := wire.DecodeMessage(data)
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

var errDetached = &Error{Kind: ErrConnection, Message: "the handle was closed"}

// lostError says why a socket ended. Only a planned restart has a kind of its
// own; whether the end came too early is for the command to know.
func lostError(err error) *Error {
	var closed *websocket.CloseError
	if errors.As(err, &closed) {
		e := &Error{Kind: ErrConnection, Message: strings.TrimSuffix(fmt.Sprintf("the server closed the connection with code %d: %s", closed.Code, closed.Text), ": "), Err: err}
		if closed.Code == websocket.CloseGoingAway {
			e.Kind, e.Message = ErrServerReload, "the server is restarting"
		}
		return e
	}
	if timedOut(err) {
		return &Error{Kind: ErrConnection, Message: "the server did not answer pings", Err: err}
	}
	return &Error{Kind: ErrConnection, Message: fmt.Sprintf("the connection was lost: %v", err), Err: err}
}

func (s *socket) ping() {
	tick := time.NewTicker(s.timeouts.PingInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if s.conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(s.timeouts.Close)) != nil {
				s.conn.Close() // wakes the reader, which reports it
				return
			}
		case <-s.quit:
			return
		}
	}
}

// write sends one message.
func (s *socket) write(m wire.Message) error {
	text, err := wire.EncodeMessage(m)
	if err != nil {
		return argumentError("the message cannot be written as JSON: %v", err)
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	s.conn.SetWriteDeadline(time.Now().Add(s.timeouts.Close))
	if err := s.conn.WriteMessage(websocket.TextMessage, text); err != nil {
		return lostError(err)
	}
	return nil
}

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
