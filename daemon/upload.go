//go:build linux

package daemon

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines POST /upload: one file is written, whole or not at all (§5).

func (d *daemon) upload(w http.ResponseWriter, r *http.Request) {
	given := r.URL.Query().Get("path")
	path, err := d.resolve(given, wire.ErrWrite)
	if err != nil {
		answer(w, err)
		return
	}
	// Package multipart reads 4 KiB at a time.
	r.Body = struct {
		io.Reader
		io.Closer
	}{bufio.NewReaderSize(r.Body, transferBuffer), r.Body}
	parts, err := r.MultipartReader()
	if err != nil {
		answer(w, refuse(wire.ErrInvalidRequest, "the body is not multipart/form-data with the file as its only part: %v", err))
		return
	}
	part, err := parts.NextPart()
	if err != nil {
		answer(w, refuse(wire.ErrInvalidRequest, "the body has no part %q: %v", wire.UploadField, err))
		return
	}
	if part.FormName() != wire.UploadField {
		answer(w, refuse(wire.ErrInvalidRequest, "the body's part is called %q: send the file as %q", part.FormName(), wire.UploadField))
		return
	}
	var written int64
	err = d.asUser(wire.ErrWrite, func() (err error) {
		written, err = writeFile(path, func(f io.Writer) (int64, error) {
			buffered := bufio.NewWriterSize(struct{ io.Writer }{f}, transferBuffer) // which could read by itself, and less at a time
			n, err := io.Copy(buffered, body{part})
			if err == nil {
				err = buffered.Flush()
			}
			if err != nil {
				return n, err
			}
			if _, err := parts.NextPart(); err == nil {
				return n, refuse(wire.ErrInvalidRequest, "the body has more than one part: send one file at a time")
			} else if err != io.EOF {
				return n, refuse(wire.ErrInvalidRequest, "the body ended early: %v", err)
			}
			return n, nil
		})
		return err
	})
	if err != nil {
		answer(w, fileFailure(wire.ErrWrite, path, err))
		return
	}
	answerJSON(w, http.StatusOK, wire.Uploaded{Path: given, Written: written})
}

const transferBuffer = 128 << 10

// body marks errors of reading as the client's.
type body struct{ r io.Reader }

func (b body) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && err != io.EOF {
		err = refuse(wire.ErrInvalidRequest, "the body ended early: %v", err)
	}
	return n, err
}

// writeFile puts what fill writes at path, at once and only if fill succeeds,
// and makes missing parents. A symbolic link is followed, also to a place where
// nothing is yet, as the shell's > does: what it names is written and the link stays.
func writeFile(path string, fill func(io.Writer) (int64, error)) (n int64, err error) {
	path, mode, err := destination(path)
	if err != nil {
		return 0, err
	}
	dir, _ := filepath.Split(path) // not Dir, which cleans
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	f, err := os.CreateTemp(dir, ".sbx-upload-*")
	if err != nil {
		return 0, err
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if n, err = fill(f); err != nil {
		return 0, err
	}
	if err = f.Chmod(mode); err != nil {
		return 0, err
	}
	if err = f.Close(); err != nil {
		return 0, err
	}
	return n, os.Rename(f.Name(), path)
}

// destination follows path to the file that is to be replaced or made, and says
// with which mode.
func destination(path string) (string, fs.FileMode, error) {
	const mostLinks = 40 // like the kernel
	for range mostLinks {
		dir, name := filepath.Split(path)
		if name == "" || name == "." || name == ".." {
			return "", 0, refuse(wire.ErrWrite, "%s names a directory: name a file", path)
		}
		info, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return path, 0o644, nil
		case err != nil:
			return "", 0, err
		case info.Mode().IsRegular():
			return path, info.Mode().Perm(), nil
		case info.IsDir():
			return "", 0, refuse(wire.ErrWrite, "%s is a directory: name a file in it", path)
		case info.Mode()&fs.ModeSymlink == 0:
			return "", 0, refuse(wire.ErrWrite, "%s is not a regular file: write to it with a command", path)
		}
		link, err := os.Readlink(path)
		if err != nil {
			return "", 0, err
		}
		if !strings.HasPrefix(link, "/") {
			link = dir + link
		}
		path = link
	}
	return "", 0, fmt.Errorf("%s: %w", path, syscall.ELOOP)
}
