package builtins

import (
	"maps"
	"runtime"
	"slices"
	"strings"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
	"go.starlark.net/syntax"
)

// This file defines how one operation that would take more memory than is left
// is refused before it begins: the interpreter cannot be interrupted in its
// middle, and by its end the machine may be dead.
//
// The operations are those whose result may be far larger than what they are
// given, such as "x" * 1000000000. Guard has a file call a guard in their place.
// The sum of two strings is not among them: it is at most twice what there is.

// The guards have names that no file can write.
const (
	guardStar     = "*"
	guardPercent  = "%"
	guardElements = "+="
	guardCallable = "."
)

// Guard changes a file that was parsed and not yet resolved. It is then resolved
// and run with WithGuards. Positions stay.
func Guard(file *syntax.File) { guardStmts(file.Stmts) }

// WithGuards is what a guarded file is resolved and run with, given what is
// predeclared in it.
func WithGuards(predeclared starlark.StringDict) starlark.StringDict {
	names := maps.Clone(predeclared)
	names[guardStar] = starlark.NewBuiltin(guardStar, guardedBinary(syntax.STAR, productSize))
	names[guardPercent] = starlark.NewBuiltin(guardPercent, guardedBinary(syntax.PERCENT, formatSize))
	names[guardElements] = starlark.NewBuiltin(guardElements, elementsOf)
	names[guardCallable] = starlark.NewBuiltin(guardCallable, callableOf)
	for name := range resultSizes {
		if fn, ok := predeclared[name]; ok {
			names[name] = guarded(fn)
		} else if fn, ok := starlark.Universe[name]; ok {
			names[name] = guarded(fn)
		}
	}
	getattr := starlark.Universe["getattr"].(*starlark.Builtin)
	names["getattr"] = starlark.NewBuiltin("getattr", func(thread *starlark.Thread, _ *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
		v, err := getattr.CallInternal(thread, args, kwargs)
		return guarded(v), err
	})
	return names
}

func guardStmts(stmts []syntax.Stmt) {
	for _, stmt := range stmts {
		switch stmt := stmt.(type) {
		case *syntax.AssignStmt:
			guardExpr(&stmt.RHS)
			switch name := guardStar; stmt.Op {
			case syntax.PERCENT_EQ:
				name = guardPercent
				fallthrough
			case syntax.STAR_EQ:
				if left := copyOf(stmt.LHS); left != nil {
					stmt.Op, stmt.RHS = syntax.EQ, guardCall(name, stmt.OpPos, left, stmt.RHS)
				}
			case syntax.PLUS_EQ: // which takes the elements of anything if the left is a list
				if _, ok := stmt.RHS.(*syntax.Literal); !ok {
					stmt.RHS = guardCall(guardElements, stmt.OpPos, stmt.RHS)
				}
			}
			guardExpr(&stmt.LHS)
		case *syntax.DefStmt:
			guardExprs(stmt.Params)
			guardStmts(stmt.Body)
		case *syntax.ExprStmt:
			guardExpr(&stmt.X)
		case *syntax.ForStmt:
			guardExpr(&stmt.Vars)
			guardExpr(&stmt.X)
			guardStmts(stmt.Body)
		case *syntax.WhileStmt:
			guardExpr(&stmt.Cond)
			guardStmts(stmt.Body)
		case *syntax.IfStmt:
			guardExpr(&stmt.Cond)
			guardStmts(stmt.True)
			guardStmts(stmt.False)
		case *syntax.ReturnStmt:
			guardExpr(&stmt.Result)
		}
	}
}

func guardExprs(list []syntax.Expr) {
	for i := range list {
		guardExpr(&list[i])
	}
}

func guardExpr(place *syntax.Expr) {
	switch x := (*place).(type) {
	case *syntax.BinaryExpr:
		guardExpr(&x.X)
		guardExpr(&x.Y)
		if x.Op == syntax.STAR && !(isNumber(x.X) && isNumber(x.Y)) {
			*place = guardCall(guardStar, x.OpPos, x.X, x.Y)
		} else if x.Op == syntax.PERCENT && !isNumber(x.X) {
			*place = guardCall(guardPercent, x.OpPos, x.X, x.Y)
		}
	case *syntax.CallExpr:
		guardExpr(&x.Fn)
		for i, arg := range x.Args {
			if rest, ok := arg.(*syntax.UnaryExpr); ok && rest.Op == syntax.STAR {
				guardExpr(&rest.X)
				rest.X = guardCall(guardElements, rest.OpPos, rest.X)
				continue
			}
			guardExpr(&x.Args[i])
		}
	case *syntax.Comprehension:
		guardExpr(&x.Body)
		for _, clause := range x.Clauses {
			switch clause := clause.(type) {
			case *syntax.ForClause:
				guardExpr(&clause.Vars)
				guardExpr(&clause.X)
			case *syntax.IfClause:
				guardExpr(&clause.Cond)
			}
		}
	case *syntax.CondExpr:
		guardExpr(&x.Cond)
		guardExpr(&x.True)
		guardExpr(&x.False)
	case *syntax.DictEntry:
		guardExpr(&x.Key)
		guardExpr(&x.Value)
	case *syntax.DictExpr:
		guardExprs(x.List)
	case *syntax.DotExpr:
		guardExpr(&x.X)
		if guardedAttrs[x.Name.Name] {
			*place = guardCall(guardCallable, x.Dot, x)
		}
	case *syntax.IndexExpr:
		guardExpr(&x.X)
		guardExpr(&x.Y)
	case *syntax.LambdaExpr:
		guardExprs(x.Params)
		guardExpr(&x.Body)
	case *syntax.ListExpr:
		guardExprs(x.List)
	case *syntax.ParenExpr:
		guardExpr(&x.X)
	case *syntax.SliceExpr:
		guardExpr(&x.X)
		guardExpr(&x.Lo)
		guardExpr(&x.Hi)
		guardExpr(&x.Step)
	case *syntax.TupleExpr:
		guardExprs(x.List)
	case *syntax.UnaryExpr:
		guardExpr(&x.X)
	}
}

func guardCall(guard string, pos syntax.Position, args ...syntax.Expr) syntax.Expr {
	return &syntax.CallExpr{Fn: &syntax.Ident{NamePos: pos, Name: guard}, Lparen: pos, Args: args, Rparen: pos}
}

// copyOf is a second tree of an expression that may be evaluated twice, or nil.
func copyOf(x syntax.Expr) syntax.Expr {
	switch x := x.(type) {
	case *syntax.Ident:
		return &syntax.Ident{NamePos: x.NamePos, Name: x.Name}
	case *syntax.Literal:
		return x
	case *syntax.IndexExpr:
		if of, index := copyOf(x.X), copyOf(x.Y); of != nil && index != nil {
			return &syntax.IndexExpr{X: of, Lbrack: x.Lbrack, Y: index, Rbrack: x.Rbrack}
		}
	}
	return nil
}

func isNumber(x syntax.Expr) bool {
	literal, ok := x.(*syntax.Literal)
	return ok && (literal.Token == syntax.INT || literal.Token == syntax.FLOAT)
}

// small is how many bytes nobody needs to ask for.
const small = 1 << 20

// reserve asks for memory that the next operation will take. The function that
// it returns is called when that has ended.
func (r *Run) reserve(bytes float64) (release func(), err error) {
	limit := r.options.MaxMemory
	if bytes < small || limit == 0 {
		return func() {}, nil
	}
	n := uint64(min(bytes, float64(limit)+1))
	others := r.reserved.Add(n) - n
	release = func() { r.reserved.Add(-n) }
	if MemoryInUse()+others+n > limit {
		if n <= limit {
			runtime.GC()
		}
		if MemoryInUse()+others+n > limit {
			release()
			err := &BudgetError{"would use more than " + Size(limit) + " of memory", "--max-memory"}
			r.options.Stop(err)
			return nil, err
		}
	}
	return release, nil
}

type builtinCall func(*starlark.Thread, *starlark.Builtin, starlark.Tuple, []starlark.Tuple) (starlark.Value, error)

func guardedBinary(op syntax.Token, size func(x, y starlark.Value) float64) builtinCall {
	return func(thread *starlark.Thread, _ *starlark.Builtin, args starlark.Tuple, _ []starlark.Tuple) (starlark.Value, error) {
		release, err := taskOf(thread).Run.reserve(size(args[0], args[1]))
		if err != nil {
			return nil, err
		}
		defer release()
		return starlark.Binary(op, args[0], args[1])
	}
}

// elementsOf returns a value whose elements will be copied.
func elementsOf(thread *starlark.Thread, _ *starlark.Builtin, args starlark.Tuple, _ []starlark.Tuple) (starlark.Value, error) {
	if _, ok := args[0].(starlark.Iterable); !ok {
		return args[0], nil
	}
	release, err := taskOf(thread).Run.reserve(lengthOf(args[0]) * elementSize)
	if err != nil {
		return nil, err
	}
	release()
	return args[0], nil
}

func callableOf(_ *starlark.Thread, _ *starlark.Builtin, args starlark.Tuple, _ []starlark.Tuple) (starlark.Value, error) {
	return guarded(args[0]), nil
}

// guarded is a function that asks first, if it is one that should.
func guarded(v starlark.Value) starlark.Value {
	fn, ok := v.(*starlark.Builtin)
	if !ok {
		return v
	}
	key := fn.Name()
	if self := fn.Receiver(); self != nil && !strings.Contains(key, ".") {
		key = self.Type() + "." + key
	}
	size := resultSizes[key]
	if size == nil {
		return v
	}
	asks := starlark.NewBuiltin(fn.Name(), func(thread *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
		all := slices.Clip(args)
		for _, kwarg := range kwargs {
			all = append(all, kwarg[1])
		}
		release, err := taskOf(thread).Run.reserve(size(b.Receiver(), all))
		if err != nil {
			return nil, err
		}
		defer release()
		return fn.CallInternal(thread, args, kwargs)
	})
	if self := fn.Receiver(); self != nil {
		return asks.BindReceiver(self)
	}
	return asks
}

// guardedAttrs are the names under which a guarded function is an attribute.
var guardedAttrs = func() map[string]bool {
	names := map[string]bool{}
	for key := range resultSizes {
		if _, name, ok := strings.Cut(key, "."); ok {
			names[name] = true
		}
	}
	return names
}()

const (
	elementSize = 16  // of a list, in bytes
	pieceSize   = 48  // of a list of strings, with their headers
	entrySize   = 100 // of a dict or a set
)

// resultSizes tell about how many bytes a function would take, by its name, and
// of a method by the type of its value and its name.
var resultSizes = map[string]func(self starlark.Value, args starlark.Tuple) float64{
	"list": ofElements(elementSize), "tuple": ofElements(elementSize), "sorted": ofElements(elementSize), "reversed": ofElements(elementSize),
	"zip": ofElements(pieceSize), "enumerate": ofElements(pieceSize), "set": ofElements(entrySize), "dict": ofElements(entrySize),
	"list.extend": ofElements(elementSize), "set.update": ofElements(entrySize), "set.union": ofElements(entrySize), "dict.update": ofElements(entrySize),
	"parallel": ofElements(3 * elementSize), // the items, their results and these as a list
	"bytes":    ofElements(1),
	"str":      ofTexts, "repr": ofTexts, "print": ofTexts, "fail": ofTexts, "log.info": ofTexts, "log.warn": ofTexts, "log.error": ofTexts,
	"run": ofTexts, "sandbox.run": ofTexts, "host.run": ofTexts, "shell_quote": ofTexts,
	"json.encode": ofTexts, "json.indent": indentedSize,
	"json.decode":       ofPieces(",[{"),
	"string.splitlines": func(self starlark.Value, _ starlark.Tuple) float64 { return ofPieces("\n")(nil, starlark.Tuple{self}) },
	"string.split":      splitSize, "string.rsplit": splitSize,
	"string.join": func(self starlark.Value, args starlark.Tuple) float64 {
		total := 0.0
		if parts, ok := argument(args, 0).(starlark.Sequence); ok {
			for part := range starlark.Elements(parts) {
				total += lengthOf(part) + lengthOf(self)
			}
		}
		return total
	},
	"string.replace": func(self starlark.Value, args starlark.Tuple) float64 {
		text, _ := self.(starlark.String)
		old, ok := argument(args, 0).(starlark.String)
		if !ok {
			return 0
		}
		return lengthOf(self) + float64(strings.Count(string(text), string(old)))*lengthOf(argument(args, 1))
	},
	"string.format": func(self starlark.Value, args starlark.Tuple) float64 {
		text, _ := self.(starlark.String)
		longest := 0.0
		for _, arg := range args {
			longest = max(longest, textSize(arg))
		}
		return lengthOf(self) + float64(strings.Count(string(text), "{"))*longest
	},
}

func argument(args starlark.Tuple, i int) starlark.Value {
	if i < len(args) {
		return args[i]
	}
	return starlark.None
}

func ofElements(size float64) func(starlark.Value, starlark.Tuple) float64 {
	return func(_ starlark.Value, args starlark.Tuple) float64 {
		total := 0.0
		for _, arg := range args {
			total += lengthOf(arg) * size
		}
		return total
	}
}

func ofTexts(_ starlark.Value, args starlark.Tuple) float64 { return textSize(args) }

func ofPieces(marks string) func(starlark.Value, starlark.Tuple) float64 {
	return func(_ starlark.Value, args starlark.Tuple) float64 {
		text, _ := argument(args, 0).(starlark.String)
		n := 0
		for _, mark := range marks {
			n += strings.Count(string(text), string(mark))
		}
		return float64(n) * pieceSize
	}
}

func splitSize(self starlark.Value, args starlark.Tuple) float64 {
	text, _ := self.(starlark.String)
	if separator, ok := argument(args, 0).(starlark.String); ok && separator != "" {
		return float64(strings.Count(string(text), string(separator))) * pieceSize
	}
	return float64(len(text)) / 2 * pieceSize
}

// indentedSize is that of JSON, of which each line is indented by its depth.
func indentedSize(_ starlark.Value, args starlark.Tuple) float64 {
	text, _ := argument(args, 0).(starlark.String)
	level := 0.0
	for _, arg := range args[min(1, len(args)):] {
		level += lengthOf(arg)
	}
	size, depth := float64(len(text)), 0.0
	for _, c := range []byte(text) {
		switch c {
		case '[', '{':
			depth++
		case ']', '}':
			depth = max(0, depth-1)
		case ',':
		default:
			continue
		}
		size += 1 + (1+depth)*max(1, level)
	}
	return size
}

// lengthOf is how many elements, or bytes, a value has; 0 if it does not say.
func lengthOf(v starlark.Value) float64 {
	n := max(starlark.Len(v), 0)
	if v.Type() == "string.codepoints" { // which does not, and may be read again
		for range starlark.Elements(v.(starlark.Iterable)) {
			n++
		}
	}
	return float64(n)
}

func productSize(x, y starlark.Value) float64 {
	n, ok := x.(starlark.Int)
	other := y
	if !ok {
		if n, ok = y.(starlark.Int); !ok {
			return 0
		}
		other = x
	}
	if m, ok := other.(starlark.Int); ok {
		_, small := m.Int64()
		if _, ok := n.Int64(); ok && small {
			return 0
		}
		return float64(n.BigInt().BitLen()+m.BigInt().BitLen()) / 8
	}
	size := 1.0
	switch other.(type) {
	case *starlark.List, starlark.Tuple:
		size = elementSize
	}
	times, _ := n.Int64()
	if elements := lengthOf(other) * float64(times); elements < 1<<30 { // more is refused by the interpreter
		return elements * size
	}
	return 0
}

// formatSize is that of "…" % args.
func formatSize(x, y starlark.Value) float64 {
	format, ok := x.(starlark.String)
	if !ok {
		return 0
	}
	if _, ok := y.(*starlark.Dict); ok { // whose values may be named several times
		return float64(strings.Count(string(format), "%(")) * textSize(y)
	}
	return float64(len(format)) + textSize(y)
}

// textSize is about how long a value is as text. A part that occurs several times
// is looked at once.
func textSize(v starlark.Value) float64 { return make(textSizes).of(v) }

type textSizes map[any]float64

func (known textSizes) of(v starlark.Value) (size float64) {
	var key any
	switch v := v.(type) {
	case starlark.String, starlark.Bytes:
		return lengthOf(v) + 2
	case *starlark.List, *starlark.Dict, *starlark.Set, *starlarkstruct.Struct, *record:
		key = v
	case starlark.Int:
		return 8 + float64(v.BigInt().BitLen())/3
	case starlark.Tuple:
		if len(v) == 0 {
			return 2
		}
		type part struct {
			first *starlark.Value
			n     int
		}
		key = part{&v[0], len(v)}
	default:
		if strings.HasPrefix(v.Type(), "string.") { // all of it, and a few letters
			return 20 + lengthOf(v)
		}
		return 8
	}
	if size, ok := known[key]; ok {
		return size
	}
	known[key] = 5 // as long as it is inside of itself
	size = 2
	switch v := v.(type) {
	case *starlark.Dict:
		for name, value := range v.Entries() {
			size += known.of(name) + known.of(value) + 4
		}
	case *starlarkstruct.Struct:
		for name, value := range v.Entries() {
			size += float64(len(name)) + known.of(value) + 5
		}
	case *record:
		for _, name := range v.AttrNames() {
			size += float64(len(name)) + known.of(wireField(v.msg, name)) + 5
		}
	case starlark.Iterable:
		for part := range starlark.Elements(v) {
			size += known.of(part) + 2
		}
	}
	known[key] = size
	return size
}
