package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file tests that what went wrong in other clients does not go wrong here:
// one test for each row of protocol.md §11 that is about clients, named after it.
// The others about tunnels are tested where tunnels are.

func TestBug2313And2340DefaultEndpoint(t *testing.T) {
	c, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	wantEqual(t, "endpoint", c.Endpoint(), "https://api.smith.langchain.com/v2/sandboxes")
}

// dialsLate is a client that reaches its server at the third attempt.
func dialsLate(t *testing.T, failure error) (*Client, *script) {
	t.Helper()
	_, s := serve(t, answer{200, `{}`, nil})
	var dials atomic.Int32
	return clientOf(t, Options{Endpoint: s.url, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if dials.Add(1) < 3 {
			return nil, failure
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}, &s.mu, &s.waits), s
}

func TestBug2486EveryRequestSurvivesAFailureToConnect(t *testing.T) {
	for what, do := range map[string]func(*Client, *Sandbox) error{
		"control plane": func(c *Client, _ *Sandbox) error {
			_, err := c.CreateSandbox(t.Context(), wire.BoxCreate{})
			return err
		},
		"execute": func(_ *Client, b *Sandbox) error { _, err := b.Exec(t.Context(), RunOptions{Command: "x"}); return err },
		"upload":  func(_ *Client, b *Sandbox) error { return b.Upload(t.Context(), "/f", strings.NewReader("x")) },
	} {
		c, s := dialsLate(t, errors.New("refused"))
		if err := do(c, boxAt(c, s.url)); err != nil || len(s.asked()) != 1 {
			t.Errorf("%s: %v after %d requests", what, err, len(s.asked()))
		}
	}
}

func TestBug2557KillOfASandboxThatIsGone(t *testing.T) {
	talkInBubble(t, []func(*peer){func(p *peer) { p.start(); p.untilEnd() }}, func(t *testing.T, b *Sandbox, s *sockets) {
		cmd := mustStart(t, b, RunOptions{})
		start := time.Now()
		mustKill(t, cmd)
		wantResult(t, cmd, "", "", 137)
		wantEqual(t, "time", time.Since(start), killGrace)
	})
}

func TestBug2760ErrorBodiesAreReadOnce(t *testing.T) {
	const body = `{"detail":{"error":"Odd","message":"why"}}`
	c, _ := serve(t, answer{400, body, nil})
	_, err := c.GetSandbox(t.Context(), "a")
	e := wantKind(t, err, ErrClient)
	wantEqual(t, "error", []string{e.Message, e.ErrorType, string(e.Body)}, []string{"why", "Odd", body})
}

func TestBug2772And2773PrintingTheClientShowsNoKey(t *testing.T) {
	c, _ := serve(t, answer{200, `{}`, nil})
	if text := fmt.Sprintf("%s %v", c, c); strings.Contains(text, apiKey) || !strings.Contains(text, c.Endpoint()) {
		t.Errorf("it is shown as %s", text)
	}
}

// headersOf are the values of a header over the upgrades of a command that is cut
// off once, from a client and a call that add headers.
func headersOf(t *testing.T, name string) []string {
	t.Helper()
	seen := make(chan string, 9)
	see := func(p *peer) { seen <- p.request.Header.Get(name) }
	b, _, notes := talk(t, func(p *peer) { see(p); p.start() }, func(p *peer) { see(p); exits(p) })
	c := clientOf(t, Options{Endpoint: b.client.Endpoint(), APIKey: apiKey, Headers: http.Header{"X-All": {"all"}}}, &notes.mu, &notes.waits)
	cmd, err := boxAt(c, notes.url).Start(WithHeaders(t.Context(), http.Header{"X-Context": {"context"}}), RunOptions{Command: "x", Headers: http.Header{"X-Call": {"call"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Close()
	wantResult(t, cmd, "", "", 0)
	return drained(seen)
}

// drained is what a channel holds.
func drained(c chan string) (all []string) {
	for range len(c) {
		all = append(all, <-c)
	}
	return all
}

func TestBug2899UpgradesCarryTheClientsHeaders(t *testing.T) {
	wantEqual(t, "X-All", headersOf(t, "X-All"), []string{"all", "all"})
	wantEqual(t, "X-Api-Key", headersOf(t, "X-Api-Key"), []string{apiKey, apiKey})
}

func TestBug2940And2953OnlyConnectTimeoutsAreRepeated(t *testing.T) {
	c, s := dialsLate(t, context.DeadlineExceeded)
	if _, err := c.GetSandbox(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	wantEqual(t, "waits", s.slept(), inTurn(1, 2))
	var requests atomic.Int32
	inBubble(t, Options{Timeout: time.Second}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		<-r.Context().Done()
	}), func(t *testing.T, c *Client) {
		_, err := c.GetSandbox(t.Context(), "a")
		wantKind(t, err, ErrConnection)
		wantEqual(t, "requests", requests.Load(), 1)
	})
}

func TestBug2941GracefulEOFBeforeExit(t *testing.T) {
	b, _, _ := talk(t, func(p *peer) {
		p.start()
		p.say(`{"type":"stdout","data":"one ","offset":0}`)
		p.end(1000)
	}, func(p *peer) {
		p.start()
		p.say(`{"type":"stdout","data":"two","offset":4}`, `{"type":"exit","exit_code":0}`)
		p.untilEnd()
	})
	wantResult(t, mustStart(t, b, RunOptions{}), "one two", "", 0)
}

func TestBug2956ADockerfileIsNotBuiltInMemory(t *testing.T) {
	s, _, err := build(t, t.Context(), DockerfileBuild{Name: "a", Context: contextFolder(t)}, exiting(0, ""), exiting(0, ""))
	if err != nil {
		t.Fatal(err)
	}
	for _, run := range s.run {
		if line := run.Command.Line; strings.Contains(line, "/tmp") || !strings.Contains(line, "/var/lib/") {
			t.Errorf("it runs %s", line)
		}
	}
	if !strings.Contains(s.run[1].Command.Line, "\nrm -rf \"$state\"") {
		t.Error("BuildKit's root is not freed")
	}
}

func TestBug3004ASandboxThatBoots(t *testing.T) {
	const booting = `{"detail":{"error":"ServiceUnavailable","message":"booting"}}`
	c, s := serve(t, answer{503, booting, nil})
	_, err := boxAt(c, s.url).Exec(t.Context(), RunOptions{Command: "x"})
	wantKind(t, err, ErrNotReady)
	b, sock, _ := talk(t, nil, exits)
	sock.refusal = answer{503, booting, nil}
	wantResult(t, mustStart(t, b, RunOptions{}), "", "", 0)
}

func TestBug3022And3023OutputAfterAReconnect(t *testing.T) {
	b, _, _ := talk(t, func(p *peer) { p.start() }, func(p *peer) {
		p.start()
		p.say(`{"type":"stdout","data":"late","offset":0}`, `{"type":"exit","exit_code":0}`)
		p.untilEnd()
	})
	chunk, err := mustStart(t, b, RunOptions{}).Next(t.Context())
	if err != nil || chunk.Data != "late" {
		t.Errorf("got %+v, %v", chunk, err)
	}
}

func TestBug3090SandboxesThatAreNotReadyAreAsked(t *testing.T) {
	for _, status := range []string{wire.StatusStopped, wire.StatusProvisioning, wire.StatusFailed} {
		c, s := serve(t, answer{200, `{}`, nil})
		b := boxAt(c, s.url)
		b.Status = status
		if _, err := b.Exec(t.Context(), RunOptions{Command: "x"}); err != nil || len(s.asked()) != 1 {
			t.Errorf("%s: %v after %d requests", status, err, len(s.asked()))
		}
	}
}

func TestBug3130AnUpgradeAnsweredByWhatIsNotHTTP(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		if conn, err := listener.Accept(); err == nil {
			conn.Read(make([]byte, 1))
			io.WriteString(conn, "220 mail\r\n\r\n")
			io.Copy(io.Discard, conn)
			conn.Close()
		}
	}()
	c, _ := serve(t, answer{})
	_, err = boxAt(c, "http://"+listener.Addr().String()).Start(t.Context(), RunOptions{Command: "x"})
	wantKind(t, err, ErrConnection)
	listener.Close()
	<-answered
}

func TestBug3167And3177NamesInPaths(t *testing.T) {
	c, s := serve(t, answer{200, `{}`, nil})
	if _, err := c.GetSandbox(t.Context(), "../a/b?c#d e"); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "path", s.asked()[0].uri, "/v2/sandboxes/boxes/..%2Fa%2Fb%3Fc%23d%20e")
	_, err := c.GetSandbox(t.Context(), "")
	wantKind(t, err, ErrValidation)
	wantEqual(t, "requests", len(s.asked()), 1)
}

func TestBug3244OneHeaderInTwoCases(t *testing.T) {
	_, s := serve(t, answer{200, `{}`, nil})
	c := clientOf(t, Options{Endpoint: s.url, APIKey: apiKey, Headers: http.Header{"x-api-key": {"other"}}}, &s.mu, &s.waits)
	if _, err := boxAt(c, s.url).Exec(t.Context(), RunOptions{Command: "x", Headers: http.Header{"x-API-key": {"third"}}}); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "keys", s.asked()[0].header.Values("X-Api-Key"), []string{"third"})
}

// startedAs are the command ids of the attempts to start one command.
func startedAs(t *testing.T, refusal answer, first func(*peer)) []string {
	t.Helper()
	heard := make(chan string, 9)
	serve := []func(*peer){first, func(p *peer) {
		m, _ := p.command().(*wire.Execute)
		heard <- m.CommandID
		p.say(`{"type":"started","command_id":"`+m.CommandID+`","pid":1}`, `{"type":"exit","exit_code":0}`)
		p.untilEnd()
	}}
	if first != nil {
		serve[0] = func(p *peer) {
			m, _ := p.command().(*wire.Execute)
			heard <- m.CommandID
			first(p)
		}
	}
	b, s, _ := talk(t, serve...)
	s.refusal = refusal
	r, err := b.Run(t.Context(), RunOptions{Command: "x"})
	ids := drained(heard)
	if err != nil || r.CommandID != ids[len(ids)-1] {
		t.Fatalf("%+v, %v of %q", r, err, ids)
	}
	return ids
}

func TestBug3261AGracefulCloseBeforeStarted(t *testing.T) {
	ids := startedAs(t, answer{}, func(p *peer) { p.end(1000) })
	if len(ids) != 2 || ids[0] == "" || ids[0] != ids[1] {
		t.Errorf("it was started as %q", ids)
	}
}

func TestBug3266ALostSocketIsNotRunAgainOverHTTP(t *testing.T) {
	var executed atomic.Int32
	sock := &sockets{t: t, serve: many(20, dropped)}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			executed.Add(1)
		}
		sock.ServeHTTP(w, r)
	}))
	defer server.Close()
	var notes script
	c := clientOf(t, Options{Endpoint: server.URL}, &notes.mu, &notes.waits)
	_, err := boxAt(c, server.URL).Run(t.Context(), RunOptions{Command: "x", Timeout: time.Minute, CloseStdin: true})
	wantKind(t, err, ErrConnection)
	wantEqual(t, "times over HTTP", int(executed.Load()), 0)
}

func TestBug3280And3282And3283ABoundOnColdStarts(t *testing.T) {
	var opened atomic.Int32
	inBubble(t, Options{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { opened.Add(1); stuck(w, r) }), func(t *testing.T, c *Client) {
		start := time.Now()
		_, err := boxAt(c, pipeURL).Start(t.Context(), RunOptions{Command: "x"})
		wantKind(t, err, ErrConnectTimeout)
		wantEqual(t, "time", time.Since(start), 120*time.Second)
		wantEqual(t, "attempts of 30 seconds", opened.Load(), 4)
	})
}

func TestBug3301ASilentCommandOutlivesManyLosses(t *testing.T) {
	b, _, _ := talk(t, append(many(3*maxReconnects, func(p *peer) { p.start() }), exits)...)
	wantResult(t, mustStart(t, b, RunOptions{}), "", "", 0)
}

func TestBug3383ABuildForcesNoCapacity(t *testing.T) {
	s, _, err := build(t, t.Context(), DockerfileBuild{Name: "a", Context: contextFolder(t)}, exiting(0, ""), exiting(0, ""))
	if err != nil || strings.Contains(strings.Join(s.log, "\n"), "fs_capacity_bytes") {
		t.Errorf("%v: it asked for %q", err, s.log)
	}
}

func TestBug3388UpgradesThatFailForAWhile(t *testing.T) {
	for _, status := range []int{429, 500, 502, 503, 504} {
		if ids := startedAs(t, answer{status, `{}`, nil}, nil); len(ids) != 1 {
			t.Errorf("%d: it was started as %q", status, ids)
		}
	}
}

func TestDefect01HeadersOfACallOutliveAReconnect(t *testing.T) {
	wantEqual(t, "X-Call", headersOf(t, "X-Call"), []string{"call", "call"})
	wantEqual(t, "X-Context", headersOf(t, "X-Context"), []string{"context", "context"})
}

func TestDefect01TunnelsCarryTheClientsHeaders(t *testing.T) {
	s := newTunnelServer(t, Options{Headers: http.Header{"X-All": {"all"}}})
	tun, err := s.Tunnel(WithHeaders(t.Context(), http.Header{"X-Call": {"call"}}), TunnelOptions{RemotePort: 80, LocalPort: new(0)})
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	echo(t, tun.Address(), "first")
	s.cut()
	echoAgain(t, tun)
	upgrades := s.asked()
	wantEqual(t, "upgrades", len(upgrades), 2)
	for _, h := range upgrades {
		wantEqual(t, "headers", []string{h.Get("X-Api-Key"), h.Get("X-All"), h.Get("X-Call")}, []string{apiKey, "all", "call"})
	}
}

func TestDefect02ARestartIsFollowedAtOnce(t *testing.T) {
	b, _, notes := talk(t, func(p *peer) { p.start(); p.end(1001) }, exits)
	wantResult(t, mustStart(t, b, RunOptions{}), "", "", 0)
	wantEqual(t, "waits", notes.slept(), []time.Duration(nil))
}

func TestDefect03KillDeliversTheExit(t *testing.T) {
	exit := func(p *peer) { p.say(`{"type":"exit","exit_code":7}`); p.untilEnd() }
	b, _, _ := talk(t, func(p *peer) { p.start(); p.expect(killMessage); exit(p) })
	cmd := mustStart(t, b, RunOptions{})
	mustKill(t, cmd)
	wantResult(t, cmd, "", "", 7)

	talkInBubble(t, []func(*peer){dropsAfterStart, func(p *peer) { p.expect(reconnectMessage, killMessage); p.started(); exit(p) }}, func(t *testing.T, b *Sandbox, s *sockets) {
		cmd := mustStart(t, b, RunOptions{})
		time.AfterFunc(100*time.Millisecond, func() { mustKill(t, cmd) }) // during the backoff
		wantResult(t, cmd, "", "", 7)
	})
}

func dropsAfterStart(p *peer) { p.start() }

func TestDefect04ACommandTimeoutTellsItsTimeAndItsOutput(t *testing.T) {
	b, _, _ := talk(t, func(p *peer) {
		p.start()
		p.say(`{"type":"stdout","data":"so far","offset":0}`, `{"type":"error","error":"late","error_type":"CommandTimeout"}`)
		p.untilEnd()
	})
	_, err := b.Run(t.Context(), RunOptions{Command: "x", CommandID: "id", Timeout: 3 * time.Second})
	e := wantKind(t, err, ErrCommandTimeout)
	wantEqual(t, "error", fmt.Sprintf("%v %s", e.Timeout, e.Stdout), "3s so far")
}

func TestDefect05AnAbnormalCloseBeforeStarted(t *testing.T) {
	if ids := startedAs(t, answer{}, func(*peer) {}); len(ids) != 2 || ids[0] != ids[1] {
		t.Errorf("it was started as %q", ids)
	}
}

func TestDefect06ALossInTheMiddleIsNoConnectTimeout(t *testing.T) {
	wantEqual(t, "kind", lostError(&net.OpError{Op: "read", Err: errors.New("reset")}).Kind.Name(), ErrConnection.Name())
}

func TestDefect07WhatMayHaveRunIsNotSentAgain(t *testing.T) {
	for _, status := range []int{502, 503, 504} {
		c, s := serve(t, answer{status, `{}`, nil})
		boxAt(c, s.url).Exec(t.Context(), RunOptions{Command: "x"})
		c.CreateSnapshot(t.Context(), wire.SnapshotCreate{})
		want := map[int]string{502: "POST POST", 503: "POST POST POST POST POST", 504: "POST POST"}[status] // 503 has created nothing
		wantEqual(t, fmt.Sprint(status), s.methods(), want)
	}
}

func TestDefect12RegistriesAreBelowTheBase(t *testing.T) {
	_, s := serve(t, answer{200, `{}`, nil})
	c := clientOf(t, Options{Endpoint: s.url + "/api/v2/sandboxes"}, &s.mu, &s.waits)
	if _, err := c.GetRegistry(t.Context(), "r"); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "path", s.asked()[0].uri, "/api/v2/sandboxes/registries/r")
}

func TestDefect13NamesAndStatuses(t *testing.T) {
	for _, name := range []string{".", ".."} {
		c, s := serve(t, answer{200, `{}`, nil})
		_, err := c.GetSandbox(t.Context(), name)
		wantKind(t, err, ErrValidation)
		wantEqual(t, "requests", len(s.asked()), 0)
	}
	for status, kind := range map[int]*Kind{409: ErrAlreadyExists, 504: ErrTimeout} {
		c, _ := serve(t, answer{status, `{}`, nil})
		_, err := c.CreateSandbox(t.Context(), wire.BoxCreate{})
		wantKind(t, err, kind)
	}
	c, s := serve(t, answer{401, `{}`, nil})
	_, err := boxAt(c, s.url).Exec(t.Context(), RunOptions{Command: "x"})
	wantKind(t, err, ErrAuthentication)
}

func TestDefect14AContextThatDoesNotUnpack(t *testing.T) {
	s, _, err := build(t, t.Context(), DockerfileBuild{Name: "a", Context: contextFolder(t)}, exiting(1, "disk full\n"))
	wantKind(t, err, ErrCreation)
	wantEqual(t, "commands", len(s.run), 1)
}

func TestDefect15NoErrorIsTheLibrarys(t *testing.T) {
	for what, a := range map[string]answer{"a redirect": {302, ``, http.Header{"Location": {"/"}}}, "bad JSON": {200, `{"name":`, nil}} {
		c, _ := serve(t, a)
		_, err := c.GetSandbox(t.Context(), "a")
		if !errors.Is(err, ErrClient) {
			t.Errorf("%s: %v", what, err)
		}
	}
	inBubble(t, Options{}, http.HandlerFunc(stuck), func(t *testing.T, c *Client) {
		_, err := c.GetSandbox(t.Context(), "a")
		wantKind(t, err, ErrConnection)
	})
}

func TestDefect16AllPagesOfAList(t *testing.T) {
	page := func(from, to int) answer {
		var items []string
		for i := from; i < to; i++ {
			items = append(items, fmt.Sprintf(`{"id":"%d","name":"%d"}`, i, i))
		}
		return answer{200, `{"sandboxes":[` + strings.Join(items, ",") + `]}`, nil}
	}
	for what, x := range map[string]struct {
		answers  []answer
		want     int
		requests int
	}{
		"one page":                   {[]answer{page(0, 7)}, 7, 1},
		"three pages":                {[]answer{page(0, 50), page(50, 100), page(100, 107)}, 107, 3},
		"a full page at the end":     {[]answer{page(0, 50), page(50, 50)}, 50, 2},
		"one that came in between":   {[]answer{page(0, 50), page(49, 60)}, 60, 2},
		"a server that has no pages": {[]answer{page(0, 200)}, 200, 2},
	} {
		c, s := serve(t, x.answers...)
		all, err := c.ListSandboxes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wantEqual(t, what, []int{len(all), len(s.asked())}, []int{x.want, x.requests})
		if x.requests > 1 {
			wantEqual(t, what, s.asked()[1].uri, fmt.Sprintf("/v2/sandboxes/boxes?limit=50&offset=%d", min(200, strings.Count(x.answers[0].body, `"id"`))))
		}
	}
}

// The server may have told the end and closed before the kill goes out.
func TestAKillAfterTheEnd(t *testing.T) {
	ended := func(p *peer) { p.command(); p.say(`{"type":"exit","exit_code":7}`); p.end(1000) }
	b, _, _ := talk(t, slices.Repeat([]func(*peer){ended}, 500)...)
	for range 500 {
		cmd := b.Reconnect("id", ReconnectOptions{})
		mustKill(t, cmd)
		wantResult(t, cmd, "", "", 7)
	}
}
