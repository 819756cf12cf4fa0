package builtins

import (
	"fmt"

	"go.starlark.net/resolve"
	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
	"go.starlark.net/syntax"
)

// This file defines which functions may cross into a task that runs beside its
// caller. Freezing is not enough: a function holds the variables around it, not
// their values, and the function that owns them may go on to assign to them.

// A variable is one that inner functions use and that is assigned more than once.
type variable struct {
	name  string
	owner string // where the function begins that assigns to it
}

// Learn takes from a file, which must be resolved, what spawn has to know of it.
// It must be called before the file runs.
func (r *Run) Learn(file *syntax.File) {
	l := &learner{counts: map[*resolve.Binding]int{}, owners: map[*resolve.Binding]string{}}
	for _, stmt := range file.Stmts {
		l.walk(stmt, "", false)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for binding, n := range l.counts {
		if n > 1 {
			r.reassigned[binding.First.NamePos.String()] = variable{binding.First.Name, l.owners[binding]}
		}
	}
}

type learner struct {
	counts map[*resolve.Binding]int // of assignments; one in a loop is many
	owners map[*resolve.Binding]string
}

// walk looks at what a function, or a file, assigns to.
func (l *learner) walk(n syntax.Node, owner string, loop bool) {
	first := true
	syntax.Walk(n, func(n syntax.Node) bool {
		if first {
			first = false // n itself, which is perhaps a loop that was just entered
			if !loop || !isLoop(n) {
				return l.enter(n, owner, loop)
			}
			l.assigned(n, owner)
			return true
		}
		return n == nil || l.enter(n, owner, loop)
	})
}

func isLoop(n syntax.Node) bool {
	switch n.(type) {
	case *syntax.ForStmt, *syntax.WhileStmt, *syntax.Comprehension:
		return true
	}
	return false
}

// enter tells whether the children of n are to be walked like n.
func (l *learner) enter(n syntax.Node, owner string, loop bool) bool {
	switch n := n.(type) {
	case *syntax.AssignStmt:
		l.bind(n.LHS, owner, loop)
	case *syntax.DefStmt:
		l.bind(n.Name, owner, loop)
		l.function(n.Def, n.Params, n.Body, owner, loop)
		return false
	case *syntax.LambdaExpr:
		l.function(n.Lambda, n.Params, []syntax.Stmt{&syntax.ExprStmt{X: n.Body}}, owner, loop)
		return false
	case *syntax.ForStmt, *syntax.WhileStmt, *syntax.Comprehension:
		if !loop {
			l.walk(n, owner, true)
			return false
		}
		l.assigned(n, owner)
	}
	return true
}

// assigned notes the variables of a loop.
func (l *learner) assigned(n syntax.Node, owner string) {
	switch n := n.(type) {
	case *syntax.ForStmt:
		l.bind(n.Vars, owner, true)
	case *syntax.Comprehension:
		for _, clause := range n.Clauses {
			if clause, ok := clause.(*syntax.ForClause); ok {
				l.bind(clause.Vars, owner, true)
			}
		}
	}
}

func (l *learner) function(pos syntax.Position, params []syntax.Expr, body []syntax.Stmt, owner string, loop bool) {
	name := pos.String()
	for _, param := range params {
		switch param := param.(type) {
		case *syntax.BinaryExpr: // a default
			l.bind(param.X, name, false)
			l.walk(param.Y, owner, loop)
		case *syntax.UnaryExpr: // *args; nil is a bare *
			l.bind(param.X, name, false)
		default:
			l.bind(param, name, false)
		}
	}
	for _, stmt := range body {
		l.walk(stmt, name, false)
	}
}

func (l *learner) bind(target syntax.Expr, owner string, loop bool) {
	switch target := target.(type) {
	case *syntax.Ident:
		binding, ok := target.Binding.(*resolve.Binding)
		if !ok || binding.Scope != resolve.Cell {
			return
		}
		l.counts[binding]++
		if loop {
			l.counts[binding]++
		}
		l.owners[binding] = owner
	case *syntax.ParenExpr:
		l.bind(target.X, owner, loop)
	case *syntax.TupleExpr:
		for _, x := range target.List {
			l.bind(x, owner, loop)
		}
	case *syntax.ListExpr:
		for _, x := range target.List {
			l.bind(x, owner, loop)
		}
	}
}

// mayShare tells why values cannot cross into a task that runs beside the
// caller: a function in them uses a variable that may still change.
func (c *invocation) mayShare(args starlark.Tuple, kwargs []starlark.Tuple) error {
	s := &sharing{c: c, seen: map[starlark.Value]bool{}}
	if err := s.check(args); err != nil {
		return err
	}
	for _, kwarg := range kwargs {
		if err := s.check(kwarg[1]); err != nil {
			return err
		}
	}
	return nil
}

type sharing struct {
	c      *invocation
	seen   map[starlark.Value]bool
	active map[string]bool // where the functions begin that have not ended; nil if not known yet
}

func (s *sharing) check(v starlark.Value) error {
	switch v := v.(type) {
	case starlark.Tuple: // cannot be a key of seen
		for _, element := range v {
			if err := s.check(element); err != nil {
				return err
			}
		}
		return nil
	case *starlark.List, *starlark.Dict, *starlark.Set, *starlark.Function, *starlark.Builtin, *starlarkstruct.Struct:
		if s.seen[v] {
			return nil
		}
		s.seen[v] = true
	default:
		return nil
	}
	switch v := v.(type) {
	case *starlark.Dict:
		for _, item := range v.Items() {
			if err := s.check(item); err != nil {
				return err
			}
		}
	case starlark.Iterable:
		for element := range starlark.Elements(v) {
			if err := s.check(element); err != nil {
				return err
			}
		}
	case *starlarkstruct.Struct:
		for _, name := range v.AttrNames() {
			field, _ := v.Attr(name)
			if err := s.check(field); err != nil {
				return err
			}
		}
	case *starlark.Builtin:
		if receiver := v.Receiver(); receiver != nil {
			return s.check(receiver)
		}
	case *starlark.Function:
		return s.function(v)
	}
	return nil
}

func (s *sharing) function(fn *starlark.Function) error {
	for i := range fn.NumParams() {
		if v := fn.ParamDefault(i); v != nil {
			if err := s.check(v); err != nil {
				return err
			}
		}
	}
	for i := range fn.NumFreeVars() {
		binding, value := fn.FreeVar(i)
		why := ""
		s.c.Run.mu.Lock()
		variable, changes := s.c.Run.reassigned[binding.Pos.String()]
		s.c.Run.mu.Unlock()
		switch {
		case value == nil:
			why = "is not assigned yet"
		case changes && s.isActive(variable.owner):
			why = "is assigned more than once"
		}
		if why != "" {
			return &hinted{fmt.Errorf("%s: the function %s uses the variable %s (%s), which %s and may change while the task reads it",
				s.c.name, fn.Name(), binding.Name, binding.Pos, why), "hand the value over as an argument: spawn(fn, " + binding.Name + ")"}
		}
		if err := s.check(value); err != nil {
			return err
		}
	}
	return nil
}

// isActive tells whether the function that begins there has been called by the
// caller's task, or by one that waits for it, and has not ended. What other
// tasks hold has crossed into one before.
func (s *sharing) isActive(owner string) bool {
	if s.active == nil {
		s.active = map[string]bool{}
		for t := s.c.Task; t != nil; t = t.waiting {
			for i := range t.thread.CallStackDepth() {
				if fn, ok := t.thread.DebugFrame(i).Callable().(*starlark.Function); ok {
					s.active[fn.Position().String()] = true
				}
			}
		}
	}
	return s.active[owner] || owner == "" // a session's statement
}
