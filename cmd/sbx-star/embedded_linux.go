package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/runtime/image"
	"github.com/sbx-star/sbx-star/runtime/namespace"
	"github.com/sbx-star/sbx-star/runtime/process"
	"github.com/sbx-star/sbx-star/server"
	"github.com/sbx-star/sbx-star/workflow"
)

// This file defines the embedded server: the one that a workflow uses when it
// is given no endpoint.

// runChild becomes the daemon of a sandbox if that is what this process was
// started as; then it does not return.
func runChild() {
	namespace.Child()
	process.Child()
}

// embedded returns how to start the server inside this process, at the first
// call, and how to end it. The client reaches it over socket pairs, so nobody
// else on the machine can.
func embedded(runtimeName, root string, timeouts client.WebSocketTimeouts) (connect func(context.Context) (*client.Client, error), closeAll func(), err error) {
	options, err := serverOptions(runtimeName, root, "")
	if err != nil {
		return nil, nil, err
	}
	options.BestEffort = true // the machine's own user asks; GET /info tells what is not enforced
	options.LocalFiles = true // who asks may read them anyway
	var cleanups []func()
	start := func() (*client.Client, error) {
		s, err := server.New(options)
		if err != nil {
			return nil, err
		}
		listener, dial := server.Private()
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- s.Serve(ctx, listener) }()
		c, err := client.New(client.Options{Endpoint: "http://localhost" + basePath, Dial: dial, WebSocket: timeouts})
		cleanups = []func(){s.Close, func() { <-served }, cancel}
		if err == nil {
			cleanups = append(cleanups, c.Close)
		}
		return c, err
	}
	once := sync.OnceValues(start)
	return func(context.Context) (*client.Client, error) { return once() },
		func() {
			for i := len(cleanups) - 1; i >= 0; i-- {
				cleanups[i]()
			}
		}, nil
}

// serverOptions is what the embedded server and serve have in common.
func serverOptions(runtimeName, root, stateDir string) (server.Options, error) {
	if stateDir == "" {
		var err error
		if stateDir, err = defaultStateDir(); err != nil {
			return server.Options{}, err
		}
	}
	stateDir, err := filepath.Abs(stateDir)
	if err != nil {
		return server.Options{}, err
	}
	rt, err := newRuntime(runtimeName, root, filepath.Join(stateDir, "images"))
	return server.Options{Runtime: rt, StateDir: stateDir, Version: version()}, err
}

// examine prints what there is to say about sandboxes on this machine.
func examine(stateDir string, stdout io.Writer) error {
	options, err := serverOptions("namespace", rootDisk, stateDir)
	if err != nil {
		return err
	}
	ctx, _, stop := untilSignal(context.Background(), io.Discard)
	defer stop()
	findings := namespace.Diagnose(ctx, options.StateDir)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	result, last := error(nil), "sandboxes can be made here"
	for _, f := range findings {
		mark := map[namespace.Verdict]string{namespace.Good: "ok", namespace.Absent: "-", namespace.Failed: "NO"}[f.Verdict]
		fmt.Fprintf(stdout, "%-2s  %-15s  %s\n", mark, f.Name, f.Text)
		if f.Mend != "" {
			fmt.Fprintf(stdout, "%21s→ %s\n", "", f.Mend)
		}
		if f.Verdict == namespace.Failed {
			result, last = silent(workflow.ExitFailed), "no sandbox can be made here"
		}
	}
	fmt.Fprintln(stdout, last)
	return result
}

// newRuntime makes a runtime that keeps its images in a folder.
func newRuntime(name, root, images string) (runtime.Runtime, error) {
	if root != rootDisk && root != rootMemory {
		return nil, &workflow.UsageError{Message: fmt.Sprintf("there is no root %q", root), Hint: "--root takes disk or memory"}
	}
	switch name {
	case "namespace":
		rt, err := namespace.New(namespace.Options{Images: images, Mirrors: os.Getenv(image.MirrorVar), InMemory: root == rootMemory})
		if err != nil {
			return nil, &workflow.UsageError{Message: err.Error(), Hint: "correct it, or unset it"}
		}
		return rt, nil
	case "process":
		if root == rootMemory {
			return nil, &workflow.UsageError{Message: "the process runtime can't keep sandboxes in memory", Hint: "leave --root memory out, or take --runtime namespace"}
		}
		return process.New(process.Options{}), nil
	}
	return nil, &workflow.UsageError{Message: fmt.Sprintf("there is no runtime %q", name), Hint: "--runtime takes namespace or process"}
}
