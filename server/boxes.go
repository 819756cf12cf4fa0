package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"reflect"
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
	Box        wire.Box            `json:"box"` // less what depends on who asks
	TemplateID string              `json:"template_id,omitempty"`
	Runtime    string              `json:"runtime"` // that made it
	Hostname   string              `json:"hostname"`
	Image      string              `json:"image"`
	Digest     string              `json:"digest,omitempty"` // of the image, once it is known
	Env        map[string]string   `json:"env,omitempty"`
	Mounts     []wire.VolumeMount  `json:"mounts,omitempty"` // volumes by id
	Limits     runtime.Limits      `json:"limits,omitzero"`
	Git        []gitMount          `json:"git,omitempty"`
	Pool       string              `json:"pool,omitempty"`  // id of the pool that keeps it ready, or of the snapshot that is built with it; hidden as long
	Layer      string              `json:"layer,omitempty"` // id of the snapshot whose files it started with
	Classic    bool                `json:"classic,omitempty"`
	Used       time.Time           `json:"used,omitzero"` // last, or up to tidyEvery before that
	Lease      *lease              `json:"lease,omitempty"`
	Services   []wire.ServiceGrant `json:"services,omitempty"`  // ports that tokens were made for
	InMemory   bool                `json:"in_memory,omitempty"` // where it does
	Unmade     bool                `json:"unmade,omitempty"`    // never was ready: to start it is to make it
	Owner      string              `json:"owner,omitempty"`     // the server that is making, starting, stopping or deleting it

	fresh      bool   // the registry is to be asked, whatever there is
	registry   string // id of the record to log in by
	imageBytes int64
}

func (s *Server) spec(b *box) runtime.Spec {
	spec := runtime.Spec{ID: b.Box.ID, Hostname: b.Hostname, Dir: s.store.boxDir(b.Box.ID), Image: cmp.Or(b.Digest, b.Image), Env: b.env(), Limits: b.Limits, InMemory: b.InMemory}
	if b.Layer != "" {
		spec.Snapshot = s.store.layerDir(b.Layer)
	}
	for _, m := range b.Mounts {
		spec.Mounts = append(spec.Mounts, runtime.Mount{Source: s.store.volumeDir(m.VolumeName), Target: m.MountPath})
	}
	spec.Mounts = append(spec.Mounts, s.gitSpec(b)...)
	return spec
}

// orphan reports whether the server that was working on a sandbox has ended
// without finishing.
func (s *Server) orphan(b *box) bool { return b.Owner != "" && !s.store.alive(b.Owner) }

// status is what the record says, or what it means if nobody works on it any more.
func (s *Server) status(b *box) (status, message string) {
	if s.orphan(b) {
		if !b.Unmade && b.Box.Status != wire.StatusDeleting {
			return wire.StatusStopped, "" // in the middle of stopping or starting
		}
		return wire.StatusFailed, "the server stopped in the middle of making or deleting this sandbox: delete it"
	}
	return b.Box.Status, b.Box.StatusMessage
}

// boxCreate is the body of POST /boxes: what our client sends, and what others
// may (protocol.md §2.4, §16.6).
type boxCreate struct {
	wire.BoxCreate
	others
	proxy    *wire.ProxyConfig
	git      []gitMount
	ordinary bool // a sandbox that a pool has ready will do
}

type others struct {
	Snapshot      string `json:"snapshot"`
	CPUMillicores *int   `json:"cpu_millicores"`
	Volumes       []any  `json:"volumes"`
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
	in.ordinary = ordinary(c.body)
	b := &box{
		Box: wire.Box{
			Status: wire.StatusProvisioning, Labels: in.Labels, RunConfig: in.RunConfig, ProxyConfig: in.proxy,
			VCPUs: in.VCPUs, MemBytes: in.MemBytes, FSCapacityBytes: in.FSCapacityBytes,
		},
		Runtime: s.options.Runtime.Info().Name, Image: runtime.HostImage, Env: in.EnvVars, Git: in.git, Unmade: true, Owner: s.store.owner,
	}
	s.lifetimes(b, &in)
	var err error
	if b.Lease, err = s.newLease(in.Lease); err != nil {
		return 0, nil, err
	}
	if err := s.store.update(c.Context(), func() error { return s.register(b, &in) }); err != nil {
		return 0, nil, err
	}
	if b.Box.Status == wire.StatusReady { // a pool had it
		s.tendPools()
		if !s.answers(c.Context(), b) {
			if err := s.delete(c.Context(), b.Box.ID); err != nil {
				return 0, nil, err
			}
			return s.createBox(c)
		}
		return http.StatusCreated, s.view(c.Request, b), nil
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
		if b, err = s.store.boxes.get(b.Box.ID); err != nil {
			return 0, nil, wasDeleted()
		}
	}
	return http.StatusCreated, s.view(c.Request, b), nil
}

// register gives a sandbox its id and name, and writes its first record.
func (s *Server) register(b *box, in *boxCreate) error {
	name := in.Name
	b.InMemory = s.options.Runtime.Info().InMemory
	if err := s.fromSnapshot(b, in); err != nil {
		return err
	}
	if in.TemplateName != "" {
		t, err := s.store.templates.find(in.TemplateName)
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
		b.TemplateID, b.Box.TemplateName, b.Image, b.Mounts = t.ID, t.Name, t.Image, t.VolumeMounts
		b.Limits = limitsOf(t.Resources)
		for i, m := range b.Git {
			for _, v := range b.Mounts {
				if within(m.Target, v.MountPath) || within(v.MountPath, m.Target) {
					return invalid("body.mount_config.mounts."+strconv.Itoa(i)+".mount_path", "the paths %q and %q overlap", v.MountPath, m.Target)
				}
			}
		}
	}
	in.limit(&b.Limits)
	var all []*box // to be looked at
	names := map[string]bool{}
	if err := s.store.boxes.each(func(_ string, b *box) bool {
		all, names[b.Box.Name] = append(all, b), true
		return true
	}); err != nil {
		return err
	}
	if names[name] {
		return nameTaken(name)
	}
	b.Box.CreatedAt, b.Used = s.now(), s.options.Now()
	b.Box.UpdatedAt = b.Box.CreatedAt
	b.expiry()
	if s.handOut(b, in, all) {
		return s.store.boxes.put(b.Box.ID, b)
	}
	if err := roomFor("sandboxes", len(all), s.options.Quota.Sandboxes); err != nil {
		return err
	}
	b.Box.ID, b.Box.Name = s.options.NewID(), name
	for b.Box.Name == "" {
		if generated := "sandbox-" + b.Box.ID[max(0, len(b.Box.ID)-8):]; !names[generated] {
			b.Box.Name = generated
		} else {
			b.Box.ID = s.options.NewID()
		}
	}
	b.Hostname = b.Box.Name
	err := os.MkdirAll(s.store.boxDir(b.Box.ID), 0o700)
	if err == nil {
		err = s.store.boxes.put(b.Box.ID, b)
	}
	if err != nil {
		s.store.discard(b.Box.ID)
	}
	return err
}

// limit sets the limits that a request names itself (protocol.md §2.4).
func (in *boxCreate) limit(l *runtime.Limits) {
	if in.VCPUs != nil {
		l.CPU = 1000 * int64(min(*in.VCPUs, 1<<20))
	}
	if in.CPUMillicores != nil {
		l.CPU = int64(*in.CPUMillicores)
	}
	if in.MemBytes != nil {
		l.Memory = *in.MemBytes
	}
	if in.FSCapacityBytes != nil {
		l.Storage = *in.FSCapacityBytes
	}
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
	if err := checkEnv("body.env_vars", in.EnvVars); err != nil {
		return err
	}
	if err := s.checkSource(in); err != nil {
		return err
	}
	if err := checkTTLs(in.TTLSeconds, in.IdleTTLSeconds, in.DeleteAfterStopSeconds); err != nil {
		return err
	}
	if err := checkRunConfig(in.RunConfig); err != nil {
		return err
	}
	var err error
	if in.proxy, err = s.proxyConfig(in.ProxyConfig); err != nil {
		return err
	}
	delegates, err := decodeAt("access_delegation", in.AccessDelegation, new(wire.AccessDelegation))
	if err != nil {
		return err
	}
	if in.git, err = s.gitMounts(in.MountConfig); err != nil {
		return err
	}
	if err := refuse(
		refusal{"access_delegation", delegates, "this server cannot lend its identity"},
		refusal{"preserve_memory_on_stop", in.PreserveMemoryOnStop != nil && *in.PreserveMemoryOnStop, "this server cannot keep memory"},
		refusal{"restore_memory", in.RestoreMemory != nil && *in.RestoreMemory, "this server cannot keep memory"},
		refusal{"persistent", in.Persistent != nil && !*in.Persistent, "every sandbox of this server is persistent"},
		refusal{"volumes", len(in.Volumes) > 0, "this server mounts volumes where a template says: name one by template_name"},
	); err != nil {
		return err
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

// checkTTLs takes the three times to live.
func checkTTLs(ttl, idle, afterStop *int) error {
	for _, t := range []struct {
		field   string
		seconds *int
	}{{"ttl_seconds", ttl}, {"idle_ttl_seconds", idle}, {"delete_after_stop_seconds", afterStop}} {
		if t.seconds != nil && (!wire.ValidTTL(*t.seconds) || *t.seconds > maxTTL) {
			return invalid("body."+t.field, "want 0 or a multiple of 60 up to %d, got %d", maxTTL, *t.seconds)
		}
	}
	return nil
}

func checkEnv(loc string, env map[string]string) error {
	for name, value := range env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00") {
			return invalid(loc, "the environment variable %q cannot be set", name)
		}
	}
	return nil
}

// view is a sandbox as it is answered to r.
func (s *Server) view(r *http.Request, b *box) wire.Box {
	v := b.Box
	v.ProxyConfig = redacted(v.ProxyConfig)
	v.Status, v.StatusMessage = s.status(b)
	if v.Status != wire.StatusStopped {
		v.StoppedAt = ""
	}
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

// findBox looks for a sandbox. Those of pools, and those that are being deleted,
// are not there.
func (s *Server) findBox(name string) (*box, error) {
	return s.store.boxes.findThat(name, func(b *box) bool {
		status, _ := s.status(b)
		return b.Pool == "" && status != wire.StatusDeleting
	})
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
	var fixed struct { // what only the hosted service can change (protocol.md §16.12)
		VCPUs           *int   `json:"vcpus"`
		CPUMillicores   *int   `json:"cpu_millicores"`
		MemBytes        *int64 `json:"mem_bytes"`
		FSCapacityBytes *int64 `json:"fs_capacity_bytes"`
	}
	for _, part := range []any{&in, &fixed} {
		if err := decode(c.body, part); err != nil {
			return 0, nil, err
		}
	}
	const unchangeable = "the limits of a sandbox of this server are set when it is made"
	if err := refuse(
		refusal{"vcpus", fixed.VCPUs != nil, unchangeable},
		refusal{"cpu_millicores", fixed.CPUMillicores != nil, unchangeable},
		refusal{"mem_bytes", fixed.MemBytes != nil, unchangeable},
		refusal{"fs_capacity_bytes", fixed.FSCapacityBytes != nil, unchangeable},
	); err != nil {
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
	if err := checkRunConfig(in.RunConfig); err != nil {
		return 0, nil, err
	}
	proxy, err := s.proxyConfig(in.ProxyConfig)
	if err != nil {
		return 0, nil, err
	}
	var b *box
	var reconfigured bool
	err = s.store.update(c.Context(), func() (err error) {
		if b, err = s.findBox(c.name); err != nil {
			return err
		}
		before := b.Box
		if in.Name != nil && *in.Name != b.Box.Name {
			taken, err := s.store.boxes.search(func(b *box) bool { return b.Box.Name == *in.Name })
			if err != nil {
				return err
			}
			if taken != "" {
				return nameTaken(*in.Name)
			}
			b.Box.Name = *in.Name
		}
		b.Box.TTLSeconds = cmp.Or(in.TTLSeconds, before.TTLSeconds)
		b.Box.IdleTTLSeconds = cmp.Or(in.IdleTTLSeconds, before.IdleTTLSeconds)
		b.Box.DeleteAfterStopSeconds = cmp.Or(in.DeleteAfterStopSeconds, before.DeleteAfterStopSeconds)
		b.Box.RunConfig = overlay(before.RunConfig, in.RunConfig)
		if string(in.ProxyConfig) != "" && string(in.ProxyConfig) != "null" { // {} takes it away
			carryOver(proxy, before.ProxyConfig)
			b.Box.ProxyConfig = proxy
		}
		reconfigured = !reflect.DeepEqual(b.Box.RunConfig, before.RunConfig) || !maps.Equal(ruleEnv(b.Box.ProxyConfig), ruleEnv(before.ProxyConfig))
		b.expiry()
		if reflect.DeepEqual(b.Box, before) {
			return nil
		}
		b.Box.UpdatedAt = s.now()
		return s.store.boxes.put(b.Box.ID, b)
	})
	if err != nil {
		return 0, nil, err
	}
	if status, _ := s.status(b); reconfigured && status == wire.StatusReady {
		h, err := s.reach(c.Context(), b)
		if err == nil {
			err = s.configure(c.Context(), h.instance, b)
		}
		if err != nil && !errors.Is(err, runtime.ErrGone) { // the next start takes it up
			return 0, nil, err
		}
	}
	return http.StatusOK, s.view(c.Request, b), nil
}

// boxKeys are what sandboxes can be sorted by (protocol.md §2.5, §16.12).
var boxKeys = map[string]func(wire.Box) string{
	"created_at":                func(b wire.Box) string { return b.CreatedAt },
	"name":                      func(b wire.Box) string { return b.Name },
	"status":                    func(b wire.Box) string { return b.Status },
	"stopped_at":                func(b wire.Box) string { return b.StoppedAt },
	"idle_ttl_seconds":          func(b wire.Box) string { return sortable(b.IdleTTLSeconds) },
	"delete_after_stop_seconds": func(b wire.Box) string { return sortable(b.DeleteAfterStopSeconds) },
}

// sortable is a number as text that sorts like it; nil comes first.
func sortable(n *int) string {
	if n == nil {
		return ""
	}
	return fmt.Sprintf("%012d", *n)
}

func (s *Server) listBoxes(c call) (int, any, error) {
	query := c.URL.Query()
	if query.Has("tag_value_id") {
		return 0, nil, unsupported("tag_value_id", "this server keeps no tags: filter by label")
	}
	all, err := s.store.boxes.all()
	if err != nil {
		return 0, nil, err
	}
	var found []wire.Box
	for _, b := range all {
		if b.Pool != "" {
			continue
		}
		v := s.view(c.Request, s.checked(c.Context(), b))
		if v.Status != wire.StatusDeleting && matches(&v, query) {
			found = append(found, v)
		}
	}
	return listing[wire.Box]{
		field: "sandboxes", most: maxPage, page: defaultPage,
		keys: boxKeys, id: func(b wire.Box) string { return b.ID },
	}.answer(query, found)
}

// matches applies the filters of protocol.md §2.5. Everybody who lists is the
// one who created.
func matches(b *wire.Box, query url.Values) bool {
	if status := query.Get("status"); status != "" && status != b.Status {
		return false
	}
	return hasLabels(b.Labels, query["label"]) && strings.Contains(b.Name, query.Get("name_contains"))
}

// hasLabels reports whether all that are wanted, as key or key=value, are there.
func hasLabels(labels map[string]string, wanted []string) bool {
	for _, label := range wanted {
		key, want, exact := strings.Cut(label, "=")
		if got, ok := labels[key]; !ok || exact && got != want {
			return false
		}
	}
	return true
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
