//go:build linux

package namespace

import "golang.org/x/sys/unix"

// This file defines what the filter of system calls has for amd64 alone.

const ownArch = unix.AUDIT_ARCH_X86_64

// refusedHere are what arm64 never had.
var refusedHere = []uint32{
	unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_USELIB, unix.SYS_USTAT, unix.SYS_SYSFS, unix.SYS__SYSCTL,
	unix.SYS_CREATE_MODULE, unix.SYS_GET_KERNEL_SYMS, unix.SYS_QUERY_MODULE,
	unix.SYS_GETPMSG, unix.SYS_PUTPMSG, unix.SYS_AFS_SYSCALL, unix.SYS_TUXCALL, unix.SYS_SECURITY, unix.SYS_VSERVER, // which Linux has only reserved
	unix.SYS_UPROBE,
}
