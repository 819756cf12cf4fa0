//go:build unix

package tunnel

import (
	"io"
	"net"
	"syscall"
)

// This file defines reading into buffers that are taken when there is something
// to read, so that idle connections hold none.

type borrower struct {
	conn    net.Conn
	raw     syscall.RawConn // nil if there is none
	buffers *buffers
}

func newBorrower(conn net.Conn, buffers *buffers) *borrower {
	b := &borrower{conn: conn, buffers: buffers}
	if c, ok := conn.(syscall.Conn); ok {
		b.raw, _ = c.SyscallConn()
	}
	return b
}

// read returns what can be read behind the header's place of a frame, which is
// the caller's if n is not 0.
func (b *borrower) read() (f *frame, n int, err error) {
	if b.raw == nil {
		f = b.buffers.frame()
		n, err = b.conn.Read(f[headerSize:])
		return f, n, err
	}
	var failure error
	err = b.raw.Read(func(fd uintptr) bool {
		f = b.buffers.frame()
		for {
			n, failure = syscall.Read(int(fd), f[headerSize:])
			if failure != syscall.EINTR {
				break
			}
		}
		if n > 0 {
			return true
		}
		n = 0
		b.buffers.frames.Put(f)
		return failure != syscall.EAGAIN
	})
	switch {
	case n > 0:
		return f, n, nil
	case err == nil && failure == nil:
		err = io.EOF
	case err == nil:
		err = failure
	}
	return nil, 0, err
}
