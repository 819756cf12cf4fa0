package server

import (
	"cmp"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

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
	if len(in.VolumeMounts) > 0 {
		return 0, nil, unsupported("volume_mounts", "this server has no volumes")
	}
	if err := s.checkResources(in.Resources); err != nil {
		return 0, nil, err
	}
	now := s.now()
	t := &wire.Template{Name: in.Name, Image: in.Image, Resources: in.Resources, VolumeMounts: []wire.VolumeMount{}, CreatedAt: now, UpdatedAt: now}
	err := s.store.update(c.Context(), func() error {
		if err := s.templateNameFree(t); err != nil {
			return err
		}
		t.ID = s.options.NewID()
		return s.store.templates.put(t.ID, t)
	})
	return http.StatusCreated, t, err
}

func (s *Server) listTemplates(c call) (int, any, error) {
	all, err := s.store.templates.all()
	if err != nil {
		return 0, nil, err
	}
	slices.SortFunc(all, func(a, b *wire.Template) int { // newest first
		return cmp.Or(cmp.Compare(b.CreatedAt, a.CreatedAt), cmp.Compare(b.ID, a.ID))
	})
	page, _, err := page(c.URL.Query(), all)
	if err != nil {
		return 0, nil, err
	}
	list := wire.TemplateList{Templates: []wire.Template{}}
	for _, t := range page {
		list.Templates = append(list.Templates, *t)
	}
	return http.StatusOK, list, nil
}

func (s *Server) getTemplate(c call) (int, any, error) {
	t, err := s.findTemplate(c.name)
	return http.StatusOK, t, err
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
		if t, err = s.findTemplate(c.name); err != nil {
			return err
		}
		t.Name, t.UpdatedAt = *in.Name, s.now()
		if err := s.templateNameFree(t); err != nil {
			return err
		}
		return s.store.templates.put(t.ID, t)
	})
	return http.StatusOK, t, err
}

func (s *Server) deleteTemplate(c call) (int, any, error) {
	err := s.store.update(c.Context(), func() error {
		t, err := s.findTemplate(c.name)
		if err != nil {
			return err
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
	return http.StatusNoContent, nil, err
}

// findTemplate looks for a name first and then for an id (protocol.md §2.0).
func (s *Server) findTemplate(name string) (*wire.Template, error) {
	all, err := s.store.templates.all()
	if err != nil {
		return nil, err
	}
	for _, key := range []func(*wire.Template) string{
		func(t *wire.Template) string { return t.Name },
		func(t *wire.Template) string { return t.ID },
	} {
		if i := slices.IndexFunc(all, func(t *wire.Template) bool { return key(t) == name }); i >= 0 {
			return all[i], nil
		}
	}
	return nil, fail(http.StatusNotFound, kindNotFound, "there is no template %q", name)
}

func (s *Server) templateNameFree(t *wire.Template) error {
	all, err := s.store.templates.all()
	for _, other := range all {
		if other.Name == t.Name && other.ID != t.ID {
			return fail(http.StatusConflict, kindConflict, "there is a template %q already", t.Name)
		}
	}
	return err
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

var (
	cpuRule      = regexp.MustCompile(`^([0-9]{1,9}m|[0-9]{1,6}(\.[0-9]{1,3})?)$`)
	quantityRule = regexp.MustCompile(`^([0-9]{1,18}(\.[0-9]{1,9})?)([KMGTPE]i|[kMGTPE]|[eE][0-9]{1,2})?$`)
)

func (s *Server) checkResources(r wire.Resources) error {
	if !cpuRule.MatchString(r.CPU) || zero(strings.TrimSuffix(r.CPU, "m")) {
		return invalid("body.resources.cpu", "the CPU limit %q is not one: want cores or millicores, such as 2 or 500m", r.CPU)
	}
	for _, q := range []struct{ field, value string }{{"memory", r.Memory}, {"storage", r.Storage}} {
		m := quantityRule.FindStringSubmatch(q.value)
		if (m == nil || zero(m[1])) && !(q.field == "storage" && q.value == "") {
			return invalid("body.resources."+q.field, "the %s limit %q is not one: want a quantity such as 512Mi or 2Gi", q.field, q.value)
		}
	}
	enforces := s.options.Runtime.Info().Enforces
	return s.checkLimits(
		limit{"resources.cpu", true, enforces.CPU},
		limit{"resources.memory", true, enforces.Memory},
		limit{"resources.storage", r.Storage != "", enforces.Storage})
}

func zero(number string) bool {
	v, err := strconv.ParseFloat(number, 64)
	return err != nil || v == 0
}
