//go:build linux

package daemon

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// This file defines the way through a tree of files in the order of their paths
// (protocol.md §16.5).

// walker goes through the tree below a directory, as far as a pattern may lead
// to a match. It takes no more memory for a large directory than for a small
// one, and follows no symbolic link.
type walker struct {
	ctx     context.Context
	pattern pattern
	found   func(path string, kind fs.FileMode) error // gets each match, in order
	batch   int                                       // names of a directory that are held at a time

	skipped []fileID
}

// fileID is the identity of a file.
type fileID struct{ dev, ino uint64 }

// walk calls found until it returns an error, which is returned as it is, as is
// the end of the context. What cannot be read below root is passed over.
func (w *walker) walk(root string) error {
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		var stat unix.Stat_t
		if unix.Lstat(dir, &stat) == nil {
			w.skipped = append(w.skipped, fileID{stat.Dev, stat.Ino})
		}
	}
	return w.dir(root, w.pattern.begin(), true)
}

// step is one thing to do in a directory. Its key ends with a slash if it is to
// go into a directory: so it stands among the others where the paths in that
// directory belong, which is behind a name that goes on with a hyphen.
type step struct {
	key  string
	kind fs.FileMode
}

func compareSteps(a, b step) int { return strings.Compare(a.key, b.key) }

// dir goes through one directory, in batches: the first names of all, then the
// first of those that come after them.
func (w *walker) dir(path string, at progress, root bool) error {
	prefix := path + "/"
	if path == "/" {
		prefix = path
	}
	for after, more := "", true; more; {
		steps, rest, err := w.steps(path, at, root, after)
		if w.ctx.Err() != nil {
			return w.ctx.Err()
		}
		if err != nil && root {
			return err
		}
		for _, s := range steps {
			if err := w.ctx.Err(); err != nil {
				return err
			}
			if name, below := strings.CutSuffix(s.key, "/"); below {
				err = w.dir(prefix+name, w.pattern.step(at, name), false)
			} else {
				err = w.found(prefix+name, s.kind)
			}
			if err != nil {
				return err
			}
			after = s.key
		}
		more = rest
	}
	return nil
}

// steps reads what there is to do in a directory after a key, and whether there
// is more than that.
func (w *walker) steps(path string, at progress, root bool, after string) (steps []step, more bool, err error) {
	dir, err := w.open(path, root)
	if err != nil {
		return nil, false, err
	}
	defer dir.Close()
	last := "" // once there are too many, what comes behind it is for later
	add := func(s step) {
		if s.key <= after {
			return
		}
		if more && s.key > last {
			return
		}
		steps = append(steps, s)
		if len(steps) == 2*w.batch {
			slices.SortFunc(steps, compareSteps)
			steps = slices.Delete(steps, w.batch, len(steps))
			more, last = true, steps[w.batch-1].key
		}
	}
	for w.ctx.Err() == nil {
		entries, err := dir.ReadDir(512)
		for _, e := range entries {
			next := w.pattern.step(at, e.Name())
			if w.pattern.matched(next) {
				add(step{e.Name(), e.Type()})
			}
			if e.IsDir() && w.pattern.open(next) {
				add(step{e.Name() + "/", fs.ModeDir})
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, false, err
		}
	}
	slices.SortFunc(steps, compareSteps)
	if len(steps) > w.batch {
		steps, more = slices.Delete(steps, w.batch, len(steps)), true
	}
	return steps, more, nil
}

var errSkipped = errors.New("is not searched")

// open opens a directory. Only the root may be a symbolic link, or one of those
// that describe the machine.
func (w *walker) open(path string, root bool) (*os.File, error) {
	flags := unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC
	if !root {
		flags |= unix.O_NOFOLLOW
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil || root {
		return f, err
	}
	var stat unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &stat); err == nil && slices.Contains(w.skipped, fileID{stat.Dev, stat.Ino}) {
		err = errSkipped
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// searchRoot makes the path of a search absolute and plain: it loses what means
// nothing in it. A .. stays, since the kernel knows better what it means.
func searchRoot(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", errors.New("is not absolute")
	}
	if strings.Contains(path, "\x00") {
		return "", errors.New("holds a zero byte")
	}
	var plain strings.Builder
	for segment := range strings.SplitSeq(path, "/") {
		if segment != "" && segment != "." {
			plain.WriteString("/" + segment)
		}
	}
	if plain.Len() == 0 {
		return "/", nil
	}
	return plain.String(), nil
}
