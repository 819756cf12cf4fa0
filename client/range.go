package client

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines what can be learned of a file without reading it whole
// (protocol.md §16.4).

// FileInfo describes a file. But for the size, what the server does not tell is
// empty.
type FileInfo struct {
	Size         int64
	ETag         string // changes with the content; for Range
	LastModified string // an HTTP date
	ContentType  string
}

// Stat describes the file at path. A HEAD request is answered without reasons:
// besides ErrNotFound, and ErrOperation where permission is denied, an error
// tells the status at most.
func (s *Sandbox) Stat(ctx context.Context, path string) (*FileInfo, error) {
	if err := validatePath(path); err != nil {
		return nil, err
	}
	response, err := s.client.do(ctx, call{method: http.MethodHead, path: s.dataplane("download", false), query: url.Values{"path": {path}}, timeout: fileTimeout,
		errors: func(e *Error, p wire.Problem) {
			s.mapFile(path)(e, p)
			if e.Status == http.StatusBadRequest {
				e.Message = fmt.Sprintf("%s is no file that sandbox %s can read; it may be a folder", path, s.Name)
			}
		}})
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	h := response.Header
	return &FileInfo{max(response.ContentLength, 0), h.Get("ETag"), h.Get("Last-Modified"), h.Get("Content-Type")}, nil
}

// Range says which bytes to read, by offsets from 0: from Start on, to End and
// including it if that is not nil, or the last Suffix bytes. An end behind the
// file's is the file's.
type Range struct {
	Start, End  *int64
	Suffix      *int64
	IfRange     string // an ETag: if the file has another now, all of it is read
	IfNoneMatch string // an ETag: if the file still has it, nothing is read
}

// RangeResult is what was read.
type RangeResult struct {
	Content            []byte
	Start              int64  // the offset of the first byte
	Total              *int64 // the size of the file; nil if unknown
	Partial            bool   // false: Content is the whole file, whatever was asked for
	Unchanged          bool   // nothing was read, because of IfNoneMatch
	ETag, LastModified string
}

// header is the range as a header's value, or why there is none.
func (r Range) header() (string, error) {
	switch {
	case r.Suffix != nil && (r.Start != nil || r.End != nil):
		return "", argumentError("a range has a start and an end, or a suffix, not both")
	case r.Suffix != nil && *r.Suffix <= 0:
		return "", argumentError("the suffix of a range is %d, and must be positive", *r.Suffix)
	case r.Suffix != nil:
		return fmt.Sprintf("bytes=-%d", *r.Suffix), nil
	case r.Start == nil:
		return "", argumentError("a range needs a start or a suffix")
	case *r.Start < 0:
		return "", argumentError("the start of a range is %d, and must not be negative", *r.Start)
	case r.End == nil:
		return fmt.Sprintf("bytes=%d-", *r.Start), nil
	case *r.End < *r.Start:
		return "", argumentError("the end of a range is %d, which is before its start %d", *r.End, *r.Start)
	}
	return fmt.Sprintf("bytes=%d-%d", *r.Start, *r.End), nil
}

// ReadRange reads a part of the file at path into memory. A start behind the
// file's end is ErrOperation; content that breaks off is ErrConnection.
func (s *Sandbox) ReadRange(ctx context.Context, path string, r Range) (*RangeResult, error) {
	if err := validatePath(path); err != nil {
		return nil, err
	}
	asked, err := r.header()
	if err != nil {
		return nil, err
	}
	headers := http.Header{"Range": {asked}}
	passes := []int{http.StatusRequestedRangeNotSatisfiable}
	if r.IfRange != "" {
		headers.Set("If-Range", r.IfRange)
	}
	if r.IfNoneMatch != "" {
		headers.Set("If-None-Match", r.IfNoneMatch)
		passes = append(passes, http.StatusNotModified)
	}
	response, err := s.client.do(ctx, call{path: s.dataplane("download", false), query: url.Values{"path": {path}}, headers: headers,
		timeout: fileTimeout, passes: passes, errors: s.mapFile(path)})
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	result := &RangeResult{ETag: response.Header.Get("ETag"), LastModified: response.Header.Get("Last-Modified")}
	switch response.StatusCode {
	case http.StatusNotModified:
		result.Unchanged = true
	case http.StatusRequestedRangeNotSatisfiable:
		return nil, beyond(path, asked, response)
	case http.StatusPartialContent:
		result.Partial = true
		err = result.readPart(response)
	default:
		result.Content, err = io.ReadAll(response.Body)
		result.Total = new(int64(len(result.Content)))
	}
	if err != nil {
		return nil, err
	}
	return result, nil
}

// readPart reads the body of a 206 and holds it against its Content-Range.
func (r *RangeResult) readPart(response *http.Response) (err error) {
	first, last, total, ok := contentRange(response.Header.Get("Content-Range"))
	if !ok {
		r.Content, err = io.ReadAll(response.Body)
		return err
	}
	r.Start, r.Total = first, total
	want := last - first + 1
	r.Content, err = io.ReadAll(io.LimitReader(response.Body, want+1))
	if err != nil {
		return err
	}
	var cause error
	switch got := int64(len(r.Content)); {
	case got < want:
		cause = fmt.Errorf("%d of the %d bytes in Content-Range came", got, want)
	case got > want:
		cause = fmt.Errorf("more than the %d bytes in Content-Range came", want)
	default:
		return nil
	}
	return connectionError(ErrConnection, http.MethodGet, response.Request.URL.Path, cause)
}

// contentRange reads "bytes first-last/total", where total may be *.
func contentRange(value string) (first, last int64, total *int64, ok bool) {
	rest, ok := strings.CutPrefix(value, "bytes ")
	span, size, found := strings.Cut(rest, "/")
	from, to, both := strings.Cut(span, "-")
	first, errFirst := strconv.ParseInt(from, 10, 64)
	last, errLast := strconv.ParseInt(to, 10, 64)
	if !ok || !found || !both || errFirst != nil || errLast != nil || first < 0 || last < first || last > math.MaxInt64-2 {
		return 0, 0, nil, false
	}
	if size == "*" {
		return first, last, nil, true
	}
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil || n <= last {
		return 0, 0, nil, false
	}
	return first, last, &n, true
}

// beyond is the error of a range that has nothing of the file; its body need
// not be of the protocol.
func beyond(path, asked string, response *http.Response) *Error {
	raw, _ := io.ReadAll(io.LimitReader(response.Body, maxErrorAnswer))
	e := answerError(http.MethodGet, response.Request.URL.Path, response.StatusCode, response.Header, raw, func(e *Error, _ wire.Problem) {
		e.Kind, e.Operation, e.ErrorType = ErrOperation, "read", ""
	})
	e.Message = fmt.Sprintf("the file %s has nothing in the range %s", path, asked)
	if has := response.Header.Get("Content-Range"); has != "" {
		e.Message += fmt.Sprintf(" (Content-Range: %s)", has)
	}
	return e
}
