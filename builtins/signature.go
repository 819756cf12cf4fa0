package builtins

import (
	"slices"
	"strings"

	"go.starlark.net/starlark"
)

// This file defines what can be said of a builtin without calling it.

// Signature returns the stub of a builtin: of a function by the name that a
// workflow writes, such as "sandbox.create", of a method by its value's name
// and its own, such as "Sandbox.run". It is nil if there is none.
func Signature(name string) *starlark.Function { return stubs()[name] }

// ValueMembers returns the attributes and methods of a value by its name in
// the stubs, such as "Sandbox", sorted. It is empty if there is no such value.
func ValueMembers(value string) []string {
	stub := stubs()[value]
	if stub == nil {
		return nil
	}
	var names []string
	_, attributes, _ := strings.Cut(stub.Doc(), "Attributes:\n")
	for line := range strings.Lines(attributes) {
		if name, _, ok := strings.Cut(strings.TrimPrefix(line, "      "), ":"); ok && isName(name) {
			names = append(names, name)
		}
	}
	for name := range stubs() {
		if method, ok := strings.CutPrefix(name, value+"."); ok {
			names = append(names, method)
		}
	}
	slices.Sort(names)
	return names
}

func isName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9')
	})
}

// ResultOf is the name of the value that a call of a builtin returns, given the
// names of both in the stubs, or "" if that is not known without calling it.
func ResultOf(function string) string { return results[function] }

var results = map[string]string{
	"sandbox": "Sandbox", "sandbox.create": "Sandbox", "sandbox.get": "Sandbox", "sandbox.update": "Sandbox", "sandbox.start": "Sandbox", "sandbox.wait": "Sandbox",
	"template": "Template", "template.create": "Template", "template.get": "Template", "template.update": "Template",
	"volume": "Volume", "volume.create": "Volume", "volume.get": "Volume", "volume.update": "Volume",
	"pool": "Pool", "pool.create": "Pool", "pool.get": "Pool", "pool.update": "Pool",
	"snapshot": "Snapshot", "snapshot.create": "Snapshot", "snapshot.get": "Snapshot", "snapshot.wait": "Snapshot", "Sandbox.capture_snapshot": "Snapshot",
	"Sandbox.reconnect": "Command", "Command.reconnect": "Command", "Command.wait": "Result", "Command.expect": "Match",
	"Sandbox.stat": "File_info", "Sandbox.service": "Service", "service": "Service",
}
