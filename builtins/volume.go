package builtins

import (
	"fmt"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the noun volume and the values that it makes.

func newVolumeKind() *kind[wire.Volume] {
	k := &kind[wire.Volume]{
		noun: "volume", generations: []string{wire.Seed, wire.Classic},
		name: func(v *wire.Volume) string { return v.Name },
		ref:  func(v *wire.Volume) string { return v.Name },
		text: func(v *wire.Volume) string { return fmt.Sprintf("volume(%q, size=%q)", v.Name, v.Size) },
		get:  (*client.Client).GetVolume, list: (*client.Client).ListVolumes, delete: (*client.Client).DeleteVolume,
	}
	k.attributes.methods = map[string]*starlark.Builtin{
		"resize":  k.bind("Volume.resize", volumeResize),
		"update":  k.bind("Volume.update", volumeUpdate),
		"refresh": k.bind("Volume.refresh", getResource),
		"delete":  k.bind("Volume.delete", deleteResource),
	}
	return k
}

func newVolumeNoun() *noun {
	k := newVolumeKind()
	return &noun{namespace{
		name: "volume",
		call: k.bind("volume", volumeEnsure),
		members: starlark.StringDict{
			"create": k.bind("volume.create", volumeCreate),
			"get":    k.bind("volume.get", getResource),
			"list":   k.bind("volume.list", listResources),
			"update": k.bind("volume.update", volumeUpdate),
			"delete": k.bind("volume.delete", deleteResource),
		},
	}}
}

func volumeEnsure(c *invocation, k *kind[wire.Volume]) (starlark.Value, error) {
	var name string
	var size optional[string]
	var timeout wholeSeconds
	var ephemeral bool
	cl, err := c.connect(&name, &size, &timeout, &ephemeral)
	if err != nil {
		return nil, err
	}
	var create func() (*wire.Volume, error)
	if size.ptr != nil {
		create = func() (*wire.Volume, error) {
			return cl.CreateVolume(c.Ctx, wire.VolumeCreate{Name: name, Size: *size.ptr, Timeout: int(timeout)})
		}
	}
	v, found, err := k.ensure(c, cl, name, ephemeral, create, fmt.Sprintf("give it a size to create it: volume(%q, size = …)", name))
	if err != nil || !found || size.ptr == nil {
		return valueOrError(v, err)
	}
	have, want := v.msg.Load().Size, *size.ptr
	if sameQuantity(have, want) {
		return v, nil
	}
	if h, w := quantity(have), quantity(want); h != nil && w != nil && w.Cmp(h) < 0 {
		return nil, &hinted{
			&client.Error{Kind: client.ErrValidation, ErrorType: "VolumeResize", Field: "size",
				Message: fmt.Sprintf("volume %q has %s and cannot shrink to %s", name, have, want)},
			"volumes only grow; use another name for a smaller one",
		}
	}
	return (&subject[wire.Volume]{c: c, kind: k, cl: cl, value: v}).seen(cl.UpdateVolume(c.Ctx, name, wire.VolumeUpdate{Size: size.ptr}))
}

// valueOrError keeps a nil value from becoming an interface that is not nil.
func valueOrError[T any](v *remote[T], err error) (starlark.Value, error) {
	if err != nil {
		return nil, err
	}
	return v, nil
}

func volumeCreate(c *invocation, k *kind[wire.Volume]) (starlark.Value, error) {
	var want wire.VolumeCreate
	cl, err := c.connect(&want.Name, &want.Size, (*wholeSeconds)(&want.Timeout))
	if err != nil {
		return nil, err
	}
	return k.made(c, cl)(cl.CreateVolume(c.Ctx, want))
}

func volumeUpdate(c *invocation, k *kind[wire.Volume]) (starlark.Value, error) {
	var newName, size optional[string]
	s, err := k.subject(c, &newName, &size)
	if err != nil {
		return nil, err
	}
	return s.seen(s.cl.UpdateVolume(c.Ctx, s.ref, wire.VolumeUpdate{Name: newName.ptr, Size: size.ptr}))
}

func volumeResize(c *invocation, k *kind[wire.Volume]) (starlark.Value, error) {
	var size string
	s, err := k.subject(c, &size)
	if err != nil {
		return nil, err
	}
	return s.seen(s.cl.UpdateVolume(c.Ctx, s.ref, wire.VolumeUpdate{Size: &size}))
}
