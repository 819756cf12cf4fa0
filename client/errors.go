package client

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the errors of the sandbox API: one type, the kinds that it
// comes in (protocol.md §3.2), and the maps from an answer's status to a kind
// (§3.3–§3.6).

// A Kind is one error type of the SDK and, as an error, the sentinel for it:
// errors.Is(err, ErrNotFound) holds for errors of that kind and of kinds below.
type Kind struct {
	name   string
	parent *Kind
}

// Name is the SDK's name of the kind, such as "ResourceNotFoundError".
func (k *Kind) Name() string { return k.name }

// Parent is the kind above, or nil for ErrClient.
func (k *Kind) Parent() *Kind { return k.parent }

func (k *Kind) Error() string { return k.name }

// The hierarchy of protocol.md §3.2.
var (
	ErrClient                   = &Kind{"SandboxClientError", nil}
	ErrAPI                      = &Kind{"SandboxAPIError", ErrClient}
	ErrAuthentication           = &Kind{"SandboxAuthenticationError", ErrClient}
	ErrConnection               = &Kind{"SandboxConnectionError", ErrClient}
	ErrServerReload             = &Kind{"SandboxServerReloadError", ErrConnection}
	ErrRetryableConnection      = &Kind{"SandboxRetryableConnectionError", ErrConnection}
	ErrConnectTimeout           = &Kind{"SandboxConnectTimeoutError", ErrRetryableConnection}
	ErrNotFound                 = &Kind{"ResourceNotFoundError", ErrClient}
	ErrTimeout                  = &Kind{"ResourceTimeoutError", ErrClient}
	ErrInUse                    = &Kind{"ResourceInUseError", ErrClient}
	ErrAlreadyExists            = &Kind{"ResourceAlreadyExistsError", ErrClient}
	ErrNameConflict             = &Kind{"ResourceNameConflictError", ErrClient}
	ErrValidation               = &Kind{"ValidationError", ErrClient}
	ErrQuotaExceeded            = &Kind{"QuotaExceededError", ErrClient}
	ErrCreation                 = &Kind{"ResourceCreationError", ErrClient}
	ErrDataplaneNotConfigured   = &Kind{"DataplaneNotConfiguredError", ErrClient}
	ErrNotReady                 = &Kind{"SandboxNotReadyError", ErrClient}
	ErrOperation                = &Kind{"SandboxOperationError", ErrClient}
	ErrCommandTimeout           = &Kind{"CommandTimeoutError", ErrOperation}
	ErrTunnel                   = &Kind{"TunnelError", ErrClient}
	ErrTunnelPortNotAllowed     = &Kind{"TunnelPortNotAllowedError", ErrTunnel}
	ErrTunnelConnectionRefused  = &Kind{"TunnelConnectionRefusedError", ErrTunnel}
	ErrTunnelUnsupportedVersion = &Kind{"TunnelUnsupportedVersionError", ErrTunnel}
)

// Kinds lists every kind, each after its parent.
func Kinds() []*Kind {
	return []*Kind{
		ErrClient, ErrAPI, ErrAuthentication, ErrConnection, ErrServerReload, ErrRetryableConnection, ErrConnectTimeout,
		ErrNotFound, ErrTimeout, ErrInUse, ErrAlreadyExists, ErrNameConflict, ErrValidation, ErrQuotaExceeded, ErrCreation,
		ErrDataplaneNotConfigured, ErrNotReady, ErrOperation, ErrCommandTimeout,
		ErrTunnel, ErrTunnelPortNotAllowed, ErrTunnelConnectionRefused, ErrTunnelUnsupportedVersion,
	}
}

// Error is a failure of the sandbox API. Fields that do not belong to its kind
// are zero.
type Error struct {
	Kind    *Kind
	Message string

	Status       int    // of the answer; 0 if there was none
	ErrorType    string // as the server named it, such as "ImagePull"
	ErrorID      string // by which the server's operator finds it
	ResourceType string // sandbox, template, volume, pool, snapshot or file
	LastStatus   string // of ErrTimeout
	Field        string // of ErrValidation
	Details      []wire.InputError
	QuotaType    string        // sandbox_count, cpu, memory, volume_count or storage
	Operation    string        // command, read, write or reconnect
	Timeout      time.Duration // of ErrCommandTimeout
	Port         int           // of tunnels
	RetryAfter   time.Duration // what an answer asked for; negative if it asked for nothing

	Stdout, Stderr string // of a command, as far as it was received

	Method, Path string // of the request, without credentials
	Body         []byte // of the answer, at most 16 KiB

	Err error // the cause, if it is not the server's answer

	ambiguous bool // an earlier attempt may have succeeded without our hearing of it
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Message)
	if e.LastStatus != "" {
		fmt.Fprintf(&b, " (last_status: %s)", e.LastStatus)
	}
	if e.ErrorType != "" && (e.Kind == ErrCreation || e.Kind == ErrOperation || e.Kind == ErrCommandTimeout) {
		fmt.Fprintf(&b, " [%s]", e.ErrorType)
	}
	if e.ErrorID != "" {
		fmt.Fprintf(&b, " (error_id=%s)", e.ErrorID)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is the error's kind or one above it.
func (e *Error) Is(target error) bool {
	for k := e.Kind; k != nil; k = k.parent {
		if k == target {
			return true
		}
	}
	return false
}

// A mapper turns an answer with an error status into an error's kind and the
// attributes that depend on it.
type mapper func(e *Error, p wire.Problem)

// mapGeneric is G of §3.3.
func mapGeneric(e *Error, p wire.Problem) {
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		e.Kind = ErrAuthentication
	case http.StatusNotFound:
		e.Kind = ErrNotFound
	case http.StatusUnprocessableEntity:
		mapValidation(e, p)
	case http.StatusTooManyRequests:
		e.Kind, e.QuotaType = ErrQuotaExceeded, quotaType(p.Message)
	case http.StatusInternalServerError:
		e.Kind = ErrAPI
	case http.StatusBadGateway:
		if p.Type == wire.ErrConnection {
			e.Kind = ErrConnection
		}
	}
}

func mapValidation(e *Error, p wire.Problem) {
	e.Kind, e.Field, e.Details = ErrValidation, p.Field(), p.Details
	if e.Details == nil {
		e.Details = []wire.InputError{}
	}
}

// quotaType reads the kind of a quota off its message (§3.1).
func quotaType(message string) string {
	m := strings.ToLower(message)
	counted := strings.Contains(m, "count") || strings.Contains(m, "limit")
	switch {
	case strings.Contains(m, "sandbox") && counted:
		return "sandbox_count"
	case strings.Contains(m, "cpu"):
		return "cpu"
	case strings.Contains(m, "memory"):
		return "memory"
	case strings.Contains(m, "volume") && counted:
		return "volume_count"
	case strings.Contains(m, "storage"):
		return "storage"
	}
	return ""
}

// of is G for calls on one resource: 404 names its type.
func of(resource string) mapper {
	return func(e *Error, p wire.Problem) {
		mapGeneric(e, p)
		if e.Status == http.StatusNotFound {
			e.ResourceType = resource
		}
	}
}

// conflicting is of, where 409 has a kind of its own.
func conflicting(resource string, conflict *Kind) mapper {
	return func(e *Error, p wire.Problem) {
		of(resource)(e, p)
		if e.Status == http.StatusConflict {
			e.Kind, e.ResourceType = conflict, resource
		}
	}
}

// listing is G for a collection: 404 means that there is no such endpoint.
func listing(e *Error, p wire.Problem) {
	mapGeneric(e, p)
	if e.Status == http.StatusNotFound {
		e.Kind = ErrAPI
		e.Message = fmt.Sprintf("this server has no %s (%s)", e.Path, e.Message)
	}
}

// mapBoxCreate is §3.4 with its additions.
func mapBoxCreate(e *Error, p wire.Problem) {
	mapGeneric(e, p)
	switch {
	case e.Status == http.StatusRequestTimeout, e.Status == http.StatusGatewayTimeout:
		e.Kind, e.ResourceType = ErrTimeout, "sandbox"
	case e.Status == http.StatusConflict:
		e.Kind, e.ResourceType = ErrAlreadyExists, "sandbox"
	case e.Status == http.StatusUnprocessableEntity && p.Details == nil:
		e.Kind, e.ResourceType, e.Details = ErrCreation, "sandbox", nil
	case e.Status == http.StatusServiceUnavailable:
		e.Kind, e.ResourceType = ErrCreation, "sandbox"
		if e.ErrorType == "" {
			e.ErrorType = "Unschedulable"
		}
	case e.Status == http.StatusInternalServerError && isCreationType(p.Type):
		e.Kind, e.ResourceType = ErrCreation, "sandbox"
	}
}

func isCreationType(errorType string) bool {
	switch errorType {
	case "ImagePull", "CrashLoop", "SandboxConfig", "Unschedulable", "VolumeProvisioning":
		return true
	}
	return false
}

// mapDataplane is §3.6, in its order, with its additions.
func mapDataplane(e *Error, p wire.Problem) {
	operation := func(name string) { e.Kind, e.Operation = ErrOperation, name }
	switch {
	case p.Type == wire.ErrWrite:
		operation("write")
	case p.Type == wire.ErrRead:
		operation("read")
	case p.Type == wire.ErrCommandTimeout, p.Reason == wire.ErrCommandTimeout:
		operation("command")
		e.Kind, e.ErrorType = ErrCommandTimeout, wire.ErrCommandTimeout
	case p.Type == wire.ErrCommand:
		operation("command")
	case e.Status == http.StatusForbidden:
		operation("")
		e.ErrorType = wire.ErrPermissionDenied
	case e.Status == http.StatusBadGateway && p.Type == wire.ErrConnection:
		e.Kind = ErrConnection
	case e.Status == http.StatusBadRequest && p.Type == wire.ErrNotReady,
		e.Status == http.StatusServiceUnavailable && p.Type == wire.ErrServiceUnavailable:
		e.Kind = ErrNotReady
	case e.Status == http.StatusNotFound, p.Type == wire.ErrFileNotFound:
		e.Kind, e.ResourceType = ErrNotFound, "file"
	case e.Status == http.StatusUnauthorized:
		e.Kind = ErrAuthentication
	case e.Status == http.StatusTooManyRequests:
		e.Kind, e.QuotaType = ErrQuotaExceeded, quotaType(p.Message)
	}
}

// answerError reads an answer with an error status; raw is its body.
func answerError(method, path string, status int, header http.Header, raw []byte, m mapper) *Error {
	p := wire.DecodeProblem(status, raw)
	e := &Error{
		Kind: ErrClient, Message: p.Message, Status: status, ErrorType: p.Type, ErrorID: p.ID,
		Method: method, Path: path, Body: raw[:min(len(raw), maxErrorBody)], RetryAfter: retryAfter(header),
	}
	switch {
	case status/100 == 3:
		e.Message = fmt.Sprintf("the server redirects %s %s, which is not followed; name its real address as the endpoint", method, path)
	case status/100 < 3 || !json.Valid(raw):
		e.Message = fmt.Sprintf("%s %s was answered with status %d and no reason: is this a sandbox server?", method, path, status)
	}
	m(e, p)
	return e
}

// connectionError is a failure to reach the server or to hear all it said.
func connectionError(kind *Kind, method, path string, cause error) *Error {
	return &Error{Kind: kind, Message: fmt.Sprintf("%s %s: %v", method, path, cause), Method: method, Path: path, Err: cause}
}

// argumentError is bad input that was found before any request.
func argumentError(format string, args ...any) *Error {
	return &Error{Kind: ErrValidation, Message: fmt.Sprintf(format, args...), Details: []wire.InputError{}}
}
