package builtins

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"go.starlark.net/syntax"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/event"
	"github.com/sbx-star/sbx-star/ledger"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines what goes with a resource from before it is created until it
// is gone: a place in the run's ledger, and events. It also deletes what
// another run has left behind.

// life is one creation, and later the one release, of a resource.
type life struct {
	run   *Run
	place event.Place
	began time.Time
	span  int
	what  event.Resource

	written int // its number in the ledger, 0 if it is nobody's leftover
}

func (c *invocation) life(kind, name string) *life {
	l := &life{run: c.Run, place: c.place(), what: event.Resource{Kind: kind, Name: name}}
	l.begin()
	return l
}

// born tells that a resource is about to be asked for.
func (c *invocation) born(kind, name string) *life {
	l := c.life(kind, name)
	l.run.options.Events.Emit(event.Create{Place: l.place, Span: l.span, Resource: l.what})
	return l
}

func (l *life) begin() {
	l.began, l.span = time.Now(), l.run.span()
}

// hold makes e release the resource, which is written down before it is created.
// Nobody else has chosen a unique name.
func (l *life) hold(t *Task, cl *client.Client, e *entry, unique bool) *entry {
	r, release := l.run, e.release
	endpoint := ""
	if !r.owns(cl) {
		endpoint = cl.Endpoint()
	}
	var err error
	l.written, err = r.options.Ledger.Add(ledger.Entry{Kind: e.kind, Name: l.what.Name, Unique: unique, Endpoint: endpoint, Asked: l.began.UTC()})
	if err != nil {
		r.warnOnce(fmt.Sprintf("what this run creates cannot be written down, so that sbx-star gc does not find it if the run is killed: %v", err))
	}
	e.life = l
	e.release = func(ctx context.Context) error {
		l.begin()
		l.what.Name = e.name()
		r.options.Events.Emit(event.Release{Place: l.place, Span: l.span, Resource: l.what})
		err := release(ctx)
		l.released(err)
		return err
	}
	return t.push(e)
}

// made tells what came of the creation.
func (l *life) made(name, id string, err error) {
	if err == nil {
		l.what.Name = name
		l.run.noteFailure(l.run.options.Ledger.Made(l.written, id))
	}
	l.run.options.Events.Emit(event.Created{Place: l.place, Span: l.span, Resource: l.what, ID: id, Seconds: since(l.began), Error: errorText(err)})
}

// released tells what came of the deletion.
func (l *life) released(err error) {
	if err == nil {
		l.gone()
	}
	l.run.options.Events.Emit(event.Released{Place: l.place, Span: l.span, Resource: l.what, Seconds: since(l.began), Error: errorText(err)})
}

// deleting tells of a deletion that the workflow asks for itself.
func (c *invocation) deleting(kind, name string, del func() error) error {
	l := c.life(kind, name)
	l.run.options.Events.Emit(event.Release{Place: l.place, Span: l.span, Resource: l.what})
	err := del()
	l.released(err)
	return err
}

// gone strikes the resource out: it is deleted, or somebody else's from now on.
// It may be called for no life at all.
func (l *life) gone() {
	if l != nil {
		l.run.noteFailure(l.run.options.Ledger.Gone(l.written))
	}
}

// placed is where the resource was created.
func (l *life) placed() event.Place {
	if l == nil {
		return event.Place{}
	}
	return l.place
}

// noteFailure tells once that the ledger is not kept up to date: gc then looks
// for more than there is.
func (r *Run) noteFailure(err error) {
	if err != nil {
		r.warnOnce(fmt.Sprintf("the list of what this run creates cannot be kept up to date: %v", err))
	}
}

// span is the next number that events about one thing have in common.
func (r *Run) span() int { return int(r.spans.Add(1)) }

func since(began time.Time) float64 { return time.Since(began).Round(time.Microsecond).Seconds() }

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// place is the innermost line of the workflow that led to the call of a builtin.
func (t *Task) place() event.Place {
	if t.thread == nil {
		return event.Place{}
	}
	p := event.Place{Task: t.thread.Name}
	if pos := t.position(); pos.Line > 0 {
		p.Pos = pos.String()
	}
	return p
}

// position is where in the workflow's own files the thread is, or no place.
func (t *Task) position() (pos syntax.Position) {
	for i := range t.thread.CallStackDepth() {
		if pos := t.thread.CallFrame(i).Pos; pos.Line > 0 && !strings.HasPrefix(pos.Filename(), "@std") {
			return pos
		}
	}
	return pos
}

// execution is one command, as events tell of it.
type execution struct {
	run              *Run
	place            event.Place
	span             int
	sandbox, command string
	began            time.Time
	ended            atomic.Bool
}

// started tells that a command is run in a sandbox.
func (c *invocation) started(sandbox, command string) *execution {
	x := &execution{run: c.Run, place: c.place(), span: c.Run.span(), sandbox: sandbox, command: command, began: time.Now()}
	x.run.options.Events.Emit(event.Start{Place: x.place, Span: x.span, Sandbox: sandbox, Command: command})
	return x
}

func (x *execution) output(stream string, bytes int) {
	if bytes > 0 {
		x.run.options.Events.Emit(event.Output{Place: x.place, Span: x.span, Sandbox: x.sandbox, Stream: stream, Bytes: bytes})
	}
}

// exit tells how the command ended, the first time that it is called. Without a
// result and an error nobody listens any more.
func (x *execution) exit(result *client.Result, err error) {
	if x.ended.Swap(true) {
		return
	}
	e := event.Exit{Place: x.place, Span: x.span, Sandbox: x.sandbox, Command: x.command, Seconds: since(x.began), Error: errorText(err)}
	switch {
	case result != nil:
		e.ExitCode, e.Reason = &result.ExitCode, result.Reason
	case err == nil:
		e.Error = "nobody listens to it any more"
	}
	x.run.options.Events.Emit(e)
}

// What is used by a sandbox that is just being deleted is tried for a while.
const (
	inUseTime = 5 * time.Second
	inUsePoll = 100 * time.Millisecond
)

// Fate is what has become of something that a dead run left behind.
type Fate int

const (
	Remains Fate = iota // it is still there, or nobody can tell
	Deleted
	Missing // there was nothing of its name any more
	Foreign // what has its name was made by somebody else, and stays
)

// DeleteLeftover deletes what the entry of a dead run's ledger tells of, if it is
// there and is what that run created. With an error it remains.
func DeleteLeftover(ctx context.Context, cl *client.Client, e ledger.Entry) (Fate, error) {
	for deadline := time.Now().Add(inUseTime); ; {
		found, err := findLeftover(ctx, cl, e)
		switch {
		case err != nil:
		case found == nil:
			return Foreign, nil
		default:
			if err = found.delete(ctx); err == nil {
				return Deleted, nil
			}
		}
		switch {
		case errors.Is(err, client.ErrNotFound):
			// Something else that listens at the endpoint now has nothing either.
			if _, err := cl.FindSandboxes(ctx, client.ListQuery{Limit: 1}); err != nil {
				return Remains, err
			}
			return Missing, nil
		case !errors.Is(err, client.ErrInUse) || time.Now().After(deadline):
			return Remains, err
		}
		select {
		case <-time.After(inUsePoll):
		case <-ctx.Done():
			return Remains, err
		}
	}
}

// leftover is a resource that the server has under a name that a ledger tells.
type leftover struct {
	id, created string
	delete      func(context.Context) error
}

// findLeftover returns nil if what is there was made by somebody else.
func findLeftover(ctx context.Context, cl *client.Client, e ledger.Entry) (*leftover, error) {
	var found *leftover
	var err error
	switch e.Kind {
	case "sandbox":
		found, err = lookUp(e, func(ref string) (*client.Sandbox, error) { return cl.GetSandbox(ctx, ref) },
			func(box *client.Sandbox) leftover { return leftover{box.ID, box.CreatedAt, box.Delete} })
	case "template":
		found, err = leftoverOf(ctx, cl, e, newTemplateKind())
		if notAnID(err) { // on a server without templates it is a snapshot
			found, err = leftoverOf(ctx, cl, e, newSnapshotKind())
		}
	case "volume":
		found, err = leftoverOf(ctx, cl, e, newVolumeKind())
	case "pool":
		found, err = leftoverOf(ctx, cl, e, newPoolKind())
	case "snapshot":
		found, err = leftoverOf(ctx, cl, e, newSnapshotKind())
	default:
		return nil, fmt.Errorf("this version of sbx-star does not know how to delete a %q", e.Kind)
	}
	if err != nil || e.Unique {
		return found, err
	}
	ours := found.id == e.ID
	if e.ID == "" || found.id == "" {
		if ours, err = createdAfter(found.created, e.Asked); err != nil {
			return nil, err
		}
	}
	if !ours {
		return nil, nil
	}
	return found, nil
}

func leftoverOf[T any](ctx context.Context, cl *client.Client, e ledger.Entry, k *kind[T]) (*leftover, error) {
	return lookUp(e, func(ref string) (*T, error) { return k.get(cl, ctx, ref) }, func(msg *T) leftover {
		id, created := identity(msg)
		return leftover{id, created, func(ctx context.Context) error { return k.delete(cl, ctx, k.ref(msg)) }}
	})
}

// lookUp finds by the id, which stays when the name changes, and by the name
// where servers know only that.
func lookUp[T any](e ledger.Entry, get func(ref string) (*T, error), describe func(*T) leftover) (*leftover, error) {
	if e.ID != "" {
		msg, err := get(e.ID)
		if err == nil {
			l := describe(msg)
			return &l, nil
		}
		if !notAnID(err) {
			return nil, err
		}
	}
	msg, err := get(e.Name)
	if err != nil {
		return nil, err
	}
	l := describe(msg)
	return &l, nil
}

// identity is what tells a resource from another one of its name.
func identity(msg any) (id, created string) {
	switch m := msg.(type) {
	case *wire.Template:
		return m.ID, m.CreatedAt
	case *wire.Volume:
		return m.ID, m.CreatedAt
	case *wire.Pool:
		return m.ID, m.CreatedAt
	case *wire.Snapshot:
		return m.ID, m.CreatedAt
	}
	return "", ""
}

// createdAfter tells whether something that was created then can be what was
// asked for. Clocks may differ by a minute.
func createdAfter(created string, asked time.Time) (bool, error) {
	at, err := time.Parse(time.RFC3339, created)
	if err != nil {
		return false, errors.New("the answer to its creation was lost, and the server does not tell when it was made; delete it if it is yours")
	}
	return at.After(asked.Add(-time.Minute)), nil
}
