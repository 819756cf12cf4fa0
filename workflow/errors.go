package workflow

import (
	"context"
	"errors"
	"fmt"

	"go.starlark.net/syntax"

	"github.com/sbx-star/sbx-star/builtins"
	"github.com/sbx-star/sbx-star/client"
)

// This file defines how a workflow can fail, and the exit codes of that.

// The exit codes of language.md §12. Any other is what exit said.
const (
	ExitOK         = 0
	ExitFailed     = 1
	ExitUsage      = 2
	ExitNotLoaded  = 3
	ExitPermission = 4
	ExitNoTests    = 5
	ExitLeft       = 6 // it ended well, but something could not be released
	ExitDeadline   = 124
	ExitInterrupt  = 130
)

// Failure is all that went wrong in a run.
type Failure struct {
	// Reports are what failed: the workflow first, if it did, and then what was
	// deferred. It is empty if only Left tells of a failure.
	Reports []builtins.Report
	Left    *ReleaseError // nil if everything was released

	sources map[string][]byte   // of the files, by name
	mask    func(string) string // takes the run's secrets out of a text
}

func (e *Failure) Error() string { return e.Unwrap()[0].Error() }

func (e *Failure) Unwrap() []error {
	var all []error
	for _, r := range e.Reports {
		all = append(all, r.Err)
	}
	if e.Left != nil {
		all = append(all, e.Left)
	}
	return all
}

// UsageError is a command line that asks for what there is not.
type UsageError struct {
	Message string
	Hint    string // what to do, or ""
}

func (e *UsageError) Error() string { return e.Message }

// LoadError is a workflow that does not load: nothing was touched.
type LoadError struct {
	Chain []Load // the loads that led to the file that is wrong, the entry file's first
	Err   error
}

func (e *LoadError) Error() string { return e.Err.Error() }
func (e *LoadError) Unwrap() error { return e.Err }

// Load is a load statement.
type Load struct {
	Pos    syntax.Position
	Module string // as it is written there
}

// ExitError is how exit ends a workflow, with another code than 0.
type ExitError = builtins.ExitError

func isExit(err error) bool {
	var exit *ExitError
	return errors.As(err, &exit)
}

// Interrupted is a workflow that ended because its context did, for this cause.
type Interrupted struct{ Cause error }

func (e *Interrupted) Error() string { return e.Cause.Error() }
func (e *Interrupted) Unwrap() error { return e.Cause }

// ReleaseError is what a run created and could not release.
type ReleaseError struct{ Left []builtins.Leftover }

func (e *ReleaseError) Error() string {
	first := e.Left[0]
	text := fmt.Sprintf("%s %q could not be released: %v", first.Kind, first.Name, first.Err)
	if n := len(e.Left) - 1; n > 0 {
		text += fmt.Sprintf(" (and %d more)", n)
	}
	return text
}

// ExitCode is the exit status for what Run returned, or for a *UsageError. An
// error that says its own, such as the cause of a cancellation, has a method
// ExitCode() int.
func ExitCode(err error) int {
	if err == nil {
		return ExitOK
	}
	var failure *Failure
	if errors.As(err, &failure) {
		if len(failure.Reports) == 0 {
			return ExitLeft
		}
		err = failure.Reports[0].Err // what came later does not hide it
	}
	var coded interface{ ExitCode() int }
	var exit *ExitError
	var usage *UsageError
	var load *LoadError
	var interrupted *Interrupted
	switch {
	case errors.As(err, &coded):
		return coded.ExitCode()
	case errors.As(err, &exit):
		return exit.Code
	case errors.As(err, &usage):
		return ExitUsage
	case errors.As(err, &load):
		return ExitNotLoaded
	case errors.As(err, &interrupted) && errors.Is(err, context.DeadlineExceeded):
		return ExitDeadline
	case errors.As(err, &interrupted):
		return ExitInterrupt
	case errors.Is(err, client.ErrAuthentication):
		return ExitPermission
	}
	return ExitFailed
}
