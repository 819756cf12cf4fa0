// Package builtins holds what a workflow can name: the resources, the verbs on
// them, and what stands in for Python's with, try and raise. One file holds one
// noun; its signatures and its documentation stand in stubs/, which is also
// where the unpacking of arguments takes names, order and defaults from.
//
// A Run is what one workflow has from outside; a Task is one line of execution
// in it. Every blocking builtin takes the context of the task that calls it.
package builtins

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	startime "go.starlark.net/lib/time"
	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/event"
	"github.com/sbx-star/sbx-star/ledger"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines runs, tasks and the Starlark threads that tasks run on.

// Options is what a run is given.
type Options struct {
	// Connect reaches the server. It is called when the first builtin needs
	// one, and again only if it failed. Whoever gives it closes the client.
	Connect func(context.Context) (*client.Client, error)

	Stdout io.Writer
	Events event.Sink
	Ledger *ledger.Ledger // of what is created and to be released; nil keeps none
	Env    func(name string) (value string, ok bool)
	Now    func() time.Time // what time.now() tells; nil is the system's clock
	Abort  <-chan struct{}  // once closed, nothing more is released

	UpdateGolden bool                    // expect.golden writes what it is given
	MaxSteps     uint64                  // what all threads may execute altogether, deferred functions aside; 0 is no limit
	MaxMemory    uint64                  // what guarded operations leave free, in bytes of the process; 0 is no limit
	Stop         context.CancelCauseFunc // cancels the context that the first task was given; needed with MaxSteps and MaxMemory
	// Leases has the server delete the sandboxes that are to be released, by
	// itself, when it no longer hears of the run. Not where they may be kept.
	Leases bool
}

// Run is what all tasks of one workflow share.
type Run struct {
	options  Options
	mask     Mask
	out      sync.Mutex    // held for one write of print
	stdout   *maskedWriter // Options.Stdout
	steps    atomic.Uint64
	reserved atomic.Uint64 // bytes that guarded operations are about to take
	slots    chan struct{} // one token for each item of parallel that runs
	strands  sync.Map      // of goroutines that run threads: uint64 → *strand
	spans    atomic.Int64

	connecting sync.Mutex
	client     *client.Client

	leasing  sync.Mutex
	leases   map[*client.Client]*leases // nil where the server can do nothing
	renewing sync.WaitGroup
	ended    context.Context
	end      context.CancelFunc

	mu         sync.Mutex // guards what follows, and every scope
	warned     map[string]bool
	left       []Leftover
	reassigned map[string]variable // by where it is first bound
}

// NewRun returns a run that has not connected yet. Who lets a task of it act
// closes it.
func NewRun(o Options) *Run {
	r := &Run{options: o, slots: make(chan struct{}, maxParallel), leases: map[*client.Client]*leases{},
		warned: map[string]bool{}, reassigned: map[string]variable{}}
	r.stdout = &maskedWriter{mask: &r.mask, to: o.Stdout}
	r.options.Stdout, r.options.Events = r.stdout, r.mask.sink(o.Events)
	r.ended, r.end = context.WithCancel(context.Background())
	return r
}

// Left returns what the run created and could not release.
func (r *Run) Left() []Leftover {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.left
}

func (r *Run) connect(ctx context.Context) (*client.Client, error) {
	r.connecting.Lock()
	defer r.connecting.Unlock()
	if r.client == nil {
		c, err := r.options.Connect(ctx)
		if err != nil {
			return nil, err
		}
		r.client = c
	}
	return r.client, nil
}

// owns reports whether cl is the run's own connection, and not another one that
// the workflow has made.
func (r *Run) owns(cl *client.Client) bool {
	r.connecting.Lock()
	defer r.connecting.Unlock()
	return cl == r.client
}

// serverInfo asks the server what it is. Only servers of this project answer;
// the answer is nil for others.
func serverInfo(ctx context.Context, c *client.Client) (*wire.Info, error) {
	info, err := c.Info(ctx)
	if errors.Is(err, client.ErrNotFound) {
		return nil, nil
	}
	return info, err
}

// generations are those of the API that the server speaks, oldest first.
func generations(ctx context.Context, c *client.Client) ([]string, error) {
	info, err := serverInfo(ctx, c)
	if err != nil {
		return nil, err
	}
	if info != nil {
		return info.Generations, nil
	}
	generation, err := c.Generation(ctx)
	return []string{generation}, err
}

// warnOnce tells the user something that is worth telling once in a run.
func (r *Run) warnOnce(text string) {
	r.mu.Lock()
	seen := r.warned[text]
	r.warned[text] = true
	r.mu.Unlock()
	if !seen {
		r.options.Events.Emit(event.Warning{Text: text})
	}
}

// Task is one line of execution in a run: what it runs on, where it puts what
// is to be released, and until when. All its threads run on one goroutine, one
// after the other or one inside the other, and so nothing in it needs a lock.
type Task struct {
	Run *Run
	Ctx context.Context

	name      string // of its thread, such as "main > parallel[3]"
	scope     *Scope
	releasing bool   // runs a deferred function
	declaring string // what may define but not act while it runs, such as "a module"; or ""
	freeze    func() // of Thread
	thread    *starlark.Thread
	strand    *strand
	waiting   *Task              // the one that waits for it in parallel; or nil
	depth     int                // of tasks started by tasks
	unwinding starlark.CallStack // where a builtin panicked
}

// NewTask returns the first task of a run, with an empty scope.
func NewTask(ctx context.Context, run *Run) *Task {
	return &Task{Run: run, Ctx: ctx, scope: newScope(ctx, run), strand: &strand{run: run}}
}

// Within returns a task that is t but for its context: what it acquires is t's
// to release. The two must not run at once.
func (t *Task) Within(ctx context.Context) *Task {
	sub := *t
	sub.Ctx = ctx
	return &sub
}

// Thread says how a Starlark thread is made.
type Thread struct {
	Name      string
	Load      func(thread *starlark.Thread, module string) (starlark.StringDict, error)
	Declaring string // what runs on it may define but not act: what that is, such as "a module"

	// Freeze freezes every variable that code on the thread can reach by name,
	// for parallel and spawn at the top level. Without it they are refused
	// there, as they must be where one of those may still be assigned to.
	Freeze func()
}

// Exec calls body with a new thread of the task, and returns its error: a
// failed stream as the typed error that it is, a panic as an *InternalError.
func (t *Task) Exec(o Thread, body func(*starlark.Thread) error) error {
	sub := *t
	sub.name, sub.declaring, sub.freeze = o.Name, o.Declaring, o.Freeze
	return t.exec(&sub, o, body)
}

// exec runs body on a new thread for sub, which is t with changes.
func (t *Task) exec(sub *Task, o Thread, body func(*starlark.Thread) error) (err error) {
	thread := &starlark.Thread{Name: o.Name, Load: o.Load}
	thread.SetLocal(taskKey, sub)
	if now := t.Run.options.Now; now != nil {
		startime.SetNow(thread, func() (time.Time, error) { return now(), nil })
	}
	sub.thread = thread
	if t.Run.options.MaxSteps > 0 && !sub.releasing {
		defer t.Run.ration(thread)()
	}
	defer t.strand.enter()()
	outer := t.strand.task
	t.strand.task = sub
	defer func() { t.strand.task = outer }()
	defer context.AfterFunc(sub.Ctx, sub.cancelThread)()
	defer func() {
		if p := recover(); p != nil {
			t.strand.failure = nil
			err = &InternalError{Panic: p, GoStack: debug.Stack(), Stack: sub.unwinding}
		}
	}()
	return settle(sub, body(thread))
}

const taskKey = "sbx-star.task"

// taskOf returns the task that runs on a thread.
func taskOf(thread *starlark.Thread) *Task {
	t, ok := thread.Local(taskKey).(*Task)
	if !ok {
		panic("a builtin of sbx-star was called on a thread that is no task's")
	}
	return t
}

func (t *Task) cancelThread() { t.thread.Cancel(context.Cause(t.Ctx).Error()) }

// cancelled returns why the task was cancelled, or nil.
func (t *Task) cancelled() error {
	if t.Ctx.Err() != nil {
		return context.Cause(t.Ctx)
	}
	return nil
}

// client connects to the server. Whatever acts on one comes through here or
// through mayAct, and so nothing acts while a module is being loaded
// (language.md §2).
func (t *Task) client() (*client.Client, error) {
	if err := t.mayAct(); err != nil {
		return nil, err
	}
	return t.Run.connect(t.Ctx)
}

func (t *Task) mayAct() error {
	if t.declaring == "" {
		return nil
	}
	return fmt.Errorf("the top level of %s defines and does not act: put this into a function, and call it from main", t.declaring)
}

// InternalError is a panic, which is a bug of sbx-star and not of the workflow.
type InternalError struct {
	Panic   any
	GoStack []byte
	Stack   starlark.CallStack // of the workflow, if a builtin panicked
}

func (e *InternalError) Error() string { return fmt.Sprintf("internal error: %v", e.Panic) }
