package builtins

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"go.starlark.net/starlark"
)

// This file defines parallel, and what it has in common with spawn.

const (
	// maxParallel is how many items run at the same time in all calls of
	// parallel together. One that waits for a parallel of its own does not
	// count, and so the innermost always go on.
	maxParallel = 64

	maxDepth = 100 // of tasks that start tasks
)

// TaskError is the failure of a task.
type TaskError struct {
	Task  string // "main > parallel[3]"
	Index int    // of its item, or -1 if it was spawned
	Err   error
}

func (e *TaskError) Error() string { return e.Task + ": " + e.Err.Error() }
func (e *TaskError) Unwrap() error { return e.Err }

// CancelledError is a task that was cancelled, or what it did meanwhile.
type CancelledError struct{ Why string }

func (e *CancelledError) Error() string        { return e.Why }
func (e *CancelledError) Is(target error) bool { return target == context.Canceled }

func parallel(c *invocation) (starlark.Value, error) {
	var fn starlark.Callable
	var items starlark.Iterable
	var limit int
	if err := c.unpack(&fn, &items, &limit); err != nil {
		return nil, err
	}
	if limit < 1 || limit > maxParallel {
		return nil, c.argumentError("parameter limit: got %d, want 1 to %d", limit, maxParallel)
	}
	if err := c.mayStartTasks(); err != nil {
		return nil, err
	}
	b := &batch{parent: c.Task, fn: fn, items: slices.Collect(starlark.Elements(items))}
	if c.strand.failure != nil {
		return nil, c.strand.failure
	}
	fn.Freeze()
	starlark.Tuple(b.items).Freeze()
	b.results = make([]starlark.Value, len(b.items))
	b.ctx, b.cancel = context.WithCancelCause(c.Ctx)
	defer b.cancel(nil)

	c.strand.yield()
	var workers sync.WaitGroup
	for range min(limit, len(b.items)) {
		workers.Go(b.work)
	}
	workers.Wait()
	c.strand.regain(c.Ctx)
	if err := b.failure(c.cancelled()); err != nil {
		return nil, err
	}
	return starlark.NewList(b.results), nil
}

// A batch is one call of parallel.
type batch struct {
	parent *Task
	fn     starlark.Callable
	items  []starlark.Value
	ctx    context.Context
	cancel context.CancelCauseFunc
	next   atomic.Int64

	results []starlark.Value // each is written by who runs its item

	mu     sync.Mutex
	failed []*TaskError
}

// work runs items until there are no more, or one has failed.
func (b *batch) work() {
	s := &strand{run: b.parent.Run, inTask: true, limited: true}
	defer s.enter()()
	for {
		i := int(b.next.Add(1)) - 1
		if i >= len(b.items) || !s.regain(b.ctx) {
			return
		}
		b.run(s, i)
		s.yield()
	}
}

func (b *batch) run(s *strand, i int) {
	t := b.parent.child(b.ctx, s, fmt.Sprintf("parallel[%d]", i))
	t.waiting = b.parent
	v, err := t.perform(b.fn, starlark.Tuple{b.items[i]}, nil)
	b.results[i] = v
	if err == nil || t.stopped(err) {
		return
	}
	b.mu.Lock()
	b.failed = append(b.failed, &TaskError{t.name, i, err})
	b.mu.Unlock()
	b.cancel(&CancelledError{"cancelled, because " + t.name + " failed"})
}

// failure is what became of the items, in their order: an exit first, because
// that is what it is for. Cancelled is why the caller itself has to end, or nil.
func (b *batch) failure(cancelled error) error {
	slices.SortFunc(b.failed, func(x, y *TaskError) int {
		if xs, ys := as[*ExitError](x), as[*ExitError](y); xs != ys {
			return map[bool]int{true: -1, false: 1}[xs]
		}
		return x.Index - y.Index
	})
	var all []error
	if cancelled != nil {
		all = append(all, cancelled)
	}
	for _, e := range b.failed {
		all = append(all, e)
	}
	return errors.Join(all...)
}

// mayStartTasks tells why the caller cannot: names that can still change would
// be changed and read at the same time.
func (c *invocation) mayStartTasks() error {
	if err := c.mayAct(); err != nil {
		return err
	}
	if c.depth >= maxDepth {
		return fmt.Errorf("%s: tasks are nested too deep: this is task %d in one another", c.name, c.depth)
	}
	if outermost := c.thread.CallFrame(c.thread.CallStackDepth() - 1).Name; outermost != "<toplevel>" && outermost != "<expr>" {
		return nil
	}
	if c.freeze == nil {
		return &hinted{fmt.Errorf("%s cannot be called while the file's top level runs, because its variables can still change", c.name),
			"put the work into def main(): and call " + c.name + " there"}
	}
	c.freeze()
	return nil
}

// child is a task that the task starts on another strand.
func (t *Task) child(ctx context.Context, s *strand, name string) *Task {
	if t.name != "" {
		name = t.name + " > " + name
	}
	return &Task{Run: t.Run, Ctx: ctx, name: name, scope: t.scope, releasing: t.releasing, freeze: t.freeze, strand: s, depth: t.depth + 1}
}

// perform calls a function as the task, on the goroutine of its strand.
func (t *Task) perform(fn starlark.Callable, args starlark.Tuple, kwargs []starlark.Tuple) (v starlark.Value, err error) {
	err = t.exec(t, Thread{Name: t.name}, func(thread *starlark.Thread) (err error) {
		v, err = starlark.Call(thread, fn, args, kwargs)
		return err
	})
	if flushed := t.strand.flush(); flushed != nil {
		err = errors.Join(err, flushed)
	}
	return v, err
}

// stopped tells whether an error says no more than that the task was cancelled.
func (t *Task) stopped(err error) bool {
	cause := t.cancelled()
	if cause == nil {
		return false
	}
	return !slices.ContainsFunc(Reports(err), func(r Report) bool {
		return !errors.Is(r.Err, cause) && !errors.Is(r.Err, context.Canceled)
	})
}

// yield gives the strand's slot to others while it waits for them.
func (s *strand) yield() {
	if s.slot {
		s.slot = false
		<-s.run.slots
	}
}

// regain takes a slot. It reports false if the context has ended first.
func (s *strand) regain(ctx context.Context) bool {
	if ctx.Err() != nil {
		return false
	}
	if !s.limited {
		return true
	}
	select {
	case s.run.slots <- struct{}{}:
		s.slot = true
		return true
	case <-ctx.Done():
		return false
	}
}
