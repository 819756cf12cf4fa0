//go:build linux

package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines GET and HEAD /download: a file or a part of it (§5, §16.4).

func (d *daemon) download(w http.ResponseWriter, r *http.Request) {
	path, err := d.resolve(r.URL.Query().Get("path"), wire.ErrRead)
	if err != nil {
		answer(w, err)
		return
	}
	var f *os.File
	var stat *unix.Stat_t
	err = d.asUser(wire.ErrRead, func() (err error) {
		f, stat, err = openRegular(path)
		return err
	})
	if err != nil {
		answer(w, fileFailure(wire.ErrRead, path, err))
		return
	}
	defer f.Close()
	size := stat.Size
	var content io.ReadSeeker = f
	if size <= pseudoFile {
		// The files of /proc and /sys have another size than they say.
		text, err := readSmall(f)
		if err != nil {
			answer(w, fileFailure(wire.ErrRead, path, err))
			return
		}
		if text != nil {
			content, size = bytes.NewReader(text), int64(len(text))
		}
	}

	h := w.Header()
	h.Set("Content-Type", wire.UploadContentType)
	h.Set("Accept-Ranges", "bytes")
	h.Set("ETag", fmt.Sprintf(`"%x-%x-%x-%x"`, stat.Ino, size, stat.Mtim.Nano(), stat.Ctim.Nano()))
	modified := time.Unix(stat.Mtim.Unix())
	normalizeRange(r.Header, size)
	http.ServeContent(&problems{ResponseWriter: w, modified: modified}, r, "", modified, content)
}

const (
	pseudoFile = 4096    // no file of /proc or /sys says more
	smallFile  = 1 << 20 // bytes that are read ahead, at most
)

// readSmall reads a file to its end. One that is longer than it said is rewound
// and nil.
func readSmall(f *os.File) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(f, smallFile+1))
	if err != nil || len(text) <= smallFile {
		return text, err
	}
	_, err = f.Seek(0, io.SeekStart)
	return nil, err
}

var (
	errDirectory  = errors.New("is a directory")
	errNotRegular = errors.New("is not a regular file")
)

// openRegular opens a file to be read, and does not wait as a FIFO would have it.
func openRegular(path string) (*os.File, *unix.Stat_t, error) {
	var fd int
	var err error
	for {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != unix.EINTR {
			break
		}
	}
	if errors.Is(err, syscall.ENXIO) { // a socket
		err = errNotRegular
	}
	var stat unix.Stat_t
	if err == nil {
		err = unix.Fstat(fd, &stat)
		if err == nil {
			err = checkRegular(stat.Mode)
		}
		if err == nil {
			err = unix.SetNonblock(fd, false)
		}
		if err != nil {
			unix.Close(fd)
		}
	}
	switch {
	case errors.Is(err, errDirectory), errors.Is(err, errNotRegular):
		return nil, nil, refuse(wire.ErrRead, "%s %v", path, err)
	case err != nil:
		return nil, nil, err
	}
	return os.NewFile(uintptr(fd), path), &stat, nil
}

func checkRegular(mode uint32) error {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return nil
	case unix.S_IFDIR:
		return errDirectory
	}
	return errNotRegular
}

// normalizeRange turns the Range header into one that net/http treats as §16.4
// wants it: several or malformed ranges are ignored, and one that is well
// formed and empty is beyond the end.
func normalizeRange(h http.Header, size int64) {
	value := h.Get("Range")
	if value == "" {
		return
	}
	first, last, ok := strings.Cut(strings.TrimPrefix(value, "bytes="), "-")
	start, startOK := position(first)
	end, endOK := position(last)
	switch {
	case size == 0, // an empty file is sent whole, so that read loops end
		!ok, !strings.HasPrefix(value, "bytes="),
		!startOK && first != "", !endOK && last != "", first == "" && last == "",
		startOK && endOK && end < start:
		h.Del("Range")
	case first == "" && end == 0:
		h.Set("Range", fmt.Sprintf("bytes=%d-", size))
	case first == "":
		h.Set("Range", fmt.Sprintf("bytes=-%d", end))
	case last == "":
		h.Set("Range", fmt.Sprintf("bytes=%d-", start))
	default:
		h.Set("Range", fmt.Sprintf("bytes=%d-%d", start, end))
	}
}

// position reads a number of digits alone; one beyond all files is cut.
func position(s string) (int64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		n = math.MaxInt64
	}
	return n, true
}

// problems gives the errors of http.ServeContent the form of all others, and 304
// the time that §16.4 wants there.
type problems struct {
	http.ResponseWriter
	modified time.Time
	refused  bool
}

func (p *problems) WriteHeader(status int) {
	if status == http.StatusNotModified {
		p.Header().Set("Last-Modified", p.modified.UTC().Format(http.TimeFormat))
	}
	if status < 400 {
		p.ResponseWriter.WriteHeader(status)
		return
	}
	p.refused = true
	h := p.Header()
	h.Del("Content-Length")
	h.Del("X-Content-Type-Options")
	message := http.StatusText(status)
	if status == http.StatusRequestedRangeNotSatisfiable {
		message = "the range begins behind the end of the file"
	}
	kind := wire.ErrRead
	if status == http.StatusPreconditionFailed {
		kind = wire.ErrInvalidRequest
	}
	answer(p.ResponseWriter, &failure{status, wire.Problem{Type: kind, Message: message}})
}

func (p *problems) Write(data []byte) (int, error) {
	if p.refused {
		return len(data), nil // the text of the error
	}
	return p.ResponseWriter.Write(data)
}

// ReadFrom lets a file go to the socket by sendfile.
func (p *problems) ReadFrom(r io.Reader) (int64, error) {
	if p.refused {
		return io.Copy(io.Discard, r)
	}
	return io.Copy(p.ResponseWriter, r)
}
