//go:build linux

package namespace

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// This file defines tests of what is told of a machine.

func TestDiagnose(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	before := leftovers(t)
	for _, f := range Diagnose(t.Context(), dir) {
		t.Logf("%d %s: %s (%s)", f.Verdict, f.Name, f.Text, f.Mend)
		if f.Verdict == Failed || f.Name == "" || f.Text == "" {
			t.Errorf("%+v", f)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if after := leftovers(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if f := failed(Diagnose(t.Context(), file+"/state")); len(f) != 1 || f[0].Name != "state folder" || !strings.Contains(f[0].Mend, "XDG_STATE_HOME") {
		t.Errorf("got %+v", f)
	}
}

func failed(findings []Finding) (all []Finding) {
	for _, f := range findings {
		if f.Verdict == Failed {
			all = append(all, f)
		}
	}
	return all
}

// TestDiagnoseNoUsers has the probe and the trial say the same.
func TestDiagnoseNoUsers(t *testing.T) {
	out, err := helper(t, "diagnose", t.TempDir(), ownNamespaces(unix.CLONE_NEWUSER))
	if want := "namespaces: sysctl user.max_user_namespaces=10000\nsandbox: set them to some thousands, as in sysctl user.max_user_namespaces=10000"; err != nil || !strings.HasPrefix(out, want) {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestHierarchies(t *testing.T) {
	const (
		two   = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
		one   = "31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n32 23 0:28 / /sys/fs/c\\040p rw - cgroup cgroup rw,cpu,cpuacct\n"
		other = "33 23 0:29 / / rw - ext4 /dev/vda rw\nnonsense\n"
	)
	for _, test := range []struct{ mountinfo, memory, cpu, pids string }{
		{other, "", "", ""},
		{other + two, "", "", ""},
		{one + other, "/sys/fs/cgroup/memory", "/sys/fs/c p", ""},
	} {
		one := hierarchies(test.mountinfo)
		if one["memory"] != test.memory || one["cpu"] != test.cpu || one["pids"] != test.pids {
			t.Errorf("%s: got %v", test.mountinfo, one)
		}
	}
}
