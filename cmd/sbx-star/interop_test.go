//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/server"
)

// TestInterop drives the server with the official JavaScript SDK, the last one
// that has templates, volumes and pools and the newest, as testdata/interop
// says. It needs what `npm ci` puts there.
func TestInterop(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("there is no node here; install Node.js and run npm ci in testdata/interop")
	}
	folder, err := filepath.Abs("../../testdata/interop")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(folder, "node_modules")); err != nil {
		t.Skip("the SDK is not installed; run npm ci in testdata/interop")
	}
	for _, runtimeName := range []string{"namespace", "process"} {
		for _, script := range []string{"classic.mjs", "late.mjs"} {
			t.Run(runtimeName+"/"+script, func(t *testing.T) {
				endpoint := interopServer(t, runtimeName)
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				cmd := exec.CommandContext(ctx, node, script)
				cmd.Dir = folder
				cmd.Env = append(os.Environ(), "SBX_STAR_ENDPOINT="+endpoint, "SBX_STAR_API_KEY=interop")
				var out bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &out
				if err := cmd.Run(); err != nil {
					t.Errorf("%v\n%s", err, &out)
				}
			})
		}
	}
}

// interopServer serves until the test ends, and then deletes what is left.
func interopServer(t *testing.T, runtimeName string) (endpoint string) {
	t.Helper()
	options, err := serverOptions(runtimeName, rootDisk, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	options.APIKey, options.BestEffort = "interop", true
	s, err := server.New(options)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	endpoint = fmt.Sprintf("http://%s%s", listener.Addr(), basePath)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, listener) }()
	t.Cleanup(func() {
		c, err := client.New(client.Options{Endpoint: endpoint, APIKey: "interop"})
		if err != nil {
			t.Error(err)
		}
		left, err := c.ListSandboxes(context.Background())
		if err != nil {
			t.Error(err)
		}
		for _, box := range left {
			if err := box.Delete(context.Background()); err != nil {
				t.Error(err)
			}
		}
		c.Close()
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return endpoint
}
