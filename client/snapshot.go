package client

import (
	"cmp"
	"context"
	"net/http"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the calls on snapshots and registries (protocol.md §2.10).

// CreateSnapshot has a snapshot built from an image. It comes back while it is
// being built: WaitForSnapshot tells when it is ready.
func (c *Client) CreateSnapshot(ctx context.Context, s wire.SnapshotCreate) (*wire.Snapshot, error) {
	return send[wire.Snapshot](ctx, c, call{method: http.MethodPost, path: c.path("snapshots"), body: s, policy: creating})
}

// CaptureSnapshot has a snapshot made of a sandbox's files. It comes back while
// it is being made.
func (c *Client) CaptureSnapshot(ctx context.Context, sandbox string, s wire.SnapshotCapture) (*wire.Snapshot, error) {
	return send[wire.Snapshot](ctx, c, call{method: http.MethodPost, path: c.path("boxes", sandbox, "snapshot"), body: s, policy: creating, errors: of("sandbox")})
}

// GetSnapshot finds a snapshot by its id.
func (c *Client) GetSnapshot(ctx context.Context, id string) (*wire.Snapshot, error) {
	return send[wire.Snapshot](ctx, c, call{path: c.path("snapshots", id), errors: of("snapshot")})
}

// ListSnapshots returns the snapshots that q describes.
func (c *Client) ListSnapshots(ctx context.Context, q ListQuery) ([]wire.Snapshot, error) {
	return find(q, 500, func(s wire.Snapshot) string { return s.ID }, func(q ListQuery) ([]wire.Snapshot, error) {
		list, err := send[wire.SnapshotList](ctx, c, call{path: c.path("snapshots"), query: q.values(), errors: listing})
		if err != nil {
			return nil, err
		}
		return list.Snapshots, nil
	})
}

// DeleteSnapshot deletes a snapshot. Sandboxes that were made from it stay.
func (c *Client) DeleteSnapshot(ctx context.Context, id string) error {
	return c.delete(ctx, call{path: c.path("snapshots", id), errors: of("snapshot")})
}

// WaitForSnapshot asks every poll interval until the snapshot is ready, at
// least once; an interval of 0 is one of two seconds. One that failed is
// ErrCreation, and ErrTimeout carries the last status.
func (c *Client) WaitForSnapshot(ctx context.Context, id string, timeout, poll time.Duration) (*wire.Snapshot, error) {
	var seen *wire.Snapshot
	err := c.wait(ctx, "snapshot", timeout, cmp.Or(max(poll, 0), 2*time.Second), func() (_ state, err error) {
		if seen, err = c.GetSnapshot(ctx, id); err != nil {
			return state{}, err
		}
		return state{seen.Name, seen.Status, seen.StatusMessage}, nil
	})
	if err != nil {
		return nil, err
	}
	return seen, nil
}

// CreateRegistry records a registry that images are pulled from. It is not sent
// again where one that exists could be taken for it: its password is not shown.
func (c *Client) CreateRegistry(ctx context.Context, r wire.RegistryCreate) (*wire.Registry, error) {
	return send[wire.Registry](ctx, c, call{method: http.MethodPost, path: c.path("registries"), body: r, policy: creating,
		errors: conflicting("registry", ErrAlreadyExists)})
}

// GetRegistry finds a registry by its name.
func (c *Client) GetRegistry(ctx context.Context, name string) (*wire.Registry, error) {
	return send[wire.Registry](ctx, c, call{path: c.path("registries", name), errors: of("registry")})
}

// ListRegistries returns the registries that q describes, without their
// credentials.
func (c *Client) ListRegistries(ctx context.Context, q ListQuery) ([]wire.Registry, error) {
	return find(q, 50, func(r wire.Registry) string { return cmp.Or(r.ID, r.Name) }, func(q ListQuery) ([]wire.Registry, error) {
		list, err := send[wire.RegistryList](ctx, c, call{path: c.path("registries"), query: q.values(), errors: listing})
		if err != nil {
			return nil, err
		}
		return list.Registries, nil
	})
}

// UpdateRegistry changes what is given.
func (c *Client) UpdateRegistry(ctx context.Context, name string, u wire.RegistryUpdate) (*wire.Registry, error) {
	return send[wire.Registry](ctx, c, call{method: http.MethodPatch, path: c.path("registries", name), body: u,
		errors: conflicting("registry", ErrNameConflict)})
}

// DeleteRegistry forgets a registry.
func (c *Client) DeleteRegistry(ctx context.Context, name string) error {
	return c.delete(ctx, call{path: c.path("registries", name), errors: of("registry")})
}
