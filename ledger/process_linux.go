package ledger

import (
	"bytes"
	"os"
	"strconv"
	"strings"
)

// This file defines how a process is known again. Its number is not enough:
// another one may have it by now.

// process is a process of this machine.
type process struct {
	PID   int    `json:"pid"`
	Start string `json:"start,omitempty"` // in the kernel's clock ticks since boot
	Boot  string `json:"boot,omitempty"`  // the kernel's id of that boot
}

func thisProcess() (process, error) {
	p := process{PID: os.Getpid()}
	boot, err := bootID()
	if err != nil {
		return p, err
	}
	p.Boot = boot
	p.Start, err = startTime(p.PID)
	return p, err
}

// alive tells whether the process is still there.
func (p process) alive() bool {
	if boot, err := bootID(); err == nil && boot != p.Boot {
		return false
	}
	start, err := startTime(p.PID)
	return err == nil && start == p.Start
}

func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id)), err
}

// startTime is field 22 of stat. The name, field 2, may hold anything, and ends
// with the last parenthesis. A zombie has ended.
func startTime(pid int) (string, error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", err
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 || fields[0][0] == 'Z' {
		return "", os.ErrProcessDone
	}
	return string(fields[19]), nil
}
