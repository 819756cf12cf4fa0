package client

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
	"time"

	"github.com/sbx-star/sbx-star/internal/yamuxpeer"
	"github.com/sbx-star/sbx-star/tunnel"
	"github.com/sbx-star/sbx-star/wire"
)

// This file tests tunnels against a server of the reference's kind, which speaks
// yamux by the book.

// tunnelServer is a server whose tunnels echo on port 80, are not allowed on 1,
// refused on 2 and of another version on 3. Before that it answers upgrades with
// the statuses that are left.
type tunnelServer struct {
	*Sandbox
	mu       sync.Mutex
	statuses []int
	upgrades []http.Header
	sessions []*yamuxpeer.Session
}

func newTunnelServer(t *testing.T, o Options) *tunnelServer {
	t.Helper()
	s := &tunnelServer{}
	var work sync.WaitGroup
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		work.Add(1)
		defer work.Done()
		s.mu.Lock()
		s.upgrades = append(s.upgrades, r.Header)
		status := 0
		if len(s.statuses) > 0 {
			status, s.statuses = s.statuses[0], s.statuses[1:]
		}
		s.mu.Unlock()
		if status != 0 || r.URL.Path != "/sb/1/tunnel" {
			w.WriteHeader(status)
			return
		}
		p, err := yamuxpeer.Upgrade(w, r)
		if err != nil {
			return
		}
		session := yamuxpeer.NewSession(p, false)
		s.mu.Lock()
		s.sessions = append(s.sessions, session)
		s.mu.Unlock()
		for st := session.Accept(); st != nil; st = session.Accept() {
			work.Go(func() { serveStream(st) })
		}
		session.Close()
	}))
	t.Cleanup(func() {
		server.Close()
		work.Wait()
		for _, session := range s.sessions {
			for _, wrong := range session.Wrong() {
				t.Error(wrong)
			}
		}
	})
	o.Endpoint, o.APIKey = server.URL+"/v2/sandboxes", apiKey
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	c.sleep = func(ctx context.Context, _ time.Duration) error { return ctx.Err() }
	t.Cleanup(func() {
		c.Close()
		if len(c.tunnels.open) > 0 {
			t.Error("a session is left")
		}
	})
	s.Sandbox = &Sandbox{wire.Box{Name: "b", DataplaneURL: server.URL + "/sb/1/"}, c}
	return s
}

func serveStream(st *yamuxpeer.Stream) {
	var head [3]byte
	if _, err := io.ReadFull(st, head[:]); err != nil {
		return
	}
	if head[2] != 80 {
		st.Write(head[2:])
		st.CloseWrite()
		return
	}
	st.Write([]byte{0})
	io.Copy(st, st)
	st.CloseWrite()
}

// cut ends the last session.
func (s *tunnelServer) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions[len(s.sessions)-1].Peer.Close()
}

func (s *tunnelServer) asked() []http.Header {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.upgrades
}

// echo sends a text through a tunnel and reads it back.
func echo(t *testing.T, address, text string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	io.WriteString(conn, text)
	conn.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(conn); string(got) != text || err != nil {
		t.Errorf("got %q, %v, want %q", got, err, text)
	}
}

// The tunnels to one sandbox share a session; others have their own. Each upgrade
// carries the key, the client's headers and the tunnel's, also when it is
// repeated (§1.4, §11).
func TestTunnelSharesSession(t *testing.T) {
	s := newTunnelServer(t, Options{Headers: http.Header{"x-team": {"a"}, "X-Both": {"client"}}})
	open := func(headers http.Header) *Tunnel {
		t.Helper()
		ctx := t.Context()
		if headers != nil {
			ctx = WithHeaders(ctx, http.Header{"X-Both": {"context"}, "x-context": {"c"}})
		}
		tun, err := s.Tunnel(ctx, TunnelOptions{RemotePort: 80, LocalPort: new(0), Headers: headers})
		if err != nil {
			t.Fatal(err)
		}
		echo(t, tun.Address(), "hello")
		return tun
	}
	first, second := open(nil), open(nil)
	if n := len(s.asked()); n != 1 {
		t.Errorf("%d upgrades for two tunnels", n)
	}
	first.Close()
	first.Close()
	if err := first.Check(t.Context()); !errors.Is(err, tunnel.ErrClosed) || !errors.Is(err, ErrTunnel) {
		t.Errorf("a closed tunnel: %v", err)
	}
	echo(t, second.Address(), "still open")
	other := open(http.Header{"x-both": {"tunnel"}, "X-Api-Key": {"another"}})
	s.cut()
	echoAgain(t, other)
	upgrades := s.asked()
	if len(upgrades) != 3 {
		t.Fatalf("%d upgrades", len(upgrades))
	}
	for i, want := range []struct{ key, both string }{{apiKey, "client"}, {"another", "tunnel"}, {"another", "tunnel"}} {
		h := upgrades[i]
		if fromContext := h.Get("X-Context") == "c"; fromContext != (i > 0) || h.Get("X-Api-Key") != want.key || h.Get("X-Both") != want.both || h.Get("X-Team") != "a" || len(h["X-Both"]) != 1 {
			t.Errorf("upgrade %d: %v", i, h)
		}
	}
	if stats := other.Stats(); stats.Reconnects != 1 {
		t.Errorf("%+v", stats)
	}
	second.Close()
	other.Close()
	open(nil).Close() // a new session, because the last one was closed
	if n := len(s.asked()); n != 4 {
		t.Errorf("%d upgrades", n)
	}
}

// echoAgain is echo for a tunnel whose session was cut a moment ago.
func echoAgain(t *testing.T, tun *Tunnel) {
	t.Helper()
	for tun.Stats().Reconnects == 0 {
		if err := tun.Check(t.Context()); err != nil && !errors.Is(err, ErrTunnel) {
			t.Fatal(err)
		}
	}
	echo(t, tun.Address(), "again")
}

// Each status is an error of its own kind, from Check, from DialPort, and as an
// event of the tunnel whose connection it is.
func TestTunnelErrors(t *testing.T) {
	s := newTunnelServer(t, Options{})
	for port, kind := range map[int]*Kind{1: ErrTunnelPortNotAllowed, 2: ErrTunnelConnectionRefused, 3: ErrTunnelUnsupportedVersion, 9: ErrTunnel} {
		events := make(chan TunnelEvent, 4)
		tun, err := s.Tunnel(t.Context(), TunnelOptions{RemotePort: port, LocalPort: new(0), Events: func(e TunnelEvent) { events <- e }})
		if err != nil {
			t.Fatal(err)
		}
		beside, err := s.Tunnel(t.Context(), TunnelOptions{RemotePort: port, LocalPort: new(0), Events: func(e TunnelEvent) { t.Errorf("an event of another tunnel: %+v", e) }})
		if err != nil {
			t.Fatal(err)
		}
		want := func(what string, err error) {
			t.Helper()
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Kind != kind || kind.Name() != "TunnelError" && kind != ErrTunnelUnsupportedVersion && e.Port != port {
				t.Errorf("port %d: %s: %v", port, what, err)
			}
		}
		want("check", tun.Check(t.Context()))
		_, err = s.DialPort(t.Context(), port, nil)
		want("dial", err)
		if conn, err := net.Dial("tcp", tun.Address()); err == nil { // it may be reset at once
			io.ReadAll(conn)
			conn.Close()
		}
		e := <-events
		want("event", e.Err)
		if e.Kind != tunnel.Refused {
			t.Errorf("the event is %q", e.Kind)
		}
		tun.Close()
		beside.Close()
	}
	conn, err := s.DialPort(t.Context(), 80, nil)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "direct")
	conn.CloseWrite()
	if got, err := io.ReadAll(conn); string(got) != "direct" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	conn.Close()
}

// What the upgrade is answered with says whether it is tried again.
func TestTunnelUpgrade(t *testing.T) {
	for _, test := range []struct {
		statuses []int
		kind     *Kind
		upgrades int
	}{
		{[]int{503, 502, 429}, nil, 4},
		{[]int{401}, ErrAuthentication, 1},
		{[]int{403}, ErrAuthentication, 1},
		{[]int{404}, ErrNotFound, 1},
		{[]int{400}, ErrTunnel, 1},
		{[]int{200}, ErrTunnel, 1},
		{[]int{503, 503, 503, 503, 503, 503, 503}, ErrTunnel, 6},
	} {
		s := newTunnelServer(t, Options{})
		s.statuses = test.statuses
		tun, err := s.Tunnel(t.Context(), TunnelOptions{RemotePort: 80, LocalPort: new(0)})
		if err == nil {
			echo(t, tun.Address(), "open")
			tun.Close()
		}
		e, _ := errors.AsType[*Error](err)
		if (err == nil) != (test.kind == nil) || e != nil && e.Kind != test.kind || len(s.asked()) != test.upgrades {
			t.Errorf("%v: %v after %d upgrades", test.statuses, err, len(s.asked()))
		}
		if err != nil && (strings.Contains(err.Error(), apiKey) || test.kind == ErrTunnel && e.Err == nil) {
			t.Errorf("%v: %v", test.statuses, err)
		}
	}
	// Once open, a session that is lost is not opened again against a refusal that
	// will stay.
	s := newTunnelServer(t, Options{})
	tun, err := s.Tunnel(t.Context(), TunnelOptions{RemotePort: 80, LocalPort: new(0)})
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	echo(t, tun.Address(), "open")
	s.mu.Lock()
	s.statuses = []int{401}
	s.mu.Unlock()
	s.cut()
	for err = nil; err == nil || !errors.Is(err, ErrAuthentication); {
		err = tun.Check(t.Context())
	}
	if n := len(s.asked()); n != 2 {
		t.Errorf("%d upgrades", n)
	}
}

// Wrong arguments, a port that is taken, and a context that has ended are told
// before anything is left open.
func TestTunnelArguments(t *testing.T) {
	s := newTunnelServer(t, Options{})
	for _, o := range []TunnelOptions{{}, {RemotePort: 65536}, {RemotePort: 80, LocalPort: new(-1)}, {RemotePort: 80, LocalPort: new(65536)}, {RemotePort: 80, MaxReconnects: new(-1)}} {
		if _, err := s.Tunnel(t.Context(), o); !errors.Is(err, ErrValidation) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if _, err := s.DialPort(t.Context(), 0, nil); !errors.Is(err, ErrValidation) {
		t.Error(err)
	}
	if len(s.asked()) > 0 {
		t.Error("the server was asked")
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	_, err = s.Tunnel(t.Context(), TunnelOptions{RemotePort: 80, LocalPort: &port})
	if inUse, ok := errors.AsType[*tunnel.PortInUseError](err); !ok || inUse.Port != port || !errors.Is(err, ErrTunnel) {
		t.Error(err)
	}
	ended, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if _, err := s.Tunnel(ended, TunnelOptions{RemotePort: 80, LocalPort: new(0)}); err != why {
		t.Error(err)
	}
	none := &Sandbox{wire.Box{Name: "b"}, s.client}
	if _, err := none.Tunnel(t.Context(), TunnelOptions{RemotePort: 80}); !errors.Is(err, ErrDataplaneNotConfigured) {
		t.Error(err)
	}

	// The context bounds the opening only.
	opening, cancelOpening := context.WithCancel(t.Context())
	tun, err := s.Tunnel(opening, TunnelOptions{RemotePort: 80, LocalPort: new(0)})
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	cancelOpening()
	echo(t, tun.Address(), "still open")
}
