//go:build linux

package namespace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/runtime/tree"
)

// This file defines how a sandbox's files become a snapshot, and a snapshot those
// of a new sandbox. Another process copies them, as the root of a user namespace
// like the sandbox's: only so can an ordinary user read what the sandbox's root
// has closed to itself, and as root nothing is copied with the host's rights.

// filesName is the folder in a snapshot that is like a sandbox's box.
const filesName = "files"

// copiedFolders are the parts of a box that a snapshot consists of.
var copiedFolders = []string{"root", "up"}

// origin says what a snapshot taken by this process comes from.
func origin(hostname string) runtime.Origin {
	m := hostIDs()
	return runtime.Origin{Runtime: name, UID: m.uid.HostID, GID: m.gid.HostID, IDs: m.uid.Size, Hostname: hostname}
}

// Snapshot implements runtime.Instance.
func (in *instance) Snapshot(ctx context.Context, dst string) error {
	if err := os.Mkdir(dst, 0o700); err != nil {
		return err
	}
	files, err := in.openFiles(ctx)
	if err == nil {
		err = copyInto(ctx, filepath.Join(dst, filesName), files)
		files.Close()
	}
	// If it is being removed, some files may have been gone before their turn came.
	if _, gone := runtime.ReadProc(in.dir); err == nil && gone != nil {
		err = errNoFiles
	}
	if err == nil {
		err = runtime.WriteOrigin(dst, origin(in.spec.Hostname))
	}
	if err != nil {
		return errors.Join(err, tree.Remove(context.WithoutCancel(ctx), dst))
	}
	return nil
}

// makeOwned makes a folder that belongs to the sandboxes' root.
func makeOwned(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return nil
	}
	m := hostIDs()
	return os.Chown(dir, m.uid.HostID, m.gid.HostID)
}

// What the copying process is given.
const (
	sourceFD = 3 + iota
	targetFD
)

// copyInto makes the folder dst and copies what a snapshot consists of into it.
func copyInto(ctx context.Context, dst string, from *os.File) error {
	if err := makeOwned(dst); err != nil {
		return err
	}
	to, err := os.Open(dst)
	if err != nil {
		return err
	}
	defer to.Close()
	return copyFiles(ctx, to, from)
}

// exitFull is the copying process's status when there is no more room.
const exitFull = 3

// copyFiles copies what a snapshot consists of from one folder to another.
func copyFiles(ctx context.Context, to, from *os.File) error {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{childName, copyStage}
	cmd.Env = raceEnv()
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{from, to}
	cmd.SysProcAttr = hostIDs().attr(unix.CLONE_NEWUSER)
	var said bytes.Buffer
	cmd.Stderr = &said
	life, err := cmd.StdinPipe() // it ends when this process does
	if err != nil {
		return err
	}
	defer life.Close()
	started := cmd.Start()
	if started == nil {
		err = cmd.Wait()
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case started != nil:
		return explain(outcome{Step: stepClone, Text: started.Error(), Errno: errnoOf(started)}, thisMachine())
	case err == nil:
		return nil
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == exitFull {
		err = runtime.ErrDiskFull
	}
	return fmt.Errorf("copy the sandbox's files: %w: %.2000s", err, bytes.TrimSpace(said.Bytes()))
}

// copyAndExit is the copying process.
func copyAndExit() {
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	err := tree.Copy(context.Background(), os.NewFile(targetFD, "target"), os.NewFile(sourceFD, "source"), copiedFolders...)
	switch {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		fmt.Fprintln(os.Stderr, err)
		os.Exit(exitFull)
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// attr is that of a process in a new user namespace with these ids, as its root.
func (m idMaps) attr(flags uintptr) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:                 flags | unix.CLONE_NEWUSER,
		UidMappings:                []syscall.SysProcIDMap{m.uid},
		GidMappings:                []syscall.SysProcIDMap{m.gid},
		GidMappingsEnableSetgroups: m.groups,
		Credential:                 &syscall.Credential{NoSetGroups: !m.groups}, // in no other group
		Setsid:                     true,
	}
}
