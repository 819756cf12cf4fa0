package builtins

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"github.com/sbx-star/sbx-star/stdlib"
)

// This file defines the reference of the standard library, made from its
// modules.

var moduleOptions = syntax.FileOptions{Set: true, While: true, Recursion: true}

// modulesReference is the documentation of the modules of the standard library
// and of their public functions as Markdown, in the order of their lines.
func modulesReference() string {
	paths, err := fs.Glob(stdlib.FS, "*.star")
	if err != nil {
		panic(err)
	}
	names, _ := Predeclared(NewTask(context.Background(), NewRun(Options{})))
	var b strings.Builder
	b.WriteString("\n# The standard library\n\nModules that come with `sbx-star`, as in `load(\"@std//wait.star\", \"until\")`.\n")
	for _, path := range paths {
		doc, functions := readModule(path, names)
		fmt.Fprintf(&b, "\n## @std//%s\n\n%s", path, markdown(doc))
		for _, fn := range functions {
			fmt.Fprintf(&b, "\n### %s\n\n`%s(%s)`\n\n%s", fn.Name(), fn.Name(), parameters(fn), markdown(fn.Doc()))
		}
	}
	return b.String()
}

// readModule runs a module, which does no more than define, and returns what
// it says of itself and its public functions.
func readModule(path string, predeclared starlark.StringDict) (doc string, functions []*starlark.Function) {
	src, err := stdlib.FS.ReadFile(path)
	if err != nil {
		panic(err)
	}
	file, program, err := starlark.SourceProgramOptions(&moduleOptions, path, src, predeclared.Has)
	if err != nil {
		panic(err)
	}
	if stmt, ok := file.Stmts[0].(*syntax.ExprStmt); ok {
		doc, _ = stmt.X.(*syntax.Literal).Value.(string)
	}
	thread := &starlark.Thread{Name: path, Load: func(_ *starlark.Thread, name string) (starlark.StringDict, error) {
		loaded := starlark.StringDict{}
		_, all := readModule(strings.TrimPrefix(name, "./"), predeclared)
		for _, fn := range all {
			loaded[fn.Name()] = fn
		}
		return loaded, nil
	}}
	globals, err := program.Init(thread, predeclared)
	if err != nil {
		panic(err)
	}
	for name, v := range globals {
		if fn, ok := v.(*starlark.Function); ok && !strings.HasPrefix(name, "_") {
			functions = append(functions, fn)
		}
	}
	slices.SortFunc(functions, func(a, b *starlark.Function) int { return int(a.Position().Line - b.Position().Line) })
	return doc, functions
}
