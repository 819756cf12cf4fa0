//go:build !linux

package main

import (
	"context"
	"io"
	goruntime "runtime"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/server"
)

// This file stands in for the embedded server where there is none.

func runChild() {}

func embedded(_, _ string, _ client.WebSocketTimeouts) (func(context.Context) (*client.Client, error), func(), error) {
	return func(context.Context) (*client.Client, error) { return nil, unsupported() }, func() {}, nil
}

func serverOptions(_, _, _ string) (server.Options, error) { return server.Options{}, unsupported() }

func examine(string, io.Writer) error { return unsupported() }

func unsupported() error {
	return &runtime.Unsupported{
		What: "sandboxes cannot be made on " + goruntime.GOOS + ", only on Linux",
		Hint: "run `sbx-star serve` on a Linux machine and connect to it with --endpoint URL, or use the hosted service with --remote",
	}
}
