//go:build linux

// Package namespace is the default runtime: isolated sandboxes on this machine
// out of nothing but the kernel, as root and as an ordinary user.
//
// A sandbox is a process tree in new user, mount, pid, network, uts, ipc and
// cgroup namespaces. Its first process sets it up and then becomes the daemon.
// Its root is a folder of its own; of the host it sees the system folders (usr,
// etc, opt and the like), each below a copy-on-write layer, and nothing else.
//
// Made by root, a sandbox has 65536 ids, none of which is anybody outside, and
// its root owns the system files in its own view of them. Files that not
// everybody may read on the host stay unreadable, those too that appear or
// change while it runs: the kernel asks on behalf of an id that owns nothing.
// Made by an ordinary user, a sandbox has one id, which is the user outside. It
// can read what that user can read in the system folders, and put new files into
// them, but neither change what is there nor add to the folders in it.
//
// In memory, for each sandbox: /tmp up to 1 GiB, /dev/shm up to 256 MiB, /run up
// to 64 MiB. Everything else that it writes lies in Spec.Dir.
package namespace

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/daemon"
	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/wire"
)

// How long is waited for a sandbox to come up, and for its processes to end.
const (
	createTimeout = 30 * time.Second
	endTimeout    = 30 * time.Second
)

// home is where commands run that name no folder, and the base of relative
// file paths (protocol.md §5).
const home = "/home/user"

// Options configures a Runtime. There is nothing to choose yet.
type Options struct{}

// Runtime makes sandboxes out of namespaces.
type Runtime struct {
	noIdmap bool        // for tests: as on a kernel without idmapped mounts
	plain   atomic.Bool // a sandbox had to do without them
}

// New returns a Runtime. What the machine lacks is found out by the first Create.
func New(Options) (*Runtime, error) { return &Runtime{}, nil }

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
	return runtime.Info{Name: "namespace", Isolation: isolation, Enforces: wire.Enforces{Network: true}}
}

// Create implements runtime.Runtime. It makes Spec.Dir accessible to its owner
// alone, because what a sandbox marks setuid there must be out of others' reach.
func (r *Runtime) Create(ctx context.Context, spec runtime.Spec) (runtime.Instance, error) {
	if spec.Image != "" && spec.Image != runtime.HostImage {
		return nil, &runtime.Unsupported{
			What: fmt.Sprintf("the namespace runtime has no image %q", spec.Image),
			Hint: fmt.Sprintf("use the image %q, which is this machine's own system, or a server that has images by --endpoint URL", runtime.HostImage),
		}
	}
	if h := spec.Hostname; h == "" || len(h) > 64 || strings.ContainsFunc(h, unicode.IsSpace) {
		return nil, fmt.Errorf("a sandbox can't be called %q: a host name is 1 to 64 bytes without white space", h)
	}
	plan, err := planHost(spec.Dir)
	if err != nil {
		return nil, err
	}
	if _, err := runtime.ReadProc(spec.Dir); !errors.Is(err, runtime.ErrGone) {
		return nil, fmt.Errorf("%s holds a sandbox already: remove it first", spec.Dir)
	}
	if err := os.Chmod(spec.Dir, 0o700); err != nil {
		return nil, err
	}
	in := &instance{dir: spec.Dir}
	started, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	plain, err := in.launch(started, hostIDs(), !r.noIdmap && overlayTakesIdmapped(), order{
		Hostname: spec.Hostname,
		Plan:     plan,
		Daemon:   daemon.Config{Env: environment(spec.Env), WorkDir: home, Home: home},
	})
	if err != nil {
		return nil, errors.Join(err, in.Remove(context.WithoutCancel(ctx)))
	}
	if plain {
		r.plain.Store(true)
	}
	return in, nil
}

// environment is that of every command.
func environment(given map[string]string) map[string]string {
	env := map[string]string{
		"PATH":    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME":    home,
		"USER":    "root",
		"LOGNAME": "root",
		"LANG":    "C.UTF-8",
	}
	maps.Copy(env, given)
	return env
}

// Adopt implements runtime.Runtime.
func (r *Runtime) Adopt(ctx context.Context, spec runtime.Spec) (runtime.Instance, error) {
	in := &instance{dir: spec.Dir}
	p, err := runtime.ReadProc(spec.Dir)
	if err == nil && !p.Alive() {
		err = runtime.ErrGone
	}
	return in, err
}

// instance is a sandbox. All that there is to know of it lies in its folder, so
// any process of the same user can take it over.
type instance struct {
	dir  string
	proc runtime.Proc // of a sandbox that this process made: its child, to be waited for
}

func (in *instance) Dial(ctx context.Context) (net.Conn, error) {
	return runtime.DialUnix(ctx, in.dir)
}

// Remove kills the sandbox's first process, with which the kernel ends all the
// others and unmounts everything, and deletes its folder.
func (in *instance) Remove(ctx context.Context) error {
	p, err := in.proc, error(nil)
	if p.PID == 0 {
		p, err = runtime.ReadProc(in.dir)
	}
	if err == nil {
		err = end(ctx, p)
	}
	if err != nil && !errors.Is(err, runtime.ErrGone) {
		return err
	}
	return removeAll(ctx, in.dir)
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
