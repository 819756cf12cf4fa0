package builtins

import (
	"flag"
	"os"
	"strings"
	"testing"
)

var updateReference = flag.Bool("update", false, "rewrite docs/reference.md")

// docs/reference.md is what the stubs say.
func TestReference(t *testing.T) {
	const path = "../docs/reference.md"
	want := Reference()
	if *updateReference {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s is not what the stubs say; go test ./builtins -run Reference -update rewrites it (%v)", path, err)
	}
	for _, name := range []string{"## sandbox\n", "### sandbox.run\n", "### command.kill\n", "## the value command\n", "`using(value, fn)`",
		"## @std//wait.star\n", "\n### until\n\n`until(fn, timeout = 30, "} {
		if !strings.Contains(want, name) {
			t.Errorf("the reference has no %q", name)
		}
	}
}
