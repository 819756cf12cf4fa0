//go:build linux

package namespace

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/runtime"
)

// This file defines how folders of the host appear in a sandbox. They are bound
// as they are: all sandboxes of one user have the same ids outside, so what one of
// them writes belongs to the same user in another one, and to nobody else on the
// host.

// sortMounts checks what is to be mounted, and puts the outer ones first.
func sortMounts(mounts []runtime.Mount) ([]runtime.Mount, error) {
	mounts = slices.Clone(mounts)
	slices.SortFunc(mounts, func(a, b runtime.Mount) int { return strings.Compare(a.Target, b.Target) })
	for i, m := range mounts {
		for _, path := range []string{m.Source, m.Target} {
			if !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.Contains(path, "\x00") {
				return nil, fmt.Errorf("can't mount %q at %q: both have to be absolute paths in their shortest form", m.Source, m.Target)
			}
		}
		top, _, _ := strings.Cut(m.Target[1:], "/")
		if slices.Contains([]string{"", "proc", "dev", "sys"}, top) {
			return nil, fmt.Errorf("can't mount anything at %s: that belongs to the sandbox itself", m.Target)
		}
		if i > 0 && mounts[i-1].Target == m.Target {
			return nil, fmt.Errorf("can't mount two folders at %s", m.Target)
		}
	}
	return mounts, nil
}

// mountFlags are those of a mount of a folder of the host.
func mountFlags(m runtime.Mount) uint64 {
	if m.ReadOnly {
		return layerFlags
	}
	return boxFlags
}

// sendMounts sends the mounts of sources. The host's root makes them, whose first
// process may not reach them by a path; an ordinary user's makes them itself.
func sendMounts(control *net.UnixConn, mounts []runtime.Mount, ids idMaps) error {
	for _, m := range mounts {
		fd, err := openSource(m, ids)
		if err != nil {
			return err
		}
		if err := send(control, fd); err != nil {
			return err
		}
	}
	return nil
}

// openSource returns a mount of the source, or -1 if this process can't make one.
func openSource(m runtime.Mount, ids idMaps) (int, error) {
	fd, err := unix.Open(m.Source, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("can't mount %s: %w", m.Source, err)
	}
	dir := os.NewFile(uintptr(fd), m.Source)
	defer dir.Close()
	if os.Geteuid() != 0 {
		return -1, nil
	}
	if err := giveToSandboxes(dir, m, ids); err != nil {
		return -1, err
	}
	return cloneMountAt(fd, "", mountFlags(m), -1)
}

// giveToSandboxes makes the sandboxes' root the owner of an empty folder. One with
// files of somebody else is left alone, and can only be read.
func giveToSandboxes(dir *os.File, m runtime.Mount, ids idMaps) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: m.Source, Err: err}
	}
	if int(st.Uid) == ids.uid.HostID || m.ReadOnly {
		return nil
	}
	if m.Give {
		if err := giveContent(m.Source, ids); err != nil {
			return fmt.Errorf("give a folder to the sandboxes: %w", err)
		}
	} else if _, err := dir.Readdirnames(1); err == nil {
		return &runtime.Unsupported{
			What: fmt.Sprintf("%s has files, and they belong to user %d, whom sandboxes do not have", m.Source, st.Uid),
			Hint: fmt.Sprintf("mount it read-only, or give it to the sandboxes by chown -R %d:%d", ids.uid.HostID, ids.gid.HostID),
		}
	} else if !errors.Is(err, io.EOF) {
		return err
	}
	if err := dir.Chown(ids.uid.HostID, ids.gid.HostID); err != nil {
		return fmt.Errorf("give a folder to the sandboxes: %w", err)
	}
	return nil
}

// giveContent makes the sandboxes' root the owner of what is in a folder. The
// folder itself comes last, as the sign that nothing is left to do.
func giveContent(dir string, ids idMaps) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		return os.Lchown(path, ids.uid.HostID, ids.gid.HostID)
	})
}

// takeMounts takes hold of the mounts' sources.
func (s *setup) takeMounts() error {
	for _, m := range s.Mounts {
		fd, err := receive()
		if err == nil && fd < 0 {
			fd, err = cloneMount(m.Source, mountFlags(m), -1)
		}
		if err != nil {
			return err
		}
		s.mounts = append(s.mounts, fd)
	}
	return nil
}

func (s *setup) attachMounts() error {
	for i, m := range s.Mounts {
		at, err := s.folder(m.Target[1:])
		if err != nil {
			return err
		}
		err = attachTo(s.mounts[i], at)
		unix.Close(at)
		if err != nil {
			return fmt.Errorf("%s: %w", m.Target, err)
		}
	}
	return nil
}
