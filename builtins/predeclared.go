package builtins

import (
	"go.starlark.net/lib/json"
	"go.starlark.net/lib/math"
	"go.starlark.net/lib/time"
	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
	"maps"
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
		"service":     builtin("service", service),
		"tunnel":      builtin("tunnel", openTunnel),
		"using":       builtin("using", using),
		"defer":       builtin("defer", deferCall),
		"attempt":     builtin("attempt", attempt),
		"retry":       builtin("retry", retry),
		"parallel":    builtin("parallel", parallel),
		"spawn":       builtin("spawn", spawn),
		"fail":        builtin("fail", fail),
		"errors":      newErrors(),
		"exit":        builtin("exit", exit),
		"sleep":       builtin("sleep", sleep),
		"print":       builtin("print", print),
		"help":        builtin("help", help),
		"log":         newLog(),
		"shell_quote": builtin("shell_quote", shellQuoteCall),
		"struct":      starlark.NewBuiltin("struct", starlarkstruct.Make),
		"expect":      newExpect(),
		"re":          newRe(),
		"base64":      newBase64(),
		"hash":        newHash(),
		"json":        json.Module,
		"math":        math.Module,
		"time":        time.Module,
		"client":      &defaultConnection{connection{run: t.Run}},
	}
	maps.Copy(module, newConfigs())
	entry = maps.Clone(module)
	entry["host"] = newHost()
	return module, entry
}
