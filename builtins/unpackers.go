package builtins

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	starjson "go.starlark.net/lib/json"
	startime "go.starlark.net/lib/time"
	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines how arguments become Go values.

// optional is a T, or nil for None.
type optional[T any] struct{ ptr *T }

func (o *optional[T]) Unpack(v starlark.Value) error {
	if v == starlark.None {
		o.ptr = nil
		return nil
	}
	o.ptr = new(T)
	return starlark.UnpackArg(v, o.ptr)
}

// or returns what was given, or else what None stands for.
func (o optional[T]) or(none T) T {
	if o.ptr != nil {
		return *o.ptr
	}
	return none
}

// positive is a number above 0, or nil for None.
type positive[T int | int64] struct{ optional[T] }

func (p *positive[T]) Unpack(v starlark.Value) error {
	if err := p.optional.Unpack(v); err != nil {
		return err
	}
	if p.ptr != nil && *p.ptr <= 0 {
		return fmt.Errorf("got %s, want more than 0", v)
	}
	return nil
}

// seconds is a length of time: a number of seconds, or a duration of the time
// module.
type seconds time.Duration

func (s *seconds) Unpack(v starlark.Value) error {
	d, err := toDuration(v)
	if err == nil && d < 0 {
		err = fmt.Errorf("got %s, want seconds from 0 on", v)
	}
	*s = seconds(d)
	return err
}

// orNever is seconds, more than none, or -1 for never.
type orNever time.Duration

func (s *orNever) Unpack(v starlark.Value) error {
	d, err := toDuration(v)
	if err == nil && d <= 0 && d != -time.Second {
		err = fmt.Errorf("got %s, want seconds, more than 0, or -1 for never", v)
	}
	*s = orNever(d)
	return err
}

// wholeSeconds is a length of time of which the wire knows only whole seconds;
// it is rounded up.
type wholeSeconds int

func (s *wholeSeconds) Unpack(v starlark.Value) error {
	var d seconds
	err := d.Unpack(v)
	*s = wholeSeconds((time.Duration(d) + time.Second - 1) / time.Second)
	return err
}

func toDuration(v starlark.Value) (time.Duration, error) {
	if d, ok := v.(startime.Duration); ok {
		return time.Duration(d), nil
	}
	n, ok := starlark.AsFloat(v)
	if !ok {
		return 0, fmt.Errorf("got %s, want a number of seconds", v.Type())
	}
	if math.IsNaN(n) || math.Abs(n) > math.MaxInt64/1e10 {
		return 0, fmt.Errorf("got %s, which is no usable number of seconds", v)
	}
	return time.Duration(n * float64(time.Second)), nil
}

// ttl is a time to live in seconds (protocol.md §9), or nil for None.
type ttl struct{ optional[int] }

func (t *ttl) Unpack(v starlark.Value) error {
	if err := t.optional.Unpack(v); err != nil {
		return err
	}
	if t.ptr != nil && !wire.ValidTTL(*t.ptr) {
		return fmt.Errorf("got %s, want 0 or a multiple of 60", v)
	}
	return nil
}

// stringDict is a dict of strings; nil for None.
type stringDict map[string]string

func (d *stringDict) Unpack(v starlark.Value) error {
	*d = nil
	if v == starlark.None {
		return nil
	}
	dict, ok := v.(starlark.IterableMapping)
	if !ok {
		return fmt.Errorf("got %s, want a dict of strings", v.Type())
	}
	*d = stringDict{}
	for _, item := range dict.Items() {
		key, ok := starlark.AsString(item[0])
		if !ok {
			return fmt.Errorf("the name %s is of type %s, want a string", item[0], item[0].Type())
		}
		value, ok := starlark.AsString(item[1])
		if !ok {
			return fmt.Errorf("the value of %q is of type %s, want a string: convert it with str()", key, item[1].Type())
		}
		(*d)[key] = value
	}
	return nil
}

// stringList is a list of strings.
type stringList []string

func (l *stringList) Unpack(v starlark.Value) error {
	*l = nil
	list, ok := v.(starlark.Iterable)
	if !ok {
		return fmt.Errorf("got %s, want a list of strings", v.Type())
	}
	for element := range starlark.Elements(list) {
		s, ok := starlark.AsString(element)
		if !ok {
			return fmt.Errorf("element %d is of type %s, want a string", len(*l), element.Type())
		}
		*l = append(*l, s)
	}
	return nil
}

// commandLine is what a shell runs: a string as it is, or a list of words that
// are quoted.
type commandLine string

func (c *commandLine) Unpack(v starlark.Value) error {
	s, err := quoted(v)
	if strings.TrimSpace(s) == "" && err == nil {
		err = fmt.Errorf("the command is empty")
	}
	*c = commandLine(s)
	return err
}

func quoted(v starlark.Value) (string, error) {
	if s, ok := starlark.AsString(v); ok {
		return s, nil
	}
	var words []string
	switch v.(type) {
	case *starlark.List, starlark.Tuple:
		for word := range starlark.Elements(v.(starlark.Iterable)) {
			s, ok := starlark.AsString(word)
			if !ok {
				return "", fmt.Errorf("word %d is of type %s, want a string: convert it with str()", len(words), word.Type())
			}
			words = append(words, shellQuote(s))
		}
		return strings.Join(words, " "), nil
	}
	return "", fmt.Errorf("got %s, want a string or a list of strings", v.Type())
}

// data is a string or bytes.
type data []byte

func (d *data) Unpack(v starlark.Value) error {
	switch v := v.(type) {
	case starlark.String:
		*d = data(v)
	case starlark.Bytes:
		*d = data(v)
	default:
		return fmt.Errorf("got %s, want a string or bytes", v.Type())
	}
	return nil
}

// named is a resource of one kind: its value, or its name.
type named struct {
	kind     string // "sandbox"
	optional bool   // None is no name
	name     string
	value    resource // nil if it was named by a string
}

func (n *named) Unpack(v starlark.Value) error {
	n.value = nil
	switch x := v.(type) {
	case starlark.String:
		n.name = string(x)
	case resource:
		if v.Type() != n.kind {
			return fmt.Errorf("got a %s, want a %s or its name", v.Type(), n.kind)
		}
		n.name, n.value = x.resourceName(), x
	default:
		if n.optional && v == starlark.None {
			n.name = ""
			return nil
		}
		return fmt.Errorf("got %s, want a %s or its name", v.Type(), n.kind)
	}
	if n.name == "" {
		return fmt.Errorf("the name of a %s cannot be empty", n.kind)
	}
	return nil
}

// resource is a value that stands for something on the server.
type resource interface {
	starlark.Value
	resourceName() string
}

// jsonObject is a dict that is sent as JSON, as it is; the zero value for None.
type jsonObject struct {
	dict starlark.Value
	text json.RawMessage
}

func (o *jsonObject) Unpack(v starlark.Value) error {
	*o = jsonObject{}
	if v == starlark.None {
		return nil
	}
	if _, ok := v.(starlark.IterableMapping); !ok {
		return fmt.Errorf("got %s, want a dict", v.Type())
	}
	text, err := starlark.Call(&starlark.Thread{}, starjson.Module.Members["encode"], starlark.Tuple{v}, nil)
	if err != nil {
		return fmt.Errorf("%s", err)
	}
	o.dict, o.text = v, json.RawMessage(text.(starlark.String))
	return nil
}

// runConfig says who runs commands, where and with what environment: a dict, or
// a value of the same form. Nil for None.
type runConfig struct{ ptr *wire.RunConfig }

func (r *runConfig) Unpack(v starlark.Value) error {
	r.ptr = nil
	if v == starlark.None {
		return nil
	}
	if known, ok := v.(*record); ok && known.typ == "run_config" {
		config := known.msg.(wire.RunConfig)
		r.ptr = &config
		return nil
	}
	dict, ok := v.(starlark.IterableMapping)
	if !ok {
		return fmt.Errorf("got %s, want a dict", v.Type())
	}
	r.ptr = new(wire.RunConfig)
	var user, workDir optional[string]
	var env stringDict
	fields := map[string]starlark.Unpacker{"user": &user, "work_dir": &workDir, "env_vars": &env}
	for _, item := range dict.Items() {
		name, _ := starlark.AsString(item[0])
		field, ok := fields[name]
		if !ok {
			return fmt.Errorf("there is no key %s%s", item[0], DidYouMean("", name, slices.Collect(maps.Keys(fields))))
		}
		if err := field.Unpack(item[1]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	r.ptr.User, r.ptr.WorkDir, r.ptr.EnvVars = user.or(""), workDir.or(""), env
	return nil
}
