package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// This file defines how a sandbox's folder is deleted, whatever its commands
// have put there.

// removeAll deletes dir and what is in it. It never leaves dir by a symbolic
// link, opens folders that were made unreadable, and stops with an error at
// anything that is mounted inside.
func removeAll(dir string) error {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	err = empty(root, dir)
	root.Close()
	if err != nil {
		return err
	}
	return ignoreMissing(os.Remove(dir))
}

// empty deletes what is in root; name is its path for errors.
func empty(root *os.Root, name string) error {
	self, err := root.Open(".")
	if err != nil {
		return err
	}
	entries, err := self.ReadDir(-1)
	self.Close()
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		errs = append(errs, remove(root, entry, filepath.Join(name, entry.Name())))
	}
	return errors.Join(errs...)
}

func remove(root *os.Root, entry fs.DirEntry, name string) error {
	if !entry.IsDir() {
		return ignoreMissing(root.Remove(entry.Name()))
	}
	sub, err := root.OpenRoot(entry.Name())
	if errors.Is(err, fs.ErrPermission) && root.Chmod(entry.Name(), 0o700) == nil {
		sub, err = root.OpenRoot(entry.Name())
	}
	if err != nil {
		return ignoreMissing(err)
	}
	defer sub.Close()
	if err := checkNotMounted(sub, name); err != nil {
		return err
	}
	if err := sub.Chmod(".", 0o700); err != nil {
		return err
	}
	if err := empty(sub, name); err != nil {
		return err
	}
	return ignoreMissing(root.Remove(entry.Name()))
}

func checkNotMounted(dir *os.Root, name string) error {
	self, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer self.Close()
	var st unix.Statx_t
	if err := unix.Statx(int(self.Fd()), "", unix.AT_EMPTY_PATH, 0, &st); err != nil {
		return fmt.Errorf("examine %s: %w", name, err)
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return fmt.Errorf("%s is a mount point and is left alone: unmount it and remove the sandbox again", name)
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
