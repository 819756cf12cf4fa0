//go:build linux

package main

import (
	"bufio"
	"context"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// This file defines the document.

// texts are what people wrote about the rows, by their numbers.
//
//go:embed text
var texts embed.FS

func document(machine string, results []result, took time.Duration) string {
	var w strings.Builder
	w.WriteString("# Benchmarks\n\n")
	w.WriteString("Written by `go run ./bench -o docs/benchmarks.md`; the paragraphs under the tables are those of `bench/text`.\n\n")
	w.WriteString(written("about"))
	fmt.Fprintf(&w, "\n%s\nAll of it was measured in one run of %.0f minutes.\n", machine, took.Minutes()+0.5)
	for _, r := range results {
		w.WriteString("\n" + r.section())
	}
	return w.String()
}

func written(name string) string {
	text, err := texts.ReadFile("text/" + name + ".md")
	if err != nil {
		return ""
	}
	return string(text)
}

// section is a row: its table, what it comes to beside its goals, what is to be
// said of it, and how it is repeated.
func (r result) section() string {
	var w strings.Builder
	fmt.Fprintf(&w, "## %d. %s\n\n", r.number, r.title)
	w.WriteString(table(r.figures, r.against))
	w.WriteString("\n")
	for _, missing := range r.missing {
		fmt.Fprintf(&w, "Not measured: %s.\n\n", missing)
	}
	if r.goals != nil {
		for _, line := range r.goals(r.figures) {
			fmt.Fprintf(&w, "- %s\n", line)
		}
		w.WriteString("\n")
	}
	if text := written(fmt.Sprint(r.number)); text != "" {
		w.WriteString(text + "\n")
	}
	fmt.Fprintf(&w, "Again: `go run ./bench --rows %d`. By hand:\n\n```sh\n%s\n```\n", r.number, strings.Join(r.commands, "\n"))
	return w.String()
}

// table shows figures, each beside the one that against names for it.
func table(fs *figures, against map[string]string) string {
	var w strings.Builder
	w.WriteString("| | median | best | 9 of 10 | n | |\n|---|--:|--:|--:|--:|---|\n")
	for _, f := range fs.all {
		s := summarize(f)
		fmt.Fprintf(&w, "| %s | %s %s | %s | %s | %d | %s |\n", f.name, number(s.median), f.unit.name, number(s.best), number(s.p90), s.n, fs.ratio(f, against[f.name]))
	}
	return w.String()
}

// ratio compares the medians of two figures; "" if there is nothing to compare.
func (fs *figures) ratio(f *figure, with string) string {
	base := fs.median(with)
	if base == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f × %s", summarize(f).median/base, with)
}

// number has three digits that say something.
func number(v float64) string {
	switch {
	case v >= 100 || v <= -100 || v == 0:
		return fmt.Sprintf("%.0f", v)
	case v >= 10 || v <= -10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// machine says what was measured on, without saying whose it is.
func (b *bench) machine(ctx context.Context) string {
	var w strings.Builder
	fmt.Fprintf(&w, "| | |\n|---|---|\n| processor | %d × %s |\n", runtime.NumCPU(), line("/proc/cpuinfo", "model name"))
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		fmt.Fprintf(&w, "| memory | %d GiB |\n", (uint64(info.Totalram)*uint64(info.Unit)+1<<29)>>30)
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		fmt.Fprintf(&w, "| kernel | %s %s |\n", unix.ByteSliceToString(name.Sysname[:]), unix.ByteSliceToString(name.Release[:]))
	}
	user := "an ordinary user"
	if os.Geteuid() == 0 {
		user = "root"
	}
	fmt.Fprintf(&w, "| user | %s |\n| Go | %s |\n| starlark | %s |\n", user, runtime.Version(), b.interpreter)
	if info, err := os.Stat(b.binary); err == nil {
		fmt.Fprintf(&w, "| the binary | %.1f MB |\n", float64(info.Size())/1e6)
	}
	for _, peer := range []string{"bwrap", "docker", "podman", "python3", "tar"} {
		version := "not installed"
		if said, err := exec.CommandContext(ctx, peer, "--version").Output(); err == nil {
			version, _, _ = strings.Cut(strings.TrimSpace(string(said)), "\n")
		}
		fmt.Fprintf(&w, "| %s | %s |\n", peer, version)
	}
	return w.String()
}

// line is the value of the first line of a file that has this name.
func line(path, name string) string {
	f, err := os.Open(path)
	if err != nil {
		return "unknown"
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}
