package workflow

import (
	"context"
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	"github.com/sbx-star/sbx-star/builtins"
)

// This file defines how a workflow that takes all memory is ended before the
// machine is. One operation, such as joining strings, cannot be interrupted: a
// workflow may exceed its limit by what its last operation takes.

// memoryShare is which part of the machine's memory a workflow may use by
// default: one last operation, such as s + s, may make three times that of it.
const memoryShare = 4

// memoryEvery is how often the memory in use is looked at.
const memoryEvery = 5 * time.Millisecond

// DefaultMaxMemory is a quarter of the memory that the machine has, or that the
// control group of the process may use. It is 0, no limit, if neither is known.
func DefaultMaxMemory() uint64 {
	least := uint64(math.MaxUint64)
	for _, path := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/proc/meminfo"} {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		number, unit := string(text), uint64(1)
		if line, ok := strings.CutPrefix(number, "MemTotal:"); ok {
			number, _, _ = strings.Cut(line, "kB")
			unit = 1 << 10
		}
		if n, err := strconv.ParseUint(strings.TrimSpace(number), 10, 64); err == nil && n > 0 {
			least = min(least, n*unit)
		}
	}
	if least == math.MaxUint64 {
		return 0
	}
	return least / memoryShare
}

// watchMemory calls stop once the process uses more than limit, until the
// function that it returns is called, which waits for the end of the watching.
func watchMemory(limit uint64, stop context.CancelCauseFunc) (end func()) {
	if limit == 0 {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ticks := time.NewTicker(memoryEvery)
		defer ticks.Stop()
		for {
			select {
			case <-quit:
				return
			case <-ticks.C:
			}
			used := memoryInUse()
			if used <= limit {
				continue
			}
			if used/2 < limit { // or else the workflow would go on while garbage is looked for
				runtime.GC()
				used = memoryInUse()
			}
			if used > limit {
				stop(&builtins.BudgetError{What: "used more than " + size(limit) + " of memory", Flag: "--max-memory"})
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

// memoryInUse is what objects and stacks take, garbage included.
func memoryInUse() uint64 {
	samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(samples)
	return samples[0].Value.Uint64() + samples[1].Value.Uint64()
}

func size(n uint64) string {
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
