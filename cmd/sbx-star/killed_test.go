//go:build linux

package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// This file kills runs on the embedded server, which dies with them, and has
// sbx-star gc look for what they have left.

// running creates one of each, keeps a command running, and comes to its end.
const running = `
def main():
    volume("data", size = "1Mi", ephemeral = True)
    template("tpl", image = "host", ephemeral = True)
    sandbox("tpl", name = "chosen").run("setsid sleep 1000 & echo started")
    boxes = parallel(lambda i: sandbox(), range(3))
    parallel(lambda sb: sb.write("f", "x" * 100000), boxes)
    boxes[0].delete()
    print("last")
`

// TestKilledAtAnyMoment kills runs after some part of the time that a run takes.
// Afterwards two collectors work at once.
func TestKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	state := filepath.Join(base, "sbx-star")
	sbxStar := func(args ...string) *exec.Cmd {
		cmd := commandIn(t, base, args...)
		output := new(bytes.Buffer)
		cmd.Stdout, cmd.Stderr = output, output
		return cmd
	}
	run := func(args ...string) string {
		t.Helper()
		cmd := sbxStar(args...)
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, cmd.Stdout)
		}
		return cmd.Stdout.(*bytes.Buffer).String()
	}
	began := time.Now()
	run("--local", "-c", running)
	whole := time.Since(began)

	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	const rounds = 12
	deleted := 0
	for round := range rounds {
		// One in each part of it, wherever it spends most of its time today.
		moment := time.Duration((float64(round) + random.Float64()) / rounds * float64(whole))
		cmd := sbxStar("--local", "-c", running)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(moment)
		cmd.Process.Kill()
		cmd.Wait()
		one, two := sbxStar("gc"), sbxStar("gc", "--local")
		if err := one.Start(); err != nil {
			t.Fatal(err)
		}
		if err := two.Run(); err != nil {
			t.Errorf("seed %d: killed after %v of %v: gc: %v\n%s", seed, moment, whole, err, two.Stdout)
		}
		if err := one.Wait(); err != nil {
			t.Errorf("seed %d: killed after %v of %v: gc: %v\n%s", seed, moment, whole, err, one.Stdout)
		}
		for _, output := range []any{one.Stdout, two.Stdout} {
			deleted += strings.Count(fmt.Sprint(output), "deleted ")
		}
		var left []string
		for _, pattern := range []string{"runs/*", "boxes/*"} {
			found, _ := filepath.Glob(filepath.Join(state, pattern))
			left = append(left, found...)
		}
		for _, pid := range processesIn(state) {
			command, _ := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "cmdline"))
			left = append(left, fmt.Sprintf("process %d %q", pid, command))
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil || strings.Contains(string(mounts), state) {
			left = append(left, "a mount")
		}
		if len(left) > 0 {
			t.Errorf("seed %d: killed after %v of %v: left are %q\n%s\n%s", seed, moment, whole, left, one.Stdout, two.Stdout)
		}
	}
	if left := run("--local", "-c", "print(sandbox.list(), volume.list(), template.list(), pool.list())"); left != "[] [] [] []\n" {
		t.Errorf("seed %d: left are %s", seed, left)
	}
	t.Logf("%d killed runs have left %d behind in all", rounds, deleted)
}
