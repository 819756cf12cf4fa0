//go:build linux

// Package tree deletes and copies folders whose content others made, perhaps with
// ill will, and perhaps while it changes: nothing leaves the folder by a link or
// a mount, nothing blocks, and no mode is in the way of what the caller owns.
package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// This file defines how a folder is deleted, whatever has been made of it:
// without following a link, without crossing into anything that is mounted there,
// through folders whose mode forbids it, and at any depth with few descriptors.

// maxDepth is how many folders are open at a time. What lies deeper is moved up.
const maxDepth = 64

// Remove deletes the folder dir and what is in it. One that does not exist is no
// error. What cannot be deleted is left and named.
func Remove(ctx context.Context, dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	top := os.NewFile(uintptr(fd), dir)
	defer top.Close()
	r := &remover{ctx: ctx, top: top}
	if err := r.empty(top, 0); err != nil {
		return err
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

type remover struct {
	ctx   context.Context
	top   *os.File
	moved int // folders moved up to top
}

// empty deletes all that is in dir. It goes on after a failure, so that as little
// as possible is left, and returns the first one.
func (r *remover) empty(dir *os.File, depth int) (first error) {
	for first == nil {
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
		// Deleting while listing may skip entries, so this ends when there are none.
		any := false
		for {
			names, err := dir.Readdirnames(1000)
			for _, name := range names {
				any = true
				if err := r.remove(dir, name, depth); err != nil && first == nil {
					first = err
				}
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err == nil {
				err = r.ctx.Err()
			}
			if err != nil {
				return err
			}
		}
		if !any {
			return nil
		}
	}
	return first
}

func (r *remover) remove(dir *os.File, name string, depth int) error {
	fail := func(op string, err error) error {
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		return &os.PathError{Op: op, Path: filepath.Join(dir.Name(), name), Err: err}
	}
	fd := int(dir.Fd())
	err := unix.Unlinkat(fd, name, 0)
	if !errors.Is(err, unix.EISDIR) {
		return fail("unlink", err)
	}
	sub, err := openDir(fd, name, dir.Name())
	if errors.Is(err, unix.EXDEV) {
		return fmt.Errorf("%s is a mount point and is left alone: unmount it and try again", filepath.Join(dir.Name(), name))
	}
	if err != nil {
		return fail("open", err)
	}
	defer sub.Close()
	if depth == maxDepth {
		return fail("move up", r.moveUp(fd, name))
	}
	if err := r.empty(sub, depth+1); err != nil {
		return err
	}
	return fail("rmdir", unix.Unlinkat(fd, name, unix.AT_REMOVEDIR))
}

// moveUp moves the folder name in dir to top, where it will be found again.
func (r *remover) moveUp(dir int, name string) error {
	for {
		r.moved++
		err := unix.Renameat(dir, name, int(r.top.Fd()), fmt.Sprintf(".deep-%d", r.moved))
		if !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) { // of an earlier removal
			return err
		}
	}
}

// openDir opens the folder name in the folder parent, and gives its owner every
// right to it. A mount point is EXDEV.
func openDir(parent int, name, parentName string) (*os.File, error) {
	const inside = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat2(parent, name, &unix.OpenHow{Flags: flags, Resolve: inside})
	if errors.Is(err, unix.EACCES) {
		var handle int
		if handle, err = unix.Openat2(parent, name, &unix.OpenHow{Flags: flags | unix.O_PATH, Resolve: inside}); err != nil {
			return nil, err
		}
		defer unix.Close(handle)
		if err := unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", handle), 0o700); err != nil {
			return nil, err
		}
		fd, err = unix.Openat(handle, ".", flags, 0)
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&0o700 != 0o700 {
		err = unix.Fchmod(fd, 0o700)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), filepath.Join(parentName, name)), nil
}
