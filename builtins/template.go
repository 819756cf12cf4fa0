package builtins

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the noun template, the values that it makes, and the
// constructors of what templates are made of: resources and mount.

func newTemplateKind() *kind[wire.Template] {
	k := &kind[wire.Template]{
		noun: "template", generations: []string{wire.Seed, wire.Classic},
		name: func(t *wire.Template) string { return t.Name },
		ref:  func(t *wire.Template) string { return t.Name },
		text: func(t *wire.Template) string { return fmt.Sprintf("template(%q, image=%q)", t.Name, t.Image) },
		get:  (*client.Client).GetTemplate, list: (*client.Client).ListTemplates, delete: (*client.Client).DeleteTemplate,
	}
	k.attributes.methods = map[string]*starlark.Builtin{
		"update":  k.bind("Template.update", templateUpdate),
		"refresh": k.bind("Template.refresh", getResource),
		"delete":  k.bind("Template.delete", deleteResource),
	}
	return k
}

func newTemplateNoun() *noun {
	k := newTemplateKind()
	return &noun{namespace{
		name: "template",
		call: k.bind("template", templateEnsure),
		members: starlark.StringDict{
			"create": k.bind("template.create", templateCreate),
			"get":    k.bind("template.get", getResource),
			"list":   k.bind("template.list", listResources),
			"update": k.bind("template.update", templateUpdate),
			"delete": k.bind("template.delete", deleteResource),
		},
	}}
}

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

func templateEnsure(c *invocation, k *kind[wire.Template]) (starlark.Value, error) {
	var want wire.TemplateCreate
	var image, storage optional[string]
	var ephemeral bool
	cl, err := c.connect(&want.Name, &image, &want.Resources.CPU, &want.Resources.Memory, &storage, (*mounts)(&want.VolumeMounts), &ephemeral)
	if err != nil {
		return nil, err
	}
	want.Image, want.Resources.Storage = image.or(""), storage.or("")
	c.warnTemplate(cl, want.Resources)
	var create func() (*wire.Template, error)
	if image.ptr != nil {
		create = func() (*wire.Template, error) { return cl.CreateTemplate(c.Ctx, want) }
	}
	v, found, err := k.ensure(c, cl, want.Name, ephemeral, create, fmt.Sprintf("give it an image to create it: template(%q, image = …)", want.Name))
	if errors.Is(err, errLacking) && image.ptr != nil {
		v, err = templateOfSnapshot(c, cl, want, ephemeral)
		found = false
	}
	if err == nil && found {
		if differences := templateDifferences(v.msg.Load(), &want); len(differences) > 0 {
			return nil, k.differs(want.Name, strings.Join(differences, ", "))
		}
	}
	return valueOrError(v, err)
}

// templateOfSnapshot is a template on a server without them: a snapshot of its
// image. Its limits become those of the sandboxes that are made from it.
func templateOfSnapshot(c *invocation, cl *client.Client, want wire.TemplateCreate, ephemeral bool) (*remote[wire.Template], error) {
	if len(want.VolumeMounts) > 0 {
		if err := newVolumeKind().lacking(c, cl); err != nil {
			return nil, err
		}
	}
	create := wire.SnapshotCreate{Name: want.Name, DockerImage: want.Image}
	if storage := want.Resources.Storage; storage != "" {
		bytes := quantity(storage)
		if bytes == nil {
			return nil, c.argumentError("parameter storage: %q is no quantity", storage)
		}
		create.FSCapacityBytes = roundedUp(bytes)
	}
	snapshot, err := ensureSnapshot(c, cl, newSnapshotKind(), create, nil, templateTime, ephemeral)
	if err != nil {
		return nil, err
	}
	of := func(s *wire.Snapshot, err error) (*wire.Template, error) {
		if err != nil {
			return nil, err
		}
		return &wire.Template{ID: s.ID, Name: s.Name, Image: s.DockerImage, Resources: want.Resources,
			VolumeMounts: []wire.VolumeMount{}, CreatedAt: s.CreatedAt, UpdatedAt: s.UpdatedAt}, nil
	}
	k := newTemplateKind()
	k.snapshots, k.delete = true, deleteSnapshot
	k.ref = func(t *wire.Template) string { return t.ID }
	k.get = func(cl *client.Client, ctx context.Context, id string) (*wire.Template, error) {
		return of(findSnapshot(cl, ctx, id))
	}
	msg, _ := of(snapshot.msg.Load(), nil)
	v := k.value(cl, msg)
	v.release = snapshot.release
	return v, nil
}

// templateTime is how long an image may take to become a snapshot.
const templateTime = seconds(5 * time.Minute)

func roundedUp(n *big.Rat) int64 {
	whole, rest := new(big.Int).QuoRem(n.Num(), n.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		whole.Add(whole, big.NewInt(1))
	}
	return whole.Int64()
}

// from has the sandbox made from a template, which is a snapshot with limits on
// a server without templates. What is set already stays.
func (n *named) from(c *invocation, cl *client.Client, r *wire.BoxCreate) error {
	if n.name == "" {
		return nil
	}
	t, known := n.value.(*remote[wire.Template])
	if !known || !t.kind.snapshots {
		r.TemplateName = n.name
		if known {
			return nil
		}
		return newTemplateKind().lacking(c, cl) // it would be passed over
	}
	r.SnapshotID = n.name
	limits := t.msg.Load().Resources
	cpu, memory := quantity(limits.CPU), quantity(limits.Memory)
	if cpu == nil || memory == nil {
		return c.argumentError("parameter template: it has %q of cpu and %q of memory, want quantities such as \"500m\" and \"512Mi\"", limits.CPU, limits.Memory)
	}
	if r.VCPUs == nil {
		n := int(roundedUp(cpu))
		r.VCPUs = &n
	}
	if r.MemBytes == nil {
		n := roundedUp(memory)
		r.MemBytes = &n
	}
	return nil
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

func templateCreate(c *invocation, k *kind[wire.Template]) (starlark.Value, error) {
	var want wire.TemplateCreate
	var storage optional[string]
	cl, err := c.connect(&want.Name, &want.Image, &want.Resources.CPU, &want.Resources.Memory, &storage, (*mounts)(&want.VolumeMounts))
	if err != nil {
		return nil, err
	}
	want.Resources.Storage = storage.or("")
	c.warnTemplate(cl, want.Resources)
	return k.made(c, cl)(cl.CreateTemplate(c.Ctx, want))
}

func templateUpdate(c *invocation, k *kind[wire.Template]) (starlark.Value, error) {
	var newName string
	s, err := k.subject(c, &newName)
	if err != nil {
		return nil, err
	}
	return s.seen(s.cl.UpdateTemplate(c.Ctx, s.ref, wire.TemplateUpdate{Name: newName}))
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
