package builtins

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"

	"github.com/sbx-star/sbx-star/event"
)

// This file defines what stands in place of with, try and raise: using, defer,
// attempt, retry, fail, exit; and sleep.

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
	outer, inner := c.Task.scope, newScope(c.Ctx, c.Run)
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
	err = t.Join(err)
	released := t.Release(false)
	if released != nil {
		err = errors.Join(err, released)
	}
	if err != nil {
		return nil, err
	}
	return result, nil
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
		sub.Ctx, sub.scope, sub.releasing, sub.name = ctx, scope, true, what
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

func retry(c *invocation) (starlark.Value, error) {
	var fn starlark.Callable
	var attempts int
	var backoff seconds
	var on optional[errorTypes]
	if err := c.unpack(&fn, &attempts, &backoff, &on); err != nil {
		return nil, err
	}
	if attempts < 1 {
		return nil, c.argumentError("parameter attempts: got %d, want 1 or more", attempts)
	}
	wait := time.Duration(backoff)
	for n := 1; ; n++ {
		value, err := call(c.Task, fn, nil, nil)
		if err == nil {
			return value, nil
		}
		caught := newErrorValue(err)
		if n == attempts || c.uncatchable(err) || on.ptr != nil && !slices.ContainsFunc(*on.ptr, func(t *errorType) bool { return t.is(caught.err) }) {
			return nil, err
		}
		c.Run.options.Events.Emit(event.Warning{Text: fmt.Sprintf("%s failed, attempt %d of %d; again in %v: %s: %s",
			fn.Name(), n, attempts, wait, caught.typeName(), shorten(caught.err.Error()))})
		if err := c.pause(wait); err != nil {
			return nil, err
		}
		wait = min(2*wait, maxBackoff)
	}
}

// maxBackoff is the longest that retry waits between two attempts.
const maxBackoff = 5 * time.Minute

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
	return starlark.None, c.pause(time.Duration(d))
}

// pause waits, unless the task is cancelled.
func (t *Task) pause(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-t.Ctx.Done():
		return t.cancelled()
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
