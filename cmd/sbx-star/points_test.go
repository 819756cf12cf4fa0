//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/internal/fakeserver"
)

// This file ends workflows at the points at which they wait for their server, by
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

// moving moves files and bytes, in tasks too, and comes to its end.
const moving = `
def task(sb):
    own = sandbox()
    own.run("echo in a task")
    return own.name != sb.name

def main():
    sb = sandbox()
    sb.upload(host.path("src"), "up")
    sb.upload(host.path("large"), "large")
    tasks = [spawn(task, sb)]
    print(parallel(lambda n: sb.run("exit %d" % n).exit_code, [1, 2, 3]))
    sb.download("up", host.path("down"))
    sb.download("large", host.path("copy"))
    t = sb.tunnel(9, local_port = 0)
    attempt(t.check)
    sb.service(9)
    pool("warm", template("tpl", image = "host", ephemeral = True), replicas = 1, ephemeral = True)
    print(tasks[0].result(), "last")
`

func TestEveryPoint(t *testing.T) {
	for name, test := range map[string]struct {
		source string
		signal syscall.Signal
		step   int // which of them: every one, or every third
	}{
		"interrupted":             {everything, syscall.SIGINT, 1},
		"killed":                  {everything, syscall.SIGKILL, 1},
		"interrupted in transfer": {moving, syscall.SIGINT, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const mostPoints = 200
			last := 0
			for n := 1 + rand.IntN(test.step); n <= mostPoints && endAt(t, test.source, n, test.signal); n += test.step {
				last = n
			}
			if last < 20*test.step || last+test.step > mostPoints {
				t.Errorf("there were %d points", last)
			}
			t.Logf("%d points", last)
		})
	}
}

// endAt runs a workflow up to the nth point and ends it there. It reports false
// if there is no such point.
func endAt(t *testing.T, source string, n int, signal syscall.Signal) bool {
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
	state, dir := t.TempDir(), t.TempDir()
	for path, size := range map[string]int64{"src/deep/small": 10, "large": 9 << 20} { // which moves by itself
		path = filepath.Join(dir, path)
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := errors.Join(os.WriteFile(path, nil, 0o644), os.Truncate(path, size)); err != nil {
			t.Fatal(err)
		}
	}
	started := func(args ...string) (*exec.Cmd, *notice) {
		cmd := commandIn(t, state, args...)
		cmd.Dir = dir
		cmd.Env = append(cmd.Env, "SBX_STAR_ENDPOINT="+fake.URL(), "SBX_STAR_API_KEY=k")
		output := &notice{w: new(bytes.Buffer), seen: make(chan struct{})}
		cmd.Stdout, cmd.Stderr = output, output
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, output
	}
	cmd, output := started("-c", source)
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
	if halves, _ := filepath.Glob(filepath.Join(dir, "*", ".sbx-*")); len(halves) > 0 {
		t.Errorf("point %d, %s: left of a download: %v", n, point, halves)
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
