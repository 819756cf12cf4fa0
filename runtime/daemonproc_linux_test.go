package runtime

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const patience = 30 * time.Second

// spawn starts a shell whose stdin stays open and empty, and does not wait for it.
func spawn(t *testing.T, script string) (p Proc, says *bufio.Reader) {
	t.Helper()
	in, hold, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	t.Cleanup(func() { hold.Close() })
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	t.Cleanup(func() { r.Close() })
	child, err := os.StartProcess("/bin/sh", []string{"sh", "-c", script}, &os.ProcAttr{Files: []*os.File{in, w, os.Stderr}})
	if err != nil {
		t.Fatal(err)
	}
	p, err = ProcOf(child.Pid)
	child.Release()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // a test that failed before its end
		p.Signal(syscall.SIGKILL)
		p.Wait(context.Background())
	})
	return p, bufio.NewReader(r)
}

func (p Proc) wantGone(t *testing.T) {
	t.Helper()
	if p.Alive() {
		t.Errorf("process %d is alive", p.PID)
	}
	if err := p.Signal(0); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("a signal to it: %v", err)
	}
	if err := p.Wait(t.Context()); err != nil {
		t.Errorf("waiting again: %v", err)
	}
	if _, err := os.Stat("/proc/" + strconv.Itoa(p.PID)); err == nil {
		t.Errorf("process %d was not reaped", p.PID)
	}
}

func TestProc(t *testing.T) {
	p, says := spawn(t, "echo ready; read never")
	says.ReadString('\n')
	if !p.Alive() || p.Signal(0) != nil {
		t.Error("the process does not live")
	}
	waited := make(chan error, 1)
	go func() { waited <- p.Wait(t.Context()) }()
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := <-waited; err != nil {
		t.Error(err)
	}
	p.wantGone(t)
}

func TestProcWaitIsCancelled(t *testing.T) {
	p, _ := spawn(t, "read never")
	ctx, cancel := context.WithCancel(t.Context())
	waited := make(chan error, 1)
	go func() { waited <- p.Wait(ctx) }()
	cancel()
	if err := <-waited; !errors.Is(err, context.Canceled) || !p.Alive() {
		t.Errorf("got %v, alive %t", err, p.Alive())
	}
}

// One that has ended is not alive, though nobody has waited for it.
func TestProcEndedButNotReaped(t *testing.T) {
	p, says := spawn(t, "echo ready; read never")
	says.ReadString('\n')
	p.Signal(syscall.SIGKILL)
	for end := time.Now().Add(patience); p.Alive(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the process does not end")
		}
	}
	if _, err := os.Stat("/proc/" + strconv.Itoa(p.PID)); err != nil {
		t.Errorf("somebody has waited for it: %v", err)
	}
	if err := p.End(t.Context(), 0); err != nil {
		t.Error(err)
	}
	p.wantGone(t)
}

// End is patient with a process that ends by itself, and not with one that does not.
func TestProcEnd(t *testing.T) {
	p, says := spawn(t, "trap 'echo bye; exit' TERM; echo ready; while :; do sleep 0.01; done")
	says.ReadString('\n')
	if err := p.End(t.Context(), patience); err != nil {
		t.Error(err)
	}
	if said, _ := says.ReadString('\n'); said != "bye\n" {
		t.Errorf("it said %q", said)
	}
	p.wantGone(t)

	p, says = spawn(t, "trap '' TERM; echo ready; while :; do sleep 0.01; done")
	says.ReadString('\n')
	if err := p.End(t.Context(), 50*time.Millisecond); err != nil {
		t.Error(err)
	}
	p.wantGone(t)
	if err := p.End(t.Context(), patience); err != nil {
		t.Errorf("again: %v", err)
	}
}

// Another process is waited for too, and not reaped.
func TestProcOfOthers(t *testing.T) {
	_, says := spawn(t, "sleep 1000 & echo $!; wait; read never")
	line, _ := says.ReadString('\n')
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	p, err := ProcOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.End(t.Context(), patience); err != nil {
		t.Error(err)
	}
	if p.Alive() {
		t.Error("it lives")
	}
}

// A number that was given to another process is not taken for the first one.
func TestProcIsNotItsNumber(t *testing.T) {
	p, says := spawn(t, "echo ready; read never")
	says.ReadString('\n')
	for _, other := range []Proc{{p.PID, p.Start - 1, p.Boot}, {p.PID, p.Start, "another boot"}} {
		if other.Alive() {
			t.Errorf("%v lives", other)
		}
		if err := other.End(t.Context(), 0); err != nil {
			t.Error(err)
		}
	}
	if !p.Alive() {
		t.Error("the process was ended in place of another")
	}
	// Nor is an ended child reaped in place of another.
	cmd := exec.Command("true")
	cmd.Start()
	child, err := ProcOf(cmd.Process.Pid)
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	child.Start--
	child.Wait(t.Context())
	if err := cmd.Wait(); err != nil {
		t.Errorf("the child was reaped by another's wait: %v", err)
	}
}

func TestProcRecord(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadProc(dir); !errors.Is(err, ErrGone) {
		t.Errorf("no record: %v", err)
	}
	want, err := ProcOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := WriteProc(dir, want); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := ReadProc(dir); got != want || err != nil || !got.Alive() {
		t.Errorf("got %v, %v", got, err)
	}
	for _, text := range []string{"", "{", `{"pid":0}`, `{"pid":-1,"start":5}`} {
		os.WriteFile(filepath.Join(dir, "daemon.json"), []byte(text), 0o600)
		if _, err := ReadProc(dir); err == nil || !strings.Contains(err.Error(), "is damaged") {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := ProcOf(1 << 30); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("no such process: %v", err)
	}
}
