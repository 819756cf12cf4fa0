package server_test

import (
	"context"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/server"
	"github.com/sbx-star/sbx-star/wire"
)

// This file tests a server that is reached over socket pairs.

func TestPrivate(t *testing.T) {
	before := runtime.NumGoroutine()
	h := &host{}
	s, err := server.New(server.Options{Runtime: h, StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ln, dial := server.Private()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()

	client := &http.Client{Transport: &http.Transport{DialContext: dial}}
	res, err := client.Post("http://localhost"+base+"/boxes", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	res.Body.Close()
	var b wire.Box
	answer{res, string(body)}.decode(t, &b)

	dialer := websocket.Dialer{NetDialContext: dial}
	conn, _, err := dialer.Dial("ws"+strings.TrimPrefix(b.DataplaneURL, "http")+"/execute/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	exchange(t, conn, "hello")
	cancel()
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, 1001) {
		t.Errorf("got %v", err)
	}
	conn.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := dial(context.Background(), "", ""); err == nil {
		t.Error("it still takes connections")
	}
	h.kill(h.created[0].Dir)
	client.CloseIdleConnections()
	eventually(t, "as many goroutines as before", func() bool { return runtime.NumGoroutine() <= before })
}
