package client

import (
	"context"
	"net/http"
	"slices"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the calls on templates (protocol.md §2.2).

// CreateTemplate makes a template. A name that is taken is ErrAlreadyExists.
func (c *Client) CreateTemplate(ctx context.Context, t wire.TemplateCreate) (*wire.Template, error) {
	made, err := send[wire.Template](ctx, c, call{method: http.MethodPost, path: c.path("templates"), body: t,
		policy: namedCreating, errors: conflicting("template", ErrAlreadyExists)})
	if ofRepetition(err, ErrAlreadyExists) {
		found, e := c.GetTemplate(ctx, t.Name)
		if e == nil && found.Image == t.Image && found.Resources == t.Resources && slices.Equal(found.VolumeMounts, t.VolumeMounts) {
			return found, nil
		}
	}
	return made, err
}

// GetTemplate finds a template by its name or id.
func (c *Client) GetTemplate(ctx context.Context, name string) (*wire.Template, error) {
	return send[wire.Template](ctx, c, call{path: c.path("templates", name), errors: of("template")})
}

// ListTemplates returns all templates. A server without any such thing is ErrAPI.
func (c *Client) ListTemplates(ctx context.Context) ([]wire.Template, error) {
	list, err := send[wire.TemplateList](ctx, c, call{path: c.path("templates"), errors: listing})
	if err != nil {
		return nil, err
	}
	return list.Templates, nil
}

// UpdateTemplate renames a template. A name that is taken is ErrNameConflict.
func (c *Client) UpdateTemplate(ctx context.Context, name string, u wire.TemplateUpdate) (*wire.Template, error) {
	return send[wire.Template](ctx, c, call{method: http.MethodPatch, path: c.path("templates", name), body: u,
		errors: conflicting("template", ErrNameConflict)})
}

// DeleteTemplate deletes a template. One that sandboxes or pools are made from
// is ErrInUse.
func (c *Client) DeleteTemplate(ctx context.Context, name string) error {
	return c.delete(ctx, call{path: c.path("templates", name), errors: conflicting("template", ErrInUse)})
}

// send is json for calls that answer with a T.
func send[T any](ctx context.Context, c *Client, call call) (*T, error) {
	out := new(T)
	if err := c.json(ctx, call, out); err != nil {
		return nil, err
	}
	return out, nil
}
