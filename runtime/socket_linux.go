package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// This file defines how a runtime and the daemon that it placed find each
// other: a Unix socket in the sandbox's folder.

const socketName = "daemon.sock"

// ListenUnix binds <dir>/daemon.sock, which only the caller's user may connect
// to. The file is not removed when the listener is closed: it goes with dir.
// The path may be of any length.
func ListenUnix(dir string) (*net.UnixListener, error) {
	var ln *net.UnixListener
	err := throughFD(dir, func(path string) error {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			return err
		}
		l.SetUnlinkOnClose(false)
		if err := os.Chmod(path, 0o600); err != nil {
			l.Close()
			return err
		}
		ln = l
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", filepath.Join(dir, socketName), innermost(err))
	}
	return ln, nil
}

// RemoveUnix deletes the socket that an ended daemon left in dir, if it did.
func RemoveUnix(dir string) error {
	if err := os.Remove(filepath.Join(dir, socketName)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// DialUnix connects to <dir>/daemon.sock. Where nobody listens the error is
// ErrGone.
func DialUnix(ctx context.Context, dir string) (net.Conn, error) {
	var conn net.Conn
	err := throughFD(dir, func(path string) (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "unix", path)
		return err
	})
	switch {
	case err == nil:
		return conn, nil
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return nil, fmt.Errorf("%w: %s: %w", ErrGone, filepath.Join(dir, socketName), innermost(err))
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("connect to %s: %w", filepath.Join(dir, socketName), innermost(err))
}

// throughFD calls use with a short name for dir/daemon.sock: the address of a
// Unix socket holds 107 bytes, and state folders can be deeper.
func throughFD(dir string, use func(path string) error) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return use(fmt.Sprintf("/proc/self/fd/%d/%s", fd, socketName))
}

// innermost strips the short name of throughFD from an error's text.
func innermost(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
