//go:build linux

package namespace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/sbx-star/sbx-star/runtime"
)

// This file defines tests of what is decided before a sandbox is made, and of
// what is said if it can't be.

func TestPlanRoot(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"usr/bin", "usr/share/doc", "usr/local/lib", "usr/local/share/deep", "etc/ssl", "home/me", "var/lib", "opt/closed/mounted", "opt/open"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"etc/hosts", "etc/passwd", "usr/local/readme"} {
		if err := os.WriteFile(filepath.Join(root, file), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(root, "etc/fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"bin": "usr/bin", "usr/local/man": "share/man"} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(root, "opt/closed"), 0o750); err != nil {
		t.Fatal(err)
	}
	bin := link{"bin", "usr/bin"}
	for _, test := range []struct {
		mounts string
		want   plan
	}{
		{"", plan{Layers: []string{"usr", "etc", "opt"}, Links: []link{bin}}},
		{"usr etc home/me var/lib usrlocal", plan{Layers: []string{"usr", "etc", "opt"}, Links: []link{bin}}},
		{"usr/local/share", plan{
			Dirs:   []string{"usr", "usr/local"},
			Layers: []string{"usr/bin", "usr/local/lib", "usr/local/share", "usr/share", "etc", "opt"},
			Files:  []string{"usr/local/readme"},
			Links:  []link{{"usr/local/man", "share/man"}, bin},
		}},
		{"etc/hosts opt/closed/mounted", plan{
			Dirs:   []string{"etc", "opt"},
			Layers: []string{"usr", "etc/ssl", "opt/open"},
			Files:  []string{"etc/passwd"},
			Links:  []link{bin},
		}},
	} {
		got, err := planRoot(root, strings.Fields(test.mounts))
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("mounts %q:\n got %+v, %v\nwant %+v", test.mounts, got, err, test.want)
		}
	}
	if _, err := planRoot(t.TempDir(), nil); !isUnsupported(err) {
		t.Errorf("an empty root: %v", err)
	}
}

func isUnsupported(err error) bool {
	_, ok := errors.AsType[*runtime.Unsupported](err)
	return ok
}

func TestMountPoints(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOf(rapid.StringMatching(`[^\x00/][^\x00]*`)).Draw(t, "mount points")
		var text strings.Builder
		escape := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)
		for i, point := range want {
			fmt.Fprintf(&text, "%d 1 0:5 / /%s rw - tmpfs none rw\n", i, escape.Replace(point))
		}
		got, err := mountPoints(text.String())
		if err != nil || strings.Join(got, "|") != strings.Join(want, "|") {
			t.Fatalf("got %q, %v", got, err)
		}
	})
	if _, err := mountPoints("1 2 3\n"); err == nil {
		t.Error("a short line is taken")
	}
}

func FuzzMountPoints(f *testing.F) {
	f.Add("22 27 0:21 / /proc rw,relatime - proc proc rw\n")
	f.Add(`1 1 0:1 / /a\040b\9 rw - x y z`)
	f.Fuzz(func(t *testing.T, text string) {
		points, err := mountPoints(text)
		if err == nil && len(points) > strings.Count(text, "\n")+1 {
			t.Errorf("%d lines give %q", strings.Count(text, "\n")+1, points)
		}
	})
}

func TestChooseIDs(t *testing.T) {
	const all = "         0          0 4294967295\n"
	const container = "         0     100000      65536\n"
	for _, test := range []struct {
		uid            int
		uidMap, gidMap string
		host, count    int
		groups         bool
	}{
		{1000, all, all, 1000, 1, false},
		{0, all, all, firstID, idCount, true},
		{0, container, container, nobodyID, 1, true},
		{0, all, container, nobodyID, 1, true},
		{0, "0 1000 1\n1 100000 65536\n", "0 1000 1\n1 100000 65536\n", nobodyID, 1, true},
		{0, "0 1000 1\n", "0 1000 1\n", 0, 1, false},
		{0, "", "nonsense", 0, 1, false},
	} {
		got := chooseIDs(test.uid, test.uid, test.uidMap, test.gidMap)
		if got.uid.HostID != test.host || got.gid.HostID != test.host || got.uid.Size != test.count || got.gid.Size != test.count ||
			got.groups != test.groups || got.many != (test.count > 1) || got.uid.ContainerID != 0 {
			t.Errorf("%d with %q and %q: %+v", test.uid, test.uidMap, test.gidMap, got)
		}
	}
}

func TestExplain(t *testing.T) {
	user := machine{setting: func(string) string { return "" }}
	with := func(m machine, name, value string) machine {
		m.setting = func(asked string) string {
			if asked == name {
				return value
			}
			return ""
		}
		return m
	}
	root, filtered := user, user
	root.root = true
	filtered.filtered = true
	for _, test := range []struct {
		step    string
		errno   unix.Errno
		machine machine
		want    string // in the text
	}{
		{stepClone, unix.ENOSPC, with(user, "user/max_user_namespaces", "0"), "sysctl user.max_user_namespaces=10000"},
		{stepClone, unix.ENOSPC, with(user, "user/max_user_namespaces", "100"), "remove sandboxes"},
		{stepClone, unix.EPERM, with(user, "kernel/unprivileged_userns_clone", "0"), "sysctl kernel.unprivileged_userns_clone=1"},
		{stepClone, unix.EPERM, with(user, "kernel/apparmor_restrict_unprivileged_userns", "1"), "sysctl kernel.apparmor_restrict_unprivileged_userns=0"},
		{"give up rights", unix.EACCES, with(user, "kernel/apparmor_restrict_unprivileged_userns", "1"), "AppArmor"},
		{stepLayers, unix.EPERM, with(root, "kernel/apparmor_restrict_unprivileged_userns", "1"), "overlay"},
		{stepClone, unix.EPERM, filtered, "seccomp=unconfined"},
		{stepClone, unix.EPERM, root, "security module"},
		{stepClone, unix.EACCES, root, "chmod a+rx"},
		{stepClone, unix.EINVAL, user, "CONFIG_USER_NS"},
		{stepClone, unix.EDQUOT, user, "kernel.keys.maxkeys"},
		{stepProc, unix.EPERM, user, "systempaths=unconfined"},
		{stepLayers, unix.ENODEV, user, "modprobe overlay"},
		{stepLayers, unix.EPERM, user, "Linux 5.12"},
		{stepLayers, unix.EINVAL, user, "XDG_STATE_HOME"},
		{stepSources, unix.ENOSYS, user, "Linux 5.12"},
		{stepSources, unix.EPERM, filtered, "does not let a sandbox take the host's system folders"},
		{stepFilter, unix.EINVAL, user, "CONFIG_SECCOMP_FILTER"},
		{stepFilter, unix.ENOSYS, user, "amd64 or arm64"},
		{stepBox, unix.EIO, user, "could not make the sandbox's own folders: text"},
	} {
		err := explain(outcome{Step: test.step, Text: "text", Errno: test.errno}, test.machine)
		text := err.Error()
		if !isUnsupported(err) || !errors.Is(err, test.errno) || !strings.Contains(text, test.want) ||
			!strings.Contains(text, "--runtime process") || !strings.Contains(text, "--endpoint URL") || strings.HasSuffix(text, ".") {
			t.Errorf("%s, %v: %v, which should have %q", test.step, test.errno, err, test.want)
		}
	}
	for _, errno := range []unix.Errno{unix.ENOSPC, unix.EDQUOT} {
		err := explain(outcome{Step: stepLayers, Text: "text", Errno: errno}, user)
		if !errors.Is(err, runtime.ErrDiskFull) || isUnsupported(err) || !strings.HasPrefix(err.Error(), "the disk is full") {
			t.Errorf("%v: %v", errno, err)
		}
	}
	for _, out := range []outcome{{Step: stepClone, Errno: unix.EAGAIN, Text: "text"}, {Step: stepBox, Text: "text"}} {
		if err := explain(out, user); isUnsupported(err) || !strings.Contains(err.Error(), "text") {
			t.Errorf("%+v: %v", out, err)
		}
	}
}
