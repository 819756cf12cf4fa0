//go:build linux

package conformance

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/internal/yamuxpeer"
	"github.com/sbx-star/sbx-star/server"
)

// This file tests the tunnel as other clients use it, frame by frame
// (protocol.md §7, §13 point 25, §14).

// tunnelTo opens the tunnel of the sandbox at $url.
func (f *fixture) tunnel() *yamuxpeer.Peer {
	f.Helper()
	p, res, err := yamuxpeer.Dial(f.Context(), websocket.DefaultDialer, f.tunnelURL(), http.Header{"X-Api-Key": {key}})
	if err != nil {
		f.Fatalf("upgrade: %v, %v", err, res)
	}
	f.Cleanup(p.Close)
	return p
}

func (f *fixture) tunnelURL() string {
	return "ws" + strings.TrimPrefix(f.vars["url"].(string), "http") + "/tunnel"
}

// session is a tunnel of the reference client. What the server does against the
// protocol fails the test.
func (f *fixture) session() *yamuxpeer.Session {
	f.Helper()
	s := yamuxpeer.NewSession(f.tunnel(), true)
	f.Cleanup(func() {
		s.Close()
		for _, wrong := range s.Wrong() {
			f.Error(wrong)
		}
	})
	return s
}

// listen serves each connection to a port of the sandbox, whose loopback is this
// machine's here.
func (f *fixture) listen(address string, serve func(*net.TCPConn)) uint16 {
	f.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		f.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(time.Minute))
				serve(conn.(*net.TCPConn))
			}()
		}
	}()
	f.Cleanup(func() {
		ln.Close()
		<-done
	})
	return uint16(ln.Addr().(*net.TCPAddr).Port)
}

func echo(c *net.TCPConn) { io.Copy(c, c); c.CloseWrite() }

// want reads the frames of a stream that are no window updates without flags, up
// to an end, and puts them together: the payload, and the flags of all.
func (f *fixture) want(p *yamuxpeer.Peer, stream uint32, payload string) {
	f.Helper()
	var got []byte
	for {
		frame, err := p.NextOf(stream)
		if err != nil {
			f.Fatalf("stream %d, after %q: %v", stream, got, err)
		}
		got = append(got, frame.Payload...)
		if frame.Flags&(yamuxpeer.FIN|yamuxpeer.RST) != 0 {
			break
		}
	}
	if string(got) != payload {
		f.Errorf("stream %d: got %q, want %q", stream, got, payload)
	}
}

// Tunnel dial target, allow-list: 127.0.0.1, then [::1]; port 0 is not allowed,
// where nothing listens is refused, and other versions are unsupported. After
// each of the three the stream is closed.
func TestPoint25(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		four := f.listen("127.0.0.1:0", func(c *net.TCPConn) { io.WriteString(c, "four") })
		nothing, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		nothing.Close()
		cases := []struct {
			name, prologue, answer string
		}{
			{"IPv4", string([]byte{1, byte(four >> 8), byte(four)}), "\x00four"},
			{"port 0", "\x01\x00\x00", "\x01"},
			{"nothing listens", prologue(uint16(nothing.Addr().(*net.TCPAddr).Port)), "\x02"},
			{"version 0", "\x00\x15\x38", "\x03"},
			{"version 2", "\x02\x15\x38", "\x03"},
			{"version 255 and no port", "\xff", "\x03"},
		}
		if ln, err := net.Listen("tcp", "[::1]:0"); err == nil {
			ln.Close()
			six := f.listen("[::1]:0", func(c *net.TCPConn) { io.WriteString(c, "six") })
			cases = append(cases, struct{ name, prologue, answer string }{"IPv6", prologue(six), "\x00six"})
		}
		p := f.tunnel()
		for i, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				id := uint32(2*i + 1)
				sub := &fixture{T: t, vars: f.vars, url: f.url}
				p.Send(yamuxpeer.Frame{Type: yamuxpeer.WindowUpdate, Flags: yamuxpeer.SYN, Stream: id}, yamuxpeer.DataFrame(id, 0, c.prologue))
				if c.name == "version 255 and no port" {
					p.Send(yamuxpeer.DataFrame(id, yamuxpeer.FIN, ""))
				}
				sub.want(p, id, c.answer)
			})
		}
	})
}

func prologue(port uint16) string { return string([]byte{1, byte(port >> 8), byte(port)}) }

// The vectors of §14, in messages of every form.
func TestTunnelVectors(t *testing.T) {
	f := serve(t, nil)
	f.box(``)
	port := f.listen("127.0.0.1:0", echo)
	script := bytes.Join([][]byte{
		yamuxpeer.Hex("00 02 00 01 00 00 00 00 00 00 00 01"),                         // ping 1
		yamuxpeer.Hex("00 01 00 01 00 00 00 01 00 00 00 00"),                         // open stream 1
		yamuxpeer.Hex("00 00 00 00 00 00 00 01 00 00 00 03"), []byte(prologue(port)), // where to
		yamuxpeer.Hex("00 00 00 00 00 00 00 01 00 00 00 05 68 65 6c 6c 6f"), // hello
		yamuxpeer.Hex("00 01 00 00 00 00 00 01 00 02 00 00"),                // credit
		yamuxpeer.Hex("00 00 00 04 00 00 00 01 00 00 00 00"),                // FIN
		yamuxpeer.Hex("00 00 00 00 00 00 00 63 00 00 00 03 61 62 63"),       // of a stream that is not known
		yamuxpeer.Hex("00 01 00 01 00 00 00 03 00 00 00 00"),                // open stream 3
		yamuxpeer.Hex("00 01 00 08 00 00 00 03 00 00 00 00"),                // RST
		yamuxpeer.Hex("00 01 00 01 00 00 00 05 00 00 00 00"),                // open stream 5
		yamuxpeer.Hex("00 00 00 00 00 00 00 05 00 00 00 03 01 00 00"),       // port 0
		yamuxpeer.Hex("00 02 00 01 00 00 00 00 00 00 00 02"),                // ping 2
	}, nil)
	for name, send := range map[string]func(p *yamuxpeer.Peer){
		"one message":   func(p *yamuxpeer.Peer) { p.Write(script) },
		"single bytes":  func(p *yamuxpeer.Peer) { p.Write(nil); eachByte(p, script) },
		"random pieces": func(p *yamuxpeer.Peer) { inPieces(p, script) },
		"fragments": func(p *yamuxpeer.Peer) {
			w, _ := p.Socket.NextWriter(websocket.BinaryMessage)
			for _, b := range script {
				w.Write([]byte{b})
			}
			w.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			sub := &fixture{T: t, vars: f.vars, url: f.url}
			p := sub.tunnel()
			send(p)
			var pings []uint32
			got := map[uint32]string{}
			flags := map[uint32]uint16{}
			for len(pings) < 2 || flags[1]&yamuxpeer.FIN == 0 || flags[5]&(yamuxpeer.FIN|yamuxpeer.RST) == 0 {
				frame, err := p.Next()
				if err != nil {
					t.Fatalf("after %v, flags %v, pings %v: %v", got, flags, pings, err)
				}
				if frame.Type == yamuxpeer.Ping {
					if frame.Flags == yamuxpeer.ACK {
						pings = append(pings, frame.Length)
					}
					continue
				}
				got[frame.Stream] += string(frame.Payload)
				flags[frame.Stream] |= frame.Flags
			}
			if fmt.Sprint(pings) != "[1 2]" || got[1] != "\x00hello" || got[5] != "\x01" || flags[1]&yamuxpeer.ACK == 0 || flags[1]&yamuxpeer.RST != 0 {
				t.Errorf("pings %v, streams %v, flags %v", pings, got, flags)
			}
			if flags[99]&^yamuxpeer.RST != 0 || got[99] != "" {
				t.Errorf("a stream that was never opened: %q, flags %d", got[99], flags[99])
			}
			p.Write(yamuxpeer.Hex("00 03 00 00 00 00 00 00 00 00 00 00"))
			if code, err := p.Ended(); err != nil || code != 0 && code != websocket.CloseNormalClosure {
				t.Errorf("after GO_AWAY the WebSocket ends with %d, %v", code, err)
			}
		})
	}
}

func eachByte(p *yamuxpeer.Peer, script []byte) {
	for _, b := range script {
		p.Write([]byte{b})
	}
}

func inPieces(p *yamuxpeer.Peer, script []byte) {
	for len(script) > 0 {
		n := 1 + rand.N(len(script))
		p.Write(script[:n])
		script = script[n:]
	}
}

// What is no yamux ends that tunnel and nothing else.
func TestTunnelGarbage(t *testing.T) {
	f := serve(t, nil)
	f.box(``)
	port := f.listen("127.0.0.1:0", echo)
	other := f.session()
	for name, junk := range map[string]string{
		"version 1":           "01 00 00 00 00 00 00 01 00 00 00 00",
		"type 4":              "00 04 00 00 00 00 00 01 00 00 00 00",
		"HTTP":                "47 45 54 20 2f 20 48 54 54 50 2f 31 2e 31 0d 0a",
		"stream 0":            "00 00 00 01 00 00 00 00 00 00 00 03 01 15 38",
		"past the window":     "00 01 00 01 00 00 00 01 00 00 00 00 00 00 00 00 00 00 00 01 7f ff ff ff",
		"opened twice":        "00 01 00 01 00 00 00 01 00 00 00 00 00 01 00 01 00 00 00 01 00 00 00 00",
		"the server's stream": "00 01 00 01 00 00 00 02 00 00 00 00",
	} {
		t.Run(name, func(t *testing.T) {
			sub := &fixture{T: t, vars: f.vars, url: f.url}
			p := sub.tunnel()
			p.Write(yamuxpeer.Hex(junk))
			p.Send(yamuxpeer.Frame{Type: yamuxpeer.Ping, Flags: yamuxpeer.SYN, Length: 7})
			for {
				frame, err := p.Next()
				if err != nil {
					break // it has ended, as it may
				}
				if frame.Type == yamuxpeer.Ping && frame.Flags == yamuxpeer.ACK && name != "the server's stream" && name != "stream 0" {
					t.Error("the session goes on")
					break
				}
				if frame.Type == yamuxpeer.Ping && frame.Flags == yamuxpeer.ACK || frame.Flags&yamuxpeer.RST != 0 {
					break // the stream alone was refused
				}
			}
		})
	}
	t.Run("a header that is cut short", func(t *testing.T) {
		sub := &fixture{T: t, vars: f.vars, url: f.url}
		p := sub.tunnel()
		p.Write(yamuxpeer.Hex("00 01 00 01 00 00"))
		p.Socket.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(time.Minute))
		if _, err := p.Ended(); err != nil {
			t.Error(err)
		}
	})
	st, status, err := other.Connect(port)
	if err != nil || status != 0 {
		t.Fatalf("the other session: status %d, %v", status, err)
	}
	exchange(t, st, "still here")
}

// exchange sends a text and its end, and reads its echo.
func exchange(t *testing.T, st *yamuxpeer.Stream, text string) {
	t.Helper()
	io.WriteString(st, text)
	st.CloseWrite()
	got, err := io.ReadAll(st)
	if err != nil || string(got) != text {
		t.Errorf("got %q, %v, want %q", got, err, text)
	}
}

// The reference client moves data both ways through its windows of 256 KiB, many
// streams at once, and its FIN does not take away what is still to come.
func TestTunnelTransfer(t *testing.T) {
	f := serve(t, nil)
	f.box(``)
	port := f.listen("127.0.0.1:0", echo)
	s := f.session()
	const streams, size = 8, 2 << 20
	results := make(chan error, streams)
	for i := range streams {
		go func() {
			results <- func() error {
				st, status, err := s.Connect(port)
				if err != nil || status != 0 {
					return fmt.Errorf("status %d: %v", status, err)
				}
				data := make([]byte, size)
				rand.NewChaCha8([32]byte{byte(i)}).Read(data)
				go func() {
					st.Write(data)
					st.CloseWrite()
				}()
				got, err := io.ReadAll(st)
				if err == nil && !bytes.Equal(got, data) {
					err = fmt.Errorf("%d bytes came back, and not those that were sent", len(got))
				}
				return err
			}()
		}()
	}
	for range streams {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// A reset on one side is a reset on the other.
func TestTunnelReset(t *testing.T) {
	f := serve(t, nil)
	f.box(``)
	broken := make(chan error, 1)
	port := f.listen("127.0.0.1:0", func(c *net.TCPConn) {
		first := make([]byte, 1)
		io.ReadFull(c, first)
		if first[0] == 'r' {
			c.SetLinger(0)
			return
		}
		_, err := io.Copy(io.Discard, c)
		broken <- err
	})
	s := f.session()
	st, status, err := s.Connect(port)
	if err != nil || status != 0 {
		t.Fatal(status, err)
	}
	io.WriteString(st, "r")
	if _, err := io.ReadAll(st); err != yamuxpeer.ErrReset {
		t.Errorf("a server that resets is %v", err)
	}
	st, _, err = s.Connect(port)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(st, "x")
	st.Reset()
	if err := <-broken; err == nil {
		t.Error("to the server, a client that resets has ended in order")
	}
}

// What is no upgrade, of no sandbox, or without the key is answered over HTTP;
// the end of the server closes with 1001, that of the sandbox with 1000.
func TestTunnelUpgrade(t *testing.T) {
	f := serve(t, nil)
	f.box(`"name":"b"`)
	f.do(
		step{"GET $url/tunnel", ``, 426, ``},
		step{"POST $url/tunnel", ``, 405, ``},
		step{"GET $url/tunnel\nX-Api-Key: \nConnection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", ``, 401, formA("Unauthorized")},
		step{"GET !/sb/00000000-0000-4000-8000-000000000000/tunnel\nConnection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", ``, 404, formA("NotFound")},
	)
	ends := func(p *yamuxpeer.Peer, want int) {
		t.Helper()
		if code, err := p.Ended(); err != nil || code != want {
			t.Errorf("the WebSocket ends with %d, %v, want %d", code, err, want)
		}
		p.Close()
	}
	p := f.tunnel()
	f.do(step{"DELETE /boxes/b", ``, 204, ``})
	ends(p, 1000)

	g := serve(t, nil)
	g.box(``)
	port := g.listen("127.0.0.1:0", echo)
	g.do(step{"POST /boxes/$name/stop", ``, 204, ``})
	s := g.session() // which wakes it
	st, status, err := s.Connect(port)
	if err != nil || status != 0 {
		t.Fatal(status, err)
	}
	exchange(t, st, "awake")
	p = g.tunnel()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		g.server.Close()
	}()
	ends(p, 1001)
	<-closed
}

// There are only so many WebSockets to a server: then come 429 and Retry-After.
func TestTunnelQuota(t *testing.T) {
	f := serve(t, func(o *server.Options) { o.MaxSockets = 1 })
	f.box(``)
	f.tunnel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, res, err := yamuxpeer.Dial(ctx, websocket.DefaultDialer, f.tunnelURL(), http.Header{"X-Api-Key": {key}})
	if err == nil || res == nil || res.StatusCode != 429 || res.Header.Get("Retry-After") == "" {
		t.Errorf("the second: %v, %v", res, err)
	}
}
