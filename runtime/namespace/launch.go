//go:build linux

package namespace

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/daemon"
	"github.com/sbx-star/sbx-star/runtime"
)

// This file defines the maker's side of a sandbox's start. What the two sides
// say to each other:
//
//	maker: the order, before the start, as a file
//	maker: one byte for each layer of an image, with a mount of it if it can have one
//	maker: one byte for each layer, with an idmapped mount of it if it can have one
//	maker: one byte for each mount, with a mount of its source if it can have one
//	first process: one outcome, of the set-up if it failed, or else of the start
//	       of the daemon

// childName is argv[0] of a sandbox's first process.
const childName = "sbx-star-init"

// Descriptors of the first process besides the standard ones.
const (
	listenerFD  = 3 + iota // the daemon's socket
	controlFD              // a connection to the maker
	orderFD                // the order, from offset 0
	boxFD                  // the mount of the sandbox's files if they are not in a folder of the host
	firstFreeFD            // and from here on the files of its groups, as the order says
)

// Names in Spec.Dir.
const (
	boxName = "box"        // the sandbox's files: its root, the upper and the work folders
	logName = "daemon.log" // what the daemon's process writes if it dies of a bug
)

// order is what the first process is to make.
type order struct {
	Hostname   string
	Former     string // host name in the files of a snapshot; "" if they have none yet, or the same
	Plan       plan
	Mounts     []runtime.Mount
	Disk       bool   // boxFD is the mount of the files
	Memory     int64  // how large the files' folder in memory is, which is to be made; 0 makes none
	Unfiltered bool   // for tests
	Files      uint64 // that each process may have open
	Commands   int    // files that let the thread that starts commands into their groups
	Kills      bool   // behind them, the one that tells of processes killed for want of memory
	Limits     runtime.Limits
	Pids       int64 // processes of commands, where no group limits them
	Daemon     daemon.Config
}

// outcome is what became of an order.
type outcome struct {
	Step  string        // what failed; "" if all went well
	Text  string        // how
	Errno syscall.Errno // why; 0 if it was not the kernel that refused
}

// idMaps is how the ids of a sandbox stand outside.
type idMaps struct {
	uid, gid syscall.SysProcIDMap
	many     bool // 65536 ids, by the right of root
	groups   bool // the maker may and must drop its own groups
}

// firstID and idCount are the ids outside of the sandboxes that root makes.
// They are nobody's: the range begins where systemd's table of ids stops giving
// any to containers. All sandboxes have the same, because each is alone in its
// namespaces anyway, and so a layer of one is good for another.
const (
	firstID = 0x70000000
	idCount = 1 << 16
)

// nobodyID owns nothing in any system folder, inside and outside.
const nobodyID = idCount - 1

func hostIDs() idMaps {
	uidMap, _ := os.ReadFile("/proc/self/uid_map")
	gidMap, _ := os.ReadFile("/proc/self/gid_map")
	return chooseIDs(os.Geteuid(), os.Getegid(), string(uidMap), string(gidMap))
}

// chooseIDs decides by the maker's own ids and by which ids exist where it runs.
func chooseIDs(uid, gid int, uidMap, gidMap string) idMaps {
	one := func(uid, gid int) (m idMaps) {
		m.uid = syscall.SysProcIDMap{HostID: uid, Size: 1}
		m.gid = syscall.SysProcIDMap{HostID: gid, Size: 1}
		return m
	}
	exist := func(first, count int) bool { return mapped(uidMap, first, count) && mapped(gidMap, first, count) }
	switch {
	case uid != 0:
		return one(uid, gid)
	case exist(firstID, idCount):
		m := one(firstID, firstID)
		m.uid.Size, m.gid.Size = idCount, idCount
		m.many, m.groups = true, true
		return m
	case exist(nobodyID, 1): // root of a container: the sandbox is not to be it
		m := one(nobodyID, nobodyID)
		m.groups = true
		return m
	}
	return one(uid, gid)
}

// mapped reports whether a file in the format of /proc/self/uid_map has ids.
func mapped(idMap string, first, count int) bool {
	for line := range strings.Lines(idMap) {
		var start, outside, size int
		if n, _ := fmt.Sscan(line, &start, &outside, &size); n == 3 && first >= start && first+count <= start+size {
			return true
		}
	}
	return false
}

// overlayTakesIdmapped reports whether the kernel is one whose overlays take
// idmapped mounts as lower sides, which the mounts themselves do not tell.
func overlayTakesIdmapped() bool { return kernelSince(5, 19) }

// kernelSince reports whether the kernel has this version or a later one.
func kernelSince(wantMajor, wantMinor int) bool {
	var name unix.Utsname
	var major, minor int
	if unix.Uname(&name) != nil {
		return false
	}
	n, _ := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor)
	return n == 2 && (major > wantMajor || major == wantMajor && minor >= wantMinor)
}

// makeBox makes the place of the sandbox's files, with those of a snapshot if it
// starts with one.
func (in *instance) makeBox(ctx context.Context) (err error) {
	box := filepath.Join(in.dir, boxName)
	if err := makeOwned(box); err != nil {
		return err
	}
	if in.limited() {
		if err := makeDisk(ctx, in.diskPath(), in.spec.Limits.Storage); err != nil {
			return err
		}
	}
	if in.spec.Snapshot == "" {
		return nil
	}
	from, err := os.Open(filepath.Join(in.spec.Snapshot, filesName))
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := in.openFiles(ctx)
	if err != nil {
		return err
	}
	defer to.Close()
	if err = copyFiles(ctx, to, from); in.limited() && errors.Is(err, runtime.ErrDiskFull) {
		return overLimit(in.spec.Limits.Storage, err)
	}
	return err
}

// launch starts the sandbox on its box and returns once its daemon is there.
// former is the host name that the files have in them, if it is not the sandbox's
// own. After an error the caller ends what there is.
func (in *instance) launch(ctx context.Context, p plan, former string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	memory, err := memoryRoot(in.spec)
	if err != nil {
		return err
	}
	var disk *os.File
	if in.hasDisk() {
		if disk, err = mountDisk(ctx, in.diskPath()); err != nil {
			return err
		}
		defer disk.Close()
	}
	m := hostIDs()
	mounts, err := sortMounts(in.spec.Mounts)
	if err != nil {
		return err
	}
	pids := cmp.Or(in.r.pids, DefaultPids)
	g := in.r.controllers().plan(in.dir, in.spec.Limits, pids)
	if err := g.make(in.dir); err != nil {
		return err
	}
	unheld := int64(0)
	if len(g.commands) == 0 {
		unheld = pids
	}
	control, err := in.startFirst(m, g, disk, order{
		Hostname:   in.spec.Hostname,
		Former:     former,
		Plan:       p,
		Mounts:     mounts,
		Disk:       disk != nil,
		Memory:     memory,
		Unfiltered: in.r.unfiltered,
		Files:      cmp.Or(in.r.files, DefaultFiles),
		Commands:   len(g.commands),
		Kills:      g.kills != "",
		Limits:     in.spec.Limits,
		Pids:       unheld,
		Daemon:     daemon.Config{Base: environment(), Env: in.spec.Env, WorkDir: home, Home: home},
	})
	if err != nil {
		return err
	}
	defer control.Close()
	stop := context.AfterFunc(ctx, func() { control.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	sendErr := sendImage(control, p.Image)
	plain := false
	if sendErr == nil {
		plain, sendErr = sendLayers(control, in.proc.PID, p.Layers, m.many && !in.r.noIdmap && overlayTakesIdmapped())
	}
	if sendErr == nil {
		sendErr = sendMounts(control, mounts, m)
	}
	if sendErr != nil {
		control.CloseWrite() // the first process may have said why; if not, this ends it
	}
	var out outcome
	err = json.NewDecoder(control).Decode(&out)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return in.ended(errors.Join(err, sendErr))
	case sendErr != nil && out.Errno == 0:
		return sendErr // the first process has missed what was not sent
	case out.Step != "":
		if err := explain(out, thisMachine()); !errors.Is(err, runtime.ErrDiskFull) || disk == nil && memory == 0 {
			return err
		}
		return overLimit(max(in.spec.Limits.Storage, memory), out.Errno)
	}
	if plain && m.many {
		in.r.plain.Store(true)
	}
	return sendErr
}

// startFirst starts the first process, which waits for the layers and ends if
// this process does so before, and records it.
func (in *instance) startFirst(m idMaps, g groups, disk *os.File, o order) (control *net.UnixConn, err error) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	open := func(f *os.File, openErr error) {
		if openErr == nil {
			files = append(files, f)
		} else if err == nil {
			err = openErr
		}
	}
	open(os.OpenFile(os.DevNull, os.O_RDWR, 0))
	open(os.OpenFile(filepath.Join(in.dir, logName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600))
	open(listen(in.dir))
	ours, theirs, pairErr := socketPair()
	open(theirs, pairErr)
	open(orderFile(o))
	for _, file := range g.commands {
		open(os.OpenFile(file, os.O_WRONLY, 0))
	}
	if g.kills != "" {
		open(os.Open(g.kills))
	}
	if err != nil {
		if ours != nil {
			ours.Close()
		}
		return nil, err
	}
	if disk == nil {
		disk = files[0] // to keep the number
	}
	const own = boxFD - 1 // files before the box; the first is there twice: nothing to read, nowhere to print
	pid, err := startProcess(filepath.Join(in.dir, boxName), g, &os.ProcAttr{
		Env:   raceEnv(),
		Files: slices.Concat(files[:1], files[:own], []*os.File{disk}, files[own:]),
		Sys:   m.attr(unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC),
	})
	if err != nil {
		ours.Close()
		return nil, explain(outcome{Step: stepClone, Text: err.Error(), Errno: errnoOf(err)}, thisMachine())
	}
	if in.proc, err = runtime.ProcOf(pid); err != nil {
		ours.Close()
		unix.Kill(pid, unix.SIGKILL) // not waited for yet, the number is still its own
		unix.Wait4(pid, nil, 0, nil)
		return nil, in.ended(err)
	}
	if err := runtime.WriteProc(in.dir, in.proc); err != nil {
		ours.Close()
		return nil, err
	}
	return ours, nil
}

// ended says that the first process ended early, with its last words.
func (in *instance) ended(err error) error {
	said, _ := os.ReadFile(filepath.Join(in.dir, logName))
	return fmt.Errorf("the sandbox's first process ended before it was ready: %w: %.2000s", err, bytes.TrimSpace(said))
}

// startProcess starts this program as a first process in the folder dir. Three
// things are the starting thread's, which for that reason does nothing else:
//
// The control groups, which the process is born in.
//
// A session keyring of its own, because keys of the user's session would be at
// hand inside otherwise. It is made on this side because it counts against its
// maker's quota, and an ordinary user, as which the sandbox counts, has 200.
//
// The working directory: the new mount namespace takes it over with the process,
// also where the sandbox's root could not reach it by a path.
func startProcess(dir string, g groups, attr *os.ProcAttr) (pid int, err error) {
	onThread(func() {
		_, err = unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0)
		if err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) { // no keys, or none for this process
			err = fmt.Errorf("make a session keyring: %w", err)
			return
		}
		if err = unix.Unshare(unix.CLONE_FS); err != nil {
			return
		}
		if err = unix.Chdir(dir); err != nil {
			return
		}
		for _, file := range g.first {
			if err = write(file, "0"); err != nil {
				return
			}
		}
		var process *os.Process
		if process, err = os.StartProcess("/proc/self/exe", []string{childName, setUpStage}, attr); err == nil {
			pid = process.Pid
			process.Release()
		}
	})
	return pid, err
}

// onThread calls f on a thread that ends after it.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		goruntime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // the main thread, which ends with the process only
			defer goruntime.UnlockOSThread()
			onThread(f)
			return
		}
		f() // locked for good: the thread ends with the goroutine
	}()
	<-done
}

func listen(dir string) (*os.File, error) {
	ln, err := runtime.ListenUnix(dir)
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	return ln.File()
}

// socketPair returns the two ends of a connection.
func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "control")
	ours := os.NewFile(uintptr(fds[0]), "control")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}

// orderFile returns a file in memory that holds o.
func orderFile(o order) (*os.File, error) {
	fd, err := unix.MemfdCreate("order", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "order")
	if err := json.NewEncoder(f).Encode(o); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// sendLayers lets the first process go on. An idmapped layer is a mount that
// hangs nowhere yet, in which the sandbox's ids stand for the host's; only the
// host's root can make one. Where the kernel or a file system refuses, or idmap is
// false, the first process makes a plain one, and plain is true.
func sendLayers(control *net.UnixConn, pid int, layers []string, idmap bool) (plain bool, err error) {
	userns := -1
	if idmap {
		if userns, err = unix.Open(fmt.Sprintf("/proc/%d/ns/user", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return false, os.NewSyscallError("open a user namespace", err)
		}
		defer unix.Close(userns)
	}
	for _, name := range layers {
		layer := -1
		if idmap {
			layer, _ = cloneMount("/"+name, layerFlags, userns)
		}
		if layer < 0 {
			plain = true
		}
		if err := send(control, layer); err != nil {
			return false, err
		}
	}
	return plain, nil
}

// send sends one byte, with the descriptor fd, which it closes, or none.
func send(control *net.UnixConn, fd int) error {
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
		defer unix.Close(fd)
	}
	_, _, err := control.WriteMsgUnix([]byte{0}, rights, nil)
	return err
}

func errnoOf(err error) (errno syscall.Errno) {
	errors.As(err, &errno)
	return errno
}
