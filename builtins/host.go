package builtins

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"unicode/utf8"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// This file defines host: the machine that the workflow runs on. Only the entry
// file gets it; a module has it if it is handed over.

func newHost() *namespace {
	cwd, err := os.Getwd()
	if err != nil {
		cwd = "." // it was deleted: whatever uses it will say so
	}
	return &namespace{name: "host", members: starlark.StringDict{
		"path":      builtin("host.path", newHostPath),
		"read":      builtin("host.read", hostRead),
		"read_text": builtin("host.read_text", hostReadText),
		"write":     builtin("host.write", hostWrite),
		"glob":      builtin("host.glob", hostGlob),
		"exists":    builtin("host.exists", hostExists),
		"run":       builtin("host.run", hostRun),
		"env":       builtin("host.env", hostEnv),
		"secret":    builtin("host.secret", hostSecret),
		"cwd":       starlark.String(cwd),
		"os":        starlark.String(runtime.GOOS),
		"cpus":      starlark.MakeInt(runtime.NumCPU()),
	}}
}

// hostPath is a path on this machine. Only host makes one, and so whoever has
// one was given it by somebody who has host.
type hostPath struct {
	path  string // absolute
	given string // as the workflow wrote it
}

var (
	_ starlark.HasAttrs   = hostPath{}
	_ starlark.Comparable = hostPath{}
)

func (p hostPath) Type() string          { return "host_path" }
func (p hostPath) String() string        { return fmt.Sprintf("host.path(%q)", p.path) }
func (p hostPath) Freeze()               {}
func (p hostPath) Truth() starlark.Bool  { return true }
func (p hostPath) Hash() (uint32, error) { return starlark.String(p.path).Hash() }
func (p hostPath) AttrNames() []string   { return []string{"name", "path"} }
func (p hostPath) Attr(name string) (starlark.Value, error) {
	switch name {
	case "name":
		return starlark.String(filepath.Base(p.path)), nil
	case "path":
		return starlark.String(p.path), nil
	}
	return nil, noAttr("host_path", name, p.AttrNames())
}

func (p hostPath) CompareSameType(op syntax.Token, other starlark.Value, depth int) (bool, error) {
	return starlark.CompareDepth(op, starlark.String(p.path), starlark.String(other.(hostPath).path), depth)
}

// Unpack takes the value that host.path makes.
func (p *hostPath) Unpack(v starlark.Value) error {
	path, ok := v.(hostPath)
	if !ok {
		return fmt.Errorf("got %s, want a path on this machine, as in host.path(\"src\")", v.Type())
	}
	*p = path
	return nil
}

// beside is the path, relative to the folder of the workflow's file that calls.
func (p hostPath) beside(t *Task) string {
	file := t.position().Filename()
	if _, err := os.Stat(file); err != nil || filepath.IsAbs(p.given) { // or code of the command line, or a session
		return p.path
	}
	return filepath.Join(filepath.Dir(file), p.given)
}

// hostFile is a path on this machine, as a string or as host.path makes it.
type hostFile string

func (f *hostFile) Unpack(v starlark.Value) error {
	switch v := v.(type) {
	case hostPath:
		*f = hostFile(v.path)
	case starlark.String:
		*f = hostFile(v)
	default:
		return fmt.Errorf("got %s, want a path", v.Type())
	}
	if *f == "" || strings.ContainsRune(string(*f), 0) {
		return fmt.Errorf("%s cannot be a path", v)
	}
	return nil
}

func newHostPath(c *invocation) (starlark.Value, error) {
	var file hostFile
	if err := c.unpack(&file); err != nil {
		return nil, err
	}
	absolute, err := filepath.Abs(string(file))
	if err != nil {
		return nil, c.argumentError("%s has no place: %w", file, err)
	}
	return hostPath{absolute, string(file)}, nil
}

func hostRead(c *invocation) (starlark.Value, error) {
	content, _, err := c.readHostFile()
	return starlark.Bytes(content), err
}

func hostReadText(c *invocation) (starlark.Value, error) {
	content, path, err := c.readHostFile()
	if err == nil && !utf8.Valid(content) {
		err = c.argumentError("%s is not UTF-8 text; read its bytes with host.read", path)
	}
	return starlark.String(content), err
}

func (c *invocation) readHostFile() (content []byte, path hostFile, err error) {
	if err := c.unpack(&path); err != nil {
		return nil, "", err
	}
	content, err = os.ReadFile(string(path))
	return content, path, err
}

func hostWrite(c *invocation) (starlark.Value, error) {
	var file hostFile
	var content data
	if err := c.unpack(&file, &content); err != nil {
		return nil, err
	}
	if err := c.mayAct(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(string(file)), 0o777); err != nil {
		return nil, err
	}
	return starlark.None, os.WriteFile(string(file), content, 0o666)
}

func hostExists(c *invocation) (starlark.Value, error) {
	var file hostFile
	if err := c.unpack(&file); err != nil {
		return nil, err
	}
	_, err := os.Lstat(string(file))
	if errors.Is(err, fs.ErrNotExist) {
		return starlark.False, nil
	}
	return starlark.Bool(err == nil), err
}

func hostGlob(c *invocation) (starlark.Value, error) {
	var given hostFile
	if err := c.unpack(&given); err != nil {
		return nil, err
	}
	dir, parts := "", strings.Split(path.Clean(filepath.ToSlash(string(given))), "/")
	for _, part := range parts {
		if _, err := path.Match(part, ""); err != nil {
			return nil, c.argumentError("parameter pattern: %q: %w", part, err)
		}
	}
	for len(parts) > 0 && !strings.ContainsAny(parts[0], `*?[\`) { // no need to look for these
		dir, parts = dir+parts[0]+"/", parts[1:]
	}
	if len(parts) == 0 {
		parts, dir = []string{path.Base(dir)}, strings.TrimSuffix(dir, path.Base(dir)+"/")
	}
	found, err := c.globIn(dir, parts)
	if err != nil {
		return nil, err
	}
	slices.Sort(found)
	list := starlark.NewList(nil)
	for _, name := range slices.Compact(found) {
		list.Append(starlark.String(filepath.FromSlash(name)))
	}
	return list, nil
}

// globIn finds what matches the parts of a pattern below dir, which is empty or
// ends with a slash. Names that begin with a dot are matched like any other,
// and folders that cannot be read have nothing in them.
func (c *invocation) globIn(dir string, parts []string) (found []string, err error) {
	if err := c.cancelled(); err != nil {
		return nil, err
	}
	entries, _ := os.ReadDir(filepath.FromSlash(dir + "."))
	part, rest := parts[0], parts[1:]
	if part == "**" && len(rest) > 0 { // no folder at all
		if found, err = c.globIn(dir, rest); err != nil {
			return nil, err
		}
	}
	for _, entry := range entries {
		name := dir + entry.Name()
		matches, _ := path.Match(part, entry.Name())
		if part == "**" {
			matches = len(rest) == 0
			if entry.IsDir() { // links are not followed: they may lead in circles
				below, err := c.globIn(name+"/", parts)
				if err != nil {
					return nil, err
				}
				found = append(found, below...)
			}
		}
		switch {
		case part != "**" && matches && len(rest) > 0:
			below, err := c.globIn(name+"/", rest)
			if err != nil {
				return nil, err
			}
			found = append(found, below...)
		case matches:
			found = append(found, name)
		}
	}
	return found, nil
}

func hostEnv(c *invocation) (starlark.Value, error) {
	var name string
	var otherwise starlark.Value
	if err := c.unpack(&name, &otherwise); err != nil {
		return nil, err
	}
	if value, ok := c.lookupEnv(name); ok {
		return starlark.String(value), nil
	}
	return otherwise, nil
}

func (c *invocation) lookupEnv(name string) (value string, ok bool) {
	if env := c.Run.options.Env; env != nil {
		return env(name)
	}
	return "", false
}

func hostSecret(c *invocation) (starlark.Value, error) {
	var name hostFile
	if err := c.unpack(&name); err != nil {
		return nil, err
	}
	value, ok := c.lookupEnv(string(name))
	if !ok {
		content, err := os.ReadFile(string(name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, c.argumentError("there is no environment variable %s, and no file of this name; set the variable", name)
		case err != nil:
			return nil, err
		case !utf8.Valid(content):
			return nil, c.argumentError("the file %s is not UTF-8 text, and cannot be masked", name)
		}
		value = strings.TrimRight(string(content), "\r\n")
	}
	if len(value) < shortestSecret {
		return nil, c.argumentError("the value of %s has less than %d bytes, and so cannot be masked without garbling everything; read what is no secret with host.env or host.read", name, shortestSecret)
	}
	c.Run.mask.Add(value)
	return starlark.String(value), nil
}
