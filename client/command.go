package client

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the handle of a running command: a reader of a session that
// the sandbox keeps, which can be replaced at any byte (protocol.md §6.4–§6.9,
// and §15 for servers of this project).

// Chunk is a piece of one output stream. It never splits a character. It is
// empty only where the stream ends in a gap.
type Chunk struct {
	Stream string // wire.Stdout or wire.Stderr
	Data   string // with U+FFFD for each byte that is not UTF-8
	Offset int64  // bytes of the stream before it
	Gap    int64  // bytes lost right before it, which the sandbox no longer had

	// Raw is the bytes behind Data: what the command wrote, where the server
	// speaks exec.v1, and its own rendering of that elsewhere.
	Raw string
}

// A dialect is how a command's output is sent and counted: both ends stay with
// the one that a handle has begun with, because offsets differ (§15).
type dialect int

const (
	undecided dialect = iota
	asText            // §6
	asBytes           // exec.v1
)

// Command is a handle on a command. Next, Result and what they are used by are
// for one goroutine at a time; the other methods are for any. Close it when
// done, at the latest when Next has returned an error.
type Command struct {
	sandbox *Sandbox
	options RunOptions
	kick    chan struct{} // wakes Next when Kill or Close changed its situation

	attaching chan struct{} // held by the one attachment at a time

	mu          sync.Mutex // guards what follows
	dialect     dialect
	id          string
	pid         int
	sock        *socket // nil while detached
	killed      bool
	stdinClosed bool
	finished    bool
	closed      bool
	delivered   [2]int64 // bytes of each stream that Next has returned
	received    [2]int64 // and those that it will have when the queue is empty

	// What follows belongs to who calls Next.
	held     [2]string // an incomplete character at the end of what was received
	gap      [2]int64  // bytes lost before what is received next
	output   [2]output
	queue    []piece
	attempts int
	started  time.Time
	duration time.Duration
	exitCode int
	signal   string
	reason   string // likewise, of the limits that ended it
	final    error  // io.EOF after the exit
}

// A piece is a chunk and the offset of the bytes behind it, which need not be
// those of its text.
type piece struct {
	Chunk
	end int64
}

const (
	maxReconnects = 5
	startRetries  = 5
	graceAfter    = 30 * time.Second // the command's timeout, for the server to say so
	killGrace     = 5 * time.Second
	killLimit     = time.Second // for sending one; input may be in the way
	inputPiece    = 32 << 10
)

var streams = [2]string{wire.Stdout, wire.Stderr}

// Start starts a command and returns once it runs. It is started once, however
// often the connection fails on the way, as far as the server knows command ids.
func (s *Sandbox) Start(ctx context.Context, o RunOptions) (*Command, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	if o.CommandID == "" {
		id, err := uuid.NewV7()
		if err != nil {
			return nil, err
		}
		o.CommandID = hex.EncodeToString(id[:])
	}
	o.Headers = merge(headersIn(ctx), o.Headers) // also for when it reconnects
	c := newCommand(s, o)
	limits := s.client.websocket
	for deadline, n := time.Now().Add(limits.ConnectBudget), 1; ; n++ {
		sent, err := c.start(ctx, deadline)
		if err == nil {
			return c, nil
		}
		if n > startRetries || ctx.Err() != nil || !c.mayStartAgain(sent, err) {
			return nil, err
		}
		wait := reconnectDelay(n)
		var e *Error
		if errors.As(err, &e) && e.Kind == ErrRetryableConnection && e.Status != 0 {
			wait = time.Duration(float64(wait) * (0.8 + 0.2*s.client.jitter()))
			if e.RetryAfter >= 0 {
				wait = e.RetryAfter
			}
		}
		if wait >= time.Until(deadline) {
			return nil, err
		}
		if err := s.client.sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// Reconnect returns a handle on a command that was started before, maybe by
// another process. It connects when it is first used.
func (s *Sandbox) Reconnect(commandID string, o ReconnectOptions) *Command {
	c := newCommand(s, RunOptions{CommandID: commandID, PTY: o.PTY, Headers: o.Headers})
	c.delivered = [2]int64{o.StdoutOffset, o.StderrOffset}
	c.received = c.delivered
	c.stdinClosed = o.StdinClosed
	c.started = time.Now()
	return c
}

// ReconnectOptions say from where to read on, in bytes as Offsets of a handle on
// the same server has told them, and what the caller knows of the command.
type ReconnectOptions struct {
	StdoutOffset, StderrOffset int64
	StdinClosed, PTY           bool
	Headers                    http.Header
}

func newCommand(s *Sandbox, o RunOptions) *Command {
	return &Command{sandbox: s, options: o, kick: make(chan struct{}, 1), attaching: make(chan struct{}, 1), id: o.CommandID, stdinClosed: o.CloseStdin && !o.PTY}
}

// start opens a socket and has the command started on it, or attached to if an
// earlier attempt did start it. sent tells whether the server may have done so.
func (c *Command) start(ctx context.Context, deadline time.Time) (sent bool, err error) {
	limit := c.sandbox.client.websocket.Open
	sock, err := c.open(ctx, min(limit, time.Until(deadline)))
	if err != nil {
		return false, err
	}
	defer func() {
		if err != nil {
			sock.close()
		}
	}()
	if err := sock.write(context.WithoutCancel(ctx), sock.timeouts.Close, c.options.message()); err != nil {
		return true, err
	}
	limit = min(limit, time.Until(deadline))
	timer := time.NewTimer(limit)
	defer timer.Stop()
	var first wire.Message
	select {
	case m, ok := <-sock.frames:
		if !ok {
			return true, sock.err
		}
		first = m
	case <-timer.C:
		return true, &Error{Kind: ErrConnectTimeout, Message: fmt.Sprintf("the server did not start the command within %v", limit.Round(time.Millisecond)), Operation: "command"}
	case <-ctx.Done():
		sock.write(context.WithoutCancel(ctx), killLimit, &wire.Kill{}) // nobody will have a handle on it
		return true, context.Cause(ctx)
	}
	switch m := first.(type) {
	case *wire.Started:
		if m.CommandID != c.id {
			c.sandbox.client.ignoresIDs.Store(true)
		}
		c.id, c.pid, c.sock, c.started = m.CommandID, m.PID, sock, time.Now()
		c.dialect = sock.dialect()
		return true, nil
	case *wire.ExecError:
		return true, c.commandError(m, "command")
	}
	return true, &Error{Kind: ErrOperation, Operation: "command", Message: fmt.Sprintf("the server began with a message of type %q instead of saying that the command started", wire.MessageType(first))}
}

// mayStartAgain: the command's id makes a second start harmless, unless the
// server is known not to look at it and may have started the command.
func (c *Command) mayStartAgain(sent bool, err error) bool {
	if sent && c.sandbox.client.ignoresIDs.Load() {
		return false
	}
	return errors.Is(err, ErrRetryableConnection) || sent && errors.Is(err, ErrConnection)
}

func (c *Command) open(ctx context.Context, timeout time.Duration) (*socket, error) {
	c.mu.Lock()
	begun, id := c.dialect, c.id
	c.mu.Unlock()
	var offer []string
	if begun != asText {
		offer = []string{wire.ExecV1}
	}
	client := c.sandbox.client
	conn, err := client.upgrade(ctx, c.sandbox.dataplane("execute/ws", true), c.options.Headers, timeout,
		websocket.Dialer{ReadBufferSize: 64 << 10, WriteBufferSize: 16 << 10, Subprotocols: offer})
	if err != nil {
		return nil, err
	}
	sock := newSocket(conn, client.websocket)
	if begun != undecided && sock.dialect() != begun {
		sock.close()
		return nil, &Error{Kind: ErrOperation, Operation: "reconnect",
			Message: fmt.Sprintf("the server has changed between speaking %s and not, so this handle cannot find its place in the output of command %s again; a new one can read it from the beginning", wire.ExecV1, id)}
	}
	return sock, nil
}

// reconnectDelay is the wait before attempt n, counted from 1 (§4.2, §6.8).
func reconnectDelay(n int) time.Duration {
	return min(500*time.Millisecond<<(n-1), 8*time.Second)
}

// ID identifies the command within its sandbox, for Reconnect.
func (c *Command) ID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.id
}

// PID is the command's process id in the sandbox, or 0 while it is not known.
func (c *Command) PID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pid
}

// Offsets are the bytes of each stream up to the end of the last chunk that
// Next has returned: where another handle has to go on.
func (c *Command) Offsets() (stdout, stderr int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.delivered[0], c.delivered[1]
}

// Reconnect returns a second handle, which reads on where this one stands.
func (c *Command) Reconnect() *Command {
	c.mu.Lock()
	defer c.mu.Unlock()
	again := c.sandbox.Reconnect(c.id, ReconnectOptions{StdoutOffset: c.delivered[0], StderrOffset: c.delivered[1],
		StdinClosed: c.stdinClosed, PTY: c.options.PTY, Headers: c.options.Headers})
	again.dialect = c.dialect
	return again
}

// Next returns the next piece of output, io.EOF after the command's exit, or
// why the stream broke: ErrCommandTimeout, ErrOperation, or ErrConnection when
// it could not be reconnected. Such an error carries the output so far and stays.
// A context that ends leaves the handle as it was.
func (c *Command) Next(ctx context.Context) (Chunk, error) {
	for {
		if len(c.queue) > 0 {
			return c.deliver(), nil
		}
		if c.final != nil {
			return Chunk{}, c.final
		}
		sock, err := c.attached(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return Chunk{}, err
			}
			c.lost(ctx, err)
			continue
		}
		if err := c.receive(ctx, sock); err != nil {
			return Chunk{}, err
		}
	}
}

// deliver hands out the first queued chunk: from now on it is the caller's, and
// another handle goes on behind it.
func (c *Command) deliver() Chunk {
	first := c.queue[0]
	c.queue = c.queue[1:]
	i := index(first.Stream)
	c.output[i].add(first.Chunk)
	c.mu.Lock()
	c.delivered[i] = first.end
	c.mu.Unlock()
	return first.Chunk
}

// KeepLast has a caller who takes the output by Next hold little of it, however
// much comes: from now on Result, and an error that carries the output, have at
// least the last n bytes of each stream, and not what stood far before them.
// It is for the goroutine that calls Next.
func (c *Command) KeepLast(n int64) { c.output[0].last, c.output[1].last = n, n }

func index(stream string) int {
	if stream == wire.Stderr {
		return 1
	}
	return 0
}

// receive waits for one message and deals with it. The error is the context's.
func (c *Command) receive(ctx context.Context, sock *socket) error {
	var m wire.Message
	var ok bool
	select {
	case m, ok = <-sock.frames:
	default:
		timer := time.NewTimer(c.patience())
		defer timer.Stop()
		select {
		case m, ok = <-sock.frames:
		case <-c.kick:
			return nil // look again at what there is to wait for
		case <-timer.C:
			c.outOfPatience()
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if !ok {
		c.drop(sock)
		c.lost(ctx, sock.err)
		return nil
	}
	switch m := m.(type) {
	case *wire.Started:
		if m.CommandID == c.ID() {
			c.attempts = 0
			c.mu.Lock()
			c.pid = m.PID
			c.mu.Unlock()
		}
	case *wire.Output:
		c.attempts = 0
		c.take(index(m.Stream), string(m.Data), m.Offset)
	case *wire.Gap:
		c.attempts = 0
		c.skip(index(m.Stream), m.To)
	case *wire.Exit:
		c.flush()
		c.end(true, m.ExitCode, io.EOF)
		c.signal, c.reason = m.Signal, reason(m.Reason)
		if m.DurationMS > 0 {
			c.duration = time.Duration(m.DurationMS) * time.Millisecond
		}
	case *wire.ExecError:
		c.flush()
		operation := "command"
		if sock.again {
			operation = "reconnect"
		}
		c.end(true, -1, c.commandError(m, operation))
	}
	return nil
}

// patience is how long the server may be silent: forever if the command may
// run forever, since pings tell whether the server lives.
func (c *Command) patience() time.Duration {
	c.mu.Lock()
	killed := c.killed
	c.mu.Unlock()
	switch {
	case killed:
		return killGrace
	case c.options.Timeout > 0:
		return max(time.Until(c.started.Add(c.options.Timeout+graceAfter)), graceAfter)
	}
	return unbounded
}

func (c *Command) outOfPatience() {
	c.mu.Lock()
	killed := c.killed
	c.mu.Unlock()
	c.flush()
	if killed {
		c.end(true, 128+9, io.EOF)
		return
	}
	c.end(false, -1, &Error{Kind: ErrCommandTimeout, Operation: "command", ErrorType: wire.ErrCommandTimeout, Timeout: c.options.Timeout,
		Message: fmt.Sprintf("the server did not end the command %v after its timeout of %v", graceAfter, c.options.Timeout)})
}

// take queues what is new in a piece of output: what is known already is cut
// off, what is missing is reported, and a character that is not whole yet is
// held back.
func (c *Command) take(i int, data string, offset int64) {
	at := c.position(i)
	if offset = max(offset, 0); offset < at {
		data = data[min(int64(len(data)), at-offset):]
		offset = at
	}
	if data == "" {
		return
	}
	c.skip(i, offset)
	data = c.held[i] + data
	whole := len(data) - incomplete(data)
	c.held[i] = data[whole:]
	c.queueText(i, data[:whole])
}

// skip goes on at an offset behind which nothing is known.
func (c *Command) skip(i int, to int64) {
	gap := to - c.position(i)
	if gap <= 0 {
		return
	}
	c.queueText(i, c.held[i]) // it will not be completed
	c.held[i] = ""
	c.gap[i] += gap
	c.mu.Lock()
	c.received[i] = to
	c.mu.Unlock()
}

// position is the offset of the byte that is expected next.
func (c *Command) position(i int) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.received[i] + int64(len(c.held[i]))
}

// queueText queues what comes next in a stream, and what was lost before it.
func (c *Command) queueText(i int, text string) {
	if text == "" {
		return
	}
	c.mu.Lock()
	offset := c.received[i]
	end := offset + int64(len(text))
	c.received[i] = end
	c.mu.Unlock()
	c.queue = append(c.queue, piece{Chunk{streams[i], valid(text), offset, c.gap[i], text}, end})
	c.gap[i] = 0
}

// flush gives up waiting for the rest of characters, and for what follows a gap.
func (c *Command) flush() {
	for i, held := range c.held {
		c.queueText(i, held)
		c.held[i] = ""
		if c.gap[i] > 0 {
			end := c.position(i)
			c.queue = append(c.queue, piece{Chunk{Stream: streams[i], Offset: end, Gap: c.gap[i]}, end})
			c.gap[i] = 0
		}
	}
}

// valid is s with U+FFFD for each byte that is part of no character.
func valid(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return string([]rune(s))
}

// incomplete is how many bytes at the end of s are the start of a character.
func incomplete(s string) int {
	for n := 1; n <= min(len(s), utf8.UTFMax-1); n++ {
		if b := s[len(s)-n]; utf8.RuneStart(b) {
			if b >= utf8.RuneSelf && !utf8.FullRuneInString(s[len(s)-n:]) {
				return n
			}
			return 0
		}
	}
	return 0
}

func (c *Command) commandError(m *wire.ExecError, operation string) *Error {
	e := &Error{Kind: ErrOperation, Message: m.Error, ErrorType: m.ErrorType, Operation: operation}
	switch m.ErrorType {
	case wire.ErrCommandTimeout:
		e.Kind, e.Operation, e.Timeout = ErrCommandTimeout, "command", c.options.Timeout
	case wire.ErrCommandNotFound:
		if operation == "reconnect" {
			e.Message = fmt.Sprintf("the sandbox knows no command %s: %s", c.id, m.Error)
		}
	case wire.ErrSessionExpired:
		if operation == "reconnect" {
			e.Message = fmt.Sprintf("command %s has ended too long ago, its output is no longer kept: %s", c.id, m.Error)
		}
	}
	return e
}

// end is the end of what this handle reads; finished tells whether the command
// has ended too.
func (c *Command) end(finished bool, exitCode int, final error) {
	c.exitCode, c.final, c.duration = exitCode, final, time.Since(c.started)
	var e *Error
	if errors.As(final, &e) {
		own := *e // errDetached is everybody's
		own.Stdout, own.Stderr = c.collected()
		c.final = &own
	}
	c.mu.Lock()
	sock := c.sock
	c.sock, c.finished = nil, finished
	c.mu.Unlock()
	if sock != nil {
		sock.close()
	}
}

// collected is the output so far, queued chunks included.
func (c *Command) collected() (stdout, stderr string) {
	text := [2]string{c.output[0].text.String(), c.output[1].text.String()}
	for _, chunk := range c.queue {
		text[index(chunk.Stream)] += chunk.Data
	}
	return text[0], text[1]
}

// drop forgets a socket that has ended.
func (c *Command) drop(sock *socket) {
	c.mu.Lock()
	if c.sock == sock {
		c.sock = nil
	}
	c.mu.Unlock()
	sock.close()
	c.held = [2]string{} // asked for again
}

// lost decides what the loss of the connection means: it waits for the next
// attempt, or ends the command's handle. It returns early when ctx ends or a
// kill needs a connection.
func (c *Command) lost(ctx context.Context, err error) {
	permanent := !errors.Is(err, ErrConnection) || err == errDetached
	var e *Error
	if errors.As(err, &e) && e.Status != 0 && e.Kind == ErrConnection {
		permanent = true // an answer that trying again does not change
	}
	if permanent {
		c.end(false, -1, err)
		return
	}
	if c.attempts++; c.attempts > maxReconnects {
		c.end(false, -1, &Error{Kind: ErrConnection, Operation: "reconnect", Err: err,
			Message: fmt.Sprintf("giving up on command %s after %d lost connections in a row: %v", c.ID(), c.attempts, err)})
		return
	}
	if errors.Is(err, ErrServerReload) {
		return
	}
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	woken := make(chan struct{})
	go func() {
		defer close(woken)
		select {
		case <-c.kick:
			stop()
		case <-waiting.Done():
		}
	}()
	c.sandbox.client.sleep(waiting, reconnectDelay(c.attempts))
	stop()
	<-woken
}

// attached returns the socket in use, opening one if there is none: it asks for
// the output from where this handle stands, and repeats what the command has
// been told for good.
func (c *Command) attached(ctx context.Context) (*socket, error) {
	select {
	case c.attaching <- struct{}{}:
		defer func() { <-c.attaching }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	c.mu.Lock()
	sock, closed := c.sock, c.closed
	hello := &wire.Reconnect{CommandID: c.id, StdoutOffset: c.received[0], StderrOffset: c.received[1]}
	c.mu.Unlock()
	if closed {
		return nil, errDetached
	}
	if sock != nil {
		return sock, nil
	}
	sock, err := c.open(ctx, c.sandbox.client.websocket.Open)
	if err != nil {
		return nil, err
	}
	c.mu.Lock() // held until the socket is in place: a kill is either said here or finds it
	defer c.mu.Unlock()
	say := []wire.Message{hello}
	if c.stdinClosed {
		say = append(say, &wire.CloseStdin{})
	}
	if c.killed {
		say = append(say, &wire.Kill{})
	}
	for i, m := range say {
		err := sock.write(ctx, sock.timeouts.Close, m)
		if i > 0 && errors.Is(err, websocket.ErrCloseSent) {
			break // the command had ended: the answer to hello is whole, and stands to be read
		}
		if err != nil {
			sock.close()
			return nil, err
		}
	}
	if c.closed {
		sock.close()
		return nil, errDetached
	}
	sock.again, c.sock, c.dialect = true, sock, sock.dialect()
	return sock, nil
}

// Result reads the output to its end and returns what the command came to.
func (c *Command) Result(ctx context.Context) (*Result, error) {
	for {
		if _, err := c.Next(ctx); err == io.EOF {
			return &Result{Stdout: c.output[0].text.String(), Stderr: c.output[1].text.String(), ExitCode: c.exitCode, CommandID: c.ID(), Duration: c.duration,
				RawStdout: c.output[0].bytes(), RawStderr: c.output[1].bytes(), LostStdout: c.output[0].lost, LostStderr: c.output[1].lost,
				ForgottenStdout: c.output[0].text.forgotten, ForgottenStderr: c.output[1].text.forgotten, Signal: c.signal, Reason: c.reason}, nil
		} else if err != nil {
			return nil, err
		}
	}
}

// Kill sends SIGKILL to the command's process group. It is remembered: if the
// connection is down, one is opened to deliver it, and if that fails too, the
// next that Next opens delivers it.
func (c *Command) Kill(ctx context.Context) error {
	c.mu.Lock()
	if c.finished {
		c.mu.Unlock()
		return nil
	}
	c.killed = true
	sock := c.sock
	c.mu.Unlock()
	defer c.wake()
	if sock != nil {
		if sock.write(ctx, killLimit, &wire.Kill{}) == nil {
			return nil
		}
		c.mu.Lock()
		if c.sock == sock {
			c.sock = nil // broken, as whoever reads it is about to find out
		}
		c.mu.Unlock()
		sock.conn.Close() // without a goodbye, which would have to wait as well
		sock.close()
	}
	_, err := c.attached(ctx)
	return err
}

// Abandon kills the command for a caller who is gone and closes the handle. It
// connects again if it has to, and takes five seconds at most.
func (c *Command) Abandon() {
	ctx, cancel := context.WithTimeout(context.Background(), killGrace)
	defer cancel()
	c.Kill(ctx)
	c.Close()
}

func (c *Command) wake() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// SendInput writes to the command's stdin. Bytes that are not UTF-8 are refused
// unless the server speaks exec.v1: elsewhere input is text. It waits while the command does not read. Input that
// cannot be sent because the connection is down is an error, and after the
// command's end it has no effect.
func (c *Command) SendInput(ctx context.Context, data []byte) error {
	c.mu.Lock()
	finished, closed := c.finished, c.stdinClosed
	c.mu.Unlock()
	if closed {
		return &Error{Kind: ErrOperation, Operation: "sendInput", Message: "the command's stdin is closed"}
	}
	if finished {
		return nil
	}
	sock, err := c.attached(ctx)
	if err != nil {
		return err
	}
	if !sock.v1 && !utf8.Valid(data) {
		return argumentError("to this server, input must be UTF-8 text; write other bytes to a file and redirect the command's stdin from it")
	}
	for len(data) > 0 {
		piece := data[:min(len(data), inputPiece)]
		if !sock.v1 {
			piece = piece[:len(piece)-incomplete(string(piece[max(0, len(piece)-utf8.UTFMax):]))]
		}
		if err := sock.writeInput(ctx, piece); err != nil {
			return err
		}
		data = data[len(piece):]
	}
	return nil
}

// CloseStdin is the end of the command's input. It is remembered, and has no
// effect on a terminal, where "\x04" is the end. A server that is known to be
// older than it cannot do that: the error is ErrOperation.
func (c *Command) CloseStdin(ctx context.Context) error {
	c.mu.Lock()
	sock := c.sock
	if c.finished || c.stdinClosed || c.options.PTY {
		c.mu.Unlock()
		return nil
	}
	if c.dialect == asText && c.sandbox.client.ignoresIDs.Load() {
		c.mu.Unlock()
		return &Error{Kind: ErrOperation, Operation: "sendInput", Message: "this server cannot end a command's input: it is older than that; use a command that ends by itself, or a terminal, where \"\\x04\" is the end"}
	}
	c.stdinClosed = true
	c.mu.Unlock()
	if sock != nil {
		sock.write(ctx, unbounded, &wire.CloseStdin{}) // if it is lost, the next attachment says it again
	}
	return nil
}

// signalNames are the signals of Linux, which is what runs in sandboxes.
const signalNames = " HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS "

// Signal sends a signal to the command's process group, by its name, as in TERM
// or SIGTERM. A server that does not speak exec.v1 can do none but KILL, which is
// what Kill does: the error is ErrOperation. It is sent once, and if the
// connection is down that may be never: ErrConnection. After the command's end it
// has no effect.
func (c *Command) Signal(ctx context.Context, name string) error {
	name = strings.TrimPrefix(name, "SIG")
	switch {
	case strings.Contains(name, " ") || !strings.Contains(signalNames, " "+name+" "):
		return argumentError("there is no signal %q; give a name such as TERM, INT or HUP", name)
	case name == "KILL":
		return c.Kill(ctx)
	}
	return c.tell(ctx, &wire.Signal{Signal: name}, "send signals other than KILL")
}

// Resize sets the size of the command's terminal, in characters. A server that
// does not speak exec.v1 cannot do that, nor can a command without a terminal be
// told to: the error is ErrOperation. After the command's end it has no effect.
func (c *Command) Resize(ctx context.Context, cols, rows int) error {
	if cols < 1 || cols > math.MaxUint16 || rows < 1 || rows > math.MaxUint16 {
		return argumentError("a terminal of %d columns and %d rows cannot be; give 1 to %d of each", cols, rows, math.MaxUint16)
	}
	if !c.options.PTY {
		return &Error{Kind: ErrOperation, Operation: "command", Message: "the command does not run on a terminal, so there is nothing to resize"}
	}
	return c.tell(ctx, &wire.Resize{Cols: cols, Rows: rows}, "change the size of a terminal")
}

// tell sends a message that only exec.v1 has; what is what it asks to do.
func (c *Command) tell(ctx context.Context, m wire.Message, what string) error {
	c.mu.Lock()
	finished := c.finished
	c.mu.Unlock()
	if finished {
		return nil
	}
	sock, err := c.attached(ctx)
	if err != nil {
		return err
	}
	if !sock.v1 {
		return &Error{Kind: ErrOperation, Operation: "command", Message: fmt.Sprintf("this server cannot %s: it does not speak %s", what, wire.ExecV1)}
	}
	return sock.write(ctx, sock.timeouts.Close, m)
}

// Close detaches: the command goes on without a reader, by the rules it was
// started with. Closing twice is harmless.
func (c *Command) Close() error {
	c.mu.Lock()
	sock := c.sock
	c.sock, c.closed = nil, true
	c.mu.Unlock()
	if sock != nil {
		sock.close()
	}
	c.wake()
	return nil
}
