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
	var path string
	if err := c.unpack(&path); err != nil {
		return nil, err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return starlark.Bytes(content), nil
}

func hostReadText(c *invocation) (starlark.Value, error) {
	var path string
	if err := c.unpack(&path); err != nil {
		return nil, err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if !utf8.Valid(content) {
		return nil, c.argumentError("%s is not UTF-8 text; read its bytes with host.read", path)
	}
	return starlark.String(content), nil
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
