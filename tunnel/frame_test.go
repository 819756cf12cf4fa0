package tunnel

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
)

// The vectors of protocol.md §14.
func TestFrameVectors(t *testing.T) {
	for _, test := range []struct {
		name, hex string
		header    header
		payload   string
	}{
		{"open stream 1", "00 01 00 01 00 00 00 01 00 00 00 00", header{kindWindow, flagSYN, 1, 0}, ""},
		{"open stream 3", "00 01 00 01 00 00 00 03 00 00 00 00", header{kindWindow, flagSYN, 3, 0}, ""},
		{"data", "00 00 00 00 00 00 00 01 00 00 00 05 68 65 6c 6c 6f", header{kindData, 0, 1, 5}, "hello"},
		{"FIN", "00 00 00 04 00 00 00 01 00 00 00 00", header{kindData, flagFIN, 1, 0}, ""},
		{"RST", "00 01 00 08 00 00 00 01 00 00 00 00", header{kindWindow, flagRST, 1, 0}, ""},
		{"credit", "00 01 00 00 00 00 00 01 00 02 00 00", header{kindWindow, 0, 1, 131072}, ""},
		{"ping", "00 02 00 01 00 00 00 00 00 00 00 01", header{kindPing, flagSYN, 0, 1}, ""},
		{"pong", "00 02 00 02 00 00 00 00 00 00 00 01", header{kindPing, flagACK, 0, 1}, ""},
		{"go away", "00 03 00 00 00 00 00 00 00 00 00 00", header{kindGoAway, 0, 0, 0}, ""},
		{"prologue", "00 00 00 00 00 00 00 01 00 00 00 03 01 15 38", header{kindData, 0, 1, 3}, "\x01\x15\x38"},
	} {
		want, _ := hex.DecodeString(strings.ReplaceAll(test.hex, " ", ""))
		if got := append(test.header.append(nil), test.payload...); !bytes.Equal(got, want) {
			t.Errorf("%s is % x, want % x", test.name, got, want)
		}
		if got, err := parseHeader(want[:headerSize]); got != test.header || err != nil {
			t.Errorf("%s is read as %v, %v", test.name, got, err)
		}
	}
}

// rawPeer is the other end of a session, in bytes.
type rawPeer struct {
	t *testing.T
	net.Conn
}

func (p rawPeer) expect(kind kind, flags uint16, id, length uint32) []byte {
	p.t.Helper()
	for {
		var raw [headerSize]byte
		if _, err := io.ReadFull(p, raw[:]); err != nil {
			p.t.Fatalf("want a frame, got %v", err)
		}
		h, err := parseHeader(raw[:])
		if err != nil {
			p.t.Fatal(err)
		}
		if h.kind == kindPing && kind != kindPing {
			continue
		}
		if want := (header{kind, flags, id, length}); h != want {
			p.t.Fatalf("got frame %+v, want %+v", h, want)
		}
		if kind != kindData {
			return nil
		}
		payload := make([]byte, length)
		if _, err := io.ReadFull(p, payload); err != nil {
			p.t.Fatal(err)
		}
		return payload
	}
}

func (p rawPeer) send(kind kind, flags uint16, id, length uint32, payload string) {
	p.t.Helper()
	if _, err := p.Write(append(header{kind, flags, id, length}.append(nil), payload...)); err != nil {
		p.t.Fatal(err)
	}
}

// drain reads what else comes until the session ends.
func (p rawPeer) drain() { io.Copy(io.Discard, p) }

// newClient returns a session whose one daemon is the test.
func newClient(t *testing.T, o Options) (*Session, rawPeer) {
	near, far := net.Pipe()
	s := New(func(context.Context) (net.Conn, error) { return near, nil }, o)
	t.Cleanup(func() { far.Close(); s.Close() })
	return s, rawPeer{t, far}
}

func dialLater(s *Session, port int) (conn <-chan Conn, failure <-chan error) {
	conns, errs := make(chan Conn, 1), make(chan error, 1)
	go func() {
		c, err := s.Dial(context.Background(), port)
		conns <- c
		errs <- err
	}()
	return conns, errs
}

// A stream is opened in one go: SYN, the larger window, the prologue.
func TestOpening(t *testing.T) {
	s, peer := newClient(t, Options{})
	conns, errs := dialLater(s, 5432)
	peer.expect(kindWindow, flagSYN, 1, 0)
	peer.expect(kindWindow, 0, 1, defaultWindow-baseWindow)
	if got := peer.expect(kindData, 0, 1, 3); string(got) != "\x01\x15\x38" {
		t.Errorf("the prologue is % x", got)
	}
	peer.send(kindData, flagACK, 1, 1, "\x00") // the acknowledgement need not come first
	c := <-conns
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	go c.Write([]byte("hello"))
	if got := peer.expect(kindData, 0, 1, 5); string(got) != "hello" {
		t.Errorf("got %q", got)
	}
	go c.CloseWrite()
	peer.expect(kindData, flagFIN, 1, 0)
	go c.Reset()
	peer.expect(kindWindow, flagRST, 1, 0)
	go s.Close()
	peer.expect(kindGoAway, 0, 0, 0)
	peer.drain()
}

// With the base window nothing is said about it.
func TestBaseWindow(t *testing.T) {
	s, peer := newClient(t, Options{Window: 1})
	_, errs := dialLater(s, 65535)
	peer.expect(kindWindow, flagSYN, 1, 0)
	if got := peer.expect(kindData, 0, 1, 3); string(got) != "\x01\xff\xff" {
		t.Errorf("the prologue is % x", got)
	}
	peer.send(kindWindow, flagRST, 1, 0, "")
	var none *NoStatusError
	if err := <-errs; !errors.As(err, &none) || !errors.Is(err, ErrReset) {
		t.Errorf("a stream reset before its status is %v", err)
	}
	go peer.drain()
}

// Every row of §7.3, and an end of the stream in place of one.
func TestStatuses(t *testing.T) {
	for _, test := range []struct {
		answer func(rawPeer)
		want   func(error) bool
		text   string
	}{
		{func(p rawPeer) { p.send(kindData, 0, 1, 1, "\x01") }, is[*PortNotAllowedError], "the sandbox does not allow tunnels to port 7"},
		{func(p rawPeer) { p.send(kindData, 0, 1, 1, "\x02") }, is[*ConnectionRefusedError], "nothing accepts connections on port 7 inside the sandbox"},
		{func(p rawPeer) { p.send(kindData, 0, 1, 1, "\x03") }, is[*UnsupportedVersionError], "the sandbox does not speak version 1 of the tunnel protocol"},
		{func(p rawPeer) { p.send(kindData, flagFIN, 1, 1, "\x09") }, is[*StatusError], "the sandbox refused the connection to port 7 with status 9, which is of no known meaning"},
		{func(p rawPeer) { p.send(kindData, flagFIN, 1, 0, "") }, is[*NoStatusError], "the sandbox did not say whether port 7 was connected: EOF"},
		{func(p rawPeer) { p.send(kindGoAway, 0, 0, 0, "") }, is[*SessionError], "the sandbox did not say whether port 7 was connected: the tunnel session was lost: the peer ended the session"},
	} {
		s, peer := newClient(t, Options{})
		_, errs := dialLater(s, 7)
		peer.expect(kindWindow, flagSYN, 1, 0)
		peer.expect(kindWindow, 0, 1, defaultWindow-baseWindow)
		peer.expect(kindData, 0, 1, 3)
		go peer.drain()
		test.answer(peer)
		if err := <-errs; !test.want(err) || err.Error() != test.text {
			t.Errorf("got %v, want %s", err, test.text)
		}
		s.Close()
	}
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// What breaks the protocol ends the session, and the peer is told so.
func TestProtocolErrors(t *testing.T) {
	for _, test := range []struct{ name, sent string }{
		{"version", "01 00 00 00 00 00 00 01 00 00 00 00"},
		{"type", "00 04 00 00 00 00 00 01 00 00 00 00"},
		{"data of the session", "00 00 00 00 00 00 00 00 00 00 00 00"},
		{"ping of a stream", "00 02 00 01 00 00 00 01 00 00 00 00"},
		{"twice", "00 01 00 01 00 00 00 01 00 00 00 00 00 01 00 01 00 00 00 01 00 00 00 00"},
		{"beyond the window", "00 00 00 01 00 00 00 01 01 00 00 01"},
	} {
		t.Run(test.name, func(t *testing.T) {
			near, far := net.Pipe()
			served := make(chan error, 1)
			go func() { served <- Serve(context.Background(), near, nil, ServeOptions{}) }()
			sent, _ := hex.DecodeString(strings.ReplaceAll(test.sent, " ", ""))
			go far.Write(sent)
			got, _ := io.ReadAll(far)
			if end := (header{kindGoAway, 0, 0, goAwayProtocol}).append(nil); !bytes.HasSuffix(got, end) {
				t.Errorf("the answer is % x", got)
			}
			if err := <-served; !is[protocolError](err) {
				t.Errorf("the session ended with %v", err)
			}
		})
	}
}

// Frames that a session takes however odd: of unknown streams, and SYNs that it
// does not want, which it resets.
func TestOddFrames(t *testing.T) {
	near, far := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- Serve(context.Background(), near, nil, ServeOptions{}) }()
	p := rawPeer{t, far}
	p.send(kindData, 0, 9, 5, "stray")
	p.send(kindData, flagFIN, 9, 0, "")
	p.send(kindWindow, flagRST, 9, 0, "")
	p.send(kindWindow, flagSYN, 2, 0, "")
	p.expect(kindWindow, flagRST, 2, 0)
	p.send(kindPing, flagSYN, 0, 77, "")
	p.expect(kindPing, flagACK, 0, 77)
	p.send(kindPing, flagACK, 0, 99, "")
	p.send(kindGoAway, 0, 0, 0, "")
	if err := <-served; err != nil {
		t.Errorf("the session ended with %v", err)
	}
}

// FuzzServe gives the daemon's end whatever may come: it ends, and nothing of it
// stays.
func FuzzServe(f *testing.F) {
	open := header{kindWindow, flagSYN, 1, 0}.append(nil)
	prologue := append(header{kindData, 0, 1, 3}.append(nil), 1, 0x15, 0x38)
	f.Add(append(append(open, prologue...), header{kindData, flagFIN, 1, 0}.append(nil)...))
	f.Add(append(open, header{kindWindow, flagRST, 1, 0}.append(nil)...))
	f.Add(header{kindPing, flagSYN, 0, 1}.append(nil))
	f.Add(append(header{kindData, flagSYN | flagFIN, 3, 1}.append(nil), 2))
	f.Add(header{kindData, flagSYN, 1, 1 << 31}.append(nil)[:7])
	f.Fuzz(func(t *testing.T, data []byte) {
		near, far := net.Pipe()
		served := make(chan struct{})
		go func() {
			defer close(served)
			Serve(context.Background(), near, func(context.Context, int) (net.Conn, error) {
				a, b := net.Pipe()
				go func() {
					defer b.Close()
					io.Copy(b, b)
				}()
				return a, nil
			}, ServeOptions{})
		}()
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			io.Copy(io.Discard, far)
		}()
		far.Write(data)
		far.Close()
		<-answered
		<-served
	})
}

func FuzzHeader(f *testing.F) {
	f.Add(header{kindData, flagSYN, 1, 5}.append(nil))
	f.Add(header{kindGoAway, 0, 0, 1}.append(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < headerSize {
			return
		}
		h, err := parseHeader(data)
		if err == nil && !bytes.Equal(h.append(nil), data[:headerSize]) {
			t.Errorf("% x is read as %+v", data[:headerSize], h)
		}
	})
}

func FuzzPrologue(f *testing.F) {
	f.Add([]byte{1, 0x15, 0x38})
	f.Add([]byte{2})
	f.Add([]byte{1, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		port, err := readPrologue(r)
		switch {
		case len(data) == 0:
			if err == nil {
				t.Error("an empty prologue was taken")
			}
		case data[0] != prologueVersion:
			if err != errVersion || r.Len() != len(data)-1 {
				t.Errorf("version %d is %v, with %d bytes left", data[0], err, r.Len())
			}
		case len(data) < 3:
			if !errors.Is(err, io.ErrUnexpectedEOF) && err != io.EOF {
				t.Errorf("% x is %v", data, err)
			}
		case err != nil || port != int(data[1])<<8|int(data[2]):
			t.Errorf("% x is port %d, %v", data, port, err)
		}
	})
}
