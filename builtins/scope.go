package builtins

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/event"
)

// This file defines scopes: what is released when something ends.

// releaseTime is what releasing a scope may take altogether.
const releaseTime = 60 * time.Second

// errAbandoned is why releasing ended when the user would not wait for it.
var errAbandoned = errors.New("releasing was interrupted")

// Leftover is something that a run created and could not release.
type Leftover struct {
	Kind, Name string // "sandbox", "web-1"
	Endpoint   string // of the server that has it, if that is not the run's own
	Err        error
}

// Delete is what a workflow has to say to delete it.
func (l Leftover) Delete() string { return l.say("delete") }

// Reach is what it has to say to get at it.
func (l Leftover) Reach() string { return l.say("get") }

func (l Leftover) say(verb string) string {
	call := fmt.Sprintf("%s.%s(%q)", l.Kind, verb, l.Name)
	if l.Endpoint != "" {
		call = fmt.Sprintf("client(%q).%s", l.Endpoint, call)
	}
	return call
}

// Scope is a stack of releases, and the tasks that were spawned in it. The
// run's mutex guards it.
type Scope struct {
	run     *Run
	ctx     context.Context // of its tasks
	entries []*entry
	tasks   []*task       // in the order in which they were started
	ended   chan struct{} // holds something if one of them has ended
}

func newScope(ctx context.Context, run *Run) *Scope {
	return &Scope{run: run, ctx: ctx, ended: make(chan struct{}, 1)}
}

// entry undoes one thing.
type entry struct {
	scope   *Scope         // nil once it is released or dropped
	kind    string         // "sandbox", "template", "deferred cleanup"
	name    func() string  // of a resource, as it is called now; nil for others
	on      *client.Client // of a resource: the connection that it was made over
	quiet   bool           // a connection: closed in any case, also with --keep
	early   bool           // a handle on something: may be released before what came later
	release func(context.Context) error
	life    *life // of a resource, see life.hold; nil for others
}

// push adds a release to the task's innermost scope.
func (t *Task) push(e *entry) *entry {
	t.Run.mu.Lock()
	defer t.Run.mu.Unlock()
	t.scope.add(e)
	return e
}

func (s *Scope) add(e *entry) {
	e.scope = s
	s.entries = append(s.entries, e)
}

func (s *Scope) remove(e *entry) {
	e.scope = nil
	s.entries = slices.DeleteFunc(s.entries, func(x *entry) bool { return x == e })
}

// drop forgets a release: there is nothing left to undo. It may be called
// again, and for no entry at all.
func (r *Run) drop(e *entry) {
	if e == nil {
		return
	}
	r.mu.Lock()
	if e.scope != nil {
		e.scope.remove(e)
	}
	r.mu.Unlock()
	e.life.gone()
}

// move makes s the scope that releases e. It reports false if e is released or
// dropped already, or nil.
func (r *Run) move(e *entry, s *Scope) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e == nil || e.scope == nil {
		return false
	}
	e.scope.remove(e)
	s.add(e)
	return true
}

// moveAll is move for all of s, in the same order.
func (s *Scope) moveAll(to *Scope) {
	s.run.mu.Lock()
	defer s.run.mu.Unlock()
	for _, e := range s.entries {
		to.add(e)
	}
	s.entries = nil
}

// pop takes what is to be released next: one entry, or the sandboxes that
// nothing came between, which do not depend on each other. Handles that came
// between are taken with them, to be released first.
func (s *Scope) pop() (handles, together []*entry) {
	s.run.mu.Lock()
	defer s.run.mu.Unlock()
	for len(s.entries) > 0 {
		e := s.entries[len(s.entries)-1]
		switch {
		case e.early:
			handles = append(handles, e)
		case len(together) == 0, e.kind == "sandbox" && together[0].kind == "sandbox" && len(together) < releaseLimit:
			together = append(together, e)
		default:
			return handles, together
		}
		s.remove(e)
	}
	return handles, together
}

// Held describes the resources that the task's scope will release, in the order
// in which they were acquired, as in `sandbox "web-1"`.
func (t *Task) Held() (all []string) {
	t.Run.mu.Lock()
	defer t.Run.mu.Unlock()
	for _, e := range t.scope.entries {
		switch {
		case e.name != nil:
			all = append(all, fmt.Sprintf("%s %q", e.kind, e.name()))
		case !e.quiet:
			all = append(all, e.kind)
		}
	}
	return all
}

// releaseLimit is how many sandboxes are released at the same time.
const releaseLimit = 8

// Release releases the task's scope, last in first out, what is pushed
// meanwhile included; sandboxes in a row are released together. It goes on after
// failures: resources that are left are listed by Run.Left, and the errors of
// deferred functions are returned, joined. It takes 60 seconds at most, outlives
// the cancellation of the task, and stops trying once Options.Abort is closed.
//
// With keep, resources are left and told as events, and deferred functions do
// not run.
func (t *Task) Release(keep bool) error {
	ctx, stop := t.releaseContext()
	defer stop()
	r := t.Run
	var errs []error
	for handles, together := t.scope.pop(); len(handles)+len(together) > 0; handles, together = t.scope.pop() {
		for _, e := range handles {
			e.undo(ctx, keep)
		}
		for _, e := range together {
			if keep && e.name != nil {
				e.life.gone() // it is nobody's leftover
				left := r.leftover(e, nil)
				r.options.Events.Emit(event.Kept{Place: e.life.placed(), Kind: left.Kind, Name: left.Name, Reach: left.Reach(), Delete: left.Delete()})
			}
		}
		failed := make([]error, len(together))
		var group sync.WaitGroup
		for i, e := range together[min(1, len(together)):] {
			group.Go(func() { failed[i+1] = e.undo(ctx, keep) })
		}
		if len(together) > 0 {
			failed[0] = together[0].undo(ctx, keep) // on this goroutine, which is the strand's
		}
		group.Wait()
		for i, err := range failed {
			switch e := together[i]; {
			case err == nil:
			case e.name == nil:
				errs = append(errs, &ContextError{What: e.kind, Err: err})
			default:
				left := r.leftover(e, err)
				r.mu.Lock()
				r.left = append(r.left, left)
				r.mu.Unlock()
			}
		}
	}
	return errors.Join(errs...)
}

// undo releases an entry that was popped, unless it is kept.
func (e *entry) undo(ctx context.Context, keep bool) error {
	if keep && !e.quiet {
		return nil
	}
	err := context.Cause(ctx)
	if err == nil || e.quiet {
		err = e.release(ctx)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return err
}

// leftover describes a resource that is not released.
func (r *Run) leftover(e *entry, err error) Leftover {
	l := Leftover{Kind: e.kind, Name: e.name(), Err: err}
	r.connecting.Lock()
	defer r.connecting.Unlock()
	if e.on != nil && e.on != r.client {
		l.Endpoint = e.on.Endpoint()
	}
	return l
}

// releaseContext is the clock of one release. A release inside another one
// keeps to the outer clock.
func (t *Task) releaseContext() (context.Context, func()) {
	if t.releasing {
		return t.Ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(t.Ctx))
	ctx, cancelTimer := context.WithTimeoutCause(ctx, releaseTime, fmt.Errorf("releasing took longer than %v", releaseTime))
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-t.Run.options.Abort:
			cancel(errAbandoned)
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		cancelTimer()
		cancel(nil)
		<-watched
	}
}
