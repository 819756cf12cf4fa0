package builtins

import (
	"encoding/json"
	"errors"
	"fmt"

	starjson "go.starlark.net/lib/json"
	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// This file defines how values that are more than their fields are compared, and
// what json.encode makes of them: their fields, without the methods.

var (
	_ starlark.Comparable = (*sandboxValue)(nil)
	_ starlark.Comparable = (*remote[struct{}])(nil)
	_ json.Marshaler      = (*sandboxValue)(nil)
	_ json.Marshaler      = (*remote[struct{}])(nil)
	_ json.Marshaler      = (*errorValue)(nil)
	_ json.Marshaler      = (*command)(nil)
	_ json.Marshaler      = (*lines)(nil)
)

func (s *sandboxValue) CompareSameType(op syntax.Token, other starlark.Value, _ int) (bool, error) {
	return compareResources(op, s, other)
}

func (v *remote[T]) CompareSameType(op syntax.Token, other starlark.Value, _ int) (bool, error) {
	return compareResources(op, v, other)
}

// compareResources finds two values of one kind equal that stand for the same
// thing: of the same name on the same connection.
func compareResources(op syntax.Token, x, y starlark.Value) (bool, error) {
	a, b := x.(resource), y.(resource)
	equal := a.resourceName() == b.resourceName() && x.(connected).connection() == y.(connected).connection()
	switch op {
	case syntax.EQL:
		return equal, nil
	case syntax.NEQ:
		return !equal, nil
	}
	return false, fmt.Errorf("%s %s %s is not implemented", x.Type(), op, y.Type())
}

func (s *sandboxValue) MarshalJSON() ([]byte, error) {
	return encodeFields(s, wireNames(s.box.Load().Box))
}
func (v *remote[T]) MarshalJSON() ([]byte, error) { return encodeFields(v, wireNames(v.msg.Load())) }

func (e *errorValue) MarshalJSON() ([]byte, error) {
	return encodeFields(e, append([]string{"type", "message", "backtrace"}, e.special()...))
}

func (v *command) MarshalJSON() ([]byte, error) {
	return nil, errors.New("cannot encode a command as JSON: encode its result")
}

func (l *lines) MarshalJSON() ([]byte, error) {
	return nil, errors.New("cannot encode lines as JSON: encode list(lines)")
}

// encodeFields is an object of these attributes.
func encodeFields(v starlark.HasAttrs, names []string) ([]byte, error) {
	dict := starlark.NewDict(len(names))
	for _, name := range names {
		field, err := v.Attr(name)
		if err != nil {
			return nil, err
		}
		if err := dict.SetKey(starlark.String(name), field); err != nil {
			return nil, err
		}
	}
	text, err := starlark.Call(&starlark.Thread{}, starjson.Module.Members["encode"], starlark.Tuple{dict}, nil)
	if err != nil {
		return nil, err
	}
	return []byte(text.(starlark.String)), nil
}
