package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/sbx-star/sbx-star/event"
	"github.com/sbx-star/sbx-star/workflow"
)

// This file defines what sbx-star does when it is given a workflow.

func runWorkflow(args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	flags := pflag.NewFlagSet("sbx-star", pflag.ContinueOnError)
	var where connectFlags
	where.register(flags)
	var budget budgetFlags
	budget.register(flags)
	code := flags.StringP("code", "c", "", "run `CODE` instead of a file")
	keep := flags.Bool("keep", false, "leave what the workflow created, and print how to delete it")
	var timeout deadline
	flags.Var(&timeout, "timeout", "end the workflow after `DURATION` (90, 90s, 5m), with exit status 124")
	if err := parse(flags, args, usage, stdout); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return nil
		}
		return err
	}

	options := workflow.Options{
		Args: flags.Args(), Stdout: stdout,
		Env: os.LookupEnv, Keep: *keep, Events: event.Terminal(stderr),
	}
	budget.apply(&options)
	switch {
	case flags.Changed("code"):
		options.Path, options.Source = "<code>", []byte(*code)
	case flags.NArg() == 0 && isTerminal(stdin):
		return explore(&where, stdout, stderr)
	case flags.NArg() == 0, flags.Arg(0) == "-":
		source, err := io.ReadAll(stdin)
		if err != nil {
			return fmt.Errorf("reading the workflow from standard input: %w", err)
		}
		options.Path, options.Source, options.Args = "<stdin>", source, flags.Args()[min(1, flags.NArg()):]
	default:
		options.Path, options.Args = flags.Arg(0), flags.Args()[1:]
	}

	connect, disconnect, err := where.connector()
	if err != nil {
		return err
	}
	defer disconnect()
	options.Connect = connect

	ctx, again, stop := untilSignal(context.Background(), stderr)
	defer stop()
	options.Abort = again
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, time.Duration(timeout), &timedOut{time.Duration(timeout)})
		defer cancel()
	}
	return workflow.Run(ctx, options)
}

// timedOut is why a context ended when --timeout ended it.
type timedOut struct{ after time.Duration }

func (e *timedOut) Error() string { return fmt.Sprintf("the workflow did not end within %v", e.after) }
func (e *timedOut) ExitCode() int { return 124 }

// deadline is a duration flag that also takes plain seconds.
type deadline time.Duration

func (d *deadline) String() string {
	if *d == 0 {
		return ""
	}
	return time.Duration(*d).String()
}
func (d *deadline) Type() string { return "duration" }
func (d *deadline) Set(s string) error {
	v, err := time.ParseDuration(s)
	if err != nil {
		v, err = time.ParseDuration(s + "s")
	}
	if err != nil || v <= 0 {
		return errors.New("want a time such as 90, 90s or 5m")
	}
	*d = deadline(v)
	return nil
}

// isTerminal tells whether a person reads, or writes, there.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// colored tells whether what is written there may have colours.
func colored(w io.Writer) bool { return isTerminal(w) && os.Getenv("NO_COLOR") == "" }
