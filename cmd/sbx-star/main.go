// Command sbx-star runs workflows written in Starlark that drive sandboxes.
// This file defines the way from the command line to a subcommand.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/sbx-star/sbx-star/workflow"
)

const usage = `Usage:
  sbx-star [flags] FILE [flags of main] [args]   run a workflow
  sbx-star [flags] -c CODE                       run CODE
  sbx-star [flags] -                             run standard input
  sbx-star [flags] [repl]                        explore: run what is typed
  sbx-star serve [flags]                         serve the sandbox API to any SDK
  sbx-star test [flags] [PATH…]                  run the tests in *_test.star
  sbx-star check [PATH…]                         find what is wrong without running it
  sbx-star fmt [PATH…]                           format workflows
  sbx-star gc                                    delete what killed runs left behind
  sbx-star doc [NAME…]                           what a workflow can name
  sbx-star doctor                                whether sandboxes can be made here
  sbx-star version

FILE --help shows the flags that the workflow itself takes.

Flags:
`

func main() {
	runChild()
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the command without its process: it returns the exit status.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	err := dispatch(args, stdin, stdout, stderr)
	var said silent
	if err != nil && !errors.As(err, &said) {
		workflow.Render(stderr, err, colored(stderr))
	}
	return workflow.ExitCode(err)
}

func dispatch(args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	if len(args) > 0 {
		switch args[0] {
		case "serve":
			return serve(args[1:], stdout, stderr)
		case "repl":
			return repl(args[1:], stdin, stdout, stderr)
		case "test":
			return test(args[1:], stdout, stderr)
		case "check":
			return check(args[1:], stdout)
		case "fmt":
			return formatFiles(args[1:], stdin, stdout)
		case "gc":
			return gc(args[1:], stdout, stderr)
		case "doc":
			return doc(args[1:], stdout)
		case "doctor":
			return doctor(args[1:], stdout)
		case "version":
			fmt.Fprintln(stdout, "sbx-star", version())
			return nil
		}
	}
	return runWorkflow(args, stdin, stdout, stderr)
}

// version is the module's version as the go command recorded it.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// parse reads a subcommand's flags. Asking for help prints it to stdout and
// returns pflag.ErrHelp; anything wrong is a usage error.
func parse(flags *pflag.FlagSet, args []string, usage string, stdout io.Writer) error {
	flags.SetInterspersed(false) // what follows FILE is the script's
	flags.SetOutput(io.Discard)  // errors are rendered in one place
	flags.Usage = func() {}
	err := flags.Parse(args)
	if errors.Is(err, pflag.ErrHelp) {
		fmt.Fprint(stdout, usage, flags.FlagUsages())
		return err
	}
	if err != nil {
		return &workflow.UsageError{Message: err.Error(), Hint: "sbx-star --help lists the flags"}
	}
	return nil
}

// interrupted is why a context ended when a signal ended it.
type interrupted struct{ signal syscall.Signal }

func (e *interrupted) Error() string {
	if e.signal == syscall.SIGINT {
		return "interrupted"
	}
	return e.signal.String()
}
func (e *interrupted) ExitCode() int { return 128 + int(e.signal) }

// untilSignal returns a context that ends at the first Ctrl-C or SIGTERM and a
// channel that is closed at the second. stop ends the watching and waits for it.
func untilSignal(parent context.Context, stderr io.Writer) (ctx context.Context, again <-chan struct{}, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	second, quit, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; n < 2; n++ {
			select {
			case s := <-signals:
				cause := &interrupted{s.(syscall.Signal)}
				if n == 1 {
					signal.Stop(signals) // a third one ends the process in any case
					close(second)
					return
				}
				fmt.Fprintf(stderr, "sbx-star: %s: releasing what the workflow created (again to stop at once)\n", cause)
				cancel(cause)
			case <-quit:
				return
			}
		}
	}()
	return ctx, second, func() {
		signal.Stop(signals)
		close(quit)
		<-done
		cancel(nil)
	}
}
