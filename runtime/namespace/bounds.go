//go:build linux

package namespace

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/daemon"
)

// This file defines what the daemon does for the limits of its sandbox, by files
// of the groups that its maker has opened: it could not itself.

// groupFiles is how many there are.
func (o order) groupFiles() int {
	n := o.Commands
	if o.Kills {
		n++
	}
	return n
}

// bounds is for the daemon.
func (o order) bounds() daemon.Bounds {
	b := daemon.Bounds{Memory: o.Limits.Memory}
	if o.Commands > 0 {
		b.Enter = func() error {
			for i := range o.Commands {
				if _, err := unix.Write(firstFreeFD+i, []byte("0")); err != nil { // the thread that writes
					return fmt.Errorf("enter the group of commands: %w", err)
				}
			}
			return nil
		}
	}
	if o.Kills {
		b.Kills = func() int64 {
			text := make([]byte, 4096)
			n, _ := unix.Pread(firstFreeFD+o.Commands, text, 0)
			return killsIn(string(text[:max(n, 0)]))
		}
	}
	b.Started = o.started
	return b
}

// started does what can be done about a command only now, as far as it can: it is
// too late for one that is in a hurry.
func (o order) started(pid int) {
	if o.Kills {
		// The kernel is to kill what asks for too much, and not who tells of it.
		os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("1000"), 0)
	} else if most := uint64(o.Limits.Memory); most > 0 {
		// Of each process, and without what it only reserves.
		unix.Prlimit(pid, unix.RLIMIT_DATA, &unix.Rlimit{Cur: most, Max: most}, nil)
	}
	if most := uint64(o.Pids); most > 0 {
		// From Linux 5.14 on, those in the sandbox are counted, and not all of the user.
		unix.Prlimit(pid, unix.RLIMIT_NPROC, &unix.Rlimit{Cur: most, Max: most}, nil)
	}
}

// killsIn is the number behind oom_kill in the text of memory.events or of
// memory.oom_control.
func killsIn(text string) int64 {
	for line := range strings.Lines(text) {
		if number, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			n, _ := strconv.ParseInt(number, 10, 64)
			return n
		}
	}
	return 0
}
