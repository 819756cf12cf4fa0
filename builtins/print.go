package builtins

import (
	"fmt"
	"io"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/event"
)

// This file defines what a workflow says: print, on stdout, and log, as events.

func print(c *invocation) (starlark.Value, error) {
	var sep, end string
	var args starlark.Tuple
	if err := c.unpack(&sep, &end, &args); err != nil {
		return nil, err
	}
	c.Run.out.Lock()
	defer c.Run.out.Unlock()
	if _, err := io.WriteString(c.Run.options.Stdout, joinText(args, sep)+end); err != nil {
		return nil, fmt.Errorf("cannot write to stdout: %w", err)
	}
	return starlark.None, nil
}

func newLog() *namespace {
	return &namespace{name: "log", members: starlark.StringDict{
		"info":  builtin("log.info", logAt("info")),
		"warn":  builtin("log.warn", logAt("warn")),
		"error": builtin("log.error", logAt("error")),
	}}
}

func logAt(level string) builtinFunc {
	return func(c *invocation) (starlark.Value, error) {
		var message starlark.Value
		var fields []starlark.Tuple
		if err := c.unpack(&message, &fields); err != nil {
			return nil, err
		}
		e := event.Log{Level: level, Text: joinText(starlark.Tuple{message}, "")}
		for _, field := range fields {
			e.Fields = append(e.Fields, event.Field{Name: string(field[0].(starlark.String)), Value: joinText(field[1:], "")})
		}
		c.Run.options.Events.Emit(e)
		return starlark.None, nil
	}
}
