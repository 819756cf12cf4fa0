//go:build linux

package daemon

import (
	"sync"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines a session: a command, the output that it keeps, and the
// clients that read it (§6.6).

// The two streams of a session.
const (
	outStream = iota
	errStream
)

var streamNames = [...]string{wire.Stdout, wire.Stderr}

type session struct {
	id    string
	cmd   *command
	input *input // nil if stdin is /dev/null
	lim   limits

	timeout          time.Duration // 0 is none
	idle             time.Duration // negative is never
	ttl              time.Duration // negative is for ever
	killOnDisconnect bool

	mu      sync.Mutex
	streams [2]stream
	readers map[*reader]struct{}
	final   wire.Message // *wire.Exit or *wire.ExecError once the command is over

	room    [2]chan struct{} // each holds a token: a reader of that stream moved on or left
	visits  chan struct{}    // holds a token: the first reader came or the last one left
	evicted chan struct{}    // closed when the table has dropped the session
}

func newSession(id string, lim limits) *session {
	s := &session{id: id, lim: lim, readers: make(map[*reader]struct{}),
		visits: make(chan struct{}, 1), evicted: make(chan struct{})}
	for i := range s.streams {
		s.streams[i].limit = max(lim.ring, smallestRing)
		s.room[i] = make(chan struct{}, 1)
	}
	return s
}

// configure takes over the limits that req sets.
func (s *session) configure(req *wire.Execute) (err error) {
	s.killOnDisconnect = req.KillOnDisconnect
	if s.timeout, err = seconds("timeout_seconds", req.TimeoutSeconds, 0); err != nil {
		return err
	}
	if s.idle, err = seconds("idle_timeout_seconds", req.IdleTimeoutSeconds, -1); err != nil {
		return err
	}
	if s.idle == 0 {
		s.idle = s.lim.idle
	}
	s.ttl, err = seconds("ttl_seconds", req.TTLSeconds, -1)
	return err
}

// write appends output. While clients are attached it waits for the slowest of
// them, so that none misses anything, and keeps half a ring of what has gone out
// to it: one that lost its socket has not read all of that. Without any client
// it overwrites the oldest.
func (s *session) write(stream int, p []byte) {
	for len(p) > 0 {
		s.mu.Lock()
		r := &s.streams[stream]
		n := int64(len(p))
		for reader := range s.readers {
			n = min(n, r.limit/2-(r.end-reader.at[stream].raw))
		}
		if n > 0 {
			r.write(p[:n])
			p = p[n:]
			s.wakeReaders()
		}
		s.mu.Unlock()
		if n <= 0 {
			<-s.room[stream]
		}
	}
}

func (s *session) wakeReaders() {
	for r := range s.readers {
		notify(r.wake)
	}
}

// finish sets the last message.
func (s *session) finish(final wire.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.final = final
	for i := range s.streams {
		s.streams[i].over = true
	}
	s.wakeReaders()
}

// size is how many bytes of memory the output takes.
func (s *session) size() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(len(s.streams[outStream].buf) + len(s.streams[errStream].buf))
}

func (s *session) attached() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.readers) > 0
}

// supervise keeps the command to its limits, and returns once it is over and
// its output stands in the streams. stopping is closed when the daemon ends.
func (s *session) supervise(stopping <-chan struct{}) {
	var timeout <-chan time.Time
	if s.timeout > 0 {
		t := time.NewTimer(s.timeout)
		defer t.Stop()
		timeout = t.C
	}
	timedOut := false
	for over := false; !over; {
		// Nobody attached: the time runs from here.
		var idle <-chan time.Time
		if s.idle >= 0 && !s.attached() {
			idle = time.After(s.idle)
		}
		select {
		case <-s.cmd.ended:
			over = true
		case <-s.visits:
		case <-idle:
			if !s.attached() {
				s.cmd.kill()
			}
		case <-timeout:
			timedOut = s.cmd.kill()
			timeout = nil
		case <-stopping:
			s.cmd.kill()
			stopping = nil
		}
	}
	if s.input != nil {
		s.input.end()
	}
	if timedOut {
		f := commandTimeout(s.timeout)
		s.finish(&wire.ExecError{Error: f.Message, ErrorType: f.Reason})
	} else {
		s.finish(s.cmd.exit())
	}
}

// keep returns when the ended session need no longer be kept.
func (s *session) keep(stopping <-chan struct{}) {
	var expired <-chan time.Time
	if s.ttl > 0 {
		t := time.NewTimer(s.ttl)
		defer t.Stop()
		expired = t.C
	}
	for s.ttl != 0 || s.attached() {
		select {
		case <-expired:
			return
		case <-s.visits:
		case <-s.evicted:
			return
		case <-stopping:
			return
		}
	}
}

// reader is one client's place in a session. One goroutine uses it.
type reader struct {
	s    *session
	v1   bool          // it speaks exec.v1 and counts what was written
	at   [2]place      // of the next byte of each stream
	gaps [2]*wire.Gap  // what was lost before that, to be told first
	turn int           // the stream to look at first
	wake chan struct{} // holds a token: there may be something to read
	buf  []byte
}

// attach adds a client that wants to read from these offsets, which count what
// was written if it speaks exec.v1, and UTF-8 otherwise.
func (s *session) attach(offsets [2]int64, v1 bool) *reader {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &reader{s: s, v1: v1, wake: make(chan struct{}, 1)}
	for i, asked := range offsets {
		st := &s.streams[i]
		if !v1 {
			st.count()
			r.at[i] = st.seek(asked)
			continue
		}
		r.at[i] = st.seekRaw(asked)
		if to := r.at[i].raw; asked < to {
			r.gaps[i] = &wire.Gap{Stream: streamNames[i], From: asked, To: to}
		}
	}
	s.readers[r] = struct{}{}
	if len(s.readers) == 1 {
		notify(s.visits)
	}
	return r
}

// detach removes the client, and reports whether it was still there. The last
// one to leave may take the command along.
func (r *reader) detach() bool {
	s := r.s
	s.mu.Lock()
	_, there := s.readers[r]
	delete(s.readers, r)
	last := there && len(s.readers) == 0
	for i := range s.room {
		notify(s.room[i])
	}
	s.mu.Unlock()
	if last {
		if s.killOnDisconnect {
			s.cmd.kill()
		}
		notify(s.visits)
	}
	return there
}

// take returns the next message, or the next frame of output, which is valid
// until the next call; or neither if there is nothing yet. The streams take
// turns; the last message comes when both are read to their ends.
func (r *reader) take() (message wire.Message, frame []byte) {
	s := r.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for range s.streams {
		i := r.turn
		r.turn = 1 - i
		if gap := r.gaps[i]; gap != nil {
			r.gaps[i] = nil
			return gap, nil
		}
		from := r.at[i]
		if r.v1 {
			r.buf = wire.AppendOutputHeader(r.buf[:0], streamNames[i], from.raw)
			header := len(r.buf)
			r.buf = s.streams[i].appendFrom(r.buf, from.raw, wire.MaxFrameData)
			r.at[i].raw += int64(len(r.buf) - header)
			frame = r.buf
		} else {
			r.buf, r.at[i] = s.streams[i].appendText(r.buf[:0], from, s.lim.chunk)
			message = &wire.Output{Stream: streamNames[i], Data: wire.Text(r.buf), Offset: from.text}
		}
		if r.at[i] != from {
			notify(s.room[i])
			return message, frame
		}
	}
	if exit, ok := s.final.(*wire.Exit); ok && !r.v1 {
		return &wire.Exit{ExitCode: exit.ExitCode}, nil
	}
	return s.final, nil
}
