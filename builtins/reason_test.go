package builtins

import (
	"testing"

	"github.com/sbx-star/sbx-star/client"
)

// This file defines a test of what the error of a command says of its end.

// TestReasonOfFailure has the error of a command say what its exit code does not.
func TestReasonOfFailure(t *testing.T) {
	err := &CommandFailedError{Command: "make", Result: &client.Result{ExitCode: 137, Reason: "killed: out of memory (limit 64Mi)"}, Stderr: "last words"}
	if got, want := err.Error(), "the command exited with code 137: make\nkilled: out of memory (limit 64Mi)\nlast words"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
