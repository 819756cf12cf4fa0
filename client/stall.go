package client

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"
)

// This file defines the deadline of one attempt: a request may take as long as
// it likes so long as bytes move, and is given up when none do.

var errStalled = errors.New("timed out")

// A stall ends its context when nothing has moved for the timeout.
type stall struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	timeout time.Duration
}

func newStall(parent context.Context, timeout time.Duration) *stall {
	s := &stall{timeout: timeout}
	s.ctx, s.cancel = context.WithCancelCause(parent)
	s.timer = time.AfterFunc(timeout, func() { s.cancel(errStalled) })
	return s
}

func (s *stall) moved(n int) {
	if n > 0 && s.ctx.Err() == nil {
		s.timer.Reset(s.timeout)
	}
}

func (s *stall) stop() {
	s.timer.Stop()
	s.cancel(nil)
}

// reader is r, each read of which is progress.
func (s *stall) reader(r io.ReadCloser) io.ReadCloser { return &movingReader{s, r} }

type movingReader struct {
	stall *stall
	io.ReadCloser
}

func (r *movingReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.stall.moved(n)
	return n, err
}

// body is the answer's body: its end, or Close, ends the attempt. A body that
// ends before its announced length is io.ErrUnexpectedEOF, as net/http has it.
func (s *stall) body(response *http.Response) io.ReadCloser {
	s.timer.Stop() // a slow reader is no silent server
	return &attemptBody{stall: s, response: response, inner: response.Body}
}

type attemptBody struct {
	stall    *stall
	response *http.Response
	inner    io.ReadCloser
}

func (b *attemptBody) Read(p []byte) (int, error) {
	b.stall.timer.Reset(b.stall.timeout)
	n, err := b.inner.Read(p)
	b.stall.timer.Stop()
	if err == nil || err == io.EOF {
		return n, err
	}
	if cause := context.Cause(b.stall.ctx); cause != nil {
		err = cause
		if !errors.Is(cause, errStalled) {
			return n, err // the caller's own cancellation
		}
	}
	request := b.response.Request
	return n, connectionError(ErrConnection, request.Method, request.URL.Path, err)
}

func (b *attemptBody) Close() error {
	err := b.inner.Close()
	b.stall.stop()
	return err
}
