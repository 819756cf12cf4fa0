package builtins

import (
	"os"
	"unicode/utf8"

	"go.starlark.net/starlark"
)

// This file defines host: the machine that the workflow runs on. Only the entry
// file gets it; a module has it if it is handed over.

func newHost() *namespace {
	return &namespace{name: "host", members: starlark.StringDict{
		"read":      builtin("host.read", hostRead),
		"read_text": builtin("host.read_text", hostReadText),
		"env":       builtin("host.env", hostEnv),
	}}
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

func (c *invocation) readHostFile() (content []byte, path string, err error) {
	if err := c.unpack(&path); err != nil {
		return nil, "", err
	}
	content, err = os.ReadFile(path)
	return content, path, err
}

func hostEnv(c *invocation) (starlark.Value, error) {
	var name string
	var otherwise starlark.Value
	if err := c.unpack(&name, &otherwise); err != nil {
		return nil, err
	}
	if env := c.Run.options.Env; env != nil {
		if value, ok := env(name); ok {
			return starlark.String(value), nil
		}
	}
	return otherwise, nil
}
