package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines sandboxes as the control plane sees them, "boxes" on the
// wire (protocol.md §2.4, §2.5). How they come and go is in placing.go.

// box is the record of a sandbox.
type box struct {
	Box        wire.Box          `json:"box"` // less what depends on who asks
	TemplateID string            `json:"template_id,omitempty"`
	Runtime    string            `json:"runtime"` // that made it
	Hostname   string            `json:"hostname"`
	Image      string            `json:"image"`
	Env        map[string]string `json:"env,omitempty"`
	Owner      string            `json:"owner,omitempty"` // the server that is making or deleting it
}

func (s *Server) spec(b *box) runtime.Spec {
	return runtime.Spec{ID: b.Box.ID, Hostname: b.Hostname, Dir: s.store.boxDir(b.Box.ID), Image: b.Image, Env: maps.Clone(b.Env)}
}

// orphan reports whether the server that was making or deleting a sandbox has
// ended without finishing.
func (s *Server) orphan(b *box) bool { return b.Owner != "" && !s.store.alive(b.Owner) }

// status is what the record says, or what it means if nobody works on it any more.
func (s *Server) status(b *box) (status, message string) {
	if s.orphan(b) {
		return wire.StatusFailed, "the server stopped in the middle of making or deleting this sandbox: delete it"
	}
	return b.Box.Status, b.Box.StatusMessage
}

// boxCreate is the body of POST /boxes: what our client sends, and what others
// may (protocol.md §2.4, §16.6).
type boxCreate struct {
	wire.BoxCreate
	others
}

type others struct {
	Snapshot             string          `json:"snapshot"`
	CPUMillicores        *int            `json:"cpu_millicores"`
	AccessDelegation     json.RawMessage `json:"access_delegation"`
	PreserveMemoryOnStop bool            `json:"preserve_memory_on_stop"`
	RestoreMemory        bool            `json:"restore_memory"`
	Persistent           *bool           `json:"persistent"`
}

const (
	defaultWait = 30 // seconds (protocol.md §2.4)
	maxWait     = 600
)

func (s *Server) createBox(c call) (int, any, error) {
	in := boxCreate{BoxCreate: wire.BoxCreate{WaitForReady: true}}
	for _, part := range []any{&in.BoxCreate, &in.others} { // at once, errors would name the parts
		if err := decode(c.body, part); err != nil {
			return 0, nil, err
		}
	}
	if err := s.checkCreate(&in); err != nil {
		return 0, nil, err
	}
	b := &box{
		Box: wire.Box{
			Status: wire.StatusProvisioning, Labels: in.Labels, RunConfig: in.RunConfig,
			VCPUs: in.VCPUs, MemBytes: in.MemBytes, FSCapacityBytes: in.FSCapacityBytes,
			TTLSeconds: in.TTLSeconds, IdleTTLSeconds: in.IdleTTLSeconds, DeleteAfterStopSeconds: in.DeleteAfterStopSeconds,
		},
		Runtime: s.options.Runtime.Info().Name, Image: runtime.HostImage, Env: in.EnvVars, Owner: s.store.owner,
	}
	if err := s.store.update(c.Context(), func() error { return s.register(b, in.Name, in.TemplateName) }); err != nil {
		return 0, nil, err
	}
	h := s.place(b, in.WaitForReady)
	if in.WaitForReady {
		seconds := defaultWait
		if in.Timeout != nil {
			seconds = min(max(*in.Timeout, 1), maxWait)
		}
		if err := s.waitReady(c.Context(), b, h, time.Duration(seconds)*time.Second); err != nil {
			return 0, nil, err
		}
		var err error
		if b, err = s.store.boxes.get(b.Box.ID); err != nil {
			return 0, nil, wasDeleted()
		}
	}
	return http.StatusCreated, s.view(c.Request, b), nil
}

// register gives a sandbox its id and name, and writes its first record.
func (s *Server) register(b *box, name, template string) error {
	if template != "" {
		t, err := s.findTemplate(template)
		if f, ok := errors.AsType[*failure](err); ok {
			return fail(http.StatusBadRequest, kindNoTemplate, "%v", f)
		}
		if err != nil {
			return err
		}
		// The template may have been made by a server that enforces more.
		if err := s.checkResources(t.Resources); err != nil {
			return err
		}
		b.TemplateID, b.Box.TemplateName, b.Image = t.ID, t.Name, t.Image
	}
	all, err := s.store.boxes.all()
	if err != nil {
		return err
	}
	taken := func(name string) bool {
		return slices.ContainsFunc(all, func(b *box) bool { return b.Box.Name == name })
	}
	if taken(name) {
		return nameTaken(name)
	}
	b.Box.ID, b.Box.Name = s.options.NewID(), name
	for b.Box.Name == "" {
		if generated := "sandbox-" + b.Box.ID[max(0, len(b.Box.ID)-8):]; !taken(generated) {
			b.Box.Name = generated
		} else {
			b.Box.ID = s.options.NewID()
		}
	}
	b.Hostname, b.Box.CreatedAt = b.Box.Name, s.now()
	b.Box.UpdatedAt = b.Box.CreatedAt
	if err = os.MkdirAll(s.store.boxDir(b.Box.ID), 0o700); err == nil {
		err = s.store.boxes.put(b.Box.ID, b)
	}
	if err != nil {
		s.store.discard(b.Box.ID)
	}
	return err
}

func nameTaken(name string) error {
	return fail(http.StatusConflict, kindConflict, "there is a sandbox %q already", name)
}

// checkCreate refuses what is wrong, and by name what this server cannot do.
func (s *Server) checkCreate(in *boxCreate) error {
	if in.Name != "" {
		if err := checkName(in.Name); err != nil {
			return err
		}
	}
	for name := range in.EnvVars {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(in.EnvVars[name], "\x00") {
			return invalid("body.env_vars", "the environment variable %q cannot be set", name)
		}
	}
	if err := checkTTLs(in.TTLSeconds, in.IdleTTLSeconds, in.DeleteAfterStopSeconds); err != nil {
		return err
	}
	if err := checkConfigs(in.ProxyConfig, in.RunConfig); err != nil {
		return err
	}
	for _, no := range []struct {
		field string
		asked bool
		why   string
	}{
		{"snapshot_id", in.SnapshotID != "", "this server has no snapshots"},
		{"snapshot_name", in.SnapshotName != "", "this server has no snapshots"},
		{"snapshot", in.Snapshot != "", "this server has no snapshots"},
		{"mount_config", given(in.MountConfig), "this server mounts nothing"},
		{"access_delegation", given(in.AccessDelegation), "this server cannot lend its identity"},
		{"preserve_memory_on_stop", in.PreserveMemoryOnStop, "this server cannot keep memory"},
		{"restore_memory", in.RestoreMemory, "this server cannot keep memory"},
		{"persistent", in.Persistent != nil && !*in.Persistent, "every sandbox of this server is persistent"},
	} {
		if no.asked {
			return unsupported(no.field, no.why)
		}
	}
	for _, size := range []struct {
		field    string
		positive bool
	}{
		{"vcpus", in.VCPUs == nil || *in.VCPUs > 0},
		{"cpu_millicores", in.CPUMillicores == nil || *in.CPUMillicores > 0},
		{"mem_bytes", in.MemBytes == nil || *in.MemBytes > 0},
		{"fs_capacity_bytes", in.FSCapacityBytes == nil || *in.FSCapacityBytes > 0},
	} {
		if !size.positive {
			return invalid("body."+size.field, "want a number above 0")
		}
	}
	enforces := s.options.Runtime.Info().Enforces
	return s.checkLimits(
		limit{"vcpus", in.VCPUs != nil, enforces.CPU},
		limit{"cpu_millicores", in.CPUMillicores != nil, enforces.CPU},
		limit{"mem_bytes", in.MemBytes != nil, enforces.Memory},
		limit{"fs_capacity_bytes", in.FSCapacityBytes != nil, enforces.Storage})
}

// checkTTLs takes the three times to live: zero, which is "never", is all that
// this server can do.
func checkTTLs(ttl, idle, afterStop *int) error {
	for _, t := range []struct {
		field   string
		seconds *int
	}{{"ttl_seconds", ttl}, {"idle_ttl_seconds", idle}, {"delete_after_stop_seconds", afterStop}} {
		switch {
		case t.seconds == nil:
		case !wire.ValidTTL(*t.seconds):
			return invalid("body."+t.field, "want 0 or a multiple of 60, got %d", *t.seconds)
		case *t.seconds != 0:
			return unsupported(t.field, "this server ends no sandbox by itself; leave it out or give 0")
		}
	}
	return nil
}

func checkConfigs(proxy json.RawMessage, run *wire.RunConfig) error {
	if given(proxy) {
		return unsupported("proxy_config", "this server has no egress proxy")
	}
	if run != nil && (run.User != "" || run.WorkDir != "" || len(run.EnvVars) > 0) {
		return unsupported("run_config", "this server takes it with each command, and env_vars with the sandbox")
	}
	return nil
}

// given reports whether an object asks for anything: null and {} do not.
func given(raw json.RawMessage) bool {
	var fields map[string]any
	return len(raw) > 0 && (json.Unmarshal(raw, &fields) != nil || len(fields) > 0)
}

// view is a sandbox as it is answered to r.
func (s *Server) view(r *http.Request, b *box) wire.Box {
	v := b.Box
	v.Status, v.StatusMessage = s.status(b)
	v.DataplaneURL = s.baseURL(r) + sandboxPath + v.ID
	if b.TemplateID != "" {
		if t, err := s.store.templates.get(b.TemplateID); err == nil {
			v.TemplateName = t.Name // it may have been renamed
		}
	}
	return v
}

func (s *Server) baseURL(r *http.Request) string {
	if s.publicURL != nil {
		return s.publicURL.String()
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	return scheme + "://" + r.Host
}

// findBox looks for a name first and then for an id (protocol.md §2.0). Those
// that are being deleted are not there.
func (s *Server) findBox(name string) (*box, error) {
	all, err := s.store.boxes.all()
	if err != nil {
		return nil, err
	}
	for _, key := range []func(*box) string{
		func(b *box) string { return b.Box.Name },
		func(b *box) string { return b.Box.ID },
	} {
		i := slices.IndexFunc(all, func(b *box) bool { return key(b) == name })
		if i < 0 {
			continue
		}
		if status, _ := s.status(all[i]); status != wire.StatusDeleting {
			return all[i], nil
		}
	}
	return nil, fail(http.StatusNotFound, kindNotFound, "there is no sandbox %q", name)
}

func (s *Server) getBox(c call) (int, any, error) {
	b, err := s.findBox(c.name)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, s.view(c.Request, s.checked(c.Context(), b)), nil
}

func (s *Server) boxStatus(c call) (int, any, error) {
	b, err := s.findBox(c.name)
	if err != nil {
		return 0, nil, err
	}
	status, message := s.status(s.checked(c.Context(), b))
	answer := wire.BoxStatus{Status: status}
	if message != "" {
		answer.StatusMessage = &message
	}
	return http.StatusOK, answer, nil
}

func (s *Server) updateBox(c call) (int, any, error) {
	var in wire.BoxUpdate
	if err := decode(c.body, &in); err != nil {
		return 0, nil, err
	}
	if in.Name != nil {
		if err := checkName(*in.Name); err != nil {
			return 0, nil, err
		}
	}
	if err := checkTTLs(in.TTLSeconds, in.IdleTTLSeconds, in.DeleteAfterStopSeconds); err != nil {
		return 0, nil, err
	}
	if err := checkConfigs(in.ProxyConfig, in.RunConfig); err != nil {
		return 0, nil, err
	}
	var b *box
	err := s.store.update(c.Context(), func() (err error) {
		if b, err = s.findBox(c.name); err != nil {
			return err
		}
		before := b.Box
		if in.Name != nil && *in.Name != b.Box.Name {
			all, err := s.store.boxes.all()
			if err != nil {
				return err
			}
			if slices.ContainsFunc(all, func(b *box) bool { return b.Box.Name == *in.Name }) {
				return nameTaken(*in.Name)
			}
			b.Box.Name = *in.Name
		}
		b.Box.TTLSeconds = cmp.Or(in.TTLSeconds, before.TTLSeconds)
		b.Box.IdleTTLSeconds = cmp.Or(in.IdleTTLSeconds, before.IdleTTLSeconds)
		b.Box.DeleteAfterStopSeconds = cmp.Or(in.DeleteAfterStopSeconds, before.DeleteAfterStopSeconds)
		b.Box.RunConfig = cmp.Or(in.RunConfig, before.RunConfig)
		if reflect.DeepEqual(b.Box, before) {
			return nil
		}
		b.Box.UpdatedAt = s.now()
		return s.store.boxes.put(b.Box.ID, b)
	})
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, s.view(c.Request, b), nil
}

func (s *Server) listBoxes(c call) (int, any, error) {
	query := c.URL.Query()
	order, err := boxOrder(query)
	if err != nil {
		return 0, nil, err
	}
	all, err := s.store.boxes.all()
	if err != nil {
		return 0, nil, err
	}
	var found []wire.Box
	for _, b := range all {
		v := s.view(c.Request, s.checked(c.Context(), b))
		if v.Status != wire.StatusDeleting && matches(&v, query) {
			found = append(found, v)
		}
	}
	slices.SortFunc(found, order)
	found, offset, err := page(query, found)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, struct {
		wire.BoxList
		Offset int `json:"offset"`
	}{wire.BoxList{Boxes: append([]wire.Box{}, found...)}, offset}, nil
}

// matches applies the filters of protocol.md §2.5. Everybody who lists is the
// one who created.
func matches(b *wire.Box, query url.Values) bool {
	if status := query.Get("status"); status != "" && status != b.Status {
		return false
	}
	for _, label := range query["label"] {
		key, want, exact := strings.Cut(label, "=")
		if got, ok := b.Labels[key]; !ok || exact && got != want {
			return false
		}
	}
	return strings.Contains(b.Name, query.Get("name_contains"))
}

func boxOrder(query url.Values) (func(a, b wire.Box) int, error) {
	key, ok := map[string]func(wire.Box) string{
		"":           func(b wire.Box) string { return b.CreatedAt },
		"created_at": func(b wire.Box) string { return b.CreatedAt },
		"name":       func(b wire.Box) string { return b.Name },
		"status":     func(b wire.Box) string { return b.Status },
	}[query.Get("sort_by")]
	if !ok {
		return nil, invalid("query.sort_by", "want name, status or created_at")
	}
	sign, ok := map[string]int{"": -1, "desc": -1, "asc": 1}[query.Get("sort_direction")]
	if !ok {
		return nil, invalid("query.sort_direction", "want asc or desc")
	}
	return func(a, b wire.Box) int {
		return sign * cmp.Or(cmp.Compare(key(a), key(b)), cmp.Compare(a.ID, b.ID))
	}, nil
}

// page cuts out what limit and offset ask for; without a limit it is all.
func page[T any](query url.Values, all []T) (cut []T, offset int, err error) {
	number := func(name string, fallback, least int) (int, error) {
		text := query.Get(name)
		if text == "" {
			return fallback, nil
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < least {
			return 0, invalid("query."+name, "want an integer from %d", least)
		}
		return n, nil
	}
	limit, err := number("limit", len(all), 1)
	if err != nil {
		return nil, 0, err
	}
	if offset, err = number("offset", 0, 0); err != nil {
		return nil, 0, err
	}
	rest := all[min(offset, len(all)):]
	return rest[:min(limit, len(rest))], offset, nil
}

// checked returns the record of a sandbox after a look whether its daemon
// lives, if nobody has looked before.
func (s *Server) checked(ctx context.Context, b *box) *box {
	if status, _ := s.status(b); status == wire.StatusReady && b.Runtime == s.options.Runtime.Info().Name {
		if _, err := s.reach(ctx, b); errors.Is(err, runtime.ErrGone) {
			if now, err := s.store.boxes.get(b.Box.ID); err == nil {
				return now
			}
		}
	}
	return b
}

// deleteBox answers once nothing of the sandbox is left.
func (s *Server) deleteBox(c call) (int, any, error) {
	return http.StatusNoContent, nil, s.delete(c.Context(), c.name)
}
