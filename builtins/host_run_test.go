//go:build unix

package builtins

import (
	"context"
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// This file tests that a command on this machine leaves nothing behind.

// gone waits until a process has ended.
func gone(t *testing.T, pid string) {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(pid))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); syscall.Kill(n, 0) == nil; time.Sleep(5 * time.Millisecond) {
		if isZombie(n) {
			return // of whoever adopts orphans here
		}
		if time.Now().After(deadline) {
			syscall.Kill(n, syscall.SIGKILL)
			t.Fatalf("process %d lives on", n)
		}
	}
}

func isZombie(pid int) bool {
	state, _ := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
	return strings.HasPrefix(strings.TrimSpace(string(state)), "Z")
}

func TestBackgroundIsEnded(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "trap '' TERM; sleep 1000 & echo $!")
	result, err := runProcess(t.Context(), cmd, func(int, string) error { return nil })
	if err != nil || result.ExitCode != 0 {
		t.Fatal(result, err)
	}
	gone(t, result.Stdout)
}

func TestCancelEndsTheGroup(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	var pids string
	cmd := exec.Command("/bin/sh", "-c", "sleep 1000 & echo $!; wait; echo not reached")
	result, err := runProcess(ctx, cmd, func(_ int, piece string) error {
		pids += piece
		cancel(cause)
		return nil
	})
	if !errors.Is(err, cause) || result.Stdout != pids {
		t.Fatal(result, err)
	}
	gone(t, pids)
}

// A program that has left the group and holds its output open is not waited for.
func TestEscapedProgramIsNotWaitedFor(t *testing.T) {
	setsid, err := exec.LookPath("setsid")
	if err != nil {
		t.Skip("there is no setsid to leave a group with")
	}
	cmd := exec.Command("/bin/sh", "-c", setsid+" sleep 1000 & echo $!")
	result, err := runProcess(t.Context(), cmd, func(int, string) error { return nil })
	if err != nil || result.ExitCode != 0 {
		t.Fatal(result, err)
	}
	if pid, err := strconv.Atoi(strings.TrimSpace(result.Stdout)); err == nil {
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

func TestWholeRunes(t *testing.T) {
	for text, want := range map[string]int{"": 0, "a": 1, "é": 2, "é"[:1]: 0, "a€"[:3]: 1, "\xff": 1, "\x80\x80\x80\x80\x80": 5, "😀"[:3]: 0} {
		if got := wholeRunes([]byte(text)); got != want {
			t.Errorf("%q: got %d, want %d", text, got, want)
		}
	}
}
