package main

import (
	"fmt"
	"io"

	"github.com/spf13/pflag"

	"github.com/sbx-star/sbx-star/workflow"
)

// This file defines sbx-star doctor: what this machine has for sandboxes.

const doctorUsage = `Usage:
  sbx-star doctor [flags]   tell whether sandboxes can be made on this machine

Looks at the kernel and its switches, makes a sandbox, and removes it. Each line
is what was looked at: ok, or NO if there are no sandboxes for want of it, or "-"
if sandboxes do without it; an arrow shows what mends it. The exit status is 0 if
sandboxes can be made here, and 1 otherwise.

Flags:
`

func doctor(args []string, stdout io.Writer) error {
	flags := pflag.NewFlagSet("sbx-star doctor", pflag.ContinueOnError)
	stateDir := flags.String("state-dir", "", "`FOLDER` of templates and sandboxes (the user's state folder otherwise)")
	if err := parse(flags, args, doctorUsage, stdout); err != nil {
		return ignoreHelp(err)
	}
	if flags.NArg() > 0 {
		return &workflow.UsageError{Message: fmt.Sprintf("doctor takes no argument %q", flags.Arg(0)), Hint: "sbx-star doctor --help lists its flags"}
	}
	return examine(*stateDir, stdout)
}
