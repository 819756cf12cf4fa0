//go:build linux && (amd64 || arm64)

package namespace

import (
	"encoding/binary"
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
