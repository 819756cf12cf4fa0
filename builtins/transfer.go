package builtins

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/event"
)

// This file defines the methods of a sandbox that move files and folders between
// it and this machine.

// progressEvery is how often a transfer tells how far it has come.
const progressEvery = 2 * time.Second

func sandboxUpload(c *invocation) (starlark.Value, error) {
	var local hostPath
	var path string
	var exclude stringList
	var timeout seconds
	if err := c.unpack(&local, &path, &exclude, &timeout); err != nil {
		return nil, err
	}
	return c.moveTree(true, path, timeout, func(ctx context.Context, box *client.Sandbox, progress func(client.Transfer)) (*client.Transfer, error) {
		return box.UploadTree(ctx, local.path, path, client.TransferOptions{Exclude: exclude, Progress: progress})
	})
}

func sandboxDownload(c *invocation) (starlark.Value, error) {
	var path string
	var local hostPath
	var timeout seconds
	if err := c.unpack(&path, &local, &timeout); err != nil {
		return nil, err
	}
	return c.moveTree(false, path, timeout, func(ctx context.Context, box *client.Sandbox, progress func(client.Transfer)) (*client.Transfer, error) {
		return box.DownloadTree(ctx, path, local.path, client.TransferOptions{Progress: progress})
	})
}

type transferFields struct {
	Files     int      `json:"files"`
	SizeBytes int64    `json:"size_bytes"`
	Skipped   []string `json:"skipped"`
}

func (c *invocation) moveTree(upload bool, path string, timeout seconds, move func(context.Context, *client.Sandbox, func(client.Transfer)) (*client.Transfer, error)) (starlark.Value, error) {
	sandbox, told, what := c.self.(*sandboxValue).resourceName(), false, "downloading"
	if upload {
		what = "uploading"
	}
	place := c.place()
	tell := func(t client.Transfer, done bool) {
		c.Run.options.Events.Emit(event.Transfer{Place: place, Upload: upload, Sandbox: sandbox, Path: path, Files: t.Files, Bytes: t.Bytes, Done: done})
	}
	last := time.Now()
	var moved *client.Transfer
	err := c.transfer(what, path, timeout, func(ctx context.Context, box *client.Sandbox) (err error) {
		moved, err = move(ctx, box, func(t client.Transfer) {
			if time.Since(last) >= progressEvery {
				last, told = time.Now(), true
				tell(t, false)
			}
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	if told {
		tell(*moved, true)
	}
	if len(moved.Skipped) > 0 {
		c.Run.options.Events.Emit(event.Warning{Text: fmt.Sprintf("%s %s passed over what is neither file, folder nor link: %s", what, path, shorten(strings.Join(moved.Skipped, ", ")))})
	}
	return &record{"transfer", transferFields{moved.Files, moved.Bytes, moved.Skipped}}, nil
}
