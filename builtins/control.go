package builtins

import (
	"context"
	"errors"
	"strings"
	"time"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
)

// This file defines what stands in place of with, try and raise: using, defer,
// attempt, fail, exit; and sleep.

// A scoped value is one that a scope may release.
type scoped interface {
	starlark.Value
	held() *entry // nil if no scope releases it
}

func using(c *invocation) (starlark.Value, error) {
	var value starlark.Value
	var fn starlark.Callable
	if err := c.unpack(&value, &fn); err != nil {
		return nil, err
	}
	if err := c.mayAct(); err != nil {
		return nil, err
	}
	resource, ok := value.(scoped)
	if !ok {
		return nil, c.argumentError("parameter value: got %s, want something that is released, such as a sandbox", value.Type())
	}
	outer, inner := c.Task.scope, &Scope{run: c.Run}
	if !c.Run.move(resource.held(), inner) {
		return nil, c.argumentError("parameter value: %s is not released by any scope, because it was kept, looked up or deleted", value)
	}
	t := c.Task
	t.scope = inner
	defer func() {
		t.scope = outer
		inner.moveAll(outer) // there is something after a panic only
	}()
	result, err := call(t, fn, starlark.Tuple{value}, nil)
	released := t.Release(false)
	if released == nil {
		return result, err
	}
	return nil, errors.Join(err, released)
}

func deferCall(c *invocation) (starlark.Value, error) {
	var fn starlark.Callable
	var args starlark.Tuple
	var kwargs []starlark.Tuple
	if err := c.unpack(&fn, &args, &kwargs); err != nil {
		return nil, err
	}
	if err := c.mayAct(); err != nil {
		return nil, err
	}
	t, scope := c.Task, c.scope
	what := "deferred " + fn.Name()
	t.push(&entry{kind: what, release: func(ctx context.Context) error {
		sub := *t
		sub.Ctx, sub.scope, sub.releasing = ctx, scope, true
		return t.exec(&sub, Thread{Name: what}, func(thread *starlark.Thread) error {
			_, err := starlark.Call(thread, fn, args, kwargs)
			return err
		})
	}})
	return starlark.None, nil
}

func attempt(c *invocation) (starlark.Value, error) {
	var fn starlark.Callable
	var args starlark.Tuple
	var kwargs []starlark.Tuple
	if err := c.unpack(&fn, &args, &kwargs); err != nil {
		return nil, err
	}
	value, err := call(c.Task, fn, args, kwargs)
	caught := starlark.Value(starlark.None)
	if err != nil {
		if c.uncatchable(err) {
			return nil, err
		}
		value, caught = starlark.None, newErrorValue(err)
	}
	return starlarkstruct.FromStringDict(starlarkstruct.Default, starlark.StringDict{
		"ok": starlark.Bool(err == nil), "value": value, "error": caught,
	}), nil
}

func fail(c *invocation) (starlark.Value, error) {
	var args starlark.Tuple
	if err := c.unpack(&args); err != nil {
		return nil, err
	}
	if len(args) == 1 {
		if e, ok := args[0].(*errorValue); ok {
			return nil, e.caught
		}
	}
	return nil, errors.New(joinText(args, " "))
}

// joinText is the arguments as print shows them.
func joinText(args starlark.Tuple, sep string) string {
	texts := make([]string, len(args))
	for i, arg := range args {
		switch arg := arg.(type) {
		case starlark.String:
			texts[i] = string(arg)
		case starlark.Bytes:
			texts[i] = string(arg)
		default:
			texts[i] = arg.String()
		}
	}
	return strings.Join(texts, sep)
}

func exit(c *invocation) (starlark.Value, error) {
	var code int
	if err := c.unpack(&code); err != nil {
		return nil, err
	}
	if code < 0 || code > 255 {
		return nil, c.argumentError("parameter code: got %d, want 0 to 255", code)
	}
	return nil, &ExitError{code}
}

func sleep(c *invocation) (starlark.Value, error) {
	var d seconds
	if err := c.unpack(&d); err != nil {
		return nil, err
	}
	timer := time.NewTimer(time.Duration(d))
	defer timer.Stop()
	select {
	case <-timer.C:
		return starlark.None, nil
	case <-c.Ctx.Done():
		return nil, c.cancelled()
	}
}

// within gives f a deadline of its own, and names it in the error when it has
// passed. No seconds are no deadline.
func (c *invocation) within(limit seconds, f func(context.Context) error, expired func() error) error {
	ctx, d := c.Ctx, time.Duration(limit)
	if d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	err := f(ctx)
	if err != nil && ctx.Err() != nil && c.cancelled() == nil {
		return expired()
	}
	return err
}
