//go:build linux

package namespace

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/runtime"
)

// This file defines what a sandbox costs, beside what a process costs.

// BenchmarkSandbox makes a sandbox, reads a command's first output, and removes
// the sandbox. It reports the medians of the three.
func BenchmarkSandbox(b *testing.B) {
	base, r := b.TempDir(), &Runtime{}
	var created, executed, removed []time.Duration
	for b.Loop() {
		spec := runtime.Spec{ID: "bench", Hostname: "bench", Dir: filepath.Join(base, "bench")}
		if err := os.Mkdir(spec.Dir, 0o755); err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		in, err := r.Create(b.Context(), spec)
		if err != nil {
			b.Fatal(err)
		}
		created = append(created, time.Since(start))
		start = time.Now()
		if got := (&box{Instance: in}).run(b, "echo hi"); got != "hi" {
			b.Fatal(got)
		}
		executed = append(executed, time.Since(start))
		start = time.Now()
		if err := in.Remove(context.Background()); err != nil {
			b.Fatal(err)
		}
		removed = append(removed, time.Since(start))
	}
	for unit, times := range map[string][]time.Duration{"create-ms": created, "command-ms": executed, "remove-ms": removed} {
		slices.Sort(times)
		b.ReportMetric(times[len(times)/2].Seconds()*1000, unit)
	}
}

// BenchmarkProcess starts a process that does nothing, and this program once.
func BenchmarkProcess(b *testing.B) {
	for _, command := range [][]string{{"/bin/true"}, {"/proc/self/exe", "-test.run=^$"}} {
		b.Run(filepath.Base(command[0]), func(b *testing.B) {
			for b.Loop() {
				if err := exec.Command(command[0], command[1:]...).Run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkStart stops a sandbox and starts it again. It reports the medians.
func BenchmarkStart(b *testing.B) {
	spec := newSpec(b)
	box := create(b, &Runtime{}, spec)
	var stopped, started []time.Duration
	for b.Loop() {
		start := time.Now()
		box.must(b, box.Stop)
		stopped = append(stopped, time.Since(start))
		start = time.Now()
		box.must(b, box.Start)
		started = append(started, time.Since(start))
	}
	for unit, times := range map[string][]time.Duration{"stop-ms": stopped, "start-ms": started} {
		slices.Sort(times)
		b.ReportMetric(times[len(times)/2].Seconds()*1000, unit)
	}
}

// BenchmarkSnapshot takes a snapshot of so many megabytes in files of 10 kB, and
// makes a sandbox from it. It reports the medians of both.
func BenchmarkSnapshot(b *testing.B) {
	for _, megabytes := range []int{1, 100} {
		b.Run(fmt.Sprint(megabytes), func(b *testing.B) {
			r := &Runtime{}
			full := create(b, r, newSpec(b))
			full.run(b, fmt.Sprintf("head -c %dM /dev/urandom | split -a 4 -b 10k", megabytes))
			spec := newSpec(b)
			spec.Snapshot = filepath.Join(b.TempDir(), "snapshot")
			var taken, booted []time.Duration
			for b.Loop() {
				start := time.Now()
				if err := full.Snapshot(b.Context(), spec.Snapshot); err != nil {
					b.Fatal(err)
				}
				taken = append(taken, time.Since(start))
				start = time.Now()
				in, err := r.Create(b.Context(), spec)
				if err != nil {
					b.Fatal(err)
				}
				booted = append(booted, time.Since(start))
				b.StopTimer()
				if err := in.Remove(context.Background()); err != nil {
					b.Fatal(err)
				}
				removeTree(b, spec.Snapshot)
				if err := os.Mkdir(spec.Dir, 0o755); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			for unit, times := range map[string][]time.Duration{"snapshot-ms": taken, "create-ms": booted} {
				slices.Sort(times)
				b.ReportMetric(times[len(times)/2].Seconds()*1000, unit)
			}
		})
	}
}
