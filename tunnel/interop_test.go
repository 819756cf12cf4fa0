package tunnel

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"

	"github.com/hashicorp/yamux"
)

// These tests have hashicorp/yamux at the other end, with its defaults: windows of
// 256 KiB, and no half that can be reset.

func yamuxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.LogOutput = io.Discard
	return c
}

const interopBytes = 8 << 20

// interop sends through c as one end of a conversation, or answers as the other:
// each end sends its bytes, half-closes, and checks the other's.
func interop(t *testing.T, c io.ReadWriter, closeWrite func() error, mine, theirs uint64) {
	var writing sync.WaitGroup
	defer writing.Wait()
	writing.Go(func() {
		data := make([]byte, interopBytes)
		rand.NewChaCha8(seedOf(mine)).Read(data)
		if _, err := c.Write(data); err != nil {
			t.Error(err)
		}
		if err := closeWrite(); err != nil {
			t.Error(err)
		}
	})
	sum := sha256.New()
	if n, err := io.Copy(sum, c); n != interopBytes || err != nil {
		t.Errorf("%d bytes came, then %v", n, err)
		return
	}
	want := make([]byte, interopBytes)
	rand.NewChaCha8(seedOf(theirs)).Read(want)
	if [32]byte(sum.Sum(nil)) != sha256.Sum256(want) {
		t.Error("something else came than was sent")
	}
}

func seedOf(n uint64) (seed [32]byte) {
	binary.LittleEndian.PutUint64(seed[:], n)
	return seed
}

func TestYamuxServer(t *testing.T) {
	client, server := webSockets(t)
	far, err := yamux.Server(&messages{ws: server}, yamuxConfig())
	if err != nil {
		t.Fatal(err)
	}
	var running, answering sync.WaitGroup
	running.Go(func() {
		for {
			c, err := far.AcceptStream()
			if err != nil {
				return
			}
			answering.Go(func() {
				port, err := readPrologue(c)
				if err != nil {
					return
				}
				if port == 1 {
					c.Write([]byte{statusRefused})
					c.Close()
					return
				}
				c.Write([]byte{statusConnected})
				interop(t, c, c.Close, uint64(port), uint64(port)+1000)
			})
		}
	})
	s := New(func(context.Context) (net.Conn, error) { return WebSocket(client), nil }, Options{})
	if _, err := s.Dial(t.Context(), 1); !is[*ConnectionRefusedError](err) {
		t.Errorf("a refused port is %v", err)
	}
	var talking sync.WaitGroup
	for port := 2; port < 6; port++ {
		talking.Go(func() {
			c, err := s.Dial(t.Context(), port)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			interop(t, c, c.CloseWrite, uint64(port)+1000, uint64(port))
		})
	}
	talking.Wait()
	answering.Wait() // to its reader the end of a session is the end of the file
	far.Close()
	running.Wait()
	s.Close()
}

func TestYamuxClient(t *testing.T) {
	client, server := webSockets(t)
	served := make(chan error, 1)
	go func() {
		served <- Serve(context.Background(), WebSocket(server), func(_ context.Context, port int) (net.Conn, error) {
			if port == 1 {
				return nil, io.ErrClosedPipe
			}
			c, err := net.Dial("tcp", hostPort("127.0.0.1", listenTarget(t, func(c *net.TCPConn) {
				interop(t, c, c.CloseWrite, uint64(port), uint64(port)+1000)
			})))
			return c, err
		}, ServeOptions{})
	}()
	near, err := yamux.Client(&messages{ws: client}, yamuxConfig())
	if err != nil {
		t.Fatal(err)
	}
	open := func(port uint16) (*yamux.Stream, byte) {
		c, err := near.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		c.Write(binary.BigEndian.AppendUint16([]byte{prologueVersion}, port))
		var status [1]byte
		if _, err := io.ReadFull(c, status[:]); err != nil {
			t.Fatal(err)
		}
		return c, status[0]
	}
	for _, refused := range []struct {
		port uint16
		want byte
	}{{0, statusNotAllowed}, {1, statusRefused}} {
		c, status := open(refused.port)
		if _, err := c.Read(make([]byte, 1)); status != refused.want || !errors.Is(err, io.EOF) {
			t.Errorf("port %d is status %d, then %v", refused.port, status, err)
		}
		c.Close()
	}
	var talking sync.WaitGroup
	for port := uint16(2); port < 6; port++ {
		c, status := open(port)
		if status != statusConnected {
			t.Fatalf("port %d is status %d", port, status)
		}
		talking.Go(func() { interop(t, c, c.Close, uint64(port)+1000, uint64(port)) })
	}
	talking.Wait()
	if _, err := near.Ping(); err != nil {
		t.Error(err)
	}
	near.GoAway()
	if err := <-served; err != nil {
		t.Errorf("the session ended with %v", err)
	}
	near.Close()
}
