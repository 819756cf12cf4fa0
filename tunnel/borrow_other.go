//go:build !unix

package tunnel

import "net"

// This file defines reading where one cannot ask first whether there is something
// to read.

type borrower struct {
	conn    net.Conn
	buffers *buffers
}

func newBorrower(conn net.Conn, buffers *buffers) *borrower {
	return &borrower{conn, buffers}
}

// read returns what can be read behind the header's place of a frame, which is
// the caller's if n is not 0.
func (b *borrower) read() (*frame, int, error) {
	f := b.buffers.frame()
	n, err := b.conn.Read(f[headerSize:])
	return f, n, err
}
