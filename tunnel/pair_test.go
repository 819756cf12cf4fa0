package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/gorilla/websocket"
)

// This file defines what the tests connect: WebSockets, sessions, and daemons over
// the loopback or in memory.

// webSockets returns the two ends of a WebSocket over the loopback.
func webSockets(tb testing.TB) (client, server *websocket.Conn) {
	accepted := make(chan *websocket.Conn, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		up := websocket.Upgrader{ReadBufferSize: ReadBufferSize, WriteBufferSize: ServerWriteBufferSize}
		c, err := up.Upgrade(w, r, nil)
		if err != nil {
			tb.Error(err)
		}
		accepted <- c
	}))
	defer s.Close()
	d := websocket.Dialer{ReadBufferSize: ReadBufferSize, WriteBufferSize: WriteBufferSize}
	client, _, err := d.Dial("ws"+strings.TrimPrefix(s.URL, "http"), nil)
	if err != nil {
		tb.Fatal(err)
	}
	return client, <-accepted
}

// webSocketDial is a dial function to a daemon that serves each WebSocket with
// serve. What was opened ends with the test, when release is called by its
// cleanup.
func webSocketDial(tb testing.TB, target func(context.Context, int) (net.Conn, error), o ServeOptions) DialFunc {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	tb.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return func(context.Context) (net.Conn, error) {
		client, server := webSockets(tb)
		running.Go(func() {
			if err := Serve(ctx, WebSocket(server), target, o); err != nil && !errors.Is(err, context.Canceled) {
				tb.Logf("the session ended: %v", err)
			}
		})
		return WebSocket(client), nil
	}
}

// pipeDial is a dial function to a daemon in memory.
func pipeDial(tb testing.TB, target func(context.Context, int) (net.Conn, error), o ServeOptions) DialFunc {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	tb.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return func(context.Context) (net.Conn, error) {
		client, server := net.Pipe()
		running.Go(func() { Serve(ctx, server, target, o) })
		return client, nil
	}
}

// listenTarget accepts connections on the loopback and has each one handled.
func listenTarget(tb testing.TB, handle func(*net.TCPConn)) (port int) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	var running sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			running.Go(func() {
				defer c.Close()
				handle(c.(*net.TCPConn))
			})
		}
	})
	tb.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port
}

// echo sends back what comes until it ends.
func echo(c *net.TCPConn) {
	io.Copy(c, c)
	c.CloseWrite()
}

func pick() *int { return new(int) }

// listenLocal opens a tunnel to a port on a session of its own.
func listenLocal(tb testing.TB, dial DialFunc, port int) *Listener {
	l, err := Listen(context.Background(), dial, ListenOptions{RemotePort: port, LocalPort: pick()}, Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	return l
}

func dialLocal(tb testing.TB, l *Listener) *net.TCPConn {
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}
