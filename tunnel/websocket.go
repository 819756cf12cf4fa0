package tunnel

import (
	"net"

	"github.com/gorilla/websocket"
)

// This file defines the WebSocket as a byte stream.

// Buffer sizes that suit a tunnel, for the dialer or the upgrader of its
// WebSocket.
const (
	ReadBufferSize  = 64 << 10
	WriteBufferSize = 64<<10 + 64
)

// WebSocket makes a net.Conn of a WebSocket, whose user it becomes: nobody else
// may read or write it any more.
func WebSocket(ws *websocket.Conn) net.Conn { return ws.NetConn() }
