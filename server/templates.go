package server

import (
	"math"
	"math/big"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines templates (protocol.md §2.2) and what is checked of the
// limits that they and sandboxes ask for.

func (s *Server) createTemplate(c call) (int, any, error) {
	var in wire.TemplateCreate
	if err := decode(c.body, &in); err != nil {
		return 0, nil, err
	}
	if err := checkName(in.Name); err != nil {
		return 0, nil, err
	}
	if in.Image == "" {
		return 0, nil, invalid("body.image", "an image is required, such as %q", "host")
	}
	if err := s.checkImage(in.Image); err != nil {
		return 0, nil, err
	}
	if err := s.checkResources(in.Resources); err != nil {
		return 0, nil, err
	}
	now := s.now()
	t := &wire.Template{Name: in.Name, Image: in.Image, Resources: in.Resources, CreatedAt: now, UpdatedAt: now}
	err := s.store.update(c.Context(), func() (err error) {
		if err := s.store.templates.nameFree("", t.Name); err != nil {
			return err
		}
		if t.VolumeMounts, err = s.mounts(in.VolumeMounts); err != nil {
			return err
		}
		t.ID = s.options.NewID()
		return s.store.templates.put(t.ID, t)
	})
	return http.StatusCreated, s.viewTemplate(t), err
}

// viewTemplate is a template as it is answered: its volumes may have been
// renamed.
func (s *Server) viewTemplate(t *wire.Template) *wire.Template {
	if t == nil || len(t.VolumeMounts) == 0 {
		return t
	}
	v := *t
	v.VolumeMounts = slices.Clone(t.VolumeMounts)
	for i, m := range v.VolumeMounts {
		if volume, err := s.store.volumes.get(m.VolumeName); err == nil {
			v.VolumeMounts[i].VolumeName = volume.Name
		}
	}
	return &v
}

func (s *Server) listTemplates(c call) (int, any, error) {
	all, err := s.store.templates.newest()
	if err != nil {
		return 0, nil, err
	}
	page, err := page(c.URL.Query(), all)
	if err != nil {
		return 0, nil, err
	}
	list := wire.TemplateList{Templates: []wire.Template{}}
	for _, t := range page {
		list.Templates = append(list.Templates, *s.viewTemplate(t))
	}
	return http.StatusOK, list, nil
}

func (s *Server) getTemplate(c call) (int, any, error) {
	t, err := s.store.templates.find(c.name)
	return http.StatusOK, s.viewTemplate(t), err
}

func (s *Server) updateTemplate(c call) (int, any, error) {
	var in struct {
		Name *string `json:"name"`
	}
	if err := decode(c.body, &in); err != nil {
		return 0, nil, err
	}
	if in.Name == nil {
		return s.getTemplate(c)
	}
	if err := checkName(*in.Name); err != nil {
		return 0, nil, err
	}
	var t *wire.Template
	err := s.store.update(c.Context(), func() (err error) {
		if t, err = s.store.templates.find(c.name); err != nil {
			return err
		}
		t.Name, t.UpdatedAt = *in.Name, s.now()
		if err := s.store.templates.nameFree(t.ID, t.Name); err != nil {
			return err
		}
		return s.store.templates.put(t.ID, t)
	})
	return http.StatusOK, s.viewTemplate(t), err
}

func (s *Server) deleteTemplate(c call) (int, any, error) {
	err := s.store.update(c.Context(), func() error {
		t, err := s.store.templates.find(c.name)
		if err != nil {
			return err
		}
		pools, err := s.store.pools.all()
		if err != nil {
			return err
		}
		for _, p := range pools {
			if p.TemplateID == t.ID {
				return fail(http.StatusConflict, kindConflict, "the template %q is in use by the pool %q: delete that first", t.Name, p.Pool.Name)
			}
		}
		boxes, err := s.store.boxes.all()
		if err != nil {
			return err
		}
		for _, b := range boxes {
			if b.TemplateID == t.ID {
				return fail(http.StatusConflict, kindConflict, "the template %q is in use by the sandbox %q: delete that first", t.Name, b.Box.Name)
			}
		}
		return s.store.templates.remove(t.ID)
	})
	if err == nil {
		s.collectImages()
	}
	return http.StatusNoContent, nil, err
}

func checkName(name string) error {
	if !wire.ValidName(name) {
		return invalid("body.name", "the name %q is not one: want %s", name, wire.NameRule)
	}
	return nil
}

// unsupported is the refusal of what a request asks for and this server cannot
// do (protocol.md §15).
func unsupported(field, why string) error {
	return fail(http.StatusUnprocessableEntity, kindSandboxConfig, "%s: %s", field, why)
}

// refusal is of a field that asks for what this server cannot do.
type refusal struct {
	field string
	asked bool
	why   string
}

// refuse returns the first refusal that is called for.
func refuse(refusals ...refusal) error {
	for _, r := range refusals {
		if r.asked {
			return unsupported(r.field, r.why)
		}
	}
	return nil
}

// limit is one that a request asks for.
type limit struct {
	field    string
	set      bool
	enforced bool
}

// checkLimits refuses the first limit that would not be enforced, unless the
// server was told to do what it can.
func (s *Server) checkLimits(limits ...limit) error {
	for _, l := range limits {
		if l.set && !l.enforced && !s.options.BestEffort {
			return unsupported(l.field, "the "+s.options.Runtime.Info().Name+
				" runtime cannot enforce this limit here; start the server with --best-effort to go on without it")
		}
	}
	return nil
}

// rule is a regular expression that is compiled when it is first needed: every
// start of a daemon, which is the same program, would pay for it otherwise.
func rule(text string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
}

var (
	cpuRule      = rule(`^([0-9]{1,9}m|[0-9]{1,6}(\.[0-9]{1,3})?)$`)
	quantityRule = rule(`^([0-9]{1,18}(\.[0-9]{1,9})?)([KMGTPE]i|[kMGTPE]|[eE][0-9]{1,2})?$`)
)

func (s *Server) checkResources(r wire.Resources) error {
	if !cpuRule().MatchString(r.CPU) || zero(strings.TrimSuffix(r.CPU, "m")) {
		return invalid("body.resources.cpu", "the CPU limit %q is not one: want cores or millicores, such as 2 or 500m", r.CPU)
	}
	for _, q := range []struct{ field, value string }{{"memory", r.Memory}, {"storage", r.Storage}} {
		if quantity(q.value) == nil && !(q.field == "storage" && q.value == "") {
			return invalid("body.resources."+q.field, "the %s limit %q is not one: want a quantity such as 512Mi or 2Gi", q.field, q.value)
		}
	}
	enforces := s.options.Runtime.Info().Enforces
	return s.checkLimits(
		limit{"resources.cpu", true, enforces.CPU},
		limit{"resources.memory", true, enforces.Memory},
		limit{"resources.storage", r.Storage != "", enforces.Storage})
}

// limitsOf are the limits of resources that were checked.
func limitsOf(r wire.Resources) runtime.Limits {
	cpu, scale := strings.TrimSuffix(r.CPU, "m"), int64(1000)
	if cpu != r.CPU {
		scale = 1
	}
	n, _ := new(big.Rat).SetString(cpu)
	return runtime.Limits{CPU: roundUp(n.Mul(n, big.NewRat(scale, 1))), Memory: roundUp(quantity(r.Memory)), Storage: roundUp(quantity(r.Storage))}
}

// roundUp is a positive number rounded up, or the largest there is; of none, 0.
func roundUp(n *big.Rat) int64 {
	if n == nil {
		return 0
	}
	up := new(big.Int).Add(n.Num(), n.Denom())
	up.Quo(up.Sub(up, big.NewInt(1)), n.Denom())
	if !up.IsInt64() {
		return math.MaxInt64
	}
	return up.Int64()
}

// quantity is the number of bytes that a Kubernetes quantity stands for, or
// nil if it is none or zero.
func quantity(text string) *big.Rat {
	m := quantityRule().FindStringSubmatch(text)
	if m == nil || zero(m[1]) {
		return nil
	}
	n, _ := new(big.Rat).SetString(m[1])
	unit := big.NewRat(1, 1)
	if exponent, ok := strings.CutPrefix(strings.ToLower(m[3]), "e"); ok && exponent != "" && exponent != "i" {
		unit.SetString("1e" + exponent)
	} else if m[3] != "" {
		base := int64(1000)
		if strings.HasSuffix(m[3], "i") {
			base = 1024
		}
		power := strings.Index("kmgtpe", strings.ToLower(m[3][:1])) + 1
		unit.SetInt(new(big.Int).Exp(big.NewInt(base), big.NewInt(int64(power)), nil))
	}
	return n.Mul(n, unit)
}

func zero(number string) bool {
	v, err := strconv.ParseFloat(number, 64)
	return err != nil || v == 0
}
