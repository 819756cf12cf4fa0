package client

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// This file defines how a tar stream becomes files of this machine. The stream
// comes out of a sandbox and may be anybody's: an entry that names a place
// outside of the folder ends the transfer, and so does one that leads through a
// link out of it. Devices, pipes and what tar does not know are passed over.

// unpacker writes the entries of a stream below root.
type unpacker struct {
	ctx      context.Context
	root     *os.Root
	only     string // the stream is one file, which gets this name; "" for a folder
	size     int64  // of the stream
	ignore   string // a name that is passed over, with all that is in it
	progress func(Transfer)
	done     Transfer
	folders  []folderMode // whose modes are set in the end: they may forbid to write

	parent     *os.Root // the folder of the entry before, open for the next one; nil if that is root
	parentName string
	buffer     []byte
}

type folderMode struct {
	name string
	mode fs.FileMode
}

func (u *unpacker) unpack(stream io.Reader) (err error) {
	defer func() {
		u.leave()
		for _, f := range slices.Backward(u.folders) {
			if e := u.root.Chmod(f.name, f.mode); e != nil && err == nil {
				err = e
			}
		}
	}()
	r := tar.NewReader(stream)
	for {
		if u.ctx.Err() != nil {
			return context.Cause(u.ctx)
		}
		h, err := r.Next()
		if err == io.EOF {
			if u.only != "" && u.done.Files == 0 {
				return errors.New("the file is missing in what was sent")
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the tar stream: %w", err)
		}
		name, err := localName(h.Name)
		if err != nil {
			return err
		}
		if h.Size > u.size-u.done.Bytes {
			return fmt.Errorf("the sandbox sent %q as a file of %d bytes, and not so many: it would only fill the disk", h.Name, h.Size)
		}
		if u.only != "" {
			if h.Typeflag != tar.TypeReg || u.done.Files > 0 {
				return fmt.Errorf("the stream of one file holds something else, too: %q", h.Name)
			}
			name = u.only
		}
		if name == "." || slices.Contains(strings.Split(name, "/"), u.ignore) {
			continue
		}
		if err := u.entry(filepath.FromSlash(name), h, r); err != nil {
			return err
		}
	}
}

// localName is the name of an entry, without a slash at its end, or an error if
// that lies somewhere else.
func localName(name string) (string, error) {
	clean := path.Clean(name)
	if name == "" || strings.ContainsRune(name, 0) || slices.Contains(strings.Split(name, "/"), "..") || !filepath.IsLocal(filepath.FromSlash(clean)) {
		return "", fmt.Errorf("the sandbox sent %q, which lies outside of the folder, and was not written", name)
	}
	return clean, nil
}

func (u *unpacker) entry(name string, h *tar.Header, content io.Reader) error {
	mode := fs.FileMode(h.Mode) & fs.ModePerm
	if name == u.parentName || strings.HasPrefix(u.parentName, name+string(filepath.Separator)) {
		u.leave() // it may become another one
	}
	folder, base, err := u.enter(name)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := makeFolder(folder, base, mode); err != nil {
			return err
		}
		u.folders = append(u.folders, folderMode{name, mode})
		return nil
	case tar.TypeReg:
		if err := u.file(folder, base, mode, h, content); err != nil {
			return err
		}
	case tar.TypeSymlink:
		if err := makeWay(folder, base); err != nil {
			return err
		}
		if err := folder.Symlink(h.Linkname, base); err != nil {
			return err
		}
	case tar.TypeLink:
		old, err := localName(h.Linkname)
		if err != nil {
			return err
		}
		if filepath.FromSlash(old) == name {
			return fmt.Errorf("the sandbox sent %q as a link to itself", h.Name)
		}
		if err := makeWay(folder, base); err != nil {
			return err
		}
		if err := u.root.Link(filepath.FromSlash(old), name); err != nil {
			return err
		}
	case tar.TypeXGlobalHeader:
		return nil
	default:
		u.done.skip(name)
		return nil
	}
	u.done.Files++
	return nil
}

// enter opens the folder of an entry, which is made if it is missing, and keeps it
// open until the stream comes to another one: a path is looked up name by name,
// and there may be ten thousand files at its end.
func (u *unpacker) enter(name string) (folder *os.Root, base string, err error) {
	dir, base := filepath.Dir(name), filepath.Base(name)
	if dir == "." {
		return u.root, base, nil
	}
	if u.parent == nil || dir != u.parentName {
		u.leave()
		if err := u.root.MkdirAll(dir, 0o777); err != nil {
			return nil, "", err
		}
		if u.parent, err = u.root.OpenRoot(dir); err != nil {
			return nil, "", err
		}
		u.parentName = dir
	}
	return u.parent, base, nil
}

func (u *unpacker) leave() {
	if u.parent != nil {
		u.parent.Close()
	}
	u.parent, u.parentName = nil, ""
}

// makeFolder makes a folder that can be written to until the end.
func makeFolder(parent *os.Root, name string, mode fs.FileMode) error {
	info, err := parent.Lstat(name)
	if err == nil && info.IsDir() {
		if info.Mode()&0o700 == 0o700 {
			return nil
		}
		return parent.Chmod(name, mode|0o700)
	}
	if err == nil {
		if err := parent.Remove(name); err != nil {
			return err
		}
	}
	return parent.Mkdir(name, 0o700)
}

// makeWay removes what has a name, unless it is a folder.
func makeWay(parent *os.Root, name string) error {
	info, err := parent.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return fmt.Errorf("%s is a folder here and none in the sandbox; remove it", filepath.Join(parent.Name(), name))
	}
	return parent.Remove(name)
}

// file writes a file beside its place and then moves it there: what is at its
// place before, such as a link, is replaced and not written to.
func (u *unpacker) file(folder *os.Root, name string, mode fs.FileMode, h *tar.Header, content io.Reader) (err error) {
	var id [8]byte
	rand.Read(id[:]) // never fails
	temp := ".sbx-" + hex.EncodeToString(id[:])
	f, err := folder.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			folder.Remove(temp)
		}
	}()
	if u.buffer == nil {
		u.buffer = make([]byte, 64<<10)
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, &progressReader{r: content, ctx: u.ctx, done: &u.done, progress: u.progress}, u.buffer); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := folder.Chtimes(temp, h.ModTime, h.ModTime); err != nil {
		return err
	}
	if err = folder.Rename(temp, name); err != nil {
		if info, e := folder.Lstat(name); e == nil && info.IsDir() {
			err = fmt.Errorf("%s is a folder here and a file in the sandbox; remove it", filepath.Join(folder.Name(), name))
		}
	}
	return err
}
