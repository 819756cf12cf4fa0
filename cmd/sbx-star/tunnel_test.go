//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/runtime/process"
	"github.com/sbx-star/sbx-star/server"
	"github.com/sbx-star/sbx-star/wire"
)

// This file tests tunnels from the local port to the program in the sandbox,
// through client, server and daemon, and measures them.

// stack is a server and a sandbox on it, without isolation: its loopback is this
// machine's.
type stack struct {
	box *client.Sandbox
}

// newStack makes a stack. through, if it is not nil, is between client and server.
func newStack(t testing.TB, through func(net.Conn) net.Conn) *stack {
	t.Helper()
	s, err := server.New(server.Options{Runtime: process.New(process.Options{AnyImage: true}), StateDir: t.TempDir(), BestEffort: true})
	if err != nil {
		t.Fatal(err)
	}
	h := httptest.NewServer(s)
	options := client.Options{Endpoint: h.URL + basePath}
	if through != nil {
		options.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return through(conn), nil
		}
	}
	c, err := client.New(options)
	if err != nil {
		t.Fatal(err)
	}
	box, err := c.CreateSandbox(t.Context(), wire.BoxCreate{Name: "b", WaitForReady: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		direct, err := client.New(client.Options{Endpoint: h.URL + basePath})
		if err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			err = direct.DeleteSandbox(ctx, "b")
			direct.Close()
		}
		if err != nil {
			t.Error(err)
		}
		s.Close()
		h.Close()
	})
	return &stack{box}
}

// tunnel opens a tunnel to a server whose connections run serve.
func (s *stack) tunnel(t testing.TB, serve func(*net.TCPConn)) *client.Tunnel {
	t.Helper()
	tun, err := s.box.Tunnel(t.Context(), client.TunnelOptions{RemotePort: listen(t, serve), LocalPort: new(0)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tun.Close() })
	return tun
}

// listen serves connections to a port until the test ends, and waits for them.
func listen(t testing.TB, serve func(*net.TCPConn)) (port int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer conn.Close()
				serve(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		work.Wait()
	})
	return ln.Addr().(*net.TCPAddr).Port
}

func connect(t testing.TB, address string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// A chatter as of PostgreSQL: messages of a type and a length, each answered by
// some of its own, 10,000 times.
func TestTunnelChatter(t *testing.T) {
	const rounds = 10_000
	tun := newStack(t, nil).tunnel(t, func(c *net.TCPConn) {
		head := make([]byte, 5)
		for {
			if _, err := io.ReadFull(c, head); err != nil {
				return
			}
			body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
			if _, err := io.ReadFull(c, body); err != nil {
				return
			}
			var answer []byte
			for _, kind := range "TDCZ" { // rows are described, sent, complete, and it is ready
				answer = append(answer, byte(kind))
				answer = binary.BigEndian.AppendUint32(answer, uint32(len(body)+4))
				answer = append(answer, body...)
			}
			c.Write(answer)
		}
	})
	conn := connect(t, tun.Address())
	random := rand.New(rand.NewPCG(1, 2))
	for i := range rounds {
		query := bytes.Repeat([]byte{byte(i)}, random.IntN(60))
		message := append(binary.BigEndian.AppendUint32([]byte{'Q'}, uint32(len(query)+4)), query...)
		conn.Write(message)
		for _, kind := range "TDCZ" {
			answer := make([]byte, len(message))
			if _, err := io.ReadFull(conn, answer); err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
			message[0] = byte(kind)
			if !bytes.Equal(answer, message) {
				t.Fatalf("round %d: got %q, want %q", i, answer, message)
			}
		}
	}
}

// noise is an endless stream whose checksum is the same each time.
type noise struct {
	block []byte
	at    int
}

func newNoise(seed byte) *noise {
	n := &noise{block: make([]byte, 1<<20+7)} // no power of two, so that a slip shows
	rand.NewChaCha8([32]byte{seed}).Read(n.block)
	return n
}

func (n *noise) Read(p []byte) (int, error) {
	m := copy(p, n.block[n.at:])
	n.at = (n.at + m) % len(n.block)
	return m, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sumOf is the checksum of the first bytes of a noise.
func sumOf(seed byte, size int64) string {
	sum := crc32.New(castagnoli)
	io.CopyN(sum, newNoise(seed), size)
	return fmt.Sprintf("%d bytes, %08x", size, sum.Sum32())
}

func readSum(r io.Reader) (string, error) {
	sum := crc32.New(castagnoli)
	n, err := io.CopyBuffer(sum, struct{ io.Reader }{r}, make([]byte, 256<<10))
	return fmt.Sprintf("%d bytes, %08x", n, sum.Sum32()), err
}

// transfer sends size bytes each way at once over one connection and compares
// checksums. The client ends its side before it has read all.
func transfer(t *testing.T, s *stack, size int64) {
	t.Helper()
	heard := make(chan string, 1)
	tun := s.tunnel(t, func(c *net.TCPConn) {
		var work sync.WaitGroup
		work.Go(func() {
			io.Copy(c, io.LimitReader(newNoise(1), size))
			c.CloseWrite()
		})
		sum, err := readSum(c)
		heard <- fmt.Sprint(sum, err)
		work.Wait()
	})
	conn := connect(t, tun.Address())
	var work sync.WaitGroup
	work.Go(func() {
		io.Copy(conn, io.LimitReader(newNoise(2), size))
		conn.CloseWrite()
	})
	if got, err := readSum(conn); got != sumOf(1, size) || err != nil {
		t.Errorf("from the sandbox: %s, %v, want %s", got, err, sumOf(1, size))
	}
	work.Wait()
	if got, want := <-heard, fmt.Sprint(sumOf(2, size), nil); got != want {
		t.Errorf("to the sandbox: %s, want %s", got, want)
	}
	if stats := tun.Stats(); stats.BytesIn != size || stats.BytesOut != size || stats.Connections != 1 {
		t.Errorf("%+v", stats)
	}
}

func TestTunnelGigabyte(t *testing.T) {
	transfer(t, newStack(t, nil), 1<<30)
}

// 500 connections at once, each of which says something and hears it again.
func TestTunnel500(t *testing.T) {
	const n = 500
	var inside sync.WaitGroup // all are open before the first is answered
	inside.Add(n)
	tun := newStack(t, nil).tunnel(t, func(c *net.TCPConn) {
		inside.Done()
		inside.Wait()
		io.Copy(c, c)
	})
	var work sync.WaitGroup
	for i := range n {
		work.Go(func() {
			conn, err := net.Dial("tcp", tun.Address())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			text := strings.Repeat(strconv.Itoa(i), 2000)
			go func() {
				io.WriteString(conn, text)
				conn.(*net.TCPConn).CloseWrite()
			}()
			if got, err := io.ReadAll(conn); string(got) != text || err != nil {
				t.Errorf("connection %d: %d bytes, %v", i, len(got), err)
			}
		})
	}
	work.Wait()
	if stats := tun.Stats(); stats.Connections != n {
		t.Errorf("%+v", stats)
	}
}

// In a sandbox with a network of its own a tunnel leads to that, and to nothing of
// this machine.
func TestTunnelIntoNamespace(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	connectTo, closeAll, err := embedded("namespace", rootDisk, client.WebSocketTimeouts{})
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll()
	c, err := connectTo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	box, err := c.CreateSandbox(t.Context(), wire.BoxCreate{Name: "b", WaitForReady: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := box.Delete(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := box.Upload(t.Context(), "peer", bytes.NewReader(self)); err != nil {
		t.Fatal(err)
	}
	cmd, err := box.Start(t.Context(), client.RunOptions{Command: "mkdir bin && mv peer bin && chmod +x bin/peer && exec bin/peer serve http", Shell: "/bin/sh"})
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Close()
	var said string
	for m := regexp.MustCompile(`(\d+)\n`); !m.MatchString(said); {
		chunk, err := cmd.Next(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", said, err)
		}
		said += chunk.Data
	}
	port, _ := strconv.Atoi(strings.TrimSpace(said))
	tun, err := box.Tunnel(t.Context(), client.TunnelOptions{RemotePort: port, LocalPort: new(0)})
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	res, err := http.Get("http://" + tun.Address() + "/chunks")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if text, err := io.ReadAll(res.Body); string(text) != "chunk 0;chunk 1;chunk 2;" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	outside := listen(t, func(*net.TCPConn) { t.Error("the sandbox reaches this machine") })
	if _, err := box.DialPort(t.Context(), outside, nil); !errors.Is(err, client.ErrTunnelConnectionRefused) {
		t.Errorf("a port of this machine: %v", err)
	}
}

// BenchmarkTunnel measures what goes through client, server and daemon beside raw
// TCP on the same machine: from the sandbox and to it over 1 and 16 connections,
// and the round trip of one byte.
func BenchmarkTunnel(b *testing.B) {
	const piece = 1 << 20
	down := func(c *net.TCPConn) {
		block := make([]byte, piece)
		for {
			if _, err := c.Write(block); err != nil {
				return
			}
		}
	}
	up := func(c *net.TCPConn) {
		io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, piece))
	}
	echo := func(c *net.TCPConn) { io.Copy(struct{ io.Writer }{c}, c) }
	s := newStack(b, nil)
	for _, way := range []struct {
		name    string
		address func(b *testing.B, serve func(*net.TCPConn)) string
	}{
		{"raw", func(b *testing.B, serve func(*net.TCPConn)) string {
			return fmt.Sprintf("127.0.0.1:%d", listen(b, serve))
		}},
		{"tunnel", func(b *testing.B, serve func(*net.TCPConn)) string { return s.tunnel(b, serve).Address() }},
	} {
		for _, streams := range []int{1, 16} {
			for _, direction := range []struct {
				name  string
				serve func(*net.TCPConn)
				move  func(c *net.TCPConn, buf []byte) error
			}{
				{"down", down, func(c *net.TCPConn, buf []byte) error { _, err := io.ReadFull(c, buf); return err }},
				{"up", up, func(c *net.TCPConn, buf []byte) error { _, err := c.Write(buf); return err }},
			} {
				b.Run(fmt.Sprintf("%s/%s/%d", way.name, direction.name, streams), func(b *testing.B) {
					address := way.address(b, direction.serve)
					var conns []*net.TCPConn
					for range streams {
						conns = append(conns, connect(b, address))
					}
					b.SetBytes(piece)
					b.ResetTimer()
					var work sync.WaitGroup
					for i, c := range conns {
						work.Go(func() {
							buf := make([]byte, piece)
							for n := i; n < b.N; n += streams {
								if err := direction.move(c, buf); err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					work.Wait()
					b.StopTimer()
					for _, c := range conns {
						c.Close()
					}
				})
			}
		}
		b.Run(way.name+"/roundtrip", func(b *testing.B) {
			c := connect(b, way.address(b, echo))
			buf := make([]byte, 1)
			for b.Loop() {
				c.Write(buf)
				if _, err := io.ReadFull(c, buf); err != nil {
					b.Fatal(err)
				}
			}
			c.Close()
		})
	}
}
