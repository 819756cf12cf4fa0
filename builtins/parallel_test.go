package builtins

import (
	"io"
	"sync"
	"testing"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// This file measures what a task costs.

// BenchmarkParallel runs 10,000 items that do nothing; beside it stands what as
// many goroutines cost that are started eight at a time.
func BenchmarkParallel(b *testing.B) {
	const items = 10_000
	b.Run("goroutines", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			slots := make(chan struct{}, 8)
			var all sync.WaitGroup
			for range items {
				slots <- struct{}{}
				all.Go(func() { <-slots })
			}
			all.Wait()
		}
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/items, "µs/item")
	})
	b.Run("parallel", func(b *testing.B) {
		task := NewTask(b.Context(), NewRun(Options{Stdout: io.Discard}))
		predeclared, _ := Predeclared(task)
		program := "def nothing(x):\n    pass\n\ndef main():\n    parallel(nothing, range(10000))\n"
		globals, err := starlark.ExecFileOptions(&syntax.FileOptions{}, new(starlark.Thread), "bench.star", program, predeclared)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			err := task.Exec(Thread{Name: "main"}, func(thread *starlark.Thread) error {
				_, err := starlark.Call(thread, globals["main"], nil, nil)
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/items, "µs/item")
	})
}

// A session at its top level may start tasks once what it has defined is frozen.
func TestFreezeOfSession(t *testing.T) {
	task := NewTask(t.Context(), NewRun(Options{Stdout: io.Discard}))
	_, names := Predeclared(task)
	run := func(freeze func(), text string) error {
		return task.Exec(Thread{Name: "session", Freeze: freeze}, func(thread *starlark.Thread) error {
			_, err := starlark.ExecFileOptions(&syntax.FileOptions{TopLevelControl: true}, thread, "<session>", text, names)
			return err
		})
	}
	seen := starlark.NewList(nil)
	names["seen"] = seen
	const text = "[spawn(seen.append, 1), parallel(seen.append, [2])]"
	if err := run(nil, text); err == nil || seen.Len() != 0 {
		t.Errorf("got %v, and saw %v", err, seen)
	}
	if err := run(names.Freeze, text); err == nil || seen.Len() != 0 {
		t.Errorf("got %v, and saw %v", err, seen)
	}
	if err := task.Join(nil); err == nil {
		t.Error("the task that was spawned changed a frozen list")
	}
}
