//go:build linux

// Package namespace is the default runtime: isolated sandboxes on this machine
// out of nothing but the kernel, as root and as an ordinary user.
//
// A sandbox is a process tree in new user, mount, pid, network, uts, ipc and
// cgroup namespaces. Its first process sets it up and then becomes the daemon.
// Its root is a folder of its own; of the host it sees the system folders (usr,
// etc, opt and the like), each below a copy-on-write layer, and nothing else. The
// root of one that is made from another image is a copy-on-write layer over those
// of the image, and of the host it sees nothing.
//
// Made by root, a sandbox has 65536 ids, none of which is anybody outside, and
// its root owns the system files in its own view of them. Files that not
// everybody may read on the host stay unreadable, those too that appear or
// change while it runs: the kernel asks on behalf of an id that owns nothing.
// Made by an ordinary user, a sandbox has one id, which is the user outside. It
// can read what that user can read in the system folders, and put new files into
// them, but neither change what is there nor add to the folders in it.
//
// The daemon and its commands can gain no privilege, have the few capabilities
// that make a system's root its owner, and are refused the system calls that no
// sandbox needs. Programs of other architectures, such as i386, do not run.
//
// In memory, for each sandbox and until it is stopped: /tmp up to 1 GiB, /dev/shm
// up to 256 MiB, /run up to 64 MiB, or a half, an eighth and a sixteenth of the
// memory that it may take. Everything else that it writes lies in Spec.Dir
// or in its mounts, and belongs to the same ids for every sandbox of the same user.
// It is not synced: what the machine has not written by itself when it loses power
// is lost.
package namespace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/runtime/image"
	"github.com/sbx-star/sbx-star/runtime/tree"
	"github.com/sbx-star/sbx-star/wire"
)

// How long is waited for a sandbox to come up, and for its processes to end.
const (
	startTimeout = 30 * time.Second
	endTimeout   = 30 * time.Second
	keepTimeout  = 5 * time.Minute // for files in memory to be written to disk

	releaseTimeout = 2 * time.Second // for the kernel to let go of a disk
)

// home is where commands run that name no folder, and the base of relative
// file paths (protocol.md §5).
const home = "/home/user"

// name is the runtime's in Info and in snapshots.
const name = "namespace"

// Options configures a Runtime.
type Options struct {
	Images  string // absolute folder where images are kept; "" has none but the host's
	Mirrors string // of registries, as image.ParseMirrors reads them
	Pids    int64  // processes and threads of commands that a sandbox has at a time; 0 is DefaultPids
	Files   uint64 // that each process has open at a time, unless this process may have fewer; 0 is DefaultFiles

	// InMemory says that the server's sandboxes are to be Spec.InMemory.
	InMemory bool
}

// What a sandbox gets if nothing else is said.
const (
	DefaultPids  = 4096
	DefaultFiles = 65536
)

// Runtime makes sandboxes out of namespaces.
type Runtime struct {
	images     func() (*image.Store, error)
	pids       int64  // as in Options
	files      uint64 // likewise
	look       sync.Once
	found      controllers // after look
	noGroups   bool        // for tests: as on a machine where no control groups can be made
	inMemory   bool        // as the options say
	noIdmap    bool        // for tests: as on a kernel without idmapped mounts
	unfiltered bool        // for tests: what holds when the filter of system calls does not
	plain      atomic.Bool // a sandbox had to do without idmapped mounts
}

// New returns a Runtime. What the machine lacks is found out by the first Create.
func New(o Options) (*Runtime, error) {
	if _, err := image.ParseMirrors(o.Mirrors); err != nil {
		return nil, err
	}
	return &Runtime{
		images: sync.OnceValues(func() (*image.Store, error) { return openImages(o) }),
		pids:   o.Pids, files: o.Files, inMemory: o.InMemory,
	}, nil
}

// controllers looks for control groups, once.
func (r *Runtime) controllers() controllers {
	r.look.Do(func() {
		if !r.noGroups && os.Geteuid() == 0 {
			r.found = findControllers()
		}
	})
	return r.found
}

// enforces tells what sandboxes are held to on this machine, beside their storage.
func (r *Runtime) enforces() wire.Enforces {
	held := func(controller string) bool { return r.controllers().parents[controller] != "" }
	return wire.Enforces{CPU: held(cpuController), Memory: held(memoryController), Pids: held(pidsController), Network: true}
}

// Info describes the runtime. After a first Create on a machine that cannot
// idmap the system folders it says so.
func (r *Runtime) Info() runtime.Info {
	isolation := "namespaces"
	if os.Geteuid() != 0 {
		isolation += ", rootless"
	}
	if r.plain.Load() {
		isolation += ", system files owned by nobody"
	}
	info := runtime.Info{Name: name, Isolation: isolation, InMemory: r.inMemory, Enforces: r.enforces()}
	info.Storage, info.Enforces.Storage = r.storage()
	return info
}

// Create implements runtime.Runtime. It makes Spec.Dir accessible to its owner
// alone, because what a sandbox marks setuid there must be out of others' reach.
func (r *Runtime) Create(ctx context.Context, spec runtime.Spec) (runtime.Instance, error) {
	if h := spec.Hostname; h == "" || len(h) > 64 || strings.ContainsFunc(h, unicode.IsSpace) {
		return nil, fmt.Errorf("a sandbox can't be called %q: a host name is 1 to 64 bytes without white space", h)
	}
	if _, err := sortMounts(spec.Mounts); err != nil {
		return nil, err
	}
	plan, err := r.plan(ctx, spec)
	if err != nil {
		return nil, err
	}
	if _, err := runtime.ReadProc(spec.Dir); !errors.Is(err, runtime.ErrGone) {
		return nil, fmt.Errorf("%s holds a sandbox already: remove it first", spec.Dir)
	}
	if err := os.Chmod(spec.Dir, 0o700); err != nil {
		return nil, err
	}
	var former runtime.Origin
	if spec.Snapshot != "" {
		if former, err = runtime.ReadOrigin(spec.Snapshot, origin("")); err != nil {
			return nil, err
		}
	}
	in := r.newInstance(spec)
	if err = in.makeBox(ctx); err == nil {
		err = in.launch(ctx, plan, former.Hostname)
	}
	if err != nil {
		return nil, errors.Join(err, in.Remove(context.WithoutCancel(ctx)))
	}
	return in, nil
}

// environment is that of every command, below what anybody sets.
func environment() map[string]string {
	return map[string]string{
		"PATH":    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME":    home,
		"USER":    "root",
		"LOGNAME": "root",
		"LANG":    "C.UTF-8",
	}
}

// raceEnv is the environment of the processes of this binary: empty, but for what
// the race detector reads, if whoever built it that way has set it.
func raceEnv() []string {
	if value, ok := os.LookupEnv("GORACE"); ok {
		return []string{"GORACE=" + value}
	}
	return []string{}
}

// Adopt implements runtime.Runtime.
func (r *Runtime) Adopt(ctx context.Context, spec runtime.Spec) (runtime.Instance, error) {
	in := r.newInstance(spec)
	p, err := runtime.ReadProc(spec.Dir)
	if err == nil && !p.Alive() {
		err = runtime.ErrGone
	}
	return in, err
}

// instance is a sandbox. All that there is to know of it lies in its folder and
// its spec, so any process of the same user can take it over.
type instance struct {
	r    *Runtime
	spec runtime.Spec
	dir  string        // of the spec
	busy chan struct{} // holds one value while the sandbox is started, stopped or removed
	proc runtime.Proc  // of a sandbox that this process started: its child, to be waited for
}

func (r *Runtime) newInstance(spec runtime.Spec) *instance {
	return &instance{r: r, spec: spec, dir: spec.Dir, busy: make(chan struct{}, 1)}
}

// lock waits until nobody else starts, stops or removes the sandbox; unlock is
// the caller's then.
func (in *instance) lock(ctx context.Context) error {
	select {
	case in.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (in *instance) unlock() { <-in.busy }

func (in *instance) Dial(ctx context.Context) (net.Conn, error) {
	return runtime.DialUnix(ctx, in.dir)
}

var errNoFiles = errors.New("the sandbox was removed, or never wholly made")

// Stop kills the sandbox's first process, with which the kernel ends all the
// others and unmounts everything.
func (in *instance) Stop(ctx context.Context) error {
	if err := in.lock(ctx); err != nil {
		return err
	}
	defer in.unlock()
	if in.spec.InMemory {
		return in.keepMemory(ctx)
	}
	return in.end(ctx)
}

// Start makes the sandbox again from its folder. What lies in memory is new.
func (in *instance) Start(ctx context.Context) error {
	if err := in.lock(ctx); err != nil {
		return err
	}
	defer in.unlock()
	p, err := runtime.ReadProc(in.dir)
	if errors.Is(err, runtime.ErrGone) {
		return errNoFiles
	}
	if err == nil && p.Alive() {
		conn, err := in.Dial(ctx)
		if err == nil {
			return conn.Close()
		}
		if !errors.Is(err, runtime.ErrGone) {
			return err
		}
	}
	if err := in.end(ctx); err != nil {
		return err
	}
	plan, err := in.r.plan(ctx, in.spec)
	if err != nil {
		return err
	}
	if err := runtime.RemoveUnix(in.dir); err != nil {
		return err
	}
	if err := in.launch(ctx, plan, ""); err != nil {
		return errors.Join(err, in.end(context.WithoutCancel(ctx)))
	}
	return nil
}

// Remove stops the sandbox and deletes its folder.
func (in *instance) Remove(ctx context.Context) error {
	if err := in.lock(ctx); err != nil {
		return err
	}
	defer in.unlock()
	if err := in.end(ctx); err != nil {
		return err
	}
	if err := runtime.ForgetProc(in.dir); err != nil {
		return err
	}
	in.releaseDisk(ctx)
	return tree.Remove(ctx, in.dir)
}

// end ends all processes of the sandbox and removes its groups. Another process may have started it
// again since this one did, whose child is to be waited for all the same.
func (in *instance) end(ctx context.Context) error {
	if in.proc.PID != 0 {
		if err := end(ctx, in.proc); err != nil {
			return err
		}
	}
	p, err := runtime.ReadProc(in.dir)
	switch {
	case errors.Is(err, runtime.ErrGone) || err == nil && p == in.proc:
		err = nil
	case err == nil:
		err = end(ctx, p)
	}
	if err != nil {
		return err
	}
	return removeGroups(ctx, in.dir)
}

// end kills p and waits for its end, which comes after that of all processes in
// its namespace.
func end(ctx context.Context, p runtime.Proc) error {
	if err := p.Signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	if err := p.Wait(ctx); err != nil {
		return fmt.Errorf("the sandbox's processes do not end: %w", err)
	}
	return nil
}
