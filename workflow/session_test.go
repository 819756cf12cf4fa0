package workflow_test

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/sbx-star/sbx-star/builtins"
	"github.com/sbx-star/sbx-star/event"
	"github.com/sbx-star/sbx-star/workflow"
)

// A session may start tasks: what it has defined is frozen then. A task outlives
// its statement, and one that failed and that nobody asked is told at the end.
func TestSessionStartsTasks(t *testing.T) {
	var out bytes.Buffer
	s := workflow.NewSession(t.Context(), workflow.Options{Stdout: &out})
	for _, statement := range []string{
		"seen = []\n",
		"def f(x):\n  return x + 1\n\n",
		"print(parallel(f, [1, 2]))\n",
		"t = spawn(f, 3)\n",
		"print(t.result(), t.done)\n",
		"print(attempt(seen.append, 1).error.message)\n",
		"print(attempt(lambda: [spawn(lambda: i) for i in [1]]).ok)\n",
		"for i in [1]:\n  print(attempt(spawn, lambda: i).ok)\n\n",
		"u = spawn(lambda: 1 // 0)\n",
		"while not u.done:\n  sleep(0.01)\n\n",
	} {
		if err := state(t, s, statement); err != nil {
			t.Errorf("%q: %v", statement, rendered(err))
		}
	}
	if err := s.Close(); err == nil || !strings.Contains(rendered(err), "floored division by zero") {
		t.Errorf("closing: %v", err)
	}
	want := "[2, 3]\n4 True\nappend: cannot append to frozen list\nFalse\nFalse\n"
	if out.String() != want {
		t.Errorf("printed\n%swant\n%s", out.String(), want)
	}
}

// state runs a statement.
func state(t *testing.T, s *workflow.Session, statement string) error {
	lines := strings.SplitAfter(statement, "\n")
	_, err := s.Statement(t.Context(), func() ([]byte, error) {
		if len(lines) == 0 {
			return nil, io.EOF
		}
		line := lines[0]
		lines = lines[1:]
		return []byte(line), nil
	})
	return err
}

// What a statement may use up is its own: the next one has as much.
func TestSessionBudgets(t *testing.T) {
	var events bytes.Buffer
	s := workflow.NewSession(t.Context(), workflow.Options{Stdout: io.Discard, Events: event.Terminal(&events),
		MaxSteps: 1_000_000, MaxMemory: builtins.MemoryInUse() + 64<<20})
	for _, statement := range []struct{ text, want string }{
		{"for i in range(100000): pass\n\n", ""},
		{"for i in range(100000): pass\n\n", ""},
		{"while True: pass\n\n", "executed more than 1000000 steps"},
		{"for i in range(100000): pass\n\n", ""},
		{"x = 'x' * 1000000000\n", "would use more than"},
		{"list(range(1000000000))\n", "would use more than"},
		{"parallel(lambda i: list(range(1000000000)), [1])\n", "would use more than"},
		{"def loop():\n  while True: pass\n\n", ""},
		{"parallel(lambda i: loop(), [1, 2])\n", "executed more than"},
		{"1 + 1\n", ""},
	} {
		err := state(t, s, statement.text)
		if got := rendered(err); (statement.want == "") != (err == nil) || !strings.Contains(got, statement.want) {
			t.Errorf("%q: got %q, want %q", statement.text, got, statement.want)
		}
	}
	for _, statement := range []string{
		"def grow():\n  kept = []\n  while True: kept.append('x' * 100000)\n\n",
		"task = spawn(grow)\n",
	} {
		if err := state(t, s, statement); err != nil {
			t.Errorf("%q: %v", statement, rendered(err))
		}
	}
	for {
		if err := state(t, s, "1 // int(task.done)\n"); err == nil {
			break
		}
	}
	if err := s.Close(); err != nil {
		t.Error(rendered(err))
	}
}

// Leaving a session cancels its tasks, and then releases.
func TestSessionIsLeft(t *testing.T) {
	b := newBench(t)
	s := workflow.NewSession(t.Context(), b.options)
	for _, statement := range []string{"sb = sandbox(name = 'web')\n", "spawn(lambda: sb.run('hang', timeout = 0))\n", "spawn(sleep, 10000)\n"} {
		if err := state(t, s, statement); err != nil {
			t.Errorf("%q: %v", statement, rendered(err))
		}
	}
	if err := s.Close(); err != nil {
		t.Error(rendered(err))
	}
	if names := b.boxNames(); len(names) > 0 {
		t.Errorf("left are %q", names)
	}
}
