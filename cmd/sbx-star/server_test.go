//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/wire"
)

// This file checks the whole server from outside: many clients at once, and a
// server that is killed under them.

// TestManyAtOnce has 20 clients create, use and delete 10 sandboxes each.
func TestManyAtOnce(t *testing.T) {
	endpoint := interopServer(t, "namespace")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var clients sync.WaitGroup
	for i := range 20 {
		clients.Go(func() {
			c, err := client.New(client.Options{Endpoint: endpoint, APIKey: "interop"})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for j := range 10 {
				if err := useSandbox(ctx, c, fmt.Sprintf("many-%d-%d", i, j)); err != nil {
					t.Errorf("client %d, sandbox %d: %v", i, j, err)
				}
			}
		})
	}
	clients.Wait()
	c, err := client.New(client.Options{Endpoint: endpoint, APIKey: "interop"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if left, err := c.ListSandboxes(ctx); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// useSandbox puts a file into a new sandbox, has a command copy it, and reads
// the copy and what the command printed.
func useSandbox(ctx context.Context, c *client.Client, name string) error {
	sb, err := c.CreateSandbox(ctx, wire.BoxCreate{Name: name, WaitForReady: true, Timeout: new(120)})
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if err := sb.Upload(ctx, "in", strings.NewReader(name)); err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	result, err := sb.Run(ctx, client.RunOptions{Command: "cp in out; cat out", Timeout: time.Minute, CloseStdin: true})
	if err != nil || result.Stdout != name {
		return fmt.Errorf("run: %v, %w", result, err)
	}
	file, err := sb.Download(ctx, "out")
	if err != nil {
		return fmt.Errorf("download: %w", err)
	}
	defer file.Close()
	if text, err := io.ReadAll(file); err != nil || string(text) != name {
		return fmt.Errorf("download: %q, %w", text, err)
	}
	return sb.Delete(ctx)
}

// served is a server in a process of its own.
type served struct {
	cmd    *exec.Cmd
	output *bytes.Buffer
}

func startServer(t *testing.T, program, state, address string) *served {
	t.Helper()
	s := &served{exec.Command(program, "serve", "--listen", address, "--api-key", "k", "--state-dir", state, "--best-effort"), new(bytes.Buffer)}
	stdout := &notice{w: new(bytes.Buffer), seen: make(chan struct{})}
	s.cmd.Stdout, s.cmd.Stderr = stdout, s.output
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-stdout.seen:
	case <-time.After(30 * time.Second):
		s.kill()
		t.Fatalf("the server does not start:\n%s", s.output)
	}
	return s
}

func (s *served) kill() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

// TestServerIsKilled kills a server at random moments under load: after each
// restart its books can be read, a command that runs is followed to its end
// without a lost byte, and what was created is there or was never promised.
func TestServerIsKilled(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	state := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "sbx-star")
	if err := os.Symlink(self, program); err != nil {
		t.Fatal(err)
	}
	address := "" // the same for every server, and none that the system gives to clients
	for address == "" {
		free, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20_000+random.IntN(10_000)))
		if err == nil {
			address = free.Addr().String()
			free.Close()
		}
	}
	c, err := client.New(client.Options{Endpoint: "http://" + address + basePath, APIKey: "k"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()

	server := startServer(t, program, state, address)
	defer func() { server.kill() }()
	owner, err := c.CreateSandbox(ctx, wire.BoxCreate{Name: "owner", WaitForReady: true})
	if err != nil {
		t.Fatal(err)
	}
	counting, err := owner.Start(ctx, client.RunOptions{Command: "i=0; while [ ! -e stop ]; do echo $i; i=$((i+1)); sleep 0.01; done"})
	if err != nil {
		t.Fatal(err)
	}
	defer counting.Close()
	var reader sync.WaitGroup
	var text strings.Builder
	var readErr error
	reader.Go(func() {
		for {
			chunk, err := counting.Next(ctx)
			if err != nil {
				readErr = err
				return
			}
			if chunk.Gap > 0 {
				t.Errorf("a gap of %d bytes", chunk.Gap)
			}
			text.WriteString(chunk.Data)
		}
	})

	for round := range 50 {
		load, endLoad := context.WithCancel(ctx)
		var busy sync.WaitGroup
		for i := range 3 {
			busy.Go(func() { useSandbox(load, c, fmt.Sprintf("load-%d-%d", round, i)) })
		}
		time.Sleep(time.Duration(random.IntN(60)) * time.Millisecond) // the random moment
		server.kill()
		endLoad()
		busy.Wait()
		server = startServer(t, program, state, address)
		boxes, err := c.ListSandboxes(ctx)
		if err != nil {
			t.Fatalf("round %d: %v\n%s", round, err, server.output)
		}
		for _, box := range boxes {
			if box.Name == "owner" {
				if box.Status != wire.StatusReady {
					t.Fatalf("round %d: the owner is %s: %s", round, box.Status, box.StatusMessage)
				}
				continue
			}
			if err := box.Delete(ctx); err != nil {
				t.Errorf("round %d: deleting %s, which is %s: %v", round, box.Name, box.Status, err)
			}
		}
	}

	if err := owner.Upload(ctx, "stop", strings.NewReader("")); err != nil {
		t.Fatal(err)
	}
	reader.Wait()
	if readErr != io.EOF {
		t.Errorf("the stream ended with %v", readErr)
	}
	var want strings.Builder
	for i := 0; want.Len() < text.Len(); i++ {
		fmt.Fprintln(&want, i)
	}
	if text.String() != want.String() {
		t.Errorf("lost or repeated output: %d bytes", text.Len())
	}
	if err := owner.Delete(ctx); err != nil {
		t.Error(err)
	}
	if left := processesIn(state); len(left) > 0 {
		t.Errorf("processes of sandboxes are left: %v", left)
	}
	if folders, err := filepath.Glob(filepath.Join(state, "boxes", "*")); err != nil || len(folders) > 0 {
		t.Errorf("folders are left: %v, %v", folders, err)
	}
}
