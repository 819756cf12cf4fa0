//go:build linux && (amd64 || arm64)

package namespace

import (
	"encoding/binary"
	"maps"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// This file defines tests of the filter of system calls, which ask it as the
// kernel does. breakout_test.go has those that make the calls.

func TestFilter(t *testing.T) {
	vm, err := bpf.NewVM(callFilter())
	if err != nil {
		t.Fatal(err)
	}
	const eperm, enosys = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM), unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	const allowed, family = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)
	const protocol = unix.SECCOMP_RET_ERRNO | uint32(unix.EPROTONOSUPPORT)
	type test struct {
		arch, call uint32
		args       []uint64
		want       uint32
	}
	tests := []test{
		{ownArch, unix.SYS_READ, nil, allowed},
		{ownArch, unix.SYS_EXECVE, nil, allowed},
		{ownArch, unix.SYS_PTRACE, nil, allowed},
		{ownArch, unix.SYS_CHROOT, nil, allowed},
		{ownArch, lastCall, nil, allowed},
		{ownArch, lastCall + 1, nil, enosys},
		{ownArch, 0x40000000 | unix.SYS_READ, nil, enosys}, // x32
		{ownArch, 0xffffffff, nil, enosys},
		{unix.AUDIT_ARCH_I386, unix.SYS_READ, nil, unix.SECCOMP_RET_KILL_PROCESS},
		{unix.AUDIT_ARCH_ARM, unix.SYS_READ, nil, unix.SECCOMP_RET_KILL_PROCESS},
		{ownArch, unix.SYS_CLONE3, nil, enosys},
		{ownArch, unix.SYS_CLONE, []uint64{unix.CLONE_VM | unix.CLONE_VFORK | unix.CLONE_PIDFD | uint64(unix.SIGCHLD)}, allowed},
		{ownArch, unix.SYS_CLONE, []uint64{1<<32 | unix.CLONE_VM | unix.CLONE_NEWNET}, eperm},
		{ownArch, unix.SYS_IOCTL, []uint64{0, unix.TCGETS}, allowed},
		{ownArch, unix.SYS_IOCTL, []uint64{0, unix.TIOCSTI}, eperm},
		{ownArch, unix.SYS_IOCTL, []uint64{0, 1<<32 | unix.TIOCSTI}, eperm}, // the kernel drops the upper half
		{ownArch, unix.SYS_IOCTL, []uint64{unix.TIOCSTI, unix.TCGETS, unix.TIOCSTI}, allowed},
		{ownArch, unix.SYS_IOCTL, []uint64{0, unix.TIOCLINUX}, eperm},
		{ownArch, unix.SYS_PERSONALITY, []uint64{0}, allowed},
		{ownArch, unix.SYS_PERSONALITY, []uint64{0xffffffff}, allowed},
		{ownArch, unix.SYS_PERSONALITY, []uint64{0x20008}, allowed},
		{ownArch, unix.SYS_PERSONALITY, []uint64{0x40000}, eperm}, // addresses that are not random
		{ownArch, unix.SYS_PERSONALITY, []uint64{0x400008}, eperm},
		{ownArch, unix.SYS_SOCKET, []uint64{unix.AF_UNIX, unix.SOCK_STREAM}, allowed},
		{ownArch, unix.SYS_SOCKET, []uint64{unix.AF_INET6, unix.SOCK_DGRAM}, allowed},
		{ownArch, unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, allowed},
		{ownArch, unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT}, protocol},
		{ownArch, unix.SYS_SOCKET, []uint64{unix.AF_PACKET, unix.SOCK_RAW}, family},
		{ownArch, unix.SYS_SOCKET, []uint64{unix.AF_VSOCK, unix.SOCK_STREAM}, family},
		{ownArch, unix.SYS_SOCKETPAIR, []uint64{unix.AF_TIPC, unix.SOCK_STREAM}, family},
		{ownArch, unix.SYS_SOCKETPAIR, []uint64{unix.AF_UNIX, unix.SOCK_STREAM}, allowed},
	}
	for _, call := range append(refusedCalls, refusedHere...) {
		tests = append(tests, test{ownArch, call, nil, eperm})
	}
	for _, test := range tests {
		// The kernel reads whole words; this machine reads them as big-endian ones.
		data := make([]byte, 64)
		binary.BigEndian.PutUint32(data, test.call)
		binary.BigEndian.PutUint32(data[4:], test.arch)
		for i, arg := range test.args {
			binary.BigEndian.PutUint32(data[16+8*i:], uint32(arg)) // the lower half comes first
			binary.BigEndian.PutUint32(data[20+8*i:], uint32(arg>>32))
		}
		if got, err := vm.Run(data); err != nil || uint32(got) != test.want {
			t.Errorf("%x of %x with %x: %x, %v; want %x", test.call, test.arch, test.args, got, err, test.want)
		}
	}
}

// dockerRefuses are the system calls that Docker's default profile refuses a
// container that has the capabilities of a sandbox, and that Linux has had up to
// lastCall; later ones are refused altogether. Those that it only allows with some
// arguments, which are clone, personality and socket, stand in TestFilter.
var dockerRefuses = map[string]uint32{
	"acct": unix.SYS_ACCT, "add_key": unix.SYS_ADD_KEY, "bpf": unix.SYS_BPF, "clock_settime": unix.SYS_CLOCK_SETTIME,
	"clone3": unix.SYS_CLONE3, "delete_module": unix.SYS_DELETE_MODULE, "fanotify_init": unix.SYS_FANOTIFY_INIT,
	"finit_module": unix.SYS_FINIT_MODULE, "fsconfig": unix.SYS_FSCONFIG, "fsmount": unix.SYS_FSMOUNT, "fsopen": unix.SYS_FSOPEN,
	"fspick": unix.SYS_FSPICK, "get_mempolicy": unix.SYS_GET_MEMPOLICY, "init_module": unix.SYS_INIT_MODULE,
	"io_uring_enter": unix.SYS_IO_URING_ENTER, "io_uring_register": unix.SYS_IO_URING_REGISTER, "io_uring_setup": unix.SYS_IO_URING_SETUP,
	"kcmp": unix.SYS_KCMP, "kexec_file_load": unix.SYS_KEXEC_FILE_LOAD, "kexec_load": unix.SYS_KEXEC_LOAD, "keyctl": unix.SYS_KEYCTL,
	"lookup_dcookie": unix.SYS_LOOKUP_DCOOKIE, "lsm_get_self_attr": unix.SYS_LSM_GET_SELF_ATTR, "lsm_list_modules": unix.SYS_LSM_LIST_MODULES,
	"lsm_set_self_attr": unix.SYS_LSM_SET_SELF_ATTR, "mbind": unix.SYS_MBIND, "migrate_pages": unix.SYS_MIGRATE_PAGES,
	"mount": unix.SYS_MOUNT, "mount_setattr": unix.SYS_MOUNT_SETATTR, "move_mount": unix.SYS_MOVE_MOUNT, "move_pages": unix.SYS_MOVE_PAGES,
	"nfsservctl": unix.SYS_NFSSERVCTL, "open_by_handle_at": unix.SYS_OPEN_BY_HANDLE_AT, "open_tree": unix.SYS_OPEN_TREE,
	"open_tree_attr": unix.SYS_OPEN_TREE_ATTR, "file_getattr": unix.SYS_FILE_GETATTR, "file_setattr": unix.SYS_FILE_SETATTR,
	"listns": unix.SYS_LISTNS, "rseq_slice_yield": unix.SYS_RSEQ_SLICE_YIELD,
	"perf_event_open": unix.SYS_PERF_EVENT_OPEN, "pidfd_getfd": unix.SYS_PIDFD_GETFD, "pivot_root": unix.SYS_PIVOT_ROOT,
	"process_madvise": unix.SYS_PROCESS_MADVISE, "quotactl": unix.SYS_QUOTACTL, "quotactl_fd": unix.SYS_QUOTACTL_FD, "reboot": unix.SYS_REBOOT,
	"request_key": unix.SYS_REQUEST_KEY, "set_mempolicy": unix.SYS_SET_MEMPOLICY, "set_mempolicy_home_node": unix.SYS_SET_MEMPOLICY_HOME_NODE,
	"setdomainname": unix.SYS_SETDOMAINNAME, "sethostname": unix.SYS_SETHOSTNAME, "setns": unix.SYS_SETNS, "settimeofday": unix.SYS_SETTIMEOFDAY,
	"swapoff": unix.SYS_SWAPOFF, "swapon": unix.SYS_SWAPON, "syslog": unix.SYS_SYSLOG, "umount2": unix.SYS_UMOUNT2, "unshare": unix.SYS_UNSHARE,
	"userfaultfd": unix.SYS_USERFAULTFD, "vhangup": unix.SYS_VHANGUP,
}

// TestNoWeakerThanDocker asks about all that Docker refuses.
func TestNoWeakerThanDocker(t *testing.T) {
	vm, err := bpf.NewVM(callFilter())
	if err != nil {
		t.Fatal(err)
	}
	all := maps.Clone(dockerRefuses)
	maps.Copy(all, dockerRefusesHere)
	for name, call := range all {
		data := make([]byte, 64)
		binary.BigEndian.PutUint32(data, call)
		binary.BigEndian.PutUint32(data[4:], ownArch)
		if got, err := vm.Run(data); err != nil || uint32(got) == unix.SECCOMP_RET_ALLOW {
			t.Errorf("%s (%d) is allowed (%v)", name, call, err)
		}
	}
}
