package builtins

import "go.starlark.net/starlark"

// This file defines how a stream that breaks fails the loop that reads it.
//
// Starlark's Iterator.Next has no error to return: a stream that breaks looks
// like one that ended. So an iterator that fails leaves the error with its
// strand and cancels the thread; the interpreter stops before its next
// instruction, and the boundary that the error then reaches turns it back.

// A StreamError is the error of a stream, and the stack of the loop that read it.
type StreamError struct {
	Err   error
	Stack starlark.CallStack
}

func (e *StreamError) Error() string { return e.Err.Error() }
func (e *StreamError) Unwrap() error { return e.Err }

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
func settle(t *Task, err error) error {
	failure := t.strand.failure
	if failure == nil {
		return err
	}
	t.strand.failure = nil
	t.thread.Uncancel()
	if t.cancelled() != nil {
		t.cancelThread()
	}
	return failure
}
