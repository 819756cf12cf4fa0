//go:build linux

package namespace

import "golang.org/x/sys/unix"

// This file defines what Docker refuses on amd64 alone.

var dockerRefusesHere = map[string]uint32{
	"_sysctl": unix.SYS__SYSCTL, "afs_syscall": unix.SYS_AFS_SYSCALL, "create_module": unix.SYS_CREATE_MODULE,
	"get_kernel_syms": unix.SYS_GET_KERNEL_SYMS, "getpmsg": unix.SYS_GETPMSG, "ioperm": unix.SYS_IOPERM, "iopl": unix.SYS_IOPL,
	"putpmsg": unix.SYS_PUTPMSG, "query_module": unix.SYS_QUERY_MODULE, "security": unix.SYS_SECURITY, "sysfs": unix.SYS_SYSFS,
	"tuxcall": unix.SYS_TUXCALL, "uprobe": unix.SYS_UPROBE, "uselib": unix.SYS_USELIB, "ustat": unix.SYS_USTAT, "vserver": unix.SYS_VSERVER,
}
