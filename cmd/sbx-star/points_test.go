//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/internal/fakeserver"
)

// This file ends a workflow at every point at which it waits for its server, by
// Ctrl-C and by kill -9, and looks for what is left.

// everything creates one of each, in several ways, and comes to its end.
const everything = `
def inner(sb):
    sb.write("in.txt", "hello")
    defer(lambda: sb.run("echo bye"))
    for chunk in sb.run("cat in.txt; echo there", wait = False):
        print(chunk.data, end = "")

def main():
    volume("data", size = "1Gi", ephemeral = True)
    template("tpl", image = "host", ephemeral = True)
    using(sandbox("tpl", name = "chosen"), inner)
    sb = sandbox()
    print(sb.run("echo last").stdout, end = "")
`

func TestEveryPoint(t *testing.T) {
	const mostPoints = 200
	for name, signal := range map[string]syscall.Signal{"interrupted": syscall.SIGINT, "killed": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			points := 0
			for n := 1; n <= mostPoints && endAt(t, n, signal); n++ {
				points = n
			}
			if points < 20 || points == mostPoints {
				t.Errorf("there were %d points", points)
			}
			t.Logf("%d points", points)
		})
	}
}

// endAt runs everything up to the nth point and ends it there. It reports false
// if there is no such point.
func endAt(t *testing.T, n int, signal syscall.Signal) bool {
	t.Helper()
	fake, err := fakeserver.Start(fakeserver.Options{APIKey: "k", Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := fake.Close(); err != nil {
			t.Error(err)
		}
	}()
	point := fake.BlockAt(n)
	state := t.TempDir()
	started := func(args ...string) (*exec.Cmd, *notice) {
		cmd := commandIn(t, state, args...)
		cmd.Env = append(cmd.Env, "SBX_STAR_ENDPOINT="+fake.URL(), "SBX_STAR_API_KEY=k")
		output := &notice{w: new(bytes.Buffer), seen: make(chan struct{})}
		cmd.Stdout, cmd.Stderr = output, output
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, output
	}
	cmd, output := started("-c", everything)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait()
	}()
	select {
	case <-point.Reached():
	case <-ended:
		if !cmd.ProcessState.Success() || strings.Count(output.String(), "\n") != 2 {
			t.Errorf("without a signal: %v\n%s", cmd.ProcessState, output)
		}
		return false
	case <-time.After(time.Minute):
		cmd.Process.Kill()
		t.Fatalf("point %d: neither there nor ended\n%s", n, output)
	}
	cmd.Process.Signal(signal)
	if signal == syscall.SIGINT { // the server goes on when the signal is heard: a release waits for it
		for deadline := time.Now().Add(time.Minute); !strings.Contains(output.String(), "releasing what"); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				cmd.Process.Kill()
				t.Fatalf("point %d, %s: the signal is not heard\n%s", n, point, output)
			}
		}
		point.Release()
	}
	select {
	case <-ended:
	case <-time.After(time.Minute):
		cmd.Process.Kill()
		t.Fatalf("point %d, %s: it does not end\n%s", n, point, output)
	}
	if signal == syscall.SIGINT {
		mainEnded := strings.Contains(output.String(), "last\n")
		if code := cmd.ProcessState.ExitCode(); code != 130 && !(mainEnded && code == 0) {
			t.Errorf("point %d, %s: exit status %d\n%s", n, point, code, output)
		}
	} else {
		gc, said := started("gc")
		if err := gc.Wait(); err != nil {
			t.Errorf("point %d, %s: gc: %v\n%s", n, point, err, said)
		}
	}
	if left, err := fake.Left(); err != nil || len(left) > 0 {
		t.Errorf("point %d, %s: left on the server: %v %v\n%s", n, point, left, err, output)
	}
	if ledgers, _ := filepath.Glob(filepath.Join(state, "sbx-star", "runs", "*")); len(ledgers) > 0 {
		text, _ := os.ReadFile(ledgers[0])
		t.Errorf("point %d, %s: left in the ledger:\n%s\n%s", n, point, text, output)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for { // the daemon's processes end a moment after it
		count, err := fake.Processes()
		if err != nil || ctx.Err() != nil {
			t.Errorf("point %d, %s: %d processes are left: %v", n, point, count, err)
		}
		if count == 0 || err != nil || ctx.Err() != nil {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// commandIn is sbx-star with a state folder of its own.
func commandIn(t *testing.T, state string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "sbx-star") // the name makes this binary be the command
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(link, args...)
	cmd.Env = append(os.Environ(), fmt.Sprint("XDG_STATE_HOME=", state))
	return cmd
}
