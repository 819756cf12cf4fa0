package builtins

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/event"
	"github.com/sbx-star/sbx-star/tunnel"
)

// This file defines tunnels: local ports that lead to ports inside a sandbox.

// tunnelValue is a tunnel, which its scope closes.
type tunnelValue struct {
	conn    *client.Client
	tunnel  *client.Tunnel
	sandbox string
	release *entry
	close   func() error // and tell of it, once
}

var (
	_ starlark.HasAttrs = (*tunnelValue)(nil)
	_ scoped            = (*tunnelValue)(nil)
	_ connected         = (*tunnelValue)(nil)
)

func (t *tunnelValue) String() string {
	return fmt.Sprintf("tunnel(%q, remote_port=%d, address=%q)", t.sandbox, t.tunnel.RemotePort(), t.tunnel.Address())
}
func (t *tunnelValue) Type() string               { return "tunnel" }
func (t *tunnelValue) Freeze()                    {} // shared from now on, and as alive as before
func (t *tunnelValue) Truth() starlark.Bool       { return true }
func (t *tunnelValue) Hash() (uint32, error)      { return unhashable(t) }
func (t *tunnelValue) held() *entry               { return t.release }
func (t *tunnelValue) connection() *client.Client { return t.conn }
func (t *tunnelValue) AttrNames() []string        { return tunnelAttributes.names(nil) }
func (t *tunnelValue) Attr(name string) (starlark.Value, error) {
	return tunnelAttributes.attr(t, nil, name)
}

var tunnelAttributes = attributes[*tunnelValue]{
	fields: map[string]func(*tunnelValue) (starlark.Value, error){
		"local_port":  func(t *tunnelValue) (starlark.Value, error) { return starlark.MakeInt(t.tunnel.LocalPort()), nil },
		"remote_port": func(t *tunnelValue) (starlark.Value, error) { return starlark.MakeInt(t.tunnel.RemotePort()), nil },
		"address":     func(t *tunnelValue) (starlark.Value, error) { return starlark.String(t.tunnel.Address()), nil },
		"stats": func(t *tunnelValue) (starlark.Value, error) {
			return &record{"tunnel_stats", tunnelStats(t.tunnel.Stats())}, nil
		},
	},
	methods: map[string]*starlark.Builtin{
		"check": builtin("Tunnel.check", tunnelCheck),
		"close": builtin("Tunnel.close", tunnelClose),
	},
}

type tunnelStats struct {
	Connections int64 `json:"connections"`
	Active      int64 `json:"active"`
	BytesIn     int64 `json:"bytes_in"`
	BytesOut    int64 `json:"bytes_out"`
	Reconnects  int64 `json:"reconnects"`
}

// localPort is a port of this machine, 0 for any, or nil for None.
type localPort struct{ optional[int] }

func (p *localPort) Unpack(v starlark.Value) error {
	if err := p.optional.Unpack(v); err != nil {
		return err
	}
	if p.ptr != nil && (*p.ptr < 0 || *p.ptr > 65535) {
		return fmt.Errorf("got %s, want 1 to 65535, 0 for any, or None for the remote one", v)
	}
	return nil
}

func sandboxTunnel(c *invocation) (starlark.Value, error) {
	var remote port
	var local localPort
	var reconnects int
	cl, err := c.connect(&remote, &local, &reconnects)
	if err != nil {
		return nil, err
	}
	if reconnects < 0 {
		return nil, c.argumentError("parameter max_reconnects: got %d, want 0 or more", reconnects)
	}
	box := c.self.(*sandboxValue).box.Load()
	about := event.Tunnel{Place: c.place(), Sandbox: box.Name, RemotePort: int(remote)}
	tell := func(state string, err error, localPort int) {
		e := about
		e.State, e.Error, e.LocalPort = state, errorText(err), localPort
		c.Run.options.Events.Emit(e)
	}
	opened, err := box.Tunnel(c.Ctx, client.TunnelOptions{
		RemotePort: int(remote), LocalPort: local.ptr, MaxReconnects: &reconnects,
		Events: func(e client.TunnelEvent) {
			switch e.Kind {
			case tunnel.Refused:
				tell(event.TunnelRefused, e.Err, 0)
			case tunnel.Lost:
				tell(event.TunnelLost, e.Err, 0)
			case tunnel.Failed:
				tell(event.TunnelFailed, e.Err, 0)
			case tunnel.Reopened:
				tell(event.TunnelReopened, nil, 0)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	tell(event.TunnelOpened, nil, opened.LocalPort())
	t := &tunnelValue{conn: cl, tunnel: opened, sandbox: box.Name}
	t.close = sync.OnceValue(func() error {
		err := opened.Close()
		tell(event.TunnelClosed, err, opened.LocalPort())
		return err
	})
	t.release = c.push(&entry{kind: "tunnel", quiet: true, early: true, release: func(context.Context) error { return t.close() }})
	return t, nil
}

// openTunnel is the method tunnel of the sandbox that it is given.
func openTunnel(c *invocation) (starlark.Value, error) {
	return c.onSandbox("Sandbox.tunnel", sandboxTunnel)
}

func tunnelCheck(c *invocation) (starlark.Value, error) {
	if err := c.unpack(); err != nil {
		return nil, err
	}
	t := c.self.(*tunnelValue).tunnel
	err := t.Check(c.Ctx)
	if errors.Is(err, client.ErrTunnelConnectionRefused) {
		err = &hinted{err, fmt.Sprintf("sb.wait_for_port(%d) waits until something listens there", t.RemotePort())}
	}
	return starlark.None, err
}

func tunnelClose(c *invocation) (starlark.Value, error) {
	if err := c.unpack(); err != nil {
		return nil, err
	}
	t := c.self.(*tunnelValue)
	c.Run.drop(t.release)
	return starlark.None, t.close()
}
