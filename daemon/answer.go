//go:build linux

package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"reflect"
	"strings"
	"syscall"

	"github.com/google/uuid"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the routes, and how requests are read and answered.

// unreadMost is how much of a request that is refused is read all the same.
const unreadMost = 64 << 20

// route finds the handler of a request. Unknown paths and methods get form A
// like every other error (§13.16).
func (d *daemon) route(w http.ResponseWriter, r *http.Request) {
	// An answer that comes before the body was read would be lost with the
	// connection, which breaks under the client that still writes.
	defer func() { io.Copy(io.Discard, io.LimitReader(r.Body, unreadMost)) }()
	var handle http.HandlerFunc
	var method, alias string
	switch r.URL.Path {
	case "/execute":
		method, handle = http.MethodPost, d.activity.during(d.execute)
	case "/execute/ws":
		method, handle = http.MethodGet, d.executeWS
	case "/tunnel":
		method, handle = http.MethodGet, d.tunnel
	case "/upload":
		method, handle = http.MethodPost, d.activity.during(d.upload)
	case "/download":
		method, alias, handle = http.MethodGet, http.MethodHead, d.activity.during(d.download)
	case "/glob":
		method, handle = http.MethodPost, d.activity.during(d.glob)
	case "/grep":
		method, handle = http.MethodPost, d.activity.during(d.grep)
	// What follows is for the server, which lets no client through to it.
	case "/activity":
		method, handle = http.MethodGet, d.busy
	case "/config":
		method, handle = http.MethodPut, d.configure
	case "/connect":
		method, handle = http.MethodGet, d.connect
	default:
		answer(w, &failure{status: http.StatusNotFound, Problem: wire.Problem{Type: "NotFound", Message: "no such path: " + r.URL.Path}})
		return
	}
	if r.Method != method && r.Method != alias {
		allowed := method
		if alias != "" {
			allowed += ", " + alias
		}
		w.Header().Set("Allow", allowed)
		answer(w, &failure{status: http.StatusMethodNotAllowed, Problem: wire.Problem{
			Type: "MethodNotAllowed", Message: fmt.Sprintf("%s does not take %s: use %s", r.URL.Path, r.Method, allowed)}})
		return
	}
	handle(w, r)
}

// failure is an error that the client is told of.
type failure struct {
	status int
	wire.Problem
}

func (f *failure) Error() string { return f.Message }

// refuse makes a failure that is the client's or the command's doing.
func refuse(kind, format string, args ...any) *failure {
	return &failure{http.StatusBadRequest, wire.Problem{Type: kind, Message: fmt.Sprintf(format, args...)}}
}

// asFailure makes any other error an internal one.
func asFailure(err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	return &failure{http.StatusInternalServerError, wire.Problem{Type: "InternalError", Message: err.Error()}}
}

// answer writes err as form A; with an id, if the fault is on this side (§3.1).
func answer(w http.ResponseWriter, err error) {
	f := asFailure(err)
	p := f.Problem
	if f.status >= 500 && p.ID == "" {
		p.ID = uuid.NewString()
	}
	answerJSON(w, f.status, p)
}

func answerJSON(w http.ResponseWriter, status int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		panic(err) // every value is one of ours
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(body)
}

// readJSON reads a request's body into value (§13.29).
func (d *daemon) readJSON(w http.ResponseWriter, r *http.Request, value any) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, d.lim.body))
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return &failure{http.StatusRequestEntityTooLarge, wire.Problem{
			Type: wire.ErrInvalidRequest, Message: fmt.Sprintf("the body is larger than %d bytes: send data with an upload", tooLarge.Limit)}}
	}
	if err != nil {
		return refuse(wire.ErrInvalidRequest, "the body ended early: %v", err)
	}
	if err := json.Unmarshal(body, value); err != nil {
		return refuse(wire.ErrInvalidRequest, "the body is refused: %s", explainJSON(err))
	}
	return nil
}

// explainJSON says what is wrong with a message, in the words of JSON.
func explainJSON(err error) string {
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		want := "another type"
		switch wrong.Type.Kind() {
		case reflect.Int, reflect.Int64:
			want = "a whole number"
		case reflect.String:
			want = "a string"
		case reflect.Bool:
			want = "true or false"
		case reflect.Slice:
			want = "a list"
		case reflect.Struct, reflect.Map:
			want = "an object"
		}
		if wrong.Field == "" {
			return fmt.Sprintf("want %s, got %s", want, wrong.Value)
		}
		return fmt.Sprintf("%s: want %s, got %s", wrong.Field, want, wrong.Value)
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Sprintf("not JSON at byte %d: %v", syntax.Offset, syntax)
	}
	return err.Error()
}

// cause strips the operation and the path from an error of the system.
func cause(err error) error {
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		err = path.Err
	}
	if link, ok := errors.AsType[*os.LinkError](err); ok {
		err = link.Err
	}
	return err
}

// resolve makes the path of a file absolute (§5). It is not cleaned: the kernel
// knows better what .. means behind a symbolic link.
func (d *daemon) resolve(path, kind string) (string, error) {
	switch {
	case path == "":
		return "", refuse(kind, "the query parameter path is missing or empty")
	case strings.Contains(path, "\x00"):
		return "", refuse(kind, "the path %q holds a zero byte", path)
	case strings.HasPrefix(path, "/"):
		return path, nil
	}
	return d.cfg.Load().Home + "/" + path, nil
}

// fileFailure maps an error of the system to §5; kind is ReadError or WriteError.
func fileFailure(kind, path string, err error) error {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	message := fmt.Sprintf("%s: %v", path, cause(err))
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return &failure{http.StatusForbidden, wire.Problem{Type: wire.ErrPermissionDenied, Message: message}}
	case kind == wire.ErrRead && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)):
		return &failure{http.StatusNotFound, wire.Problem{Type: wire.ErrFileNotFound, Message: message}}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR),
		errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.ENXIO):
		return refuse(kind, "%s", message)
	}
	return &failure{http.StatusInternalServerError, wire.Problem{Type: kind, Message: message}}
}
