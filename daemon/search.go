//go:build linux

package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines POST /glob and POST /grep: the search through files (§16.5).

const (
	defaultMatches = 1000
	mostMatches    = 10_000
)

// glob finds files and directories by their paths. The directories of /proc,
// /sys and /dev are found, and not what is in them.
func (d *daemon) glob(w http.ResponseWriter, r *http.Request) {
	var req wire.GlobRequest
	if err := d.readJSON(w, r, &req); err != nil {
		answer(w, err)
		return
	}
	d.search(w, r, req.Path, req.Limit, func(s *search) error {
		p, err := compilePattern(req.Pattern)
		if err != nil {
			return refuse(wire.ErrInvalidRequest, "the pattern %.100q %v", req.Pattern, err)
		}
		if !s.info.IsDir() {
			return refuse(wire.ErrRead, "%s is not a directory: give one to search in", s.root)
		}
		return s.walk(p, func(path string, kind fs.FileMode) error {
			match := wire.GlobMatch{Path: path}
			info, err := os.Stat(path)
			switch {
			case err == nil:
				match.IsDir, match.ModifiedAt = info.IsDir(), info.ModTime().UTC().Format(time.RFC3339Nano)
				if !match.IsDir {
					match.SizeBytes = info.Size()
				}
			case kind&fs.ModeSymlink == 0:
				return nil // it has gone
			}
			return s.matches.add(match)
		})
	})
}

// grep finds lines of files by what is in them.
func (d *daemon) grep(w http.ResponseWriter, r *http.Request) {
	var req wire.GrepRequest
	if err := d.readJSON(w, r, &req); err != nil {
		answer(w, err)
		return
	}
	d.search(w, r, req.Path, req.Limit, func(s *search) error {
		switch {
		case req.Pattern == "":
			return refuse(wire.ErrInvalidRequest, "the pattern is empty: give the text to look for")
		case len(req.Pattern) > longestPattern:
			return refuse(wire.ErrInvalidRequest, "the pattern is longer than %d bytes", longestPattern)
		case strings.Contains(req.Pattern, "\n"):
			return refuse(wire.ErrInvalidRequest, "the pattern holds the end of a line: lines are searched one by one")
		}
		files := req.Glob
		if !strings.Contains(files, "/") && !strings.Contains(files, anySegments) {
			files = anySegments + "/" + files // by its last name, at any depth
		}
		if req.Glob == "" {
			files = anySegments
		}
		p, err := compilePattern(files)
		if err != nil {
			return refuse(wire.ErrInvalidRequest, "the glob %.100q %v", req.Glob, err)
		}
		lines := lineSearch{pattern: []byte(req.Pattern), buf: make([]byte, searchBuffer)}
		look := func(path string, kind fs.FileMode) error {
			if kind&fs.ModeType&^fs.ModeSymlink != 0 {
				return nil
			}
			if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
				return nil
			}
			return s.lines(path, &lines)
		}
		if s.info.IsDir() {
			return s.walk(p, look)
		}
		if p.matched(p.step(p.begin(), filepath.Base(s.root))) {
			return look(s.root, s.info.Mode())
		}
		return nil
	})
}

// search is one that is under way.
type search struct {
	ctx     context.Context // ends when its time is over
	root    string
	info    fs.FileInfo // of the root
	batch   int
	matches matches
}

// search answers with what find finds. It is over at the end of its time or
// when the answer is full; then the answer says so.
func (d *daemon) search(w http.ResponseWriter, r *http.Request, path string, limit *int, find func(*search) error) {
	s := &search{batch: d.lim.batch, matches: matches{limit: defaultMatches, size: d.lim.matches}}
	if limit != nil {
		s.matches.limit = *limit
	}
	if s.matches.limit < 1 || s.matches.limit > mostMatches {
		answer(w, &failure{http.StatusUnprocessableEntity, wire.Problem{Details: []wire.InputError{{
			Loc: []any{"body", "limit"}, Msg: fmt.Sprintf("limit is %d: give a number from 1 to %d", s.matches.limit, mostMatches), Type: "value_error"}}}})
		return
	}
	var cancel context.CancelFunc
	s.ctx, cancel = context.WithTimeout(r.Context(), d.searchTime())
	defer cancel()
	var err error
	if s.root, err = searchRoot(path); err != nil {
		answer(w, refuse(wire.ErrInvalidRequest, "the path %.100q %v: give the absolute path of a directory", path, err))
		return
	}
	err = d.asUser(wire.ErrRead, func() (err error) {
		if s.info, err = os.Stat(s.root); err == nil {
			err = find(s)
		}
		return err
	})
	truncated := errors.Is(err, errFull) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
	if err != nil && !truncated {
		answer(w, fileFailure(wire.ErrRead, s.root, err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"matches":[%s],"truncated":%t}`, s.matches.text, truncated)
}

func (s *search) walk(p pattern, found func(string, fs.FileMode) error) error {
	w := &walker{ctx: s.ctx, pattern: p, found: found, batch: s.batch}
	return w.walk(s.root)
}

// matches are those found, as JSON.
type matches struct {
	limit int // how many
	size  int // bytes of text
	n     int
	text  []byte
}

var errFull = errors.New("the answer is full")

// add takes a match, or returns errFull if it is one too many.
func (m *matches) add(match any) error {
	text, err := json.Marshal(match)
	if err != nil {
		return err
	}
	if m.n == m.limit || len(m.text)+1+len(text) > m.size {
		return errFull
	}
	if m.n > 0 {
		m.text = append(m.text, ',')
	}
	m.text = append(m.text, text...)
	m.n++
	return nil
}

// lines adds the lines of a file. One that cannot be read, or is not text, has
// none.
func (s *search) lines(path string, lines *lineSearch) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	return lines.search(func(p []byte) (int, error) {
		if err := s.ctx.Err(); err != nil {
			return 0, err
		}
		for {
			n, err := unix.Read(fd, p)
			switch {
			case err == unix.EINTR:
			case err != nil || n <= 0: // also where there is nothing to read yet
				return 0, io.EOF
			default:
				return n, nil
			}
		}
	}, func(line int, text []byte) error {
		return s.matches.add(wire.GrepMatch{Path: path, Line: line, Text: lineText(text)})
	})
}
