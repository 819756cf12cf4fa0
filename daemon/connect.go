//go:build linux

package daemon

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines GET /connect?port=N: a connection to what listens in the
// sandbox, for the service URLs of the server (protocol.md §2.8).

// connect changes to bytes both ways between the client and a port of the
// sandbox. Where nothing listens it answers 502 ConnectionError. Each side's end
// is passed on to the other by itself.
func (d *daemon) connect(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "tcp") {
		w.Header().Set("Upgrade", "tcp")
		w.Header().Set("Connection", "Upgrade")
		answer(w, &failure{http.StatusUpgradeRequired, wire.Problem{Type: wire.ErrInvalidRequest, Message: "/connect changes to TCP: ask for an upgrade to tcp"}})
		return
	}
	text := r.URL.Query().Get("port")
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		answer(w, refuse(wire.ErrInvalidRequest, "the query parameter port is %q: give a number from 1 to 65535", text))
		return
	}
	service, err := dialSelf(r.Context(), strconv.FormatUint(port, 10), d.lim.dial)
	if err != nil {
		answer(w, &failure{http.StatusBadGateway, wire.Problem{Type: wire.ErrConnection, Message: "port " + text + " of the sandbox cannot be reached: " + err.Error()}})
		return
	}
	defer service.Close()
	d.work.Add(1) // the HTTP server does not wait for connections that were taken over
	defer d.work.Done()
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		answer(w, err)
		return
	}
	defer client.Close()
	stop := context.AfterFunc(d.ctx, func() { client.Close(); service.Close() })
	defer stop()
	client.SetDeadline(time.Time{})
	if _, err := io.WriteString(client, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"); err != nil {
		return
	}
	early, _ := buffered.Peek(buffered.Reader.Buffered()) // sent before the answer
	if _, err := service.Write(early); err != nil {
		return
	}
	join(client, service, d.lim.hangup)
}

// dialSelf connects to a port of the loopback interface, by IPv4 or else IPv6.
func dialSelf(ctx context.Context, port string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		var second error
		if conn, second = dialer.DialContext(ctx, "tcp", net.JoinHostPort("::1", port)); second == nil {
			return conn, nil
		}
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		err = errors.New("nothing listens there")
	}
	return conn, err
}

// join copies both ways until both have ended or one is broken. A client that
// has said its last word is looked at every so often: if it has gone altogether,
// the service need not speak on.
func join(client, service net.Conn, look time.Duration) {
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		copyHalf(client, service)
	}()
	copyHalf(service, client)
	for {
		select {
		case <-answered:
			return
		case <-time.After(look):
			if hungUp(client) {
				service.Close()
			}
		}
	}
}

// copyHalf copies to its end what src sends, and passes the end on. When one of
// the two is broken it closes both.
func copyHalf(dst, src net.Conn) {
	_, err := io.Copy(dst, src)
	if half, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
		err = half.CloseWrite()
	}
	if err != nil {
		dst.Close()
		src.Close()
	}
}

// hungUp reports whether the other side has closed both directions.
func hungUp(conn net.Conn) bool {
	sys, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sys.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		look := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(look, 0)
		gone = err == nil && n > 0 && look[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone || err != nil
}
