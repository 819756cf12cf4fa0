//go:build linux

package daemon

import (
	"fmt"
	"runtime"
	"syscall"
)

// This file defines what the daemon has to do with the limits that hold the
// sandbox it is in.

// Bounds are what whoever places a daemon has prepared. Each part may be missing.
type Bounds struct {
	Enter   func() error  // takes a thread into the limits of commands, for good; called by one that starts nothing else
	Started func(pid int) // is told of each command, at once after its start
	Kills   func() int64  // how many processes of the sandbox were killed so far for want of memory
	Memory  int64         // bytes that the sandbox may take; 0 is no limit
}

// kills is how many processes were killed, as far as that is known.
func (b *Bounds) kills() int64 {
	if b.Kills == nil {
		return 0
	}
	return b.Kills()
}

// outOfMemory is the reason of a command's end, if that is it.
func (b *Bounds) outOfMemory() string {
	if b.Memory == 0 {
		return "killed: out of memory"
	}
	return fmt.Sprintf("killed: out of memory (limit %s)", size(b.Memory))
}

// size writes a number of bytes with the largest unit that divides it.
func size(bytes int64) string {
	units := []string{"", "Ki", "Mi", "Gi", "Ti"}
	i := 0
	for ; i < len(units)-1 && bytes%1024 == 0; i++ {
		bytes /= 1024
	}
	return fmt.Sprint(bytes, units[i])
}

// forkExec starts a process, as syscall.ForkExec does.
type forkExec func(path string, argv []string, attr *syscall.ProcAttr) (pid int, err error)

// starter is the thread that starts all commands where they are to be born into
// limits, which hold a thread and what it starts.
type starter struct {
	calls chan func()
}

// run is the thread. It tells whether it could enter, and then starts what it is
// told to until quit is closed.
func (s *starter) run(enter func() error, entered chan<- error, quit <-chan struct{}) {
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	err := enter()
	entered <- err
	if err != nil {
		return
	}
	for {
		select {
		case call := <-s.calls:
			call()
		case <-quit:
			return
		}
	}
}

func (s *starter) forkExec(path string, argv []string, attr *syscall.ProcAttr) (pid int, err error) {
	done := make(chan struct{})
	s.calls <- func() {
		defer close(done)
		pid, err = syscall.ForkExec(path, argv, attr)
	}
	<-done
	return pid, err
}
