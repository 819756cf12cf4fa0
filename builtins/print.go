package builtins

import (
	"bytes"
	"fmt"

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
	return starlark.None, c.strand.print(joinText(args, sep) + end)
}

// maxHeld is how long a line may be that a task holds back.
const maxHeld = 64 << 10

// print writes text to stdout. A task holds back the line that has not ended
// yet, so that others cannot print within it.
func (s *strand) print(text string) error {
	if !s.inTask {
		return s.run.write([]byte(text))
	}
	s.printed = append(s.printed, text...)
	whole := bytes.LastIndexByte(s.printed, '\n') + 1
	if len(s.printed)-whole > maxHeld {
		whole = len(s.printed)
	}
	if whole == 0 {
		return nil
	}
	err := s.run.write(s.printed[:whole])
	s.printed = append(s.printed[:0], s.printed[whole:]...)
	return err
}

// flush writes what the strand holds back, as a line.
func (s *strand) flush() error {
	if len(s.printed) == 0 {
		return nil
	}
	err := s.run.write(append(s.printed, '\n'))
	s.printed = s.printed[:0]
	return err
}

func (r *Run) write(text []byte) error {
	r.out.Lock()
	defer r.out.Unlock()
	if _, err := r.options.Stdout.Write(text); err != nil {
		return fmt.Errorf("cannot write to stdout: %w", err)
	}
	return nil
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
		e := event.Log{Place: c.place(), Level: level, Text: joinText(starlark.Tuple{message}, "")}
		for _, field := range fields {
			e.Fields = append(e.Fields, event.Field{Name: string(field[0].(starlark.String)), Value: joinText(field[1:], "")})
		}
		c.Run.options.Events.Emit(e)
		return starlark.None, nil
	}
}
