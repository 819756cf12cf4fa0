package builtins

import (
	"fmt"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the noun pool and the values that it makes.

func newPoolKind() *kind[wire.Pool] {
	k := &kind[wire.Pool]{
		noun: "pool", generations: []string{wire.Seed, wire.Classic},
		name: func(p *wire.Pool) string { return p.Name },
		ref:  func(p *wire.Pool) string { return p.Name },
		text: func(p *wire.Pool) string {
			return fmt.Sprintf("pool(%q, template_name=%q, replicas=%d)", p.Name, p.TemplateName, p.Replicas)
		},
		get: (*client.Client).GetPool, list: (*client.Client).ListPools, delete: (*client.Client).DeletePool,
	}
	k.attributes.methods = map[string]*starlark.Builtin{
		"scale":   k.bind("Pool.scale", poolScale),
		"update":  k.bind("Pool.update", poolUpdate),
		"refresh": k.bind("Pool.refresh", getResource),
		"delete":  k.bind("Pool.delete", deleteResource),
	}
	return k
}

func newPoolNoun() *noun {
	k := newPoolKind()
	return &noun{namespace{
		name: "pool",
		call: k.bind("pool", poolEnsure),
		members: starlark.StringDict{
			"create": k.bind("pool.create", poolCreate),
			"get":    k.bind("pool.get", getResource),
			"list":   k.bind("pool.list", listResources),
			"update": k.bind("pool.update", poolUpdate),
			"delete": k.bind("pool.delete", deleteResource),
		},
	}}
}

// replicas is how many sandboxes a pool keeps: 0 pauses it. Nil for None.
type replicas struct{ optional[int] }

func (r *replicas) Unpack(v starlark.Value) error {
	err := r.optional.Unpack(v)
	if err == nil && r.ptr != nil && *r.ptr < 0 {
		err = fmt.Errorf("got %s, want 0 or more", v)
	}
	return err
}

func poolEnsure(c *invocation, k *kind[wire.Pool]) (starlark.Value, error) {
	template := named{kind: "template", optional: true}
	var name string
	var want replicas
	var timeout wholeSeconds
	var ephemeral bool
	cl, err := c.connect(&name, &template, &want, &timeout, &ephemeral)
	if err != nil {
		return nil, err
	}
	var create func() (*wire.Pool, error)
	if template.name != "" {
		create = func() (*wire.Pool, error) {
			p := wire.PoolCreate{Name: name, TemplateName: template.name, Replicas: want.or(1), Timeout: int(timeout)}
			if p.Replicas == 0 {
				return nil, c.argumentError("parameter replicas: a new pool keeps at least 1 sandbox; pause it with scale(0) afterwards")
			}
			return cl.CreatePool(c.Ctx, p)
		}
	}
	v, found, err := k.ensure(c, cl, name, ephemeral, create, fmt.Sprintf("give it a template to create it: pool(%q, template = …)", name))
	if err != nil || !found {
		return valueOrError(v, err)
	}
	have := v.msg.Load()
	if template.name != "" && have.TemplateName != template.name {
		return nil, k.differs(name, fmt.Sprintf("template_name is %q and not %q", have.TemplateName, template.name))
	}
	if want.or(have.Replicas) == have.Replicas {
		return v, nil
	}
	return (&subject[wire.Pool]{c: c, kind: k, cl: cl, value: v}).seen(cl.UpdatePool(c.Ctx, name, wire.PoolUpdate{Replicas: want.ptr}))
}

func poolCreate(c *invocation, k *kind[wire.Pool]) (starlark.Value, error) {
	template := named{kind: "template"}
	var want wire.PoolCreate
	var n positive[int]
	cl, err := c.connect(&want.Name, &template, &n, (*wholeSeconds)(&want.Timeout))
	if err != nil {
		return nil, err
	}
	want.TemplateName, want.Replicas = template.name, n.or(1)
	return k.made(c, cl)(cl.CreatePool(c.Ctx, want))
}

func poolUpdate(c *invocation, k *kind[wire.Pool]) (starlark.Value, error) {
	var newName optional[string]
	var n replicas
	s, err := k.subject(c, &newName, &n)
	if err != nil {
		return nil, err
	}
	return s.seen(s.cl.UpdatePool(c.Ctx, s.ref, wire.PoolUpdate{Name: newName.ptr, Replicas: n.ptr}))
}

func poolScale(c *invocation, k *kind[wire.Pool]) (starlark.Value, error) {
	var n int
	s, err := k.subject(c, &n)
	if err != nil {
		return nil, err
	}
	if n < 0 {
		return nil, c.argumentError("parameter replicas: got %d, want 0 or more", n)
	}
	return s.seen(s.cl.UpdatePool(c.Ctx, s.ref, wire.PoolUpdate{Replicas: &n}))
}
