package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines snapshots (protocol.md §2.10): root filesystems that
// sandboxes start with. One is captured from a sandbox, or stands for an image.

const (
	defaultTag     = "latest"
	captureTimeout = 10 * time.Minute
	maxDescription = 1024 // characters (protocol.md §16.12)
)

// snapshot is the record of one.
type snapshot struct {
	Snapshot wire.Snapshot `json:"snapshot"`
	Tag      string        `json:"tag"`
	Image    string        `json:"image"`            // that lies below its files
	Digest   string        `json:"digest,omitempty"` // of the image
	Layer    bool          `json:"layer,omitempty"`  // it has files of its own
	Owner    string        `json:"owner,omitempty"`  // the server that is making it
}

func (s *Server) createSnapshot(c call) (int, any, error) {
	var in wire.SnapshotCreate
	if err := decode(c.body, &in); err != nil {
		return 0, nil, err
	}
	if in.DockerImage == "" {
		return 0, nil, invalid("body.docker_image", "an image is required, such as %q", runtime.HostImage)
	}
	if err := s.checkSnapshot(in.Name, in.Tag, in.Description, in.FSCapacityBytes, in.RunConfig); err != nil {
		return 0, nil, err
	}
	if err := s.checkImage(in.DockerImage); err != nil {
		return 0, nil, err
	}
	sn := s.newSnapshot(in.Name, in.Tag, in.Labels)
	sn.Image, sn.Snapshot.DockerImage, sn.Snapshot.RunConfig = in.DockerImage, in.DockerImage, in.RunConfig
	sn.Snapshot.FSCapacityBytes, sn.Snapshot.Description = in.FSCapacityBytes, in.Description
	var probe *box
	err := s.store.update(c.Context(), func() error {
		if in.RegistryID != "" {
			r, err := s.store.registries.find(in.RegistryID)
			if f, ok := errors.AsType[*failure](err); ok {
				return fail(http.StatusBadRequest, kindNoRegistry, "%v", f)
			}
			if err != nil {
				return err
			}
			sn.Snapshot.RegistryID = r.Registry.ID
		}
		if in.DockerImage == runtime.HostImage { // needs no building
			sn.Snapshot.Status, sn.Snapshot.FSUsedBytes = wire.StatusReady, new(int64)
			return s.registerSnapshot(sn)
		}
		sn.Snapshot.Status, sn.Owner = wire.StatusBuilding, s.store.owner
		if err := s.registerSnapshot(sn); err != nil {
			return err
		}
		probe = s.newHidden(sn.Snapshot.ID, in.DockerImage)
		probe.Box.RunConfig, probe.fresh, probe.registry = in.RunConfig, true, sn.Snapshot.RegistryID
		if err := s.register(probe, &boxCreate{}); err != nil {
			return errors.Join(err, s.store.snapshots.remove(sn.Snapshot.ID))
		}
		return nil
	})
	if err != nil {
		return 0, nil, err
	}
	if probe != nil {
		s.work.Go(func() { s.build(sn.Snapshot.ID, probe) })
	}
	return s.answerSnapshot(http.StatusCreated, sn)
}

// captureSnapshot answers as soon as the capture is under way.
func (s *Server) captureSnapshot(c call) (int, any, error) {
	var in wire.SnapshotCapture
	var others struct { // what our client does not send
		IncludeMemory bool           `json:"include_memory"`
		ImageConfig   map[string]any `json:"image_config"`
		Include       []any          `json:"include"`
	}
	for _, part := range []any{&in, &others} {
		if err := decode(c.body, part); err != nil {
			return 0, nil, err
		}
	}
	var capacity int64
	if in.FSCapacityBytes != nil {
		capacity = *in.FSCapacityBytes
	}
	if err := s.checkSnapshot(in.Name, in.Tag, in.Description, capacity, in.RunConfig); err != nil {
		return 0, nil, err
	}
	if err := refuse(
		refusal{"checkpoint", in.Checkpoint != "", "this server keeps no checkpoints: leave it out to capture the sandbox as it is now"},
		refusal{"docker_image", in.DockerImage != "", "this server cannot export an image from inside a sandbox: leave it out to capture the sandbox's files"},
		refusal{"include_memory", others.IncludeMemory, "this server cannot keep memory"},
		refusal{"image_config", len(others.ImageConfig) > 0, "this server runs no image's own entry point"},
		refusal{"include", len(others.Include) > 0, "a snapshot of this server has files, labels and run_config; set the rest where sandboxes are made from it"},
	); err != nil {
		return 0, nil, err
	}
	b, err := s.findBox(c.name)
	if err != nil {
		return 0, nil, err
	}
	b = s.checked(c.Context(), b)
	source, deleted, err := s.captured(c.Context(), b)
	if err != nil {
		return 0, nil, err
	}
	sn := s.newSnapshot(in.Name, in.Tag, merged(b.Box.Labels, in.Labels))
	sn.Image, sn.Digest, sn.Layer, sn.Owner = b.Image, b.Digest, true, s.store.owner
	sn.Snapshot.Status, sn.Snapshot.SourceSandboxID, sn.Snapshot.RunConfig = wire.StatusBuilding, b.Box.ID, overlay(b.Box.RunConfig, in.RunConfig)
	sn.Snapshot.ImageDigest = b.Digest
	sn.Snapshot.FSCapacityBytes, sn.Snapshot.Description = capacity, in.Description
	if capacity == 0 {
		sn.Snapshot.FSCapacityBytes = b.Limits.Storage
	}
	if err := s.store.update(c.Context(), func() error { return s.registerSnapshot(sn) }); err != nil {
		return 0, nil, err
	}
	s.work.Go(func() { s.capture(deleted, source, sn.Snapshot.ID, b.Box.ID) })
	return s.answerSnapshot(http.StatusCreated, sn)
}

// checkSnapshot checks what is asked of a snapshot of either kind.
func (s *Server) checkSnapshot(name, tag, description string, capacity int64, run *wire.RunConfig) error {
	if !wire.ValidSnapshotName(name) {
		return invalid("body.name", "the name %q is not one: want %s", name, wire.SnapshotNameRule)
	}
	if strings.HasPrefix(name, "system/") {
		return invalid("body.name", "the name %q is not free: what begins with system/ is the service's", name)
	}
	if tag != "" && !wire.ValidSnapshotTag(tag) {
		return invalid("body.tag", "the tag %q is not one: want %s", tag, wire.SnapshotTagRule)
	}
	if len([]rune(description)) > maxDescription {
		return invalid("body.description", "want %d characters at most", maxDescription)
	}
	if capacity < 0 {
		return invalid("body.fs_capacity_bytes", "want a number above 0")
	}
	if err := checkRunConfig(run); err != nil {
		return err
	}
	return s.checkLimits(limit{"fs_capacity_bytes", capacity > 0, s.options.Runtime.Info().Enforces.Storage})
}

func (s *Server) newSnapshot(name, tag string, labels map[string]string) *snapshot {
	now := s.now()
	return &snapshot{Tag: cmp.Or(tag, defaultTag), Snapshot: wire.Snapshot{Name: name, Labels: labels, CreatedAt: now, UpdatedAt: now}}
}

// registerSnapshot gives a snapshot its id and writes its first record.
func (s *Server) registerSnapshot(sn *snapshot) error {
	all, _, err := s.snapshotBooks()
	if err != nil {
		return err
	}
	if err := roomFor("snapshots", len(all), s.options.Quota.Snapshots); err != nil {
		return err
	}
	sn.Snapshot.ID = s.options.NewID()
	return s.store.snapshots.put(sn.Snapshot.ID, sn)
}

// captured returns the instance of a sandbox that is to be captured, and a
// context that ends with errDeleted if that cannot go on.
func (s *Server) captured(ctx context.Context, b *box) (runtime.Instance, context.Context, error) {
	if b.Runtime != s.options.Runtime.Info().Name {
		return nil, nil, notReady(b, "it was made by the "+b.Runtime+" runtime, which this server does not have")
	}
	switch status, message := s.status(b); status {
	case wire.StatusReady:
		h, err := s.reach(ctx, b)
		if errors.Is(err, runtime.ErrGone) {
			return nil, nil, notReady(b, err.Error())
		}
		if err != nil {
			return nil, nil, err
		}
		return h.instance, h.ctx, nil
	case wire.StatusStopped:
		instance, err := s.options.Runtime.Adopt(ctx, s.spec(b))
		if err != nil && !errors.Is(err, runtime.ErrGone) {
			return nil, nil, err
		}
		return instance, s.ctx, nil
	default:
		return nil, nil, notReady(b, cmp.Or(message, "it is "+status))
	}
}

// capture makes the files of a snapshot that is registered.
func (s *Server) capture(deleted context.Context, source runtime.Instance, id, boxID string) {
	ctx, cancel := context.WithTimeoutCause(s.ctx, captureTimeout, fmt.Errorf("it took longer than %s", captureTimeout))
	defer cancel()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	defer context.AfterFunc(deleted, func() {
		if cause := context.Cause(deleted); errors.Is(cause, errDeleted) { // a sandbox that stops has its files still
			giveUp(cause)
		}
	})()
	layer := s.store.layerDir(id)
	err := source.Snapshot(ctx, layer)
	// Files of a sandbox that is being removed may be missing. Whoever removes
	// one has said so in its record before.
	if b, readErr := s.store.boxes.get(boxID); readErr != nil || b.Box.Status == wire.StatusDeleting {
		err = errDeleted
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	var used int64
	if err == nil {
		used = filesSize(layer)
	} else {
		err = fmt.Errorf("the sandbox could not be captured: %w", err)
		if clearErr := removeTree(layer); clearErr != nil {
			s.options.Log.Error("a capture that failed could not be cleared away", "snapshot", id, "error", clearErr)
		}
	}
	s.finishSnapshot(id, err, func(sn *snapshot) { sn.Snapshot.FSUsedBytes = &used })
}

// build makes a snapshot of an image: it is ready if a sandbox can be made from
// that, which is tried with one that nobody sees.
func (s *Server) build(id string, probe *box) {
	err := s.waitReady(s.ctx, probe, s.place(probe, true), captureTimeout)
	if err == nil {
		err = s.deleteHidden(context.Background(), probe)
	} else if missing, ok := errors.AsType[*runtime.Unsupported](err); ok {
		err = fmt.Errorf("the image %q cannot be had: %w", probe.Image, missing)
	}
	s.finishSnapshot(id, err, func(sn *snapshot) {
		sn.Digest, sn.Snapshot.ImageDigest = probe.Digest, probe.Digest
		sn.Snapshot.RunConfig, sn.Snapshot.FSUsedBytes = probe.Box.RunConfig, &probe.imageBytes
	})
}

// finishSnapshot writes down how the making of a snapshot ended; made sets what
// it has become.
func (s *Server) finishSnapshot(id string, why error, made func(*snapshot)) {
	err := s.store.update(context.Background(), func() error {
		sn, err := s.store.snapshots.get(id)
		if err != nil {
			return err
		}
		sn.Owner = ""
		if v := &sn.Snapshot; v.Status == wire.StatusBuilding {
			v.Status, v.StatusMessage, v.UpdatedAt = wire.StatusReady, "", s.now()
			if why == nil {
				made(sn)
			} else {
				v.Status, v.StatusMessage = wire.StatusFailed, s.reason(why)
			}
		}
		return s.store.snapshots.put(id, sn)
	})
	if err != nil {
		s.options.Log.Error("the end of making a snapshot could not be recorded", "snapshot", id, "error", err)
	}
	s.collectSnapshots() // it may have been deleted meanwhile
}

// filesSize is how many bytes the files below a folder have together. What
// cannot be read counts as nothing.
func filesSize(dir string) (sum int64) {
	filepath.WalkDir(dir, func(_ string, e fs.DirEntry, _ error) error {
		if e != nil && e.Type().IsRegular() {
			if info, err := e.Info(); err == nil {
				sum += info.Size()
			}
		}
		return nil
	})
	return sum
}

// snapshotStatus is what the record says, or what it means if nobody makes the
// snapshot any more.
func (s *Server) snapshotStatus(sn *snapshot) (status, message string) {
	if sn.Snapshot.Status == wire.StatusBuilding && !s.store.alive(sn.Owner) {
		return wire.StatusFailed, "the server stopped in the middle of making this snapshot: delete it"
	}
	return sn.Snapshot.Status, sn.Snapshot.StatusMessage
}

// books are the snapshots there are, the newest first, and which of them each
// name:tag stands for.
func (s *Server) snapshotBooks() (all []*snapshot, current map[string]string, err error) {
	all, err = s.store.snapshots.newest()
	current = map[string]string{}
	all = slices.DeleteFunc(all, func(sn *snapshot) bool { return sn.Snapshot.Status == wire.StatusDeleting })
	for _, sn := range all {
		if ref := sn.Snapshot.Name + ":" + sn.Tag; sn.Snapshot.Status == wire.StatusReady && current[ref] == "" {
			current[ref] = sn.Snapshot.ID
		}
	}
	return all, current, err
}

func (s *Server) viewSnapshot(sn *snapshot, current map[string]string) wire.Snapshot {
	v := sn.Snapshot
	v.Status, v.StatusMessage = s.snapshotStatus(sn)
	if v.Status == wire.StatusReady && current[v.Name+":"+sn.Tag] == v.ID {
		v.Tags = []string{sn.Tag}
	}
	return v
}

func (s *Server) answerSnapshot(status int, sn *snapshot) (int, any, error) {
	_, current, err := s.snapshotBooks()
	return status, s.viewSnapshot(sn, current), err
}

// findSnapshot looks for an id first and then for a name or name:tag. Of several
// it is the newest that is ready, or the newest if none is.
func (s *Server) findSnapshot(reference string) (*snapshot, error) {
	all, current, err := s.snapshotBooks()
	if err != nil {
		return nil, err
	}
	name, tag, tagged := strings.Cut(reference, ":")
	if !tagged {
		tag = defaultTag
	}
	for _, fits := range []func(*snapshot) bool{
		func(sn *snapshot) bool { return sn.Snapshot.ID == reference },
		func(sn *snapshot) bool { return sn.Snapshot.ID == current[name+":"+tag] },
		func(sn *snapshot) bool { return sn.Snapshot.Name == name && sn.Tag == tag },
	} {
		if i := slices.IndexFunc(all, fits); i >= 0 {
			return all[i], nil
		}
	}
	return nil, fail(http.StatusNotFound, kindNotFound, "there is no snapshot %q", reference)
}

func (s *Server) getSnapshot(c call) (int, any, error) {
	sn, err := s.findSnapshot(c.name)
	if err != nil {
		return 0, nil, err
	}
	return s.answerSnapshot(http.StatusOK, sn)
}

func (s *Server) listSnapshots(c call) (int, any, error) {
	query := c.URL.Query()
	if query.Has("tag_value_id") {
		return 0, nil, unsupported("tag_value_id", "this server keeps no tags: filter by label")
	}
	all, current, err := s.snapshotBooks()
	if err != nil {
		return 0, nil, err
	}
	found := []wire.Snapshot{}
	for _, sn := range all {
		if v := s.viewSnapshot(sn, current); snapshotMatches(&v, query) {
			found = append(found, v)
		}
	}
	l := listing[wire.Snapshot]{
		field: "snapshots", whole: defaultPage, page: defaultPage, most: maxPage,
		keys: map[string]func(wire.Snapshot) string{
			"created_at": func(v wire.Snapshot) string { return v.CreatedAt },
			"name":       func(v wire.Snapshot) string { return v.Name },
			"status":     func(v wire.Snapshot) string { return v.Status },
		},
		id: func(v wire.Snapshot) string { return v.ID },
	}
	return l.answer(query, found)
}

func snapshotMatches(v *wire.Snapshot, query url.Values) bool {
	if status := query.Get("status"); status != "" && status != v.Status {
		return false
	}
	return hasLabels(v.Labels, query["label"]) && strings.Contains(v.Name, strings.ToLower(query.Get("name_contains")))
}

func (s *Server) snapshotTags(c call) (int, any, error) {
	all, current, err := s.snapshotBooks()
	if err != nil {
		return 0, nil, err
	}
	tags := wire.SnapshotTags{Name: c.name, Tags: []wire.SnapshotTag{}}
	known := false
	for _, sn := range all {
		known = known || sn.Snapshot.Name == c.name
		if sn.Snapshot.Name == c.name && current[c.name+":"+sn.Tag] == sn.Snapshot.ID {
			tags.Tags = append(tags.Tags, wire.SnapshotTag{Tag: sn.Tag, SnapshotID: sn.Snapshot.ID})
		}
	}
	if !known {
		return 0, nil, fail(http.StatusNotFound, kindNotFound, "there is no snapshot %q", c.name)
	}
	slices.SortFunc(tags.Tags, func(a, b wire.SnapshotTag) int { return cmp.Compare(a.Tag, b.Tag) })
	return http.StatusOK, tags, nil
}

// deleteSnapshot makes a snapshot unknown. Its files go as soon as no sandbox is
// still to be made from them; those that were made have their own.
func (s *Server) deleteSnapshot(c call) (int, any, error) {
	err := s.store.update(c.Context(), func() error {
		sn, err := s.findSnapshot(c.name)
		if err != nil {
			return err
		}
		sn.Snapshot.Status = wire.StatusDeleting
		return s.store.snapshots.put(sn.Snapshot.ID, sn)
	})
	if err != nil {
		return 0, nil, err
	}
	s.collectSnapshots()
	return http.StatusNoContent, nil, nil
}

// collectSnapshots deletes from disk what was deleted and nobody works on.
func (s *Server) collectSnapshots() {
	deleted := func(all []*snapshot) []*snapshot {
		return slices.DeleteFunc(all, func(sn *snapshot) bool {
			return sn.Snapshot.Status != wire.StatusDeleting || sn.Owner != "" && s.store.alive(sn.Owner)
		})
	}
	all, err := s.store.snapshots.all()
	if err == nil && len(deleted(all)) == 0 {
		return
	}
	var folders []string
	err = s.store.update(context.Background(), func() error {
		boxes, err := s.store.boxes.all()
		if err != nil {
			return err
		}
		all, err := s.store.snapshots.all()
		if err != nil {
			return err
		}
		for _, sn := range deleted(all) {
			id := sn.Snapshot.ID
			if slices.ContainsFunc(boxes, func(b *box) bool { return b.Layer == id && b.Unmade }) {
				continue
			}
			folder, err := s.store.snapshots.detach(id)
			if err != nil {
				return err
			}
			folders = append(folders, folder)
		}
		return nil
	})
	if err != nil {
		s.options.Log.Error("deleted snapshots could not be cleared away", "error", err)
	}
	for _, folder := range folders {
		s.store.clear(folder)
	}
	s.collectImages()
}

// fromSnapshot sets what a sandbox has of the snapshot that it is made from, if
// it is; only inside update.
func (s *Server) fromSnapshot(b *box, in *boxCreate) error {
	reference := cmp.Or(in.SnapshotID, in.SnapshotName, in.Snapshot)
	if reference == "" {
		return nil
	}
	sn, err := s.findSnapshot(reference)
	if f, ok := errors.AsType[*failure](err); ok {
		return fail(http.StatusBadRequest, kindNoSnapshot, "%v", f)
	}
	if err != nil {
		return err
	}
	if status, message := s.snapshotStatus(sn); status != wire.StatusReady {
		return fail(http.StatusBadRequest, kindNoSnapshot, "the snapshot %q is not ready: %s", reference, cmp.Or(message, "it is "+status))
	}
	// It may have been made by a server that enforces more.
	if err := s.checkLimits(limit{"fs_capacity_bytes", sn.Snapshot.FSCapacityBytes > 0, s.options.Runtime.Info().Enforces.Storage}); err != nil {
		return err
	}
	b.Image, b.Digest, b.Box.SnapshotID, b.Limits.Storage = sn.Image, sn.Digest, sn.Snapshot.ID, sn.Snapshot.FSCapacityBytes
	if sn.Layer {
		b.Layer = sn.Snapshot.ID
	}
	b.Box.Labels = merged(sn.Snapshot.Labels, in.Labels)
	b.Box.RunConfig = overlay(sn.Snapshot.RunConfig, b.Box.RunConfig)
	return nil
}

// merged is a map with the entries of both, those of high before those of low.
func merged(low, high map[string]string) map[string]string {
	both := maps.Clone(low)
	if both == nil {
		return maps.Clone(high)
	}
	maps.Copy(both, high)
	return both
}

// overlay puts one layer of run_config over another (protocol.md §16.3).
func overlay(low, high *wire.RunConfig) *wire.RunConfig {
	if low == nil || high == nil {
		return cmp.Or(low, high)
	}
	return &wire.RunConfig{
		User:    cmp.Or(high.User, low.User),
		WorkDir: cmp.Or(high.WorkDir, low.WorkDir),
		EnvVars: merged(low.EnvVars, high.EnvVars),
	}
}
