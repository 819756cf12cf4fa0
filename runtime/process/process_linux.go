package process

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sbx-star/sbx-star/daemon"
	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/runtime/tree"
)

// This file defines how a sandbox is made, found again and removed.

const (
	startTime = 20 * time.Second // for a daemon to come up on a busy machine
	endTime   = 10 * time.Second // for a daemon to end its commands and itself
)

// Create makes <Dir>/home, with the files of the snapshot if there is one, and places the daemon, which from then on needs this
// process no more.
func (rt *Runtime) Create(ctx context.Context, spec runtime.Spec) (runtime.Instance, error) {
	if spec.Image != "" && spec.Image != runtime.HostImage && !rt.opts.AnyImage {
		return nil, &runtime.Unsupported{
			What: fmt.Sprintf("the process runtime has no images, and %q was asked for", spec.Image),
			Hint: fmt.Sprintf("use the image %q, or the namespace runtime", runtime.HostImage),
		}
	}
	if len(spec.Mounts) > 0 {
		return nil, &runtime.Unsupported{
			What: "the process runtime has no mounts, because its sandboxes see this machine's own files",
			Hint: "create the sandbox without volumes, or use the namespace runtime",
		}
	}
	if spec.Snapshot != "" {
		if _, err := runtime.ReadOrigin(spec.Snapshot, origin()); err != nil {
			return nil, err
		}
	}
	inst := newInstance(spec)
	if err := inst.create(ctx); err != nil {
		// The caller's context may be what failed.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*endTime)
		defer cancel()
		return nil, errors.Join(err, inst.Remove(ctx))
	}
	return inst, nil
}

// Adopt takes over the sandbox in spec.Dir.
func (rt *Runtime) Adopt(ctx context.Context, spec runtime.Spec) (runtime.Instance, error) {
	inst := newInstance(spec)
	proc, err := runtime.ReadProc(spec.Dir)
	if err == nil && !proc.Alive() {
		err = runtime.ErrGone
	}
	return inst, err
}

type instance struct {
	spec runtime.Spec
	dir  string        // of the spec
	busy chan struct{} // holds one value while the sandbox is started, stopped or removed
}

func newInstance(spec runtime.Spec) *instance {
	return &instance{spec: spec, dir: spec.Dir, busy: make(chan struct{}, 1)}
}

// lock waits until nobody else starts, stops or removes the sandbox; unlock is
// the caller's then.
func (i *instance) lock(ctx context.Context) error {
	select {
	case i.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (i *instance) unlock() { <-i.busy }

func (i *instance) create(ctx context.Context) error {
	var err error
	if i.spec.Snapshot == "" {
		err = os.Mkdir(i.home(), 0o755)
	} else {
		err = copyHome(ctx, i.dir, i.spec.Snapshot)
	}
	if err != nil {
		return err
	}
	return i.launch(ctx)
}

// launch places the daemon.
func (i *instance) launch(ctx context.Context) error {
	home := i.home()
	base := map[string]string{}
	if path := os.Getenv("PATH"); path != "" {
		base["PATH"] = path // the tools are this machine's
	}
	config, err := json.Marshal(daemon.Config{Base: base, Env: i.spec.Env, WorkDir: home, Home: home})
	if err != nil {
		return err
	}

	ln, err := runtime.ListenUnix(i.dir)
	if err != nil {
		return err
	}
	defer ln.Close()
	lnFile, err := ln.File()
	if err != nil {
		return err
	}
	defer lnFile.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	log, err := os.OpenFile(i.log(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	configR, configW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer configW.Close()
	readyR, readyW, err := os.Pipe()
	if err != nil {
		configR.Close()
		return err
	}
	defer readyR.Close()

	child, err := os.StartProcess("/proc/self/exe", []string{daemonName}, &os.ProcAttr{
		Dir:   "/",
		Env:   goEnv(),
		Files: []*os.File{null, null, log, lnFile, configR, readyW}, // the numbers stand in child_linux.go
		Sys:   &syscall.SysProcAttr{Setsid: true},                   // out of reach of a terminal's Ctrl-C
	})
	configR.Close()
	readyW.Close()
	if err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	// From here on the record finds it, also after this process has died: the
	// daemon ends by itself if its configuration does not arrive.
	proc, err := runtime.ProcOf(child.Pid)
	if err == nil {
		err = runtime.WriteProc(i.dir, proc)
	}
	if err != nil {
		child.Kill()
		child.Wait()
		return i.startError(err)
	}
	child.Release()

	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		configW.SetDeadline(time.Unix(1, 0))
		readyR.SetDeadline(time.Unix(1, 0))
	})
	defer stop()
	_, err = configW.Write(config)
	if err == nil {
		err = configW.Close()
	}
	if err == nil {
		_, err = io.ReadFull(readyR, make([]byte, 1))
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return i.startError(err)
	}
	return nil
}

// goEnv is what of this process's environment the daemon gets: the variables of
// Go's runtime. Commands get none of it.
func goEnv() []string {
	env := []string{}
	for _, name := range []string{"GOCOVERDIR", "GODEBUG", "GORACE", "GOTRACEBACK"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// homeName is the folder of the sandbox's files, in its own and in snapshots.
const homeName = "home"

func (i *instance) home() string { return filepath.Join(i.dir, homeName) }

func (i *instance) log() string { return filepath.Join(i.dir, "daemon.log") }

// startError adds what the daemon said.
func (i *instance) startError(err error) error {
	said, _ := os.ReadFile(i.log())
	if text := strings.TrimSpace(string(said)); text != "" {
		return fmt.Errorf("start the daemon: %w: %.2000s", err, text)
	}
	return fmt.Errorf("start the daemon: %w", err)
}

// Dial reaches the daemon.
func (i *instance) Dial(ctx context.Context) (net.Conn, error) {
	return runtime.DialUnix(ctx, i.dir)
}

var errNoFiles = errors.New("the sandbox was removed, or never wholly made")

// Stop asks the daemon to end, which takes all its descendants along.
func (i *instance) Stop(ctx context.Context) error {
	if err := i.lock(ctx); err != nil {
		return err
	}
	defer i.unlock()
	return i.end(ctx)
}

// Start places the daemon again.
func (i *instance) Start(ctx context.Context) error {
	if err := i.lock(ctx); err != nil {
		return err
	}
	defer i.unlock()
	proc, err := runtime.ReadProc(i.dir)
	if errors.Is(err, runtime.ErrGone) {
		return errNoFiles
	}
	if err == nil && proc.Alive() {
		conn, err := i.Dial(ctx)
		if err == nil {
			return conn.Close()
		}
		if !errors.Is(err, runtime.ErrGone) {
			return err
		}
	}
	if err := i.end(ctx); err != nil {
		return err
	}
	if err := runtime.RemoveUnix(i.dir); err != nil {
		return err
	}
	if err := i.launch(ctx); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*endTime)
		defer cancel()
		return errors.Join(err, i.end(ctx))
	}
	return nil
}

// Remove stops the sandbox and then deletes the folder.
func (i *instance) Remove(ctx context.Context) error {
	if err := i.lock(ctx); err != nil {
		return err
	}
	defer i.unlock()
	if err := i.end(ctx); err != nil {
		return err
	}
	if err := runtime.ForgetProc(i.dir); err != nil {
		return err
	}
	return tree.Remove(ctx, i.dir)
}

// end ends all processes of the sandbox.
func (i *instance) end(ctx context.Context) error {
	proc, err := runtime.ReadProc(i.dir)
	if err == nil {
		err = i.endDaemon(ctx, proc)
	}
	if err != nil && !errors.Is(err, runtime.ErrGone) {
		return fmt.Errorf("end the sandbox's daemon: %w", err)
	}
	return nil
}

func (i *instance) endDaemon(ctx context.Context, proc runtime.Proc) error {
	gentle, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	if proc.Alive() && proc.Signal(syscall.SIGTERM) == nil && proc.Wait(gentle) == nil {
		return nil
	}
	if err := proc.End(ctx, 0); err != nil {
		return err
	}
	return i.endOrphans(ctx)
}

// endOrphans kills what a daemon left that did not end as it should. Its
// processes are known by their home directory, which is no other's.
func (i *instance) endOrphans(ctx context.Context) error {
	mark := []byte("HOME=" + i.home() + "\x00")
	for {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return err
		}
		found := false
		for _, entry := range entries {
			pid, err := strconv.Atoi(entry.Name())
			if err != nil {
				continue
			}
			proc, err := runtime.ProcOf(pid)
			if err != nil {
				continue
			}
			if env, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "environ")); err == nil && bytes.Contains(env, mark) {
				found = true
				proc.Signal(syscall.SIGKILL)
			}
		}
		if !found {
			return nil
		}
		select { // it takes a moment to die, and to be born
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Snapshot copies the sandbox's home, which is all that is its own.
func (i *instance) Snapshot(ctx context.Context, dst string) error {
	if err := os.Mkdir(dst, 0o700); err != nil {
		return err
	}
	err := copyHome(ctx, dst, i.dir)
	// If it is being removed, some files may have been gone before their turn came.
	if _, gone := runtime.ReadProc(i.dir); err == nil && gone != nil {
		err = errNoFiles
	}
	if err == nil {
		err = runtime.WriteOrigin(dst, origin())
	}
	if err != nil {
		return errors.Join(err, tree.Remove(context.WithoutCancel(ctx), dst))
	}
	return nil
}

// origin says what a snapshot taken by this process comes from.
func origin() runtime.Origin {
	return runtime.Origin{Runtime: name, UID: os.Geteuid(), GID: os.Getegid(), IDs: 1}
}

// copyHome copies the home in the folder src into dst.
func copyHome(ctx context.Context, dst, src string) error {
	from, err := os.Open(src)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.Open(dst)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := tree.Copy(ctx, to, from, homeName); err != nil {
		return fmt.Errorf("copy the sandbox's files: %w", err)
	}
	return nil
}
