package builtins

import (
	"context"
	"net/http"
	"time"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/client"
)

// This file defines client: the connection in use, and others beside it.

// connection is a way to a server.
type connection struct {
	run  *Run
	conn *client.Client // nil is the run's own, which connects when it is asked for something
}

// defaultConnection is the run's own; called, it makes another.
type defaultConnection struct{ connection }

var (
	_ starlark.HasAttrs = (*connection)(nil)
	_ connected         = (*connection)(nil)
	_ starlark.Callable = (*defaultConnection)(nil)
)

func (c *connection) Type() string               { return "client" }
func (c *connection) Freeze()                    {}
func (c *connection) Truth() starlark.Bool       { return true }
func (c *connection) Hash() (uint32, error)      { return unhashable(c) }
func (c *connection) connection() *client.Client { return c.conn }
func (c *connection) AttrNames() []string        { return connectionAttributes.names(nil) }
func (c *connection) String() string {
	if c.conn == nil {
		return "client"
	}
	return "client(endpoint=" + starlark.String(c.conn.Endpoint()).String() + ")"
}

func (c *connection) Attr(name string) (starlark.Value, error) {
	return connectionAttributes.attr(c, nil, name)
}

// withNoun is a noun that acts on the connection.
func withNoun(make func() *noun) func(*connection) (starlark.Value, error) {
	return func(c *connection) (starlark.Value, error) {
		n := make()
		n.call = c.bound(n.call)
		c.bind(n.members)
		return n, nil
	}
}

// bind makes functions act on the connection.
func (c *connection) bind(members starlark.StringDict) {
	for name, v := range members {
		members[name] = c.bound(v.(*starlark.Builtin))
	}
}

func (c *connection) bound(fn *starlark.Builtin) *starlark.Builtin {
	if c.conn == nil {
		return fn
	}
	return fn.BindReceiver(c)
}

func (c *defaultConnection) Name() string { return "client" }
func (c *defaultConnection) CallInternal(thread *starlark.Thread, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	return newConnection.CallInternal(thread, args, kwargs)
}

var newConnection = builtin("client", func(c *invocation) (starlark.Value, error) {
	var endpoint string
	var key optional[string]
	var headers stringDict
	var timeout seconds
	var retries int
	if err := c.unpack(&endpoint, &key, &headers, &timeout, &retries); err != nil {
		return nil, err
	}
	if err := c.mayAct(); err != nil {
		return nil, err
	}
	if endpoint == "" || retries < 0 || timeout == 0 {
		return nil, c.argumentError("want an endpoint, a timeout above 0, and retries from 0 on")
	}
	options := client.Options{Endpoint: endpoint, APIKey: key.or(""), Headers: http.Header{}, Timeout: time.Duration(timeout), MaxRetries: &retries}
	for name, value := range headers {
		options.Headers.Set(name, value)
	}
	cl, err := client.New(options)
	if err != nil {
		return nil, err
	}
	c.push(&entry{kind: "connection", quiet: true, release: func(context.Context) error {
		cl.Close()
		return nil
	}})
	return &connection{c.Run, cl}, nil
})

// use connects, unless that has happened.
func (c *connection) use() (*client.Client, error) {
	if c.conn != nil {
		return c.conn, c.run.here().task.mayAct()
	}
	return c.run.here().task.client()
}

var connectionAttributes = attributes[*connection]{fields: map[string]func(*connection) (starlark.Value, error){
	"endpoint": func(c *connection) (starlark.Value, error) {
		cl, err := c.use()
		if err != nil {
			return nil, err
		}
		return starlark.String(cl.Endpoint()), nil
	},
	"runtime": func(c *connection) (starlark.Value, error) {
		cl, err := c.use()
		if err != nil {
			return nil, err
		}
		info, err := serverInfo(c.run.here().task.Ctx, cl)
		if err != nil || info == nil || info.Runtime == "" {
			return starlark.None, err
		}
		return starlark.String(info.Runtime), nil
	},
	"generation": func(c *connection) (starlark.Value, error) {
		cl, err := c.use()
		if err != nil {
			return nil, err
		}
		spoken, err := generations(c.run.here().task.Ctx, cl)
		if err != nil || len(spoken) == 0 {
			return starlark.None, err
		}
		return starlark.String(spoken[len(spoken)-1]), nil
	},
	"registries": func(c *connection) (starlark.Value, error) {
		registries := newRegistries()
		c.bind(registries.members)
		return registries, nil
	},
	"sandbox":  withNoun(newSandboxNoun),
	"template": withNoun(newTemplateNoun),
	"volume":   withNoun(newVolumeNoun),
	"pool":     withNoun(newPoolNoun),
	"snapshot": withNoun(newSnapshotNoun),
}}
