package server

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines registries (protocol.md §2.10): where images come from, and
// the credentials for it, which are kept and never told.

const (
	registryPage    = 20 // protocol.md §16.12
	maxRegistryPage = 100
)

// registry is the record of one.
type registry struct {
	Registry wire.Registry `json:"registry"`
	Username string        `json:"username"`
	Password string        `json:"password"`
}

func (s *Server) createRegistry(c call) (int, any, error) {
	var in wire.RegistryCreate
	if err := decodeRegistry(c.body, &in); err != nil {
		return 0, nil, err
	}
	if err := checkRegistry(&in.Name, &in.URL, &in.Username, &in.Password); err != nil {
		return 0, nil, err
	}
	now := s.now()
	r := &registry{wire.Registry{Name: in.Name, URL: in.URL, CreatedAt: now, UpdatedAt: now}, in.Username, in.Password}
	err := s.store.update(c.Context(), func() error {
		if err := s.store.registries.nameFree("", in.Name); err != nil {
			return err
		}
		r.Registry.ID = s.options.NewID()
		return s.store.registries.put(r.Registry.ID, r)
	})
	return http.StatusCreated, r.Registry, err
}

// decodeRegistry reads a body, and refuses in it what only the hosted service can
// do (protocol.md §16.12).
func decodeRegistry(body []byte, into any) error {
	var hosted struct {
		AuthType   string `json:"auth_type"`
		AWSRoleARN string `json:"aws_role_arn"`
	}
	for _, part := range []any{into, &hosted} {
		if err := decode(body, part); err != nil {
			return err
		}
	}
	const why = "this server reaches registries by username and password only: give these"
	return refuse(
		refusal{"auth_type", hosted.AuthType != "" && hosted.AuthType != "DOCKER_CONFIG", why},
		refusal{"aws_role_arn", hosted.AWSRoleARN != "", why},
	)
}

// checkRegistry checks what is given of a registry: nil is not.
func checkRegistry(name, address, username, password *string) error {
	if name != nil {
		if err := checkName(*name); err != nil {
			return err
		}
	}
	if address != nil {
		if u, err := url.Parse(*address); err != nil || *address == "" || u.User != nil {
			return invalid("body.url", "want the address of a registry, such as https://registry.example, without credentials")
		}
	}
	for _, credential := range []struct {
		field string
		value *string
	}{{"username", username}, {"password", password}} {
		if credential.value != nil && *credential.value == "" {
			return invalid("body."+credential.field, "a %s is required", credential.field)
		}
	}
	return nil
}

func (s *Server) listRegistries(c call) (int, any, error) {
	query := c.URL.Query()
	all, err := s.store.registries.newest()
	if err != nil {
		return 0, nil, err
	}
	found := []wire.Registry{}
	for _, r := range all {
		if strings.Contains(r.Registry.Name, strings.ToLower(query.Get("name_contains"))) {
			found = append(found, r.Registry)
		}
	}
	l := listing[wire.Registry]{
		field: "registries", whole: defaultPage, page: registryPage, most: maxRegistryPage,
		keys: map[string]func(wire.Registry) string{
			"created_at": func(r wire.Registry) string { return r.CreatedAt },
			"name":       func(r wire.Registry) string { return r.Name },
		},
		id: func(r wire.Registry) string { return r.ID },
	}
	return l.answer(query, found)
}

func (s *Server) getRegistry(c call) (int, any, error) {
	r, err := s.store.registries.find(c.name)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, r.Registry, nil
}

func (s *Server) updateRegistry(c call) (int, any, error) {
	var in wire.RegistryUpdate
	if err := decodeRegistry(c.body, &in); err != nil {
		return 0, nil, err
	}
	if err := checkRegistry(in.Name, in.URL, in.Username, in.Password); err != nil {
		return 0, nil, err
	}
	var r *registry
	err := s.store.update(c.Context(), func() (err error) {
		if r, err = s.store.registries.find(c.name); err != nil {
			return err
		}
		before := *r
		for _, field := range []struct{ now, given *string }{
			{&r.Registry.Name, in.Name}, {&r.Registry.URL, in.URL}, {&r.Username, in.Username}, {&r.Password, in.Password},
		} {
			if field.given != nil {
				*field.now = *field.given
			}
		}
		if *r == before {
			return nil
		}
		if err := s.store.registries.nameFree(r.Registry.ID, r.Registry.Name); err != nil {
			return err
		}
		r.Registry.UpdatedAt = s.now()
		return s.store.registries.put(r.Registry.ID, r)
	})
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, r.Registry, nil
}

func (s *Server) deleteRegistry(c call) (int, any, error) {
	err := s.store.update(c.Context(), func() error {
		r, err := s.store.registries.find(c.name)
		if err != nil {
			return err
		}
		return s.store.registries.remove(r.Registry.ID)
	})
	return http.StatusNoContent, nil, err
}
