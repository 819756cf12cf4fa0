package tunnel

import (
	"context"
	"net"
	"testing"

	"golang.org/x/net/nettest"
)

// The WebSocket and a stream are connections like any other.

func TestWebSocketIsConn(t *testing.T) {
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		client, server := webSockets(t)
		a, b := WebSocket(client), WebSocket(server)
		return a, b, func() { a.Close(); b.Close() }, nil
	})
}

func TestStreamIsConn(t *testing.T) {
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		client, server := webSockets(t)
		accepted := make(chan *stream, 1)
		b := newMux(WebSocket(server), muxOptions{window: baseWindow, writeTimeout: defaultKeepAlive, streams: 1, accept: func(s *stream) { accepted <- s }})
		a := newMux(WebSocket(client), muxOptions{client: true, window: baseWindow, writeTimeout: defaultKeepAlive})
		c1, err := a.open(context.Background(), nil)
		return c1, <-accepted, func() {
			a.close()
			b.close()
			a.wait()
			b.wait()
		}, err
	})
}
