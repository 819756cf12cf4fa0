//go:build linux

package namespace

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// This file defines which control groups this machine has for sandboxes: those
// of version 1, which only root can make. Version 2 is not used.

// The controllers that sandboxes are held by, and the file that a group has which
// can be limited by each.
const (
	cpuController    = "cpu"
	memoryController = "memory"
	pidsController   = "pids"
)

var controllerFiles = map[string]string{
	cpuController:    "cpu.cfs_quota_us",
	memoryController: "memory.limit_in_bytes",
	pidsController:   "tasks", // the topmost group has no pids.max
}

// groupsName is the folder in which the groups of all sandboxes are, of all
// servers of this machine. It stays.
const groupsName = "sbx-star"

// controllers is where the groups of sandboxes are made.
type controllers struct {
	parents map[string]string // by controller; those that are missing can limit nothing
}

// findControllers looks for control groups that this process may make, and
// removes those of sandboxes whose folders do not exist any more.
func findControllers() controllers {
	c := controllers{map[string]string{}}
	mountinfo, _ := os.ReadFile("/proc/self/mountinfo")
	for name, mount := range hierarchies(string(mountinfo)) {
		dir := filepath.Join(mount, groupsName)
		if ignoreExist(unix.Mkdir(dir, 0o755)) == nil && unix.Access(dir, unix.W_OK) == nil && exists(filepath.Join(dir, controllerFiles[name])) {
			c.parents[name] = dir
			sweep(dir)
		}
	}
	return c
}

// hierarchies returns where each controller is mounted, by a text in the format of
// /proc/self/mountinfo.
func hierarchies(mountinfo string) map[string]string {
	one := map[string]string{}
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(kind) < 3 {
			continue
		}
		if kind[0] != "cgroup" {
			continue
		}
		for option := range strings.SplitSeq(kind[2], ",") {
			if _, ok := controllerFiles[option]; ok {
				one[option] = unescapeOctal(fields[4])
			}
		}
	}
	return one
}

func exists(path string) bool { return unix.Access(path, unix.F_OK) == nil }

// write writes a value to a file of a group, in one call.
func write(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
