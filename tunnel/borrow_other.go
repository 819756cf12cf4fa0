//go:build !unix

package tunnel

import "net"

// This file defines reading where one cannot ask first whether there is something
// to read, and a reset is noticed by reading and writing alone.

type borrower struct {
	conn    net.Conn
	buffers *buffers
}

func newBorrower(conn net.Conn, buffers *buffers) *borrower {
	return &borrower{conn, buffers}
}

// read returns what can be read in the payloads of a burst, which is the caller's
// if n is not 0.
func (b *borrower) read() (*burst, int, error) {
	f := b.buffers.burst()
	n, err := b.conn.Read(f.payload(0))
	return f, n, err
}

func (b *borrower) awaitReset() bool { return false }
