package builtins

import (
	"fmt"
	"runtime/metrics"
	"strings"

	"go.starlark.net/starlark"
)

// This file defines what a workflow may use up: steps of the interpreter, and
// how memory is told.

// BudgetError is a workflow that has used up what it was given. It ends the
// whole run and is not caught by attempt.
type BudgetError struct {
	What string // "executed more than 1000 steps"
	Flag string // that gives it more, such as "--max-steps"
}

func (e *BudgetError) Error() string { return "the workflow " + e.What }
func (e *BudgetError) Hint() string {
	return fmt.Sprintf("a loop or a recursion that does not end? if not, give it more with %s", e.Flag)
}

// rationSize is how many steps a thread takes at a time: what tasks that have
// not come to their end yet may hold back.
const rationSize = 10_000

// RenewSteps makes as if nothing had been executed yet.
func (r *Run) RenewSteps() { r.steps.Store(0) }

// ration gives a thread of the run's steps, as it goes on. The function that it
// returns gives back what is left.
func (r *Run) ration(thread *starlark.Thread) (giveBack func()) {
	var given uint64
	take := func() bool {
		for {
			used := r.steps.Load()
			n := min(rationSize, r.options.MaxSteps-used)
			if n == 0 {
				return false
			}
			if r.steps.CompareAndSwap(used, used+n) {
				given += n
				thread.SetMaxExecutionSteps(given + 1) // it is asked before the step
				return true
			}
		}
	}
	thread.OnMaxSteps = func(*starlark.Thread) {
		if !take() {
			err := &BudgetError{fmt.Sprintf("executed more than %d steps", r.options.MaxSteps), "--max-steps"}
			r.options.Stop(err)
			thread.Cancel(err.Error())
		}
	}
	take()
	return func() {
		if thread.Steps < given {
			r.steps.Add(thread.Steps - given) // wraps around: it is less
		}
	}
}

// MemoryInUse is the bytes that objects and stacks of the process take, garbage included.
func MemoryInUse() uint64 {
	samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(samples)
	return samples[0].Value.Uint64() + samples[1].Value.Uint64()
}

// Size is a number of bytes as people read it.
func Size(n uint64) string {
	for _, unit := range []struct {
		name string
		size uint64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= unit.size {
			return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(n)/float64(unit.size)), ".0") + " " + unit.name
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
