//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// This file defines the rows of the document that measure commands and their
// output. To measure more, add to rows.

// A row is a table of the document.
type row struct {
	number  int
	title   string
	rounds  int               // how often each probe is taken; 1 is without a round to warm up
	against map[string]string // by the name of a figure: which one it is compared with

	// prepare returns what is measured by turns, and releases what it made for that.
	prepare func(ctx context.Context, b *bench) (probes []probe, release func(), err error)

	goals    func(*figures) []string // what was aimed at, beside what came of it; may be nil
	profiled []string                // the arguments of sbx-star for --profile; nil: profiles come from somewhere else
}

// A probe measures once, and adds what it found. A peer's may fail: it is left
// out then, and named.
type probe struct {
	name    string
	command string // to repeat it by hand
	peer    bool
	take    func(ctx context.Context, add adder) error
}

type adder = func(name string, u unit, value float64)

var rows = []row{
	{1, "From exec to exit: `print(1)`", 40, map[string]string{"sbx-star": "empty Go program", "python3": "empty Go program"}, prepareStart,
		func(fs *figures) []string {
			return []string{fmt.Sprintf("sbx-star takes %s ms more than an empty Go program (aim: at most 15)", number(fs.median("sbx-star")-fs.median("empty Go program")))}
		}, []string{"-c", "print(1)"}},
	{2, "A workflow that makes a sandbox: examples/hello.star", 15, map[string]string{"sbx-star": "bwrap", "docker": "bwrap", "podman": "bwrap"}, prepareHello,
		func(fs *figures) []string {
			if fs.get("bwrap") == nil {
				return nil
			}
			return []string{fmt.Sprintf("sbx-star takes %s ms more than twice what bwrap takes (aim: at most 40)", number(fs.median("sbx-star")-2*fs.median("bwrap")))}
		}, []string{"examples/hello.star"}},
	{3, "The runtime alone: create, first output, delete", 1, nil, goBenchmark("./runtime/namespace", "30x"), nil, nil},
	{4, "Commands that do nothing, in one sandbox", 5, map[string]string{"sbx-star": "fork and exec", "sbx-star, 16 at once": "fork and exec, 16 at once"}, prepareCommands,
		func(fs *figures) []string {
			return []string{
				fmt.Sprintf("a command costs %s µs more than fork and exec (aim: at most 1500)", number(fs.median("sbx-star")-fs.median("fork and exec"))),
				fmt.Sprintf("16 at once: %s µs more (aim: at most 1000, which is 1,000 commands a second beyond the fork)", number(fs.median("sbx-star, 16 at once")-fs.median("fork and exec, 16 at once"))),
			}
		}, []string{"bench/workflows/commands.star", "--count", "3000"}},
	{5, "1 GiB that a command writes, read in a loop", 3, map[string]string{
		"sbx-star, text":  "cat through a pipe",
		"sbx-star, bytes": "cat through a pipe",
		"sbx-star, lines": "cat through a pipe",
		"sbx-star, JSON":  "cat through a pipe",
		"Unix socket":     "cat through a pipe",
	}, prepareOutput,
		func(fs *figures) []string {
			return []string{
				fmt.Sprintf("exec.v1: %s MB/s (aim: 500); JSON: %s MB/s (aim: 150)", number(fs.median("sbx-star, text")), number(fs.median("sbx-star, JSON"))),
				fmt.Sprintf("the largest process held %s MiB with 1 GiB, and %s MiB with none", number(fs.median("sbx-star, text: memory")), number(fs.median("sbx-star, no output: memory"))),
			}
		}, []string{"bench/workflows/output.star"}},
	{6, "Files: 1 GiB, and 10,000 of 1 KiB", 3, map[string]string{
		"upload of a file": "tar | tar of a file", "download of a file": "tar | tar of a file", "cp of a file": "tar | tar of a file",
		"upload of a folder": "tar | tar of a folder", "download of a folder": "tar | tar of a folder", "cp of a folder": "tar | tar of a folder",
	}, prepareFiles, nil, []string{"bench/workflows/files.star", "--up", "go.sum"}},
	{7, "Tunnels: 1 GiB, and the round trip of a byte", 1, nil, goBenchmark("./tunnel", "1x"), nil, nil},
	{8, "parallel, over items that do nothing", 5, map[string]string{}, prepareParallel,
		func(fs *figures) []string {
			return []string{fmt.Sprintf("an item costs %s µs and %s KiB (aims: 20 µs, 8 KiB)", number(fs.median("sbx-star, an item")), number(fs.median("parallel: B/op")/parallelItems/1024))}
		}, []string{"bench/workflows/parallel.star", "--count", "100000"}},
	{9, "The server, over a runtime that makes nothing", 1, nil, prepareServer, serverGoals, nil},
	{10, "A workflow of 10,000 lines", 7, map[string]string{"check": "starlark", "run": "starlark", "first event": "starlark"}, prepareLong, nil, nil},
}

func nothingToRelease() {}

func prepareStart(ctx context.Context, b *bench) ([]probe, func(), error) {
	python := "python3"
	if said, err := exec.CommandContext(ctx, python, "-c", "import sys; print(sys.executable)").Output(); err == nil {
		python = strings.TrimSpace(string(said)) // what stands in the PATH may only look for it
	}
	return []probe{
		b.program("empty Go program", "go build -o empty ./bench/empty && time ./empty", false, b.empty),
		b.program("python3", "time python3 -c 'print(1)'", true, python, "-c", "print(1)"),
		b.workflow("sbx-star", "-c", "print(1)"),
	}, nothingToRelease, nil
}

// program measures a program from exec to exit.
func (b *bench) program(name, command string, peer bool, argv ...string) probe {
	return probe{name, command, peer, func(ctx context.Context, add adder) error {
		s, err := b.run(ctx, argv[0], argv[1:]...)
		if err == nil {
			add(name, milliseconds, ms(s.wall))
		}
		return err
	}}
}

// workflow measures sbx-star from exec to exit.
func (b *bench) workflow(name string, args ...string) probe {
	return probe{name, "time ./sbx-star " + shellWords(args), false, func(ctx context.Context, add adder) error {
		s, err := b.star(ctx, args...)
		if err == nil {
			add(name, milliseconds, ms(s.wall))
			add(name+": CPU", milliseconds, ms(s.cpu))
		}
		return err
	}}
}

func shellWords(args []string) string {
	words := make([]string, len(args))
	for i, a := range args {
		if strings.ContainsAny(a, " ()'\"$;|*") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		words[i] = a
	}
	return strings.Join(words, " ")
}

// hello is what examples/hello.star runs, file included.
const hello = `cd /tmp; echo hello, world >greeting.txt; for word in $(cat greeting.txt); do echo $word; sleep 0.1; done; cat /proc/[0-9]*/comm`

func prepareHello(_ context.Context, b *bench) ([]probe, func(), error) {
	bwrap := []string{"--unshare-all", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "/bin/bash", "-c", hello}
	container := []string{"run", "--rm", "--pull", "never", "--network", "none", "debian:stable-slim", "/bin/bash", "-c", hello}
	probes := []probe{b.workflow("sbx-star", "examples/hello.star")}
	for _, peer := range []struct {
		name string
		args []string
	}{{"bwrap", bwrap}, {"docker", container}, {"podman", container}} {
		probes = append(probes, b.program(peer.name, "time "+peer.name+" "+shellWords(peer.args), true, append([]string{peer.name}, peer.args...)...))
	}
	return probes, nothingToRelease, nil
}

// beyond measures a workflow, less what it takes with nothing to do, as one
// value: both are taken right after another.
func (b *bench) beyond(ctx context.Context, nothing, all []string) (spent, error) {
	base, err := b.star(ctx, nothing...)
	if err != nil {
		return spent{}, err
	}
	s, err := b.star(ctx, all...)
	s.wall -= base.wall
	s.cpu -= base.cpu
	return s, err
}

// sized is n, as the run is to be smaller or larger.
func (b *bench) sized(n int) int { return max(1, int(float64(n)*b.scale)) }

func prepareCommands(_ context.Context, b *bench) ([]probe, func(), error) {
	count := b.sized(1000)
	const script = "bench/workflows/commands.star"
	star := func(name, limit string) probe {
		args := []string{script, "--count", fmt.Sprint(count), "--parallel-limit", limit}
		return probe{name, "time ./sbx-star " + shellWords(args), false, func(ctx context.Context, add adder) error {
			s, err := b.beyond(ctx, []string{script, "--count", "0"}, args)
			if err == nil {
				add(name, microseconds, ms(s.wall)*1000/float64(count))
				add(name+": CPU", microseconds, ms(s.cpu)*1000/float64(count))
			}
			return err
		}}
	}
	fork := func(name string, atOnce int) probe {
		return probe{name, "", false, func(ctx context.Context, add adder) error {
			begin := time.Now()
			err := atOnceDo(count, atOnce, func() error {
				cmd := exec.CommandContext(ctx, "/bin/bash", "-c", "true")
				cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/", "USER=root", "LOGNAME=root", "LANG=C.UTF-8"} // as in a sandbox
				var stdout, stderr bytes.Buffer
				cmd.Stdout, cmd.Stderr = &stdout, &stderr
				return cmd.Run()
			})
			add(name, microseconds, ms(time.Since(begin))*1000/float64(count))
			return err
		}}
	}
	return []probe{
		fork("fork and exec", 1), star("sbx-star", "1"),
		fork("fork and exec, 16 at once", 16), star("sbx-star, 16 at once", "16"),
	}, nothingToRelease, nil
}

// atOnceDo calls do count times from a number of goroutines, and returns the
// first error once all have ended.
func atOnceDo(count, goroutines int, do func() error) error {
	work := make(chan struct{}, count)
	for range count {
		work <- struct{}{}
	}
	close(work)
	failed := make(chan error, goroutines)
	var all sync.WaitGroup
	for range goroutines {
		all.Go(func() {
			for range work {
				if err := do(); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	all.Wait()
	close(failed)
	return <-failed
}

func prepareOutput(ctx context.Context, b *bench) ([]probe, func(), error) {
	mib := b.sized(1024)
	size := int64(mib) << 20
	const script = "bench/workflows/output.star"
	writer := fmt.Sprintf(`perl -e '$block = ("x" x 1023 . "\n") x 64; for (1 .. %d) { syswrite(STDOUT, $block) }'`, mib*16)
	text, release, err := textServer(b.dir)
	if err != nil {
		return nil, nil, err
	}
	star := func(name string, before []string, flags ...string) probe {
		args := append(append(before[:len(before):len(before)], script), flags...)
		command := "time ./sbx-star " + shellWords(append([]string{script}, flags...))
		if len(before) > 0 {
			command += "  # with --endpoint, on a server that takes Sec-WebSocket-Protocol away"
		}
		return probe{name, command, false, func(ctx context.Context, add adder) error {
			s, err := b.beyond(ctx, append(args[:len(args):len(args)], "--mib", "0"), append(args[:len(args):len(args)], "--mib", fmt.Sprint(mib)))
			if err == nil {
				add(name, throughput, rate(size, s.wall))
				add(name+": CPU", unit{name: "s/GiB"}, s.cpu.Seconds()*float64(1<<30)/float64(size))
				add(name+": memory", mebibytes, s.memory)
			}
			return err
		}}
	}
	return []probe{
		{"cat through a pipe", "time " + writer + " | cat >/dev/null", false, func(ctx context.Context, add adder) error {
			s, err := b.run(ctx, "/bin/sh", "-c", writer+" | cat >/dev/null")
			add("cat through a pipe", throughput, rate(size, s.wall))
			return err
		}},
		{"Unix socket", "", false, func(ctx context.Context, add adder) error {
			begin := time.Now()
			err := throughSocket(size)
			add("Unix socket", throughput, rate(size, time.Since(begin)))
			return err
		}},
		{"sbx-star, no output", "", false, func(ctx context.Context, add adder) error {
			s, err := b.star(ctx, script, "--mib", "0")
			add("sbx-star, no output: memory", mebibytes, s.memory)
			return err
		}},
		star("sbx-star, text", nil),
		star("sbx-star, bytes", nil, "--no-text"),
		star("sbx-star, lines", nil, "--lines"),
		star("sbx-star, JSON", []string{"--endpoint", text}),
	}, release, nil
}

// throughSocket copies bytes from one goroutine to another through a pair of
// Unix sockets, 64 KiB at a time.
func throughSocket(size int64) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ends := make([]net.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		ends[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			return err
		}
		defer ends[i].Close()
	}
	written := make(chan error, 1)
	go func() {
		block := make([]byte, 64<<10)
		var err error
		for left := size; left > 0 && err == nil; left -= int64(len(block)) {
			_, err = ends[0].Write(block)
		}
		ends[0].Close()
		written <- err
	}()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{ends[1]}, make([]byte, 64<<10))
	if failed := <-written; failed != nil {
		return failed
	}
	return err
}

func prepareFiles(_ context.Context, b *bench) ([]probe, func(), error) {
	from := filepath.Join(b.dir, "from")
	file, folder := filepath.Join(from, "large"), filepath.Join(from, "many")
	count, size := b.sized(10_000), int64(b.sized(1<<30))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, nil, err
	}
	for i := range count {
		if err := os.WriteFile(filepath.Join(folder, fmt.Sprintf("%05d", i)), make([]byte, 1024), 0o644); err != nil {
			return nil, nil, err
		}
	}
	if err := fill(file, size); err != nil {
		return nil, nil, err
	}
	to := filepath.Join(b.dir, "to")
	const script = "bench/workflows/files.star"
	var probes []probe
	for _, what := range []struct {
		name, path string
		figure     func(time.Duration) (unit, float64)
	}{
		{"a file", file, func(d time.Duration) (unit, float64) { return throughput, rate(size, d) }},
		{"a folder", folder, func(d time.Duration) (unit, float64) {
			return unit{name: "files/s", more: true}, float64(count) / d.Seconds()
		}},
	} {
		plain := func(name, command string) probe {
			name += " of " + what.name
			return probe{name, "", false, func(ctx context.Context, add adder) error {
				s, err := b.run(ctx, "/bin/sh", "-c", fmt.Sprintf(command, filepath.Dir(what.path), filepath.Base(what.path), to))
				if err == nil {
					u, v := what.figure(s.wall)
					add(name, u, v)
				}
				return clear(err, to)
			}}
		}
		star := func(name string, base, all []string) probe {
			name += " of " + what.name
			return probe{name, "", false, func(ctx context.Context, add adder) error {
				s, err := b.beyond(ctx, base, all)
				if err == nil {
					u, v := what.figure(s.wall)
					add(name, u, v)
					add(name+": CPU", unit{name: "s"}, s.cpu.Seconds())
					add(name+": memory", mebibytes, s.memory)
				}
				return clear(err, to)
			}}
		}
		up := []string{script, "--up", what.path}
		probes = append(probes,
			plain("cp", "cp -r %s/%s %s"),
			plain("tar | tar", "mkdir -p %[3]s && tar -cf - -C %[1]s %[2]s | tar -xf - -C %[3]s"),
			star("upload", []string{script}, up),
			star("download", up, append(up[:len(up):len(up)], "--down", to)))
	}
	probes[2].command = "time ./sbx-star " + script + " --up FILE [--down FILE]"
	return probes, nothingToRelease, nil
}

// clear deletes what a probe left for the next one.
func clear(err error, path string) error {
	if removed := os.RemoveAll(path); err == nil {
		err = removed
	}
	return err
}

// fill writes a file of bytes that are not all the same.
func fill(path string, size int64) error {
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i * i >> 7)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	for left := size; left > 0 && err == nil; left -= int64(len(block)) {
		_, err = f.Write(block[:min(left, int64(len(block)))])
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}
