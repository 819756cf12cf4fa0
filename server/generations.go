package server

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the generations of the API, and what each of them lacks
// (protocol.md §2.0, §2.4). A server is all of them at once unless it is told
// otherwise.

// allGenerations are those that there are, oldest first.
var allGenerations = [...]string{wire.Seed, wire.Classic, wire.Head, wire.Late}

// newest is the newest generation that a request is to find.
func (s *Server) newest(r *http.Request) string {
	if g, ok := r.Context().Value(playedKey{}).(string); ok {
		return g
	}
	for _, g := range slices.Backward(allGenerations[:]) {
		if s.isOf([]string{g}) {
			return g
		}
	}
	return wire.Late
}

type playedKey struct{}

// Play has a request for a WebSocket of commands find a server of one generation
// alone, whatever this one is. It is for servers that tests of clients talk to.
func Play(r *http.Request, generation string) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), playedKey{}, generation))
}

// setGenerations takes over which generations the server is to be.
func (s *Server) setGenerations(asked []string) error {
	for _, g := range asked {
		if !slices.Contains(allGenerations[:], g) {
			return fmt.Errorf("there is no generation %q of the API: want %s", g, strings.Join(allGenerations[:], ", "))
		}
	}
	if s.options.Generations = asked; len(asked) == 0 {
		s.options.Generations = allGenerations[:]
	}
	for i, e := range s.endpoints {
		if !s.isOf(generationsOf(e.path)) {
			s.endpoints[i] = endpoint{"", e.path, s.notOfGeneration}
		}
	}
	return nil
}

// isOf reports whether the server is of one of these generations; nil is all.
func (s *Server) isOf(generations []string) bool {
	return generations == nil || slices.ContainsFunc(s.options.Generations, func(g string) bool { return slices.Contains(generations, g) })
}

// generationsOf says which generations have a path; nil is all.
func generationsOf(path string) []string {
	switch strings.TrimSuffix(path, "/{name}") {
	case "/volumes", "/templates", "/pools":
		return []string{wire.Seed, wire.Classic}
	case "/snapshots", "/boxes/{name}/snapshot", "/boxes/{name}/start", "/boxes/{name}/stop", "/boxes/{name}/service-url":
		return []string{wire.Classic, wire.Head, wire.Late}
	case "/registries", "/snapshots-by-name", "/boxes/{name}/download-url":
		return []string{wire.Head, wire.Late}
	case "/boxes/{name}/service-urls", "/usage/costs":
		return []string{wire.Late}
	}
	return nil
}

func (s *Server) notOfGeneration(call) (int, any, error) {
	return 0, nil, notImplemented(s.lacks())
}

// lacks says why something is missing that another generation has.
func (s *Server) lacks() string {
	return "this server was told to be of the generation " + strings.Join(s.options.Generations, ", ") + ", which lacks this"
}

// notImplemented is the answer where an endpoint is known and not served
// (protocol.md §12).
func notImplemented(why string) *failure {
	return fail(http.StatusNotFound, kindNotImplemented, "%s", why)
}

// checkSource checks what a sandbox is to be made from: one thing at most, and
// one that the generation has.
func (s *Server) checkSource(in *boxCreate) error {
	var given []string
	for _, source := range []struct {
		field, value string
		generations  []string
	}{
		{"template_name", in.TemplateName, []string{wire.Seed, wire.Classic}},
		{"snapshot_id", in.SnapshotID, []string{wire.Classic, wire.Head, wire.Late}},
		{"snapshot_name", in.SnapshotName, []string{wire.Head, wire.Late}},
		{"snapshot", in.Snapshot, []string{wire.Head, wire.Late}},
	} {
		if source.value == "" {
			continue
		}
		if !s.isOf(source.generations) {
			return unsupported(source.field, s.lacks())
		}
		given = append(given, source.field)
	}
	if len(given) > 1 {
		return invalid("body."+given[1], "a sandbox is made from one thing, and both %s and %s were given", given[0], given[1])
	}
	if len(given) == 0 && !s.isOf([]string{wire.Head, wire.Late}) {
		return invalid("body.template_name", "a template is required")
	}
	return nil
}
