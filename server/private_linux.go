package server

import (
	"context"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// This file defines a listener that only its own process can reach.

// Private returns a listener and the dialer of its connections, for
// http.Transport and its like. Each connection is a pair of Unix sockets that
// no name leads to, so nobody else on the machine can open one and no file is
// left behind.
func Private() (net.Listener, func(ctx context.Context, network, addr string) (net.Conn, error)) {
	l := &privateListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	return l, l.dial
}

type privateListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *privateListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far, err := socketPair()
	if err != nil {
		return nil, err
	}
	select {
	case l.conns <- far:
		return near, nil
	case <-l.closed:
		err = net.ErrClosed
	case <-ctx.Done():
		err = ctx.Err()
	}
	near.Close()
	far.Close()
	return nil, err
}

func (l *privateListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *privateListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *privateListener) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }

func socketPair() (near, far net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	conns := make([]net.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "private connection")
		conns[i], err = net.FileConn(f) // duplicates the descriptor
		f.Close()
		if err != nil {
			for _, c := range conns[:i] {
				c.Close()
			}
			if i == 0 {
				unix.Close(fds[1])
			}
			return nil, nil, err
		}
	}
	return conns[0], conns[1], nil
}
