//go:build linux

package namespace

import "golang.org/x/sys/unix"

// This file defines what the filter of system calls has for arm64 alone.

const ownArch = unix.AUDIT_ARCH_AARCH64

var refusedHere []uint32
