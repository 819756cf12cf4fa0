//go:build linux

package namespace

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/runtime"
)

// This file defines how a refusal of the kernel becomes a sentence that says
// what the machine lacks and what to do about it.

// machine is what a refusal is explained by.
type machine struct {
	root     bool                     // this process is root
	filtered bool                     // it runs under a seccomp filter
	setting  func(name string) string // of /proc/sys, such as "user/max_user_namespaces"; "" if there is none
}

func thisMachine() machine {
	status, _ := os.ReadFile("/proc/self/status")
	return machine{
		root:     os.Geteuid() == 0,
		filtered: strings.Contains(string(status), "\nSeccomp:\t2\n"),
		setting: func(name string) string {
			text, _ := os.ReadFile("/proc/sys/" + name)
			return strings.TrimSpace(string(text))
		},
	}
}

// otherwise ends every hint.
const otherwise = ", or run without isolation by --runtime process, or use another server by --endpoint URL"

// containerFlags let Docker and its like run sandboxes in a container.
const containerFlags = "--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"

// explain returns the error of an outcome that is a failure.
func explain(out outcome, m machine) error {
	var why error
	if out.Errno != 0 {
		why = out.Errno
	}
	lacks := func(what, hint string) error {
		return &runtime.Unsupported{What: what, Hint: hint + otherwise, Err: why}
	}
	refused := out.Errno == unix.EPERM || out.Errno == unix.EACCES
	switch {
	case (out.Errno == unix.ENOSPC || out.Errno == unix.EDQUOT) && out.Step != stepClone:
		return fmt.Errorf("%w (%v): a sandbox could not %s", runtime.ErrDiskFull, out.Errno, out.Step)
	case out.Errno == unix.ENOSYS:
		return lacks("this kernel is too old for sandboxes, or something hides its mount calls from this process",
			"use Linux 5.12 or later, outside of a container that filters system calls")
	case refused && !m.root && m.setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
		return lacks("AppArmor keeps ordinary users from making user namespaces",
			"run sysctl kernel.apparmor_restrict_unprivileged_userns=0 as root, or use root")
	case out.Step == stepClone:
		return explainClone(out, m, lacks)
	case out.Step == stepProc && refused:
		return lacks("the container that this runs in hides parts of /proc, and so lets no sandbox have one of its own",
			"start the container with "+containerFlags)
	case out.Step == stepLayers && out.Errno == unix.ENODEV:
		return lacks("this kernel has no overlay file system", "load it by modprobe overlay")
	case out.Step == stepLayers && refused:
		return lacks("this kernel has no overlay file system for user namespaces", "use Linux 5.12 or later")
	case out.Step == stepLayers && out.Errno == unix.EINVAL:
		return lacks("the file system of the state folder can't hold the upper side of an overlay",
			"choose a folder on another one, such as ext4, XFS, Btrfs or tmpfs, by XDG_STATE_HOME")
	case out.Step == stepMounts && out.Errno == unix.EINVAL:
		return lacks("something is mounted below a folder that the sandbox is to mount, and an ordinary user can't leave it out",
			"unmount it, or use root")
	case out.Step == stepExec && out.Errno == unix.ENOENT:
		return lacks("this program needs shared libraries, which the image does not have",
			"build it by CGO_ENABLED=0 go build")
	case refused:
		return lacks("this machine, or the container that this runs in, does not let a sandbox "+out.Step,
			"start a container with "+containerFlags)
	case out.Errno != 0:
		return lacks(fmt.Sprintf("a sandbox could not %s: %s", out.Step, out.Text), "see whether the kernel's log says why")
	}
	return fmt.Errorf("a sandbox could not %s: %s", out.Step, out.Text)
}

func explainClone(out outcome, m machine, lacks func(what, hint string) error) error {
	switch {
	case out.Errno == unix.ENOSPC || out.Errno == unix.EUSERS:
		if m.setting("user/max_user_namespaces") == "0" {
			return lacks("user namespaces are switched off on this machine",
				"set them to some thousands, as in sysctl user.max_user_namespaces=10000")
		}
		return lacks("this user has as many namespaces as the machine allows",
			"remove sandboxes, or raise the limits sysctl user.max_user_namespaces, user.max_net_namespaces and the like")
	case out.Errno == unix.EDQUOT:
		return lacks("this user has as many keyrings as the machine allows, and each sandbox needs one",
			"remove sandboxes, or raise the limit sysctl kernel.keys.maxkeys")
	case out.Errno == unix.EINVAL:
		return lacks("this kernel lacks some of the namespaces that a sandbox needs",
			"use one with CONFIG_USER_NS, CONFIG_PID_NS, CONFIG_NET_NS, CONFIG_UTS_NS and CONFIG_IPC_NS")
	case out.Errno == unix.EACCES:
		return lacks("the sandbox's root, who is an ordinary user outside, may not execute the file of this program",
			"make it readable and executable for everybody by chmod a+rx")
	case out.Errno == unix.EPERM && !m.root && m.setting("kernel/unprivileged_userns_clone") == "0":
		return lacks("ordinary users may not make user namespaces on this machine",
			"run sysctl kernel.unprivileged_userns_clone=1 as root, or use root")
	case out.Errno == unix.EPERM && m.filtered:
		return lacks("the container that this runs in refuses user namespaces",
			"start it with "+containerFlags)
	case out.Errno == unix.EPERM:
		return lacks("this process may not make user namespaces",
			"leave the chroot that it runs in, or ask who runs the machine which security module refuses")
	}
	return fmt.Errorf("%s: %s", out.Step, out.Text)
}
