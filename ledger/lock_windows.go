package ledger

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// This file defines the lock on a ledger, which the system takes away when the
// process that holds it ends. It lies far behind the text, which others read.

var errLocked = errors.New("it is in use")

func tryLock(file *os.File) error {
	err := windows.LockFileEx(windows.Handle(file.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0,
		&windows.Overlapped{OffsetHigh: 1 << 30})
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return errLocked
	}
	return err
}
