package client

import (
	"context"
	"errors"
	"net/http"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines how a client finds out which generation of the API a server
// speaks, where callers have to know (protocol.md §12, §15).

// Info asks what the server is, once. Only servers of this project answer; from
// any other the error is ErrNotFound. The answer is shared: it must not be changed.
func (c *Client) Info(ctx context.Context) (*wire.Info, error) {
	if err := c.startProbing(ctx); err != nil {
		return nil, err
	}
	defer c.endProbing()
	return c.askInfo(ctx)
}

func (c *Client) startProbing(ctx context.Context) error {
	select {
	case c.probing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *Client) endProbing() { <-c.probing }

func (c *Client) askInfo(ctx context.Context) (*wire.Info, error) {
	if c.info != nil || c.infoErr != nil {
		return c.info, c.infoErr
	}
	info, err := send[wire.Info](ctx, c, call{path: c.path("info"), errors: func(e *Error, p wire.Problem) {
		if mapGeneric(e, p); isAbsent(e) {
			e.Kind = ErrNotFound
		}
	}})
	switch {
	case err == nil:
		c.info = info
	case isAbsent(err):
		c.infoErr = err
	}
	return info, err
}

// Generation is the newest generation that the server is known to speak:
// wire.Late where it says so itself, and of others what they can be seen to
// have. It is found out once; a failure to do so is tried again the next time.
func (c *Client) Generation(ctx context.Context) (string, error) {
	if err := c.startProbing(ctx); err != nil {
		return "", err
	}
	defer c.endProbing()
	if c.generation != "" {
		return c.generation, nil
	}
	found, err := c.probe(ctx)
	c.generation = found
	return found, err
}

func (c *Client) probe(ctx context.Context) (string, error) {
	info, err := c.askInfo(ctx)
	if err == nil {
		if n := len(info.Generations); n > 0 {
			return info.Generations[n-1], nil
		}
		return wire.Late, nil
	}
	if !isAbsent(err) {
		return "", err
	}
	for _, sign := range []struct{ collection, without string }{{"templates", wire.Head}, {"snapshots", wire.Seed}} {
		err := c.json(ctx, call{path: c.path(sign.collection)}, nil)
		if isAbsent(err) {
			return sign.without, nil
		}
		if err != nil {
			return "", err
		}
	}
	return wire.Classic, nil
}

// isAbsent reports whether an answer says that there is no such endpoint.
func isAbsent(err error) bool {
	var e *Error
	return errors.As(err, &e) && (e.Status == http.StatusNotFound || e.Status == http.StatusMethodNotAllowed || e.Status == http.StatusNotImplemented)
}
