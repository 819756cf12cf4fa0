package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines how a request is taken in and an answer written: JSON both
// ways, and every error in form A or B of protocol.md §3.1.

const (
	maxJSON     = 1 << 20 // protocol.md §13 #29
	bodyTimeout = 30 * time.Second
)

// Error types of the control plane.
const (
	kindNoVolume       = "VolumeProvisioning"
	kindConflict       = "Conflict"
	kindCrashLoop      = "CrashLoop"
	kindForbidden      = "Forbidden"
	kindGone           = "Gone"
	kindImagePull      = "ImagePull"
	kindInternal       = "InternalError"
	kindMethod         = "MethodNotAllowed"
	kindNotFound       = "NotFound"
	kindNotImplemented = "NotImplemented"
	kindQuota          = "QuotaExceeded"
	kindResize         = "ResizeError"
	kindNoRegistry     = "RegistryNotFound"
	kindNoSnapshot     = "SnapshotNotFound"
	kindSandboxConfig  = "SandboxConfig"
	kindNoTemplate     = "TemplateNotFound"
	kindTimeout        = "Timeout"
	kindTooLarge       = "PayloadTooLarge"
	kindUnauthorized   = "Unauthorized"
	kindValidation     = "ValidationError"
	kindUnschedulable  = "Unschedulable"
)

// failure is an error that knows its answer. Its cause is logged, not answered.
type failure struct {
	status     int
	problem    wire.Problem
	plain      bool   // the message alone is answered, as form C
	allow      string // methods that a 405 names
	retryAfter string // seconds
	cause      error
}

func (f *failure) Error() string { return f.problem.Message }
func (f *failure) Unwrap() error { return f.cause }

func fail(status int, kind, format string, args ...any) *failure {
	return &failure{status: status, problem: wire.Problem{Type: kind, Message: fmt.Sprintf(format, args...)}}
}

// plain makes an answer one of form C, which some clients look for.
func plain(f *failure) *failure {
	f.plain = true
	return f
}

// invalid is 422 in form B: where in the request, as a dotted path, and what
// is wrong there.
func invalid(loc, format string, args ...any) *failure {
	var path []any
	for part := range strings.SplitSeq(loc, ".") {
		if index, err := strconv.Atoi(part); err == nil {
			path = append(path, index)
		} else {
			path = append(path, part)
		}
	}
	return invalidAt(path, format, args...)
}

// invalidAt is invalid, with the path in its parts.
func invalidAt(loc []any, format string, args ...any) *failure {
	detail := wire.InputError{Loc: loc, Msg: fmt.Sprintf(format, args...), Type: "value_error"}
	return &failure{status: http.StatusUnprocessableEntity, problem: wire.Problem{Details: []wire.InputError{detail}}}
}

// ServeHTTP answers one request. Whoever calls it serves from a trusted socket
// or lets http.Server tell which address the request came in on.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id, began := s.options.RequestID(), time.Now()
	header := w.Header()
	header.Set("X-Request-Id", id)
	// What a sandbox sends must never act as a page of this server.
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Content-Security-Policy", "default-src 'none'; sandbox")

	rec := &recorder{ResponseWriter: w}
	var err error = fail(http.StatusServiceUnavailable, wire.ErrServiceUnavailable, "%v", errClosing)
	if s.begin() {
		defer s.work.Done()
		defer func() {
			s.metrics.count(s.plane(r), r.Method, rec.status, time.Since(began))
			s.options.Log.Info("request", "id", id, "method", r.Method, "path", r.URL.Path,
				"status", rec.status, "took", time.Since(began).Round(time.Microsecond))
		}()
		err = s.route(rec, r)
	}
	if err != nil {
		s.answerError(rec, r, id, err)
	}
}

func (s *Server) answerError(w http.ResponseWriter, r *http.Request, id string, err error) {
	var f *failure
	if !errors.As(err, &f) && r.Context().Err() != nil {
		f = fail(http.StatusRequestTimeout, kindTimeout, "the client has gone")
	} else if f == nil && diskFull(err) {
		f = s.noRoom(err)
	} else if f == nil {
		f = fail(http.StatusInternalServerError, kindInternal, "the server failed; its log says why under this id")
		f.cause = err
	}
	if f.status >= 500 {
		f.problem.ID = id
		s.options.Log.Error("request failed", "id", id, "method", r.Method, "path", r.URL.Path, "error", f, "cause", f.cause)
	}
	if f.allow != "" {
		w.Header().Set("Allow", f.allow)
	}
	if f.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	if f.status == http.StatusRequestTimeout || f.status == http.StatusConflict {
		w.Header().Set("X-Should-Retry", "false") // some clients would (protocol.md §16.12)
	}
	if f.retryAfter != "" {
		w.Header().Set("Retry-After", f.retryAfter)
	}
	if f.plain {
		answer(w, f.status, map[string]string{"detail": f.problem.Message})
		return
	}
	answer(w, f.status, f.problem)
}

// diskFull reports whether what failed needs room. A kernel that has no more
// namespaces says so with the same error, in an *Unsupported.
func diskFull(err error) bool {
	if _, ok := errors.AsType[*runtime.Unsupported](err); ok {
		return false
	}
	return errors.Is(err, runtime.ErrDiskFull) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

func (s *Server) noRoom(err error) *failure {
	f := fail(http.StatusInternalServerError, kindInternal, "the disk is full: there is no room left in the state folder %s: delete sandboxes, snapshots or volumes, or have the server use another folder (%v)", s.store.dir, err)
	f.cause = err
	return f
}

// answer writes a body as JSON; nil is no body.
func answer(w http.ResponseWriter, status int, body any) {
	if body == nil {
		w.WriteHeader(status)
		return
	}
	data, err := json.Marshal(body)
	if err != nil { // none of the types that are answered can fail
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(data, '\n')) // a client that has gone need not be told
}

// readBody takes in the body of a request to the control plane.
func readBody(w *recorder, r *http.Request) ([]byte, error) {
	// The deadline must not outlive the body: net/http watches the connection
	// for its end while the request is worked on. Not every connection has one.
	deadline := http.NewResponseController(w)
	deadline.SetReadDeadline(time.Now().Add(bodyTimeout))
	data, err := io.ReadAll(http.MaxBytesReader(w.ResponseWriter, r.Body, maxJSON))
	if err == nil {
		deadline.SetReadDeadline(time.Time{})
		return data, nil
	}
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, fail(http.StatusRequestEntityTooLarge, kindTooLarge, "the body is larger than %d bytes", tooLarge.Limit)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, fail(http.StatusRequestTimeout, kindTimeout, "the body did not arrive within %s", bodyTimeout)
	}
	return nil, fail(http.StatusBadRequest, wire.ErrInvalidRequest, "the body could not be read: %v", err)
}

// decode reads a JSON body. Unknown fields are ignored; a value of a wrong type
// is an error that names the field (protocol.md §13 #30).
func decode(data []byte, into any) error {
	if len(bytes.TrimSpace(data)) == 0 {
		return invalid("body", "the body is empty, want a JSON object")
	}
	err := json.Unmarshal(data, into)
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return mistyped(wrong, data, "body")
	}
	if err != nil {
		return invalid("body", "not JSON: %v", err)
	}
	return nil
}

// mistyped is the answer to a value of a wrong type in a JSON text, which stands
// at a place in the request.
func mistyped(wrong *json.UnmarshalTypeError, data []byte, at ...any) *failure {
	path, _ := placeOf(json.NewDecoder(bytes.NewReader(data)), wrong.Offset)
	// The offset counts from elsewhere in a type that reads itself. The names
	// of the fields are right there, too, and say less.
	fields := strings.Split(wrong.Field, ".")
	for _, step := range path {
		if len(fields) > 0 && step == fields[0] {
			fields = fields[1:]
		}
	}
	if wrong.Field != "" && len(fields) > 0 {
		path = nil
		for field := range strings.SplitSeq(wrong.Field, ".") {
			path = append(path, field)
		}
	}
	return invalidAt(append(at, path...), "want %s, got %s", inWords(wrong.Type), wrong.Value)
}

// placeOf is the path to the value that ends at an offset of a JSON text or, if
// it is a list or an object, begins there.
func placeOf(d *json.Decoder, offset int64) (path []any, found bool) {
	token, err := d.Token()
	if err != nil || d.InputOffset() >= offset {
		return nil, err == nil
	}
	for i := 0; (token == json.Delim('{') || token == json.Delim('[')) && d.More(); i++ {
		var step any = i
		if token == json.Delim('{') {
			step, _ = d.Token()
		}
		if path, found := placeOf(d, offset); found {
			return append([]any{step}, path...), true
		}
	}
	if _, open := token.(json.Delim); open {
		d.Token() // its end
	}
	return nil, false
}

func inWords(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "a list"
	case reflect.Int, reflect.Int64:
		return "an integer"
	}
	return "an object"
}

// recorder remembers the status that was answered.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController flush and hijack.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
