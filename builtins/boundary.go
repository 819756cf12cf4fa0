package builtins

import (
	"errors"
	"fmt"
	"runtime"

	"go.starlark.net/starlark"
)

// This file defines how a stream that breaks fails the loop that reads it.
//
// Starlark's Iterator.Next has no error to return: a stream that breaks looks
// like one that ended. So an iterator that fails leaves the error with its
// strand and cancels the thread; the interpreter stops before its next
// instruction, and the boundary that the error then reaches turns it back.

// A StreamError is an error that no call returned, such as that of a stream, and
// the stack that met it.
type StreamError struct {
	Err   error
	Stack starlark.CallStack
}

func (e *StreamError) Error() string { return e.Err.Error() }
func (e *StreamError) Unwrap() error { return e.Err }

// A strand is what the threads of one goroutine share.
type strand struct {
	run     *Run
	task    *Task // the one whose thread runs now
	failure *StreamError
	held    int    // how often it was entered
	inTask  bool   // of parallel or spawn: prints whole lines
	printed []byte // the line that has not ended yet
	limited bool   // runs only while it has one of the run's slots
	slot    bool   // has one
}

// enter binds the strand to the goroutine that calls, until the function that
// it returns is called there.
func (s *strand) enter() (leave func()) {
	if s.held++; s.held > 1 {
		return func() { s.held-- }
	}
	id := goroutine()
	s.run.strands.Store(id, s)
	return func() {
		s.held--
		s.run.strands.Delete(id)
	}
}

// here is the strand of the goroutine that calls. Starlark does not tell an
// iterator or an attribute on which thread it is used, and a value may be used
// by another task than the one that made it.
func (r *Run) here() *strand {
	s, ok := r.strands.Load(goroutine())
	if !ok {
		panic("a value of a workflow was used on a goroutine that is no task's")
	}
	return s.(*strand)
}

// goroutine is the number of the goroutine that calls, of which only its stack
// trace tells.
func goroutine() (id uint64) {
	var trace [40]byte
	n := runtime.Stack(trace[:], false)
	for _, c := range trace[len("goroutine "):n] {
		if c < '0' || c > '9' {
			break
		}
		id = id*10 + uint64(c-'0')
	}
	if id == 0 {
		panic(fmt.Sprintf("no goroutine's number in %q", trace[:n]))
	}
	return id
}

// fail ends the loop that runs on the strand with err. It must be called on
// the strand's goroutine, by an iterator that then returns false.
func (s *strand) fail(err error) {
	t := s.task
	if t.cancelled() != nil {
		t.cancelThread() // the task's own end, which perhaps has not reached the thread yet
		return
	}
	if s.failure == nil {
		s.failure = &StreamError{Err: err, Stack: t.thread.CallStack()}
	}
	t.thread.Cancel(err.Error())
}

// call is how Go code calls a Starlark function: an error that it returns is
// the typed one, and the thread can be used on.
func call(t *Task, fn starlark.Value, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	v, err := starlark.Call(t.thread, fn, args, kwargs)
	return v, settle(t, err)
}

// settle is the boundary: it returns the failure of a stream in place of err,
// whatever became of that on its way here, and takes back the cancellation of
// the thread, but not one that the task's context asked for.
//
// What the interpreter says of a cancelled thread becomes the cause of that.
func settle(t *Task, err error) error {
	failure := t.strand.failure
	if failure == nil {
		var e *starlark.EvalError
		if cause := t.cancelled(); cause != nil && errors.As(err, &e) {
			if inner := e.Unwrap(); inner == nil || inner.Error() == "Starlark computation cancelled: "+cause.Error() {
				return &StreamError{Err: cause, Stack: e.CallStack}
			}
		}
		return err
	}
	t.strand.failure = nil
	t.thread.Uncancel()
	if t.cancelled() != nil {
		t.cancelThread()
	}
	return failure
}
