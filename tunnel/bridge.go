package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// This file defines how a stream and a socket are made one connection (§7.6).

// resetGrace is how long a socket may take nothing of what came before a reset.
const resetGrace = 2 * time.Second

// bridge copies both ways until both have ended or one was reset, and closes
// both. When ctx ends it resets both. in counts what the stream brought, out what
// it took.
func bridge(ctx context.Context, s *stream, local net.Conn, in, out *atomic.Int64) {
	stop := context.AfterFunc(ctx, func() {
		s.Reset()
		abort(local)
	})
	defer stop()
	// What came before a reset is for a socket that takes it.
	s.whenFailed(func() { local.SetWriteDeadline(time.Now().Add(resetGrace)) })
	var outward sync.WaitGroup
	outward.Go(func() { copyOut(s, local, out) })
	copyIn(s, local, in)
	local.SetReadDeadline(past) // which ends copyOut if it waits for a reset
	outward.Wait()
	s.Close()
	local.Close()
}

// copyIn moves what the stream brings to the socket, its end of file as such, and
// then waits for the stream's other half, whose reset would not be seen
// otherwise.
func copyIn(s *stream, local net.Conn, count *atomic.Int64) {
	var room [burstFrames][]byte
	for {
		pieces, err := s.peek(room[:0])
		if err == io.EOF {
			if err = closeWrite(local); err == nil {
				err = s.waitFinished()
			}
			if err == nil {
				return
			}
		}
		if err == nil {
			var n int64
			n, err = (*net.Buffers)(&pieces).WriteTo(local)
			clear(room[:]) // or they would be held while waiting
			if s.took(int(n)) && n > 0 && (err == nil || errors.Is(err, os.ErrDeadlineExceeded)) {
				err = local.SetWriteDeadline(time.Now().Add(resetGrace))
			}
			count.Add(n)
		}
		if err != nil {
			s.Reset()
			abort(local)
			return
		}
	}
}

// copyOut moves what the socket brings to the stream. When the stream takes no
// more, copyIn hears of that. A reset of the socket is noticed also while nothing is
// read from it: while the stream waits for its window, and after the end of file.
func copyOut(s *stream, local net.Conn, count *atomic.Int64) {
	r := newBorrower(local, &s.m.buffers)
	var watching sync.WaitGroup
	watched := false
	watch := func() {
		if watched {
			return
		}
		watched = true
		watching.Go(func() {
			if r.awaitReset() {
				s.Reset()
				abort(local)
			}
		})
	}
	for {
		f, n, err := r.read()
		if n > 0 {
			failed := s.writeBurst(f, n, watch)
			if watched {
				watched = false
				local.SetReadDeadline(past)
				watching.Wait()
				local.SetReadDeadline(time.Time{})
			}
			if failed != nil {
				return
			}
			s.m.buffers.bursts.Put(f)
			count.Add(int64(n))
		}
		if err == io.EOF {
			s.CloseWrite()
			if !r.awaitReset() {
				return
			}
		}
		if err != nil {
			s.Reset()
			abort(local)
			return
		}
	}
}

// past is a deadline that ends what waits.
var past = time.Unix(1, 0)

// closeWrite sends the end of file of a connection that has half-closes. Another
// one keeps it to itself until both ends are done.
func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// abort closes a connection such that its peer sees a reset.
func abort(c net.Conn) {
	if lingering, ok := c.(interface{ SetLinger(int) error }); ok {
		lingering.SetLinger(0)
	}
	c.Close()
}
