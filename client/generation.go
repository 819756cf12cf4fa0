package client

import (
	"context"
	"errors"
	"net/http"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines how a client finds out which generation of the API a server
// speaks, where callers have to know (protocol.md §12, §15).

// Generation is the newest generation that the server is known to speak:
// wire.Late where it says so itself, and of others what they can be seen to
// have. It is found out once; a failure to do so is tried again the next time.
func (c *Client) Generation(ctx context.Context) (string, error) {
	select {
	case c.probing <- struct{}{}:
		defer func() { <-c.probing }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if c.generation != "" {
		return c.generation, nil
	}
	found, err := c.probe(ctx)
	c.generation = found
	return found, err
}

func (c *Client) probe(ctx context.Context) (string, error) {
	info, err := c.Info(ctx)
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
