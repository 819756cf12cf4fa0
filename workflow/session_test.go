package workflow_test

import (
	"bytes"
	"io"
	"strings"
	"testing"

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
	} {
		lines := strings.SplitAfter(statement, "\n")
		_, err := s.Statement(t.Context(), func() ([]byte, error) {
			if len(lines) == 0 {
				return nil, io.EOF
			}
			line := lines[0]
			lines = lines[1:]
			return []byte(line), nil
		})
		if err != nil {
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
