//go:build linux

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// This file checks that a run on the embedded server gives back all it took,
// from inside the process that ran it.

// holdings is what this process, and sandboxes below a state folder, hold.
func holdings(t *testing.T, state string) map[string][]string {
	t.Helper()
	held := map[string][]string{}
	for _, pid := range processesIn(state) {
		held["processes"] = append(held["processes"], strconv.Itoa(pid))
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && !strings.HasPrefix(target, "anon_inode:") {
			kind, _, _ := strings.Cut(target, ":[") // sockets, pipes and namespaces have numbers
			held["descriptors"] = append(held["descriptors"], kind)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, state) {
			held["mounts"] = append(held["mounts"], line)
		}
	}
	filepath.WalkDir(state, func(path string, _ os.DirEntry, err error) error {
		held["files"] = append(held["files"], path)
		return err
	})
	for _, list := range held {
		slices.Sort(list)
	}
	return held
}

func TestNothingIsLeft(t *testing.T) {
	base := t.TempDir()
	t.Setenv("XDG_STATE_HOME", base)
	state := filepath.Join(base, "sbx-star")
	runOnce := func(want int, args ...string) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		if got := run(args, strings.NewReader(""), &stdout, &stderr); got != want {
			t.Fatalf("%v: exit status %d, want %d\n%s%s", args, got, want, &stdout, &stderr)
		}
	}
	// The first run makes the state folder, and the poller of package net.
	runOnce(0, "--local", "-c", "sandbox()")
	before, goroutines := holdings(t, state), runtime.NumGoroutine()

	runOnce(0, "--local", "../../examples/hello.star")
	runOnce(0, "--local", "../../examples/cleanup.star")
	runOnce(1, "--local", "-c", `sandbox().run("setsid sleep 1000 & exit 3", check = True)`)
	runOnce(1, "--local", "-c", `sandbox().run("sleep 1000", timeout = 1)`)
	runOnce(124, "--local", "--timeout", "1", "-c", `sandbox().run("sleep 1000", timeout = 0)`)
	runOnce(2, "--local", "../../examples/hello.star", "--nope")

	after := holdings(t, state)
	for kind := range before {
		if !slices.Equal(before[kind], after[kind]) {
			t.Errorf("%s: %q before, %q after", kind, before[kind], after[kind])
		}
	}
	for kind := range after {
		if _, ok := before[kind]; !ok {
			t.Errorf("%s: none before, %q after", kind, after[kind])
		}
	}
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > goroutines; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			var stacks bytes.Buffer
			pprof.Lookup("goroutine").WriteTo(&stacks, 1)
			t.Fatalf("%d goroutines before, %d after:\n%s", goroutines, runtime.NumGoroutine(), &stacks)
		}
	}
}
