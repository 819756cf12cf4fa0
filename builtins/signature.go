package builtins

import (
	"slices"
	"strings"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
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

// Parameters are the names of the parameters of a function, builtin or not.
func Parameters(fn starlark.Value) (names []string) {
	f, ok := fn.(*starlark.Function)
	if !ok {
		if f = Signature(stubOf(fn)); f == nil {
			return nil
		}
	}
	named := f.NumParams()
	if f.HasVarargs() {
		named--
	}
	if f.HasKwargs() {
		named--
	}
	for i := range named {
		name, _ := f.Param(i)
		names = append(names, name)
	}
	return names
}

// stubOf is the name of the stub of a builtin or of a value, or "".
func stubOf(v starlark.Value) string {
	switch v := v.(type) {
	case *noun:
		return v.name
	case *namespace:
		return v.name
	case *starlark.Builtin:
		name := v.Name()
		if v.Receiver() != nil && Signature(name) == nil {
			name = strings.ToUpper(name[:1]) + name[1:]
		}
		return name
	case nil:
		return ""
	}
	name := v.Type()
	return strings.ToUpper(name[:1]) + name[1:]
}

// Member returns the attribute of a value that answers for it without doing
// anything, or nil: reading one of a command, for example, may wait for it.
func Member(v starlark.Value, name string) starlark.Value {
	switch v := v.(type) {
	case *noun, *namespace, *starlarkstruct.Module, *starlarkstruct.Struct, *record:
		if member, err := v.(starlark.HasAttrs).Attr(name); err == nil {
			return member
		}
	case starlark.HasAttrs:
		if stub := stubOf(v) + "." + name; Signature(stub) != nil {
			if method, err := v.Attr(name); err == nil {
				return method
			}
		}
	}
	return nil
}
