//go:build linux

package daemon_test

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/daemon"
)

// listen serves connections of the sandbox, which has this machine's network.
func listen(t *testing.T, address string, serve func(*net.TCPConn)) (port int) {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Skip("this machine has no address for it:", err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn.(*net.TCPConn))
			}()
		}
	}()
	return ln.Addr().(*net.TCPAddr).Port
}

// connect asks for a connection and sends early with it.
func (b *box) connect(port int, early string) (*net.UnixConn, *bufio.Reader) {
	b.t.Helper()
	conn, err := b.dial(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "GET /connect?port=%d HTTP/1.1\r\nHost: box\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n%s", port, early)
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	if res.StatusCode != 101 || res.Header.Get("Upgrade") != "tcp" || res.Header.Get("Connection") != "Upgrade" {
		b.t.Fatalf("got %d %v", res.StatusCode, res.Header)
	}
	return conn.(*net.UnixConn), r
}

// Much goes both ways at once, and the end of one direction leaves the other be.
func TestConnect(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(address, func(t *testing.T) {
			b.t = t
			// It answers after the client's end, with what the client sent, and
			// its checksum.
			port := listen(t, address, func(c *net.TCPConn) {
				sum := sha256.New()
				n, _ := io.Copy(sum, c)
				fmt.Fprintf(c, "%d %x\n", n, sum.Sum(nil))
				io.Copy(c, io.LimitReader(rand.NewChaCha8([32]byte{6}), n))
			})
			const size = 8 << 20
			conn, r := b.connect(port, "early")
			want, sent := sha256.New(), rand.NewChaCha8([32]byte{5})
			io.WriteString(want, "early")
			if _, err := io.Copy(io.MultiWriter(conn, want), io.LimitReader(sent, size)); err != nil {
				t.Fatal(err)
			}
			conn.CloseWrite()
			line, err := r.ReadString('\n')
			if got := fmt.Sprintf("%d %x\n", size+5, want.Sum(nil)); line != got || err != nil {
				t.Errorf("the service got %q, want %q, %v", line, got, err)
			}
			got, want := sha256.New(), sha256.New()
			io.Copy(want, io.LimitReader(rand.NewChaCha8([32]byte{6}), size+5))
			if n, err := io.Copy(got, r); n != size+5 || err != nil || fmt.Sprint(got.Sum(nil)) != fmt.Sprint(want.Sum(nil)) {
				t.Errorf("%d bytes came back, %v, or they are others", n, err)
			}
		})
	}
}

// The service may end first.
func TestConnectServiceEnds(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	heard := make(chan string, 1)
	port := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		io.WriteString(c, "bye")
		c.CloseWrite()
		text, _ := io.ReadAll(c)
		heard <- string(text)
	})
	conn, r := b.connect(port, "")
	if got, err := io.ReadAll(r); string(got) != "bye" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	io.WriteString(conn, "still here")
	conn.Close()
	if got := <-heard; got != "still here" {
		t.Errorf("the service got %q", got)
	}
}

// A client that is gone is not served on, although the service says nothing and
// does not mind the end; one that has only ended its direction is.
func TestConnectClientGone(t *testing.T) {
	t.Parallel()
	b := newLimitedBox(t, daemon.Limits{Hangup: 50 * time.Millisecond})
	write := make(chan struct{})
	broken := make(chan struct{})
	port := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		io.Copy(io.Discard, c)
		<-write
		io.WriteString(c, "x")
		<-write
		for {
			if _, err := io.WriteString(c, "x"); err != nil {
				close(broken)
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	conn, r := b.connect(port, "")
	conn.CloseWrite()
	time.Sleep(200 * time.Millisecond) // some looks; on a slow machine the test sees less
	write <- struct{}{}
	if c, err := r.ReadByte(); c != 'x' || err != nil {
		t.Errorf("got %q, %v", c, err)
	}
	conn.Close()
	write <- struct{}{}
	select {
	case <-broken:
	case <-time.After(patience):
		t.Error("the service's connection is still open")
	}
}

func TestConnectRefused(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	free := ln.Addr().(*net.TCPAddr).Port
	upgrade := []string{"Connection", "Upgrade", "Upgrade", "tcp"}
	b.do("GET", fmt.Sprintf("/connect?port=%d", free), nil, upgrade...).wantProblem(t, 502, "ConnectionError", fmt.Sprintf("port %d of the sandbox cannot be reached: nothing listens there", free))
	for _, port := range []string{"", "0", "65536", "-1", "x", "80x"} {
		b.do("GET", "/connect?port="+port, nil, upgrade...).wantProblem(t, 400, "InvalidRequest", "a number from 1 to 65535")
	}
	b.do("GET", "/connect?port=80", nil).wantProblem(t, 426, "InvalidRequest", "upgrade to tcp")
	b.do("GET", "/connect?port=80", nil, "Connection", "Upgrade", "Upgrade", "websocket").wantProblem(t, 426, "InvalidRequest", "upgrade to tcp")
}

// The end of the daemon ends connections that say nothing.
func TestConnectShutdown(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	ended := make(chan error, 1)
	port := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		_, err := io.Copy(io.Discard, c)
		ended <- err
	})
	pid := b.daemon()
	_, r := b.connect(port, "")
	syscall.Kill(pid, syscall.SIGTERM)
	if got, err := io.ReadAll(r); len(got) > 0 || err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("got %q, %v", got, err)
	}
	<-ended
}
