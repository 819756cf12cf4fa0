package builtins

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/event"
)

// This file defines spawn, the tasks that come of it, and how a scope ends its
// tasks.

// task is a function that runs beside the others. Its scope owns it.
type task struct {
	name   string
	stack  starlark.CallStack // where it was started
	cancel context.CancelCauseFunc
	ended  chan struct{}

	// Before ended is closed these are the task's own.
	value   starlark.Value
	err     error
	stopped bool // err is no more than that it was cancelled

	mu     sync.Mutex // guards what follows
	shared bool       // several tasks have it, and so its value has to be frozen
	asked  bool       // somebody has seen the failure, or wanted it to end
}

var _ starlark.HasAttrs = (*task)(nil)

func (t *task) Type() string          { return "task" }
func (t *task) Truth() starlark.Bool  { return true }
func (t *task) Hash() (uint32, error) { return starlark.String(t.name).Hash() }
func (t *task) AttrNames() []string   { return taskAttributes.names(nil) }
func (t *task) String() string {
	state := "running"
	if t.isDone() {
		state = "done"
		if t.err != nil {
			state = "failed"
		}
	}
	return fmt.Sprintf("task(%q, %s)", t.name, state)
}

func (t *task) Attr(name string) (starlark.Value, error) { return taskAttributes.attr(t, nil, name) }

func (t *task) Freeze() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shared = true
	if t.isDone() && t.value != nil {
		t.value.Freeze()
	}
}

func (t *task) isDone() bool {
	select {
	case <-t.ended:
		return true
	default:
		return false
	}
}

var taskAttributes = attributes[*task]{
	fields: map[string]func(*task) (starlark.Value, error){
		"done": func(t *task) (starlark.Value, error) { return starlark.Bool(t.isDone()), nil },
	},
	methods: map[string]*starlark.Builtin{
		"result": builtin("Task.result", taskResult),
		"cancel": builtin("Task.cancel", taskCancel),
	},
}

func spawn(c *invocation) (starlark.Value, error) {
	var fn starlark.Callable
	var args starlark.Tuple
	var kwargs []starlark.Tuple
	if err := c.unpack(&fn, &args, &kwargs); err != nil {
		return nil, err
	}
	if err := c.mayStartTasks(); err != nil {
		return nil, err
	}
	if c.releasing {
		return nil, errors.New("spawn cannot be called while a scope is released, because nothing would wait for the task; parallel can")
	}
	if err := c.mayShare(append(starlark.Tuple{fn}, args...), kwargs); err != nil {
		return nil, err
	}
	fn.Freeze()
	args.Freeze()
	for _, kwarg := range kwargs {
		kwarg.Freeze()
	}
	ctx, cancel := context.WithCancelCause(c.scope.ctx)
	child := c.child(ctx, &strand{run: c.Run, inTask: true}, fmt.Sprintf("spawn(%s)", fn.Name()))
	t := &task{name: child.name, stack: c.thread.CallStack(), cancel: cancel, ended: make(chan struct{})}
	s := c.scope
	c.Run.mu.Lock()
	s.tasks = append(s.tasks, t)
	c.Run.mu.Unlock()
	go func() { // Join waits for it
		defer cancel(nil)
		value, err := child.perform(fn, args, kwargs)
		stopped := err != nil && child.stopped(err)
		if stopped {
			err = child.cancelled()
		}
		t.end(value, err, stopped)
		s.noteEnd(t)
	}()
	return t, nil
}

// end keeps what came of the task.
func (t *task) end(value starlark.Value, err error, stopped bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.value, t.err, t.stopped = value, err, stopped
	if t.shared && value != nil {
		value.Freeze()
	}
	close(t.ended)
}

// noteEnd tells the scope that a task has ended, and forgets it if that was
// well.
func (s *Scope) noteEnd(t *task) {
	s.run.mu.Lock()
	defer s.run.mu.Unlock()
	if t.err == nil {
		s.tasks = slices.DeleteFunc(s.tasks, func(x *task) bool { return x == t })
	}
	select {
	case s.ended <- struct{}{}:
	default: // it will look anyway
	}
}

// wait waits for the task's end, which the caller has asked for.
func (t *task) wait(c *invocation) error {
	c.strand.yield()
	defer c.strand.regain(c.Ctx)
	select {
	case <-t.ended:
	case <-c.Ctx.Done():
		return c.cancelled()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked = true
	return nil
}

func taskResult(c *invocation) (starlark.Value, error) {
	if err := c.unpack(); err != nil {
		return nil, err
	}
	t := c.self.(*task)
	if err := t.wait(c); err != nil {
		return nil, err
	}
	if cancelled, ok := t.err.(*CancelledError); ok {
		return nil, cancelled // which names the task
	}
	if t.err != nil {
		return nil, &TaskError{t.name, -1, t.err}
	}
	return t.value, nil
}

func taskCancel(c *invocation) (starlark.Value, error) {
	if err := c.unpack(); err != nil {
		return nil, err
	}
	t := c.self.(*task)
	if t.isDone() {
		return starlark.None, nil // a failure before is one
	}
	t.cancel(&CancelledError{"task " + t.name + " was cancelled"})
	return starlark.None, t.wait(c)
}

// tellAfter is how long the end of a scope waits for tasks in silence.
const tellAfter = 5 * time.Second

// Join ends the tasks of the innermost scope, which has come to err. If that is
// nil it waits for them, and else it cancels them, also once one has failed that
// nobody asked. It returns err, joined with such failures.
func (t *Task) Join(err error) error {
	s := t.scope
	cause := error(&CancelledError{"cancelled, because the scope that started it has ended"})
	tell := time.NewTimer(tellAfter)
	defer tell.Stop()
	for {
		running, failed := s.takeEnded()
		for _, task := range failed {
			if task.stopped {
				if err == nil {
					err = t.cancelled() // if it was for this
				}
				continue
			}
			err = errors.Join(err, &StreamError{&TaskError{task.name, -1, task.err}, task.stack})
			cause = &CancelledError{"cancelled, because " + task.name + " failed"}
		}
		if len(running) == 0 {
			return err
		}
		if err != nil {
			for _, task := range running {
				task.cancel(cause)
			}
		}
		select {
		case <-s.ended: // the context's end, too, comes to this
		case <-tell.C:
			names := make([]string, len(running))
			for i, task := range running {
				names[i] = task.name
			}
			t.Run.options.Events.Emit(event.Warning{Text: "waiting for tasks that have not ended: " + strings.Join(names, ", ")})
		}
	}
}

// Busy reports whether tasks of the innermost scope still run.
func (t *Task) Busy() bool {
	t.Run.mu.Lock()
	defer t.Run.mu.Unlock()
	return slices.ContainsFunc(t.scope.tasks, func(task *task) bool { return !task.isDone() })
}

// CancelTasks cancels the tasks of the innermost scope. It does not wait for
// them.
func (t *Task) CancelTasks(cause error) {
	t.Run.mu.Lock()
	defer t.Run.mu.Unlock()
	for _, task := range t.scope.tasks {
		task.cancel(cause)
	}
}

// takeEnded forgets the tasks that have ended, and returns the others and those
// that failed without anybody asking.
func (s *Scope) takeEnded() (running, failed []*task) {
	s.run.mu.Lock()
	defer s.run.mu.Unlock()
	for _, task := range s.tasks {
		if !task.isDone() {
			running = append(running, task)
			continue
		}
		task.mu.Lock()
		if task.err != nil && !task.asked {
			failed = append(failed, task)
		}
		task.mu.Unlock()
	}
	s.tasks = running
	return slices.Clone(running), failed
}
