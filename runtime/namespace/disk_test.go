//go:build linux

package namespace

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/runtime/tree"
)

// limitedSpecs are those of sandboxes with a storage limit, in every way that this
// user has.
func limitedSpecs(t *testing.T, storage int64) map[string]runtime.Spec {
	t.Helper()
	inMemory := newSpec(t)
	inMemory.InMemory, inMemory.Limits.Storage = true, storage
	specs := map[string]runtime.Spec{"memory": inMemory}
	if _, err := findDiskTools(); err == nil {
		onDisk := newSpec(t)
		onDisk.Limits.Storage = storage
		specs["disk"] = onDisk
	} else if os.Geteuid() == 0 {
		t.Errorf("there are no disks: %v", err)
	}
	return specs
}

// TestStorageLimit fills sandboxes up to their limit: the kernel stops the writers,
// the room that they free is theirs again, and what they wrote is there after a stop
// and in a snapshot.
func TestStorageLimit(t *testing.T) {
	const limit = 24 << 20
	for name, spec := range limitedSpecs(t, limit) {
		t.Run(name, func(t *testing.T) {
			before := leftovers(t)
			b := create(t, &Runtime{}, spec)
			if got := b.run(t, "df -k --output=size . | tail -1"); len(strings.TrimSpace(got)) != 5 {
				t.Errorf("df shows %s KiB", got)
			}
			got := b.try(t, "echo first >first; cat /dev/zero >fill; cat /dev/zero >/etc/fill; stat -c %s fill")
			if !strings.Contains(got.Stderr, "No space left on device") || len(strings.TrimSpace(got.Stdout)) != 8 {
				t.Errorf("got %q %q", got.Stdout, got.Stderr)
			}
			if used := usage(t, spec.Dir); used > limit+1<<20 {
				t.Errorf("the sandbox takes up %d bytes of the host", used)
			}
			b.run(t, "rm fill /etc/fill; head -c 10M /dev/zero >kept")
			b.must(t, b.Stop)
			b.must(t, b.Start)
			if got := b.run(t, "cat first; stat -c %s kept; test -e fill || echo gone"); got != "first\n10485760\ngone" {
				t.Errorf("after a stop: %q", got)
			}
			if got := b.try(t, "cat /dev/zero >fill").Stderr; !strings.Contains(got, "No space left on device") {
				t.Errorf("after a stop: %q", got)
			}
			b.run(t, "rm fill")
			running := b.snapshot(t)
			b.must(t, b.Stop)
			for _, snapshot := range []string{running, b.snapshot(t)} {
				again := newSpec(t)
				again.Snapshot, again.Limits.Storage, again.InMemory = snapshot, spec.Limits.Storage, spec.InMemory
				c := create(t, b.r, again)
				if got := c.run(t, "cat first; stat -c %s kept"); got != "first\n10485760" {
					t.Errorf("of a snapshot: %q", got)
				}
				if got := c.try(t, "cat /dev/zero >fill").Stderr; !strings.Contains(got, "No space left on device") {
					t.Errorf("of a snapshot: %q", got)
				}
				c.must(t, c.Remove)
			}
			small := newSpec(t)
			small.Snapshot, small.Limits.Storage, small.InMemory = running, 4<<20, spec.InMemory
			if _, err := b.r.Create(t.Context(), small); !isUnsupported(err) || !strings.Contains(err.Error(), "the storage limit of 4194304 bytes has no room for what the sandbox starts with") {
				t.Errorf("got %v", err)
			}
			if _, err := os.Lstat(small.Dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("of a sandbox that was refused there is %v", err)
			}
			b.must(t, b.Remove)
			noDevices(t, spec.Dir)
			if after := leftovers(t); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

// usage is how many bytes of the host's disk the files below a folder take up.
func usage(t *testing.T, dir string) (sum int64) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "du", "-s", "-B1", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range out {
		if c < '0' || c > '9' {
			break
		}
		sum = sum*10 + int64(c-'0')
	}
	return sum
}

// noDevices waits until no loop device has a disk below a folder: the kernel takes
// one away soon after its last user.
func noDevices(t *testing.T, dir string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		left := ""
		devices, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
		for _, d := range devices {
			if file, _ := os.ReadFile(d); strings.HasPrefix(string(file), dir) {
				left += d + " " + string(file)
			}
		}
		if left == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("loop devices are left:\n%s", left)
		}
	}
}

// write has the kernel write what it has of a sandbox's files; inside it does not.
func (b *box) write(t *testing.T) {
	t.Helper()
	files, err := b.Instance.(*instance).openFiles(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	dir, err := os.Open(fdPath(int(files.Fd())))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		t.Fatal(err)
	}
}

// TestStorageFreed makes room inside and sees it on the host: at once, and when the
// sandbox has gone.
func TestStorageFreed(t *testing.T) {
	spec, ok := limitedSpecs(t, 64<<20)["disk"]
	if !ok {
		return // in memory nothing of it is the host's disk
	}
	b := create(t, &Runtime{}, spec)
	b.run(t, "head -c 40M /dev/urandom >fill")
	b.write(t)
	if used := usage(t, spec.Dir); used < 40<<20 {
		t.Errorf("40 MiB take up %d bytes", used)
	}
	b.run(t, "rm fill")
	b.write(t)
	if used := usage(t, spec.Dir); used > 10<<20 {
		t.Errorf("what was deleted takes up %d bytes", used)
	}
}

// TestStorageRefused asks for limits that cannot be.
func TestStorageRefused(t *testing.T) {
	for name, spec := range limitedSpecs(t, minDisk-1) {
		if _, err := (&Runtime{}).Create(t.Context(), spec); !isUnsupported(err) || !strings.Contains(err.Error(), "is too small") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	info := (&Runtime{}).Info()
	if _, err := findDiskTools(); (err == nil) != info.Enforces.Storage || os.Geteuid() != 0 && (info.Enforces.Storage || !strings.Contains(info.Storage, "only the machine's root")) {
		t.Errorf("%v, but told is %+v", err, info)
	}
	if info := (&Runtime{inMemory: true}).Info(); !info.Enforces.Storage || !info.InMemory {
		t.Errorf("in memory: %+v", info)
	}
}

// TestStorageAfterPowerLoss has a file system that was not unmounted checked.
func TestStorageAfterPowerLoss(t *testing.T) {
	spec, ok := limitedSpecs(t, 16<<20)["disk"]
	if !ok {
		return
	}
	b := create(t, &Runtime{}, spec)
	b.run(t, "echo kept >kept")
	b.must(t, b.Stop)
	f, err := lockDisk(t.Context(), filepath.Join(spec.Dir, diskName))
	if err != nil {
		t.Fatal(err)
	}
	state := make([]byte, 1)
	const at = 1024 + 0x3a
	if _, err := f.ReadAt(state, at); err != nil || state[0]&1 != 1 {
		t.Fatalf("after a stop the state is %v, %v", state, err)
	}
	// As when it was in use.
	if _, err := f.WriteAt([]byte{0}, at); err != nil {
		t.Fatal(err)
	}
	f.Close()
	b.must(t, b.Start)
	if got := b.run(t, "cat kept"); got != "kept" {
		t.Errorf("got %q", got)
	}
	b.must(t, b.Stop)
	if f, err = lockDisk(t.Context(), filepath.Join(spec.Dir, diskName)); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(state, at); err != nil || state[0]&1 != 1 {
		t.Errorf("it was not mended: %v, %v", state, err)
	}
}

// TestStorageKept kills a sandbox in memory: what the last stop kept is there.
func TestStorageKept(t *testing.T) {
	spec := limitedSpecs(t, 16<<20)["memory"]
	b := create(t, &Runtime{}, spec)
	b.run(t, "echo one >file; ln file linked; mkdir -p a/b")
	b.must(t, b.Stop)
	b.must(t, b.Stop)
	b.must(t, b.Start)
	b.run(t, "echo two >file; rm -r a")
	p, err := runtime.ReadProc(spec.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.must(t, b.Start)
	if got := b.run(t, "cat file linked; ls -d a/b"); got != "one\none\na/b" {
		t.Errorf("got %q", got)
	}
	if err := tree.Remove(t.Context(), filepath.Join(spec.Dir, boxName+".new")); err != nil {
		t.Error(err)
	}
}
