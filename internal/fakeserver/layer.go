//go:build linux

package fakeserver

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"strings"
	"time"
)

// This file defines the layer in front of the server.

// ServeHTTP logs a request, misbehaves if that was ordered, and passes the
// request on otherwise.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.begin() {
		panic(http.ErrAbortHandler)
	}
	defer s.serving.Done()
	// Before the log tells of the request: who reads it there may take the order back.
	faults := s.faults.take(r)
	defer s.logRequest(r)()
	if !s.pass(r.Context(), r.Method+" "+r.URL.Path) {
		panic(http.ErrAbortHandler)
	}
	if f := faults["delay"]; f != nil {
		select {
		case <-time.After(f.delay):
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		case <-s.ctx.Done():
			panic(http.ErrAbortHandler) // net/http closes the connection
		}
	}
	if f := faults["status"]; f != nil {
		f.answerStatus(w)
		return
	}
	if faults["garbage"] != nil {
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			io.WriteString(conn, "this is not HTTP\r\n\r\n")
			conn.Close()
		}
		return
	}
	if faults["garbage-json"] != nil {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"name":`)
		return
	}
	if s.faults.missing(r) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, `{"detail":"Not Found"}`)
		return
	}
	r = s.faults.date(r)
	if f := faults["cut"]; f != nil {
		w = &cutter{w, f.after}
	}
	if isUpgrade(r) {
		w = &upgrade{w, s, faults, tail(r.URL.Path) == "/tunnel"}
	}
	if f := faults["frames"]; f != nil {
		s.play(w, r, f.script)
		return
	}
	if s.point.Load() != nil && strings.HasPrefix(r.URL.Path, basePath+"/") {
		s.answerLater(w, r)
		return
	}
	s.inner.ServeHTTP(w, r)
}

func isUpgrade(r *http.Request) bool {
	return strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}

// tail is a path without the base URL's or the dataplane_url's.
func tail(path string) string {
	if rest, ok := strings.CutPrefix(path, "/sb/"); ok {
		_, rest, _ = strings.Cut(rest, "/")
		return "/" + rest
	}
	if i := strings.Index(path, basePath+"/"); i >= 0 {
		return path[i+len(basePath):]
	}
	return path
}

// logRequest writes the line of a request. What it returns completes the line
// of an upload, whose body is counted as the server reads it.
func (s *Server) logRequest(r *http.Request) (finish func()) {
	line := r.Method + " " + r.URL.RequestURI()
	if kind, params, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind == "multipart/form-data" {
		return s.logUpload(r, line, params["boundary"])
	}
	var buf bytes.Buffer
	io.Copy(&buf, io.LimitReader(r.Body, 2<<20))
	if buf.Len() > 0 {
		line += " " + compact(buf.Bytes())
	}
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(&buf, r.Body), r.Body}
	s.log.add(line)
	return func() {}
}

func (s *Server) logUpload(r *http.Request, line, boundary string) (finish func()) {
	entry := s.log.add(line + " <multipart>")
	tap, feed := io.Pipe()
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.TeeReader(r.Body, feed), r.Body}
	counted := make(chan int64)
	go func() {
		size := int64(0)
		parts := multipart.NewReader(tap, boundary)
		for part, err := parts.NextPart(); err == nil; part, err = parts.NextPart() {
			n, _ := io.Copy(io.Discard, part)
			size += n
		}
		io.Copy(io.Discard, tap)
		counted <- size
	}()
	return func() {
		feed.Close()
		s.log.set(entry, fmt.Sprintf("%s <multipart %d bytes>", line, <-counted))
	}
}

// cutter is the fault "cut".
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	if len(p) < c.left {
		c.left -= len(p)
		return c.ResponseWriter.Write(p)
	}
	c.ResponseWriter.Write(p[:c.left])
	http.NewResponseController(c.ResponseWriter).Flush()
	panic(http.ErrAbortHandler)
}

func (c *cutter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// upgrade hands over a connection whose frames are watched.
type upgrade struct {
	http.ResponseWriter
	s      *Server
	faults map[string]*fault
	opaque bool
}

func (u *upgrade) Unwrap() http.ResponseWriter { return u.ResponseWriter }

func (u *upgrade) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(u.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	u.s.mu.Lock()
	u.s.conns[conn] = true
	u.s.mu.Unlock()
	if u.s.ctx.Err() != nil { // Close may have looked before
		conn.Close()
	}
	ctx, gone := context.WithCancel(u.s.ctx)
	c := &socket{ctx: ctx, gone: gone, Conn: conn, fromClient: buffered.Reader, s: u.s, faults: u.faults, opaque: u.opaque}
	return c, bufio.NewReadWriter(bufio.NewReader(c), bufio.NewWriter(c)), nil
}
