//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package builtins

import "golang.org/x/sys/unix"

// This file defines how the end of a process is awaited without taking note of it.

// awaitExit returns when a child has ended; it can still be waited for.
func awaitExit(pid int) {
	queue, err := unix.Kqueue()
	if err != nil {
		return
	}
	defer unix.Close(queue)
	var event unix.Kevent_t
	unix.SetKevent(&event, pid, unix.EVFILT_PROC, unix.EV_ADD|unix.EV_ONESHOT)
	event.Fflags = unix.NOTE_EXIT
	for {
		n, err := unix.Kevent(queue, []unix.Kevent_t{event}, make([]unix.Kevent_t, 1), nil)
		if n > 0 || err != unix.EINTR {
			return
		}
	}
}
