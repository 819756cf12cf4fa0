//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// This file defines how it is found out where the time of a row goes: perf sees
// sbx-star, the daemons, the commands, and the kernel under all of them.

func (b *bench) profile(ctx context.Context, r row, stdout io.Writer) error {
	argv := append([]string{b.binary}, r.profiled...)
	switch {
	case r.number == 7: // the ends of a tunnel are in one process there
		argv = []string{"go", "test", "-run", "^$", "-bench", "/(up|down)/streams=1/tunnel", "-benchtime", "3x", "-o", filepath.Join(b.dir, "tunnel.test"), "./tunnel"}
	case r.profiled == nil:
		return fmt.Errorf("row %d has no profile: its parts are Go benchmarks, and go test has --cpuprofile", r.number)
	}
	if _, err := exec.LookPath("perf"); err != nil {
		return errors.New("there is no perf on this machine: install the package linux-perf, or linux-tools")
	}
	data := filepath.Join(b.dir, "perf.data")
	record := exec.CommandContext(ctx, "perf", append([]string{"record", "--quiet", "-F", "999", "-o", data}, argv...)...)
	record.Env = append(os.Environ(), "XDG_STATE_HOME="+filepath.Join(b.dir, "state"))
	record.Stderr = b.log
	if err := record.Run(); err != nil {
		return fmt.Errorf("perf record: %w", err)
	}
	for _, by := range []string{"comm,dso", "comm,dso,symbol"} {
		said, err := exec.CommandContext(ctx, "perf", "report", "-i", data, "--stdio", "--sort", by, "--percent-limit", "0.5").Output()
		if err != nil {
			return fmt.Errorf("perf report: %w", err)
		}
		fmt.Fprintf(stdout, "%% of the samples, by %s\n", strings.ReplaceAll(by, ",", ", "))
		for line := range strings.Lines(string(said)) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				fmt.Fprintln(stdout, line)
			}
		}
	}
	return nil
}
