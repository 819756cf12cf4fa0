//go:build unix

package tunnel

import (
	"io"
	"net"
	"syscall"
)

// This file defines reading into buffers that are taken when there is something
// to read, so that idle connections hold none, and noticing a reset without reading.

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

// read returns what can be read in the payloads of a burst, which is the caller's
// if n is not 0. There may be an error behind them.
func (b *borrower) read() (f *burst, n int, err error) {
	if b.raw == nil {
		f = b.buffers.burst()
		n, err = b.conn.Read(f.payload(0))
		return f, n, err
	}
	var failure error
	err = b.raw.Read(func(fd uintptr) bool {
		f = b.buffers.burst()
		n, failure = f.fill(func(room []byte) (int, error) { return readNow(int(fd), room) })
		if n == 0 {
			b.buffers.bursts.Put(f)
			f = nil // or it would be held while waiting
		}
		return n > 0 || failure != syscall.EAGAIN
	})
	switch {
	case err == nil && n == 0 && failure == nil:
		err = io.EOF
	case err == nil && failure != syscall.EAGAIN:
		err = failure // which a socket tells once
	}
	return f, n, err
}

// awaitReset waits for a reset without reading, until the read deadline passes or
// the connection is closed, and reports whether there was one.
func (b *borrower) awaitReset() (reset bool) {
	if b.raw == nil {
		return false
	}
	b.raw.Read(func(fd uintptr) bool {
		failure, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR)
		reset = err == nil && failure != 0
		return reset
	})
	return reset
}

// readNow reads what there is, or is EAGAIN.
func readNow(fd int, p []byte) (int, error) {
	for {
		n, err := syscall.Read(fd, p)
		if err != syscall.EINTR {
			return n, err
		}
	}
}
