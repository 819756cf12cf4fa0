package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/pflag"

	"github.com/sbx-star/sbx-star/workflow"
)

// This file defines sbx-star check: what can be found without running.

const checkUsage = `Usage:
  sbx-star check [PATH…]   find what is wrong with workflows without running them

PATH is a file, or a folder whose *.star are looked at; without one it is the
working directory. A problem is one line, FILE:LINE:COLUMN: what it is. The exit
status is 0 if there is none, 3 if a file does not load, and 1 otherwise.
`

func check(args []string, stdout io.Writer) error {
	flags := pflag.NewFlagSet("sbx-star check", pflag.ContinueOnError)
	if err := parse(flags, args, checkUsage, stdout); err != nil {
		return ignoreHelp(err)
	}
	files, err := findFiles(flags.Args(), ".star")
	if err == nil {
		err = foundNone(files, flags.Args())
	}
	if err != nil {
		return err
	}
	problems := workflow.Check(files)
	if len(problems) == 0 {
		return nil
	}
	code := workflow.ExitFailed
	for _, p := range problems {
		fmt.Fprintln(stdout, p)
		if p.Load {
			code = workflow.ExitNotLoaded
		}
	}
	return silent(code)
}

// ignoreHelp is err, but for having asked for help, which was given.
func ignoreHelp(err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return nil
	}
	return err
}

// silent is an exit status of which all has been said already.
type silent int

func (e silent) Error() string { return fmt.Sprintf("exit status %d", int(e)) }
func (e silent) ExitCode() int { return int(e) }
