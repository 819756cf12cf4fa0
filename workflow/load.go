package workflow

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"go.starlark.net/resolve"
	"go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"github.com/sbx-star/sbx-star/builtins"
	"github.com/sbx-star/sbx-star/stdlib"
)

// This file defines how a workflow's files become programs, and in which order
// they run: all are read and compiled before the first one runs.

var fileOptions = syntax.FileOptions{Set: true, While: true, TopLevelControl: true, Recursion: true}

// stdPrefix begins the names of the modules that sbx-star brings with it.
const stdPrefix = "@std//"

// rootMark is the file that makes its folder the root of the modules below it.
const rootMark = "sbx-star.mod"

// A module is a file of the workflow.
type module struct {
	key     string // its path inside the root, with slashes; or with stdPrefix
	name    string // as it is shown
	program *starlark.Program
	globals []string            // the names that it defines
	loads   map[string]*module  // by the name in the load statement
	values  starlark.StringDict // its globals, once it has run
	loaded  []Load              // the chain of loads that first led to it
	busy    bool                // its own loads are being looked at

	// Of the entry file:
	hasMain  bool
	mainPos  syntax.Position
	mainFrom func() starlark.Value // nil before it has run
	doc      string
}

type loader struct {
	task              *builtins.Task
	std               fs.FS
	inModule, inEntry starlark.StringDict // what is predeclared
	guarded           bool

	dir     string   // of the root, as it is shown
	root    *os.Root // opened when the first module is loaded
	modules map[string]*module
	order   []*module         // each after those that it loads; the entry file is the last
	sources map[string][]byte // by name
}

func newLoader(task *builtins.Task) *loader {
	l := &loader{task: task, std: stdlib.FS, modules: map[string]*module{}, sources: map[string][]byte{}}
	l.inModule, l.inEntry = builtins.Predeclared(task)
	return l
}

// guard has files ask before they take much memory, if there is a limit.
func (l *loader) guard(maxMemory uint64) {
	if l.guarded = maxMemory > 0; l.guarded {
		l.inModule, l.inEntry = builtins.WithGuards(l.inModule), builtins.WithGuards(l.inEntry)
	}
}

func (l *loader) close() {
	if l.root != nil {
		l.root.Close()
	}
}

// compile reads the entry file and all that it loads.
func (l *loader) compile(o Options) (*module, error) {
	source, dir := o.Source, "."
	if source == nil {
		var err error
		if source, err = os.ReadFile(o.Path); err != nil {
			var cause *fs.PathError
			if errors.As(err, &cause) {
				err = cause.Err
			}
			return nil, &LoadError{Err: fmt.Errorf("cannot read the workflow %s: %w", o.Path, err)}
		}
		dir = filepath.Dir(o.Path)
	}
	var inRoot string
	l.dir, inRoot = rootOf(dir)
	m := &module{key: path.Join(inRoot, filepath.Base(o.Path)), name: o.Path}
	return m, l.add(m, source)
}

// rootOf is the nearest folder from dir upwards with the root mark, or else
// dir, and the way from there to dir.
func rootOf(dir string) (root, way string) {
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return dir, ""
	}
	for root, at := dir, absolute; ; root, at = filepath.Join(root, ".."), filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, rootMark)); err == nil {
			return root, way
		}
		if at == filepath.Dir(at) {
			return dir, ""
		}
		way = path.Join(filepath.Base(at), way)
	}
}

// add compiles a module and, first, those that it loads.
func (l *loader) add(m *module, source []byte) error {
	l.modules[m.key] = m
	l.sources[m.name] = source
	m.busy = true
	defer func() { m.busy = false }()

	file, err := fileOptions.Parse(m.name, source, 0)
	if err != nil {
		return &LoadError{m.loaded, err}
	}
	if l.guarded {
		builtins.Guard(file)
	}
	if m.program, err = starlark.FileProgram(file, l.predeclared(m).Has); err != nil {
		return &LoadError{m.loaded, l.suggest(m, err)}
	}
	l.task.Run.Learn(file)
	for _, global := range file.Module.(*resolve.Module).Globals {
		m.globals = append(m.globals, global.First.Name)
		if global.First.Name == "main" {
			m.hasMain, m.mainPos = true, global.First.NamePos
			m.mainFrom = func() starlark.Value { return m.values["main"] }
		}
	}
	m.doc = docstring(file)
	m.loads = map[string]*module{}
	for _, stmt := range file.Stmts {
		load, ok := stmt.(*syntax.LoadStmt)
		if !ok {
			continue
		}
		target, err := l.load(m, load)
		if err != nil {
			return err
		}
		m.loads[load.ModuleName()] = target
		for i, from := range load.From {
			if !slices.Contains(target.globals, from.Name) {
				return m.loadError(from.NamePos, "%s defines no %s%s", target.name, from.Name, builtins.DidYouMean("", from.Name, target.globals))
			}
			if load.To[i].Name == "main" {
				m.hasMain, m.mainPos = true, load.To[i].NamePos
				m.mainFrom = func() starlark.Value { return target.values[from.Name] }
			}
		}
	}
	l.order = append(l.order, m)
	return nil
}

// suggest adds to names that are not defined the predeclared one that may have
// been meant: the resolver knows only those of the file.
func (l *loader) suggest(m *module, err error) error {
	var list resolve.ErrorList
	if !errors.As(err, &list) {
		return err
	}
	candidates := append(l.predeclared(m).Keys(), starlark.Universe.Keys()...)
	for i, e := range list {
		if name, ok := strings.CutPrefix(e.Msg, "undefined: "); ok && !strings.Contains(name, " ") {
			list[i].Msg += builtins.DidYouMean("", name, candidates)
		}
	}
	return list
}

func (m *module) isEntry() bool { return len(m.loaded) == 0 }

func (l *loader) predeclared(m *module) starlark.StringDict {
	if m.isEntry() {
		return l.inEntry
	}
	return l.inModule
}

// load finds the module that a statement names, and compiles it if that is the
// first that names it.
func (l *loader) load(from *module, stmt *syntax.LoadStmt) (*module, error) {
	name, pos := stmt.ModuleName(), stmt.Module.TokenPos
	key, err := resolveModule(from.key, name)
	if err != nil {
		return nil, from.loadError(pos, "%w", err)
	}
	std := strings.HasPrefix(key, stdPrefix)
	chain := append(from.loaded[:len(from.loaded):len(from.loaded)], Load{pos, name})
	if m := l.modules[key]; m != nil {
		if m.busy {
			return nil, from.loadError(pos, "%s loads itself: %s", m.name, cycle(m, chain))
		}
		return m, nil
	}
	if l.root == nil && !std {
		if l.root, err = os.OpenRoot(l.dir); err != nil {
			return nil, from.loadError(pos, "cannot open the folder of modules: %w", err)
		}
	}
	m := &module{key: key, name: key, loaded: chain}
	var source []byte
	if std {
		source, err = fs.ReadFile(l.std, strings.TrimPrefix(key, stdPrefix))
	} else {
		m.name = filepath.Join(l.dir, filepath.FromSlash(key))
		source, err = l.root.ReadFile(filepath.FromSlash(key))
	}
	if std && errors.Is(err, fs.ErrNotExist) {
		modules, _ := fs.Glob(l.std, "*.star")
		return nil, from.loadError(pos, "there is no module %s%s", name, builtins.DidYouMean(stdPrefix, strings.TrimPrefix(key, stdPrefix), modules))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, from.loadError(pos, "there is no module %s: %s does not exist", name, m.name)
	}
	if err != nil {
		var cause *fs.PathError
		if errors.As(err, &cause) {
			err = cause.Err
		}
		return nil, from.loadError(pos, "cannot read the module %s: %w", name, err)
	}
	return m, l.add(m, source)
}

// resolveModule is the key of a module that the file of key from calls name.
func resolveModule(from, name string) (string, error) {
	if module, ok := strings.CutPrefix(name, stdPrefix); ok {
		if !fs.ValidPath(module) || module == "." {
			return "", fmt.Errorf("%q cannot be a module of the standard library; name it as in %q", name, stdPrefix+"wait.star")
		}
		return name, nil
	}
	switch {
	case strings.HasPrefix(name, "@"), strings.HasPrefix(name, "//"):
		return "", fmt.Errorf("there is no module %s; a module is a file, named relative to this one, as in \"./lib.star\", or one of the standard library, as in %q", name, stdPrefix+"wait.star")
	case path.IsAbs(name), strings.ContainsAny(name, "\\\x00"), name == "", strings.HasSuffix(name, "/"):
		return "", fmt.Errorf("%q cannot be a module; name a file relative to this one, as in \"./lib.star\"", name)
	}
	if module, ok := strings.CutPrefix(from, stdPrefix); ok {
		return resolveModule("", stdPrefix+path.Join(path.Dir(module), name))
	}
	key := path.Join(path.Dir(from), name)
	if key == ".." || strings.HasPrefix(key, "../") {
		return "", fmt.Errorf("%s lies outside of the workflow's folder; a file named %s makes the folder that it lies in the outermost one", name, rootMark)
	}
	return key, nil
}

// cycle names the modules from m back to itself.
func cycle(m *module, chain []Load) string {
	names := []string{m.name}
	for _, load := range chain[len(m.loaded):] {
		names = append(names, load.Module)
	}
	return strings.Join(names, " → ")
}

func (m *module) loadError(pos syntax.Position, format string, args ...any) error {
	return &LoadError{m.loaded, &positioned{pos, fmt.Errorf(format, args...)}}
}

// positioned is an error in a file that no call led to.
type positioned struct {
	pos syntax.Position
	err error
}

func (e *positioned) Error() string { return e.pos.String() + ": " + e.err.Error() }
func (e *positioned) Unwrap() error { return e.err }

// run runs all modules, the entry file last. A file that is loaded, and one
// with main, may not act while it runs.
func (l *loader) run(task *builtins.Task) error { return l.runFrom(task, 0) }

// runFrom runs the modules from the nth in order on.
func (l *loader) runFrom(task *builtins.Task, n int) error {
	for _, m := range l.order[n:] {
		thread := builtins.Thread{Name: m.name, Load: func(_ *starlark.Thread, name string) (starlark.StringDict, error) {
			return m.loads[name].values, nil
		}}
		if !m.isEntry() {
			thread.Declaring = "a module"
		} else if m.hasMain {
			thread.Declaring = "a file with main"
		}
		err := task.Exec(thread, func(thread *starlark.Thread) (err error) {
			m.values, err = m.program.Init(thread, l.predeclared(m))
			m.values.Freeze()
			return err
		})
		if err != nil {
			if thread.Declaring == "" || task.Ctx.Err() != nil || isExit(err) {
				return err
			}
			return &LoadError{m.loaded, err}
		}
	}
	return nil
}

// forget makes as if the modules from the nth in order on, and what did not
// compile, had not been loaded.
func (l *loader) forget(n int) {
	l.order = l.order[:n]
	maps.DeleteFunc(l.modules, func(_ string, m *module) bool { return !slices.Contains(l.order, m) })
}

// docstring is the string that a file begins with, or "".
func docstring(file *syntax.File) string {
	if len(file.Stmts) > 0 {
		if stmt, ok := file.Stmts[0].(*syntax.ExprStmt); ok {
			if literal, ok := stmt.X.(*syntax.Literal); ok && literal.Token == syntax.STRING {
				return literal.Value.(string)
			}
		}
	}
	return ""
}

// badSignature is a main that no flags can be made of.
func badSignature(pos syntax.Position, format string, args ...any) error {
	return &LoadError{Err: &positioned{pos, fmt.Errorf(format, args...)}}
}
