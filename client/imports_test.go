package client

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// A Go program that uses the client or the tunnel gets what it stands on and
// nothing of the rest of the project.
func TestImports(t *testing.T) {
	const project = "github.com/sbx-star/sbx-star/"
	for name, allowed := range map[string][]string{
		"tunnel": {"tunnel"},
		"client": {"client", "tunnel", "wire"},
	} {
		out, err := exec.Command("go", "list", "-deps", project+name).Output()
		if err != nil {
			t.Fatal(err)
		}
		for path := range strings.Lines(string(out)) {
			path = strings.TrimSpace(path)
			if own, ok := strings.CutPrefix(path, project); ok && !slices.Contains(allowed, own) || strings.HasPrefix(path, "go.starlark.net") {
				t.Errorf("%s depends on %s", name, path)
			}
		}
	}
}
