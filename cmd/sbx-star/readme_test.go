//go:build linux

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// duration is the one thing in what sbx-star prints that is never the same.
var duration = regexp.MustCompile(`\(\d+\.\d\ds\)`)

// TestReadme runs the sessions that the README shows: each line that starts
// with a dollar, and what it says to print.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	program := filepath.Join(t.TempDir(), "sbx-star") // the name makes this binary be the command
	if err := os.Symlink(self, program); err != nil {
		t.Fatal(err)
	}
	commands := 0
	for _, block := range strings.Split(string(readme), "```console\n")[1:] {
		session, _, _ := strings.Cut(block, "```")
		for _, step := range strings.Split(session, "$ ")[1:] {
			line, want, _ := strings.Cut(step, "\n")
			script, ok := strings.CutPrefix(line, "go run ./cmd/sbx-star ")
			if !ok {
				t.Fatalf("the README runs something else: %s", line)
			}
			commands++
			cmd := exec.Command("sh", "-c", `"$0" `+script, program)
			cmd.Dir = "../.."
			cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+state)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			cmd.Run() // some are shown to fail
			if got := out.String(); duration.ReplaceAllString(got, "") != duration.ReplaceAllString(want, "") {
				t.Errorf("$ %s\ngot:\n%s\nwant:\n%s", line, got, want)
			}
		}
	}
	if commands < 5 {
		t.Errorf("only %d commands were found", commands)
	}
	main, _, _ := strings.Cut(strings.SplitN(string(readme), "```python\n", 2)[1], "```")
	example, err := os.ReadFile("../../examples/hello.star")
	if err != nil {
		t.Fatal(err)
	}
	// The README leaves out the example's docstrings, and nothing else.
	for line := range strings.Lines(main) {
		if !strings.Contains(line, `"""`) && !strings.Contains(string(example), line) {
			t.Errorf("examples/hello.star has no line %q", line)
		}
	}
}
