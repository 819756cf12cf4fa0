package workflow

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"go.starlark.net/resolve"
	"go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"github.com/sbx-star/sbx-star/builtins"
)

// This file defines what can be found wrong with workflows without running
// them. It says only what is certain: what would fail if the line were reached,
// and what cannot have any effect.

// A Problem is one thing that is wrong with a file.
type Problem struct {
	Pos     syntax.Position
	Message string
	Load    bool // the file does not load because of it
}

func (p Problem) String() string { return p.Pos.String() + ": " + p.Message }

// Check looks at each of these files, and at what they load. One that another
// of them loads is looked at as a module, the others as entry files. The
// problems come in the order of files and lines, each once.
func Check(paths []string) []Problem {
	seen := map[Problem]bool{}
	var problems []Problem
	add := func(found ...Problem) {
		for _, p := range found {
			if !seen[p] {
				seen[p] = true
				problems = append(problems, p)
			}
		}
	}
	var entries []*loader
	loaded := map[string]bool{} // by absolute path
	for _, path := range paths {
		l := newCompiler()
		if _, err := l.compile(Options{Path: path}); err != nil {
			add(loadProblems(path, err)...)
		}
		l.close()
		entries = append(entries, l)
		for _, m := range l.modules {
			loaded[absolute(m.name)] = loaded[absolute(m.name)] || !m.isEntry()
		}
	}
	done := map[string]bool{}
	for _, l := range entries {
		for _, m := range l.order {
			path := absolute(m.name)
			if !m.isEntry() || !loaded[path] {
				if !done[path] {
					done[path] = true
					add(newChecker(l, m).check()...)
				}
			}
		}
	}
	slices.SortStableFunc(problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Pos.Filename(), b.Pos.Filename()), cmp.Compare(a.Pos.Line, b.Pos.Line), cmp.Compare(a.Pos.Col, b.Pos.Col))
	})
	return problems
}

// newCompiler is a loader of files that are not run.
func newCompiler() *loader {
	return newLoader(builtins.NewTask(context.Background(), builtins.NewRun(builtins.Options{})))
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// loadProblems are the parts of a LoadError, each at its place.
func loadProblems(path string, err error) []Problem {
	var syntaxError syntax.Error
	var list resolve.ErrorList
	var at *positioned
	switch {
	case errors.As(err, &syntaxError):
		return []Problem{{syntaxError.Pos, syntaxError.Msg, true}}
	case errors.As(err, &list):
		var problems []Problem
		for _, e := range list {
			problems = append(problems, Problem{e.Pos, e.Msg, true})
		}
		return problems
	case errors.As(err, &at):
		return []Problem{{at.pos, at.err.Error(), true}}
	}
	return []Problem{{syntax.MakePosition(&path, 0, 0), err.Error(), true}}
}

// A checker looks at one file that loads.
type checker struct {
	loader *loader
	module *module
	file   *syntax.File

	assigned map[*syntax.Ident][]syntax.Expr // what a variable is given, by its first mention; nil if it is no expression
	used     map[*syntax.Ident]bool
	problems []Problem
}

func newChecker(l *loader, m *module) *checker {
	c := &checker{loader: l, module: m, assigned: map[*syntax.Ident][]syntax.Expr{}, used: map[*syntax.Ident]bool{}}
	c.file = parseAgain(l, m)
	return c
}

// parseAgain returns the tree of a module that was compiled: compiling keeps none.
func parseAgain(l *loader, m *module) *syntax.File {
	file, err := fileOptions.Parse(m.name, l.sources[m.name], 0)
	if err == nil {
		err = resolve.File(file, l.predeclared(m).Has, starlark.Universe.Has)
	}
	if err != nil {
		panic(fmt.Sprintf("%s compiled before: %v", m.name, err))
	}
	return file
}

func (c *checker) problem(pos syntax.Position, format string, args ...any) {
	c.problems = append(c.problems, Problem{Pos: pos, Message: fmt.Sprintf(format, args...)})
}

func (c *checker) check() []Problem {
	c.gather()
	c.block(c.file.Stmts)
	c.walk(c.file, 0)
	for _, stmt := range c.file.Stmts {
		load, ok := stmt.(*syntax.LoadStmt)
		if !ok {
			continue
		}
		for _, to := range load.To {
			if isEntryMain := to.Name == "main" && c.module.isEntry(); !c.used[to] && !isEntryMain {
				c.problem(to.NamePos, "%s is loaded and never used", to.Name)
			}
		}
	}
	if c.module.isEntry() && strings.HasSuffix(c.module.name, "_test.star") {
		c.tests()
	}
	return c.problems
}

// gather finds out what each variable is given, and which are used.
func (c *checker) gather() {
	given := func(target, value syntax.Expr) {
		if id, ok := target.(*syntax.Ident); ok {
			first := firstOf(id)
			c.assigned[first] = append(c.assigned[first], value)
			return
		}
		syntax.Walk(target, func(n syntax.Node) bool {
			if id, ok := n.(*syntax.Ident); ok && id.Binding != nil {
				first := firstOf(id)
				c.assigned[first] = append(c.assigned[first], nil)
			}
			return true
		})
	}
	syntax.Walk(c.file, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.AssignStmt:
			if n.Op == syntax.EQ {
				given(n.LHS, n.RHS)
			} else {
				given(n.LHS, nil)
			}
		case *syntax.ForStmt:
			given(n.Vars, nil)
		case *syntax.ForClause:
			given(n.Vars, nil)
		case *syntax.DefStmt:
			given(n.Name, nil)
			for _, p := range n.Params {
				given(p, nil)
			}
		case *syntax.LambdaExpr:
			for _, p := range n.Params {
				given(p, nil)
			}
		case *syntax.LoadStmt:
			for _, to := range n.To {
				given(to, nil)
			}
			return false
		case *syntax.Ident:
			if first := firstOf(n); first != n {
				c.used[first] = true
			}
		}
		return true
	})
}

// firstOf is the first mention of the variable that id stands for; id itself
// for names that the file does not define.
func firstOf(id *syntax.Ident) *syntax.Ident {
	if b, ok := id.Binding.(*resolve.Binding); ok && b.First != nil {
		return b.First
	}
	return id
}

// walk checks all calls and attributes; depth counts the functions around n.
func (c *checker) walk(n syntax.Node, depth int) {
	syntax.Walk(n, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.DefStmt:
			c.block(n.Body)
			for _, p := range n.Params {
				if p, ok := p.(*syntax.BinaryExpr); ok {
					c.walk(p.Y, depth)
				}
			}
			for _, s := range n.Body {
				c.walk(s, depth+1)
			}
			return false
		case *syntax.LambdaExpr:
			c.walk(n.Body, depth+1)
			return false
		case *syntax.IfStmt:
			c.block(n.True)
			c.block(n.False)
		case *syntax.ForStmt:
			c.block(n.Body)
		case *syntax.WhileStmt:
			c.block(n.Body)
		case *syntax.CallExpr:
			c.call(n, depth)
		case *syntax.DotExpr:
			c.attribute(n)
		case *syntax.DictExpr:
			c.keys(n)
		}
		return true
	})
}

// block checks a list of statements for those that do nothing, or are never
// reached.
func (c *checker) block(stmts []syntax.Stmt) {
	for i, stmt := range stmts {
		start, _ := stmt.Span()
		if i > 0 && c.leaves(stmts[i-1]) {
			c.problem(start, "this is never reached")
			break
		}
		expr, ok := stmt.(*syntax.ExprStmt)
		if !ok {
			continue
		}
		switch x := unparen(expr.X).(type) {
		case *syntax.BinaryExpr:
			switch x.Op {
			case syntax.EQL:
				c.problem(x.OpPos, "this compares and does nothing with the answer; did you mean =, or expect.eq?")
			case syntax.NEQ, syntax.LT, syntax.LE, syntax.GT, syntax.GE, syntax.IN, syntax.NOT_IN:
				c.problem(x.OpPos, "this compares and does nothing with the answer")
			}
		case *syntax.Ident:
			c.problem(start, "this names %s and does nothing with it; did you mean %s()?", x.Name, x.Name)
		}
	}
}

// leaves tells whether nothing after stmt is reached.
func (c *checker) leaves(stmt syntax.Stmt) bool {
	switch stmt := stmt.(type) {
	case *syntax.ReturnStmt:
		return true
	case *syntax.BranchStmt:
		return stmt.Token != syntax.PASS
	case *syntax.ExprStmt:
		if call, ok := stmt.X.(*syntax.CallExpr); ok {
			name := c.nameOf(call.Fn)
			return name == "fail" || name == "exit"
		}
	}
	return false
}

func unparen(x syntax.Expr) syntax.Expr {
	for {
		p, ok := x.(*syntax.ParenExpr)
		if !ok {
			return x
		}
		x = p.X
	}
}

// keys checks a dict for keys that it has twice, which Starlark refuses.
func (c *checker) keys(dict *syntax.DictExpr) {
	seen := map[any]bool{}
	for _, entry := range dict.List {
		key, ok := entry.(*syntax.DictEntry).Key.(*syntax.Literal)
		if !ok {
			continue
		}
		if seen[key.Value] {
			c.problem(key.TokenPos, "the dict has the key %s twice", key.Raw)
		}
		seen[key.Value] = true
	}
}

// nameOf is the name by which the stubs know what an expression is, if it is a
// builtin, a member of one, or a method of a value whose kind is certain.
func (c *checker) nameOf(x syntax.Expr) string {
	switch x := unparen(x).(type) {
	case *syntax.Ident:
		if isPredeclared(x) {
			return x.Name
		}
	case *syntax.DotExpr:
		if name := c.nameOf(x.X); name != "" && builtins.Signature(name+"."+x.Name.Name) != nil {
			return name + "." + x.Name.Name
		}
		if value := c.valueOf(x.X); value != "" {
			return value + "." + x.Name.Name
		}
	}
	return ""
}

func isPredeclared(id *syntax.Ident) bool {
	b, ok := id.Binding.(*resolve.Binding)
	return ok && b.Scope == resolve.Predeclared
}

// valueOf is the stubs' name of the value that an expression has, if it is
// certain: of a call of a builtin, or of a variable that is given one once.
func (c *checker) valueOf(x syntax.Expr) string {
	switch x := unparen(x).(type) {
	case *syntax.Ident:
		if values := c.assigned[firstOf(x)]; len(values) == 1 && values[0] != nil {
			if call, ok := unparen(values[0]).(*syntax.CallExpr); ok {
				return c.valueOf(call)
			}
		}
	case *syntax.CallExpr:
		name := c.nameOf(x.Fn)
		if name == "Sandbox.run" || name == "run" {
			return runResult(x)
		}
		return builtins.ResultOf(name)
	}
	return ""
}

// runResult is what running a command returns: that depends on its argument wait.
func runResult(call *syntax.CallExpr) string {
	for _, arg := range call.Args {
		switch arg := arg.(type) {
		case *syntax.UnaryExpr:
			if arg.Op == syntax.STARSTAR {
				return ""
			}
		case *syntax.BinaryExpr:
			if arg.Op == syntax.EQ && arg.X.(*syntax.Ident).Name == "wait" {
				if id, ok := arg.Y.(*syntax.Ident); ok && id.Name == "False" {
					return "Command"
				} else if ok && id.Name == "True" {
					return "Result"
				}
				return ""
			}
		}
	}
	return "Result"
}

// attribute checks that a builtin, or a value whose kind is certain, has the
// attribute that is asked of it.
func (c *checker) attribute(dot *syntax.DotExpr) {
	name := dot.Name.Name
	if id, ok := dot.X.(*syntax.Ident); ok && isPredeclared(id) {
		v := c.loader.predeclared(c.module)[id.Name]
		if has, ok := v.(starlark.HasAttrs); ok && !slices.Contains(has.AttrNames(), name) {
			c.problem(dot.Name.NamePos, "%s has no .%s%s", id.Name, name, builtins.DidYouMean(".", name, has.AttrNames()))
		}
		return
	}
	if value := c.valueOf(dot.X); value != "" {
		if members := builtins.ValueMembers(value); !slices.Contains(members, name) {
			c.problem(dot.Name.NamePos, "%s has no .%s%s", strings.ToLower(value), name, builtins.DidYouMean(".", name, members))
		}
	}
}

// acting are the builtins that do something, and so may not be called while a
// file only declares; what is a member of one of them does as well.
var acting = []string{"sandbox", "template", "volume", "pool", "snapshot", "run", "tunnel", "service", "using", "defer"}

func (c *checker) call(call *syntax.CallExpr, depth int) {
	name := c.nameOf(call.Fn)
	noun, _, _ := strings.Cut(name, ".")
	declares := !c.module.isEntry() || c.module.hasMain
	switch {
	case depth > 0:
	case noun == "parallel", noun == "spawn":
		c.problem(call.Lparen, "%s needs globals that do not change any more, and so is not called at the top level: put this into main", noun)
	case declares && slices.Contains(acting, noun):
		what := "a file with main"
		if !c.module.isEntry() {
			what = "a module"
		}
		c.problem(call.Lparen, "%s is called at the top level of %s, which defines and does not act: put this into a function", name, what)
	}

	shown := name
	if name != "" {
		shown = strings.ToLower(name[:1]) + name[1:]
	}
	if stub := builtins.Signature(name); stub != nil && c.isCalled(name) {
		c.arguments(call, shown, stubParameters(stub))
	} else if def := c.definition(call.Fn); def != nil {
		c.arguments(call, def.Name.Name, defParameters(def))
	}
}

// isCalled tells a function's stub from that of a namespace. That of struct
// tells nothing of its arguments.
func (c *checker) isCalled(name string) bool {
	_, callable := c.loader.predeclared(c.module)[name].(starlark.Callable)
	return strings.Contains(name, ".") || callable && name != "struct"
}

// definition is the function that an expression names: one that this file
// defines once, or loads.
func (c *checker) definition(fn syntax.Expr) *syntax.DefStmt {
	id, ok := unparen(fn).(*syntax.Ident)
	if !ok {
		return nil
	}
	first := firstOf(id)
	if len(c.assigned[first]) != 1 {
		return nil
	}
	for _, stmt := range c.file.Stmts {
		switch stmt := stmt.(type) {
		case *syntax.DefStmt:
			if stmt.Name == first {
				return stmt
			}
		case *syntax.LoadStmt:
			if i := slices.Index(stmt.To, first); i >= 0 {
				target := c.module.loads[stmt.ModuleName()]
				return topLevelDef(parseAgain(c.loader, target), stmt.From[i].Name)
			}
		}
	}
	return nil
}

// topLevelDef is the function of this name, if the file defines it, and
// nothing else of that name, at its top level.
func topLevelDef(file *syntax.File, name string) (found *syntax.DefStmt) {
	for _, stmt := range file.Stmts {
		if def, ok := stmt.(*syntax.DefStmt); ok && def.Name.Name == name {
			if found != nil {
				return nil
			}
			found = def
		}
	}
	return found
}

// parameters are what a function takes.
type parameters struct {
	names           []string
	required        []bool
	positional      int // how many may come without a name
	varargs, kwargs bool
}

func stubParameters(fn *starlark.Function) (p parameters) {
	named := fn.NumParams()
	p.varargs, p.kwargs = fn.HasVarargs(), fn.HasKwargs()
	if p.varargs {
		named--
	}
	if p.kwargs {
		named--
	}
	for i := range named {
		name, _ := fn.Param(i)
		p.names = append(p.names, name)
		p.required = append(p.required, fn.ParamDefault(i) == nil)
	}
	p.positional = named - fn.NumKwonlyParams()
	return p
}

func defParameters(def *syntax.DefStmt) (p parameters) {
	p.positional = -1
	for _, param := range def.Params {
		switch param := param.(type) {
		case *syntax.Ident:
			p.names, p.required = append(p.names, param.Name), append(p.required, true)
		case *syntax.BinaryExpr:
			p.names, p.required = append(p.names, param.X.(*syntax.Ident).Name), append(p.required, false)
		case *syntax.UnaryExpr:
			if param.Op == syntax.STARSTAR {
				p.kwargs = true
				continue
			}
			p.varargs, p.positional = param.X != nil, len(p.names)
		}
	}
	if p.positional < 0 {
		p.positional = len(p.names)
	}
	return p
}

// arguments checks a call against what the function takes.
func (c *checker) arguments(call *syntax.CallExpr, name string, p parameters) {
	given := make([]bool, len(p.names))
	positional, unpacked := 0, false
	for _, arg := range call.Args {
		switch arg := arg.(type) {
		case *syntax.UnaryExpr:
			if arg.Op == syntax.STAR || arg.Op == syntax.STARSTAR {
				unpacked = true
				continue
			}
		case *syntax.BinaryExpr:
			if arg.Op == syntax.EQ {
				id := arg.X.(*syntax.Ident)
				i := slices.Index(p.names, id.Name)
				switch {
				case i < 0 && !p.kwargs:
					c.problem(id.NamePos, "%s: there is no parameter %s%s", name, id.Name, builtins.DidYouMean("", id.Name, p.names))
				case i >= 0 && given[i]:
					c.problem(id.NamePos, "%s: got parameter %s twice", name, id.Name)
				case i >= 0:
					given[i] = true
				}
				continue
			}
		}
		if positional < p.positional {
			given[positional] = true
		} else if !p.varargs && positional == p.positional {
			start, _ := arg.Span()
			c.problem(start, "%s: too many arguments without a name: it takes %d", name, p.positional)
		}
		positional++
	}
	if unpacked {
		return
	}
	for i, param := range p.names {
		if p.required[i] && !given[i] {
			c.problem(call.Lparen, "%s: parameter %s is missing", name, param)
		}
	}
}

// tests checks that what sbx-star test would run can be.
func (c *checker) tests() {
	for _, stmt := range c.file.Stmts {
		if def, ok := stmt.(*syntax.DefStmt); ok && strings.HasPrefix(def.Name.Name, "test_") {
			if p := defParameters(def); slices.Contains(p.required, true) {
				c.problem(def.Name.NamePos, "%s takes arguments, and a test is called without any", def.Name.Name)
			}
		}
	}
}
