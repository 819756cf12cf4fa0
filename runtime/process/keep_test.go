//go:build linux

package process_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/runtime/process"
)

// This file defines tests of what a sandbox keeps, over a stop and in a snapshot.

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestStopAndStart(t *testing.T) {
	dir := t.TempDir()
	spec := runtime.Spec{ID: "x", Dir: dir, Env: map[string]string{"A": "1"}}
	inst := create(t, spec)
	const start = "echo kept > file; (setsid bash -c 'echo $$ > pid; exec sleep 1000' &) ; while ! [ -s pid ]; do sleep 0.01; done"
	wantEnded := func() {
		t.Helper()
		text, _ := os.ReadFile(filepath.Join(dir, "home/pid"))
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		if stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); pid == 0 || err == nil && !strings.Contains(string(stat), ") Z ") {
			t.Errorf("process %d lives on: %s", pid, stat)
		}
		must(t, os.Remove(filepath.Join(dir, "home/pid")))
	}
	run(t, inst, start)
	for range 2 { // the second time there is nothing to do
		must(t, inst.Stop(t.Context()))
	}
	wantEnded()
	if _, err := inst.Dial(t.Context()); !errors.Is(err, runtime.ErrGone) {
		t.Errorf("Dial: %v", err)
	}
	for range 2 {
		must(t, inst.Start(t.Context()))
	}
	if got := run(t, inst, "cat file; echo $A"); got != "kept\n1\n" {
		t.Errorf("got %q", got)
	}

	// After a crash, which leaves processes; by another process's instance.
	run(t, inst, start)
	daemon, err := runtime.ReadProc(dir)
	must(t, err)
	must(t, daemon.Signal(syscall.SIGKILL))
	must(t, daemon.Wait(t.Context()))
	again, err := process.New(process.Options{}).Adopt(t.Context(), spec)
	if !errors.Is(err, runtime.ErrGone) {
		t.Errorf("Adopt: %v", err)
	}
	must(t, again.Start(t.Context()))
	wantEnded()
	if got := run(t, inst, "cat file; echo $A"); got != "kept\n1\n" {
		t.Errorf("got %q", got)
	}

	// A start that fails keeps the files.
	must(t, again.Stop(t.Context()))
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := again.Start(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	must(t, again.Start(t.Context()))
	if got := run(t, again, "cat file"); got != "kept\n" {
		t.Errorf("got %q", got)
	}
	must(t, remove(t, again))
	if err := again.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "was removed") {
		t.Errorf("got %v", err)
	}
	must(t, again.Stop(t.Context()))
}

func TestSnapshot(t *testing.T) {
	inst := create(t, runtime.Spec{ID: "x", Dir: t.TempDir()})
	run(t, inst, "mkdir -p a/b; echo text > a/b/file; ln a/b/file hard; ln -s / link; mkfifo fifo; chmod 750 a/b; echo gone > gone; rm gone")
	dst := filepath.Join(t.TempDir(), "snapshot")
	must(t, inst.Snapshot(t.Context(), dst))
	run(t, inst, "echo later > a/b/file; echo later > later")
	for _, stopped := range []bool{false, true} {
		copied := create(t, runtime.Spec{ID: "y", Dir: t.TempDir(), Snapshot: dst})
		if got := run(t, copied, "cat a/b/file; stat -c %h:%a hard a/b; readlink link; ls; echo other > a/b/file"); got != "text\n2:644\n2:750\n/\na\nfifo\nhard\nlink\n" {
			t.Errorf("got %q", got)
		}
		dst = filepath.Join(t.TempDir(), "again")
		run(t, copied, "echo text > hard")
		if stopped {
			must(t, copied.Stop(t.Context()))
		}
		must(t, copied.Snapshot(t.Context(), dst))
	}
	if got := run(t, inst, "cat a/b/file"); got != "later\n" {
		t.Errorf("got %q", got)
	}

	if err := inst.Snapshot(t.Context(), dst); !errors.Is(err, os.ErrExist) {
		t.Errorf("to a folder that exists: %v", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	failed := filepath.Join(t.TempDir(), "snapshot")
	if err := inst.Snapshot(cancelled, failed); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	wantMissing(t, failed)
	must(t, remove(t, inst))
	if err := inst.Snapshot(t.Context(), failed); err == nil {
		t.Error("there is a snapshot of a removed sandbox")
	}
	wantMissing(t, failed)

	must(t, runtime.WriteOrigin(dst, runtime.Origin{Runtime: "namespace"}))
	_, err := process.New(process.Options{}).Create(t.Context(), runtime.Spec{ID: "z", Dir: t.TempDir(), Snapshot: dst})
	if _, ok := errors.AsType[*runtime.Unsupported](err); !ok {
		t.Errorf("of another runtime: %v", err)
	}
}

func TestMountsAreRefused(t *testing.T) {
	spec := runtime.Spec{ID: "x", Dir: t.TempDir(), Mounts: []runtime.Mount{{Source: t.TempDir(), Target: "/data"}}}
	_, err := process.New(process.Options{}).Create(t.Context(), spec)
	if u, ok := errors.AsType[*runtime.Unsupported](err); !ok || !strings.Contains(u.Error(), "no mounts") {
		t.Errorf("got %v", err)
	}
}
