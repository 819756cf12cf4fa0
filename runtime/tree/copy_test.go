//go:build linux

package tree_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/sbx-star/sbx-star/runtime/tree"
)

// copyTree copies the folder "top" of src into a new folder.
func copyTree(t testing.TB, ctx context.Context, src string) (string, error) {
	t.Helper()
	dst, err := os.MkdirTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	to, err := os.Open(dst)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	from, err := os.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	return dst, tree.Copy(ctx, to, from, "top")
}

// describe lists all that a copy has to keep of the tree dir.
func describe(t testing.TB, dir string) string {
	t.Helper()
	first := map[uint64]string{} // path by inode
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		fmt.Fprintf(&b, "%s: %o %d:%d %d", name, st.Mode, st.Uid, st.Gid, st.Rdev)
		if name != "." { // into which the tree was put
			fmt.Fprintf(&b, " %d.%d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		switch d.Type() {
		case fs.ModeSymlink:
			target, _ := os.Readlink(path)
			fmt.Fprintf(&b, " -> %q", target)
		case 0:
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %d bytes", len(content))
			for at, block := range slices.Collect(slices.Chunk(content, 4096)) {
				if trimmed := bytes.TrimRight(block, "\x00"); len(trimmed) > 0 {
					fmt.Fprintf(&b, " %d: %q", at, trimmed)
				}
			}
		}
		if !d.IsDir() && st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFCHR {
			if first[st.Ino] == "" {
				first[st.Ino] = name
			}
			fmt.Fprintf(&b, " is %s", first[st.Ino])
		}
		if d.Type()&fs.ModeSymlink == 0 {
			list := make([]byte, 4096)
			n, _ := unix.Listxattr(path, list)
			var attributes []string
			for _, a := range strings.Split(string(list[:max(n, 0)]), "\x00") {
				value := make([]byte, 4096)
				if n, err := unix.Getxattr(path, a, value); err == nil {
					attributes = append(attributes, fmt.Sprintf(" %s=%q", a, value[:n]))
				}
			}
			slices.Sort(attributes)
			b.WriteString(strings.Join(attributes, ""))
		}
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestCopy copies random trees. Modes keep the owner's right to read: as an
// ordinary user a caller needs that, unless it is the root of a user namespace.
func TestCopy(t *testing.T) {
	base := t.TempDir()
	root := os.Geteuid() == 0
	rapid.Check(t, func(rt *rapid.T) {
		src, err := os.MkdirTemp(base, "")
		if err != nil {
			rt.Fatal(err)
		}
		at, files := filepath.Join(src, "top"), []string{}
		must := func(err error) {
			if err != nil {
				rt.Helper()
				rt.Fatal(err)
			}
		}
		must(os.Mkdir(at, 0o755))
		dirs := []string{at}
		for i := range rapid.IntRange(0, 40).Draw(rt, "entries") {
			name := filepath.Join(rapid.SampledFrom(dirs).Draw(rt, "folder"), fmt.Sprintf("%d %s", i, rapid.StringMatching(`[a-z\n"\\ -]{0,5}`).Draw(rt, "name")))
			mode := uint32(rapid.SampledFrom([]int{0o700, 0o755, 0o1777, 0o2750, 0o4755}).Draw(rt, "mode"))
			kind := rapid.IntRange(0, 7).Draw(rt, "kind")
			switch kind {
			case 0, 1:
				must(os.Mkdir(name, 0o700))
				dirs = append(dirs, name)
			case 2:
				must(os.Symlink(rapid.SampledFrom([]string{"/", "..", "/etc/passwd", "none", strings.Repeat("long/", 300)}).Draw(rt, "target"), name))
			case 3:
				must(unix.Mkfifo(name, 0o600))
			case 4:
				must(unix.Mknod(name, unix.S_IFSOCK|0o600, 0))
			case 5:
				must(unix.Mknod(name, unix.S_IFCHR|0o600, 0))
			case 6:
				if len(files) > 0 {
					must(os.Link(rapid.SampledFrom(files).Draw(rt, "linked"), name))
				}
				continue
			default:
				f, err := os.Create(name)
				must(err)
				for range rapid.IntRange(0, 3).Draw(rt, "pieces") {
					_, err := f.WriteAt([]byte("piece"), rapid.Int64Range(0, 200_000).Draw(rt, "offset"))
					must(err)
				}
				must(f.Truncate(rapid.Int64Range(0, 300_000).Draw(rt, "size")))
				must(f.Close())
				if rapid.Bool().Draw(rt, "attribute") {
					must(unix.Setxattr(name, "user.overlay.opaque", []byte("y\x00"), 0))
				}
			}
			if kind >= 2 {
				files = append(files, name)
			}
			if kind != 2 {
				if root {
					must(os.Lchown(name, 0x70000000+i, 0x70000000+i%3))
				}
				must(unix.Chmod(name, mode))
			}
		}
		for _, name := range append(dirs, files...) {
			must(unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{{Sec: 1}, {Sec: int64(len(name)), Nsec: 5}}, unix.AT_SYMLINK_NOFOLLOW))
		}
		want := describe(t, src)
		dst, err := copyTree(t, t.Context(), src)
		must(err)
		if got := describe(t, dst); got != want {
			rt.Fatalf("got\n%s\nwant\n%s", got, want)
		}
		must(tree.Remove(t.Context(), dst))
		must(tree.Remove(t.Context(), src))
	})
}

// Files that the caller does not name again are still open while they are copied.
func TestCopyKeepsItsFolders(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	for i := range 500 {
		if err := os.WriteFile(filepath.Join(src, fmt.Sprint(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	}()
	descriptor := func(dir string) *os.File {
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return os.NewFile(uintptr(fd), dir)
	}
	names := make([]string, 500)
	for i := range names {
		names[i] = fmt.Sprint(i)
	}
	err := tree.Copy(t.Context(), descriptor(dst), descriptor(src), names...)
	close(stop)
	<-stopped
	if err != nil {
		t.Error(err)
	}
}

func TestCopyKeepsHoles(t *testing.T) {
	src := t.TempDir()
	top := filepath.Join(src, "top")
	if err := os.Mkdir(top, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(top, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("in the middle"), 1<<35); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(1 << 36); err != nil {
		t.Fatal(err)
	}
	dst, err := copyTree(t, t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dst, "top/sparse"), &st); err != nil || st.Size != 1<<36 || st.Blocks > 1000 {
		t.Errorf("it has %d bytes in %d blocks (%v)", st.Size, st.Blocks, err)
	}
	copied, err := os.Open(filepath.Join(dst, "top/sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	text := make([]byte, 13)
	if _, err := copied.ReadAt(text, 1<<35); err != nil || string(text) != "in the middle" {
		t.Errorf("got %q, %v", text, err)
	}
}

func TestCopyRefuses(t *testing.T) {
	src := t.TempDir()
	if err := os.MkdirAll(filepath.Join(src, "top/folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := copyTree(t, cancelled, src); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if os.Geteuid() != 0 {
		return
	}
	place := filepath.Join(src, "top/folder/device")
	if err := unix.Mknod(place, unix.S_IFCHR, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	if _, err := copyTree(t, t.Context(), src); err == nil || err.Error() != "copy top/folder/device: it is a device" {
		t.Errorf("got %v", err)
	}
}

// TestCopyDeep copies folders in folders, whose path is longer than any that can
// be told the kernel, with two names of one file at the bottom.
func TestCopyDeep(t *testing.T) {
	src := t.TempDir()
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	defer os.Chdir(wd)
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(src, "top"), 0o755))
	descend := func(dir string, make bool) {
		must(os.Chdir(filepath.Join(dir, "top")))
		for range 300 {
			name := strings.Repeat("d", 200)
			if make {
				must(unix.Mkdir(name, 0o755))
			}
			must(unix.Chdir(name))
		}
	}
	descend(src, true)
	must(os.WriteFile("bottom", []byte("deep"), 0o644))
	must(os.Link("bottom", "second"))
	dst, err := copyTree(t, t.Context(), src)
	must(err)
	descend(dst, false)
	var first, second unix.Stat_t
	must(unix.Stat("bottom", &first))
	must(unix.Stat("second", &second))
	if first.Ino != second.Ino || first.Nlink != 2 || first.Size != 4 {
		t.Errorf("got %+v and %+v", first, second)
	}
	must(os.Chdir(wd))
	for _, dir := range []string{src, dst} {
		must(tree.Remove(t.Context(), dir))
		must(os.Mkdir(dir, 0o755)) // what a test's folder expects
	}
}

// TestCopyWhileItChanges copies folders in which files come, grow, shrink, go and
// become something else all the time.
func TestCopyWhileItChanges(t *testing.T) {
	src := t.TempDir()
	top := filepath.Join(src, "top")
	if err := os.Mkdir(top, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	changing := make(chan struct{})
	go func() {
		defer close(changing)
		random := rand.New(rand.NewPCG(1, 2))
		for ctx.Err() == nil {
			name := filepath.Join(top, fmt.Sprint(random.IntN(50)))
			switch random.IntN(8) {
			case 0:
				os.Remove(name)
			case 1:
				os.Mkdir(name, 0o755)
			case 2:
				unix.Mkfifo(name, 0o644)
			case 3:
				os.Symlink("/", name)
			case 4:
				os.Link(filepath.Join(top, fmt.Sprint(random.IntN(50))), name)
			case 5:
				os.Truncate(name, random.Int64N(100_000))
			case 6:
				os.Rename(filepath.Join(top, fmt.Sprint(random.IntN(50))), name)
			default:
				if info, err := os.Lstat(name); err == nil && info.Mode().IsRegular() || errors.Is(err, fs.ErrNotExist) {
					os.WriteFile(name, bytes.Repeat([]byte("x"), random.IntN(100_000)), 0o644)
				}
			}
		}
	}()
	for range 60 {
		dst, err := copyTree(t, t.Context(), src)
		if err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadDir(dst); err != nil || len(left) != 1 {
			t.Fatalf("got %v, %v", left, err)
		}
	}
	cancel()
	<-changing
}
