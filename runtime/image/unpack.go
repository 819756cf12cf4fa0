//go:build linux

package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// This file defines how the archive of a layer becomes a folder that is a lower
// side of an overlay. The archive is a stranger's:
//
//   - no entry leaves the folder, and no link is followed, not even one that the
//     archive has made before;
//   - hard links lead to files of the same layer;
//   - device nodes are left out, as are extended attributes, among which are the
//     overlay's own marks;
//   - owners that a sandbox does not have become its last user, or its root if that
//     is the only one;
//   - sizes and numbers are bounded.
//
// What an archive deletes of the layers below it becomes what an overlay takes
// for that: a device 0:0 in the place of a file, a mark on a folder.

// Limits bound what is unpacked.
type Limits struct {
	Bytes int64 // of the archive, unpacked
	Files int   // entries
}

// maxZstdMemory bounds what a zstd stream can make its reader take.
const maxZstdMemory = 256 << 20

// Unpacked is what became of an archive.
type Unpacked struct {
	DiffID string // sha256 of the unpacked archive, in hex
	Bytes  int64  // of its files
	Files  int
}

// Unpack unpacks the archive r, which may be compressed by gzip or zstd, into the
// empty folder dir. The process is root, at least of a user namespace, and ids is
// how many users and groups that has; with one, all becomes its own. After an
// error the caller removes what there is.
func Unpack(dir *os.File, r io.Reader, ids int, most Limits) (Unpacked, error) {
	plain, done, err := decompress(r)
	if err != nil {
		return Unpacked{}, err
	}
	defer done()
	hash := sha256.New()
	stream := &bounded{r: plain, left: most.Bytes}
	tee := io.TeeReader(stream, hash)
	u := &unpacker{dir: int(dir.Fd()), ids: ids, most: most, parent: -1}
	defer runtime.KeepAlive(dir) // the collector closes a file that nobody names any more
	defer u.closeParent()
	archive := tar.NewReader(tee)
	for err == nil {
		var h *tar.Header
		h, err = archive.Next()
		if err == io.EOF {
			err = nil
			break
		}
		if err != nil {
			err = fmt.Errorf("the archive is damaged: %w", err)
			break
		}
		if err = u.entry(h, archive); err != nil {
			err = fmt.Errorf("%.300q: %w", h.Name, err)
		}
	}
	if err == nil { // what follows the last entry counts for the digest
		_, err = io.Copy(io.Discard, tee)
	}
	if err == nil {
		err = u.finishFolders()
	}
	if stream.exceeded {
		err = fmt.Errorf("it is larger than %d bytes", most.Bytes)
	}
	return Unpacked{hex.EncodeToString(hash.Sum(nil)), u.bytes, u.files}, err
}

// decompress looks at the first bytes.
func decompress(r io.Reader) (plain io.Reader, done func(), err error) {
	b := bufio.NewReaderSize(r, 1<<16)
	start, _ := b.Peek(4)
	switch {
	case bytes.HasPrefix(start, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		return z, func() {}, err
	case bytes.HasPrefix(start, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxZstdMemory))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return b, func() {}, nil
}

// bounded reads left bytes and fails when there are more.
type bounded struct {
	r        io.Reader
	left     int64
	exceeded bool
}

func (b *bounded) Read(p []byte) (int, error) {
	if int64(len(p)) > b.left {
		p = p[:b.left+1]
	}
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		b.exceeded = true
		return 0, errors.New("too large")
	}
	return n, err
}

type unpacker struct {
	dir     int
	ids     int
	most    Limits
	bytes   int64
	files   int
	folders []*tar.Header // whose mode and times are set at the end

	parent     int // an open folder, or -1
	parentName string
}

// inside is how folders are opened: without leaving dir, and through no link.
const inside = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

const (
	whiteout       = ".wh."
	opaqueWhiteout = ".wh..wh..opq"
	opaqueMark     = "user.overlay.opaque"
	maxName        = 4095
	maxDepth       = 255 // folders in each other
)

// clean returns a name in the archive as a path below the layer's folder; "." is
// that itself.
func clean(name string) (string, error) {
	if len(name) > maxName || strings.Contains(name, "\x00") {
		return "", errors.New("the name is not one of a file")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", errors.New("it leads out of the layer")
		}
	}
	name = path.Join(".", name)
	if strings.Count(name, "/") > maxDepth {
		return "", fmt.Errorf("it lies deeper than %d folders", maxDepth)
	}
	return name, nil
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if u.files++; u.files > u.most.Files {
		return fmt.Errorf("it is one of more than %d files", u.most.Files)
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	h.Name = name
	if name == "." {
		if h.Typeflag == tar.TypeDir {
			u.folders = append(u.folders, h)
		}
		return nil
	}
	base := path.Base(name)
	parent, err := u.open(path.Dir(name))
	if err != nil {
		return err
	}
	switch {
	case base == opaqueWhiteout:
		return setOpaque(parent)
	case strings.HasPrefix(base, whiteout+whiteout):
		return nil // of a union file system that nobody has any more
	case strings.HasPrefix(base, whiteout):
		return hide(parent, strings.TrimPrefix(base, whiteout))
	}
	switch h.Typeflag {
	case tar.TypeDir:
		u.folders = append(u.folders, h)
		return u.folder(parent, base)
	case tar.TypeReg:
		if err := replace(parent, base); err != nil {
			return err
		}
		if err := u.file(parent, base, h, content); err != nil {
			return err
		}
	case tar.TypeSymlink:
		if err := replace(parent, base); err != nil {
			return err
		}
		if err := unix.Symlinkat(h.Linkname, parent, base); err != nil {
			return err
		}
	case tar.TypeLink:
		return u.link(parent, base, h.Linkname)
	case tar.TypeFifo:
		if err := replace(parent, base); err != nil {
			return err
		}
		if err := unix.Mknodat(parent, base, unix.S_IFIFO|0o600, 0); err != nil {
			return err
		}
	case tar.TypeChar, tar.TypeBlock:
		return nil
	default:
		return fmt.Errorf("it is of a kind %q that no layer has", h.Typeflag)
	}
	return u.dress(parent, base, h)
}

// open returns the folder name, which is made if it is missing. It stays open
// until the next call.
func (u *unpacker) open(name string) (int, error) {
	if u.parent >= 0 && u.parentName == name {
		return u.parent, nil
	}
	u.closeParent()
	fd, err := u.openFolder(name)
	if errors.Is(err, unix.ENOENT) {
		above, err := u.open(path.Dir(name))
		if err != nil {
			return -1, err
		}
		if err := u.folder(above, path.Base(name)); err != nil {
			return -1, err
		}
		u.closeParent()
		fd, err = u.openFolder(name)
		if err != nil {
			return -1, err
		}
		u.parent, u.parentName = fd, name
		return fd, nil
	}
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return -1, errors.New("it lies below a link or a file")
	}
	if err != nil {
		return -1, err
	}
	u.parent, u.parentName = fd, name
	return fd, nil
}

func (u *unpacker) openFolder(name string) (int, error) {
	return unix.Openat2(u.dir, name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: inside})
}

func (u *unpacker) closeParent() {
	if u.parent >= 0 {
		unix.Close(u.parent)
		u.parent = -1
	}
}

// kindOf returns the kind of a file, or 0 if there is none, and whether it is one
// that hides.
func kindOf(parent int, name string) (kind uint32, hides bool, err error) {
	var st unix.Stat_t
	err = unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return 0, false, nil
	}
	kind = st.Mode & unix.S_IFMT
	return kind, kind == unix.S_IFCHR && st.Rdev == 0, err
}

// folder makes a folder unless there is one. What lay below in its place stays
// hidden.
func (u *unpacker) folder(parent int, name string) error {
	kind, hides, err := kindOf(parent, name)
	if err != nil || kind == unix.S_IFDIR {
		return err
	}
	if err := replace(parent, name); err != nil {
		return err
	}
	if err := unix.Mkdirat(parent, name, 0o755); err != nil || !hides {
		return err
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return setOpaque(fd)
}

// replace makes place for what comes under a name again.
func replace(parent int, name string) error {
	err := unix.Unlinkat(parent, name, 0)
	if errors.Is(err, unix.EISDIR) {
		err = unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
	}
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func setOpaque(folder int) error {
	return unix.Fsetxattr(folder, opaqueMark, []byte("y"), 0)
}

// hide hides what lies below under a name; what this layer itself has there stays.
func hide(parent int, name string) error {
	if name == "" || name == "." || name == ".." {
		return errors.New("it hides nothing that has a name")
	}
	kind, _, err := kindOf(parent, name)
	switch {
	case err != nil:
		return err
	case kind == 0:
		return unix.Mknodat(parent, name, unix.S_IFCHR, 0)
	case kind != unix.S_IFDIR:
		return nil
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return setOpaque(fd)
}

func (u *unpacker) file(parent int, name string, h *tar.Header, content io.Reader) error {
	if h.Size > u.most.Bytes-u.bytes { // a sparse one may be short in the archive
		return fmt.Errorf("with it there are more than %d bytes", u.most.Bytes)
	}
	fd, err := unix.Openat(parent, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	n, err := io.Copy(f, content)
	u.bytes += n
	return errors.Join(err, f.Close())
}

// link makes a second name of a file of this layer.
func (u *unpacker) link(parent int, name, target string) error {
	target, err := clean(target)
	if err != nil {
		return fmt.Errorf("it is a link to %.300q: %w", target, err)
	}
	from, err := u.openFolder(path.Dir(target))
	if err != nil {
		return fmt.Errorf("it is a link to %.300q, which the layer has not", target)
	}
	defer unix.Close(from)
	if kind, hides, err := kindOf(from, path.Base(target)); err != nil || kind == 0 || kind == unix.S_IFDIR || hides {
		return fmt.Errorf("it is a link to %.300q, which the layer has not as a file", target)
	}
	var of, to unix.Stat_t // a name linked to itself would be gone
	if unix.Fstatat(from, path.Base(target), &of, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		unix.Fstatat(parent, name, &to, unix.AT_SYMLINK_NOFOLLOW) == nil && of.Ino == to.Ino {
		return nil
	}
	if err := replace(parent, name); err != nil {
		return err
	}
	return unix.Linkat(from, path.Base(target), parent, name, 0)
}

// dress gives a file its owner, mode and time. The owner comes first: a change of
// it takes rights away.
func (u *unpacker) dress(parent int, name string, h *tar.Header) error {
	if u.ids > 1 {
		if err := unix.Fchownat(parent, name, u.id(h.Uid), u.id(h.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	if h.Typeflag != tar.TypeSymlink { // those have no mode
		if err := unix.Fchmodat(parent, name, uint32(h.Mode&0o7777), 0); err != nil {
			return err
		}
	}
	at, err := unix.TimeToTimespec(h.ModTime)
	if err != nil {
		return nil // a time that this machine does not have
	}
	return unix.UtimesNanoAt(parent, name, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
}

func (u *unpacker) id(id int) int {
	if id < 0 || id >= u.ids {
		return u.ids - 1
	}
	return id
}

// finishFolders gives the folders their modes and times, which unpacking into them
// would have been stopped by, or changed.
func (u *unpacker) finishFolders() error {
	for i := len(u.folders) - 1; i >= 0; i-- {
		h := u.folders[i]
		if h.Name == "." {
			continue // the root of a sandbox has the mode that the runtime gives it
		}
		parent, err := u.openFolder(path.Dir(h.Name))
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue // replaced by what came later
		}
		if err != nil {
			return err
		}
		kind, _, err := kindOf(parent, path.Base(h.Name))
		if err == nil && kind == unix.S_IFDIR {
			err = u.dress(parent, path.Base(h.Name), h)
		}
		unix.Close(parent)
		if err != nil {
			return fmt.Errorf("%.300q: %w", h.Name, err)
		}
	}
	return nil
}
