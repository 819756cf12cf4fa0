//go:build linux || darwin

package server

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// This file defines the lock that keeps processes apart.

// tryLock takes the lock of an open file unless another open file has it. It is
// given back when the file is closed or unlocked, or its process ends however
// that happens.
func tryLock(f *os.File) (bool, error) {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EWOULDBLOCK):
			return false, nil
		case !errors.Is(err, unix.EINTR):
			return false, &os.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
	}
}

func unlock(f *os.File) { unix.Flock(int(f.Fd()), unix.LOCK_UN) }
