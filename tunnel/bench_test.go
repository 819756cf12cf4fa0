//go:build unix

package tunnel

import (
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
)

// This file defines the benchmark. It puts side by side what carries a connection
// between two sockets on the loopback: nothing, a plain copy, hashicorp/yamux over
// a WebSocket as they come, and a tunnel from its local listener to its target.
// Up is to the target, down is from it. All ends share the machine, so that each
// hop costs the others: cpu-s/GiB is what all of them took, and other load does not
// change it much.

const benchBytes = 1 << 30

// carrier returns how to connect to a port on the loopback.
type carrier struct {
	name string
	dial func(b *testing.B, port int) func() (net.Conn, error)
}

var carriers = []carrier{
	{"tcp", func(b *testing.B, port int) func() (net.Conn, error) {
		return func() (net.Conn, error) { return net.Dial("tcp", hostPort("127.0.0.1", port)) }
	}},
	{"proxy", func(b *testing.B, port int) func() (net.Conn, error) {
		through := listenTarget(b, func(c *net.TCPConn) {
			target, err := net.Dial("tcp", hostPort("127.0.0.1", port))
			if err != nil {
				return
			}
			plainBridge(c, target)
		})
		return func() (net.Conn, error) { return net.Dial("tcp", hostPort("127.0.0.1", through)) }
	}},
	{"yamux", func(b *testing.B, port int) func() (net.Conn, error) {
		client, server := webSockets(b)
		far, err := yamux.Server(&messages{ws: server}, yamuxConfig())
		if err != nil {
			b.Fatal(err)
		}
		near, err := yamux.Client(&messages{ws: client}, yamuxConfig())
		if err != nil {
			b.Fatal(err)
		}
		var running sync.WaitGroup
		running.Go(func() {
			for {
				c, err := far.Accept()
				if err != nil {
					return
				}
				running.Go(func() {
					target, err := net.Dial("tcp", hostPort("127.0.0.1", port))
					if err != nil {
						return
					}
					plainBridge(c, target)
				})
			}
		})
		b.Cleanup(func() {
			near.Close()
			far.Close()
			running.Wait()
		})
		through := listenTarget(b, func(c *net.TCPConn) {
			if s, err := near.Open(); err == nil {
				plainBridge(c, s)
			}
		})
		return func() (net.Conn, error) { return net.Dial("tcp", hostPort("127.0.0.1", through)) }
	}},
	{"tunnel", func(b *testing.B, port int) func() (net.Conn, error) {
		l := listenLocal(b, webSocketDial(b, nil, ServeOptions{}), port)
		return func() (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) }
	}},
}

// plainBridge copies as one would.
func plainBridge(a, b net.Conn) {
	var other sync.WaitGroup
	other.Go(func() {
		io.Copy(struct{ io.Writer }{a}, struct{ io.Reader }{b}) // no splice, as over a tunnel
		plainEnd(a)
	})
	io.Copy(struct{ io.Writer }{b}, struct{ io.Reader }{a})
	plainEnd(b)
	other.Wait()
	a.Close()
	b.Close()
}

// plainEnd half-closes, for which yamux has Close.
func plainEnd(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.CloseWrite()
	} else {
		c.Close()
	}
}

func BenchmarkTunnel(b *testing.B) {
	for _, streams := range []int{1, 16} {
		for _, direction := range []string{"up", "down"} {
			for _, c := range carriers {
				b.Run(fmt.Sprintf("%s/streams=%d/%s", direction, streams, c.name), func(b *testing.B) {
					benchTransfer(b, c, direction == "up", streams)
				})
			}
		}
	}
	for _, c := range carriers {
		b.Run("roundtrip/"+c.name, func(b *testing.B) { benchRoundTrip(b, c) })
	}
}

func benchTransfer(b *testing.B, c carrier, up bool, streams int) {
	size := int64(benchBytes / streams)
	send := func(conn *net.TCPConn) {
		buf := make([]byte, 256<<10)
		for left := size; left > 0; left -= int64(len(buf)) {
			if _, err := conn.Write(buf[:min(left, int64(len(buf)))]); err != nil {
				b.Error(err)
				return
			}
		}
		conn.CloseWrite()
	}
	receive := func(conn *net.TCPConn) {
		buf := make([]byte, 256<<10)
		for left := size; left > 0; {
			n, err := conn.Read(buf)
			if err != nil {
				b.Errorf("%d bytes are missing: %v", left, err)
				return
			}
			left -= int64(n)
		}
		conn.CloseWrite()
	}
	far, near := send, receive
	if up {
		far, near = receive, send
	}
	dial := c.dial(b, listenTarget(b, func(conn *net.TCPConn) {
		far(conn)
		conn.Read(make([]byte, 1)) // the end of the other half
	}))
	b.SetBytes(benchBytes)
	before, moved := cpuTime(), 0
	defer func() { b.ReportMetric((cpuTime()-before).Seconds()/float64(moved), "cpu-s/GiB") }()
	for b.Loop() {
		moved++
		var running sync.WaitGroup
		for range streams {
			running.Go(func() {
				conn, err := dial()
				if err != nil {
					b.Error(err)
					return
				}
				defer conn.Close()
				near(conn.(*net.TCPConn))
				conn.Read(make([]byte, 1))
			})
		}
		running.Wait()
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchRoundTrip(b *testing.B, c carrier) {
	conn, err := c.dial(b, listenTarget(b, echo))()
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	buf := make([]byte, 1)
	for b.Loop() {
		if _, err := conn.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(conn, buf); err != nil {
			b.Fatal(err)
		}
	}
}
