package builtins

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	starjson "go.starlark.net/lib/json"
	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// This file defines what the values of this package have in common: how they
// answer for their attributes, and how wire messages look from Starlark.

// attributes are the attributes of one kind of value, beyond the fields of the
// message that it carries.
type attributes[T starlark.Value] struct {
	fields  map[string]func(T) (starlark.Value, error)
	methods map[string]*starlark.Builtin
}

// attr returns an attribute of v, whose message is msg (nil for none).
func (a attributes[T]) attr(v T, msg any, name string) (starlark.Value, error) {
	if field, ok := a.fields[name]; ok {
		return field(v)
	}
	if method, ok := a.methods[name]; ok {
		return method.BindReceiver(v), nil
	}
	if field := wireField(msg, name); field != nil {
		return field, nil
	}
	return nil, noAttr(v.Type(), name, a.names(msg))
}

func (a attributes[T]) names(msg any) []string {
	names := wireNames(msg)
	for name := range a.fields {
		names = append(names, name)
	}
	for name := range a.methods {
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func noAttr(what, name string, names []string) error {
	return fmt.Errorf("%s has no .%s%s", what, name, DidYouMean(".", name, names))
}

func unhashable(v starlark.Value) (uint32, error) {
	return 0, fmt.Errorf("unhashable: %s", v.Type())
}

// wireField returns the field of msg, a struct or a pointer to one, whose JSON
// name this is: None if it is absent, nil if there is no such field.
func wireField(msg any, name string) starlark.Value {
	if msg == nil {
		return nil
	}
	v := reflect.Indirect(reflect.ValueOf(msg))
	for i := range v.NumField() {
		tag, options, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		if tag != name {
			continue
		}
		if strings.HasPrefix(options, "omit") && v.Field(i).IsZero() {
			return starlark.None
		}
		return toStarlark(v.Field(i), name)
	}
	return nil
}

func wireNames(msg any) (names []string) {
	if msg == nil {
		return nil
	}
	t := reflect.Indirect(reflect.ValueOf(msg)).Type()
	for i := range t.NumField() {
		tag, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		names = append(names, tag)
	}
	slices.Sort(names)
	return names
}

// toStarlark converts a value of a wire message. Structs become records of the
// type that name stands for; what results is frozen.
func toStarlark(v reflect.Value, name string) starlark.Value {
	if v.CanInterface() {
		if done, ok := v.Interface().(starlark.Value); ok {
			return done
		}
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return starlark.None
		}
		return toStarlark(v.Elem(), name)
	case reflect.String:
		return starlark.String(v.String())
	case reflect.Bool:
		return starlark.Bool(v.Bool())
	case reflect.Int, reflect.Int64:
		return starlark.MakeInt64(v.Int())
	case reflect.Float64:
		if f := v.Float(); f == float64(int64(f)) {
			return starlark.MakeInt64(int64(f))
		}
		return starlark.Float(v.Float())
	case reflect.Slice:
		list := starlark.NewList(nil)
		for i := range v.Len() {
			list.Append(toStarlark(v.Index(i), name))
		}
		list.Freeze()
		return list
	case reflect.Map:
		dict := new(starlark.Dict)
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, key := range keys {
			dict.SetKey(starlark.String(key.String()), toStarlark(v.MapIndex(key), name))
		}
		dict.Freeze()
		return dict
	case reflect.Struct:
		if typ, ok := recordTypes[name]; ok {
			return &record{typ, v.Interface()}
		}
		return jsonDict(v.Interface())
	}
	panic("no Starlark form of the wire field " + name)
}

// jsonDict is the dict that a message looks like as JSON: for what workflows
// write as dicts, too.
func jsonDict(msg any) starlark.Value {
	text, err := json.Marshal(msg)
	if err != nil {
		panic("a wire message that is no JSON: " + err.Error())
	}
	dict, err := starlark.Call(&starlark.Thread{}, starjson.Module.Members["decode"], starlark.Tuple{starlark.String(text)}, nil)
	if err != nil {
		panic("JSON that Starlark cannot read: " + err.Error())
	}
	dict.Freeze()
	return dict
}

// recordTypes are the types of the structs inside wire messages, by field.
var recordTypes = map[string]string{
	"resources":     "resources",
	"volume_mounts": "mount",
	"run_config":    "run_config",
	"details":       "input_error",

	"access_delegation": "access_delegation",
}

// A record is a value that is nothing but its fields: those of a wire message,
// or of a struct with JSON names whose fields may be Starlark values.
type record struct {
	typ string
	msg any // a struct
}

var (
	_ starlark.HasAttrs   = (*record)(nil)
	_ starlark.Comparable = (*record)(nil)
)

func (r *record) Type() string          { return r.typ }
func (r *record) Freeze()               {}
func (r *record) Truth() starlark.Bool  { return true }
func (r *record) Hash() (uint32, error) { return unhashable(r) }
func (r *record) AttrNames() []string   { return wireNames(r.msg) }
func (r *record) Attr(name string) (starlark.Value, error) {
	return recordAttributes.attr(r, r.msg, name)
}

var recordAttributes attributes[*record]

func (r *record) String() string {
	var b strings.Builder
	b.WriteString(r.typ + "(")
	t := reflect.TypeOf(r.msg)
	for i := range t.NumField() { // in the order of the message, which is the readable one
		if i > 0 {
			b.WriteString(", ")
		}
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		b.WriteString(name + "=" + wireField(r.msg, name).String())
	}
	b.WriteString(")")
	return b.String()
}

func (r *record) CompareSameType(op syntax.Token, other starlark.Value, _ int) (bool, error) {
	equal := r.typ == other.Type() && reflect.DeepEqual(r.msg, other.(*record).msg)
	switch op {
	case syntax.EQL:
		return equal, nil
	case syntax.NEQ:
		return !equal, nil
	}
	return false, fmt.Errorf("%s %s %s is not implemented", r.typ, op, other.Type())
}

// A namespace is a predeclared name with members. One that has a call is also
// a function.
type namespace struct {
	name    string
	call    *starlark.Builtin // or nil
	members starlark.StringDict
}

func (n *namespace) String() string        { return n.name }
func (n *namespace) Freeze()               {}
func (n *namespace) Truth() starlark.Bool  { return true }
func (n *namespace) Hash() (uint32, error) { return unhashable(n) }
func (n *namespace) AttrNames() []string   { return n.members.Keys() }
func (n *namespace) Type() string          { return "module" }

func (n *namespace) Attr(name string) (starlark.Value, error) {
	if v, ok := n.members[name]; ok {
		return v, nil
	}
	return nil, noAttr(n.name, name, n.AttrNames())
}

// A noun is a namespace that can be called: the constructor of its resource.
type noun struct{ namespace }

var (
	_ starlark.HasAttrs = (*namespace)(nil)
	_ starlark.Callable = (*noun)(nil)
)

func (n *noun) Type() string { return "builtin_function_or_method" }
func (n *noun) Name() string { return n.name }
func (n *noun) CallInternal(thread *starlark.Thread, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	return n.call.CallInternal(thread, args, kwargs)
}
