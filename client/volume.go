package client

import (
	"context"
	"net/http"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the calls on volumes and pools (protocol.md §2.1, §2.3).

// CreateVolume makes a volume and waits until it can be used, v.Timeout seconds
// at most (60 if it is 0). Failures are ErrCreation, ErrTimeout and what any
// creation can meet.
func (c *Client) CreateVolume(ctx context.Context, v wire.VolumeCreate) (*wire.Volume, error) {
	v.WaitForReady = true
	if v.Timeout == 0 {
		v.Timeout = 60
	}
	made, err := send[wire.Volume](ctx, c, call{method: http.MethodPost, path: c.path("volumes"), body: v, policy: namedCreating,
		timeout: time.Duration(max(v.Timeout, 0)+30) * time.Second, errors: mapVolumeCreate})
	if ofRepetition(err, ErrAlreadyExists) {
		if found, e := c.GetVolume(ctx, v.Name); e == nil && found.Size == v.Size {
			return found, nil
		}
	}
	return made, err
}

// GetVolume finds a volume by its name or id.
func (c *Client) GetVolume(ctx context.Context, name string) (*wire.Volume, error) {
	return send[wire.Volume](ctx, c, call{path: c.path("volumes", name), errors: of("volume")})
}

// ListVolumes returns all volumes. A server without any such thing is ErrAPI.
func (c *Client) ListVolumes(ctx context.Context) ([]wire.Volume, error) {
	list, err := send[wire.VolumeList](ctx, c, call{path: c.path("volumes"), errors: listing})
	if err != nil {
		return nil, err
	}
	return list.Volumes, nil
}

// UpdateVolume renames or grows a volume; an update of nothing only looks at
// it. A name that is taken is ErrNameConflict, a smaller size ErrValidation.
func (c *Client) UpdateVolume(ctx context.Context, name string, u wire.VolumeUpdate) (*wire.Volume, error) {
	if u == (wire.VolumeUpdate{}) {
		return c.GetVolume(ctx, name)
	}
	return send[wire.Volume](ctx, c, call{method: http.MethodPatch, path: c.path("volumes", name), body: u, errors: mapVolumeUpdate})
}

// DeleteVolume deletes a volume with its files. One that is mounted is ErrInUse.
func (c *Client) DeleteVolume(ctx context.Context, name string) error {
	return c.delete(ctx, call{path: c.path("volumes", name), errors: conflicting("volume", ErrInUse)})
}

// CreatePool makes a pool and waits until it has a sandbox ready, p.Timeout
// seconds at most (30 if it is 0).
func (c *Client) CreatePool(ctx context.Context, p wire.PoolCreate) (*wire.Pool, error) {
	p.WaitForReady = true
	if p.Timeout == 0 {
		p.Timeout = 30
	}
	made, err := send[wire.Pool](ctx, c, call{method: http.MethodPost, path: c.path("pools"), body: p, policy: namedCreating,
		timeout: time.Duration(max(p.Timeout, 0)+30) * time.Second, errors: mapPool(ErrAlreadyExists)})
	if ofRepetition(err, ErrAlreadyExists) {
		if found, e := c.GetPool(ctx, p.Name); e == nil && found.TemplateName == p.TemplateName && found.Replicas == p.Replicas {
			return found, nil
		}
	}
	return made, err
}

// GetPool finds a pool by its name or id.
func (c *Client) GetPool(ctx context.Context, name string) (*wire.Pool, error) {
	return send[wire.Pool](ctx, c, call{path: c.path("pools", name), errors: of("pool")})
}

// ListPools returns all pools. A server without any such thing is ErrAPI.
func (c *Client) ListPools(ctx context.Context) ([]wire.Pool, error) {
	list, err := send[wire.PoolList](ctx, c, call{path: c.path("pools"), errors: listing})
	if err != nil {
		return nil, err
	}
	return list.Pools, nil
}

// UpdatePool renames or scales a pool, down to 0 to pause it; an update of
// nothing only looks at it. A name that is taken is ErrNameConflict.
func (c *Client) UpdatePool(ctx context.Context, name string, u wire.PoolUpdate) (*wire.Pool, error) {
	if u == (wire.PoolUpdate{}) {
		return c.GetPool(ctx, name)
	}
	return send[wire.Pool](ctx, c, call{method: http.MethodPatch, path: c.path("pools", name), body: u, errors: mapPool(ErrNameConflict)})
}

// DeletePool deletes a pool and the sandboxes that it keeps.
func (c *Client) DeletePool(ctx context.Context, name string) error {
	return c.delete(ctx, call{path: c.path("pools", name), errors: of("pool")})
}

// mapVolumeCreate is §3.5.
func mapVolumeCreate(e *Error, p wire.Problem) {
	mapGeneric(e, p)
	switch e.Status {
	case http.StatusServiceUnavailable:
		e.Kind, e.ResourceType, e.ErrorType = ErrCreation, "volume", "VolumeProvisioning"
	case http.StatusGatewayTimeout:
		e.Kind, e.ResourceType = ErrTimeout, "volume"
	case http.StatusConflict:
		e.Kind, e.ResourceType = ErrAlreadyExists, "volume"
	}
}

// mapVolumeUpdate is §2.1: 400 is a refusal to shrink, whatever the body says.
func mapVolumeUpdate(e *Error, p wire.Problem) {
	conflicting("volume", ErrNameConflict)(e, p)
	if e.Status == http.StatusBadRequest {
		mapValidation(e, p)
		e.ErrorType = "VolumeResize"
	}
}

// mapPool is §3.5; conflict is what 409 means.
func mapPool(conflict *Kind) mapper {
	return func(e *Error, p wire.Problem) {
		conflicting("pool", conflict)(e, p)
		switch {
		case e.Status == http.StatusBadRequest && p.Type == "TemplateNotFound":
			e.Kind, e.ResourceType = ErrNotFound, "template"
		case e.Status == http.StatusBadRequest && p.Type == "ValidationError":
			mapValidation(e, p)
		case e.Status == http.StatusGatewayTimeout:
			e.Kind, e.ResourceType = ErrTimeout, "pool"
		}
	}
}
