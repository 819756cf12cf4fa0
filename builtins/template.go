package builtins

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync/atomic"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the noun template, the values that it makes, and the
// constructors of what templates are made of: resources and mount.

func newTemplateNoun() *noun {
	return &noun{namespace{
		name: "template",
		call: builtin("template", templateEnsure),
		members: starlark.StringDict{
			"create": builtin("template.create", templateCreate),
			"get":    builtin("template.get", templateGet),
			"list":   builtin("template.list", templateList),
			"update": builtin("template.update", templateUpdate),
			"delete": builtin("template.delete", templateDelete),
		},
	}}
}

// templateValue is a template as it was seen last.
type templateValue struct {
	template atomic.Pointer[wire.Template]
	release  *entry // nil if it is nobody's to release
}

var (
	_ starlark.HasAttrs = (*templateValue)(nil)
	_ resource          = (*templateValue)(nil)
	_ scoped            = (*templateValue)(nil)
)

func newTemplateValue(template *wire.Template) *templateValue {
	t := new(templateValue)
	t.template.Store(template)
	return t
}

func (t *templateValue) Type() string          { return "template" }
func (t *templateValue) Freeze()               {}
func (t *templateValue) Truth() starlark.Bool  { return true }
func (t *templateValue) Hash() (uint32, error) { return unhashable(t) }
func (t *templateValue) held() *entry          { return t.release }
func (t *templateValue) resourceName() string  { return t.template.Load().Name }
func (t *templateValue) AttrNames() []string   { return templateAttributes.names(t.template.Load()) }
func (t *templateValue) String() string {
	w := t.template.Load()
	return fmt.Sprintf("template(%q, image=%q)", w.Name, w.Image)
}
func (t *templateValue) Attr(name string) (starlark.Value, error) {
	return templateAttributes.attr(t, t.template.Load(), name)
}

var templateAttributes = attributes[*templateValue]{methods: map[string]*starlark.Builtin{
	"update": builtin("Template.update", templateUpdateSelf),
	"delete": builtin("Template.delete", templateDeleteSelf),
}}

// mounts is a list of mount values.
type mounts []wire.VolumeMount

func (m *mounts) Unpack(v starlark.Value) error {
	list, ok := v.(starlark.Sequence)
	if !ok {
		return fmt.Errorf("got %s, want a list of mount(…)", v.Type())
	}
	*m = nil
	for element := range starlark.Elements(list) {
		r, ok := element.(*record)
		if !ok || r.typ != "mount" {
			return fmt.Errorf("got %s in the list, want mount(volume, path)", element.Type())
		}
		*m = append(*m, r.msg.(wire.VolumeMount))
	}
	return nil
}

func templateEnsure(c *invocation) (starlark.Value, error) {
	var want wire.TemplateCreate
	var image, storage optional[string]
	var ephemeral bool
	cl, err := c.connect(&want.Name, &image, &want.Resources.CPU, &want.Resources.Memory, &storage, (*mounts)(&want.VolumeMounts), &ephemeral)
	if err != nil {
		return nil, err
	}
	want.Image, want.Resources.Storage = image.or(""), storage.or("")
	c.warnTemplate(cl, want.Resources)

	found, err := cl.GetTemplate(c.Ctx, want.Name)
	if errors.Is(err, client.ErrNotFound) && image.ptr != nil {
		value := new(templateValue)
		if ephemeral {
			value.release = c.push(&entry{kind: "template", name: value.nameOr(want.Name), release: func(ctx context.Context) error {
				return ignoreNotFound(cl.DeleteTemplate(ctx, value.nameOr(want.Name)()))
			}})
		}
		var created *wire.Template
		created, err = cl.CreateTemplate(c.Ctx, want)
		if err == nil {
			value.template.Store(created)
			return value, nil
		}
		if refused(err) {
			c.Run.drop(value.release)
		}
		if !conflict(err) {
			return nil, err
		}
		found, err = cl.GetTemplate(c.Ctx, want.Name) // somebody was faster
	}
	if errors.Is(err, client.ErrNotFound) && image.ptr == nil {
		return nil, &hinted{err, fmt.Sprintf("give it an image to create it: template(%q, image = …)", want.Name)}
	}
	if err != nil {
		return nil, err
	}
	if differences := templateDifferences(found, &want); len(differences) > 0 {
		return nil, &hinted{
			&client.Error{Kind: client.ErrAlreadyExists, ResourceType: "template",
				Message: fmt.Sprintf("template %q exists and is different: %s", want.Name, strings.Join(differences, ", "))},
			fmt.Sprintf("use another name, or delete it with template.delete(%q)", want.Name),
		}
	}
	return newTemplateValue(found), nil
}

// nameOr returns a function that tells the template's present name, or its
// first one while it has not been created.
func (t *templateValue) nameOr(first string) func() string {
	return func() string {
		if w := t.template.Load(); w != nil {
			return w.Name
		}
		return first
	}
}

func conflict(err error) bool {
	var e *client.Error
	return errors.As(err, &e) && e.Status == 409
}

// templateDifferences says how the template that exists differs from the wanted
// one. What is not demanded, no image and default limits with it, may be
// anything.
func templateDifferences(have *wire.Template, want *wire.TemplateCreate) (differences []string) {
	differ := func(what, have, want string) {
		differences = append(differences, fmt.Sprintf("%s is %q and not %q", what, have, want))
	}
	demanded := want.Image != ""
	if demanded && have.Image != want.Image {
		differ("image", have.Image, want.Image)
	}
	if cpu := want.Resources.CPU; (demanded || cpu != wire.DefaultCPU) && !sameQuantity(have.Resources.CPU, cpu) {
		differ("cpu", have.Resources.CPU, cpu)
	}
	if memory := want.Resources.Memory; (demanded || memory != wire.DefaultMemory) && !sameQuantity(have.Resources.Memory, memory) {
		differ("memory", have.Resources.Memory, memory)
	}
	if storage := want.Resources.Storage; storage != "" && !sameQuantity(have.Resources.Storage, storage) {
		differ("storage", have.Resources.Storage, storage)
	}
	if (demanded || len(want.VolumeMounts) > 0) && !slices.Equal(have.VolumeMounts, want.VolumeMounts) {
		differ("volume_mounts", mountList(have.VolumeMounts), mountList(want.VolumeMounts))
	}
	return differences
}

func mountList(mounts []wire.VolumeMount) string {
	texts := make([]string, len(mounts))
	for i, m := range mounts {
		texts[i] = m.VolumeName + " on " + m.MountPath
	}
	return strings.Join(texts, ", ")
}

// sameQuantity compares Kubernetes quantities: "1" is "1000m", "1Gi" is "1024Mi".
func sameQuantity(a, b string) bool {
	if a == b {
		return true
	}
	x, y := quantity(a), quantity(b)
	return x != nil && y != nil && x.Cmp(y) == 0
}

// quantity is the number that a Kubernetes quantity stands for, or nil.
func quantity(s string) *big.Rat {
	number := strings.TrimRight(s, "numkKMGTPEi")
	if strings.Trim(number, "0123456789.") != "" {
		return nil
	}
	n, ok := new(big.Rat).SetString(number)
	scale, known := map[string]float64{
		"": 1, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
		"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50, "Ei": 1 << 60,
	}[s[len(number):]]
	if !ok || !known {
		return nil
	}
	if scale < 1 {
		return n.Quo(n, new(big.Rat).SetInt64(int64(1/scale+0.5)))
	}
	return n.Mul(n, new(big.Rat).SetFloat64(scale))
}

func (c *invocation) warnTemplate(cl *client.Client, r wire.Resources) {
	c.warnUnenforced(cl, !sameQuantity(r.CPU, wire.DefaultCPU), !sameQuantity(r.Memory, wire.DefaultMemory), r.Storage != "")
}

func templateCreate(c *invocation) (starlark.Value, error) {
	var want wire.TemplateCreate
	var storage optional[string]
	cl, err := c.connect(&want.Name, &want.Image, &want.Resources.CPU, &want.Resources.Memory, &storage, (*mounts)(&want.VolumeMounts))
	if err != nil {
		return nil, err
	}
	want.Resources.Storage = storage.or("")
	c.warnTemplate(cl, want.Resources)
	template, err := cl.CreateTemplate(c.Ctx, want)
	if err != nil {
		return nil, err
	}
	return newTemplateValue(template), nil
}

func templateGet(c *invocation) (starlark.Value, error) {
	which := named{kind: "template"}
	cl, err := c.connect(&which)
	if err != nil {
		return nil, err
	}
	template, err := cl.GetTemplate(c.Ctx, which.name)
	if err != nil {
		return nil, err
	}
	return newTemplateValue(template), nil
}

func templateList(c *invocation) (starlark.Value, error) {
	cl, err := c.connect()
	if err != nil {
		return nil, err
	}
	templates, err := cl.ListTemplates(c.Ctx)
	if err != nil {
		return nil, err
	}
	values := make([]starlark.Value, len(templates))
	for i := range templates {
		values[i] = newTemplateValue(&templates[i])
	}
	return starlark.NewList(values), nil
}

func templateUpdate(c *invocation) (starlark.Value, error) {
	which := named{kind: "template"}
	var newName string
	cl, err := c.connect(&which, &newName)
	if err != nil {
		return nil, err
	}
	template, err := cl.UpdateTemplate(c.Ctx, which.name, wire.TemplateUpdate{Name: newName})
	if err != nil {
		return nil, err
	}
	return newTemplateValue(template), nil
}

func templateUpdateSelf(c *invocation) (starlark.Value, error) {
	var newName string
	cl, err := c.connect(&newName)
	if err != nil {
		return nil, err
	}
	t := c.self.(*templateValue)
	template, err := cl.UpdateTemplate(c.Ctx, t.resourceName(), wire.TemplateUpdate{Name: newName})
	if err != nil {
		return nil, err
	}
	t.template.Store(template)
	return t, nil
}

func templateDelete(c *invocation) (starlark.Value, error) {
	which := named{kind: "template"}
	cl, err := c.connect(&which)
	if err != nil {
		return nil, err
	}
	if err := cl.DeleteTemplate(c.Ctx, which.name); err != nil {
		return nil, err
	}
	return starlark.None, nil
}

func templateDeleteSelf(c *invocation) (starlark.Value, error) {
	cl, err := c.connect()
	if err != nil {
		return nil, err
	}
	t := c.self.(*templateValue)
	if err := cl.DeleteTemplate(c.Ctx, t.resourceName()); err != nil {
		return nil, err
	}
	c.Run.drop(t.release)
	return starlark.None, nil
}

func newResources(c *invocation) (starlark.Value, error) {
	var r wire.Resources
	var storage optional[string]
	if err := c.unpack(&r.CPU, &r.Memory, &storage); err != nil {
		return nil, err
	}
	r.Storage = storage.or("")
	return &record{"resources", r}, nil
}

func newMount(c *invocation) (starlark.Value, error) {
	volume := named{kind: "volume"}
	var m wire.VolumeMount
	if err := c.unpack(&volume, &m.MountPath); err != nil {
		return nil, err
	}
	m.VolumeName = volume.name
	return &record{"mount", m}, nil
}
