package builtins

import (
	"maps"

	"go.starlark.net/lib/json"
	"go.starlark.net/lib/math"
	"go.starlark.net/lib/time"
	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the names that every file of a workflow can use.

// Predeclared returns what is predeclared in the modules of the task's run, and
// in its entry file.
func Predeclared(t *Task) (module, entry starlark.StringDict) {
	module = starlark.StringDict{
		"sandbox":     newSandboxNoun(),
		"template":    newTemplateNoun(),
		"volume":      newVolumeNoun(),
		"pool":        newPoolNoun(),
		"snapshot":    newSnapshotNoun(),
		"mount":       builtin("mount", newMount),
		"resources":   builtin("resources", newResources),
		"run":         builtin("run", run),
		"using":       builtin("using", using),
		"defer":       builtin("defer", deferCall),
		"attempt":     builtin("attempt", attempt),
		"fail":        builtin("fail", fail),
		"errors":      newErrors(),
		"exit":        builtin("exit", exit),
		"sleep":       builtin("sleep", sleep),
		"print":       builtin("print", print),
		"log":         newLog(),
		"shell_quote": builtin("shell_quote", shellQuoteCall),
		"struct":      starlark.NewBuiltin("struct", starlarkstruct.Make),
		"json":        json.Module,
		"math":        math.Module,
		"time":        time.Module,
		"client":      &connection{t.strand},
	}
	maps.Copy(module, newConfigs())
	entry = maps.Clone(module)
	entry["host"] = newHost()
	return module, entry
}

// connection is the client that a workflow uses. It connects when it is asked
// for something that it does not know otherwise.
type connection struct{ strand *strand }

var _ starlark.HasAttrs = (*connection)(nil)

func (c *connection) String() string        { return "client" }
func (c *connection) Type() string          { return "client" }
func (c *connection) Freeze()               {}
func (c *connection) Truth() starlark.Bool  { return true }
func (c *connection) Hash() (uint32, error) { return unhashable(c) }
func (c *connection) AttrNames() []string   { return connectionAttributes.names(nil) }
func (c *connection) Attr(name string) (starlark.Value, error) {
	return connectionAttributes.attr(c, nil, name)
}

var connectionAttributes = attributes[*connection]{fields: map[string]func(*connection) (starlark.Value, error){
	"registries": func(c *connection) (starlark.Value, error) { return newRegistries(), nil },
	"endpoint": func(c *connection) (starlark.Value, error) {
		cl, err := c.strand.task.client()
		if err != nil {
			return nil, err
		}
		return starlark.String(cl.Endpoint()), nil
	},
	"runtime": func(c *connection) (starlark.Value, error) {
		return c.info(func(info *wire.Info) string { return info.Runtime })
	},
	"generation": func(c *connection) (starlark.Value, error) {
		return c.info(func(info *wire.Info) string {
			if n := len(info.Generations); n > 0 {
				return info.Generations[n-1]
			}
			return ""
		})
	},
}}

// info is what the server tells of itself; None if it does not.
func (c *connection) info(field func(*wire.Info) string) (starlark.Value, error) {
	t := c.strand.task
	cl, err := t.client()
	if err != nil {
		return nil, err
	}
	info, err := t.Run.serverInfo(t.Ctx, cl)
	if err != nil {
		return nil, err
	}
	if info == nil || field(info) == "" {
		return starlark.None, nil
	}
	return starlark.String(field(info)), nil
}
