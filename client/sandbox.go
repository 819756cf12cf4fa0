package client

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the calls on sandboxes, which the wire calls boxes
// (protocol.md §2.4–§2.6).

// Sandbox is a sandbox as it was last seen, and what can be done in it. Its
// methods may be called from several goroutines, but for Refresh, which
// replaces the Box that others may be reading.
type Sandbox struct {
	wire.Box
	client *Client
}

// CreateSandbox makes a sandbox and, if b.WaitForReady, waits until it is ready,
// b.Timeout seconds at most (30 if it is nil). A failure leaves none behind as
// far as the server keeps its word; ErrAlreadyExists, ErrCreation, ErrTimeout,
// ErrValidation and ErrQuotaExceeded say why.
func (c *Client) CreateSandbox(ctx context.Context, b wire.BoxCreate) (*Sandbox, error) {
	if err := validateCreate(b); err != nil {
		return nil, err
	}
	request := call{method: http.MethodPost, path: c.path("boxes"), policy: creating, timeout: 30 * time.Second, errors: mapBoxCreate}
	if b.Name != "" {
		request.policy = namedCreating
	}
	wait := 30
	if b.WaitForReady {
		if b.Timeout == nil {
			b.Timeout = &wait
		}
		wait = *b.Timeout
		request.timeout += time.Duration(max(wait, 0)) * time.Second
	} else {
		b.Timeout = nil
	}
	request.body = b
	box, err := send[wire.Box](ctx, c, request)
	if ofRepetition(err, ErrAlreadyExists) {
		return c.created(ctx, b, time.Duration(wait)*time.Second, err)
	}
	if err != nil {
		return nil, err
	}
	return &Sandbox{*box, c}, nil
}

// created looks whether the box that is in the way of a repeated creation is
// the one that the first attempt made, whose answer a gateway lost.
func (c *Client) created(ctx context.Context, b wire.BoxCreate, wait time.Duration, conflict error) (*Sandbox, error) {
	s, err := c.GetSandbox(ctx, b.Name)
	if err != nil || s.TemplateName != b.TemplateName || b.SnapshotID != "" && s.SnapshotID != b.SnapshotID {
		return nil, conflict
	}
	if !b.WaitForReady || s.Status == wire.StatusReady {
		return s, nil
	}
	return c.WaitForSandbox(ctx, b.Name, wait, time.Second)
}

func validateCreate(b wire.BoxCreate) error {
	sources := 0
	for _, s := range []string{b.TemplateName, b.SnapshotID, b.SnapshotName} {
		if s != "" {
			sources++
		}
	}
	if sources > 1 {
		return argumentError("a sandbox is made from one of template_name, snapshot_id and snapshot_name, not from %d of them", sources)
	}
	if err := validateDelegation(b.AccessDelegation); err != nil {
		return err
	}
	return validateTTLs(map[string]*int{"ttl_seconds": b.TTLSeconds, "idle_ttl_seconds": b.IdleTTLSeconds, "delete_after_stop_seconds": b.DeleteAfterStopSeconds})
}

// validateDelegation holds an access_delegation to §16.6.
func validateDelegation(raw json.RawMessage) error {
	if raw == nil {
		return nil
	}
	var d wire.AccessDelegation
	err := json.Unmarshal(raw, &d)
	var wrong string
	switch {
	case err != nil:
		wrong = "must be an object with a mode and a list of permissions"
	case d.Mode != "INHERIT" && d.Mode != "EXPLICIT":
		wrong = fmt.Sprintf("has the mode %q, and it must be INHERIT or EXPLICIT", d.Mode)
	case d.Mode == "INHERIT" && len(d.Permissions) > 0:
		wrong = "has the mode INHERIT, which excludes permissions"
	case d.Mode == "EXPLICIT" && len(d.Permissions) == 0:
		wrong = "has the mode EXPLICIT, and must name at least one permission"
	default:
		return nil
	}
	e := argumentError("access_delegation %s", wrong)
	e.Field = "access_delegation"
	return e
}

func validateTTLs(ttls map[string]*int) error {
	for name, seconds := range ttls {
		if seconds != nil && !wire.ValidTTL(*seconds) {
			e := argumentError("%s is %d, and must be 0 or a positive multiple of 60", name, *seconds)
			e.Field = name
			return e
		}
	}
	return nil
}

// GetSandbox finds a sandbox by its name or id.
func (c *Client) GetSandbox(ctx context.Context, name string) (*Sandbox, error) {
	box, err := send[wire.Box](ctx, c, call{path: c.path("boxes", name), errors: of("sandbox")})
	if err != nil {
		return nil, err
	}
	return &Sandbox{*box, c}, nil
}

// ListSandboxes returns all sandboxes.
func (c *Client) ListSandboxes(ctx context.Context) ([]*Sandbox, error) {
	return c.FindSandboxes(ctx, ListQuery{})
}

// FindSandboxes returns the sandboxes that q describes.
func (c *Client) FindSandboxes(ctx context.Context, q ListQuery) ([]*Sandbox, error) {
	boxes, err := find(q, 50, func(b wire.Box) string { return cmp.Or(b.ID, b.Name) }, func(q ListQuery) ([]wire.Box, error) {
		list, err := send[wire.BoxList](ctx, c, call{path: c.path("boxes"), query: q.values(), errors: listing})
		if err != nil {
			return nil, err
		}
		return list.Boxes, nil
	})
	if err != nil {
		return nil, err
	}
	sandboxes := make([]*Sandbox, len(boxes))
	for i, box := range boxes {
		sandboxes[i] = &Sandbox{box, c}
	}
	return sandboxes, nil
}

// A ListQuery says which resources to list: all of them, or one page if it has a
// Limit or an Offset. Zero fields are left out.
type ListQuery struct {
	NameContains  string // whatever the case of its letters
	Limit, Offset int

	// Of sandboxes only.
	Status string
	Labels map[string]string // that it has, with these values
}

func (q ListQuery) values() url.Values {
	v := url.Values{}
	set := func(name, value string) {
		if value != "" && value != "0" {
			v.Set(name, value)
		}
	}
	set("name_contains", q.NameContains)
	set("status", q.Status)
	set("limit", strconv.Itoa(q.Limit))
	set("offset", strconv.Itoa(q.Offset))
	for _, name := range slices.Sorted(maps.Keys(q.Labels)) {
		v.Add("label", name+"="+q.Labels[name])
	}
	return v
}

// find fetches what a query describes, in pages of so many unless it asks for
// one page only. A server that knows no pages answers with the same ones again.
func find[T any](q ListQuery, size int, id func(T) string, fetch func(ListQuery) ([]T, error)) ([]T, error) {
	if q.Limit != 0 || q.Offset != 0 {
		return fetch(q)
	}
	var all []T
	known := map[string]bool{}
	for q.Limit = size; ; q.Offset = len(all) {
		page, err := fetch(q)
		if err != nil {
			return nil, err
		}
		for _, one := range page {
			if !known[id(one)] {
				known[id(one)] = true
				all = append(all, one)
			}
		}
		if len(page) < size || len(all) == q.Offset {
			return all, nil
		}
	}
}

// UpdateSandbox changes a sandbox, or just looks at it if there is nothing to
// change. A name that is taken is ErrNameConflict, and ErrNotReady is a server
// that takes a proxy_config only while the sandbox runs.
func (c *Client) UpdateSandbox(ctx context.Context, name string, u wire.BoxUpdate) (*Sandbox, error) {
	if err := validateTTLs(map[string]*int{"ttl_seconds": u.TTLSeconds, "idle_ttl_seconds": u.IdleTTLSeconds, "delete_after_stop_seconds": u.DeleteAfterStopSeconds}); err != nil {
		return nil, err
	}
	if reflect.ValueOf(u).IsZero() {
		return c.GetSandbox(ctx, name)
	}
	box, err := send[wire.Box](ctx, c, call{method: http.MethodPatch, path: c.path("boxes", name), body: u, errors: func(e *Error, p wire.Problem) {
		conflicting("sandbox", ErrNameConflict)(e, p)
		if e.Status == http.StatusBadRequest && p.Type == wire.ErrInvalidRequest && u.ProxyConfig != nil {
			e.Kind = ErrNotReady
		}
	}})
	if err != nil {
		return nil, err
	}
	return &Sandbox{*box, c}, nil
}

// DeleteSandbox ends and deletes a sandbox. One that does not exist is
// ErrNotFound, unless it was this call whose first answer got lost.
func (c *Client) DeleteSandbox(ctx context.Context, name string) error {
	return c.delete(ctx, call{path: c.path("boxes", name), errors: of("sandbox")})
}

// delete sends a DELETE. What is gone when it is sent again, was deleted before.
func (c *Client) delete(ctx context.Context, call call) error {
	call.method = http.MethodDelete
	err := c.json(ctx, call, nil)
	if ofRepetition(err, ErrNotFound) {
		return nil
	}
	return err
}

// ofRepetition reports whether err is of that kind and may be the work of an
// earlier attempt, whose answer a gateway lost.
func ofRepetition(err error, kind *Kind) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == kind && e.ambiguous
}

// SandboxStatus is the cheap way to ask how a sandbox is.
func (c *Client) SandboxStatus(ctx context.Context, name string) (*wire.BoxStatus, error) {
	return send[wire.BoxStatus](ctx, c, call{path: c.path("boxes", name, "status"), errors: of("sandbox")})
}

// WaitForSandbox asks every poll interval until the sandbox is ready, at least
// once; an interval of 0 is one of a second. One that failed is ErrCreation, and
// ErrTimeout carries the last status.
func (c *Client) WaitForSandbox(ctx context.Context, name string, timeout, poll time.Duration) (*Sandbox, error) {
	err := c.wait(ctx, "sandbox", timeout, cmp.Or(max(poll, 0), time.Second), func() (state, error) {
		status, err := c.SandboxStatus(ctx, name)
		if err != nil {
			return state{}, err
		}
		seen := state{name: name, status: status.Status}
		if status.StatusMessage != nil {
			seen.reason = *status.StatusMessage
		}
		return seen, nil
	})
	if err != nil {
		return nil, err
	}
	return c.GetSandbox(ctx, name)
}

// A state is how a resource is that is waited for.
type state struct{ name, status, reason string }

// wait looks at a resource every poll interval, at least once, until it is ready
// (§2.5). One that failed is ErrCreation, and ErrTimeout carries the last status.
func (c *Client) wait(ctx context.Context, resource string, timeout, poll time.Duration, look func() (state, error)) error {
	for deadline := time.Now().Add(timeout); ; {
		seen, err := look()
		if err != nil {
			return err
		}
		switch seen.status {
		case wire.StatusReady:
			return nil
		case wire.StatusFailed:
			return &Error{Kind: ErrCreation, Message: cmp.Or(seen.reason, fmt.Sprintf("%s %s could not be made ready", resource, seen.name)), ResourceType: resource}
		}
		left := time.Until(deadline)
		if left <= 0 {
			return &Error{Kind: ErrTimeout, Message: fmt.Sprintf("%s %s was not ready within %v", resource, seen.name, timeout), ResourceType: resource, LastStatus: seen.status}
		}
		if err := c.sleep(ctx, min(poll, left)); err != nil {
			return err
		}
	}
}

// StartSandbox starts a sandbox that is stopped, or failed, and waits until it is
// ready, for the timeout at most; 0 is two minutes. Its files are as they were,
// its processes are gone. Failures are those of WaitForSandbox.
func (c *Client) StartSandbox(ctx context.Context, name string, timeout time.Duration) (*Sandbox, error) {
	if timeout == 0 {
		timeout = 2 * time.Minute
	}
	if err := c.json(ctx, call{method: http.MethodPost, path: c.path("boxes", name, "start"), body: struct{}{}, errors: of("sandbox")}, nil); err != nil {
		return nil, err
	}
	return c.WaitForSandbox(ctx, name, timeout, time.Second)
}

// StopSandbox stops a sandbox: its files stay, its processes do not. It may
// come back before all of them are gone.
func (c *Client) StopSandbox(ctx context.Context, name string) error {
	return c.json(ctx, call{method: http.MethodPost, path: c.path("boxes", name, "stop"), body: struct{}{}, errors: of("sandbox")}, nil)
}

// RenewLease begins the time of a lease anew, for every sandbox that was made
// under it. Where there is none, which includes servers that know no leases,
// the error is ErrNotFound.
func (c *Client) RenewLease(ctx context.Context, id string) error {
	return c.json(ctx, call{method: http.MethodPost, path: c.path("leases", id, "renew"), body: struct{}{}, errors: of("lease")}, nil)
}

// Refresh sees the sandbox again.
func (s *Sandbox) Refresh(ctx context.Context) error {
	seen, err := s.client.GetSandbox(ctx, s.Name)
	if err != nil {
		return err
	}
	s.Box = seen.Box
	return nil
}

// Delete ends and deletes the sandbox.
func (s *Sandbox) Delete(ctx context.Context) error { return s.client.DeleteSandbox(ctx, s.Name) }

// dataplane is an endpoint of the sandbox's daemon, under a scheme of the kind
// that the URL has: http and ws, or https and wss (§1.5).
func (s *Sandbox) dataplane(operation string, socket bool) endpoint {
	if s.DataplaneURL == "" {
		return endpoint{err: &Error{Kind: ErrDataplaneNotConfigured, Message: "sandbox " + s.Name + " has no dataplane_url yet, so nothing can be run in it; wait until its status is ready"}}
	}
	u, err := url.Parse(s.DataplaneURL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return endpoint{err: &Error{Kind: ErrClient, Message: "the server gave sandbox " + s.Name + " the dataplane_url " + s.DataplaneURL + ", which is no http or https URL"}}
	}
	if socket {
		u.Scheme = strings.Replace(u.Scheme, "http", "ws", 1)
	}
	return endpoint{url: u.JoinPath(operation).String()}
}
