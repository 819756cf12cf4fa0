//go:build linux

package namespace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/runtime/tree"
)

// This file defines disks: the files of a sandbox that has a storage limit are a file
// system of that size, in one sparse file of the sandbox's folder. A writer who goes
// past the limit gets ENOSPC from the kernel. Only root can mount one.
//
// A disk is mounted nowhere on the host: its mount is handed to the first process and
// ends with the sandbox, and with the last mount the kernel takes the loop device
// away. The device keeps the file open and so keeps the lock that was taken on it,
// which is how nobody else comes to mount the file as a second device meanwhile.

const (
	diskName = "disk" // in Spec.Dir
	minDisk  = 1 << 20
	diskPoll = 2 * time.Millisecond // the kernel tells nobody that a device is gone
)

// diskTools are the programs that disks are made and mended by.
type diskTools struct{ mkfs, fsck string }

// findDiskTools returns them, or what this machine lacks for disks. What it finds
// holds as long as this process lives.
var findDiskTools = sync.OnceValues(func() (diskTools, error) {
	lacks := func(what, hint string, err error) (diskTools, error) {
		return diskTools{}, &runtime.Unsupported{What: what, Hint: hint, Err: err}
	}
	idMap, _ := os.ReadFile("/proc/self/uid_map")
	if os.Geteuid() != 0 || !mapped(string(idMap), 0, 1<<32-1) {
		return lacks("only the machine's root can give sandboxes file systems of their own", "run the server as root, or keep sandboxes in memory by --root memory", nil)
	}
	if systems, err := os.ReadFile("/proc/filesystems"); err == nil && !strings.Contains(string(systems), "\text4\n") {
		return lacks("this kernel has no ext4", "load it by modprobe ext4, or keep sandboxes in memory by --root memory", nil)
	}
	control, err := os.OpenFile(loopControl, os.O_RDWR, 0)
	if err != nil {
		return lacks("there are no loop devices", "load them by modprobe loop, give a container "+loopControl+", or keep sandboxes in memory by --root memory", err)
	}
	control.Close()
	var tools diskTools
	for name, path := range map[string]*string{"mkfs.ext4": &tools.mkfs, "e2fsck": &tools.fsck} {
		if *path = findProgram(name); *path == "" {
			return lacks("there is no "+name, "install the package e2fsprogs, or keep sandboxes in memory by --root memory", nil)
		}
	}
	return tools, nil
})

const loopControl = "/dev/loop-control"

// findProgram looks where root has programs, which is not always in PATH.
func findProgram(name string) string {
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"} {
		if path := filepath.Join(dir, name); unix.Access(path, unix.X_OK) == nil {
			return path
		}
	}
	return ""
}

// makeDisk makes a disk of a number of bytes in a new file. Whatever is left of it
// after an error lies in that file.
func makeDisk(ctx context.Context, path string, size int64) error {
	tools, err := findDiskTools()
	if err != nil {
		return err
	}
	if size < minDisk {
		return &runtime.Unsupported{
			What: fmt.Sprintf("a storage limit of %d bytes is too small for a file system", size),
			Hint: fmt.Sprintf("ask for %d or more", minDisk),
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return fmt.Errorf("make a file system of %d bytes: %w", size, err)
	}
	m := hostIDs()
	// No journal: what the machine has not written when it loses power is lost
	// anyway, and everything would be written twice.
	return runTool(ctx, 0, tools.mkfs, "-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode",
		"-E", fmt.Sprintf("lazy_itable_init=1,nodiscard,root_owner=%d:%d", m.uid.HostID, m.gid.HostID), path)
}

// runTool runs a program whose exit codes up to most are good ones.
func runTool(ctx context.Context, most int, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	said, err := cmd.CombinedOutput()
	exit, ended := errors.AsType[*exec.ExitError](err)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil, ended && exit.ExitCode() >= 0 && exit.ExitCode() <= most:
		return nil
	case bytes.Contains(said, []byte("No space left on device")):
		return fmt.Errorf("%w: %s", runtime.ErrDiskFull, bytes.TrimSpace(said))
	}
	return fmt.Errorf("%s: %w: %.500s", filepath.Base(program), err, bytes.TrimSpace(said))
}

// mountDisk returns the root of a disk's file system, whose mount hangs nowhere and
// ends when nobody has it open or mounted. It waits until the mount before has gone.
func mountDisk(ctx context.Context, path string) (*os.File, error) {
	if _, err := findDiskTools(); err != nil {
		return nil, err
	}
	f, err := lockDisk(ctx, path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := mendDisk(ctx, f); err != nil {
		return nil, err
	}
	device, err := attachLoop(f)
	if err != nil {
		return nil, &runtime.Unsupported{What: "a sandbox's file system can't become a loop device", Hint: "see that there are free ones, or use a server without containers around it", Err: err}
	}
	defer device.Close()
	return mountDevice(device.Name())
}

// lockDisk opens a disk once no device has it.
func lockDisk(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, &os.PathError{Op: "lock", Path: path, Err: err}
		}
		select {
		case <-time.After(diskPoll):
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("the sandbox's file system is still in use: %w", context.Cause(ctx))
		}
	}
}

// mendDisk checks a file system that was mounted when the machine stopped.
func mendDisk(ctx context.Context, f *os.File) error {
	const stateAt, unmounted = 1024 + 0x3a, 1 // s_state of ext4's superblock
	state := make([]byte, 1)
	if _, err := f.ReadAt(state, stateAt); err != nil {
		return err
	}
	if state[0]&unmounted != 0 {
		return nil
	}
	tools, err := findDiskTools()
	if err != nil {
		return err
	}
	const mended = 2 // and the same with a word that the machine should start anew
	if err := runTool(ctx, mended, tools.fsck, "-f", "-y", f.Name()); err != nil {
		return fmt.Errorf("the sandbox's file system was damaged when the machine stopped, and can't be mended: %w", err)
	}
	return nil
}

// attachLoop makes a loop device of a file, which ends with the last who uses it.
func attachLoop(f *os.File) (*os.File, error) {
	control, err := os.OpenFile(loopControl, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for tries := 0; ; tries++ {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, os.NewSyscallError("LOOP_CTL_GET_FREE", err)
		}
		device, err := os.OpenFile("/dev/loop"+strconv.Itoa(number), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(f.Fd())}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		copy(config.Info.File_name[:], "sbx-star:"+filepath.Base(filepath.Dir(f.Name())))
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return device, nil
		}
		device.Close()
		const many = 100
		if !errors.Is(err, unix.EBUSY) || tries == many { // others take free ones as well
			return nil, os.NewSyscallError("LOOP_CONFIGURE", err)
		}
	}
}

// mountDevice mounts a device with an ext4.
func mountDevice(device string) (*os.File, error) {
	failed := func(err error) (*os.File, error) {
		return nil, fmt.Errorf("the sandbox's file system can't be mounted: %w", err)
	}
	system, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return failed(os.NewSyscallError("fsopen", err))
	}
	defer unix.Close(system)
	err = unix.FsconfigSetString(system, "source", device)
	// What is deleted in it is given back to the host; its tables stay unwritten
	// until they are needed; and nobody waits for the host's disk.
	for _, option := range []string{"discard", "noinit_itable", "nobarrier"} {
		if err == nil {
			err = unix.FsconfigSetFlag(system, option)
		}
	}
	if err == nil {
		err = unix.FsconfigCreate(system)
	}
	if err != nil {
		return failed(os.NewSyscallError("fsconfig", err))
	}
	fd, err := unix.Fsmount(system, unix.FSMOUNT_CLOEXEC, boxFlags)
	if err != nil {
		return failed(os.NewSyscallError("fsmount", err))
	}
	return os.NewFile(uintptr(fd), "disk"), nil
}

// hasDisk reports whether the sandbox's files are a disk.
func (in *instance) hasDisk() bool {
	_, err := os.Lstat(in.diskPath())
	return err == nil
}

func (in *instance) diskPath() string { return filepath.Join(in.dir, diskName) }

// releaseDisk waits until the room that a disk takes up is its file's alone. Whoever
// copies from it meanwhile keeps it somewhat longer.
func (in *instance) releaseDisk(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	if f, err := lockDisk(ctx, in.diskPath()); err == nil {
		f.Close()
	}
}

// openFiles returns the folder of the sandbox's files, wherever they are.
func (in *instance) openFiles(ctx context.Context) (*os.File, error) {
	disk := in.hasDisk()
	if p, err := runtime.ReadProc(in.dir); err == nil && p.Alive() && (disk || in.spec.InMemory) {
		f, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/%d", p.PID, boxFD), unix.O_PATH|unix.O_DIRECTORY, 0)
		if p.Alive() {
			return f, err
		}
		if err == nil { // of somebody else by now
			f.Close()
		}
	}
	if disk {
		ctx, cancel := context.WithTimeout(ctx, startTimeout)
		defer cancel()
		return mountDisk(ctx, in.diskPath())
	}
	return os.Open(filepath.Join(in.dir, boxName))
}

// How large a sandbox in memory is that has no limit of its own, and how many bytes
// there are to a file, which is what ext4 has.
const (
	memorySize   = 1 << 30
	bytesPerFile = 16 << 10
)

// memoryRoot is how much the files of a sandbox take up at most that are in memory,
// or 0 if they are on disk.
func memoryRoot(spec runtime.Spec) (int64, error) {
	switch {
	case !spec.InMemory:
		return 0, nil
	case os.Geteuid() != 0 && !kernelSince(6, 6):
		return 0, &runtime.Unsupported{
			What: "this kernel's folders in memory can't be the upper side of an overlay of an ordinary user",
			Hint: "use Linux 6.6 or later, or the server without --root memory",
		}
	case spec.Limits.Storage != 0 && spec.Limits.Storage < minDisk:
		return 0, &runtime.Unsupported{
			What: fmt.Sprintf("a storage limit of %d bytes is too small", spec.Limits.Storage),
			Hint: fmt.Sprintf("ask for %d or more", minDisk),
		}
	case spec.Limits.Storage == 0:
		return memorySize, nil
	}
	return spec.Limits.Storage, nil
}

// keepMemory has the files of a sandbox in memory survive its end, which it brings
// about: a start goes on with them. If there is no room for them, the sandbox stays.
func (in *instance) keepMemory(ctx context.Context) error {
	p, err := runtime.ReadProc(in.dir)
	if err != nil || !p.Alive() {
		return in.end(ctx)
	}
	files, err := in.openFiles(ctx)
	if err != nil {
		return err
	}
	defer files.Close() // the folder in memory lasts until then
	if err := roomToKeep(files, in.dir); err != nil {
		return err
	}
	if err := in.end(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTimeout)
	defer cancel()
	box, fresh := filepath.Join(in.dir, boxName), filepath.Join(in.dir, boxName+".new")
	if err := tree.Remove(ctx, fresh); err != nil { // of a stop that was interrupted
		return err
	}
	err = copyInto(ctx, fresh, files)
	if err == nil {
		err = os.NewSyscallError("renameat2", unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, box, unix.RENAME_EXCHANGE))
	}
	return errors.Join(err, tree.Remove(context.WithoutCancel(ctx), fresh))
}

// roomToKeep refuses to keep more than there is room for.
func roomToKeep(files *os.File, dir string) error {
	var here, there unix.Statfs_t
	if err := errors.Join(unix.Fstatfs(int(files.Fd()), &here), unix.Statfs(dir, &there)); err != nil {
		return err
	}
	used, free := (here.Blocks-here.Bfree)*uint64(here.Bsize), there.Bavail*uint64(there.Bsize)
	if used > free {
		return fmt.Errorf("%w: the sandbox has %d bytes in memory, and the state folder room for %d: it goes on running", runtime.ErrDiskFull, used, free)
	}
	return nil
}

// overLimit says of an error of a sandbox's start that it was its own limit.
func overLimit(limit int64, err error) error {
	return &runtime.Unsupported{
		What: fmt.Sprintf("the storage limit of %d bytes has no room for what the sandbox starts with", limit),
		Hint: "ask for more",
		Err:  err,
	}
}

// limited reports whether a sandbox that is being made is to have a disk.
func (in *instance) limited() bool {
	if in.spec.Limits.Storage == 0 || in.spec.InMemory {
		return false
	}
	_, err := findDiskTools()
	return err == nil
}

// storage tells how a limit on storage is enforced, and whether it is.
func (r *Runtime) storage() (how string, enforced bool) {
	if r.inMemory {
		return "hard: what a sandbox writes lies in memory, up to its limit", true
	}
	if _, err := findDiskTools(); err != nil {
		return "not enforced: " + err.Error(), false
	}
	return "hard: a sandbox with a limit has a file system of that size", true
}
