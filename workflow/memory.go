package workflow

import (
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/sbx-star/sbx-star/builtins"
)

// This file defines how a workflow that takes all memory is ended before the
// machine is. One operation cannot be interrupted: a workflow may exceed its
// limit by what the last one takes, unless that is guarded (builtins.Guard).

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

// watchMemory calls stop when the process uses more than limit while something
// is busy, until stop reports false or the function that it returns is called,
// which waits for the end of the watching.
func watchMemory(limit uint64, busy func() bool, stop func(error) bool) (end func()) {
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
			if !busy() {
				continue
			}
			used := builtins.MemoryInUse()
			if used <= limit {
				continue
			}
			if used/2 < limit { // or else the workflow would go on while garbage is looked for
				runtime.GC()
				used = builtins.MemoryInUse()
			}
			if used > limit && !stop(&builtins.BudgetError{What: "used more than " + builtins.Size(limit) + " of memory", Flag: "--max-memory"}) {
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}
