//go:build linux

package daemon

import (
	"context"
	"errors"
	"math"
	"net/http"
	"time"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines GET /execute/ws: one client attached to one command (§6),
// which may have chosen exec.v1 (§15).

// socket is a WebSocket whose command is known or still to be named. The
// handler's goroutine writes all messages; a second one reads.
type socket struct {
	d      *daemon
	conn   *websocket.Conn
	v1     bool
	reader *reader

	// What the generation that is played has (§12, §16.2).
	ids  bool // clients choose the ids of commands
	ends bool // they can end the input
}

func (d *daemon) executeWS(w http.ResponseWriter, r *http.Request) {
	d.work.Add(1) // the HTTP server does not wait for connections that were taken over
	defer d.work.Done()
	conn := d.upgrade(w, r, websocket.Upgrader{Subprotocols: []string{wire.ExecV1}})
	if conn == nil {
		return
	}
	defer conn.Close()
	d.activity.touch()
	defer d.activity.touch()
	s := &socket{d: d, conn: conn, v1: conn.Subprotocol() == wire.ExecV1}
	generation := r.Header.Get(wire.GenerationHeader)
	s.ends = s.v1 || generation == "" || generation == wire.Late
	s.ids = s.ends || generation == wire.Head
	s.serve()
}

// upgrade makes a WebSocket of a request, in the way that the upgrader says. Nil
// is that it has been answered in another way.
func (d *daemon) upgrade(w http.ResponseWriter, r *http.Request, upgrader websocket.Upgrader) *websocket.Conn {
	if !websocket.IsWebSocketUpgrade(r) {
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Connection", "Upgrade")
		answer(w, &failure{http.StatusUpgradeRequired, wire.Problem{Type: wire.ErrInvalidRequest, Message: r.URL.Path + " is a WebSocket: ask for an upgrade"}})
		return nil
	}
	upgrader.HandshakeTimeout = d.lim.stall
	upgrader.CheckOrigin = func(*http.Request) bool { return true } // only the server reaches this socket, and it has looked
	upgrader.Error = func(w http.ResponseWriter, _ *http.Request, status int, reason error) {
		answer(w, &failure{status, wire.Problem{Type: wire.ErrInvalidRequest, Message: reason.Error()}})
	}
	conn, _ := upgrader.Upgrade(w, r, nil)
	return conn
}

func (s *socket) serve() {
	closeStdin, err := s.begin()
	if err != nil {
		return
	}
	if in := s.reader.s.input; closeStdin && in != nil {
		in.close()
	}
	ctx, gone := context.WithCancel(s.d.ctx)
	defer gone()
	received := make(chan struct{})
	go func() {
		defer close(received)
		defer s.conn.Close() // ends a write under way
		defer gone()
		s.receive(ctx)
	}()
	stop := context.AfterFunc(s.d.halt, func() { // a client that does not read holds nothing up any more
		s.conn.NetConn().SetWriteDeadline(time.Now().Add(farewell))
	})
	defer stop()
	s.send(ctx)
	s.reader.detach()
	gone()
	select { // the client answers the closing of the socket
	case <-received:
	case <-time.After(s.d.lim.linger):
	case <-s.d.halt.Done():
	}
	s.conn.Close()
	<-received
}

// begin reads up to the message that names the command and attaches to it. An
// end of file on stdin may come before (§16.2). A first message that is refused
// is answered with an error message (§6.2).
func (s *socket) begin() (closeStdin bool, err error) {
	stop := context.AfterFunc(s.d.ctx, func() {
		s.close(websocket.CloseGoingAway, errEnding.Error())
		s.conn.Close()
	})
	defer stop()
	s.conn.SetReadLimit(s.d.lim.body)
	s.conn.SetReadDeadline(time.Now().Add(s.d.lim.first))
	for s.reader == nil && err == nil {
		_, data, lost := s.conn.ReadMessage()
		if lost != nil {
			s.close(websocket.ClosePolicyViolation, "no execute or reconnect message came")
			return false, lost
		}
		var message wire.Message
		message, err = decodeFirst(data)
		if err != nil {
			break
		}
		switch m := message.(type) {
		case *wire.CloseStdin:
			if closeStdin = s.ends; !s.ends {
				err = errNotFirst
			}
		case *wire.Execute:
			m.CloseStdin = m.CloseStdin && s.ends
			if !s.ids {
				m.CommandID = ""
			}
			s.reader, err = s.d.open(m, s.v1)
		case *wire.Reconnect:
			s.reader, err = s.d.reopen(m, s.v1)
		}
	}
	if err != nil {
		f := asFailure(err)
		s.write(&wire.ExecError{Error: f.Message, ErrorType: f.Type})
		s.close(websocket.CloseNormalClosure, "")
		s.conn.SetReadDeadline(time.Now().Add(s.d.lim.linger))
		for lost := error(nil); lost == nil; {
			_, _, lost = s.conn.NextReader()
		}
	}
	return closeStdin, err
}

// decodeFirst reads a message that may come while no command is attached:
// *wire.CloseStdin, *wire.Execute or *wire.Reconnect.
func decodeFirst(data []byte) (wire.Message, error) {
	message, err := wire.DecodeMessage(data)
	if err != nil {
		return nil, refuse(wire.ErrInvalidRequest, "the first message is refused: %s", explainJSON(err))
	}
	switch message.(type) {
	case *wire.CloseStdin, *wire.Execute, *wire.Reconnect:
		return message, nil
	}
	return nil, errNotFirst
}

var errNotFirst = refuse(wire.ErrInvalidRequest, "the first message must be execute or reconnect")

// receive takes the client's messages until the socket is closed or lost, which
// it is without a sign of life.
func (s *socket) receive(ctx context.Context) {
	alive := func() { s.conn.SetReadDeadline(time.Now().Add(s.d.pongTime())) }
	s.conn.SetReadLimit(s.d.lim.message)
	s.conn.SetPongHandler(func(string) error { alive(); return nil })
	answerPing := s.conn.PingHandler()
	s.conn.SetPingHandler(func(data string) error { alive(); return answerPing(data) })
	for {
		alive()
		kind, data, err := s.conn.ReadMessage()
		if err != nil {
			return
		}
		s.d.activity.touch()
		if s.v1 && kind == websocket.BinaryMessage {
			err = s.stdin(ctx, data)
		} else {
			err = s.obey(ctx, data)
		}
		if err != nil {
			s.close(websocket.CloseInvalidFramePayloadData, err.Error())
			return
		}
	}
}

// stdin takes a frame of input.
func (s *socket) stdin(ctx context.Context, frame []byte) error {
	data, err := wire.DecodeStdin(frame)
	if in := s.reader.s.input; err == nil && in != nil {
		in.write(ctx, data)
	}
	return err
}

// obey does what a message asks for. Those of exec.v1 are unknown without it,
// and so are ignored.
func (s *socket) obey(ctx context.Context, data []byte) error {
	message, err := wire.DecodeMessage(data)
	if err != nil {
		return errors.New(explainJSON(err))
	}
	session := s.reader.s
	switch m := message.(type) {
	case *wire.Kill:
		session.cmd.kill()
	case *wire.Input:
		if session.input != nil {
			session.input.write(ctx, []byte(m.Data))
		}
	case *wire.CloseStdin:
		if s.ends && session.input != nil {
			session.input.close()
		}
	case *wire.Signal:
		if !s.v1 {
			return nil
		}
		sig, err := signalNumber(m.Signal)
		if err != nil {
			return err
		}
		session.cmd.signal(sig)
	case *wire.Resize:
		if !s.v1 {
			return nil
		}
		if m.Cols < 1 || m.Cols > math.MaxUint16 || m.Rows < 1 || m.Rows > math.MaxUint16 {
			return refuse(wire.ErrInvalidRequest, "a terminal of %d columns and %d rows cannot be: give 1 to 65535 of each", m.Cols, m.Rows)
		}
		session.cmd.resize(uint16(m.Cols), uint16(m.Rows))
	}
	return nil
}

// send passes on what the command writes, from the first message to the last,
// until ctx ends.
func (s *socket) send(ctx context.Context) {
	session := s.reader.s
	err := s.write(&wire.Started{CommandID: session.id, PID: session.cmd.pid})
	if err != nil {
		return
	}
	pings := time.NewTicker(s.d.pingTime())
	defer pings.Stop()
	for {
		message, frame := s.reader.take()
		// Looked at after take: what the daemon's end did to the command is not
		// passed on as the command's own end.
		if ctx.Err() != nil {
			if s.d.ctx.Err() != nil {
				s.close(websocket.CloseGoingAway, errEnding.Error())
			}
			return
		}
		switch {
		case frame != nil:
			err = s.writeFrame(websocket.BinaryMessage, frame)
		case message != nil:
			err = s.write(message)
		}
		if err != nil {
			return
		}
		switch message.(type) {
		case *wire.Exit, *wire.ExecError:
			s.close(websocket.CloseNormalClosure, "")
			return
		}
		if frame != nil || message != nil {
			notify(s.reader.wake) // there may be more
		}
		select {
		case <-ctx.Done():
		case <-s.reader.wake:
		case <-pings.C:
			if s.conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(s.d.lim.stall)) != nil {
				return
			}
		}
	}
}

var errStalled = errors.New("the client does not read")

// write sends one message.
func (s *socket) write(message wire.Message) error {
	data, err := wire.EncodeMessage(message)
	if err != nil {
		return err
	}
	return s.writeFrame(websocket.TextMessage, data)
}

// writeFrame sends a message of this kind. A client that does not take it in
// time is no longer waited for: the command goes on, and the socket, should it
// ever be able to take another message, is closed with 1011.
func (s *socket) writeFrame(kind int, data []byte) error {
	stalled := time.AfterFunc(s.d.lim.stall, func() {
		if s.reader != nil {
			s.reader.detach()
		}
	})
	defer stalled.Stop()
	s.conn.SetWriteDeadline(time.Now().Add(2 * s.d.lim.stall))
	if err := s.conn.WriteMessage(kind, data); err != nil {
		return err
	}
	if !stalled.Stop() {
		s.close(websocket.CloseInternalServerErr, errStalled.Error())
		return errStalled
	}
	return nil
}

// close sends a closing frame, if the socket can still take one.
func (s *socket) close(code int, reason string) {
	const longest = 123 // §5.5 of RFC 6455: 125 with the code
	s.conn.WriteControl(websocket.CloseMessage,
		websocket.FormatCloseMessage(code, string(cutText([]byte(reason), longest))), time.Now().Add(time.Second))
}
