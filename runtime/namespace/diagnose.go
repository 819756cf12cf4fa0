//go:build linux

package namespace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/runtime"
)

// This file defines what can be told of a machine that is to have sandboxes.

// Verdict is what a finding means.
type Verdict int

const (
	Good   Verdict = iota // it is there, or holds
	Absent                // it is not there, and sandboxes do without it
	Failed                // there are no sandboxes without it
)

// Finding is one thing that was looked at.
type Finding struct {
	Name    string
	Verdict Verdict
	Text    string // what there is
	Mend    string // what to do about it; "" if there is nothing to do
}

// Diagnose looks at this machine and, to be sure, makes a sandbox in the folder
// stateDir and removes it again. Sandboxes can be made here unless a finding has
// Failed. Of stateDir, which is made if it is missing, nothing else is left.
func Diagnose(ctx context.Context, stateDir string) []Finding {
	m := thisMachine()
	r := &Runtime{}
	state := stateFolder(stateDir)
	findings := []Finding{kernel(), whoRuns(m), namespaces(m), overlay(), filters(), r.groupsFound(m.root), subordinate(m), appArmor(m), kvm(), state}
	if state.Verdict == Failed {
		return findings
	}
	trial := r.trial(ctx, stateDir)
	findings = append(findings, trial)
	if trial.Verdict == Failed {
		return findings
	}
	return append(append(findings, r.storageTrial(ctx, stateDir)), r.enforced()...)
}

func kernel() Finding {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return Finding{"kernel", Failed, err.Error(), ""}
	}
	text := unix.ByteSliceToString(name.Sysname[:]) + " " + unix.ByteSliceToString(name.Release[:]) + " on " + unix.ByteSliceToString(name.Machine[:])
	if !overlayTakesIdmapped() {
		return Finding{"kernel", Absent, text + ": sandboxes of root have system files that belong to nobody", "use Linux 5.19 or later"}
	}
	return Finding{"kernel", Good, text, ""}
}

func whoRuns(m machine) Finding {
	f := Finding{"user", Good, "", ""}
	switch ids := hostIDs(); {
	case ids.many:
		f.Text = fmt.Sprintf("root: a sandbox has %d ids, from %d on outside, who are nobody", idCount, firstID)
	case m.root:
		f.Verdict = Absent
		f.Text = fmt.Sprintf("root of a container without the ids from %d on: a sandbox has one id", firstID)
	default:
		f.Verdict = Absent
		f.Text = fmt.Sprintf("ordinary user %d: a sandbox has this one id, so packages can't be installed and su does not work", os.Geteuid())
		f.Mend = "run as root if that is needed"
	}
	if m.filtered {
		f.Text += "; this process runs under a filter of system calls itself"
	}
	return f
}

func namespaces(m machine) Finding {
	var missing []string
	for _, name := range []string{"user", "mnt", "pid", "net", "uts", "ipc", "cgroup"} {
		if _, err := os.Lstat("/proc/self/ns/" + name); err != nil {
			missing = append(missing, name)
		}
	}
	limit := m.setting("user/max_user_namespaces")
	switch {
	case len(missing) > 0:
		return Finding{"namespaces", Failed, "this kernel lacks " + strings.Join(missing, ", "), "use one with CONFIG_NAMESPACES and all below it"}
	case limit == "0":
		return Finding{"namespaces", Failed, "user namespaces are switched off", "sysctl user.max_user_namespaces=10000"}
	case !m.root && m.setting("kernel/unprivileged_userns_clone") == "0":
		return Finding{"namespaces", Failed, "ordinary users may not make user namespaces", "sysctl kernel.unprivileged_userns_clone=1"}
	}
	return Finding{"namespaces", Good, "user, mount, pid, network, uts, ipc and cgroup; at most " + limit + " of users", ""}
}

func overlay() Finding {
	if systems, err := os.ReadFile("/proc/filesystems"); err == nil && !strings.Contains(string(systems), "\toverlay\n") {
		return Finding{"overlay", Absent, "not loaded: the kernel may load it by itself", "modprobe overlay"}
	}
	return Finding{"overlay", Good, "the kernel has it", ""}
}

func filters() Finding {
	actions, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	if err != nil {
		return Finding{"seccomp", Failed, "this kernel filters no system calls", "use one with CONFIG_SECCOMP_FILTER"}
	}
	return Finding{"seccomp", Good, strings.TrimSpace(string(actions)), ""}
}

// fileSystems are the names of those that state folders are often on.
var fileSystems = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "XFS", unix.BTRFS_SUPER_MAGIC: "Btrfs", unix.TMPFS_MAGIC: "tmpfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.NFS_SUPER_MAGIC: "NFS", unix.FUSE_SUPER_MAGIC: "FUSE",
}

func stateFolder(dir string) Finding {
	const mend = "choose another folder by XDG_STATE_HOME or --state-dir"
	failed := func(err error) Finding { return Finding{"state folder", Failed, err.Error(), mend} }
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return failed(err)
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return failed(&os.PathError{Op: "write to", Path: dir, Err: err})
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return failed(&os.PathError{Op: "statfs", Path: dir, Err: err})
	}
	system := fileSystems[int64(st.Type)]
	if system == "" {
		system = fmt.Sprintf("a file system of type %#x", st.Type)
	}
	free := st.Bavail * uint64(st.Bsize) >> 20
	text := fmt.Sprintf("%s on %s with %d MiB free", dir, system, free)
	if free < 64 {
		return Finding{"state folder", Failed, text, "make room there, or " + mend}
	}
	return Finding{"state folder", Good, text, ""}
}

// storageTrial tells how a limit on storage is enforced, after it has made a sandbox
// that has one.
func (r *Runtime) storageTrial(ctx context.Context, stateDir string) Finding {
	how, enforced := r.storage()
	if !enforced {
		_, err := findDiskTools()
		lacks, _ := errors.AsType[*runtime.Unsupported](err)
		return Finding{"storage", Absent, "limits are not enforced: " + lacks.What, lacks.Hint}
	}
	trial := r.trialOf(ctx, stateDir, runtime.Spec{ID: "doctor", Hostname: "doctor", Limits: runtime.Limits{Storage: 16 << 20}})
	trial.Name = "storage"
	if trial.Verdict == Failed {
		trial.Verdict = Absent
		return trial
	}
	trial.Text = how + ", " + trial.Text
	return trial
}

// trial makes a sandbox, which is what all the rest is about.
func (r *Runtime) trial(ctx context.Context, stateDir string) Finding {
	return r.trialOf(ctx, stateDir, runtime.Spec{ID: "doctor", Hostname: "doctor"})
}

func (r *Runtime) trialOf(ctx context.Context, stateDir string, spec runtime.Spec) Finding {
	failed := func(err error) Finding {
		if lacks, ok := errors.AsType[*runtime.Unsupported](err); ok {
			text := lacks.What
			if lacks.Err != nil {
				text += fmt.Sprintf(" (%v)", lacks.Err)
			}
			return Finding{"sandbox", Failed, text, lacks.Hint}
		}
		return Finding{"sandbox", Failed, err.Error(), ""}
	}
	dir, err := os.MkdirTemp(stateDir, "doctor-")
	if err != nil {
		return failed(err)
	}
	defer os.Remove(dir) // it is gone unless Create has not begun
	begun := time.Now()
	spec.Dir = dir
	in, err := r.Create(ctx, spec)
	if err != nil {
		return failed(err)
	}
	made := time.Since(begun)
	if err := in.Remove(context.WithoutCancel(ctx)); err != nil {
		return failed(err)
	}
	return Finding{"sandbox", Good, fmt.Sprintf("made in %.1f ms, and removed", made.Seconds()*1000), ""}
}

// enforced tells what a sandbox is held to, after one was made.
func (r *Runtime) enforced() []Finding {
	info := r.Info()
	findings := []Finding{{"isolation", Good, info.Isolation, ""}}
	if r.plain.Load() {
		findings[0].Verdict = Absent
		findings[0].Mend = "use Linux 5.19 or later, and a system folder on ext4, XFS, Btrfs or the like"
	}
	yes, no := []string{"system calls"}, []string(nil)
	for _, limit := range []struct {
		name string
		held bool
	}{
		{"network", info.Enforces.Network}, {"cpu", info.Enforces.CPU}, {"memory", info.Enforces.Memory}, {"pids", info.Enforces.Pids},
		{"storage", info.Enforces.Storage}, {"access control", info.Enforces.AccessControl},
	} {
		if limit.held {
			yes = append(yes, limit.name)
		} else {
			no = append(no, limit.name)
		}
	}
	findings = append(findings, Finding{"enforced", Good, strings.Join(yes, ", "), ""})
	if len(no) > 0 {
		findings = append(findings, Finding{"not enforced", Absent, strings.Join(no, ", "), ""})
	}
	return findings
}

// groupsFound tells which limits control groups can enforce here.
func (r *Runtime) groupsFound(root bool) Finding {
	c := r.controllers()
	var names []string
	for _, name := range slices.Sorted(maps.Keys(c.parents)) {
		names = append(names, name+" in "+c.parents[name])
	}
	switch text := "v1, " + strings.Join(names, ", "); {
	case len(names) == len(controllerFiles):
		return Finding{"cgroups", Good, text, ""}
	case len(names) > 0:
		return Finding{"cgroups", Absent, text + ": what is missing is not limited", ""}
	case root:
		return Finding{"cgroups", Absent, "none that can be made: cpu and memory are not limited", "mount cpu, memory and pids of version 1 below /sys/fs/cgroup, writable; those of version 2 are not used"}
	}
	return Finding{"cgroups", Absent, "none that this user may make: each process is limited for itself, and cpu is not", "run as root where control groups of version 1 are mounted; those of version 2 are not used"}
}

// subordinate tells of the ids that /etc/subuid gives the user, which sandboxes
// do not use.
func subordinate(m machine) Finding {
	if m.root {
		return Finding{"subordinate ids", Good, "not needed by root", ""}
	}
	names := []string{strconv.Itoa(os.Geteuid())}
	if who, err := user.Current(); err == nil {
		names = append(names, who.Username)
	}
	data, err := os.ReadFile("/etc/subuid")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Finding{"subordinate ids", Absent, err.Error(), ""}
	}
	for line := range strings.Lines(string(data)) {
		if name, ids, _ := strings.Cut(strings.TrimSpace(line), ":"); slices.Contains(names, name) {
			return Finding{"subordinate ids", Absent, ids + " in /etc/subuid; not used for sandboxes", ""}
		}
	}
	return Finding{"subordinate ids", Absent, "none in /etc/subuid; not used for sandboxes", ""}
}

func appArmor(m machine) Finding {
	if enabled, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); strings.TrimSpace(string(enabled)) != "Y" {
		return Finding{"AppArmor", Good, "not active", ""}
	}
	if !m.root && m.setting("kernel/apparmor_restrict_unprivileged_userns") == "1" {
		return Finding{"AppArmor", Failed, "keeps ordinary users from making user namespaces", "sysctl kernel.apparmor_restrict_unprivileged_userns=0"}
	}
	return Finding{"AppArmor", Good, "active, and allows user namespaces", ""}
}

func kvm() Finding {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return Finding{"KVM", Absent, "not usable; not needed for sandboxes", ""}
	}
	f.Close()
	return Finding{"KVM", Good, "usable; not used for sandboxes", ""}
}
