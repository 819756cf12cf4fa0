package workflow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"go.starlark.net/resolve"
	"go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"github.com/sbx-star/sbx-star/builtins"
	"github.com/sbx-star/sbx-star/event"
)

// This file defines sessions: workflows that are written while they run.

// In a session each statement is a file of its own, so that what load binds is
// global, and names may be given another value.
var sessionOptions = syntax.FileOptions{Set: true, While: true, TopLevelControl: true, Recursion: true, GlobalReassign: true, LoadBindsGlobally: true}

// sessionName is what positions in the statements of a session begin with.
const sessionName = "<repl>"

// A Session runs statements one after the other, with the same variables and
// in one scope, which ends with the session. It is for one goroutine.
type Session struct {
	options Options
	run     *builtins.Run
	task    *builtins.Task
	loader  *loader
	module  *module // what loads in statements are relative to
	globals starlark.StringDict
	entered int // statements so far
	unwatch func()

	mu      sync.Mutex
	current context.CancelCauseFunc // of the statement that runs; nil while none does
}

// NewSession returns a session that has run nothing yet. Options.Path, Source,
// Args and Call are not used. The context is that of the whole session; what it
// waits for when it is released is as for Run. The caller closes it.
func NewSession(ctx context.Context, o Options) *Session {
	if o.Events == nil && o.Stderr != nil {
		o.Events = event.Terminal(o.Stderr)
	}
	s := &Session{options: o, globals: starlark.StringDict{}}
	s.run = o.newRun(func(err error) { s.stop(err) })
	s.task = builtins.NewTask(ctx, s.run)
	s.loader = newLoader(s.task)
	s.loader.guard(o.MaxMemory)
	var inRoot string
	s.loader.dir, inRoot = rootOf(".")
	s.module = &module{key: path.Join(inRoot, sessionName), name: sessionName, loads: map[string]*module{}}
	s.unwatch = watchMemory(o.MaxMemory, s.busy, s.stop)
	return s
}

// stop ends what runs, because that has used up what it may: the statement, and
// the tasks that earlier ones have left running. The session goes on.
func (s *Session) stop(err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil {
		s.current(err)
	} else if s.task.Busy() {
		s.options.Events.Emit(event.Warning{Text: fmt.Sprintf("the tasks that still run are cancelled: %v", err)})
	}
	s.task.CancelTasks(&builtins.CancelledError{Why: "cancelled, because " + err.Error()})
	return true
}

func (s *Session) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current != nil || s.task.Busy()
}

// Statement runs the next statement, whose lines come from readLine, each with
// its newline: as many as it takes until it is whole. It returns the value of
// an expression, and nil for any other statement.
//
// An error of readLine is returned as it is, io.EOF at the end. A statement
// that fails is a *Failure, or an *ExitError if it called exit; the session
// goes on, as it does when ctx, which is that of the statement, has ended.
func (s *Session) Statement(ctx context.Context, readLine func() ([]byte, error)) (starlark.Value, error) {
	var source []byte
	var readErr error
	s.entered++
	name := fmt.Sprintf("%s %d", sessionName, s.entered)
	file, err := sessionOptions.ParseCompoundStmt(name, func() ([]byte, error) {
		line, err := readLine()
		source = append(source, line...)
		if err != nil && (err != io.EOF || len(source) == 0) {
			readErr = err
		}
		return line, err
	})
	if readErr != nil {
		return nil, readErr
	}
	s.loader.sources[name] = source
	if err != nil {
		return nil, s.failure(ctx, &LoadError{Err: err})
	}
	if s.loader.guarded {
		builtins.Guard(file)
	}
	return s.execute(ctx, name, file)
}

func (s *Session) execute(ctx context.Context, name string, file *syntax.File) (value starlark.Value, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.run.RenewSteps()
	running := func(cancel context.CancelCauseFunc) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.current = cancel
	}
	running(cancel)
	defer running(nil)
	task := s.task.Within(ctx)
	if err := s.load(task, name, file); err != nil {
		return nil, s.failure(ctx, err)
	}
	for key, v := range s.loader.inEntry {
		if !s.globals.Has(key) {
			s.globals[key] = v // the interpreter knows one dict of names
		}
	}
	thread := builtins.Thread{Name: sessionName, Load: func(_ *starlark.Thread, name string) (starlark.StringDict, error) {
		return s.module.loads[name].values, nil
	}}
	defer func() {
		if flushed := s.run.Flush(); err == nil && flushed != nil {
			err = s.failure(ctx, flushed)
		}
	}()
	if resolve.REPLChunk(file, s.globals.Has, starlark.StringDict{}.Has, starlark.Universe.Has) == nil { // or else it fails again
		s.run.Learn(file)
	}
	if isSimple(file) {
		thread.Freeze = s.globals.Freeze
	}
	err = task.Exec(thread, func(thread *starlark.Thread) error {
		if expr := soleExpr(file); expr != nil {
			var err error
			value, err = starlark.EvalExprOptions(file.Options, thread, expr, s.globals)
			return err
		}
		return starlark.ExecREPLChunk(file, thread, s.globals)
	})
	if err != nil {
		return nil, s.failure(ctx, s.loader.suggest(s.module, err))
	}
	return value, nil
}

// isSimple tells whether a statement assigns once, at its end, if at all: tasks
// that it starts cannot see a variable change.
func isSimple(file *syntax.File) bool {
	if len(file.Stmts) != 1 {
		return false
	}
	_, assigns := file.Stmts[0].(*syntax.AssignStmt)
	return assigns || soleExpr(file) != nil
}

// soleExpr is the expression that a statement is, or nil.
func soleExpr(file *syntax.File) syntax.Expr {
	if len(file.Stmts) == 1 {
		if stmt, ok := file.Stmts[0].(*syntax.ExprStmt); ok {
			return stmt.X
		}
	}
	return nil
}

// load compiles and runs the modules that a statement loads and that none did
// before it. One that fails is tried again by the next statement that loads it.
func (s *Session) load(task *builtins.Task, name string, file *syntax.File) error {
	for _, stmt := range file.Stmts {
		stmt, ok := stmt.(*syntax.LoadStmt)
		if !ok {
			continue
		}
		from := *s.module
		from.name = name
		known := len(s.loader.order)
		target, err := s.loader.load(&from, stmt)
		if err == nil {
			err = s.loader.runFrom(task, known)
		}
		if err != nil {
			s.loader.forget(known)
			return err
		}
		for _, id := range stmt.From {
			if !slices.Contains(target.globals, id.Name) {
				return from.loadError(id.NamePos, "%s defines no %s%s", target.name, id.Name, builtins.DidYouMean("", id.Name, target.globals))
			}
		}
		s.module.loads[stmt.ModuleName()] = target
	}
	return nil
}

// failure is how a statement failed. A statement that ctx ended is one that
// was interrupted.
func (s *Session) failure(ctx context.Context, err error) error {
	var exit *ExitError
	if errors.As(err, &exit) && ctx.Err() == nil {
		return exit
	}
	return &Failure{Reports: reports(ctx, err), sources: s.loader.sources, mask: s.run.Mask}
}

// Held describes what the session's scope will release, in the order in which
// it was acquired, as in `sandbox "web-1"`.
func (s *Session) Held() []string { return s.task.Held() }

// Close cancels the tasks that still run and releases what the session acquired.
// Its error is as that of Run.
func (s *Session) Close() error {
	defer s.loader.close()
	defer s.run.Close()
	failure := &Failure{sources: s.loader.sources, mask: s.run.Mask}
	left := &builtins.CancelledError{Why: "cancelled, because the session was left"}
	failure.Reports = slices.DeleteFunc(builtins.Reports(s.task.Join(left)), func(r builtins.Report) bool { return r.Err == error(left) })
	s.unwatch()
	if err := s.task.Release(s.options.Keep); err != nil {
		failure.Reports = append(failure.Reports, builtins.Reports(err)...)
	}
	if left := s.run.Left(); len(left) > 0 {
		failure.Left = &ReleaseError{left}
	}
	if len(failure.Reports) == 0 && failure.Left == nil {
		return nil
	}
	return failure
}

// Complete returns what may stand in place of the end of line, which begins at
// start: names, attributes, parameters of the call that it is in, or files of
// this machine in a string. It runs no code of the workflow.
func (s *Session) Complete(line string) (start int, candidates []string) {
	if quote, at := openString(line); quote != 0 {
		return at, completePath(line[at:])
	}
	start = strings.LastIndexFunc(line, func(r rune) bool { return !isNameRune(r) }) + 1
	prefix := line[start:]
	matching := func(names []string, suffix string) {
		for _, name := range names {
			if strings.HasPrefix(name, prefix) && (prefix != "" || !strings.HasPrefix(name, "_")) {
				candidates = append(candidates, name+suffix)
			}
		}
	}
	if before, ok := strings.CutSuffix(line[:start], "."); ok {
		if v := s.lookUp(lastPath(before)); v != nil {
			if v, ok := v.(starlark.HasAttrs); ok {
				matching(v.AttrNames(), "")
			}
		}
		return start, candidates
	}
	if prefix == "" && !strings.ContainsAny(line, "(,") {
		return start, nil
	}
	if fn := s.lookUp(lastPath(openCall(line[:start]))); fn != nil {
		matching(builtins.Parameters(fn), " = ")
	}
	if prefix != "" {
		names := append(s.loader.inEntry.Keys(), starlark.Universe.Keys()...)
		names = append(names, s.globals.Keys()...)
		names = append(names, "and", "break", "continue", "def", "elif", "else", "for", "if", "in", "lambda", "load", "not", "or", "pass", "return", "while")
		slices.Sort(names)
		matching(slices.Compact(names), "")
	}
	return start, candidates
}

func isNameRune(r rune) bool {
	return r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
}

// lastPath is the dotted name that text ends with, such as "json.encode", or "".
func lastPath(text string) string {
	return text[strings.LastIndexFunc(text, func(r rune) bool { return r != '.' && !isNameRune(r) })+1:]
}

// lookUp returns what a dotted name stands for, or nil. Of the values on the
// way only those are asked for attributes that answer without doing anything.
func (s *Session) lookUp(path string) starlark.Value {
	if path == "" {
		return nil
	}
	parts := strings.Split(path, ".")
	v := s.globals[parts[0]]
	if v == nil {
		v = s.loader.inEntry[parts[0]]
	}
	for _, part := range parts[1:] {
		v = builtins.Member(v, part)
	}
	return v
}

// openCall is what stands before the parenthesis that text leaves open last, or "".
func openCall(text string) string {
	depth := 0
	for i := len(text) - 1; i >= 0; i-- {
		switch text[i] {
		case ')', ']', '}':
			depth++
		case '(', '[', '{':
			if depth--; depth < 0 {
				if text[i] == '(' {
					return text[:i]
				}
				return ""
			}
		}
	}
	return ""
}

// openString is the quote of the string that line leaves open, and where that
// begins behind it; 0 if it leaves none open.
func openString(line string) (quote byte, at int) {
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case quote == 0 && c == '#':
			return 0, 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, at = c, i+1
		case quote != 0 && c == '\\':
			i++
		case c == quote:
			quote = 0
		}
	}
	return quote, at
}

// completePath returns the files whose names begin as text does; folders end
// with a slash.
func completePath(text string) (names []string) {
	dir, prefix := filepath.Split(text)
	entries, err := os.ReadDir(filepath.Join(".", dir))
	if filepath.IsAbs(dir) {
		entries, err = os.ReadDir(dir)
	}
	if err != nil {
		return nil
	}
	for _, entry := range entries {
		if name := entry.Name(); strings.HasPrefix(name, prefix) && (prefix != "" || name[0] != '.') {
			if entry.IsDir() {
				name += "/"
			}
			names = append(names, dir+name)
		}
	}
	return names
}

// Show is a value as repr would show it, over several lines if it is long and
// has parts, and without the secrets that the session knows.
func (s *Session) Show(v starlark.Value) string { return s.run.Mask(builtins.Pretty(v)) }
