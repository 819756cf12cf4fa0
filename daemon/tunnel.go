//go:build linux

package daemon

import (
	"context"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/tunnel"
)

// This file defines GET /tunnel: connections of a client to the ports of the
// sandbox, all over one WebSocket (§7).

func (d *daemon) tunnel(w http.ResponseWriter, r *http.Request) {
	d.work.Add(1) // the HTTP server does not wait for connections that were taken over
	defer d.work.Done()
	conn := d.upgrade(w, r, websocket.Upgrader{ReadBufferSize: tunnel.ReadBufferSize, WriteBufferSize: tunnel.WriteBufferSize})
	if conn == nil {
		return
	}
	var open atomic.Int64
	active := func(streams int) {
		d.activity.requests.Add(int64(streams) - open.Swap(int64(streams)))
		d.activity.touch()
	}
	defer active(0)
	dial := func(ctx context.Context, port int) (net.Conn, error) {
		if port == d.port {
			return nil, &tunnel.PortNotAllowedError{Port: port}
		}
		return dialSelf(ctx, strconv.Itoa(port), d.lim.dial)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stop := context.AfterFunc(d.ctx, func() {
		conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseGoingAway, errEnding.Error()), time.Now().Add(farewell))
		cancel()
	})
	defer stop()
	// How it ended, the client sees and nobody here asks.
	tunnel.Serve(ctx, tunnel.WebSocket(conn), dial, tunnel.ServeOptions{DialTimeout: d.lim.dial, Active: active})
}
