//go:build unix

package ledger

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// This file defines the lock on a ledger, which the kernel takes away when the
// process that holds it ends, however it ends.

// errLocked is that somebody else holds a ledger: a run that lives, or whoever
// is collecting what a dead one left.
var errLocked = errors.New("it is in use")

func tryLock(file *os.File) error {
	err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return errLocked
	}
	return err
}
