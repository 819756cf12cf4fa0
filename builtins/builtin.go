package builtins

import (
	"embed"
	"fmt"
	"strings"
	"sync"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"github.com/sbx-star/sbx-star/client"
)

// This file defines how a builtin is made of a Go function and of a stub.
//
// A stub is a Starlark def without a body, in stubs/: its parameters, their
// order and defaults, and its documentation. Nothing of it is repeated in Go.
// In the name of a stub two underscores stand for a dot: sandbox__create is
// sandbox.create, and Sandbox__run is the method run of a sandbox value. A stub
// without parameters that is nobody's function documents a value and lists its
// attributes.

//go:embed stubs/*.star
var stubFiles embed.FS

// stubs are all stubs by name, such as "sandbox.create" and "Sandbox.run".
var stubs = sync.OnceValue(func() map[string]*starlark.Function {
	all := map[string]*starlark.Function{}
	files, err := stubFiles.ReadDir("stubs")
	if err != nil {
		panic(err)
	}
	for _, file := range files {
		src, err := stubFiles.ReadFile("stubs/" + file.Name())
		if err != nil {
			panic(err)
		}
		globals, err := starlark.ExecFileOptions(&syntax.FileOptions{}, &starlark.Thread{}, file.Name(), src, nil)
		if err != nil {
			panic(err)
		}
		for name, v := range globals {
			all[strings.ReplaceAll(name, "__", ".")] = v.(*starlark.Function)
		}
	}
	return all
})

// An invocation is one call of a builtin.
type invocation struct {
	*Task
	stub   string // its name among the stubs
	name   string // its name in messages
	self   starlark.Value
	args   starlark.Tuple
	kwargs []starlark.Tuple
}

type builtinFunc func(*invocation) (starlark.Value, error)

// builtin makes the function that the stub of this name documents.
func builtin(stub string, fn builtinFunc) *starlark.Builtin {
	name := strings.ToLower(stub[:1]) + stub[1:]
	return starlark.NewBuiltin(name, func(thread *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
		t := taskOf(thread)
		if t.strand.failure != nil { // args come from a stream that broke, as in f(*command)
			return nil, t.strand.failure
		}
		if err := t.cancelled(); err != nil {
			return nil, err
		}
		panicked := true
		defer func() {
			if panicked {
				t.unwinding = thread.CallStack()
			}
		}()
		v, err := fn(&invocation{Task: t, stub: stub, name: name, self: b.Receiver(), args: args, kwargs: kwargs})
		panicked = false
		return v, err
	})
}

// unpack gives each variable the argument of its parameter, or the default.
// There is one variable for each parameter of the stub, in its order, *args and
// **kwargs last: pointers as for starlark.UnpackArg, *starlark.Tuple for *args
// and *[]starlark.Tuple for **kwargs. Its errors are *ArgumentError.
func (c *invocation) unpack(vars ...any) error {
	fn := stubs()[c.stub]
	if fn == nil || fn.NumParams() != len(vars) {
		panic("the stub of " + c.stub + " is missing, or has other parameters")
	}
	named := fn.NumParams()
	if fn.HasKwargs() {
		named--
	}
	if fn.HasVarargs() {
		named--
	}
	positional := named - fn.NumKwonlyParams()
	names := make([]string, named)
	for i := range names {
		names[i], _ = fn.Param(i)
	}

	values := make([]starlark.Value, named)
	copy(values[:positional], c.args)
	if rest := c.args[min(positional, len(c.args)):]; fn.HasVarargs() {
		*vars[named].(*starlark.Tuple) = rest
	} else if len(rest) > 0 {
		return c.argumentError("got %s, want %s", count(len(c.args), "positional argument"), c.wanted(names, positional))
	}
	for _, kwarg := range c.kwargs {
		name := string(kwarg[0].(starlark.String))
		i := 0
		for i < named && names[i] != name {
			i++
		}
		switch {
		case i == named && fn.HasKwargs():
			rest := vars[len(vars)-1].(*[]starlark.Tuple)
			*rest = append(*rest, kwarg)
		case i == named:
			return c.argumentError("there is no parameter %s%s", name, DidYouMean("", name, names))
		case values[i] != nil:
			return c.argumentError("got parameter %s twice", name)
		default:
			values[i] = kwarg[1]
		}
	}
	for i, v := range values {
		if v == nil {
			if v = fn.ParamDefault(i); v == nil {
				return c.argumentError("parameter %s is missing", names[i])
			}
		}
		if err := starlark.UnpackArg(v, vars[i]); err != nil {
			return c.argumentError("parameter %s: %w", names[i], err)
		}
	}
	return nil
}

// connect unpacks the arguments and returns the client to act with.
func (c *invocation) connect(vars ...any) (*client.Client, error) {
	if err := c.unpack(vars...); err != nil {
		return nil, err
	}
	return c.client()
}

// client is the connection that the call is about.
func (c *invocation) client() (*client.Client, error) {
	if v, ok := c.self.(connected); ok {
		return v.connection(), c.mayAct()
	}
	return c.Task.client()
}

// connected is a value that lives on one server.
type connected interface {
	starlark.Value
	connection() *client.Client
}

// wanted says which arguments may come without a name.
func (c *invocation) wanted(names []string, positional int) string {
	switch {
	case len(names) == 0:
		return "no argument"
	case positional == 0:
		return "all of them by name, as in " + names[0] + " = …"
	case positional < len(names):
		return fmt.Sprintf("at most %d; the others by name, as in %s = …", positional, names[positional])
	}
	return fmt.Sprintf("at most %d", positional)
}

func (c *invocation) argumentError(format string, args ...any) error {
	return &ArgumentError{Func: c.name, Err: fmt.Errorf(format, args...)}
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// ArgumentError is a value that a function does not take: what Python raises as
// a ValueError or a TypeError.
type ArgumentError struct {
	Func string // "sandbox.run"
	Err  error
}

func (e *ArgumentError) Error() string { return e.Func + ": " + e.Err.Error() }
func (e *ArgumentError) Unwrap() error { return e.Err }
