//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/sbx-star/sbx-star/internal/fakeserver"
)

// This file defines the rows that measure parts: those that Go benchmarks
// measure, parallel, and the loading of a workflow.

// goBenchmark makes a row of what the benchmarks of a package print.
func goBenchmark(pkg, times string) func(context.Context, *bench) ([]probe, func(), error) {
	return func(context.Context, *bench) ([]probe, func(), error) {
		command := []string{"test", "-run", "^$", "-bench", ".", "-benchtime", times, "-count", "3", pkg}
		return []probe{{pkg, "go " + shellWords(command), false, func(ctx context.Context, add adder) error {
			said, err := goTest(ctx, command)
			if err == nil {
				parseBenchmarks(said, add)
			}
			return err
		}}}, nothingToRelease, nil
	}
}

func goTest(ctx context.Context, args []string) (string, error) {
	said, err := exec.CommandContext(ctx, "go", args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, said)
	}
	return string(said), nil
}

// parseBenchmarks adds what go test -bench has printed. A benchmark that has
// units of its own is told by those, and by the time of a run otherwise.
func parseBenchmarks(text string, add adder) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name := strings.TrimPrefix(fields[0], "Benchmark")
		if i := strings.LastIndexByte(name, '-'); i > 0 {
			if _, err := strconv.Atoi(name[i+1:]); err == nil {
				name = name[:i] // less the number of processors
			}
		}
		own := len(fields) > 4
		for i := 2; i+1 < len(fields); i += 2 {
			value, err := strconv.ParseFloat(fields[i], 64)
			if err != nil || own && fields[i+1] == "ns/op" {
				continue
			}
			u := unit{name: fields[i+1]}
			if u.name == "ns/op" {
				value, u = value/1e6, milliseconds
			}
			u.more = strings.HasSuffix(u.name, "/s")
			add(name+": "+fields[i+1], u, value)
		}
	}
}

const parallelItems = 10_000

func prepareParallel(_ context.Context, b *bench) ([]probe, func(), error) {
	const script, sandboxes = "bench/workflows/parallel.star", "bench/workflows/sandboxes.star"
	fake, err := fakeserver.Start(fakeserver.Options{Now: time.Now})
	if err != nil {
		return nil, nil, err
	}
	count, boxes := b.sized(parallelItems), b.sized(1000)
	test := []string{"test", "-run", "^$", "-bench", "^BenchmarkParallel$", "-benchtime", "20x", "./builtins"}
	star := func(name string, u unit, n int, before []string, script string) probe {
		args := append(before[:len(before):len(before)], script, "--count", fmt.Sprint(n))
		none := append(before[:len(before):len(before)], script, "--count", "0")
		return probe{name, "time ./sbx-star " + shellWords(args[len(before):]), false, func(ctx context.Context, add adder) error {
			s, err := b.beyond(ctx, none, args)
			if err == nil {
				d := ms(s.wall) / float64(n)
				if u == microseconds {
					d *= 1000
				}
				add(name, u, d)
			}
			return err
		}}
	}
	return []probe{
		star("sbx-star, an item", microseconds, count, nil, script),
		star("sandboxes of the fake server, each", milliseconds, boxes, []string{"--endpoint", fake.URL()}, sandboxes),
		{"go", "go " + shellWords(test), false, func(ctx context.Context, add adder) error {
			said, err := goTest(ctx, test)
			if err == nil {
				parseBenchmarks(strings.ReplaceAll(said, "BenchmarkParallel/", "Benchmark"), add)
			}
			return err
		}},
	}, func() { fake.Close() }, nil
}

func prepareLong(_ context.Context, b *bench) ([]probe, func(), error) {
	path := filepath.Join(b.dir, "long.star")
	if err := os.WriteFile(path, longWorkflow(b.sized(10_000)), 0o644); err != nil {
		return nil, nil, err
	}
	star := func(name string, args ...string) probe {
		p := b.workflow(name, append(args, path)...)
		p.command = "time ./sbx-star " + shellWords(append(args, "long.star"))
		return p
	}
	probes := []probe{star("check", "check"), star("run"),
		{"first event", "", false, func(ctx context.Context, add adder) error {
			took, err := b.firstEvent(ctx, path)
			add("first event", milliseconds, ms(took))
			return err
		}}}
	if b.starlark != "" {
		probes = append(probes, b.program("starlark", "go run "+b.interpreter+" long.star", true, b.starlark, path))
	}
	return probes, nothingToRelease, nil
}

// longWorkflow is a workflow of that many lines, of which main calls some.
func longWorkflow(lines int) []byte {
	var w bytes.Buffer
	n := 0
	for ; 9*n < lines-4; n++ {
		fmt.Fprintf(&w, "def step_%d(x, name = \"step %d\"):\n    \"\"\"Step %d.\"\"\"\n    values = [x + i for i in range(3)]\n"+
			"    table = {\"name\": name, \"values\": values, \"sum\": values[0] + values[1]}\n    if table[\"sum\"] > %d:\n"+
			"        return table\n    return {\"name\": name.upper(), \"values\": sorted(values)}\n\n", n, n, n, n)
	}
	fmt.Fprintf(&w, "def main():\n    step_0(1)\n    print(step_%d(2)[\"name\"])\n", n-1)
	// starlark runs no main, and the top level may not call one.
	return w.Bytes()
}

// firstEvent is how long sbx-star takes until it tells of anything.
func (b *bench) firstEvent(ctx context.Context, path string) (time.Duration, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer read.Close()
	cmd := b.starCommand("--events", "/dev/fd/3", path)
	cmd.ExtraFiles = []*os.File{write}
	begin := time.Now()
	ended := make(chan error, 1)
	go func() {
		_, err := b.measure(ctx, cmd)
		write.Close()
		ended <- err
	}()
	_, err = bufio.NewReader(read).ReadByte()
	took := time.Since(begin)
	if failed := <-ended; failed != nil {
		return 0, failed
	}
	return took, err
}
