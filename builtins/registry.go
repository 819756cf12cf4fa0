package builtins

import (
	"fmt"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines client.registries, the places that images are pulled from,
// and the values that it makes.

func newRegistryKind() *kind[wire.Registry] {
	k := &kind[wire.Registry]{
		noun: "registry", generations: []string{wire.Head, wire.Late},
		name: func(r *wire.Registry) string { return r.Name },
		ref:  func(r *wire.Registry) string { return r.Name },
		text: func(r *wire.Registry) string { return fmt.Sprintf("registry(%q, url=%q)", r.Name, r.URL) },
		get:  (*client.Client).GetRegistry, delete: (*client.Client).DeleteRegistry,
	}
	k.attributes.methods = map[string]*starlark.Builtin{
		"update":  k.bind("Registry.update", registryUpdate),
		"refresh": k.bind("Registry.refresh", getResource),
		"delete":  k.bind("Registry.delete", deleteResource),
	}
	return k
}

func newRegistries() *namespace {
	k := newRegistryKind()
	return &namespace{name: "client.registries", members: starlark.StringDict{
		"create":   k.bind("client.registries.create", registryCreate),
		"retrieve": k.bind("client.registries.retrieve", getResource),
		"list":     k.bind("client.registries.list", registryList),
		"update":   k.bind("client.registries.update", registryUpdate),
		"delete":   k.bind("client.registries.delete", deleteResource),
	}}
}

func registryCreate(c *invocation, k *kind[wire.Registry]) (starlark.Value, error) {
	var want wire.RegistryCreate
	cl, err := c.connect(&want.Name, &want.URL, &want.Username, &want.Password)
	if err != nil {
		return nil, err
	}
	return k.made(c, cl)(cl.CreateRegistry(c.Ctx, want))
}

func registryList(c *invocation, k *kind[wire.Registry]) (starlark.Value, error) {
	var a listArgs
	cl, err := c.connect(a.vars()...)
	if err != nil {
		return nil, err
	}
	return k.values(c, cl)(cl.ListRegistries(c.Ctx, a.query()))
}

func registryUpdate(c *invocation, k *kind[wire.Registry]) (starlark.Value, error) {
	var newName, url, username, password optional[string]
	s, err := k.subject(c, &newName, &url, &username, &password)
	if err != nil {
		return nil, err
	}
	return s.seen(s.cl.UpdateRegistry(c.Ctx, s.ref, wire.RegistryUpdate{Name: newName.ptr, URL: url.ptr, Username: username.ptr, Password: password.ptr}))
}
