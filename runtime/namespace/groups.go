//go:build linux

package namespace

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/runtime"
)

// This file defines the control groups of one sandbox. Of each controller that
// has something to limit there is one for the sandbox as a whole. The number of
// processes is limited in another one below it, run, where the commands are and
// the daemon is not, which would end if it could not start a thread.
//
// Processes are born in their groups, because moving them there takes the kernel
// some 10 ms: the thread that starts the first process is in the groups before, and
// so is the thread of the daemon that starts all commands.

// groups are those of one sandbox. Files are by absolute paths.
type groups struct {
	folders  []string  // parents first
	settings []setting // in this order
	first    []string  // files that let in the thread that starts the first process
	commands []string  // files that let in the thread that starts commands
	kills    string    // file that tells how many processes were killed for want of memory; "" if none
}

// setting is a value of a file. What not every kernel has is optional.
type setting struct {
	file, value string
	optional    bool
}

// groupsFile in Spec.Dir lists the folders of a sandbox's groups, from before they
// are made until they are removed.
const groupsFile = "groups.json"

// groupName is that of the sandbox that is kept in dir, which it can be read from
// unless it would be longer than a file name can be.
func groupName(dir string) string {
	name := url.QueryEscape(dir)
	if len(name) > 255 {
		sum := sha256.Sum256([]byte(dir))
		name = hex.EncodeToString(sum[:])
	}
	return name
}

// plan says which groups the sandbox that is kept in dir gets.
func (c controllers) plan(dir string, limits runtime.Limits, pids int64) groups {
	var g groups
	name := groupName(dir)
	if parent, ok := c.parents[memoryController]; ok && limits.Memory > 0 {
		box := g.add(parent, name)
		bytes := strconv.FormatInt(limits.Memory, 10)
		g.set(box, "memory.limit_in_bytes", bytes)
		g.setOptional(box, "memory.memsw.limit_in_bytes", bytes)
		g.kills = filepath.Join(box, "memory.oom_control")
	}
	if parent, ok := c.parents[cpuController]; ok && limits.CPU > 0 {
		box := g.add(parent, name)
		period, quota := cpuTime(limits.CPU)
		g.set(box, "cpu.cfs_period_us", period)
		g.set(box, "cpu.cfs_quota_us", quota)
	}
	if parent, ok := c.parents[pidsController]; ok && pids > 0 {
		run := g.add(g.add(parent, name), "run")
		g.set(run, "pids.max", strconv.FormatInt(pids, 10))
		g.commands = []string{filepath.Join(run, "tasks")}
	}
	for _, folder := range g.folders {
		if filepath.Base(folder) == name {
			g.first = append(g.first, filepath.Join(folder, "tasks"))
		}
	}
	return g
}

func (g *groups) add(parent, name string) string {
	folder := filepath.Join(parent, name)
	if !slices.Contains(g.folders, folder) { // controllers of version 1 may be mounted together
		g.folders = append(g.folders, folder)
	}
	return folder
}

func (g *groups) set(folder, file, value string) {
	g.settings = append(g.settings, setting{filepath.Join(folder, file), value, false})
}

func (g *groups) setOptional(folder, file, value string) {
	g.settings = append(g.settings, setting{filepath.Join(folder, file), value, true})
}

// cpuTime says in µs how much time there is in each period for a number of
// thousandths of a core. The kernel gives no less than 1000 µs.
func cpuTime(millis int64) (period, quota string) {
	length := int64(100_000)
	millis = min(millis, 1_000_000) // a thousand cores, which is more than the kernel counts
	if millis < 10 {
		length = 1_000_000
	}
	return strconv.FormatInt(length, 10), strconv.FormatInt(length*millis/1000, 10)
}

// make makes the groups, after listing them in dir. After an error the caller
// removes what there is.
func (g groups) make(dir string) error {
	if len(g.folders) == 0 {
		return nil
	}
	list, err := json.Marshal(g.folders)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, groupsFile), list, 0o600); err != nil {
		return err
	}
	for _, folder := range g.folders {
		if err := ignoreExist(unix.Mkdir(folder, 0o755)); err != nil {
			return fmt.Errorf("make the control group %s: %w", folder, err)
		}
	}
	for _, s := range g.settings {
		if err := write(s.file, s.value); err != nil && !(s.optional && errors.Is(err, fs.ErrNotExist)) {
			return fmt.Errorf("limit the sandbox: %w", err)
		}
	}
	return nil
}

// How long is waited for a group to be empty. What was in it has ended by then, but
// the kernel may not yet be through with it.
const (
	groupTimeout = 5 * time.Second
	groupPause   = time.Millisecond
)

// removeGroups removes the groups that are listed in dir, once all that was in
// them has ended.
func removeGroups(ctx context.Context, dir string) error {
	list, err := os.ReadFile(filepath.Join(dir, groupsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var folders []string
	if err := json.Unmarshal(list, &folders); err != nil {
		// Cut off before anything was made; what it may have been is swept later.
		folders = nil
	}
	ctx, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	for _, folder := range slices.Backward(folders) {
		for {
			err := unix.Rmdir(folder)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				break
			}
			if !errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("remove the control group %s: %w", folder, err)
			}
			select {
			case <-time.After(groupPause):
			case <-ctx.Done():
				return fmt.Errorf("the control group %s does not get empty: %w", folder, context.Cause(ctx))
			}
		}
	}
	return os.Remove(filepath.Join(dir, groupsFile))
}

// sweep removes the groups of sandboxes whose folders are gone: somebody deleted
// them by hand. Groups that are not empty stay.
func sweep(parent string) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return
	}
	for _, e := range entries {
		dir, err := url.QueryUnescape(e.Name())
		if err != nil || !e.IsDir() || !strings.HasPrefix(dir, "/") {
			continue
		}
		if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
			unix.Rmdir(filepath.Join(parent, e.Name(), "run"))
			unix.Rmdir(filepath.Join(parent, e.Name()))
		}
	}
}
