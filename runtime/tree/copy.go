//go:build linux

package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// This file defines how folders are copied that may change meanwhile, with all
// that the layers of an overlay are made of.

// Copy copies the folders names, and all in them, from the folder src into the
// folder dst, which has none of these names and is nobody else's business. Kept
// are owners, modes, times, extended attributes, hard links, and holes in files.
// The nodes that hide a file below an overlay are copied; other devices, and
// what is mounted, are refused.
//
// Each file is copied as it is when its turn comes, and not beyond the size that
// it has then; what is gone by then is left out. When Copy fails, the caller
// removes what is there of dst.
func Copy(ctx context.Context, dst, src *os.File, names ...string) error {
	defer goruntime.KeepAlive(dst) // the collector closes a file that nobody names any more
	defer goruntime.KeepAlive(src)
	c := &copier{ctx: ctx, dst: int(dst.Fd()), linked: map[inode]string{}}
	for _, name := range names {
		if err := c.entry(c.dst, int(src.Fd()), name); err != nil {
			return err
		}
	}
	return c.dropLinks()
}

// linksName is a folder in dst, while Copy works, that has a name of each file of
// which there may be more: such names can be told the kernel, however long the
// path to the file itself.
const linksName = "\x01links"

type inode struct{ dev, ino uint64 }

type copier struct {
	ctx     context.Context
	dst     int
	linked  map[inode]string // names in linksName
	noClone bool             // the file systems can't share the content of files
	noRange bool             // nor does the kernel copy it
	buffer  []byte
}

// copyError says what could not be copied.
type copyError struct {
	path []string // from the inside out
	op   string
	err  error
}

func (e *copyError) Error() string {
	path := slices.Clone(e.path)
	slices.Reverse(path)
	return fmt.Sprintf("%s %.300s: %v", e.op, strings.Join(path, "/"), e.err)
}

func (e *copyError) Unwrap() error { return e.err }

func failed(op string, err error) error {
	if err == nil {
		return nil
	}
	return &copyError{op: op, err: err}
}

// entry copies whatever is called name.
func (c *copier) entry(dst, src int, name string) error {
	err := c.ctx.Err()
	if err == nil {
		err = c.copyEntry(dst, src, name)
	}
	if e, ok := errors.AsType[*copyError](err); ok {
		e.path = append(e.path, name)
	}
	return err
}

func (c *copier) copyEntry(dst, src int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return failed("examine", err)
	}
	kind := st.Mode & unix.S_IFMT
	id := inode{uint64(st.Dev), st.Ino}
	shared := kind != unix.S_IFDIR && kind != unix.S_IFCHR && st.Nlink > 1
	if first, ok := c.linked[id]; ok && shared {
		return failed("link", c.link(dst, name, first))
	}
	var err error
	switch kind {
	case unix.S_IFDIR:
		return c.folder(dst, src, name)
	case unix.S_IFREG:
		err = c.file(dst, src, name)
	case unix.S_IFLNK:
		err = symlink(dst, src, name, &st)
	case unix.S_IFIFO, unix.S_IFSOCK:
		err = node(dst, name, &st)
	case unix.S_IFCHR:
		if st.Rdev == 0 {
			err = node(dst, name, &st)
			break
		}
		fallthrough
	default:
		return failed("copy", errors.New("it is a device"))
	}
	if errors.Is(err, errGone) {
		return nil
	}
	if err == nil && shared {
		err = failed("link", c.remember(dst, name, id))
	}
	return err
}

// errGone says that a file is not there any more.
var errGone = errors.New("it is gone")

// inside is how a name is opened: it is no link and no mount.
const inside = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS

func open(dir int, name string, flags uint64) (int, error) {
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: flags | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: inside})
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENXIO):
		return -1, errGone // or something else by now
	case errors.Is(err, unix.EXDEV):
		return -1, failed("copy", errors.New("it is a mount point"))
	}
	return fd, failed("open", err)
}

// folder copies a folder, and what is in it first: by then it may be closed.
func (c *copier) folder(dst, src int, name string) error {
	from, err := open(src, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(from), name)
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return failed("examine", err)
	}
	if err := unix.Mkdirat(dst, name, 0o700); err != nil {
		return failed("make", err)
	}
	to, err := open(dst, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	names, err := dir.Readdirnames(-1)
	if err != nil && !errors.Is(err, unix.ENOENT) { // the folder is gone, and so is what was in it
		return failed("list", err)
	}
	for _, n := range names {
		if err := c.entry(to, from, n); err != nil {
			return err
		}
	}
	return dress(dst, name, &st, to, from)
}

// file copies a regular file.
func (c *copier) file(dst, src int, name string) error {
	from, err := open(src, name, unix.O_RDONLY|unix.O_NONBLOCK) // it may have become a pipe
	if err != nil {
		return err
	}
	defer unix.Close(from)
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return failed("examine", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errGone
	}
	to, err := unix.Openat(dst, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return failed("make", err)
	}
	defer unix.Close(to)
	if err := c.content(to, from, &st); err != nil {
		return failed("copy", err)
	}
	return dress(dst, name, &st, to, from)
}

// content copies st.Size bytes, holes as holes, or fewer if the file has fewer by
// the time that they are read.
func (c *copier) content(to, from int, st *unix.Stat_t) error {
	if st.Size == 0 {
		return nil
	}
	if !c.noClone {
		err := unix.IoctlFileClone(to, from)
		if err == nil {
			return nil
		}
		c.noClone = true // it fails for whole file systems, or before anything is done
	}
	if st.Blocks*512 >= st.Size {
		_, err := c.span(to, from, 0, st.Size)
		return err
	}
	end, err := int64(0), error(nil)
	for end < st.Size {
		start, err := unix.Seek(from, end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // nothing but a hole follows
		}
		if err != nil {
			return err
		}
		if end, err = unix.Seek(from, start, unix.SEEK_HOLE); err != nil {
			return err
		}
		end = min(end, st.Size)
		if start >= end {
			break
		}
		if all, err := c.span(to, from, start, end); !all || err != nil {
			return err
		}
	}
	var now unix.Stat_t
	if err = unix.Fstat(from, &now); err != nil {
		return err
	}
	return unix.Ftruncate(to, min(st.Size, now.Size))
}

// atATime is how much is copied between two looks at the context.
const atATime = 16 << 20

// span copies the bytes from start up to end; all is false if there are fewer.
func (c *copier) span(to, from int, start, end int64) (all bool, err error) {
	for start < end {
		if err := c.ctx.Err(); err != nil {
			return false, err
		}
		n, err := c.some(to, from, start, int(min(end-start, atATime)))
		if n == 0 || err != nil {
			return false, err
		}
		start += int64(n)
	}
	return true, nil
}

func (c *copier) some(to, from int, offset int64, length int) (int, error) {
	if !c.noRange {
		in, out := offset, offset
		n, err := unix.CopyFileRange(from, &in, to, &out, length, 0)
		if err == nil {
			return n, nil
		}
		for _, cannot := range []error{unix.EXDEV, unix.ENOSYS, unix.EINVAL, unix.EOPNOTSUPP, unix.EPERM} {
			c.noRange = c.noRange || errors.Is(err, cannot)
		}
		if !c.noRange {
			return 0, err
		}
	}
	if c.buffer == nil {
		c.buffer = make([]byte, 1<<20)
	}
	n, err := unix.Pread(from, c.buffer[:min(length, len(c.buffer))], offset)
	for done := 0; done < n && err == nil; {
		var m int
		m, err = unix.Pwrite(to, c.buffer[done:n], offset+int64(done))
		done += m
	}
	return n, err
}

// dress gives name in dst what st has, and what the file from has, beside
// content. to is the same as name if it is open, as from is then; otherwise they
// are -1. The owner comes first: a change of it takes rights away.
func dress(dst int, name string, st *unix.Stat_t, to, from int) error {
	if err := unix.Fchownat(dst, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return failed("give its owner to", err)
	}
	if from >= 0 {
		if err := copyAttributes(to, from); err != nil {
			return failed("give its attributes to", err)
		}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK { // those have no mode
		if err := unix.Fchmodat(dst, name, st.Mode&0o7777, 0); err != nil {
			return failed("give its mode to", err)
		}
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	return failed("give its times to", unix.UtimesNanoAt(dst, name, times, unix.AT_SYMLINK_NOFOLLOW))
}

// copied reports whether an extended attribute goes with its file. The others are
// the machine's, such as labels of a security module.
func copied(attribute string) bool {
	return strings.HasPrefix(attribute, "user.") || attribute == "security.capability" || strings.HasPrefix(attribute, "system.posix_acl_")
}

func copyAttributes(to, from int) error {
	list, err := grow(func(buffer []byte) (int, error) { return unix.Flistxattr(from, buffer) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return err
	}
	for name := range bytes.SplitSeq(list, []byte{0}) {
		name := string(name)
		if !copied(name) {
			continue
		}
		value, err := grow(func(buffer []byte) (int, error) { return unix.Fgetxattr(from, name, buffer) })
		if errors.Is(err, unix.ENODATA) {
			continue // it is gone
		}
		if err == nil {
			err = unix.Fsetxattr(to, name, value, 0)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// grow calls read with a buffer that is large enough, and returns what it read.
func grow(read func([]byte) (int, error)) ([]byte, error) {
	for {
		size, err := read(nil)
		if size == 0 || err != nil {
			return nil, err
		}
		buffer := make([]byte, size)
		n, err := read(buffer)
		if !errors.Is(err, unix.ERANGE) { // it has grown meanwhile
			return buffer[:max(n, 0)], err
		}
	}
}

func symlink(dst, src int, name string, st *unix.Stat_t) error {
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(src, name, target)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return errGone // or something else by now
	}
	if err != nil {
		return failed("read", err)
	}
	if err := unix.Symlinkat(string(target[:n]), dst, name); err != nil {
		return failed("make", err)
	}
	return dress(dst, name, st, -1, -1)
}

// node makes a pipe, a socket, or what hides a file.
func node(dst int, name string, st *unix.Stat_t) error {
	if err := unix.Mknodat(dst, name, st.Mode&unix.S_IFMT|0o600, int(st.Rdev)); err != nil {
		return failed("make", err)
	}
	return dress(dst, name, st, -1, -1)
}

// remember gives a copied file a second name, for others to be linked to.
func (c *copier) remember(dst int, name string, id inode) error {
	if len(c.linked) == 0 {
		if err := unix.Mkdirat(c.dst, linksName, 0o700); err != nil {
			return err
		}
	}
	first := linksName + "/" + strconv.Itoa(len(c.linked))
	if err := unix.Linkat(dst, name, c.dst, first, 0); err != nil {
		return err
	}
	c.linked[id] = first
	return nil
}

func (c *copier) link(dst int, name, first string) error {
	return unix.Linkat(c.dst, first, dst, name, 0)
}

func (c *copier) dropLinks() error {
	if len(c.linked) == 0 {
		return nil
	}
	for _, name := range c.linked {
		if err := unix.Unlinkat(c.dst, name, 0); err != nil {
			return failed("forget", err)
		}
	}
	return failed("forget", unix.Unlinkat(c.dst, linksName, unix.AT_REMOVEDIR))
}
