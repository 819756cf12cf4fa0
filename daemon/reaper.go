//go:build linux

package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// This file defines the one place where processes are started and waited for.

// reaper waits for every child of this process, those that it started and the
// orphans that came to it. The lock is held from before a fork until its number
// is known, and whenever a status is taken, so that no status is lost and no
// signal reaches a number that was given away again.
type reaper struct {
	mu       sync.Mutex
	children map[int]chan<- syscall.WaitStatus // of those that start started
	ending   bool
	died     chan os.Signal // holds one token: some may have ended
	reaped   chan struct{}  // holds one token: some have been waited for
	quit     chan struct{}
	forkExec forkExec
}

func newReaper() *reaper {
	r := &reaper{
		children: make(map[int]chan<- syscall.WaitStatus),
		died:     make(chan os.Signal, 1),
		reaped:   make(chan struct{}, 1),
		quit:     make(chan struct{}),
		forkExec: syscall.ForkExec,
	}
	signal.Notify(r.died, unix.SIGCHLD)
	return r
}

// run takes the status of every child that ends, until end has found none left.
// To wait in the kernel would keep the scheduler's clock ticking, on the processor
// that the command runs on.
func (r *reaper) run() {
	defer signal.Stop(r.died)
	for {
		select {
		case <-r.died: // one, or several
			r.collect()
			notify(r.reaped)
		case <-r.quit:
			return
		}
	}
}

func (r *reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if c, ok := r.children[pid]; ok {
			delete(r.children, pid)
			c <- status
		}
	}
}

// start executes path as the leader of a session, and so of a process group, of
// its own. The channel gets its status once.
func (r *reaper) start(path string, argv []string, attr *syscall.ProcAttr) (pid int, ended <-chan syscall.WaitStatus, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ending {
		return 0, nil, errEnding
	}
	attr.Sys.Setsid = true
	attr.Sys.Pdeathsig = syscall.SIGKILL // a daemon that was itself killed leaves less behind
	pid, err = r.forkExec(path, argv, attr)
	if err != nil {
		return 0, nil, err
	}
	c := make(chan syscall.WaitStatus, 1)
	r.children[pid] = c
	return pid, c, nil
}

// signal sends sig to the process group that start made, and reports whether its
// leader still ran.
func (r *reaper) signal(pid int, sig syscall.Signal) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.children[pid]; !ok {
		return false
	}
	syscall.Kill(-pid, sig)
	return true
}

var errEnding = errors.New("the sandbox is being stopped")

// end starts nothing more, kills every descendant, waits until none is left,
// and ends run.
func (r *reaper) end(ctx context.Context) error {
	r.mu.Lock()
	r.ending = true
	r.mu.Unlock()
	defer close(r.quit)
	// Killing the children is enough: theirs become ours, and their turn comes.
	for r.killChildren() {
		select {
		case <-r.reaped:
		case <-time.After(20 * time.Millisecond): // a child forked while it was looked for
		case <-ctx.Done():
			return errors.New("some processes do not end")
		}
	}
	return nil
}

// killChildren reports whether there were any.
func (r *reaper) killChildren() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, nil)
	if errors.Is(err, unix.ECHILD) {
		return false
	}
	self := os.Getpid()
	if self == 1 {
		syscall.Kill(-1, syscall.SIGKILL)
		return true
	}
	for _, pid := range childrenOf(self) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	return true
}

func childrenOf(parent int) []int {
	var children []int
	proc, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer proc.Close()
	names, _ := proc.Readdirnames(-1)
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		// Behind the name, which may hold anything: state and parent.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			children = append(children, pid)
		}
	}
	return children
}

// notify puts a token into a channel that holds one.
func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
