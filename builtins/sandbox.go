package builtins

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"sync/atomic"
	"time"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the noun sandbox and the values that it makes.

func newSandboxNoun() *noun {
	return &noun{namespace{
		name: "sandbox",
		call: builtin("sandbox", sandboxScoped),
		members: starlark.StringDict{
			"create": builtin("sandbox.create", sandboxCreate),
			"get":    builtin("sandbox.get", sandboxGet),
			"list":   builtin("sandbox.list", sandboxList),
			"update": builtin("sandbox.update", sandboxUpdate),
			"delete": builtin("sandbox.delete", sandboxDelete),
			"start":  builtin("sandbox.start", sandboxStart),
			"stop":   builtin("sandbox.stop", sandboxStop),
			"status": builtin("sandbox.status", sandboxStatus),
			"wait":   builtin("sandbox.wait", sandboxWait),
		},
	}}
}

// sandboxValue is a sandbox as it was seen last.
type sandboxValue struct {
	conn    *client.Client
	box     atomic.Pointer[client.Sandbox]
	release *entry // nil if it is nobody's to release
}

var (
	_ starlark.HasAttrs = (*sandboxValue)(nil)
	_ resource          = (*sandboxValue)(nil)
	_ scoped            = (*sandboxValue)(nil)
	_ connected         = (*sandboxValue)(nil)
)

func newSandboxValue(cl *client.Client, box *client.Sandbox) *sandboxValue {
	s := &sandboxValue{conn: cl}
	s.box.Store(box)
	return s
}

func (s *sandboxValue) Type() string               { return "sandbox" }
func (s *sandboxValue) Freeze()                    {} // shared from now on, and as alive as before
func (s *sandboxValue) Truth() starlark.Bool       { return true }
func (s *sandboxValue) Hash() (uint32, error)      { return unhashable(s) }
func (s *sandboxValue) held() *entry               { return s.release }
func (s *sandboxValue) resourceName() string       { return s.box.Load().Name }
func (s *sandboxValue) connection() *client.Client { return s.conn }
func (s *sandboxValue) AttrNames() []string        { return sandboxAttributes.names(s.box.Load().Box) }
func (s *sandboxValue) String() string {
	box := s.box.Load()
	return fmt.Sprintf("sandbox(%q, status=%q)", box.Name, box.Status)
}
func (s *sandboxValue) Attr(name string) (starlark.Value, error) {
	return sandboxAttributes.attr(s, s.box.Load().Box, name)
}

var sandboxAttributes = attributes[*sandboxValue]{methods: map[string]*starlark.Builtin{
	"run":                 builtin("Sandbox.run", sandboxRun),
	"reconnect":           builtin("Sandbox.reconnect", sandboxReconnect),
	"write":               builtin("Sandbox.write", sandboxWrite),
	"read":                builtin("Sandbox.read", sandboxRead),
	"read_text":           builtin("Sandbox.read_text", sandboxReadText),
	"exists":              builtin("Sandbox.exists", sandboxExists),
	"upload":              builtin("Sandbox.upload", sandboxUpload),
	"download":            builtin("Sandbox.download", sandboxDownload),
	"refresh":             builtin("Sandbox.refresh", sandboxGet),
	"update":              builtin("Sandbox.update", sandboxUpdate),
	"wait_for_port":       builtin("Sandbox.wait_for_port", sandboxWaitForPort),
	"start":               builtin("Sandbox.start", sandboxStart),
	"stop":                builtin("Sandbox.stop", sandboxStop),
	"service":             builtin("Sandbox.service", sandboxService),
	"tunnel":              builtin("Sandbox.tunnel", sandboxTunnel),
	"service_urls":        builtin("Sandbox.service_urls", sandboxServiceURLs),
	"revoke_service_urls": builtin("Sandbox.revoke_service_urls", sandboxRevokeServiceURLs),
	"download_url":        builtin("Sandbox.download_url", sandboxDownloadURL),
	"stat":                builtin("Sandbox.stat", sandboxStat),
	"read_range":          builtin("Sandbox.read_range", sandboxReadRange),
	"ls":                  builtin("Sandbox.ls", sandboxLs),
	"glob":                builtin("Sandbox.glob", sandboxGlob),
	"grep":                builtin("Sandbox.grep", sandboxGrep),
	"capture_snapshot":    builtin("Sandbox.capture_snapshot", sandboxCapture),
	"delete":              builtin("Sandbox.delete", sandboxDelete),
}}

// sandboxArgs are the parameters that all ways to create one have in common.
type sandboxArgs struct {
	template, snapshot            named
	snapshotName, name            optional[string]
	timeout                       wholeSeconds
	ttl, idleTTL, deleteAfterStop ttl
	vcpus                         positive[int]
	memBytes, fsCapacityBytes     positive[int64]
	envVars, labels               stringDict
	proxyConfig, mountConfig      jsonObject
	runConfig                     runConfig
	accessDelegation              jsonObject
	preserveMemory, restoreMemory optional[bool]
	persistent                    optional[bool]
	waitForReady                  bool
}

// vars are the variables of the parameters up to persistent, in their order.
func (a *sandboxArgs) vars() []any {
	a.template = named{kind: "template", optional: true}
	a.snapshot = named{kind: "snapshot", optional: true}
	return []any{&a.template, &a.snapshot, &a.snapshotName, &a.name, &a.timeout, &a.ttl, &a.idleTTL, &a.deleteAfterStop,
		&a.vcpus, &a.memBytes, &a.fsCapacityBytes, &a.envVars, &a.labels, &a.proxyConfig, &a.mountConfig, &a.runConfig,
		&a.accessDelegation, &a.preserveMemory, &a.restoreMemory, &a.persistent}
}

// snapshotID is the form of an id.
var snapshotID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// request checks the arguments as a whole (protocol.md §9).
func (a *sandboxArgs) request(c *invocation) (wire.BoxCreate, error) {
	r := wire.BoxCreate{
		SnapshotName: a.snapshotName.or(""),
		Name:         a.name.or(""), WaitForReady: a.waitForReady,
		TTLSeconds: a.ttl.ptr, IdleTTLSeconds: a.idleTTL.ptr, DeleteAfterStopSeconds: a.deleteAfterStop.ptr,
		VCPUs: a.vcpus.ptr, MemBytes: a.memBytes.ptr, FSCapacityBytes: a.fsCapacityBytes.ptr,
		ProxyConfig: a.proxyConfig.text, MountConfig: a.mountConfig.text,
		EnvVars: a.envVars, Labels: a.labels, RunConfig: a.runConfig.ptr,
		AccessDelegation: a.accessDelegation.text, PreserveMemoryOnStop: a.preserveMemory.ptr, RestoreMemory: a.restoreMemory.ptr, Persistent: a.persistent.ptr,
	}
	if a.waitForReady {
		timeout := int(a.timeout)
		r.Timeout = &timeout
	}
	sources := 0
	for _, source := range []string{a.template.name, a.snapshot.name, r.SnapshotName} {
		if source != "" {
			sources++
		}
	}
	if sources > 1 {
		return r, c.argumentError("template, snapshot and snapshot_name exclude each other")
	}
	if err := providersClash(a.proxyConfig.dict, a.mountConfig.dict); err != nil {
		return r, c.argumentError("%w", err)
	}
	switch {
	case a.snapshot.value != nil || snapshotID.MatchString(a.snapshot.name):
		r.SnapshotID = a.snapshot.name
	case a.snapshot.name != "":
		r.SnapshotName = a.snapshot.name
	}
	return r, nil
}

func sandboxScoped(c *invocation) (starlark.Value, error) {
	var a sandboxArgs
	var keep bool
	if err := c.unpack(append(a.vars(), &keep, &a.waitForReady)...); err != nil {
		return nil, err
	}
	return createSandbox(c, &a, !keep)
}

func sandboxCreate(c *invocation) (starlark.Value, error) {
	var a sandboxArgs
	if err := c.unpack(append(a.vars(), &a.waitForReady)...); err != nil {
		return nil, err
	}
	return createSandbox(c, &a, false)
}

// createSandbox creates a sandbox. If a scope is to release it, its name is
// chosen here and its release is pushed before the request is sent, so that it
// is found even if the answer is lost.
func createSandbox(c *invocation, a *sandboxArgs, scoped bool) (starlark.Value, error) {
	request, err := a.request(c)
	if err != nil {
		return nil, err
	}
	cl, err := c.client()
	if err != nil {
		return nil, err
	}
	if err := a.template.from(c, cl, &request); err != nil {
		return nil, err
	}
	if err := resolveSnapshot(c, cl, &request); err != nil {
		return nil, err
	}
	c.warnUnenforced(cl, request.VCPUs != nil, request.MemBytes != nil, request.FSCapacityBytes != nil)
	if !scoped {
		life := c.born("sandbox", request.Name)
		box, err := cl.CreateSandbox(c.Ctx, request)
		if err != nil {
			life.made("", "", err)
			return nil, err
		}
		life.made(box.Name, box.ID, nil)
		return newSandboxValue(cl, box), nil
	}

	chosen := request.Name != ""
	if !chosen {
		request.Name = randomName()
	}
	lease, err := c.lease(cl, &request)
	if err != nil {
		return nil, err
	}
	life := c.born("sandbox", request.Name)
	s := &sandboxValue{conn: cl}
	name := func() string {
		if box := s.box.Load(); box != nil {
			return box.Name
		}
		return request.Name
	}
	asked := time.Now()
	s.release = life.hold(c.Task, cl, &entry{kind: "sandbox", name: name, on: cl, release: func(ctx context.Context) error {
		if s.box.Load() == nil && chosen {
			if ours, err := createdSince(ctx, cl, request.Name, asked); err != nil || !ours {
				return err
			}
		}
		return ignoreNotFound(cl.DeleteSandbox(ctx, name()))
	}}, !chosen)
	box, err := cl.CreateSandbox(c.Ctx, request)
	if err != nil {
		life.made("", "", err)
		if refused(err) && (chosen || !errors.Is(err, client.ErrAlreadyExists)) {
			c.Run.drop(s.release)
		}
		return nil, err
	}
	s.box.Store(box)
	life.made(box.Name, box.ID, nil)
	lease.hold(name, asked)
	return s, nil
}

// refused tells whether the server has said that it did not do what it was
// asked for. Any other failure of a creation may have left something behind,
// and so may a conflict with a name that nobody else can have chosen: an
// earlier attempt has succeeded then.
func refused(err error) bool {
	var e *client.Error
	return errors.As(err, &e) && (e.Status/100 == 4 && e.Status != http.StatusRequestTimeout || e.Status == 0 && errors.Is(err, client.ErrValidation))
}

// createdSince tells whether the sandbox of a name that the user chose is the
// one that this run asked for, when the answer to that was lost.
func createdSince(ctx context.Context, cl *client.Client, name string, asked time.Time) (bool, error) {
	box, err := cl.GetSandbox(ctx, name)
	if err != nil {
		return false, ignoreNotFound(err)
	}
	return createdAfter(box.CreatedAt, asked)
}

func ignoreNotFound(err error) error {
	if errors.Is(err, client.ErrNotFound) {
		return nil
	}
	return err
}

func randomName() string {
	var id [4]byte
	rand.Read(id[:]) // never fails
	return "sbx-" + hex.EncodeToString(id[:])
}

// warnUnenforced tells the user once which limits the server does not hold
// sandboxes to, if one of those that are asked for is among them.
func (c *invocation) warnUnenforced(cl *client.Client, cpu, memory, storage bool) {
	if !cpu && !memory && !storage {
		return
	}
	info, err := serverInfo(c.Ctx, cl)
	if err != nil || info == nil {
		return // an error will come back with the request itself
	}
	e := info.Enforces
	if cpu && !e.CPU || memory && !e.Memory || storage && !e.Storage {
		var names []string
		for _, limit := range []struct {
			name     string
			enforced bool
		}{{"cpu", e.CPU}, {"memory", e.Memory}, {"storage", e.Storage}} {
			if !limit.enforced {
				names = append(names, limit.name)
			}
		}
		c.Run.warnOnce(fmt.Sprintf("the runtime %s does not enforce limits on %s here", info.Runtime, enumerate(names)))
	}
}

// enumerate is "a", "a and b", "a, b and c".
func enumerate(names []string) string {
	text := ""
	for i, name := range names {
		switch {
		case i == 0:
		case i == len(names)-1:
			text += " and "
		default:
			text += ", "
		}
		text += name
	}
	return text
}

// about is for sandboxes what kind.subject is for other resources.
func (c *invocation) about(vars ...any) (cl *client.Client, name string, err error) {
	if s, ok := c.self.(*sandboxValue); ok {
		cl, err = c.connect(vars...)
		return cl, s.resourceName(), err
	}
	which := named{kind: "sandbox"}
	cl, err = c.connect(append([]any{&which}, vars...)...)
	return cl, which.name, err
}

// seenSandbox is the value of the sandbox that the call is about, as the server
// has just shown it.
func (c *invocation) seenSandbox(cl *client.Client, box *client.Sandbox, err error) (starlark.Value, error) {
	if err != nil {
		return nil, err
	}
	if s, ok := c.self.(*sandboxValue); ok {
		s.box.Store(box)
		return s, nil
	}
	return newSandboxValue(cl, box), nil
}

func sandboxGet(c *invocation) (starlark.Value, error) {
	cl, name, err := c.about()
	if err != nil {
		return nil, err
	}
	box, err := cl.GetSandbox(c.Ctx, name)
	return c.seenSandbox(cl, box, err)
}

// listArgs are the parameters that the lists of long collections have in common.
type listArgs struct {
	contains optional[string]
	limit    positive[int]
	offset   optional[int]
}

func (a *listArgs) vars() []any { return []any{&a.contains, &a.limit, &a.offset} }

func (a *listArgs) query() client.ListQuery {
	return client.ListQuery{NameContains: a.contains.or(""), Limit: a.limit.or(0), Offset: a.offset.or(0)}
}

func sandboxList(c *invocation) (starlark.Value, error) {
	var a listArgs
	var status optional[string]
	var labels stringDict
	cl, err := c.connect(append(a.vars(), &status, &labels)...)
	if err != nil {
		return nil, err
	}
	q := a.query()
	q.Status, q.Labels = status.or(""), labels
	boxes, err := cl.FindSandboxes(c.Ctx, q)
	if err != nil {
		return nil, err
	}
	values := make([]starlark.Value, len(boxes))
	for i, box := range boxes {
		values[i] = newSandboxValue(cl, box)
	}
	return starlark.NewList(values), nil
}

func sandboxUpdate(c *invocation) (starlark.Value, error) {
	var newName optional[string]
	var ttl, idle, afterStop ttl
	var proxy jsonObject
	var config runConfig
	cl, name, err := c.about(&newName, &ttl, &idle, &afterStop, &proxy, &config)
	if err != nil {
		return nil, err
	}
	box, err := cl.UpdateSandbox(c.Ctx, name, wire.BoxUpdate{
		Name: newName.ptr, TTLSeconds: ttl.ptr, IdleTTLSeconds: idle.ptr, DeleteAfterStopSeconds: afterStop.ptr,
		ProxyConfig: proxy.text, RunConfig: config.ptr,
	})
	return c.seenSandbox(cl, box, err)
}

func sandboxDelete(c *invocation) (starlark.Value, error) {
	cl, name, err := c.about()
	if err != nil {
		return nil, err
	}
	if err := c.deleting("sandbox", name, func() error { return cl.DeleteSandbox(c.Ctx, name) }); err != nil {
		return nil, err
	}
	if s, ok := c.self.(*sandboxValue); ok {
		c.Run.drop(s.release)
	}
	return starlark.None, nil
}

func sandboxStart(c *invocation) (starlark.Value, error) {
	var timeout seconds
	cl, name, err := c.about(&timeout)
	if err != nil {
		return nil, err
	}
	box, err := cl.StartSandbox(c.Ctx, name, time.Duration(timeout))
	return c.seenSandbox(cl, box, c.orLacking(cl, err, "starts of sandboxes", wire.Classic, wire.Head, wire.Late))
}

func sandboxStop(c *invocation) (starlark.Value, error) {
	cl, name, err := c.about()
	if err != nil {
		return nil, err
	}
	if err := cl.StopSandbox(c.Ctx, name); err != nil {
		return nil, c.orLacking(cl, err, "stops of sandboxes", wire.Classic, wire.Head, wire.Late)
	}
	if s, ok := c.self.(*sandboxValue); ok {
		stopped := *s.box.Load()
		stopped.Status = wire.StatusStopped
		s.box.Store(&stopped)
	}
	return starlark.None, nil
}

func sandboxStatus(c *invocation) (starlark.Value, error) {
	cl, name, err := c.about()
	if err != nil {
		return nil, err
	}
	status, err := cl.SandboxStatus(c.Ctx, name)
	if err != nil {
		return nil, err
	}
	return &record{"status", *status}, nil
}

func sandboxWait(c *invocation) (starlark.Value, error) {
	var timeout, poll seconds
	cl, name, err := c.about(&timeout, &poll)
	if err != nil {
		return nil, err
	}
	box, err := cl.WaitForSandbox(c.Ctx, name, time.Duration(timeout), time.Duration(poll))
	return c.seenSandbox(cl, box, err)
}
