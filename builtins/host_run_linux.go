package builtins

import "golang.org/x/sys/unix"

// This file defines how the end of a process is awaited without taking note of it.

// awaitExit returns when a child has ended; it can still be waited for.
func awaitExit(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return
		}
	}
}
