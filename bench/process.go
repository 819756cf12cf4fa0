//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// This file defines how a whole process is measured, from outside.

// spent is what a process took, together with those that it waited for.
type spent struct {
	wall, cpu time.Duration
	memory    float64 // MiB that the largest of them held
}

// run runs a program to its end. Its output is thrown away, and shown if it fails.
func (b *bench) run(ctx context.Context, program string, args ...string) (spent, error) {
	return b.measure(ctx, exec.Command(program, args...))
}

// star runs sbx-star with a state folder of the harness's own.
func (b *bench) star(ctx context.Context, args ...string) (spent, error) {
	return b.measure(ctx, b.starCommand(args...))
}

func (b *bench) starCommand(args ...string) *exec.Cmd {
	cmd := exec.Command(b.binary, args...)
	cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+filepath.Join(b.dir, "state"))
	return cmd
}

func (b *bench) measure(ctx context.Context, cmd *exec.Cmd) (spent, error) {
	var said bytes.Buffer
	if cmd.Stderr == nil {
		cmd.Stderr = &said
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return spent{}, err
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })
	err := cmd.Wait()
	wall := time.Since(begin)
	stop()
	if ctx.Err() != nil {
		return spent{}, context.Cause(ctx)
	}
	if err != nil {
		return spent{}, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(said.Bytes()))
	}
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return spent{wall, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), float64(usage.Maxrss) / 1024}, nil
}

func ms(d time.Duration) float64 { return d.Seconds() * 1000 }

// rate is MB/s, of 1,000,000 bytes.
func rate(bytes int64, d time.Duration) float64 { return float64(bytes) / 1e6 / d.Seconds() }
