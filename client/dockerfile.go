package client

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines how a snapshot is built from a Dockerfile: in a sandbox that
// is made for it, whose Docker engine then has the image that is captured
// (protocol.md §2.13).

// DockerfileBuild says what to build and where.
type DockerfileBuild struct {
	Name string // of the snapshot

	Context    string // the folder on this machine that the Dockerfile may copy from
	Dockerfile string // within it, or absolute; "" means Dockerfile
	BuildArgs  map[string]string
	Target     string // the stage to build; "" is the last one

	FSCapacityBytes *int64 // of the snapshot and of the sandbox that builds it; nil leaves it to the server
	VCPUs           *int   // of that sandbox
	MemBytes        *int64 // of that sandbox
	Builder         string // the name of that sandbox; "" makes one up
	Labels          map[string]string
	Tag             string
	Description     string

	// OnLog is called with what the build prints, stdout and stderr alike, by the
	// goroutine that called. Its error ends the build and is returned.
	OnLog func(text string) error

	Timeout time.Duration // of each step; 0 is a minute
}

// BuilderName makes up the name of a sandbox that builds.
func BuilderName() string { return "snapshot-builder-" + randomHex(6) }

func randomHex(bytes int) string {
	id := make([]byte, bytes)
	rand.Read(id) // never fails
	return hex.EncodeToString(id)
}

// CreateSnapshotFromDockerfile builds an image in a sandbox of the server's
// default runtime, which must have BuildKit and a Docker engine, and captures it.
// The sandbox is deleted in any case. A build that fails is ErrCreation, with all
// that it printed; the context folder and the Dockerfile are checked before
// anything is asked of the server.
func (c *Client) CreateSnapshotFromDockerfile(ctx context.Context, b DockerfileBuild) (*wire.Snapshot, error) {
	dockerfile, err := b.locate()
	if err != nil {
		return nil, err
	}
	if b.Timeout == 0 {
		b.Timeout = time.Minute
	}
	if b.Builder == "" {
		b.Builder = BuilderName()
	}
	// Below /var/lib, because /tmp lies in memory.
	place := buildPlace{root: "/var/lib/langsmith-build/" + randomHex(6), image: "langsmith-snapshot-build:" + randomHex(16)}
	box, err := c.CreateSandbox(ctx, wire.BoxCreate{Name: b.Builder, WaitForReady: true, Timeout: new(seconds(b.Timeout)),
		VCPUs: b.VCPUs, MemBytes: b.MemBytes, FSCapacityBytes: b.FSCapacityBytes})
	if errors.Is(err, ErrAlreadyExists) {
		return nil, err // that is not ours to delete
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), builderGrace)
		defer cancel()
		c.DeleteSandbox(ctx, b.Builder) // what became of the build is worth more than what becomes of this
	}()
	if err != nil {
		return nil, err
	}
	if err := b.sendContext(ctx, box, place); err != nil {
		return nil, err
	}
	if err := b.build(ctx, box, place, dockerfile); err != nil {
		return nil, err
	}
	made, err := c.CaptureSnapshot(ctx, b.Builder, wire.SnapshotCapture{Name: b.Name, DockerImage: place.image, FSCapacityBytes: b.FSCapacityBytes, Labels: b.Labels, Tag: b.Tag, Description: b.Description})
	if err != nil {
		return nil, err
	}
	return c.WaitForSnapshot(ctx, made.ID, b.Timeout, 0)
}

// builderGrace is how long the deletion of the builder may take.
const builderGrace = 30 * time.Second

// buildPlace is where in the sandbox things lie.
type buildPlace struct{ root, image string }

// locate resolves the context folder and returns the path of the Dockerfile in it.
func (b *DockerfileBuild) locate() (dockerfile string, err error) {
	if b.Context == "" {
		return "", argumentError("a build needs a context folder, which the Dockerfile may copy from")
	}
	given := b.Context
	if b.Context, err = filepath.EvalSymlinks(b.Context); err == nil {
		b.Context, err = filepath.Abs(b.Context)
	}
	if err != nil {
		return "", argumentError("the context folder of the build cannot be used: %v", err)
	}
	if info, err := os.Stat(b.Context); err != nil || !info.IsDir() {
		return "", argumentError("the context of the build, %s, is not a folder", given)
	}
	file := b.Dockerfile
	if file == "" {
		file = "Dockerfile"
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(b.Context, file)
	}
	resolved, err := filepath.EvalSymlinks(file)
	if err != nil {
		return "", argumentError("the Dockerfile cannot be used: %v", err)
	}
	inside, err := filepath.Rel(b.Context, resolved)
	if err != nil || !filepath.IsLocal(inside) {
		return "", argumentError("the Dockerfile, %s, is not inside the context folder %s", file, b.Context)
	}
	if info, err := os.Stat(resolved); err != nil || !info.Mode().IsRegular() {
		return "", argumentError("the Dockerfile, %s, is not a file", file)
	}
	return filepath.ToSlash(inside), nil
}

// sendContext puts the context folder into the sandbox.
func (b *DockerfileBuild) sendContext(ctx context.Context, box *Sandbox, place buildPlace) error {
	ctx, cancel := context.WithTimeoutCause(ctx, b.Timeout, tooLong("sending the context folder", b.Timeout))
	defer cancel()
	archive, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := packFolder(w, b.Context)
		w.CloseWithError(err)
		packed <- err
	}()
	err := box.Upload(ctx, place.root+"/context.tar", archive)
	archive.CloseWithError(errDetached) // ends the packing, which nobody waits for otherwise
	if packing := <-packed; packing != nil && !errors.Is(packing, errDetached) {
		return packing
	}
	if err != nil {
		return err
	}
	folder := shellWord(place.root + "/context")
	result, err := box.Run(ctx, RunOptions{Timeout: b.Timeout, CloseStdin: true,
		Command: fmt.Sprintf("rm -rf %s && mkdir -p %s && tar -x -C %s -f %s", folder, folder, folder, shellWord(place.root+"/context.tar"))})
	if err != nil {
		return err
	}
	if result.ExitCode != 0 {
		return buildError(fmt.Sprintf("the context folder could not be unpacked in the sandbox %s", b.Builder), result)
	}
	return nil
}

func tooLong(what string, limit time.Duration) error {
	return &Error{Kind: ErrTimeout, ResourceType: "snapshot", Message: fmt.Sprintf("%s took longer than %v", what, limit)}
}

func buildError(what string, r *Result) error {
	message := fmt.Sprintf("%s: exit status %d", what, r.ExitCode)
	if last := strings.TrimSpace(r.Stderr); last != "" {
		lines := strings.Split(last, "\n")
		message += ": " + strings.Join(lines[max(0, len(lines)-10):], "\n")
	}
	return &Error{Kind: ErrCreation, ResourceType: "snapshot", Message: message, Stdout: r.Stdout, Stderr: r.Stderr}
}

// packFolder writes a folder as a tar archive: its entries in order, links as
// links, without sockets and without a .git at its top. They belong to root, as
// what a Dockerfile copies does. Nothing outside the folder is read.
func packFolder(w io.Writer, folder string) error {
	root, err := os.OpenRoot(folder)
	if err != nil {
		return err
	}
	defer root.Close()
	archive := tar.NewWriter(w)
	err = fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name == ".git" && entry.IsDir():
			return fs.SkipDir
		case name == "." || name == ".git" || entry.Type()&fs.ModeSocket != 0:
			return nil
		}
		return packEntry(archive, root, name, entry)
	})
	if err != nil {
		return fmt.Errorf("reading the context folder %s: %w", folder, err)
	}
	return archive.Close()
}

func packEntry(archive *tar.Writer, root *os.Root, name string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if err != nil {
		return err
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = root.Readlink(name); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, filepath.ToSlash(target))
	if err != nil {
		return err
	}
	header.Name, header.Uid, header.Gid, header.Uname, header.Gname = name, 0, 0, "", ""
	if info.IsDir() {
		header.Name += "/"
	}
	if err := archive.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
		return err
	}
	file, err := root.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := io.CopyN(archive, file, info.Size()); err != nil {
		return fmt.Errorf("%s has changed while it was read: %w", name, err)
	}
	return nil
}

// build makes the image and hands it to the Docker engine of the sandbox.
func (b *DockerfileBuild) build(ctx context.Context, box *Sandbox, place buildPlace, dockerfile string) error {
	cmd, err := box.Start(ctx, RunOptions{Command: b.script(place, dockerfile), Timeout: b.Timeout, CloseStdin: true})
	if err != nil {
		return err
	}
	defer cmd.Close()
	for {
		chunk, err := cmd.Next(ctx)
		if err == io.EOF {
			break
		}
		if err == nil && b.OnLog != nil && chunk.Data != "" {
			err = b.OnLog(chunk.Data)
		}
		if err != nil {
			cmd.Abandon()
			return err
		}
	}
	result, err := cmd.Result(ctx)
	if err == nil && result.ExitCode != 0 {
		err = buildError("the Dockerfile could not be built", result)
	}
	return err
}

// script is what the sandbox does: BuildKit builds without a daemon of the
// engine's own, and the engine is handed what comes of it.
func (b *DockerfileBuild) script(place buildPlace, dockerfile string) string {
	run, state, tree := place.root+"/buildkit-run", place.root+"/buildkit-root", place.root+"/context"
	words := []string{
		"build", "--progress=plain", "--frontend=dockerfile.v0",
		"--local", "context=" + tree, "--local", "dockerfile=" + path.Join(tree, path.Dir(dockerfile)),
		"--opt", "filename=" + path.Base(dockerfile),
	}
	if b.Target != "" {
		words = append(words, "--opt", "target="+b.Target)
	}
	for _, name := range slices.Sorted(maps.Keys(b.BuildArgs)) {
		words = append(words, "--opt", "build-arg:"+name+"="+b.BuildArgs[name])
	}
	words = append(words, "--output", "type=docker,name="+place.image)
	for i, word := range words {
		words[i] = shellWord(word)
	}
	return strings.NewReplacer("RUN", shellWord(run), "STATE", shellWord(state), "WORDS", strings.Join(words, " ")).Replace(buildScript)
}

// buildScript starts BuildKit, waits for it and for the Docker engine, builds,
// and frees what BuildKit has stored, so that it does not end up in the image.
const buildScript = `set -euo pipefail
run=RUN state=STATE
mkdir -p "$run" "$state"
address=unix://$run/buildkitd.sock
buildkitd --addr "$address" --root "$state" --oci-worker=true --containerd-worker=false \
	--oci-worker-snapshotter=native --oci-worker-binary=buildkit-runc >"$run/buildkitd.log" 2>&1 &
daemon=$!
trap 'kill "$daemon" 2>/dev/null || true' EXIT
wait_until() { # NAME COMMAND…
	name=$1
	shift
	for _ in $(seq 300); do
		if "$@" >/dev/null 2>&1; then return 0; fi
		if ! kill -0 "$daemon" 2>/dev/null; then
			cat "$run/buildkitd.log" >&2
			echo "buildkitd has ended" >&2
			return 1
		fi
		sleep 0.1
	done
	cat "$run/buildkitd.log" >&2
	echo "$name does not answer" >&2
	return 1
}
wait_until buildkitd buildctl --addr "$address" debug workers
wait_until "the Docker engine" docker info
buildctl --addr "$address" WORDS | docker load
rm -rf "$state" || true
`

// shellWord makes one word of s for a POSIX shell.
func shellWord(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
