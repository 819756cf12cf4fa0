//go:build linux

package namespace

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime/multipart"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the breakout suite: this very program tries, from inside, to
// reach what is not the sandbox's. Every try must fail, and in the way that is
// meant: a try that failed for a mistake of its own would say nothing.

// target is what there is outside.
type target struct {
	Secret     string // a file that everybody on the host may read
	Dir        string // the sandbox's folder
	Port       int    // of the host's loopback interface
	Datagrams  int    // likewise, of UDP
	Abstract   string // name of a socket of the host
	Socket     string // path of one
	PID        int    // of a process of the host
	Unfiltered bool   // the filter of system calls is off
}

// try is one way out.
type try struct {
	name   string
	do     func(target) error
	want   []error // any of them; none means any error
	filter bool    // nothing but the filter refuses it
}

// call makes a system call that must not succeed.
func call(number uintptr, args ...uintptr) func(target) error {
	return func(target) error { return rawCall(number, args...) }
}

func rawCall(number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := unix.RawSyscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return errno
	}
	return nil
}

// reads succeeds if one of the paths can be read.
func reads(paths ...string) error {
	var all []error
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err == nil && len(data) > 0 {
			return nil
		}
		all = append(all, err)
	}
	return errors.Join(all...)
}

func writes(path, text string) func(target) error {
	return func(target) error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(text)
		return errors.Join(err, f.Close())
	}
}

func opens(family, kind, protocol int) func(target) error {
	return func(target) error {
		fd, err := unix.Socket(family, kind, protocol)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
}

// text is a system call's string.
func text(s string) uintptr {
	p, _ := unix.BytePtrFromString(s)
	kept = append(kept, p)
	return uintptr(unsafe.Pointer(p))
}

// kept holds on to what the tries point at.
var kept []*byte

// unixAt is AT_FDCWD as an argument.
const unixAt = ^uintptr(99)

var (
	eperm = []error{unix.EPERM}
	gone  = []error{unix.ENOENT}
	shut  = []error{unix.EPERM, unix.EACCES, unix.EROFS, unix.ENOENT}
)

func tries() []try {
	list := []try{
		// Files of the host.
		{"read by path", func(to target) error { return reads(to.Secret) }, gone, false},
		{"read through roots and folders of processes", readThroughProc, shut, false},
		{"read through descriptors", readThroughFDs, nil, false},
		{"read through a symbolic link", readThroughLink, gone, false},
		{"hard link", func(to target) error { return os.Link(to.Secret, "/var/tmp/hard") }, gone, false},
		{"hard link to a read-only layer", func(target) error { return os.Link("/proc/1/root/etc/passwd", "/var/tmp/hard") }, shut, false},
		{"climb out by ..", func(to target) error { return reads(strings.Repeat("../", 64) + to.Secret) }, gone, false},
		{"climb out of a chroot", climbOut, []error{unix.ENOENT, unix.EPERM}, false},
		{"open by a handle", openByHandle, eperm, false},
		{"the sandbox's folder", func(to target) error { return reads(to.Dir+"/daemon.json", to.Dir+"/daemon.log") }, gone, false},
		{"its name", findDir, gone, false}, // but for mountinfo, which has it of every bind mount
		{"the daemon's socket", dialDaemon, gone, false},

		// Mounts.
		{"mount a tmpfs", call(unix.SYS_MOUNT, text("none"), text("/mnt"), text("tmpfs"), 0, 0), eperm, false},
		{"bind", call(unix.SYS_MOUNT, text("/usr"), text("/mnt"), 0, unix.MS_BIND, 0), eperm, false},
		{"mount proc", call(unix.SYS_MOUNT, text("proc"), text("/mnt"), text("proc"), 0, 0), eperm, false},
		{"remount /proc/sys", call(unix.SYS_MOUNT, 0, text("/proc/sys"), 0, unix.MS_REMOUNT|unix.MS_BIND, 0), eperm, false},
		{"unmount a mask", call(unix.SYS_UMOUNT2, text("/proc/kcore"), unix.MNT_DETACH), eperm, false},
		{"unmount a layer", call(unix.SYS_UMOUNT2, text("/usr"), unix.MNT_DETACH), eperm, false},
		{"pivot_root", call(unix.SYS_PIVOT_ROOT, text("/"), text("/")), eperm, false},
		{"mount the folder of the processes' groups", call(unix.SYS_MOUNT, text("none"), text("/mnt"), text("cgroup2"), 0, 0), eperm, false},
		{"mount the kernel's insides", call(unix.SYS_MOUNT, text("none"), text("/mnt"), text("sysfs"), 0, 0), eperm, false},
		{"remount the root with devices", call(unix.SYS_MOUNT, 0, text("/"), 0, unix.MS_REMOUNT|unix.MS_BIND, 0), eperm, false},
		{"unmount /proc/sys", call(unix.SYS_UMOUNT2, text("/proc/sys"), 0), eperm, false},
		{"unmount the root", call(unix.SYS_UMOUNT2, text("/"), unix.MNT_DETACH), eperm, false},
		{"move a mount", call(unix.SYS_MOVE_MOUNT, unixAt, text("/proc/sys"), unixAt, text("/mnt"), 0), eperm, false},
		{"fspick", call(unix.SYS_FSPICK, unixAt, text("/"), 0), eperm, false},
		{"fsmount", call(unix.SYS_FSMOUNT, 0, 0, 0), eperm, false},
		{"fsconfig", call(unix.SYS_FSCONFIG, 0, 0, 0, 0, 0), eperm, true},
		{"list the mounts of others", call(unix.SYS_LISTMOUNT, 0, 0, 0, 0), eperm, true},
		{"fsopen", call(unix.SYS_FSOPEN, text("tmpfs"), 0), eperm, false},
		{"open_tree", call(unix.SYS_OPEN_TREE, 0, text("/usr"), unix.OPEN_TREE_CLONE), eperm, false},
		{"mount_setattr", call(unix.SYS_MOUNT_SETATTR, 0, text("/proc/sys"), 0, uintptr(unsafe.Pointer(&unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})), unsafe.Sizeof(unix.MountAttr{})), eperm, false},

		// Rights.
		{"new user namespace", cloneProcess(unix.CLONE_NEWUSER), []error{unix.EPERM, unix.ENOSPC}, false},
		{"new mount namespace", cloneProcess(unix.CLONE_NEWNS), eperm, false},
		{"new network namespace", cloneProcess(unix.CLONE_NEWNET), eperm, false},
		{"new pid namespace", cloneProcess(unix.CLONE_NEWPID), eperm, false},
		{"unshare a user namespace", call(unix.SYS_UNSHARE, unix.CLONE_NEWUSER), eperm, false},
		{"unshare a time namespace", call(unix.SYS_UNSHARE, unix.CLONE_NEWTIME), eperm, false},
		{"unshare a cgroup namespace", call(unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP), eperm, false},
		{"clone3", call(unix.SYS_CLONE3, 0, 0), []error{unix.ENOSYS}, true},
		{"enter the namespaces of PID 1", enterFirst, eperm, false},
		{"capabilities", gainCapability, eperm, false},
		{"new privileges again", call(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0), []error{unix.EINVAL}, false},
		{"loosen the filter", looseFilter, []error{unix.EINVAL, unix.EACCES}, false},
		{"an id of the host's root", func(target) error { return rawCall(unix.SYS_SETRESUID, 1<<20, 1<<20, 1<<20) }, []error{unix.EINVAL}, false},
		{"limits above the hard ones", func(target) error {
			return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 2, Max: 2})
		}, eperm, false},
		{"a core file", coreFile, gone, false},
		{"to be spared when memory is short", writes("/proc/self/oom_score_adj", "-1000"), shut, false},
		{"real-time priority", func(target) error {
			return rawCall(unix.SYS_SCHED_SETSCHEDULER, 0, 1 /* SCHED_FIFO */, uintptr(unsafe.Pointer(&[]int32{50}[0])))
		}, eperm, false},

		// Processes.
		{"ptrace PID 1", call(unix.SYS_PTRACE, unix.PTRACE_ATTACH, 1, 0, 0), eperm, false},
		{"seize PID 1", call(unix.SYS_PTRACE, unix.PTRACE_SEIZE, 1, 0, 0), eperm, false},
		{"read PID 1's memory", readFirst, eperm, false},
		{"write PID 1's memory", writes("/proc/1/mem", "x"), shut, false},
		{"take a descriptor of PID 1", takeDescriptor, eperm, false},
		{"signal a process of the host", func(to target) error { return unix.Kill(to.PID, 0) }, []error{unix.ESRCH}, false},
		{"signal the group of a process of the host", func(to target) error { return unix.Kill(-to.PID, 0) }, []error{unix.ESRCH}, false},
		{"a descriptor of a process of the host", func(to target) error { _, err := unix.PidfdOpen(to.PID, 0); return err }, []error{unix.ESRCH, unix.EINVAL}, false},
		{"limits of a process of the host", func(to target) error { return unix.Prlimit(to.PID, unix.RLIMIT_NOFILE, nil, &unix.Rlimit{}) }, []error{unix.ESRCH}, false},

		// The network.
		{"a port of the host", func(to target) error { return dial("tcp", fmt.Sprintf("127.0.0.1:%d", to.Port)) }, []error{unix.ECONNREFUSED}, false},
		{"a port of the host for datagrams", func(to target) error { return talk("udp", fmt.Sprintf("127.0.0.1:%d", to.Datagrams)) }, []error{unix.ECONNREFUSED}, false},
		{"a socket of the host by its path", func(to target) error { return dial("unix", to.Socket) }, gone, false},
		{"a port beyond", func(target) error { return dial("tcp", "192.0.2.1:80") }, []error{unix.ENETUNREACH}, false},
		{"the metadata address", func(target) error { return dial("tcp", "169.254.169.254:80") }, []error{unix.ENETUNREACH}, false},
		{"an abstract socket of the host", func(to target) error { return dial("unix", "@"+to.Abstract) }, []error{unix.ECONNREFUSED}, false},
		{"a raw socket", opens(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP), eperm, false},
		{"a raw socket of IPv6", opens(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_RAW), eperm, false},
		{"a packet socket", opens(unix.AF_PACKET, unix.SOCK_RAW, 0), []error{unix.EAFNOSUPPORT, unix.EPERM}, false},
		{"a socket to the virtual machine's host", opens(unix.AF_VSOCK, unix.SOCK_STREAM, 0), []error{unix.EAFNOSUPPORT}, true},
		{"a socket of the kernel's ciphers", opens(unix.AF_ALG, unix.SOCK_SEQPACKET, 0), []error{unix.EAFNOSUPPORT}, true},
		{"audit", opens(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT), []error{unix.EPROTONOSUPPORT}, true},
		{"packet filters", opens(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER), []error{unix.EPROTONOSUPPORT}, true},
		{"stop the loopback interface", stopLoopback, eperm, false},
		{"an interface of its own", writes("/dev/net/tun", "x"), gone, false},

		// Devices and the kernel.
		{"a disk", func(target) error { return unix.Mknod("/var/tmp/disk", unix.S_IFBLK|0o600, int(unix.Mkdev(8, 0))) }, eperm, false},
		{"memory", func(target) error { return unix.Mknod("/var/tmp/mem", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 1))) }, eperm, false},
		{"the kernel's log", func(target) error { return reads("/dev/kmsg", "/proc/kmsg") }, nil, false},
		{"/dev/mem", func(target) error { return reads("/dev/mem", "/dev/kmem", "/dev/port") }, gone, false},
		{"/dev/kvm", func(target) error { _, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); return err }, gone, false},
		{"/sys", func(target) error { _, err := os.Stat("/sys"); return err }, gone, false},
		{"the machine's events", writes("/sys/kernel/uevent_helper", "/bin/sh"), gone, false},
		{"the way out of a group of processes", writes("/sys/fs/cgroup/release_agent", "/bin/sh"), gone, false},
		{"the caches of all", writes("/proc/sys/vm/drop_caches", "1"), shut, false},
		{"the next process's number", writes("/proc/sys/kernel/ns_last_pid", "1"), shut, false},
		{"programs by their first bytes", writes("/proc/sys/fs/binfmt_misc/register", ":x:M::x::/bin/sh:"), shut, false},
		{"interrupts", writes("/proc/irq/default_smp_affinity", "1"), shut, false},
		{"the program that is the daemon", writes("/proc/1/exe", "x"), shut, false},
		{"the core pattern", writes("/proc/sys/kernel/core_pattern", "|/bin/sh"), shut, false},
		{"the module loader's path", writes("/proc/sys/kernel/modprobe", "/bin/sh"), shut, false},
		{"sysrq", writes("/proc/sysrq-trigger", "h"), shut, false},
		{"user namespaces again", writes("/proc/sys/user/max_user_namespaces", "100"), shut, false},
		{"addresses in the kernel", func(target) error { return reads("/proc/kallsyms", "/proc/kcore", "/proc/timer_list") }, nil, false},
		{"init_module", call(unix.SYS_INIT_MODULE, 0, 0, text("")), eperm, false},
		{"finit_module", call(unix.SYS_FINIT_MODULE, 0, text(""), 0), eperm, false},
		{"delete_module", call(unix.SYS_DELETE_MODULE, text("overlay"), unix.O_NONBLOCK), eperm, false},
		{"kexec", call(unix.SYS_KEXEC_LOAD, 0, 0, 0, 0), eperm, false},
		{"kexec of a file", call(unix.SYS_KEXEC_FILE_LOAD, 0, 0, 0, 0, 0), []error{unix.EPERM, unix.ENOSYS}, false},
		{"watch a whole file system", call(unix.SYS_FANOTIFY_INIT, 0, 0), eperm, true},
		{"move the clock", func(target) error {
			_, err := unix.ClockAdjtime(unix.CLOCK_REALTIME, &unix.Timex{Modes: unix.ADJ_SETOFFSET})
			return err
		}, []error{unix.EPERM, unix.EINVAL}, false},
		{"bpf", call(unix.SYS_BPF, unix.BPF_MAP_CREATE, 0, 0), eperm, false},
		{"reboot", call(unix.SYS_REBOOT, unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_CAD_OFF, 0), eperm, false},
		{"the clock", func(target) error {
			return unix.ClockSettime(unix.CLOCK_REALTIME, &unix.Timespec{Sec: time.Now().Unix()})
		}, eperm, false},
		{"swap", call(unix.SYS_SWAPON, text("/etc/passwd"), 0), eperm, false},
		{"accounting", call(unix.SYS_ACCT, 0), eperm, false},
		{"host name", call(unix.SYS_SETHOSTNAME, text("other"), 5), eperm, false},
		{"quota", call(unix.SYS_QUOTACTL, 0, 0, 0, 0), eperm, true},
		{"syslog", call(unix.SYS_SYSLOG, 5, 0, 0), eperm, false},
		{"perf_event_open", call(unix.SYS_PERF_EVENT_OPEN, 0, 0, 0, 0, 0), eperm, true},
		{"userfaultfd", call(unix.SYS_USERFAULTFD, 1), eperm, true},
		{"io_uring", call(unix.SYS_IO_URING_SETUP, 1, 0), eperm, true},
		{"the session's keyring", func(target) error {
			_, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
			return err
		}, eperm, true},
		{"a key for the user", func(target) error {
			_, err := unix.AddKey("user", "sbx-star-test", []byte("x"), unix.KEY_SPEC_USER_KEYRING)
			return err
		}, eperm, true},
		{"another's key", func(target) error { _, err := unix.RequestKey("user", "sbx-star-test", "", 0); return err }, eperm, true},
		{"fixed addresses", call(unix.SYS_PERSONALITY, 0x40000), eperm, true},
		{"type into a terminal", typeAhead, eperm, true},
		{"a call that was not made yet", call(0x3fff), []error{unix.ENOSYS}, true},
		{"a call of x32", call(0x40000000 | unix.SYS_GETPID), []error{unix.ENOSYS}, true},
	}
	if goruntime.GOARCH == "amd64" {
		list = append(list, try{"a program of i386", runForeign, []error{unix.ENOEXEC, unix.EFAULT, errKilled}, true})
	}
	return list
}

// breakOut makes all tries. Those that do not fail as they should are its error.
func breakOut(argument string) error {
	var to target
	if err := json.Unmarshal([]byte(argument), &to); err != nil {
		return err
	}
	var all []error
	made := 0
	for _, t := range tries() {
		if to.Unfiltered && t.filter {
			continue
		}
		made++
		err := t.do(to)
		switch {
		case err == nil:
			all = append(all, fmt.Errorf("%s: it worked", t.name))
		case len(t.want) > 0 && !slices.ContainsFunc(t.want, func(want error) bool { return errors.Is(err, want) }) && !to.Unfiltered:
			all = append(all, fmt.Errorf("%s: %v, want %v", t.name, err, t.want))
		}
	}
	fmt.Println(made, "tries as", os.Getuid())
	return errors.Join(all...)
}

func readThroughProc(to target) error {
	processes, err := filepath.Glob("/proc/[0-9]*/task/[0-9]*")
	if err != nil || len(processes) < 2 {
		return nil // there must be this one and the first
	}
	var paths []string
	for _, p := range append(processes, "/proc/self", "/proc/1") {
		paths = append(paths, p+"/root"+to.Secret, p+"/cwd/"+strings.Repeat("../", 64)+to.Secret)
	}
	return reads(paths...)
}

// readThroughFDs looks for a descriptor of anything outside, in all processes.
func readThroughFDs(to target) error {
	fds, err := filepath.Glob("/proc/*/fd/*")
	if err != nil || len(fds) == 0 {
		return err
	}
	for _, fd := range fds {
		if info, err := os.Stat(fd); err == nil && info.IsDir() {
			if reads(fd+"/"+strings.Repeat("../", 64)+to.Secret, fd+"/daemon.json") == nil {
				return nil
			}
		}
		if name, err := os.Readlink(fd); err == nil && (strings.HasPrefix(name, to.Dir) || strings.Contains(name, "memfd:order")) {
			return nil
		}
	}
	return errors.New("nothing found")
}

func readThroughLink(to target) error {
	name := fmt.Sprintf("/var/tmp/link-%d", os.Getpid())
	if err := os.Symlink(to.Secret, name); err != nil {
		return err
	}
	return reads(name)
}

// climbOut is the classical way: a root below the working directory, which then
// lies outside of it. It must lead no further than to the sandbox's own root. A
// child does it, because this process needs its own root.
func climbOut(to target) error {
	dir, err := os.MkdirTemp("/var/tmp", "root-")
	if err != nil {
		return err
	}
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), helperVar+"=climb", argumentVar+"="+dir+"\n"+to.Secret)
	out, err := child.CombinedOutput()
	for _, errno := range []unix.Errno{unix.ENOENT, unix.EPERM} {
		if err != nil && strings.Contains(string(out), errno.Error()) {
			return errno
		}
	}
	return err
}

func climb(argument string) error {
	dir, secret, _ := strings.Cut(argument, "\n")
	if err := unix.Chroot(dir); err != nil {
		return err
	}
	for range 64 {
		unix.Chdir("..")
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return reads(secret)
}

func openByHandle(target) error {
	// 128 is the type of ext4's, with the inode of its root.
	handle := unix.NewFileHandle(1, []byte{2, 0, 0, 0, 0, 0, 0, 0})
	dir, err := unix.Open("/usr", unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	_, err = unix.OpenByHandleAt(dir, handle, unix.O_RDONLY)
	return err
}

// findDir looks for the sandbox's place on the host in what the kernel tells.
func findDir(to target) error {
	for _, path := range []string{"/proc/self/mounts", "/proc/self/maps", "/proc/net/unix", "/proc/1/cmdline", "/proc/1/comm"} {
		if data, err := os.ReadFile(path); err == nil && strings.Contains(string(data), to.Dir) {
			return nil
		}
	}
	return unix.ENOENT
}

func dialDaemon(to target) error {
	return dial("unix", to.Dir+"/daemon.sock")
}

func dial(network, address string) error {
	conn, err := net.DialTimeout(network, address, 5*time.Second)
	if err == nil {
		conn.Close()
	}
	return err
}

// talk sends a datagram and waits for what comes of it.
func talk(network, address string) error {
	conn, err := net.DialTimeout(network, address, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

// cloneProcess starts a process in a new namespace.
func cloneProcess(flag uintptr) func(target) error {
	return func(target) error {
		cmd := exec.Command("/bin/true")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flag}
		return cmd.Run()
	}
}

func enterFirst(target) error {
	fd, err := unix.PidfdOpen(1, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Setns(fd, unix.CLONE_NEWNS|unix.CLONE_NEWPID|unix.CLONE_NEWNET)
}

func gainCapability(target) error {
	var all [2]unix.CapUserData
	for i := range all {
		all[i] = unix.CapUserData{Effective: 1<<32 - 1, Permitted: 1<<32 - 1, Inheritable: 1<<32 - 1}
	}
	return unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &all[0])
}

// looseFilter tries to leave seccomp's filter mode.
func looseFilter(target) error {
	return unix.Prctl(unix.PR_SET_SECCOMP, 0 /* SECCOMP_MODE_DISABLED */, 0, 0, 0)
}

// coreFile has a process crash where it could leave one.
func coreFile(target) error {
	dir, err := os.MkdirTemp("/var/tmp", "core-")
	if err != nil {
		return err
	}
	cmd := exec.Command("/bin/sh", "-c", "ulimit -c unlimited 2>/dev/null; kill -SEGV $$")
	cmd.Dir = dir
	err = cmd.Run()
	var ended *exec.ExitError
	if !errors.As(err, &ended) || ended.Sys().(syscall.WaitStatus).CoreDump() {
		return nil
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		return err
	}
	return unix.ENOENT
}

func readFirst(target) error {
	buf := make([]byte, 8)
	local := []unix.Iovec{{Base: &buf[0], Len: 8}}
	_, err := unix.ProcessVMReadv(1, local, []unix.RemoteIovec{{Base: 0x400000, Len: 8}}, 0)
	return err
}

func takeDescriptor(target) error {
	fd, err := unix.PidfdOpen(1, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.PidfdGetfd(fd, listenerFD, 0)
	return err
}

func stopLoopback(target) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

func typeAhead(target) error {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return rawCall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCSTI, text("x"))
}

var errKilled = errors.New("it was killed by SIGSYS")

// runForeign runs a program of 32 bits that does nothing but to end well.
func runForeign(target) error {
	const start = 0x08048000
	header := []byte{0x7f, 'E', 'L', 'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		2, 0, 3, 0, 1, 0, 0, 0, 0x54, 0x80, 0x04, 0x08, 52, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 52, 0, 32, 0, 1, 0, 0, 0, 0, 0, 0, 0,
		1, 0, 0, 0, 0, 0, 0, 0, start & 0xff, start >> 8 & 0xff, start >> 16 & 0xff, start >> 24, 0, 0x80, 0x04, 0x08,
		96, 0, 0, 0, 96, 0, 0, 0, 5, 0, 0, 0, 0, 0x10, 0, 0}
	code := []byte{0xb8, 1, 0, 0, 0, 0x31, 0xdb, 0xcd, 0x80, 0xf4, 0xf4, 0xf4} // exit(0)
	name := fmt.Sprintf("/var/tmp/foreign-%d", os.Getpid())
	if err := os.WriteFile(name, append(header, code...), 0o755); err != nil {
		return err
	}
	err := exec.Command(name).Run()
	var ended *exec.ExitError
	if errors.As(err, &ended) && ended.Sys().(syscall.WaitStatus).Signal() == unix.SIGSYS {
		return errKilled
	}
	return err
}

// TestBreakout makes all tries as the sandbox's root and as another user, with
// the filter and without it: what it refuses must be refused by something else as
// well, as far as there is something else.
func TestBreakout(t *testing.T) {
	programs := programFolder(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	abstract, path := fmt.Sprintf("sbx-star-breakout-%d", os.Getpid()), filepath.Join(t.TempDir(), "socket")
	for _, name := range []string{"@" + abstract, path} {
		socket, err := net.Listen("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
	}
	users := []string{""}
	if asRoot() {
		users = append(users, "65532:65532")
	}
	for _, unfiltered := range []bool{false, true} {
		spec := newSpec(t)
		spec.Mounts = []runtime.Mount{{Source: programs, Target: "/programs", ReadOnly: true}}
		b := create(t, &Runtime{unfiltered: unfiltered}, spec)
		to, err := json.Marshal(target{secret, spec.Dir, tcp.Addr().(*net.TCPAddr).Port, udp.LocalAddr().(*net.UDPAddr).Port, abstract, path, os.Getpid(), unfiltered})
		if err != nil {
			t.Fatal(err)
		}
		for _, user := range users {
			r, err := b.executeAs(t, user, "/programs/test", "break", string(to))
			if err != nil || r.ExitCode != 0 || !strings.Contains(r.Stdout, "tries as ") {
				t.Errorf("user %q, unfiltered %v: exit code %d, %v\n%s%s", user, unfiltered, r.ExitCode, err, r.Stdout, r.Stderr)
			}
			t.Logf("%s", r.Stdout)
		}
		b.run(t, "kill -KILL 1; kill -STOP 1; true")
		b.run(t, "true") // the first process has not noticed
	}
}

// programFolder returns a folder with this program, for everybody to execute.
func programFolder(t *testing.T) string {
	t.Helper()
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "test"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// executeAs runs a helper in the sandbox as a user, "" for its root.
func (b *box) executeAs(t *testing.T, user, program, name, argument string) (wire.ExecResponse, error) {
	t.Helper()
	return b.post(t.Context(), wire.ExecRequest{
		Command:   wire.Command{Argv: []string{program}},
		Timeout:   60,
		RunConfig: &wire.RunConfig{User: user, EnvVars: map[string]string{helperVar: name, argumentVar: argument}},
	})
}

// TestSetuid checks that a file's mark gives nobody another user's rights.
func TestSetuid(t *testing.T) {
	if !asRoot() {
		return // there is only one user
	}
	b := newBox(t)
	b.run(t, "cp /usr/bin/id /var/tmp/id && chmod 4755 /var/tmp/id")
	r, err := b.post(t.Context(), wire.ExecRequest{
		Command:   wire.Command{Argv: []string{"/var/tmp/id", "-u"}},
		Timeout:   60,
		RunConfig: &wire.RunConfig{User: "65532"},
	})
	if err != nil || r.Stdout != "65532\n" {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestTransfersStayInside asks the daemon, which reads and writes files for whoever
// is outside, for those of the host: by every path that might lead there, some of
// which change under its feet.
func TestTransfersStayInside(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o666); err != nil {
		t.Fatal(err)
	}
	b := newBox(t)
	up := strings.Repeat("../", 64)
	paths := []string{secret, up + secret, "/" + up + secret, "/proc/self/root" + secret, "/proc/1/root" + secret, "/proc/thread-self/root" + secret,
		"/proc/self/cwd/" + up + secret, "link", "folder/secret", "loop/secret", "first" + secret,
		"/proc/self/mem", "/proc/1/mem", b.spec.Dir + "/daemon.json", b.spec.Dir + "/daemon.log", "/proc/self/environ"}
	for fd := range 32 {
		paths = append(paths, fmt.Sprintf("/proc/self/fd/%d", fd), fmt.Sprintf("/proc/self/fd/%d/%s", fd, up+secret))
	}
	b.run(t, fmt.Sprintf(`set -e
		ln -s %[1]s link; ln -s %[2]s folder; ln -s /proc/1/root first
		(while :; do ln -sfn %[2]s loop; ln -sfn /proc/self/root%[2]s loop; rm -f loop; mkdir -p loop; rmdir loop; done) >/dev/null 2>&1 &`, secret, dir))
	for range 5 {
		for _, path := range paths {
			_, data, err := b.transfer(t.Context(), http.MethodGet, "/download", path, "")
			if err != nil || strings.Contains(data, "secret\x00") || data == "secret" || strings.Contains(data, `"boot"`) {
				t.Fatalf("downloading %s gives %q, %v", path, data, err)
			}
		}
	}
	b.run(t, "mkdir -p "+dir) // so that links to it lead to a place
	for range 5 {
		for _, path := range paths {
			if status, said, err := b.transfer(t.Context(), http.MethodPost, "/upload", path, "changed"); err != nil || status >= 500 {
				t.Fatalf("uploading %s: status %d, %s, %v", path, status, said, err)
			}
		}
	}
	if got := b.run(t, "cat "+secret); got != "changed" {
		t.Errorf("the sandbox has %q at the same path", got)
	}
	entries, err := os.ReadDir(dir)
	data, readErr := os.ReadFile(secret)
	if len(entries) != 1 || err != nil || readErr != nil || string(data) != "secret" {
		t.Errorf("the host has %q in %v (%v, %v)", data, entries, err, readErr)
	}
	// A snapshot copies what the sandbox wrote, with other rights: not what it points at.
	for range 3 {
		snapshot := b.snapshot(t)
		filepath.WalkDir(snapshot, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				if data, err := os.ReadFile(path); err == nil && string(data) == "secret" {
					t.Errorf("the snapshot has the secret at %s", path)
				}
			}
			return nil
		})
	}
	b.run(t, "true")
}

// transfer reads or writes a file by the data plane.
func (b *box) transfer(ctx context.Context, method, endpoint, path, content string) (status int, said string, err error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return b.Dial(ctx) },
	}}
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	if content != "" {
		part, err := form.CreateFormFile(wire.UploadField, "file")
		if err != nil {
			return 0, "", err
		}
		io.WriteString(part, content)
		form.Close()
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://box"+endpoint+"?path="+url.QueryEscape(path), &body)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", form.FormDataContentType())
	res, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return res.StatusCode, string(data), err
}

// TestNeighbour has one sandbox take all that it can get of what the kernel counts
// by users, who are the same for all sandboxes, or for all of the machine. Another
// one must get what it needs meanwhile.
func TestNeighbour(t *testing.T) {
	programs := programFolder(t)
	for name, what := range greed {
		t.Run(name, func(t *testing.T) {
			spec := newSpec(t)
			spec.Mounts = []runtime.Mount{{Source: programs, Target: "/programs", ReadOnly: true}}
			greedy, other := create(t, &Runtime{}, spec), create(t, &Runtime{}, newSpec(t))
			taken := make(chan error, 1)
			ctx, cancel := context.WithCancel(t.Context())
			defer func() { cancel(); <-taken }()
			go func() {
				r, err := greedy.post(ctx, wire.ExecRequest{
					Command:   wire.Command{Argv: []string{"/programs/test"}},
					Timeout:   600,
					RunConfig: &wire.RunConfig{EnvVars: map[string]string{helperVar: "greedy", argumentVar: name}},
				})
				if ctx.Err() == nil {
					err = fmt.Errorf("it has ended: %+v, %w", r, err)
				}
				taken <- err
			}()
			for { // until it has got all
				if r, err := greedy.execute(t.Context(), "cat /tmp/taken 2>/dev/null"); err == nil && r.Stdout != "" {
					t.Log(r.Stdout)
					break
				}
				select {
				case err := <-taken:
					taken <- nil
					t.Fatal(err)
				case <-time.After(5 * time.Millisecond):
				}
			}
			other.run(t, what.need)
			newBox(t).run(t, "true") // as one that comes now does
		})
	}
}

// greed is what can be taken, and a command that needs some of it.
var greed = map[string]struct {
	take func() error // one more; what it returns at the end is the limit
	end  []error
	most int
	need string
}{
	"watches": {func() error { _, err := unix.InotifyInit(); return err }, []error{unix.EMFILE}, 32,
		"test $(cat /proc/sys/user/max_inotify_instances) = " + userLimits["max_inotify_instances"]},
	"terminals": {func() error { _, err := unix.Open("/dev/ptmx", unix.O_RDWR, 0); return err }, []error{unix.ENOSPC}, 256,
		"exec 3<>/dev/ptmx 4<>/dev/ptmx"},
	"descriptors": {func() error { _, err := unix.Open("/dev/null", unix.O_RDONLY, 0); return err }, []error{unix.EMFILE}, 4096,
		"cat /etc/passwd >/dev/null; ls /proc/self/fd >/dev/null"},
	"pipes": {func() error { return unix.Pipe(make([]int, 2)) }, []error{unix.EMFILE}, 4096,
		"head -c 1M /dev/zero | cat | wc -c"},
	"shared memory": {func() error { _, err := unix.SysvShmGet(unix.IPC_PRIVATE, 4096, unix.IPC_CREAT|0o600); return err }, []error{unix.ENOSPC}, 4096,
		"ipcmk -M 4096 >/dev/null"},
}

// takeAll takes until there is no more, and keeps it until it is killed.
func takeAll(name string) error {
	said, err := os.Create("/tmp/taken") // while there are descriptors
	if err != nil {
		return err
	}
	// As many as a machine allows may be a million. So many are enough to use up what
	// a user has of pages for pipes.
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 4096, Max: 4096}); err != nil {
		return err
	}
	what, n := greed[name], 0
	for err := error(nil); ; n++ {
		if err = what.take(); err == nil && n <= what.most {
			continue
		}
		if !slices.ContainsFunc(what.end, func(end error) bool { return errors.Is(err, end) }) {
			return fmt.Errorf("after %d: %v", n, err)
		}
		break
	}
	if _, err := fmt.Fprintf(said, "it has %d", n); err != nil {
		return err
	}
	return unix.Pause()
}
