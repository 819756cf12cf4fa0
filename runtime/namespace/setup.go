//go:build linux

package namespace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/runtime/tree"
)

// This file defines how a first process sets its sandbox up. All of it happens
// in its own namespaces, so nothing of it has to be undone if it fails: it ends
// with the process.

// Steps of the set-up, as far as a failure of one says something about the
// machine.
const (
	stepClone   = "start a process in new namespaces"
	stepSources = "take the host's system folders"
	stepBox     = "make the sandbox's own folders"
	stepLayers  = "lay copy-on-write layers over the host's system folders"
	stepProc    = "mount /proc"
	stepMounts  = "take the folders that are to be mounted"
	stepFilter  = "refuse system calls that no sandbox needs"
	stepExec    = "start the daemon"
)

// stepError says at which step the set-up failed.
type stepError struct {
	step string
	err  error
}

func (e *stepError) Error() string { return e.step + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

func outcomeOf(err error) outcome {
	var failed *stepError
	if !errors.As(err, &failed) {
		failed = &stepError{"set the sandbox up", err}
	}
	return outcome{Step: failed.step, Text: failed.err.Error(), Errno: errnoOf(err)}
}

// Flags of the mounts that the sandbox consists of.
const (
	boxFlags   = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	layerFlags = boxFlags | unix.MOUNT_ATTR_RDONLY
)

// setUp makes the sandbox.
func setUp(o order) error {
	s := &setup{order: o, devices: map[string]int{}}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"see no control groups but its own", seeOwnGroups},
		{"cut the mounts off from the host's", s.makePrivate},
		{stepSources, s.takeSources},
		{stepMounts, s.takeMounts},
		{"make a place to work in", s.makeStage},
		{stepBox, s.makeBox},
		{stepLayers, s.mountLayers},
		{"mount the folders in memory", s.mountMemory},
		{"make /dev", s.makeDev},
		{stepProc, s.mountProc},
		{"cover parts of /proc", s.coverProc},
		{"mount the folders that were taken", s.attachMounts},
		{"change the root", s.pivot},
		{"name the host", s.setNames},
		{"start the loopback interface", loopbackUp},
		{"give up rights", s.restrict},
		{stepFilter, s.filterCalls},
	} {
		if err := step.do(); err != nil {
			return &stepError{step.name, err}
		}
	}
	return nil
}

// setup is the state of the set-up. After makeStage the working directory is a
// folder in memory, in which everything is put together:
//
//	box/   the mount of <Spec.Dir>/box, of its disk, or of a folder in memory, whose parts are
//	         root    the sandbox's root
//	         up      the upper sides of the layers
//	         work    the work folders of the overlay file system
//	root/  a mount of box/root, which becomes the root
//	kept/  what is kept of a box in memory
//	low/   the lower sides of the layers
//	mask/  idmapped lower sides, as nobody sees them
//	none/  an empty folder
type setup struct {
	order
	box     int            // mount of the sandbox's folder
	root    int            // the sandbox's root, once it is mounted
	layers  []source       // in the order of Plan.Layers
	files   []int          // in the order of Plan.Files; -1 if it has gone
	image   []int          // in the order of Plan.Image
	mounts  []int          // in the order of Mounts
	devices map[string]int // by name in /dev
}

// source is a mount that hangs nowhere yet.
type source struct {
	fd       int
	idmapped bool
}

// seeOwnGroups makes the namespace of control groups once the process is in its
// own, above which the namespace shows nothing.
func seeOwnGroups() error {
	return os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWCGROUP))
}

func (s *setup) makePrivate() error {
	unix.Umask(0)
	return os.NewSyscallError("mount", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
}

// devices are the nodes of /dev. They are bound one by one: through a bound tree
// a recursive delete would reach the host's.
var devices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// takeSources takes hold of all that comes from the host, while all of it can be
// reached. The sandbox's folder is the working directory.
func (s *setup) takeSources() (err error) {
	if s.box, err = s.takeBox(); err != nil {
		return err
	}
	if err := s.takeImage(); err != nil {
		return err
	}
	for _, name := range s.Plan.Layers {
		fd, err := receive()
		if err != nil {
			return err
		}
		layer := source{fd, fd >= 0}
		if fd < 0 {
			if layer.fd, err = cloneMount("/"+name, layerFlags, -1); err != nil {
				return err
			}
		}
		s.layers = append(s.layers, layer)
	}
	for _, name := range s.Plan.Files {
		fd, err := cloneMount("/"+name, layerFlags, -1)
		if err != nil && !errors.Is(err, unix.ENOENT) { // it may have gone since the plan was made
			return err
		}
		s.files = append(s.files, fd)
	}
	for _, name := range devices {
		fd, err := cloneMount("/dev/"+name, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, -1)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return err
		}
		s.devices[name] = fd
	}
	return nil
}

// makeStage puts the place to work in over a folder that is sure to exist and no
// longer needed: the first layer's, or the one of the devices.
func (s *setup) makeStage() error {
	stage := "/dev"
	if len(s.Plan.Layers) > 0 {
		stage = "/" + s.Plan.Layers[0]
	}
	if err := mountMemory(stage, "mode=755,size=1m", 0); err != nil {
		return err
	}
	if err := os.Chdir(stage); err != nil {
		return err
	}
	return makeDirs("box", "kept", "root", "low", "mask", "none")
}

// takeBox returns the mount of the sandbox's folder, or of its disk.
func (s *setup) takeBox() (int, error) {
	if s.Disk {
		fd, err := unix.FcntlInt(boxFD, unix.F_DUPFD_CLOEXEC, 0)
		return fd, os.NewSyscallError("fcntl", err)
	}
	return cloneMount(".", boxFlags, -1)
}

// attachBox hangs the sandbox's files at box. Those in memory begin as what was kept
// of them; the daemon holds on to them for the one who keeps them next.
func (s *setup) attachBox() error {
	if s.Memory == 0 {
		return attach(s.box, "box")
	}
	if err := attach(s.box, "kept"); err != nil {
		return err
	}
	if err := mountMemory("box", fmt.Sprintf("mode=755,size=%d,nr_inodes=%d", s.Memory, s.Memory/bytesPerFile), 0); err != nil {
		return err
	}
	kept, err := os.Open("kept")
	if err != nil {
		return err
	}
	defer kept.Close()
	box, err := os.Open("box")
	if err != nil {
		return err
	}
	defer box.Close()
	if err := tree.Copy(context.Background(), box, kept, copiedFolders...); err != nil {
		return err
	}
	return os.NewSyscallError("dup3", unix.Dup3(int(box.Fd()), boxFD, 0))
}

// makeBox makes what a sandbox has of its own, unless it has it already.
func (s *setup) makeBox() error {
	if err := s.attachBox(); err != nil {
		return err
	}
	// What an earlier start has left to work with is of no use, and has the
	// kernel's mark that the layers were volatile, with which it refuses them.
	if err := tree.Remove(context.Background(), "box/work"); err != nil {
		return err
	}
	if err := makeDirs("box/up", "box/work"); err != nil {
		return err
	}
	if s.Plan.Image != nil {
		return nil
	}
	if err := unix.Access("box/root", unix.F_OK); errors.Is(err, unix.ENOENT) {
		if err := s.furnish("box/root.new"); err != nil {
			return err
		}
		if err := os.Rename("box/root.new", "box/root"); err != nil {
			return err
		}
	}
	root, err := cloneMount("box/root", 0, -1)
	if err != nil {
		return err
	}
	if err := attach(root, "root"); err != nil {
		return err
	}
	if s.root, err = unix.Open("root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return os.NewSyscallError("open", err)
	}
	for i, name := range s.Plan.Files {
		if s.files[i] < 0 {
			continue
		}
		dir, err := s.folder(filepath.Dir(name))
		if err != nil {
			return err
		}
		err = bindFile(s.files[i], fdPath(dir)+"/"+filepath.Base(name))
		unix.Close(dir)
		if err != nil {
			return err
		}
	}
	return nil
}

// furnish makes a sandbox's root as it is at first.
func (s *setup) furnish(root string) error {
	for _, dirs := range [][]string{
		{"", "proc", "dev", "tmp", "run", "home", "home/user", "media", "mnt", "srv", "var", "var/cache", "var/lib", "var/log"},
		s.Plan.Dirs, s.Plan.Layers,
	} {
		for _, name := range dirs {
			if err := makeDirs(root + "/" + name); err != nil {
				return err
			}
		}
	}
	for name, mode := range map[string]uint32{"root": 0o700, "var/tmp": 0o1777} {
		if err := ignoreExist(unix.Mkdir(root+"/"+name, mode)); err != nil {
			return fmt.Errorf("make /%s: %w", name, err)
		}
	}
	for _, l := range append(s.Plan.Links, link{"var/run", "/run"}, link{"var/lock", "/run/lock"}) {
		if err := ignoreExist(unix.Symlink(l.Target, root+"/"+l.Path)); err != nil {
			return fmt.Errorf("link /%s: %w", l.Path, err)
		}
	}
	return nil
}

// folder returns a handle of a folder in the sandbox's root, which it makes if
// there is none. A sandbox that was stopped, or of which a snapshot was taken, may
// have left links there that lead to the host's folders: none is followed.
func (s *setup) folder(path string) (int, error) {
	how := &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	fd, err := unix.Openat2(s.root, path, how)
	if errors.Is(err, unix.ENOENT) {
		parent, parentErr := s.folder(filepath.Dir(path))
		if parentErr != nil {
			return -1, parentErr
		}
		if err = ignoreExist(unix.Mkdirat(parent, filepath.Base(path), 0o755)); err == nil {
			fd, err = unix.Openat2(s.root, path, how)
		}
		unix.Close(parent)
	}
	// These say nothing about the machine.
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return -1, fmt.Errorf("/%s is, or lies below, a link or a file in the sandbox, and has to be a folder", path)
	}
	if err != nil {
		return -1, fmt.Errorf("the folder /%s can't be made in the sandbox: %v", path, err)
	}
	return fd, nil
}

// fdPath is a path of what fd is open for.
func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// mountLayers lays an overlay over each system folder. Its upper side is in the
// sandbox's folder under the whole path in one name.
func (s *setup) mountLayers() error {
	if s.Plan.Image != nil {
		return s.mountImage()
	}
	laid := map[string]bool{}
	for i, name := range s.Plan.Layers {
		flat := url.QueryEscape(name)
		laid[flat] = true
		up, work := "box/up/"+flat, "box/work/"+flat
		if err := makeDirs(up, work); err != nil {
			return err
		}
		if name == "etc" {
			if err := s.writeOwnFiles(up); err != nil {
				return err
			}
			if err := hideAccounts(up); err != nil {
				return err
			}
		}
		if err := s.mountLayer(i, up, work); err != nil {
			return fmt.Errorf("/%s: %w", name, err)
		}
	}
	if slices.Contains(s.Plan.Dirs, "etc") {
		etc, err := s.folder("etc")
		if err != nil {
			return err
		}
		defer unix.Close(etc)
		if err := s.writeOwnFiles(fdPath(etc)); err != nil {
			return err
		}
	}
	return checkLaid(laid)
}

// checkLaid looks for upper sides that nothing was laid under, and which would
// silently be missing: those of folders that were one layer when the sandbox was
// made, and are not any more.
func checkLaid(laid map[string]bool) error {
	ups, err := os.ReadDir("box/up")
	if err != nil {
		return err
	}
	for _, up := range ups {
		if laid[up.Name()] {
			continue
		}
		if files, err := os.ReadDir("box/up/" + up.Name()); err != nil || len(files) > 0 {
			name, _ := url.QueryUnescape(up.Name())
			return fmt.Errorf("the sandbox has changed files in /%s, which this machine had as one folder then, "+
				"and now has not, or with something mounted in it", name)
		}
	}
	return nil
}

// mountLayer mounts the i-th layer. Overlays are mounted volatile, because
// otherwise the end of each sandbox would sync the whole file system: what the
// machine has not written by itself is lost if it loses power.
func (s *setup) mountLayer(i int, up, work string) error {
	target, err := s.folder(s.Plan.Layers[i])
	if err != nil {
		return err
	}
	defer unix.Close(target)
	low, mask := "low/"+strconv.Itoa(i), "mask/"+strconv.Itoa(i)
	if err := makeDirs(low, mask); err != nil {
		return err
	}
	if err := attach(s.layers[i].fd, low); err != nil {
		return err
	}
	if s.layers[i].idmapped {
		if err := mountMask(low, mask); err != nil {
			return err
		}
		low = mask
	}
	return mountOverlay(fdPath(target), fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,volatile", low, up, work), 0)
}

// mountMask shows at mask what nobody may see of the idmapped folder low. To the
// sandbox's root the files in low belong as they do to the host's root, who can
// read them all; but an overlay asks for whatever is below it with the rights of
// its maker. So this one is made as an id that owns nothing and has no right to
// override permissions (the kernel takes those away with the id): whatever the
// host does not show to everybody cannot be read through it, by whomever and
// whenever it is written.
func mountMask(low, mask string) error {
	setFSID := func(id int) error {
		unix.Setfsgid(id)
		unix.Setfsuid(id)
		// These never fail; what they did is only seen by asking again.
		if is, _ := unix.SetfsuidRetUid(-1); is != id {
			return fmt.Errorf("the id for files is %d, not %d", is, id)
		}
		return nil
	}
	err := setFSID(nobodyID)
	if err == nil {
		err = mountOverlay(mask, "lowerdir="+low+":none", unix.MS_RDONLY)
	}
	return errors.Join(err, setFSID(0))
}

// hideAccounts makes the files of the accounts' passwords not be there at all in
// the upper side of /etc: unreadable ones would stop the tools that add a user.
func hideAccounts(dir string) error {
	for _, name := range []string{"shadow", "shadow-", "gshadow", "gshadow-", ".pwd.lock"} {
		if err := ignoreExist(unix.Mknod(dir+"/"+name, unix.S_IFCHR, 0)); err != nil { // a device 0:0 hides
			return fmt.Errorf("hide /etc/%s: %w", name, err)
		}
	}
	return nil
}

// writeOwnFiles writes ownFiles into dir unless they are there, never following
// what may lie there. Those that a snapshot has as its sandbox got them are
// written anew.
func (s *setup) writeOwnFiles(dir string) error {
	former := ownTexts(s.Former)
	for name, text := range ownTexts(s.Hostname) {
		path := dir + "/" + name
		if s.Former != "" && has(path, former[name]) {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		_, err = f.WriteString(text)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// ownTexts are the contents of ownFiles, which a sandbox called hostname gets.
func ownTexts(hostname string) map[string]string {
	return map[string]string{
		"hostname":    hostname + "\n",
		"hosts":       "127.0.0.1 localhost " + hostname + "\n::1 localhost ip6-localhost ip6-loopback\n",
		"resolv.conf": "# There is no network but 127.0.0.1.\n",
	}
}

// has reports whether path is a file with this text.
func has(path, text string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	got, err := io.ReadAll(io.LimitReader(f, int64(len(text))+1))
	return err == nil && string(got) == text
}

func (s *setup) mountMemory() error {
	for _, m := range []struct{ path, options string }{
		{"tmp", "mode=1777,nr_inodes=256k," + s.memorySize(1<<30, 2)},
		{"run", "mode=755,nr_inodes=16k," + s.memorySize(64<<20, 16)},
	} {
		if err := s.memory(m.path, m.options, 0); err != nil {
			return err
		}
	}
	return makeDirs("root/run/lock")
}

// memorySize is the mount option for a folder in memory of so many bytes, or of
// that part of the sandbox's memory if that is less: what lies there is not given
// back by killing a process, and some of it must be left for processes.
func (s *setup) memorySize(bytes, part int64) string {
	if s.Limits.Memory > 0 {
		bytes = min(bytes, s.Limits.Memory/part)
	}
	return "size=" + strconv.FormatInt(bytes, 10)
}

// memory mounts a folder in memory at a path in the sandbox's root.
func (s *setup) memory(path, options string, flags uintptr) error {
	at, err := s.folder(path)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	if err := mountMemory(fdPath(at), options, flags); err != nil {
		return fmt.Errorf("/%s: %w", path, err)
	}
	return nil
}

// devptsOptions give a sandbox a part of the machine's terminals, which are 4096
// if nobody has changed it.
const devptsOptions = "newinstance,ptmxmode=0666,mode=0620,max=256"

func (s *setup) makeDev() error {
	if err := s.memory("dev", "mode=755,size=64k,nr_inodes=64", unix.MS_NOEXEC); err != nil {
		return err
	}
	for name, fd := range s.devices {
		if err := bindFile(fd, "root/dev/"+name); err != nil {
			return err
		}
	}
	if err := makeDirs("root/dev/pts", "root/dev/shm"); err != nil {
		return err
	}
	if err := mountMemory("root/dev/shm", "mode=1777,nr_inodes=16k,"+s.memorySize(256<<20, 8), unix.MS_NOEXEC); err != nil {
		return err
	}
	if err := unix.Mount("devpts", "root/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, devptsOptions); err != nil {
		return fmt.Errorf("mount /dev/pts: %w", err)
	}
	for name, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd",
		"stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, "root/dev/"+name); err != nil {
			return err
		}
	}
	return nil
}

func (s *setup) mountProc() error {
	at, err := s.folder("proc")
	if err != nil {
		return err
	}
	defer unix.Close(at)
	return os.NewSyscallError("mount", unix.Mount("proc", fdPath(at), "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""))
}

// What of /proc tells of, or acts on, more than the sandbox. Kernels differ in
// what there is of it.
var (
	readOnlyProc = []string{"bus", "fs", "irq", "sys", "sysrq-trigger"}
	coveredProc  = []string{"acpi", "asound", "interrupts", "kallsyms", "kcore", "key-users", "keys", "kmsg",
		"latency_stats", "sched_debug", "scsi", "timer_list", "timer_stats"}
)

// userLimits are how much of what the kernel counts by users a sandbox can take.
// In further user namespaces a command would have every right again. The others it
// would take away from the user outside and from all other sandboxes, who count as
// the same one.
var userLimits = map[string]string{
	"max_user_namespaces":   "0",
	"max_inotify_instances": "32", // of 128, if nobody has changed it
	"max_inotify_watches":   "65536",
}

// coverProc limits /proc, after a last use.
func (s *setup) coverProc() error {
	for name, value := range userLimits {
		err := os.WriteFile("root/proc/sys/user/"+name, []byte(value), 0)
		if err != nil && !(errors.Is(err, os.ErrNotExist) && value != "0") { // the kernel may lack inotify
			return err
		}
	}
	for _, name := range readOnlyProc {
		name = "root/proc/" + name
		fd, err := cloneMount(name, unix.MOUNT_ATTR_RDONLY, -1)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return err
		}
		if err := attach(fd, name); err != nil {
			return err
		}
	}
	for _, name := range coveredProc {
		name = "root/proc/" + name
		info, err := os.Lstat(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		cover := "root/dev/null"
		if info.IsDir() {
			cover = "none"
		}
		fd, err := cloneMount(cover, unix.MOUNT_ATTR_RDONLY, -1)
		if err != nil {
			return err
		}
		if err := attach(fd, name); err != nil {
			return err
		}
	}
	return nil
}

// pivot makes root the root; of the old one nothing stays.
func (s *setup) pivot() error {
	if err := os.Chdir("root"); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return os.NewSyscallError("pivot_root", err)
	}
	// The old root is now mounted over the new one.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return os.NewSyscallError("umount", err)
	}
	return os.Chdir("/")
}

func (s *setup) setNames() error {
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return os.NewSyscallError("sethostname", err)
	}
	return os.NewSyscallError("setdomainname", unix.Setdomainname([]byte("(none)"))) // the kernel's own default
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return os.NewSyscallError("SIOCSIFFLAGS", unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo))
}

// keptCapabilities are what the sandbox's root can do, in the sandbox: be the
// owner of everything and become anybody. None of them mounts, configures the
// network, makes a device or looks into the first process.
var keptCapabilities = []int{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL, unix.CAP_SETGID,
	unix.CAP_SETUID, unix.CAP_NET_BIND_SERVICE, unix.CAP_SYS_CHROOT, unix.CAP_SETFCAP,
}

// restrict gives up what the daemon and its commands must not have. It holds for
// this thread, and so for all that the next exec makes of it.
func (s *setup) restrict() error {
	// Too little for any core file; and of all limits this is the one with which the
	// kernel does not start the host's program for crashes either, if it has one.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1}); err != nil {
		return os.NewSyscallError("setrlimit", err)
	}
	if err := limitFiles(s.Files); err != nil {
		return err
	}
	var kept [2]unix.CapUserData
	for _, c := range keptCapabilities {
		kept[c/32].Permitted |= 1 << (c % 32)
		kept[c/32].Effective |= 1 << (c % 32)
	}
	for c := 0; ; c++ {
		if slices.Contains(keptCapabilities, c) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); errors.Is(err, unix.EINVAL) {
			break // beyond the last one
		} else if err != nil {
			return os.NewSyscallError("prctl PR_CAPBSET_DROP", err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", err)
	}
	// Without inheritable ones there are no ambient ones either.
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &kept[0]); err != nil {
		return os.NewSyscallError("capset", err)
	}
	if err := unix.CloseRange(uint(firstFreeFD+s.groupFiles()), math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return os.NewSyscallError("close_range", err)
	}
	unix.Umask(0o022)
	return nil
}

// limitFiles lets each process have that many files open, or as many as this one
// may have.
func limitFiles(most uint64) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	most = min(most, limit.Max)
	return os.NewSyscallError("setrlimit", unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: most, Max: most}))
}

func (s *setup) filterCalls() error {
	if s.Unfiltered {
		return nil
	}
	return filterCalls()
}

// cloneMount returns a copy of the mount at path that hangs nowhere yet, without
// what is mounted below it, with these MOUNT_ATTR_ flags, and idmapped by the
// user namespace userns unless that is -1. Links are not followed.
func cloneMount(path string, flags uint64, userns int) (int, error) {
	return cloneMountAt(unix.AT_FDCWD, path, flags, userns)
}

// cloneMountAt is cloneMount of a path in the open folder dir; "" is dir itself.
func cloneMountAt(dir int, path string, flags uint64, userns int) (int, error) {
	fd, err := unix.OpenTree(dir, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	attr := unix.MountAttr{Attr_set: flags}
	if userns >= 0 {
		attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = uint64(userns)
	}
	if attr.Attr_set == 0 {
		return fd, nil
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		return -1, &os.PathError{Op: "mount_setattr", Path: path, Err: err}
	}
	return fd, nil
}

// attach hangs the mount fd at target and closes fd.
func attach(fd int, target string) error {
	defer unix.Close(fd)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: target, Err: err}
	}
	return nil
}

// attachTo hangs the mount fd at what the handle at is of, and closes fd.
func attachTo(fd, at int) error {
	defer unix.Close(fd)
	return os.NewSyscallError("move_mount", unix.MoveMount(fd, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

// bindFile hangs the mount fd of a single file at target.
func bindFile(fd int, target string) error {
	if err := ignoreExist(unix.Mknod(target, unix.S_IFREG|0o644, 0)); err != nil {
		return &os.PathError{Op: "mknod", Path: target, Err: err}
	}
	return attach(fd, target)
}

func mountMemory(target, options string, flags uintptr) error {
	if err := unix.Mount("tmpfs", target, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|flags, options); err != nil {
		return &os.PathError{Op: "mount tmpfs", Path: target, Err: err}
	}
	return nil
}

func mountOverlay(target, options string, flags uintptr) error {
	if err := unix.Mount("overlay", target, "overlay", unix.MS_NOSUID|unix.MS_NODEV|flags, options+",userxattr"); err != nil {
		return &os.PathError{Op: "mount overlay", Path: target, Err: err}
	}
	return nil
}

func makeDirs(names ...string) error {
	for _, name := range names {
		if err := ignoreExist(unix.Mkdir(name, 0o755)); err != nil {
			return &os.PathError{Op: "mkdir", Path: name, Err: err}
		}
	}
	return nil
}

func ignoreExist(err error) error {
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
