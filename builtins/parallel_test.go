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
