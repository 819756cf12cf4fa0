package client

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// This file defines how files of this machine become a tar stream.

func validateExclude(patterns []string) error {
	for _, p := range patterns {
		if _, err := path.Match(p, ""); err != nil || p == "" || strings.Contains(p, "/") {
			return argumentError("%q is no pattern of names to exclude; *, ? and […] stand for letters of the name of a file or folder, at any depth", p)
		}
	}
	return nil
}

// packer writes files to a tar stream.
type packer struct {
	ctx  context.Context
	w    *tar.Writer
	o    TransferOptions
	done Transfer

	buffer []byte
}

func newPacker(ctx context.Context, w io.Writer, o TransferOptions) *packer {
	return &packer{ctx: ctx, w: tar.NewWriter(w), o: o, buffer: make([]byte, 64<<10)}
}

func (p *packer) close() error { return p.w.Close() }

// file packs the one file at local under a name. A link is followed.
func (p *packer) file(local, name string) error {
	f, err := os.Open(local)
	if err != nil {
		return err
	}
	return p.content(f, local, name)
}

// folder packs what is in the folder at local, but not the folder itself.
func (p *packer) folder(local string) error {
	root, err := os.OpenRoot(local)
	if err != nil {
		return err
	}
	return p.in(root, "")
}

// in packs what is in an open folder, and closes it. Names begin with prefix.
func (p *packer) in(folder *os.Root, prefix string) error {
	defer folder.Close()
	entries, err := readNames(folder)
	if err != nil {
		return err
	}
	for _, name := range entries {
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
		if slices.ContainsFunc(p.o.Exclude, func(pattern string) bool { ok, _ := path.Match(pattern, name); return ok }) {
			continue
		}
		if err := p.entry(folder, name, prefix+name); err != nil {
			return err
		}
	}
	return nil
}

func readNames(folder *os.Root) ([]string, error) {
	f, err := folder.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

func (p *packer) entry(folder *os.Root, name, full string) error {
	info, err := folder.Lstat(name)
	if err != nil {
		return err
	}
	switch info.Mode().Type() {
	case 0:
		f, err := folder.Open(name)
		if err != nil {
			return err
		}
		return p.content(f, full, full)
	case fs.ModeSymlink:
		link, err := folder.Readlink(name)
		if err != nil {
			return err
		}
		p.done.Files++
		return p.header(info, tar.TypeSymlink, full, link)
	case fs.ModeDir:
		if err := p.header(info, tar.TypeDir, full+"/", ""); err != nil {
			return err
		}
		inner, err := folder.OpenRoot(name)
		if err != nil {
			return err
		}
		return p.in(inner, full+"/")
	}
	p.done.skip(full)
	return nil
}

// content packs an open file, and closes it.
func (p *packer) content(f *os.File, shown, name string) error {
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return argumentError("%s is neither a file nor a folder", shown)
	}
	if err := p.header(info, tar.TypeReg, name, ""); err != nil {
		return err
	}
	from := &progressReader{r: io.LimitReader(f, info.Size()), ctx: p.ctx, done: &p.done, progress: p.o.Progress}
	n, err := io.CopyBuffer(p.w, from, p.buffer)
	if err == nil && n < info.Size() {
		err = fmt.Errorf("%s became shorter while it was read: %d bytes are left of %d", shown, n, info.Size())
	}
	p.done.Files++
	return err
}

// header is in GNU's format, in which names are bytes in no encoding, and of any
// length.
func (p *packer) header(info fs.FileInfo, kind byte, name, link string) error {
	h := &tar.Header{Format: tar.FormatGNU, Typeflag: kind, Name: name, Linkname: link, ModTime: info.ModTime().Truncate(time.Second), Mode: tarMode(info.Mode())}
	if kind == tar.TypeReg {
		h.Size = info.Size()
	}
	if err := p.w.WriteHeader(h); err != nil {
		return fmt.Errorf("%s cannot be packed: %w", name, err)
	}
	return nil
}

// tarMode is a mode as tar and chmod count it.
func tarMode(mode fs.FileMode) int64 {
	bits := int64(mode.Perm())
	for _, bit := range []struct {
		mode fs.FileMode
		bit  int64
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if mode&bit.mode != 0 {
			bits |= bit.bit
		}
	}
	return bits
}

// progressReader tells what goes through it, and hears its context.
type progressReader struct {
	r        io.Reader
	ctx      context.Context
	done     *Transfer
	progress func(Transfer)
}

func (p *progressReader) Read(b []byte) (int, error) {
	if p.ctx.Err() != nil {
		return 0, context.Cause(p.ctx)
	}
	n, err := p.r.Read(b)
	p.done.Bytes += int64(n)
	if p.progress != nil {
		p.progress(*p.done)
	}
	return n, err
}
