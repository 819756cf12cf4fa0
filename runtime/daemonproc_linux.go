package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// This file defines the record by which a daemon's process is found again, by
// this process or by a later one, without ever taking another for it.

// Proc names one process of this machine for good: a number is given again
// after its process has ended, but not with the same start time in the same boot.
type Proc struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // in clock ticks since the boot
	Boot  string `json:"boot"`  // random id of the boot
}

// ProcOf describes the living process pid; one that has ended, though it may
// not have been waited for, is os.ErrProcessDone.
func ProcOf(pid int) (Proc, error) {
	p, ended, err := lookUp(pid)
	if err == nil && ended {
		err = os.ErrProcessDone
	}
	return p, err
}

// lookUp describes the process that has the number pid, and whether it has
// ended and only waits to be waited for.
func lookUp(pid int) (p Proc, ended bool, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return Proc{}, true, os.ErrProcessDone
	}
	if err != nil {
		return Proc{}, false, err
	}
	// The second field is the name in brackets, which may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return Proc{}, false, fmt.Errorf("/proc/%d/stat has only %d fields", pid, len(fields)+2)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return Proc{}, false, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Proc{}, false, err
	}
	ended = fields[0] == "Z" || fields[0] == "X"
	return Proc{PID: pid, Start: start, Boot: strings.TrimSpace(string(boot))}, ended, nil
}

// Alive reports whether the process runs; one that has ended but was not waited
// for yet does not.
func (p Proc) Alive() bool {
	now, err := ProcOf(p.PID)
	return err == nil && now == p
}

// Signal sends sig to the process and to no other; os.ErrProcessDone if it has
// ended and was waited for.
func (p Proc) Signal(sig syscall.Signal) error {
	fd, err := p.open()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	} else if err != nil {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

// Wait returns once the process has ended, or with the context's error. A child
// of this process is reaped, so nobody else must wait for it.
func (p Proc) Wait(ctx context.Context) error {
	fd, err := p.open()
	if errors.Is(err, os.ErrProcessDone) {
		p.reap()
		return nil
	}
	if err != nil {
		return err
	}
	// Not blocking, the descriptor is watched by the poller of package os: no
	// thread is held while waiting.
	unix.SetNonblock(fd, true)
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	err = conn.Read(func(fd uintptr) bool {
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("wait for process %d: %w", p.PID, err)
	}
	p.reap()
	return nil
}

// End asks the process to end by SIGTERM, makes it end by SIGKILL when grace is
// over, and waits for it as Wait does. One that has ended already is no error.
func (p Proc) End(ctx context.Context, grace time.Duration) error {
	if err := p.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	gentle, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	err := p.Wait(gentle)
	if err == nil || gentle.Err() == nil {
		return err
	}
	if err := p.Signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return p.Wait(ctx)
}

// open returns a descriptor of the process, which stays with it whatever
// becomes of its number.
func (p Proc) open() (int, error) {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return -1, os.ErrProcessDone
	}
	if err != nil {
		return -1, fmt.Errorf("open process %d: %w", p.PID, err)
	}
	// A dying process looks ended as soon as its first thread is, with others
	// still at work; so only the descriptor is asked for its end.
	if now, _, err := lookUp(p.PID); err != nil || now != p {
		unix.Close(fd)
		return -1, os.ErrProcessDone
	}
	return fd, nil
}

// reap frees the number of the ended process if it was a child of this one.
func (p Proc) reap() {
	if now, ended, err := lookUp(p.PID); err != nil || !ended || now != p {
		return // by now the number may be another child's
	}
	unix.Wait4(p.PID, nil, unix.WNOHANG, nil)
}

const procFile = "daemon.json"

// WriteProc records p as the daemon of the sandbox in dir. From then on and up to
// ForgetProc the sandbox is whole, whether or not the daemon lives.
func WriteProc(dir string, p Proc) error {
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, procFile)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// ReadProc returns what WriteProc recorded; where there is no record the error
// is ErrGone.
func ReadProc(dir string) (Proc, error) {
	data, err := os.ReadFile(filepath.Join(dir, procFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Proc{}, ErrGone
	}
	if err != nil {
		return Proc{}, err
	}
	var p Proc
	if err := json.Unmarshal(data, &p); err != nil || p.PID <= 0 {
		return Proc{}, fmt.Errorf("%s is damaged: remove the sandbox", filepath.Join(dir, procFile))
	}
	return p, nil
}

// ForgetProc deletes what WriteProc recorded, if there is anything, before the
// sandbox's files are deleted.
func ForgetProc(dir string) error {
	if err := os.Remove(filepath.Join(dir, procFile)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
