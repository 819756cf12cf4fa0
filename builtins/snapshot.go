package builtins

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the noun snapshot, the values that it makes, and how a
// sandbox becomes one.

func newSnapshotKind() *kind[wire.Snapshot] {
	k := &kind[wire.Snapshot]{
		noun: "snapshot", generations: []string{wire.Classic, wire.Head, wire.Late},
		name: func(s *wire.Snapshot) string { return s.Name },
		ref:  func(s *wire.Snapshot) string { return s.ID },
		text: func(s *wire.Snapshot) string { return fmt.Sprintf("snapshot(%q, status=%q)", s.Name, s.Status) },
		get:  findSnapshot, delete: deleteSnapshot,
	}
	k.attributes.methods = map[string]*starlark.Builtin{
		"wait":    k.bind("Snapshot.wait", snapshotWait),
		"refresh": k.bind("Snapshot.refresh", getResource),
		"delete":  k.bind("Snapshot.delete", deleteResource),
	}
	return k
}

func newSnapshotNoun() *noun {
	k := newSnapshotKind()
	return &noun{namespace{
		name: "snapshot",
		call: k.bind("snapshot", snapshotEnsure),
		members: starlark.StringDict{
			"create": k.bind("snapshot.create", snapshotCreate),
			"get":    k.bind("snapshot.get", getResource),
			"list":   k.bind("snapshot.list", snapshotList),
			"delete": k.bind("snapshot.delete", deleteResource),
			"wait":   k.bind("snapshot.wait", snapshotWait),
		},
	}}
}

// snapshotPoll is how often a snapshot that is being made is looked at.
const snapshotPoll = 2 * time.Second

// defaultCapacity is the size of a snapshot's file system where none is given:
// the API has no default.
const defaultCapacity = 16 << 30

// findSnapshot finds a snapshot by its id or, where there is none of that id,
// by its name. Of several with one name it is the newest.
func findSnapshot(cl *client.Client, ctx context.Context, ref string) (*wire.Snapshot, error) {
	found, err := cl.GetSnapshot(ctx, ref)
	if !notAnID(err) {
		return found, err
	}
	all, listErr := cl.ListSnapshots(ctx, client.ListQuery{NameContains: ref})
	if errors.Is(listErr, client.ErrAPI) {
		return nil, err // there is no such endpoint either
	}
	if listErr != nil {
		return nil, listErr
	}
	var newest *wire.Snapshot
	for i, s := range all {
		if s.Name == ref && (newest == nil || s.CreatedAt > newest.CreatedAt) {
			newest = &all[i]
		}
	}
	if newest == nil {
		return nil, &client.Error{Kind: client.ErrNotFound, ResourceType: "snapshot", Message: fmt.Sprintf("there is no snapshot %q", ref)}
	}
	return newest, nil
}

// resolveSnapshot puts an id in place of a name on a server that knows only ids.
func resolveSnapshot(c *invocation, cl *client.Client, r *wire.BoxCreate) error {
	if r.SnapshotName == "" {
		return nil
	}
	spoken, err := generations(c.Ctx, cl)
	if err != nil || slices.Contains(spoken, wire.Head) || slices.Contains(spoken, wire.Late) {
		return err
	}
	found, err := findSnapshot(cl, c.Ctx, r.SnapshotName)
	if err != nil {
		return newSnapshotKind().explain(c, cl, err)
	}
	r.SnapshotID, r.SnapshotName = found.ID, ""
	return nil
}

// deleteSnapshot deletes by id, or by name.
func deleteSnapshot(cl *client.Client, ctx context.Context, ref string) error {
	err := cl.DeleteSnapshot(ctx, ref)
	if !notAnID(err) {
		return err
	}
	found, err := findSnapshot(cl, ctx, ref)
	if err != nil {
		return err
	}
	return cl.DeleteSnapshot(ctx, found.ID)
}

// notAnID tells whether a request failed as one with a name does where only ids
// are known.
func notAnID(err error) bool {
	return errors.Is(err, client.ErrNotFound) || errors.Is(err, client.ErrValidation)
}

func snapshotEnsure(c *invocation, k *kind[wire.Snapshot]) (starlark.Value, error) {
	var want wire.SnapshotCreate
	var image, registry optional[string]
	var capacity positive[int64]
	var from buildArgs
	var timeout seconds
	var ephemeral bool
	vars := append([]any{&want.Name, &image}, from.vars()...)
	cl, err := c.connect(append(vars, &capacity, &registry, &timeout, &ephemeral)...)
	if err != nil {
		return nil, err
	}
	want.DockerImage, want.FSCapacityBytes, want.RegistryID = image.or(""), capacity.or(0), registry.or("")
	build, err := from.build(c, want, timeout)
	if err != nil {
		return nil, err
	}
	return valueOrError(ensureSnapshot(c, cl, k, want, build, timeout, ephemeral))
}

// ensureSnapshot finds a snapshot that is ready, or makes it. Without an image
// or a capacity any will do. With a build it is made by that, and one that exists
// is taken for what it would make: nothing tells what it was made from.
func ensureSnapshot(c *invocation, cl *client.Client, k *kind[wire.Snapshot], want wire.SnapshotCreate, build *client.DockerfileBuild, timeout seconds, ephemeral bool) (*remote[wire.Snapshot], error) {
	ready := func(made *wire.Snapshot, err error) (*wire.Snapshot, error) {
		return waitForSnapshot(c, cl, made, err, timeout)
	}
	var create func() (*wire.Snapshot, error)
	if want.DockerImage != "" {
		create = func() (*wire.Snapshot, error) { return ready(createSnapshot(c, cl, want)) }
	}
	if build != nil {
		create = func() (*wire.Snapshot, error) { return buildSnapshot(c, cl, build) }
	}
	v, found, err := k.ensure(c, cl, want.Name, ephemeral, create, fmt.Sprintf("give it an image to create it: snapshot(%q, docker_image = …)", want.Name))
	if err != nil || !found {
		return v, err
	}
	have := v.msg.Load()
	var differences []string
	if want.DockerImage != "" && have.DockerImage != want.DockerImage {
		differences = append(differences, fmt.Sprintf("docker_image is %q and not %q", have.DockerImage, want.DockerImage))
	}
	if want.FSCapacityBytes != 0 && have.FSCapacityBytes != want.FSCapacityBytes {
		differences = append(differences, fmt.Sprintf("fs_capacity_bytes is %d and not %d", have.FSCapacityBytes, want.FSCapacityBytes))
	}
	if len(differences) > 0 {
		return nil, k.differs(want.Name, strings.Join(differences, ", "))
	}
	have, err = ready(have, nil)
	if err != nil {
		return nil, &hinted{err, fmt.Sprintf("snapshot.delete(%q) makes room for another attempt", want.Name)}
	}
	v.msg.Store(have)
	return v, nil
}

func snapshotCreate(c *invocation, k *kind[wire.Snapshot]) (starlark.Value, error) {
	var want wire.SnapshotCreate
	var capacity positive[int64]
	var registry, url, username, password optional[string]
	var config runConfig
	var image, tag, description optional[string]
	var from buildArgs
	var timeout seconds
	vars := append([]any{&want.Name, &image, &capacity}, from.vars()...)
	cl, err := c.connect(append(vars, &registry, &url, &username, &password, &config, (*stringDict)(&want.Labels), &tag, &description, &timeout)...)
	if err != nil {
		return nil, err
	}
	want.DockerImage = image.or("")
	want.FSCapacityBytes, want.RegistryID, want.RunConfig, want.Tag, want.Description = capacity.or(0), registry.or(""), config.ptr, tag.or(""), description.or("")
	want.RegistryURL, want.RegistryUsername, want.RegistryPassword = url.or(""), username.or(""), password.or("")
	if want.RegistryID != "" && want.RegistryURL+want.RegistryUsername+want.RegistryPassword != "" {
		return nil, c.argumentError("registry_id and the credentials of a registry exclude each other")
	}
	build, err := from.build(c, want, timeout)
	switch {
	case err != nil:
		return nil, err
	case build != nil:
		return k.made(c, cl)(buildSnapshot(c, cl, build))
	case want.DockerImage == "":
		return nil, c.argumentError("give it a docker_image, or a dockerfile and its context")
	}
	made, err := createSnapshot(c, cl, want)
	return k.made(c, cl)(waitForSnapshot(c, cl, made, err, timeout))
}

func createSnapshot(c *invocation, cl *client.Client, want wire.SnapshotCreate) (*wire.Snapshot, error) {
	if want.FSCapacityBytes == 0 {
		want.FSCapacityBytes = defaultCapacity
	}
	return cl.CreateSnapshot(c.Ctx, want)
}

// waitForSnapshot waits until what was just made is ready.
func waitForSnapshot(c *invocation, cl *client.Client, made *wire.Snapshot, err error, timeout seconds) (*wire.Snapshot, error) {
	if err != nil || made.Status == wire.StatusReady {
		return made, err
	}
	return cl.WaitForSnapshot(c.Ctx, made.ID, time.Duration(timeout), snapshotPoll)
}

func snapshotList(c *invocation, k *kind[wire.Snapshot]) (starlark.Value, error) {
	var a listArgs
	cl, err := c.connect(a.vars()...)
	if err != nil {
		return nil, err
	}
	return k.values(c, cl)(cl.ListSnapshots(c.Ctx, a.query()))
}

func snapshotWait(c *invocation, k *kind[wire.Snapshot]) (starlark.Value, error) {
	var timeout, poll seconds
	s, err := k.subject(c, &timeout, &poll)
	if err != nil {
		return nil, err
	}
	found, err := findSnapshot(s.cl, c.Ctx, s.ref)
	if err == nil && found.Status != wire.StatusReady {
		found, err = s.cl.WaitForSnapshot(c.Ctx, found.ID, time.Duration(timeout), time.Duration(poll))
	}
	return s.seen(found, err)
}

func sandboxCapture(c *invocation) (starlark.Value, error) {
	var want wire.SnapshotCapture
	var image, checkpoint, tag, description optional[string]
	var capacity positive[int64]
	var config runConfig
	var timeout seconds
	cl, err := c.connect(&want.Name, &image, &capacity, &checkpoint, &config, (*stringDict)(&want.Labels), &tag, &description, &timeout)
	if err != nil {
		return nil, err
	}
	want.DockerImage, want.FSCapacityBytes, want.Checkpoint = image.or(""), capacity.ptr, checkpoint.or("")
	want.RunConfig, want.Tag, want.Description = config.ptr, tag.or(""), description.or("")
	if want.Checkpoint != "" && want.DockerImage != "" {
		return nil, c.argumentError("docker_image and checkpoint exclude each other")
	}
	made, err := cl.CaptureSnapshot(c.Ctx, c.self.(*sandboxValue).resourceName(), want)
	return newSnapshotKind().made(c, cl)(waitForSnapshot(c, cl, made, err, timeout))
}
