package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sbx-star/sbx-star/daemon"
	"github.com/sbx-star/sbx-star/runtime"
)

// This file defines how a sandbox is made, found again and removed.

const (
	startTime = 20 * time.Second // for a daemon to come up on a busy machine
	endTime   = 10 * time.Second // for a daemon to end its commands and itself
)

// Create makes <Dir>/home and places the daemon, which from then on needs this
// process no more.
func (rt *Runtime) Create(ctx context.Context, spec runtime.Spec) (runtime.Instance, error) {
	if spec.Image != "" && spec.Image != runtime.HostImage && !rt.opts.AnyImage {
		return nil, &runtime.Unsupported{
			What: fmt.Sprintf("the process runtime has no images, and %q was asked for", spec.Image),
			Hint: fmt.Sprintf("use the image %q, or the namespace runtime", runtime.HostImage),
		}
	}
	inst := &instance{dir: spec.Dir}
	if err := inst.create(ctx, spec); err != nil {
		// The caller's context may be what failed.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*endTime)
		defer cancel()
		return nil, errors.Join(err, inst.Remove(ctx))
	}
	return inst, nil
}

// Adopt takes over the sandbox in spec.Dir.
func (rt *Runtime) Adopt(ctx context.Context, spec runtime.Spec) (runtime.Instance, error) {
	inst := &instance{dir: spec.Dir}
	proc, err := runtime.ReadProc(spec.Dir)
	if err == nil && !proc.Alive() {
		err = runtime.ErrGone
	}
	return inst, err
}

type instance struct{ dir string }

func (i *instance) create(ctx context.Context, spec runtime.Spec) error {
	home := filepath.Join(spec.Dir, "home")
	if err := os.Mkdir(home, 0o755); err != nil {
		return err
	}
	env := maps.Clone(spec.Env)
	if env == nil {
		env = map[string]string{}
	}
	if _, ok := env["PATH"]; !ok && os.Getenv("PATH") != "" {
		env["PATH"] = os.Getenv("PATH") // the tools are this machine's
	}
	config, err := json.Marshal(daemon.Config{Env: env, WorkDir: home, Home: home})
	if err != nil {
		return err
	}

	ln, err := runtime.ListenUnix(spec.Dir)
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
		Env:   []string{},
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
		err = runtime.WriteProc(spec.Dir, proc)
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

// Remove asks the daemon to end, which takes all its descendants along, and
// then deletes the folder.
func (i *instance) Remove(ctx context.Context) error {
	proc, err := runtime.ReadProc(i.dir)
	if err == nil {
		err = proc.End(ctx, endTime)
	}
	if err != nil && !errors.Is(err, runtime.ErrGone) {
		return fmt.Errorf("end the sandbox's daemon: %w", err)
	}
	return removeAll(i.dir)
}
