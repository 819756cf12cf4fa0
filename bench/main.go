//go:build linux

// Command bench measures sbx-star on the machine at hand, each figure beside its
// limit and, where they are installed, beside its peers, and writes
// docs/benchmarks.md. It builds what it measures. Run it from the top of the
// module: go run ./bench --help.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/sbx-star/sbx-star/runtime/namespace"
	"github.com/sbx-star/sbx-star/runtime/process"
)

// This file defines the way from the flags to the document.

func main() {
	namespace.Child() // sandboxes of a server in this process have it as their daemon
	process.Child()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, pflag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench: error:", err)
		os.Exit(1)
	}
}

// bench is one run of the harness.
type bench struct {
	dir         string // of all that it writes; deleted at the end
	binary      string // of sbx-star
	empty       string // of the Go program that does nothing
	starlark    string // of the interpreter, or "" where it cannot be had
	interpreter string // its package, with a version
	scale       float64
	log         io.Writer
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	flags := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	only := flags.IntSlice("rows", nil, "measure only these `ROWS`, as in 1,2,4")
	factor := flags.Float64P("repeat", "n", 1, "`TIMES` the usual number of repetitions; less than 1 is for a quick look")
	scale := flags.Float64("scale", 1, "`TIMES` the usual sizes: less than 1 is quicker, and not what the document tells")
	output := flags.StringP("output", "o", "", "write the document to `FILE`, as docs/benchmarks.md, instead of stdout")
	profile := flags.Int("profile", 0, "instead of measuring, run what this `ROW` measures under perf and print where the time goes")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *factor <= 0 || *scale <= 0 {
		return errors.New("-n and --scale must be more than 0")
	}
	chosen := rows
	if *profile != 0 {
		*only = []int{*profile}
	}
	if *only != nil {
		chosen = nil
		for _, n := range *only {
			if n < 1 || n > len(rows) {
				return fmt.Errorf("there is no row %d: give 1 to %d", n, len(rows))
			}
			chosen = append(chosen, rows[n-1])
		}
	}
	b := &bench{scale: *scale, log: stderr}
	if b.dir, err = os.MkdirTemp("", "sbx-star-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if err := b.build(ctx); err != nil {
		return err
	}
	if *profile != 0 {
		return b.profile(ctx, chosen[0], stdout)
	}

	begin := time.Now()
	var results []result
	for _, r := range chosen {
		measured, err := b.row(ctx, r, *factor)
		if err != nil {
			return fmt.Errorf("row %d: %w", r.number, err)
		}
		results = append(results, measured)
	}
	text := document(b.machine(ctx), results, time.Since(begin))
	if *output == "" {
		_, err = io.WriteString(stdout, text)
		return err
	}
	return os.WriteFile(*output, []byte(text), 0o644)
}

// build makes the programs that are measured.
func (b *bench) build(ctx context.Context) error {
	fmt.Fprintln(b.log, "bench: building")
	b.binary, b.empty = filepath.Join(b.dir, "sbx-star"), filepath.Join(b.dir, "empty")
	for program, source := range map[string]string{b.binary: "./cmd/sbx-star", b.empty: "./bench/empty"} {
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", program, source)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if said, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, said)
		}
	}
	version, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", interpreter).Output()
	if err != nil {
		return fmt.Errorf("the version of %s: %w", interpreter, err)
	}
	b.interpreter = interpreter + "/cmd/starlark@" + strings.TrimSpace(string(version))
	install := exec.CommandContext(ctx, "go", "install", b.interpreter)
	install.Env = append(os.Environ(), "GOBIN="+b.dir)
	if said, err := install.CombinedOutput(); err != nil {
		fmt.Fprintf(b.log, "bench: without the starlark command: %v: %s\n", err, said)
	} else {
		b.starlark = filepath.Join(b.dir, "starlark")
	}
	return ctx.Err()
}

const interpreter = "go.starlark.net"

// result is a row that was measured.
type result struct {
	row
	figures  *figures
	commands []string
	missing  []string // peers that are not here, and why
}

// row measures the probes of a row by turns, so that whatever else the machine
// does meets all alike. The first turn is not counted.
func (b *bench) row(ctx context.Context, r row, factor float64) (result, error) {
	begin := time.Now()
	fmt.Fprintf(b.log, "bench: row %d: %s: ", r.number, r.title)
	defer fmt.Fprintln(b.log)
	measured := result{row: r, figures: &figures{}}
	probes, release, err := r.prepare(ctx, b)
	if err != nil {
		return measured, err
	}
	defer release()
	rounds := max(1, int(float64(r.rounds)*factor+0.5))
	for round := range rounds + 1 {
		if round == 0 && r.rounds == 1 {
			continue
		}
		probes = slices.DeleteFunc(probes, func(p probe) bool {
			add := measured.figures.add
			if round == 0 && r.rounds > 1 {
				add = func(string, unit, float64) {}
			}
			failed := p.take(ctx, add)
			if failed != nil && p.peer && ctx.Err() == nil {
				measured.missing = append(measured.missing, fmt.Sprintf("%s: %v", p.name, failed))
				return true
			}
			err = errors.Join(err, failed)
			return false
		})
		if err != nil {
			return measured, err
		}
		fmt.Fprint(b.log, ".")
	}
	for _, p := range probes {
		if p.command != "" {
			measured.commands = append(measured.commands, p.command)
		}
	}
	fmt.Fprintf(b.log, " %.0f s", time.Since(begin).Seconds())
	return measured, nil
}
