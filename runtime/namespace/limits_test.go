//go:build linux

package namespace

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/runtime"
)

// This file defines tests of limits: of those that hold where control groups can
// be made, and of what there is without.

// limited makes a sandbox with limits, and nil where a controller is missing:
// elsewhere a test has nothing to say.
func limited(t *testing.T, r *Runtime, limits runtime.Limits, controllers ...string) *box {
	t.Helper()
	for _, name := range controllers {
		if r.controllers().parents[name] == "" {
			t.Logf("there is no control group for %s here", name)
			return nil
		}
	}
	spec := newSpec(t)
	spec.Limits = limits
	return create(t, r, spec)
}

const mebibyte = 1 << 20

func TestMemoryLimit(t *testing.T) {
	r := &Runtime{}
	b := limited(t, r, runtime.Limits{Memory: 256 * mebibyte}, memoryController)
	if b == nil {
		return
	}
	neighbour := newBox(t)
	for range 2 { // the daemon lives on
		result := b.try(t, "exec tail </dev/zero")
		if result.ExitCode != 137 || result.Reason != "killed: out of memory (limit 256Mi)" {
			t.Errorf("got exit code %d, reason %q: %s", result.ExitCode, result.Reason, result.Stderr)
		}
	}
	if got := b.try(t, "kill -9 $$"); got.ExitCode != 137 || got.Reason != "" {
		t.Errorf("one that killed itself: %+v", got)
	}
	if got := b.run(t, "echo alive"); got != "alive" {
		t.Errorf("got %q", got)
	}
	// What lies in memory counts, and leaves room for processes.
	for _, dir := range []string{"/tmp", "/dev/shm"} {
		if got := b.try(t, "head -c 200000000 /dev/zero >"+dir+"/file"); !strings.Contains(got.Stderr, "No space left") {
			t.Errorf("a file of 200 MB in %s: %+v", dir, got)
		}
	}
	if got := b.run(t, "echo alive"); got != "alive" {
		t.Errorf("got %q", got)
	}
	neighbour.run(t, "head -c 300000000 /dev/zero | tail >/dev/null")
}

func TestPidsLimit(t *testing.T) {
	b := limited(t, &Runtime{pids: 20}, runtime.Limits{}, pidsController)
	if b == nil {
		return
	}
	// dash gives up at once where bash tries again for half a minute.
	got, err := b.execute(t.Context(), "exec sh -c 'for i in $(seq 100); do sleep 1000 >/dev/null 2>&1 & echo; done'")
	if n := strings.Count(got.Stdout, "\n"); err != nil || n < 5 || n > 20 || got.ExitCode == 0 {
		t.Errorf("%d processes: %+v, %v", n, got, err)
	}
	b.run(t, "true") // the daemon lives on, and there is room for this one
	if err := b.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.run(t, "true")
}

// TestCPULimit looks at the share of a command that would take all it can get:
// there is an upper bound to it, however busy the machine is.
func TestCPULimit(t *testing.T) {
	b := limited(t, &Runtime{}, runtime.Limits{CPU: 200}, cpuController)
	if b == nil {
		return
	}
	begun := time.Now()
	times := b.run(t, "for i in 1 2; do for ((n = 0; n < 60000; n++)); do :; done & done; wait; times")
	used := times[strings.LastIndex(times, "\n")+1:] // by children
	share := seconds(t, used) / time.Since(begun).Seconds()
	t.Logf("%s in %v: %.3f cores", used, time.Since(begun), share)
	if seconds(t, used) < 0.1 {
		t.Errorf("too little was done to tell: %s", used)
	}
	if share > 0.3 { // a last period may be longer
		t.Errorf("%.3f cores, of 0.2", share)
	}
}

// seconds adds up a line of the shell's times, such as 0m1.250s 0m0.010s.
func seconds(t *testing.T, line string) (sum float64) {
	for _, field := range strings.Fields(line) {
		d, err := time.ParseDuration(field)
		if err != nil {
			t.Fatal(err)
		}
		sum += d.Seconds()
	}
	return sum
}

func TestFilesLimit(t *testing.T) {
	b := create(t, &Runtime{files: 100}, newSpec(t))
	if got := b.run(t, "ulimit -n; ulimit -Hn; ulimit -c"); got != "100\n100\n0" {
		t.Errorf("got %q", got)
	}
	if got := b.try(t, "ulimit -Hn 1000"); got.ExitCode == 0 {
		t.Error("a command can raise the limit")
	}
}

// TestGroupsGo looks for what is left of groups: after removal, after a failed
// start, and of a sandbox whose folder was deleted.
func TestGroupsGo(t *testing.T) {
	r := &Runtime{}
	parents := r.controllers().parents
	if len(parents) == 0 {
		t.Log("there are no control groups here")
		return
	}
	all := runtime.Limits{CPU: 500, Memory: 256 * mebibyte}
	spec := newSpec(t)
	spec.Limits = all
	groups := func() (found []string) {
		for _, parent := range parents {
			if dir := filepath.Join(parent, groupName(spec.Dir)); exists(dir) {
				found = append(found, dir)
			}
		}
		return found
	}
	b := create(t, r, spec)
	if len(groups()) == 0 {
		t.Error("there are none")
	}
	if got := b.run(t, "cut -d: -f3 /proc/self/cgroup | sort -u"); strings.Contains(got, "..") || strings.Contains(got, "sbx") {
		t.Errorf("a command sees the groups around its own: %q", got)
	}
	// A later server knows them, too.
	in, err := (&Runtime{}).Adopt(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if found := groups(); len(found) > 0 {
		t.Errorf("after a stop: %v", found)
	}
	if err := b.Start(t.Context()); err != nil || len(groups()) == 0 {
		t.Errorf("after a start: %v, %v", groups(), err)
	}
	if err := b.Remove(t.Context()); err != nil || len(groups()) > 0 {
		t.Errorf("after removal: %v, %v", groups(), err)
	}

	spec = newSpec(t)
	spec.Limits, spec.Mounts = all, []runtime.Mount{{Source: "/nowhere", Target: "/mnt"}}
	if _, err := r.Create(t.Context(), spec); err == nil || len(groups()) > 0 {
		t.Errorf("after a failed start: %v, %v", groups(), err)
	}

	spec = newSpec(t)
	g := r.controllers().plan(spec.Dir, all, 10)
	if err := g.make(spec.Dir); err != nil || len(groups()) == 0 {
		t.Fatal(groups(), err)
	}
	if (&Runtime{}).controllers(); len(groups()) == 0 {
		t.Error("those of a folder that is there were removed")
	}
	if err := os.RemoveAll(spec.Dir); err != nil {
		t.Fatal(err)
	}
	if (&Runtime{}).controllers(); len(groups()) > 0 {
		t.Errorf("of a sandbox without a folder: %v", groups())
	}
	if _, err := os.Stat(spec.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestWithoutGroups has each process limited for itself, which is told of a
// command only after its start.
func TestWithoutGroups(t *testing.T) {
	r := &Runtime{noGroups: true, pids: 50}
	if e := r.Info().Enforces; e.CPU || e.Memory || e.Pids {
		t.Errorf("enforced: %+v", e)
	}
	spec := newSpec(t)
	spec.Limits = runtime.Limits{CPU: 500, Memory: 64 * mebibyte}
	b := create(t, r, spec)
	if got := b.run(t, "until [ $(ulimit -u) = 50 ]; do :; done; ulimit -Hu; ulimit -d; ulimit -Hd"); got != "50\n65536\n65536" {
		t.Errorf("got %q", got)
	}
	if got := b.try(t, "until [ $(ulimit -u) = 50 ]; do :; done; exec tail </dev/zero"); got.ExitCode == 0 || got.Reason != "" {
		t.Errorf("got %+v", got)
	}
}
