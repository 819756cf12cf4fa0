//go:build linux

package image

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// This file defines how a layer whose files were changed on disk is noticed.

// Sum returns what changes when anything in the folder dir does: it is made of the
// names, kinds, owners, sizes and times of all files. Among the times is the one
// that the kernel sets at every change, which no program can set back.
func Sum(dir *os.File) (string, error) {
	h := sha256.New()
	defer runtime.KeepAlive(dir)
	if err := sum(h, int(dir.Fd()), ""); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func sum(h hash.Hash, dir int, path string) error {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		size := st.Size
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			size = 0
		}
		fmt.Fprintf(h, "%q %o %d %d %d %d %d.%d %d.%d\n", name, st.Mode, st.Uid, st.Gid, size, st.Rdev,
			st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		sub, err := unix.Openat2(fd, name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: inside})
		if errors.Is(err, unix.EXDEV) {
			return fmt.Errorf("%s is a mount point", path+"/"+name)
		}
		if err != nil {
			return err
		}
		err = sum(h, sub, path+"/"+name)
		unix.Close(sub)
		if err != nil {
			return err
		}
		fmt.Fprintln(h, "..")
	}
	return nil
}
