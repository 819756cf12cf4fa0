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
	"github.com/sbx-star/sbx-star/wire"
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

func sandboxStat(c *invocation) (starlark.Value, error) {
	var path string
	var timeout seconds
	if err := c.unpack(&path, &timeout); err != nil {
		return nil, err
	}
	var info *client.FileInfo
	err := c.transfer("looking at", path, timeout, func(ctx context.Context, box *client.Sandbox) (err error) {
		info, err = box.Stat(ctx, path)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &record{"file_info", fileInfo{info.Size, info.ETag, info.LastModified, info.ContentType}}, nil
}

type fileInfo struct {
	SizeBytes    int64  `json:"size_bytes"`
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"last_modified,omitempty"`
	ContentType  string `json:"content_type,omitempty"`
}

func sandboxReadRange(c *invocation) (starlark.Value, error) {
	var path string
	var start, end, suffix optional[int64]
	var ifRange, ifNoneMatch optional[string]
	var timeout seconds
	if err := c.unpack(&path, &start, &end, &suffix, &ifRange, &ifNoneMatch, &timeout); err != nil {
		return nil, err
	}
	asked := client.Range{Start: start.ptr, End: end.ptr, Suffix: suffix.ptr, IfRange: ifRange.or(""), IfNoneMatch: ifNoneMatch.or("")}
	var got *client.RangeResult
	err := c.transfer("reading", path, timeout, func(ctx context.Context, box *client.Sandbox) (err error) {
		got, err = box.ReadRange(ctx, path, asked)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &record{"file_range", fileRange{starlark.Bytes(got.Content), got.Start, got.Total, got.Partial, got.Unchanged, got.ETag, got.LastModified}}, nil
}

type fileRange struct {
	Content      starlark.Bytes `json:"content"`
	Start        int64          `json:"start"`
	TotalBytes   *int64         `json:"total_bytes"`
	Partial      bool           `json:"partial"`
	Unchanged    bool           `json:"unchanged"`
	ETag         string         `json:"etag,omitempty"`
	LastModified string         `json:"last_modified,omitempty"`
}

// found is what a search has found.
type found struct {
	Matches   *starlark.List `json:"matches"`
	Truncated bool           `json:"truncated"`
}

func newFound[T any](typ string, matches []T, truncated bool) starlark.Value {
	list := starlark.NewList(nil)
	for _, m := range matches {
		list.Append(&record{typ, m})
	}
	list.Freeze()
	return &record{"found", found{list, truncated}}
}

func sandboxLs(c *invocation) (starlark.Value, error) {
	var path string
	var limit positive[int]
	if err := c.unpack(&path, &limit); err != nil {
		return nil, err
	}
	return c.glob("listing", path, func(ctx context.Context, box *client.Sandbox) (*wire.GlobResult, error) {
		return box.Ls(ctx, path, limit.or(0))
	})
}

func sandboxGlob(c *invocation) (starlark.Value, error) {
	var pattern, path string
	var limit positive[int]
	if err := c.unpack(&pattern, &path, &limit); err != nil {
		return nil, err
	}
	return c.glob("searching", path, func(ctx context.Context, box *client.Sandbox) (*wire.GlobResult, error) {
		return box.Glob(ctx, pattern, path, limit.or(0))
	})
}

func (c *invocation) glob(what, path string, search func(context.Context, *client.Sandbox) (*wire.GlobResult, error)) (starlark.Value, error) {
	var result *wire.GlobResult
	err := c.transfer(what, path, searchTime, func(ctx context.Context, box *client.Sandbox) (err error) {
		result, err = search(ctx, box)
		return err
	})
	if err != nil {
		return nil, err
	}
	return newFound("file_match", result.Matches, result.Truncated), nil
}

// searchTime is more than servers take for a search.
const searchTime = seconds(60 * time.Second)

func sandboxGrep(c *invocation) (starlark.Value, error) {
	var text, path string
	var files optional[string]
	var limit positive[int]
	if err := c.unpack(&text, &path, &files, &limit); err != nil {
		return nil, err
	}
	var result *wire.GrepResult
	err := c.transfer("searching", path, searchTime, func(ctx context.Context, box *client.Sandbox) (err error) {
		result, err = box.Grep(ctx, text, path, files.or(""), limit.or(0))
		return err
	})
	if err != nil {
		return nil, err
	}
	return newFound("text_match", result.Matches, result.Truncated), nil
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
