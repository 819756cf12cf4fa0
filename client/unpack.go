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
}

type folderMode struct {
	name string
	mode fs.FileMode
}

func (u *unpacker) unpack(stream io.Reader) (err error) {
	defer func() {
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
	if dir := filepath.Dir(name); dir != "." {
		if err := u.root.MkdirAll(dir, 0o777); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.folder(name, mode)
	case tar.TypeReg:
		if err := u.file(name, mode, h, content); err != nil {
			return err
		}
	case tar.TypeSymlink:
		if err := u.makeWay(name); err != nil {
			return err
		}
		if err := u.root.Symlink(h.Linkname, name); err != nil {
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
		if err := u.makeWay(name); err != nil {
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

// folder makes a folder that can be written to until the end.
func (u *unpacker) folder(name string, mode fs.FileMode) error {
	info, err := u.root.Lstat(name)
	if err == nil && !info.IsDir() {
		if err := u.root.Remove(name); err != nil {
			return err
		}
		err = fs.ErrNotExist
	}
	if err != nil {
		if err := u.root.Mkdir(name, 0o700); err != nil {
			return err
		}
	} else if info.Mode()&0o700 != 0o700 {
		if err := u.root.Chmod(name, mode|0o700); err != nil {
			return err
		}
	}
	u.folders = append(u.folders, folderMode{name, mode})
	return nil
}

// makeWay removes what has a name, unless it is a folder.
func (u *unpacker) makeWay(name string) error {
	info, err := u.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return fmt.Errorf("%s is a folder here and none in the sandbox; remove it", name)
	}
	return u.root.Remove(name)
}

// file writes a file beside its place and then moves it there: what is at its
// place before, such as a link, is replaced and not written to.
func (u *unpacker) file(name string, mode fs.FileMode, h *tar.Header, content io.Reader) (err error) {
	var id [8]byte
	rand.Read(id[:]) // never fails
	temp := filepath.Join(filepath.Dir(name), ".sbx-"+hex.EncodeToString(id[:]))
	f, err := u.root.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			u.root.Remove(temp)
		}
	}()
	if _, err := io.Copy(f, &progressReader{r: content, ctx: u.ctx, done: &u.done, progress: u.progress}); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := u.root.Chtimes(temp, h.ModTime, h.ModTime); err != nil {
		return err
	}
	if info, err := u.root.Lstat(name); err == nil && info.IsDir() {
		return fmt.Errorf("%s is a folder here and a file in the sandbox; remove it", name)
	}
	return u.root.Rename(temp, name)
}
