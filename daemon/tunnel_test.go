//go:build linux

package daemon_test

import (
	"context"
	"io"
	"net"
	"strconv"
	"syscall"
	"testing"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/internal/yamuxpeer"
)

// tunnel is a session of the reference client.
func (b *box) tunnel() *yamuxpeer.Session {
	b.t.Helper()
	dialer := &websocket.Dialer{NetDialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return b.dial(ctx) }}
	p, _, err := yamuxpeer.Dial(b.t.Context(), dialer, "ws://box/tunnel", nil)
	if err != nil {
		b.t.Fatal(err)
	}
	s := yamuxpeer.NewSession(p, true)
	b.t.Cleanup(func() {
		s.Close()
		for _, wrong := range s.Wrong() {
			b.t.Error(wrong)
		}
	})
	return s
}

// Every stream counts as activity for as long as it is open, and the sandbox is
// reached by IPv4 or else IPv6.
func TestTunnel(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	want := func(what string, n int) {
		t.Helper()
		await(t, what, func() bool { got, _ := b.activity(); return got == n })
	}
	one, two := b.tunnel(), b.tunnel()
	want("tunnels without streams", 0)
	var streams []*yamuxpeer.Stream
	for i, address := range []string{"127.0.0.1:0", "[::1]:0", "127.0.0.1:0"} {
		port := listen(t, address, func(c *net.TCPConn) { io.Copy(c, c) })
		st, status, err := []*yamuxpeer.Session{one, two, one}[i].Connect(uint16(port))
		if err != nil || status != 0 {
			t.Fatalf("%s: status %d, %v", address, status, err)
		}
		streams = append(streams, st)
		want("a stream", i+1)
	}
	if st, status, err := two.Connect(0); status != 1 || err != nil {
		t.Errorf("port 0: status %d, %v", status, err)
	} else {
		st.CloseWrite()
	}
	for i, st := range streams {
		io.WriteString(st, address(i))
		st.CloseWrite()
		if got, err := io.ReadAll(st); string(got) != address(i) || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
	want("the end of the streams", 0)

	// What a session that is cut had open is closed.
	ended := make(chan error, 1)
	port := listen(t, "127.0.0.1:0", func(c *net.TCPConn) { _, err := io.Copy(io.Discard, c); ended <- err })
	if _, status, err := two.Connect(uint16(port)); err != nil || status != 0 {
		t.Fatal(status, err)
	}
	want("one more", 1)
	two.Peer.Close()
	if err := <-ended; err == nil {
		t.Error("to the service, a session that is cut has ended in order")
	}
	want("the end of the session", 0)
}

func address(i int) string { return "stream " + strconv.Itoa(i) }

// The end of the daemon closes tunnels with 1001.
func TestTunnelEndOfDaemon(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	dialer := &websocket.Dialer{NetDialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return b.dial(ctx) }}
	p, _, err := yamuxpeer.Dial(t.Context(), dialer, "ws://box/tunnel", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	syscall.Kill(b.daemon(), syscall.SIGTERM)
	if code, err := p.Ended(); code != websocket.CloseGoingAway || err != nil {
		t.Errorf("closed with %d, %v", code, err)
	}
}
