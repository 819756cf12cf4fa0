//go:build linux && (amd64 || arm64)

package namespace

import (
	"os"
	"slices"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// This file defines which system calls the daemon and its commands are refused:
// those that Docker's default profile refuses a container with the capabilities
// of this sandbox, and some more. They are ways into rarely used parts of the
// kernel, which is the one thing that a sandbox shares with the host, and most of
// them would fail for want of a right anyway.

// refusedCalls fail with EPERM, as in Docker's containers. Others are in
// refusedHere, which differs between architectures.
var refusedCalls = []uint32{
	// Mounts and namespaces; clone is looked at below.
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT,
	unix.SYS_FSPICK, unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_MOUNT_SETATTR, unix.SYS_STATMOUNT, unix.SYS_LISTMOUNT,
	unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME,
	// Files by other ways than their names.
	unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_FANOTIFY_INIT, unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD, unix.SYS_ACCT,
	// Other processes. ptrace is a debugger's; what it may look into it asks itself.
	unix.SYS_PIDFD_GETFD, unix.SYS_PROCESS_MADVISE, unix.SYS_KCMP,
	// The kernel's keys, programs and insides.
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER, unix.SYS_SYSLOG, unix.SYS_LOOKUP_DCOOKIE,
	unix.SYS_LSM_GET_SELF_ATTR, unix.SYS_LSM_SET_SELF_ATTR, unix.SYS_LSM_LIST_MODULES,
	// The machine.
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD,
	unix.SYS_REBOOT, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_VHANGUP,
	unix.SYS_NFSSERVCTL,
	// Where memory lies.
	unix.SYS_MBIND, unix.SYS_SET_MEMPOLICY, unix.SYS_GET_MEMPOLICY, unix.SYS_SET_MEMPOLICY_HOME_NODE,
	unix.SYS_MIGRATE_PAGES, unix.SYS_MOVE_PAGES,
}

// lastCall is the last one that this list was made with. Later ones are ENOSYS, as
// on a kernel that has not got them, and so are those of x32, which have a high bit.
const lastCall = unix.SYS_REMOVEXATTRAT

// namespaceFlags are those of clone that make namespaces.
const namespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// Fields of struct seccomp_data. Of an argument only the lower half is looked
// at, which is all that the kernel takes of those in question.
var (
	callNumber = bpf.LoadAbsolute{Off: 0, Size: 4}
	callArch   = bpf.LoadAbsolute{Off: 4, Size: 4}
	callArg    = func(i uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: 16 + 8*i, Size: 4} }
)

var (
	allow  = bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	refuse = fail(unix.EPERM)
)

func fail(err unix.Errno) bpf.Instruction {
	return bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(err)}
}

// when is a test of what was loaded last, and what comes of it if it holds.
func when(test bpf.JumpTest, value uint32, then ...bpf.Instruction) []bpf.Instruction {
	skip := bpf.JumpIf{Cond: test, Val: value, SkipFalse: uint8(len(then))}
	return append([]bpf.Instruction{skip}, then...)
}

// callFilter is the program that the kernel asks about each call. Of most calls it
// asks only once: they do not depend on their arguments, and it remembers.
func callFilter() []bpf.Instruction {
	equal := func(value uint32, then ...bpf.Instruction) []bpf.Instruction {
		return when(bpf.JumpEqual, value, then...)
	}
	// A program for another architecture, for which all numbers mean other calls,
	// can't go on in a way that makes sense to it.
	foreign := when(bpf.JumpNotEqual, ownArch, bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS})
	program := slices.Concat([]bpf.Instruction{callArch}, foreign, []bpf.Instruction{callNumber})
	program = append(program, when(bpf.JumpGreaterThan, lastCall, fail(unix.ENOSYS))...)
	// Its flags are in memory, where no filter can look; a C library falls back to clone.
	program = append(program, equal(unix.SYS_CLONE3, fail(unix.ENOSYS))...)
	for _, calls := range [][]uint32{refusedCalls, refusedHere} {
		for _, call := range calls {
			program = append(program, equal(call, refuse)...)
		}
	}
	program = append(program, equal(unix.SYS_CLONE, slices.Concat(
		[]bpf.Instruction{callArg(0)},
		when(bpf.JumpBitsSet, namespaceFlags, refuse),
		[]bpf.Instruction{allow},
	)...)...)
	// Typing into the terminal of whoever is on the other side of it.
	program = append(program, equal(unix.SYS_IOCTL, slices.Concat(
		[]bpf.Instruction{callArg(1)},
		equal(unix.TIOCSTI, refuse),
		equal(unix.TIOCLINUX, refuse),
		[]bpf.Instruction{allow},
	)...)...)
	// Those of Docker: Linux, or Linux with 32 bits, each by its own version or as 2.6.
	program = append(program, equal(unix.SYS_PERSONALITY, slices.Concat(
		[]bpf.Instruction{callArg(0)},
		equal(0, allow), equal(0x8, allow), equal(0x20000, allow), equal(0x20008, allow),
		equal(0xffffffff, allow), // asks which it is
		[]bpf.Instruction{refuse},
	)...)...)
	// What is missing here fails as on a kernel without it, which tools such as
	// useradd, who look for the kernel's audit, are prepared for.
	for _, call := range []uint32{unix.SYS_SOCKET, unix.SYS_SOCKETPAIR} {
		program = append(program, equal(call, slices.Concat(
			[]bpf.Instruction{callArg(0)},
			equal(unix.AF_UNIX, allow), equal(unix.AF_INET, allow), equal(unix.AF_INET6, allow),
			when(bpf.JumpNotEqual, unix.AF_NETLINK, fail(unix.EAFNOSUPPORT)),
			[]bpf.Instruction{callArg(2)},
			equal(unix.NETLINK_ROUTE, allow),
			[]bpf.Instruction{fail(unix.EPROTONOSUPPORT)},
		)...)...)
	}
	return append(program, allow)
}

// filterCalls puts this thread, and all that the next exec makes of it, under the
// filter. There must be no way to new privileges by then.
func filterCalls() error {
	raw, err := bpf.Assemble(callFilter())
	if err != nil {
		return err
	}
	program := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		program[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	return nil
}
