package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines how files get into a sandbox and out of it (protocol.md §5).

// fileTimeout is how long a transfer may stand still.
const fileTimeout = 60 * time.Second

// Upload writes what r has to the file at path, which is absolute or relative
// to the sandbox's home, and creates missing folders. The content is streamed.
// Where the request has to be sent again, r is rewound if it is an io.Seeker.
func (s *Sandbox) Upload(ctx context.Context, path string, r io.Reader) error {
	if err := validatePath(path); err != nil {
		return err
	}
	length := int64(-1)
	if memory, ok := r.(interface{ Len() int }); ok {
		length = int64(memory.Len())
	}
	return s.upload(ctx, path, r, length)
}

// upload is Upload of a content of which the length is known; -1 is not.
func (s *Sandbox) upload(ctx context.Context, path string, r io.Reader, length int64) error {
	content, err := newContent(r, length)
	if err != nil {
		return err
	}
	defer content.abandon()
	return s.client.json(ctx, call{method: http.MethodPost, path: s.dataplane("upload", false), query: url.Values{"path": {path}},
		content: content, timeout: fileTimeout, errors: mapDataplane}, nil)
}

// Download opens the file at path. The caller closes it; an end that comes
// before the announced length is an error and not io.EOF.
func (s *Sandbox) Download(ctx context.Context, path string) (io.ReadCloser, error) {
	if err := validatePath(path); err != nil {
		return nil, err
	}
	response, err := s.client.do(ctx, call{path: s.dataplane("download", false), query: url.Values{"path": {path}}, timeout: fileTimeout, errors: s.mapFile(path)})
	if err != nil {
		return nil, err
	}
	return response.Body, nil
}

// mapFile is §3.6 for what is read from the file at path.
func (s *Sandbox) mapFile(path string) mapper {
	return func(e *Error, p wire.Problem) {
		mapDataplane(e, p)
		if e.Status == http.StatusNotFound {
			e.Kind, e.ResourceType, e.Operation = ErrNotFound, "file", ""
			e.Message = fmt.Sprintf("sandbox %s has no file %s", s.Name, path)
		}
	}
}

// Exists reports whether there is anything at path: a file, a folder or else.
func (s *Sandbox) Exists(ctx context.Context, path string) (bool, error) {
	if err := validatePath(path); err != nil {
		return false, err
	}
	response, err := s.client.do(ctx, call{method: http.MethodHead, path: s.dataplane("download", false), query: url.Values{"path": {path}}, errors: mapDataplane})
	if err == nil {
		return true, response.Body.Close()
	}
	var e *Error
	if !errors.As(err, &e) {
		return false, err
	}
	switch e.Status {
	case http.StatusNotFound:
		return s.existsByCommand(ctx, path) // it may be the route that is missing
	case http.StatusBadRequest, http.StatusForbidden, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return s.existsByCommand(ctx, path) // a HEAD has no body to say which
	}
	return false, err
}

func (s *Sandbox) existsByCommand(ctx context.Context, path string) (bool, error) {
	quoted := shellWord(path)
	begin := ""
	if !strings.HasPrefix(path, "/") {
		begin, quoted = "cd /home/user 2>/dev/null; ", "./"+quoted // where files are, wherever commands run (§5)
	}
	result, err := s.Run(ctx, RunOptions{Command: begin + "test -e " + quoted + " || test -L " + quoted, Shell: "/bin/sh", Timeout: fileTimeout, CloseStdin: true})
	if err != nil {
		return false, err
	}
	return result.ExitCode == 0, nil
}

func validatePath(path string) error {
	if path == "" {
		return argumentError("the path of a file is empty")
	}
	if strings.ContainsRune(path, 0) {
		return argumentError("the path %q contains a NUL character", path)
	}
	return nil
}

// content is a multipart body around a reader, which never is in memory whole.
type content struct {
	contentType string
	head, tail  []byte
	data        io.Reader
	start       int64 // where data stood, if it can be rewound
	length      int64 // of all of it, or -1: a file may be written to meanwhile

	// The transport may read on when an attempt, or the call, is over.
	mu      sync.Mutex   // held while data is read
	attempt atomic.Int64 // the one that may read
}

func newContent(r io.Reader, length int64) (*content, error) {
	var frame bytes.Buffer
	w := multipart.NewWriter(&frame)
	header := textproto.MIMEHeader{
		"Content-Disposition": {multipart.FileContentDisposition(wire.UploadField, wire.UploadFilename)},
		"Content-Type":        {wire.UploadContentType},
	}
	if _, err := w.CreatePart(header); err != nil {
		return nil, err
	}
	head := bytes.Clone(frame.Bytes())
	frame.Reset()
	if err := w.Close(); err != nil {
		return nil, err
	}
	c := &content{contentType: w.FormDataContentType(), head: head, tail: frame.Bytes(), data: r, start: -1, length: -1}
	if length >= 0 {
		c.length = int64(len(c.head)+len(c.tail)) + length
	}
	if seeker, ok := r.(io.Seeker); ok {
		if at, err := seeker.Seek(0, io.SeekCurrent); err == nil {
			c.start = at
		}
	}
	return c, nil
}

// open is the body from its beginning.
func (c *content) open() io.ReadCloser {
	data := dataReader{c, c.attempt.Add(1)}
	return io.NopCloser(io.MultiReader(bytes.NewReader(c.head), data, bytes.NewReader(c.tail)))
}

// rewind makes the content ready to be sent again, if that is possible.
func (c *content) rewind() bool {
	if c.start < 0 {
		return false
	}
	c.abandon()
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.data.(io.Seeker).Seek(c.start, io.SeekStart)
	return err == nil
}

// abandon ends the attempt's reading, but for a Read that is under way.
func (c *content) abandon() { c.attempt.Add(1) }

type dataReader struct {
	*content
	attempt int64
}

func (d dataReader) Read(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.attempt != d.content.attempt.Load() {
		return 0, io.ErrClosedPipe
	}
	return d.data.Read(p)
}
