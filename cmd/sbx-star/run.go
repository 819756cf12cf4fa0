package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
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
	keepOnFailure := flags.Bool("keep-on-failure", false, "leave it if the workflow fails or is interrupted")
	eventsFile := flags.String("events", "", "write what happens to `FILE`, as lines of JSON")
	quiet := flags.BoolP("quiet", "q", false, "say nothing on stderr but errors")
	verbose := flags.BoolP("verbose", "v", false, "say on stderr what happens, one line each")
	var timeout deadline
	flags.Var(&timeout, "timeout", "end the workflow after `DURATION` (90, 90s, 5m), with exit status 124")
	if err := parse(flags, args, usage, stdout); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return nil
		}
		return err
	}

	if *quiet && *verbose {
		return &workflow.UsageError{Message: "--quiet and --verbose exclude each other", Hint: "give one of them"}
	}

	options := workflow.Options{
		Args: flags.Args(), Env: os.LookupEnv, Keep: *keep, KeepOnFailure: *keepOnFailure,
	}
	budget.apply(&options)
	switch {
	case flags.Changed("code"):
		options.Path, options.Source = "<code>", []byte(*code)
	case flags.NArg() == 0 && isTerminal(stdin):
		for _, name := range []string{"keep-on-failure", "events", "quiet", "verbose", "timeout"} {
			if flags.Changed(name) {
				return &workflow.UsageError{Message: "a session has no --" + name, Hint: "name a FILE, or give CODE with -c"}
			}
		}
		return explore(&where, &budget, *keep, stdout, stderr)
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

	level := event.Normal
	switch {
	case *quiet:
		level = event.Quiet
	case *verbose:
		level = event.Verbose
	}
	shown := displayOn(stdout, stderr, level)
	defer shown.close()
	options.Stdout, stderr = shown.stdout, shown.stderr
	options.Events = shown.events
	if *eventsFile != "" {
		sink, closeFile, err := writeEvents(*eventsFile, shown.events)
		if err != nil {
			return err
		}
		defer closeFile()
		options.Events = event.Tee(sink, shown.events)
	}

	closeBooks, err := where.keepBooks(&options, connect, options.Events)
	if err != nil {
		return err
	}
	defer closeBooks()

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

// display is how a run shows itself: what takes its output and its events.
type display struct {
	stdout, stderr io.Writer
	events         event.Sink
	close          func()
}

// displayOn puts a live view on stderr if that is a terminal and nothing else was
// asked for. All that goes to the terminal passes through it then.
func displayOn(stdout, stderr io.Writer, level event.Level) *display {
	file, ok := stderr.(*os.File)
	if level != event.Normal || !ok || !term.IsTerminal(int(file.Fd())) || os.Getenv("TERM") == "dumb" || runtime.GOOS == "windows" {
		return &display{stdout, stderr, event.Lines(stderr, level), func() {}}
	}
	view := event.StartView(stderr, func() (columns, rows int) {
		columns, rows, _ = term.GetSize(int(file.Fd()))
		return columns, rows
	})
	if out, ok := stdout.(*os.File); ok && term.IsTerminal(int(out.Fd())) {
		stdout = view.Writer(stdout)
	}
	stderr = view.Writer(stderr)
	return &display{stdout, stderr, event.Tee(view.Sink, event.Lines(stderr, level)), view.Close}
}

// writeEvents returns the sink of --events. What goes wrong with it later is
// told to others once, and is no failure of the run.
func writeEvents(path string, others event.Sink) (event.Sink, func() error, error) {
	if path == "-" {
		return nil, nil, &workflow.UsageError{Message: "--events: stdout belongs to the workflow", Hint: "name a file, or an open descriptor as in --events /dev/fd/3 3>&1"}
	}
	file, err := os.Create(path)
	if err != nil {
		return nil, nil, &workflow.UsageError{Message: "--events: " + err.Error(), Hint: "name a file that can be written"}
	}
	return event.JSON(file, time.Now, func(err error) {
		others.Emit(event.Warning{Text: fmt.Sprintf("no more events are written: %v", err)})
	}), file.Close, nil
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
