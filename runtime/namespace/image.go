//go:build linux

package namespace

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/runtime/image"
)

// This file defines sandboxes of images: how layers are unpacked, by another process
// that is the root of a user namespace like the sandboxes', and how they become the
// root of a sandbox. So their files belong to the sandboxes' ids, on every kernel
// and without the host's rights.

// Pull implements runtime.Images.
func (r *Runtime) Pull(ctx context.Context, request runtime.ImageRequest) (runtime.Image, error) {
	store, err := r.store()
	if err != nil {
		return runtime.Image{}, err
	}
	return store.Pull(ctx, request)
}

// CollectImages implements runtime.Images.
func (r *Runtime) CollectImages(ctx context.Context, keep func() (runtime.ImagesInUse, error)) error {
	store, err := r.store()
	if err != nil {
		return err
	}
	return store.CollectImages(ctx, keep)
}

// store returns the images that the runtime has.
func (r *Runtime) store() (*image.Store, error) {
	if r.images == nil {
		return openImages(Options{})
	}
	return r.images()
}

// openImages returns the store of the images in a folder.
func openImages(o Options) (*image.Store, error) {
	if o.Images == "" {
		return nil, &runtime.Unsupported{
			What: "this server keeps no images",
			Hint: fmt.Sprintf("use the image %q, which is this machine's own system", runtime.HostImage),
		}
	}
	m := hostIDs()
	return image.New(image.Options{
		Dir: o.Images, Mirrors: o.Mirrors, Worker: worker{},
		Owner: fmt.Sprintf("%d-%d-%d", m.uid.HostID, m.gid.HostID, m.uid.Size),
	})
}

// plan is how the root of a sandbox is put together.
func (r *Runtime) plan(ctx context.Context, spec runtime.Spec) (plan, error) {
	if spec.Image == "" || spec.Image == runtime.HostImage {
		return planHost(spec.Dir)
	}
	store, err := r.store()
	if err != nil {
		return plan{}, err
	}
	layers, err := store.Layers(ctx, spec.Image)
	return plan{Image: layers}, err
}

// worker implements image.Worker by processes of their own.
type worker struct{}

// What the working process prints.
type worked struct {
	Unpacked image.Unpacked
	Sum      string
	Errno    syscall.Errno // why it failed, if the kernel refused
}

func (worker) Unpack(ctx context.Context, dir string, archive io.Reader, most image.Limits) (image.Unpacked, error) {
	if err := makeOwned(dir); err != nil {
		return image.Unpacked{}, err
	}
	// Copied into a pipe, it ends when this process does.
	w, err := work(ctx, dir, struct{ io.Reader }{archive}, unpackStage, strconv.FormatInt(most.Bytes, 10), strconv.Itoa(most.Files))
	return w.Unpacked, err
}

func (worker) Sum(ctx context.Context, dir string) (string, error) {
	// The life of this process is the length of what the other one reads.
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	defer w.Close()
	got, err := work(ctx, dir, r, sumStage)
	return got.Sum, err
}

// work has another process do something with the folder dir, as the root of a user
// namespace like the sandboxes'.
func work(ctx context.Context, dir string, in io.Reader, args ...string) (worked, error) {
	var w worked
	folder, err := os.Open(dir)
	if err != nil {
		return w, err
	}
	defer folder.Close()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = append([]string{childName}, args...)
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.Stdin = in
	cmd.WaitDelay = time.Second
	cmd.ExtraFiles = []*os.File{folder}
	cmd.SysProcAttr = hostIDs().attr(unix.CLONE_NEWUSER)
	var said, told bytes.Buffer
	cmd.Stdout, cmd.Stderr = &told, &said
	err = cmd.Start()
	if err != nil {
		return w, explain(outcome{Step: stepClone, Text: err.Error(), Errno: errnoOf(err)}, thisMachine())
	}
	err = cmd.Wait()
	if ctx.Err() != nil {
		return w, context.Cause(ctx)
	}
	if decodeErr := json.Unmarshal(told.Bytes(), &w); decodeErr != nil {
		return w, fmt.Errorf("the process for the files of images has ended early: %w: %.2000s", errors.Join(err, decodeErr), bytes.TrimSpace(said.Bytes()))
	}
	switch {
	case w.Errno == unix.ENOSPC || w.Errno == unix.EDQUOT:
		return w, fmt.Errorf("%w: %s", runtime.ErrDiskFull, bytes.TrimSpace(said.Bytes()))
	case err != nil:
		// The archive may have failed before its reader did.
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 {
			return w, err
		}
		return w, errors.New(string(bytes.TrimSpace(said.Bytes())))
	}
	return w, nil
}

// workAndExit is the working process.
func workAndExit(args []string) {
	folder := os.NewFile(sourceFD, "folder")
	var w worked
	var err error
	switch {
	case args[0] == unpackStage && len(args) == 3:
		var most image.Limits
		most.Bytes, _ = strconv.ParseInt(args[1], 10, 64)
		most.Files, _ = strconv.Atoi(args[2])
		unix.Umask(0)
		w.Unpacked, err = image.Unpack(folder, os.Stdin, ownIDs(), most)
	case args[0] == sumStage:
		go func() {
			io.Copy(io.Discard, os.Stdin) // ends when the other process does
			os.Exit(1)
		}()
		w.Sum, err = image.Sum(folder)
	}
	w.Errno = errnoOf(err)
	if encodeErr := json.NewEncoder(os.Stdout).Encode(w); err == nil {
		err = encodeErr
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%.2000s\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// ownIDs is how many ids there are in this process's user namespace.
func ownIDs() int {
	uidMap, _ := os.ReadFile("/proc/self/uid_map")
	var start, outside, size int64
	if n, _ := fmt.Sscan(string(uidMap), &start, &outside, &size); n != 3 || size > math.MaxInt32 {
		return 1
	}
	return int(size)
}

// sendImage sends the mounts of an image's layers. The host's root makes them, whose
// first process may not reach them by a path; an ordinary user's makes them itself.
func sendImage(control *net.UnixConn, layers []string) error {
	for _, dir := range layers {
		fd := -1
		if os.Geteuid() == 0 {
			var err error
			if fd, err = cloneMount(dir, layerFlags, -1); err != nil {
				return err
			}
		}
		if err := send(control, fd); err != nil {
			return err
		}
	}
	return nil
}

// takeImage takes hold of the image's layers.
func (s *setup) takeImage() error {
	for _, dir := range s.Plan.Image {
		fd, err := receive()
		if err == nil && fd < 0 {
			fd, err = cloneMount(dir, layerFlags, -1)
		}
		if err != nil {
			return err
		}
		s.image = append(s.image, fd)
	}
	return nil
}

// imageUp is the name of the upper side of an image's root, which no system folder
// has.
const imageUp = "%2F"

// mountImage mounts the sandbox's root: an overlay over all layers of the image.
// What a sandbox has to have is made in it where the image has it not.
func (s *setup) mountImage() error {
	low := ""
	for i, fd := range s.image {
		name := "low/" + strconv.Itoa(i)
		if err := makeDirs(name); err != nil {
			return err
		}
		if err := attach(fd, name); err != nil {
			return err
		}
		low += name + ":"
	}
	up, work := "box/up/"+imageUp, "box/work/"+imageUp
	fresh := unix.Access(up, unix.F_OK) != nil
	if err := makeDirs("box/root", up, work); err != nil {
		return err
	}
	if err := mountOverlay("root", fmt.Sprintf("lowerdir=%snone,upperdir=%s,workdir=%s,volatile", low, up, work), 0); err != nil {
		return err
	}
	var err error
	if s.root, err = unix.Open("root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return os.NewSyscallError("open", err)
	}
	for _, name := range []string{"proc", "dev", "tmp", "run", "home/user"} {
		at, err := s.folder(name)
		if err != nil {
			return err
		}
		unix.Close(at)
	}
	etc, err := s.folder("etc")
	if err != nil {
		return err
	}
	defer unix.Close(etc)
	if fresh { // the image's own are of the machine that it was made on
		for name := range ownTexts("") {
			if err := os.Remove(filepath.Join(fdPath(etc), name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	if err := s.writeOwnFiles(fdPath(etc)); err != nil {
		return err
	}
	return checkLaid(map[string]bool{imageUp: true})
}
