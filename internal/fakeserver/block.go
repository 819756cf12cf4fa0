//go:build linux

package fakeserver

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
)

// This file defines points: moments in which a client waits for the server, and
// at one of which the server stands still.
//
// They are counted over the whole life of the server: one before a request is
// carried out; one after it, before the answer, on the control plane; and one
// before each piece that is sent over a WebSocket.

// Point is one of them, once it has come.
type Point struct {
	number  int
	reached chan struct{} // closed when it has come
	release chan struct{}
	freed   sync.Once

	mu    sync.Mutex
	count int
	what  string
}

// BlockAt has the server stand still at the nth point until Release, the
// client's disappearance, or Close. Points that came before are not counted.
func (s *Server) BlockAt(n int) *Point {
	p := &Point{number: n, reached: make(chan struct{}), release: make(chan struct{})}
	s.point.Store(p)
	return p
}

// Reached is closed when the point has come.
func (p *Point) Reached() <-chan struct{} { return p.reached }

// Release lets the server go on.
func (p *Point) Release() { p.freed.Do(func() { close(p.release) }) }

// String says what the client waits for at the point.
func (p *Point) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.what
}

// pass counts a point, and returns once the server is to go on: false if it
// should not.
func (s *Server) pass(ctx context.Context, what string) bool {
	p := s.point.Load()
	if p == nil {
		return true
	}
	p.mu.Lock()
	p.count++
	here := p.count == p.number
	if here {
		p.what = what
		close(p.reached)
	}
	p.mu.Unlock()
	if !here {
		return true
	}
	select {
	case <-p.release:
		return true
	case <-ctx.Done():
	case <-s.ctx.Done():
	}
	return false
}

// answerLater carries out a request and keeps the answer back at its point.
func (s *Server) answerLater(w http.ResponseWriter, r *http.Request) {
	answer := httptest.NewRecorder()
	s.inner.ServeHTTP(answer, r)
	if !s.pass(r.Context(), "the answer to "+r.Method+" "+r.URL.Path) {
		panic(http.ErrAbortHandler)
	}
	for name, values := range answer.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(answer.Code)
	w.Write(answer.Body.Bytes())
}
