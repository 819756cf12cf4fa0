package builtins

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/client"
)

// This file defines the methods of a sandbox that read and write its files.

func sandboxWrite(c *invocation) (starlark.Value, error) {
	var path string
	var content data
	var timeout seconds
	if err := c.unpack(&path, &content, &timeout); err != nil {
		return nil, err
	}
	return starlark.None, c.transfer("writing", path, timeout, func(ctx context.Context, box *client.Sandbox) error {
		return box.Upload(ctx, path, bytes.NewReader(content))
	})
}

func sandboxRead(c *invocation) (starlark.Value, error) {
	content, _, err := c.readFile()
	if err != nil {
		return nil, err
	}
	return starlark.Bytes(content), nil
}

func sandboxReadText(c *invocation) (starlark.Value, error) {
	content, path, err := c.readFile()
	if err != nil {
		return nil, err
	}
	if !utf8.Valid(content) {
		return nil, c.argumentError("%s is not UTF-8 text; read its bytes with read", path)
	}
	return starlark.String(content), nil
}

func (c *invocation) readFile() (content []byte, path string, err error) {
	var timeout seconds
	if err := c.unpack(&path, &timeout); err != nil {
		return nil, "", err
	}
	err = c.transfer("reading", path, timeout, func(ctx context.Context, box *client.Sandbox) error {
		file, err := box.Download(ctx, path)
		if err != nil {
			return err
		}
		defer file.Close()
		content, err = io.ReadAll(file)
		return err
	})
	return content, path, err
}

func sandboxExists(c *invocation) (starlark.Value, error) {
	var path string
	if err := c.unpack(&path); err != nil {
		return nil, err
	}
	var exists bool
	err := c.transfer("looking for", path, 0, func(ctx context.Context, box *client.Sandbox) (err error) {
		exists, err = box.Exists(ctx, path)
		return err
	})
	return starlark.Bool(exists), err
}

// transfer calls f with the sandbox and a deadline.
func (c *invocation) transfer(what, path string, timeout seconds, f func(context.Context, *client.Sandbox) error) error {
	return c.inSandbox(timeout, func() error {
		return &client.Error{Kind: client.ErrConnection, Err: context.DeadlineExceeded,
			Message: fmt.Sprintf("%s %s in sandbox %s took longer than %v", what, path, c.self.(*sandboxValue).resourceName(), time.Duration(timeout))}
	}, f)
}

// inSandbox calls f with the sandbox that the call is about, and a deadline.
func (c *invocation) inSandbox(timeout seconds, late func() error, f func(context.Context, *client.Sandbox) error) error {
	if err := c.mayAct(); err != nil {
		return err
	}
	box := c.self.(*sandboxValue).box.Load()
	return c.within(timeout, func(ctx context.Context) error { return f(ctx, box) }, late)
}
