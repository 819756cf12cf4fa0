package builtins

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/client"
)

// This file defines what volumes, templates, pools, snapshots and registries
// have in common: each is a message that the server keeps under a name, and that
// can be looked at, changed and deleted.

// A kind is what differs between them.
type kind[T any] struct {
	noun        string   // "volume"
	generations []string // of the API that have it

	name   func(*T) string // what it is called
	ref    func(*T) string // how requests name it
	text   func(*T) string // how it is shown
	get    func(*client.Client, context.Context, string) (*T, error)
	list   func(*client.Client, context.Context) ([]T, error)
	delete func(*client.Client, context.Context, string) error

	attributes attributes[*remote[T]]

	snapshots bool // templates only: in truth they are snapshots
}

// remote is a resource as it was seen last.
type remote[T any] struct {
	kind    *kind[T]
	conn    *client.Client
	msg     atomic.Pointer[T]
	release *entry // nil if it is nobody's to release
}

func (k *kind[T]) value(cl *client.Client, msg *T) *remote[T] {
	v := &remote[T]{kind: k, conn: cl}
	v.msg.Store(msg)
	return v
}

func (v *remote[T]) String() string        { return v.kind.text(v.msg.Load()) }
func (v *remote[T]) Type() string          { return v.kind.noun }
func (v *remote[T]) Freeze()               {} // shared from now on, and as alive as before
func (v *remote[T]) Truth() starlark.Bool  { return true }
func (v *remote[T]) Hash() (uint32, error) { return unhashable(v) }
func (v *remote[T]) AttrNames() []string   { return v.kind.attributes.names(v.msg.Load()) }
func (v *remote[T]) Attr(name string) (starlark.Value, error) {
	return v.kind.attributes.attr(v, v.msg.Load(), name)
}
func (v *remote[T]) held() *entry               { return v.release }
func (v *remote[T]) resourceName() string       { return v.kind.ref(v.msg.Load()) }
func (v *remote[T]) connection() *client.Client { return v.conn }

var (
	_ starlark.HasAttrs = (*remote[int])(nil)
	_ resource          = (*remote[int])(nil)
	_ scoped            = (*remote[int])(nil)
	_ connected         = (*remote[int])(nil)
)

// bind makes the builtin of a stub that fn carries out for k.
func (k *kind[T]) bind(stub string, fn func(*invocation, *kind[T]) (starlark.Value, error)) *starlark.Builtin {
	return builtin(stub, func(c *invocation) (starlark.Value, error) { return fn(c, k) })
}

// A subject is what a call is about: the value that it is a method of, or what
// its first argument names.
type subject[T any] struct {
	c     *invocation
	kind  *kind[T]
	cl    *client.Client
	ref   string
	value *remote[T] // nil unless it is a method
}

// subject unpacks the arguments, the first one of a function that is no method
// included, which vars does not hold.
func (k *kind[T]) subject(c *invocation, vars ...any) (*subject[T], error) {
	s := &subject[T]{c: c, kind: k}
	which := named{kind: k.noun}
	if v, ok := c.self.(*remote[T]); ok {
		s.value, s.ref = v, v.resourceName()
	} else {
		vars = append([]any{&which}, vars...)
	}
	cl, err := c.connect(vars...)
	if s.cl = cl; s.value == nil {
		s.ref = which.name
	}
	return s, err
}

// seen is the value of what the server said about the subject.
func (s *subject[T]) seen(msg *T, err error) (starlark.Value, error) {
	if err != nil {
		return nil, s.kind.explain(s.c, s.cl, err)
	}
	if s.value == nil {
		return s.kind.value(s.cl, msg), nil
	}
	s.value.msg.Store(msg)
	return s.value, nil
}

func getResource[T any](c *invocation, k *kind[T]) (starlark.Value, error) {
	s, err := k.subject(c)
	if err != nil {
		return nil, err
	}
	return s.seen(k.get(s.cl, c.Ctx, s.ref))
}

func deleteResource[T any](c *invocation, k *kind[T]) (starlark.Value, error) {
	s, err := k.subject(c)
	if err != nil {
		return nil, err
	}
	if err := c.deleting(k.noun, s.ref, func() error { return k.delete(s.cl, c.Ctx, s.ref) }); err != nil {
		return nil, k.explain(c, s.cl, err)
	}
	if s.value != nil {
		c.Run.drop(s.value.release)
	}
	return starlark.None, nil
}

func listResources[T any](c *invocation, k *kind[T]) (starlark.Value, error) {
	cl, err := c.connect()
	if err != nil {
		return nil, err
	}
	return k.values(c, cl)(k.list(cl, c.Ctx))
}

// values returns what makes a list of values of a list of messages.
func (k *kind[T]) values(c *invocation, cl *client.Client) func([]T, error) (starlark.Value, error) {
	return func(all []T, err error) (starlark.Value, error) {
		if err != nil {
			return nil, k.explain(c, cl, err)
		}
		values := make([]starlark.Value, len(all))
		for i := range all {
			values[i] = k.value(cl, &all[i])
		}
		return starlark.NewList(values), nil
	}
}

// made is the value of what the server has made: the creation is told from here
// on.
func (k *kind[T]) made(c *invocation, cl *client.Client) func(*T, error) (starlark.Value, error) {
	life := c.life(k.noun, "")
	return func(msg *T, err error) (starlark.Value, error) {
		if err != nil {
			life.made("", "", err)
			return nil, k.explain(c, cl, err)
		}
		id, _ := identity(msg)
		life.made(k.name(msg), id, nil)
		return k.value(cl, msg), nil
	}
}

// ensure finds the resource of a name, or creates it; found tells which. What
// it creates is released with the scope if it is ephemeral. Without create
// there must be one, and hint says how to get it created.
func (k *kind[T]) ensure(c *invocation, cl *client.Client, name string, ephemeral bool, create func() (*T, error), hint string) (v *remote[T], found bool, err error) {
	msg, err := k.get(cl, c.Ctx, name)
	if errors.Is(err, client.ErrNotFound) {
		if lacking := k.lacking(c, cl); lacking != nil {
			return nil, false, lacking
		}
		if create == nil {
			return nil, false, &hinted{err, hint}
		}
		v := k.value(cl, nil)
		life := c.born(k.noun, name)
		if ephemeral {
			v.release = life.hold(c.Task, cl, k.entry(v, cl, name), false)
		}
		if msg, err = create(); err == nil {
			v.msg.Store(msg)
			id, _ := identity(msg)
			life.made(k.name(msg), id, nil)
			return v, false, nil
		}
		life.made("", "", err)
		if refused(err) {
			c.Run.drop(v.release)
		}
		if !errors.Is(err, client.ErrAlreadyExists) {
			return nil, false, err
		}
		msg, err = k.get(cl, c.Ctx, name) // somebody was faster
	}
	if err != nil {
		return nil, false, err
	}
	return k.value(cl, msg), true, nil
}

// entry deletes v, which is called name as long as it is not known to exist.
func (k *kind[T]) entry(v *remote[T], cl *client.Client, name string) *entry {
	known := func(of func(*T) string) string {
		if msg := v.msg.Load(); msg != nil {
			return of(msg)
		}
		return name
	}
	return &entry{kind: k.noun, name: func() string { return known(k.name) }, on: cl, release: func(ctx context.Context) error {
		return ignoreNotFound(k.delete(cl, ctx, known(k.ref)))
	}}
}

// differs is the failure of ensure to find what was wanted.
func (k *kind[T]) differs(name, differences string) error {
	return &hinted{
		&client.Error{Kind: client.ErrAlreadyExists, ResourceType: k.noun, Message: fmt.Sprintf("%s %q exists and is different: %s", k.noun, name, differences)},
		fmt.Sprintf("use another name, or delete it with %s.delete(%q)", k.noun, name),
	}
}

// explain says so if what was not found is the whole kind.
func (k *kind[T]) explain(c *invocation, cl *client.Client, err error) error {
	if errors.Is(err, client.ErrNotFound) || errors.Is(err, client.ErrAPI) {
		if lacking := k.lacking(c, cl); lacking != nil {
			return lacking
		}
	}
	return err
}

// lacking is the error of a server whose generation does not have the kind, or
// nil.
func (k *kind[T]) lacking(c *invocation, cl *client.Client) error {
	return c.lacking(cl, plural(k.noun), k.generations)
}

// lacking is the error of a server that speaks none of the generations that have
// something, or nil.
func (c *invocation) lacking(cl *client.Client, what string, having []string) error {
	spoken, err := generations(c.Ctx, cl)
	if err != nil || slices.ContainsFunc(spoken, func(g string) bool { return slices.Contains(having, g) }) {
		return err
	}
	has, speaks := "generation "+having[0]+" of the API has", enumerate(spoken)
	if len(having) > 1 {
		has = "generations " + enumerate(having) + " of the API have"
	}
	return &client.Error{Kind: client.ErrAPI, Err: errLacking, Message: fmt.Sprintf("this server has no %s: %s them, and it speaks %s", what, has, speaks)}
}

// orLacking says so if what was not found is the whole endpoint.
func (c *invocation) orLacking(cl *client.Client, err error, what string, having ...string) error {
	if errors.Is(err, client.ErrNotFound) {
		if lacking := c.lacking(cl, what, having); lacking != nil {
			return lacking
		}
	}
	return err
}

// errLacking is why a server does not do what belongs to another generation.
var errLacking = errors.New("of another generation")

func plural(noun string) string {
	if noun == "registry" {
		return "registries"
	}
	return noun + "s"
}
