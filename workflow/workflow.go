// Package workflow runs a workflow: a Starlark file, the modules that it loads,
// the flags of its main function, and the release of all that it acquired. It
// also turns whatever went wrong into what the user reads and into an exit code.
package workflow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/builtins"
	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/event"
	"github.com/sbx-star/sbx-star/ledger"
)

// This file defines a run from its beginning to its end.

// Options say what to run and what it has from outside.
type Options struct {
	Path   string   // of the file, as it is shown in messages
	Source []byte   // its text, if it is no file: then modules are relative to the working directory
	Args   []string // the flags of main and its arguments
	Call   string   // a function of the file to call without arguments instead of main; "" for main

	// Connect reaches the server. It is called when the workflow first needs
	// one, if it ever does. Whoever gives it closes the client, after Run.
	Connect func(context.Context) (*client.Client, error)

	Stdout io.Writer // the workflow's own output
	Stderr io.Writer // where events go if there is no sink for them
	Events event.Sink
	Env    func(name string) (value string, ok bool)
	Now    func() time.Time // nil is the system's clock

	UpdateGolden bool   // expect.golden writes its files
	MaxSteps     uint64 // what the workflow, or a statement of a session, may execute, in all its tasks; 0 is no limit
	MaxMemory    uint64 // bytes that the process may use; 0 is no limit

	Keep          bool            // leave what the outermost scope holds
	KeepOnFailure bool            // leave it if the workflow fails
	Abort         <-chan struct{} // once it is closed, nothing more is released

	Ledger *ledger.Ledger // of what is created and to be released; nil keeps none
	Leases bool           // have the server delete that if it no longer hears of the run
}

// Run runs a workflow and returns once all that it acquired is released, or is
// given up: that takes 60 seconds at most, and ends early when Abort is closed.
//
// A failure is a *Failure. It holds *UsageError and *LoadError, after which
// nothing was touched; *ExitError; errors of the API (*client.Error); if ctx
// ended the workflow, the cause of that; and *ReleaseError for what is left.
func Run(ctx context.Context, o Options) error {
	if o.Events == nil && o.Stderr != nil {
		o.Events = event.Terminal(o.Stderr)
	}
	began := time.Now()
	err := runAll(ctx, o)
	var rendered strings.Builder
	if Render(&rendered, err, false); rendered.Len() > 0 {
		o.Events.Emit(event.Failure{Text: rendered.String()})
	}
	o.Events.Emit(event.End{ExitCode: ExitCode(err), Seconds: time.Since(began).Round(time.Millisecond).Seconds()})
	return err
}

func runAll(ctx context.Context, o Options) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	run := o.newRun(stop)
	defer run.Close()
	task := builtins.NewTask(ctx, run)
	l := newLoader(task)
	l.guard(o.MaxMemory)
	defer l.close()

	unwatch := watchMemory(o.MaxMemory, func() bool { return true }, func(err error) bool { stop(err); return false })
	err := task.Join(execute(l, task, o))
	unwatch()
	failure := &Failure{Reports: reports(ctx, err), sources: l.sources, mask: run.Mask}
	if err := task.Release(o.Keep || o.KeepOnFailure && len(failure.Reports) > 0); err != nil {
		failure.Reports = append(failure.Reports, builtins.Reports(err)...)
	}
	if err := run.Flush(); err != nil {
		failure.Reports = append(failure.Reports, builtins.Report{Err: fmt.Errorf("cannot write to stdout: %w", err)})
	}
	if left := run.Left(); len(left) > 0 {
		failure.Left = &ReleaseError{left}
	}
	if len(failure.Reports) == 0 && failure.Left == nil {
		return nil
	}
	return failure
}

// newRun is a run with what the options give it, whose first task stop cancels.
// The caller closes it.
func (o *Options) newRun(stop context.CancelCauseFunc) *builtins.Run {
	return builtins.NewRun(builtins.Options{
		Connect: o.Connect, Stdout: o.Stdout, Events: o.Events, Env: o.Env, Now: o.Now, Abort: o.Abort,
		Ledger: o.Ledger, Leases: o.Leases && !o.Keep && !o.KeepOnFailure,
		UpdateGolden: o.UpdateGolden, MaxSteps: o.MaxSteps, MaxMemory: o.MaxMemory, Stop: stop,
	})
}

// execute loads the workflow and runs it.
func execute(l *loader, task *builtins.Task, o Options) error {
	entry, err := l.compile(o)
	if err != nil {
		return err
	}
	if o.Call != "" {
		return callOnly(l, task, entry, o.Call)
	}
	if !entry.hasMain && len(o.Args) > 0 {
		if isHelp(o.Args[0]) {
			return writeHelp(o.Stdout, o.Path, entry.doc, nil)
		}
		return &UsageError{Message: o.Path + " has no main, and so takes no flags and no arguments"}
	}
	if err := l.run(task); err != nil || !entry.hasMain {
		return err
	}
	s, err := newSignature(entry)
	if err != nil {
		return err
	}
	args, kwargs, err := s.parse(o.Args)
	if errors.Is(err, errHelp) {
		return writeHelp(o.Stdout, o.Path, s.main.Doc(), s)
	}
	if err != nil {
		return &UsageError{Message: o.Path + ": " + err.Error(), Hint: "sbx-star " + o.Path + " --help lists its flags"}
	}
	return task.Exec(builtins.Thread{Name: "main"}, func(thread *starlark.Thread) error {
		_, err := starlark.Call(thread, s.main, args, kwargs)
		return err
	})
}

// callOnly runs the file as one that only declares, and then one function of it.
func callOnly(l *loader, task *builtins.Task, entry *module, name string) error {
	entry.hasMain = true
	if err := l.run(task); err != nil {
		return err
	}
	return task.Exec(builtins.Thread{Name: name}, func(thread *starlark.Thread) error {
		_, err := starlark.Call(thread, entry.values[name], nil, nil)
		return err
	})
}

// reports takes the workflow's error apart. The first thing that went wrong
// after ctx has ended is that it ended; exit(0) is no error.
func reports(ctx context.Context, err error) []builtins.Report {
	if err == nil {
		return nil
	}
	reports := builtins.Reports(err)
	var budget *builtins.BudgetError
	switch cause := context.Cause(ctx); {
	case errors.As(cause, &budget):
		reports[0].Err = budget // and where is worth telling
	case cause != nil:
		reports[0].Err = &Interrupted{cause}
	}
	if exit, ok := reports[0].Err.(*ExitError); ok && exit.Code == 0 {
		reports = reports[1:]
	}
	var load *LoadError
	if errors.As(err, &load) {
		reports = builtins.Reports(load.Err)
		for i := range reports {
			reports[i].Err = &LoadError{load.Chain, reports[i].Err}
		}
	}
	return reports
}
