//go:build linux

package namespace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/runtime/tree"
)

// This file defines tests of a sandbox's life from its creation to its removal.

func init() {
	helpers = map[string]func(string) error{
		"make":     makeAndLeave,
		"remove":   adoptAndRemove,
		"mounts":   inOwnMounts,
		"no users": withoutUserNamespaces,
		"diagnose": diagnoseWithoutUsers,
		"break":    breakOut,
		"climb":    climb,
		"greedy":   takeAll,
	}
}

func makeAndLeave(dir string) error {
	_, err := (&Runtime{}).Create(context.Background(), runtime.Spec{ID: "left", Hostname: "left", Dir: dir})
	return err
}

func adoptAndRemove(dir string) error {
	in, err := (&Runtime{}).Adopt(context.Background(), runtime.Spec{Dir: dir})
	if err != nil {
		return err
	}
	return in.Remove(context.Background())
}

// TestNothingIsLeft goes through a whole life and one that fails, and compares
// this process before and after.
func TestNothingIsLeft(t *testing.T) {
	r := &Runtime{}
	live := func() {
		spec := newSpec(t)
		in, err := r.Create(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		b := &box{Instance: in}
		b.run(t, "sleep 1000 >/dev/null 2>&1 & echo $! > /etc/pid; dd if=/dev/zero of=big bs=1M count=1 2>/dev/null")
		for range 2 { // the second time there is nothing to do
			if err := in.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := in.Dial(t.Context()); !errors.Is(err, runtime.ErrGone) && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Dial after Remove: %v", err)
		}
		spec = newSpec(t)
		if err := os.WriteFile(filepath.Join(spec.Dir, "daemon.sock"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Create(t.Context(), spec); err == nil {
			t.Error("Create has taken a socket that it did not make")
		}
		if _, err := os.Lstat(spec.Dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a Create that failed has left its folder: %v", err)
		}
	}
	live() // what is opened once, such as the poller
	before := leftovers(t)
	live()
	if after := leftovers(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestCancelledCreate ends the context at random moments of Create.
func TestCancelledCreate(t *testing.T) {
	r := &Runtime{}
	start := time.Now()
	warm := create(t, r, newSpec(t))
	took := time.Since(start)
	if err := warm.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	before := leftovers(t)
	cancelled := 0
	for range 24 {
		spec := newSpec(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("changed my mind")
		stop := time.AfterFunc(time.Duration(random.Int64N(int64(2*took))), func() { cancel(cause) })
		in, err := r.Create(ctx, spec)
		stop.Stop()
		cancel(nil)
		if err == nil {
			if err := in.Remove(t.Context()); err != nil {
				t.Error(err)
			}
		} else if cancelled++; !errors.Is(err, cause) {
			t.Errorf("got %v", err)
		}
		if _, err := os.Lstat(spec.Dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the folder is left: %v", err)
		}
	}
	if after := leftovers(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	t.Logf("%d of 24 were cancelled", cancelled)
}

func TestManyAtOnce(t *testing.T) {
	const n = 50
	specs := make([]runtime.Spec, n)
	for i := range specs {
		specs[i] = newSpec(t)
		specs[i].Hostname = fmt.Sprintf("box-%d", i)
	}
	before := leftovers(t)
	r := &Runtime{}
	var all sync.WaitGroup
	together := make(chan struct{}) // closed once all of them live
	var living sync.WaitGroup
	living.Add(n)
	for _, spec := range specs {
		all.Go(func() {
			in, err := r.Create(t.Context(), spec)
			living.Done()
			if err != nil {
				t.Error(err)
				return
			}
			<-together
			b := &box{Instance: in}
			if r, err := b.execute(t.Context(), "hostname; ls /proc | grep -c '^[0-9]'"); err != nil || !strings.HasPrefix(r.Stdout, spec.Hostname+"\n") {
				t.Errorf("%s: %+v, %v", spec.Hostname, r, err)
			}
			if err := in.Remove(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	living.Wait()
	close(together)
	all.Wait()
	if after := leftovers(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestOtherProcesses has one process make a sandbox, this one use it, and a
// third one remove it.
func TestOtherProcesses(t *testing.T) {
	spec := newSpec(t)
	if _, err := helper(t, "make", spec.Dir, nil); err != nil {
		t.Fatal(err)
	}
	in, err := (&Runtime{}).Adopt(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	b := &box{Instance: in}
	if got := b.run(t, "hostname"); got != "left" {
		t.Errorf("got %q", got)
	}
	p, err := runtime.ReadProc(spec.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := helper(t, "remove", spec.Dir, nil); err != nil {
		t.Fatal(err)
	}
	if p.Alive() {
		t.Error("the first process lives")
	}
	if _, err := os.Lstat(spec.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is left: %v", err)
	}
	if err := in.Remove(t.Context()); err != nil {
		t.Errorf("Remove after another's: %v", err)
	}
}

// TestRemovedByOther checks that the maker's own child does not stay a zombie
// when another process removes the sandbox.
func TestRemovedByOther(t *testing.T) {
	before := leftovers(t)
	b := newBox(t)
	if _, err := helper(t, "remove", b.spec.Dir, nil); err != nil {
		t.Fatal(err)
	}
	if err := b.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	if after := leftovers(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestKilled(t *testing.T) {
	b := newBox(t)
	p, err := runtime.ReadProc(b.spec.Dir)
	if err != nil {
		t.Fatal(err)
	}
	// All of its processes end with the first one.
	sleeping := make(chan error, 1)
	go func() {
		_, err := b.execute(t.Context(), "sleep 1000")
		sleeping <- err
	}()
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-sleeping; err == nil {
		t.Error("a command outlived the first process")
	}
	if err := p.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	in, err := (&Runtime{}).Adopt(t.Context(), b.spec)
	if !errors.Is(err, runtime.ErrGone) {
		t.Errorf("Adopt: %v", err)
	}
	if _, err := in.Dial(t.Context()); !errors.Is(err, runtime.ErrGone) {
		t.Errorf("Dial: %v", err)
	}
	if err := in.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestMakerEndsEarly checks that a first process ends by itself when its maker
// does before it has got its layers.
func TestMakerEndsEarly(t *testing.T) {
	spec := newSpec(t)
	plan, err := planHost(spec.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(spec.Dir, boxName), 0o755); err != nil {
		t.Fatal(err)
	}
	in := (&Runtime{}).newInstance(spec)
	control, err := in.startFirst(hostIDs(), groups{}, nil, order{Hostname: "early", Plan: plan})
	if err != nil {
		t.Fatal(err)
	}
	control.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := in.proc.Wait(ctx); err != nil {
		t.Error(err)
	}
	if err := in.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestLongPathBelowClosedFolder keeps a sandbox where its root could not reach it
// by any path, and further down than a socket's address can say.
func TestLongPathBelowClosedFolder(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		dir = filepath.Join(dir, strings.Repeat("long, even: ", 10))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	b := create(t, &Runtime{}, runtime.Spec{ID: "deep", Hostname: "deep", Dir: dir})
	b.run(t, "echo kept > kept")
	if data, err := os.ReadFile(filepath.Join(dir, "box/root/home/user/kept")); err != nil || string(data) != "kept\n" {
		t.Errorf("%q, %v", data, err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("others can reach what the sandbox marks setuid: %v, %v", info.Mode(), err)
	}
}

// TestRemoveOddities removes what is hard to remove, and nothing else.
func TestRemoveOddities(t *testing.T) {
	spec := newSpec(t)
	b := create(t, &Runtime{}, spec)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("stays"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.run(t, `set -e
		ln -s `+filepath.Dir(outside)+` link
		ln -s `+outside+` link2
		mkfifo fifo
		touch $'new\nline' -- -dash
		mkdir closed; echo x > closed/file; ln closed/file hard; chmod 000 closed
		mkdir readonly; echo x > readonly/file; chmod 500 readonly
		mkdir blind; mkdir blind/inner; chmod 100 blind/inner; chmod 300 blind
		mkdir -p /etc/some/dir; chmod 000 /etc/some/dir
		name=$(printf %0200d 1)
		for i in $(seq 300); do mkdir $name; cd $name; done
		touch bottom`)
	if asRoot() {
		b.run(t, "set -e; mkdir other; chown 1000:1000 other; chmod 700 other; setpriv --reuid 1000 --regid 1000 --clear-groups mkdir -m 0 other/own")
	}
	if err := b.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(outside); err != nil || string(data) != "stays" {
		t.Errorf("%q, %v", data, err)
	}
}

// inOwnMounts is in a mount namespace of its own, where it can mount what it
// likes below the folders that sandboxes see. It runs the program's tests of
// that kind.
func inOwnMounts(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("none", "/opt", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	t := &reporter{}
	t.secretsThatAppear(filepath.Join(dir, "1"))
	t.mountsBelow(filepath.Join(dir, "2"))
	t.mountInTheWay(filepath.Join(dir, "3"))
	t.volumeWithMount(dir)
	return errors.Join(t.errs...)
}

type reporter struct{ errs []error }

func (t *reporter) errorf(format string, args ...any) {
	t.errs = append(t.errs, fmt.Errorf(format, args...))
}

func (t *reporter) must(err error) {
	if err != nil {
		panic(err)
	}
}

// within runs use with a sandbox in dir.
func (t *reporter) within(dir string, use func(output func(command string) string), mounts ...runtime.Mount) {
	t.must(os.Mkdir(dir, 0o755))
	ctx := context.Background()
	in, err := (&Runtime{}).Create(ctx, runtime.Spec{ID: "m", Hostname: "m", Dir: dir, Mounts: mounts})
	t.must(err)
	b := &box{Instance: in}
	use(func(command string) string {
		r, err := b.execute(ctx, command)
		if err != nil {
			t.errorf("%s: %w", command, err)
		}
		return r.Stdout + r.Stderr
	})
	if err := in.Remove(ctx); err != nil {
		t.errorf("remove: %w", err)
	}
}

// secretsThatAppear writes files on the host while a sandbox lives.
func (t *reporter) secretsThatAppear(dir string) {
	t.must(os.WriteFile("/opt/becomes", []byte("public\n"), 0o644))
	t.within(dir, func(output func(string) string) {
		t.must(os.WriteFile("/opt/secret", []byte("hush\n"), 0o600))
		t.must(os.Mkdir("/opt/closed", 0o700))
		t.must(os.WriteFile("/opt/closed/file", []byte("hush\n"), 0o644))
		t.must(os.WriteFile("/opt/public", []byte("public\n"), 0o644))
		t.must(os.Chmod("/opt/becomes", 0o600))
		if got := output("cat /opt/public"); got != "public\n" {
			t.errorf("a new public file gives %q", got)
		}
		if !asRoot() {
			return // the sandbox's root is the files' owner
		}
		for _, command := range []string{"cat /opt/secret", "ls /opt/closed", "cat /opt/closed/file", "cat /opt/becomes",
			"chmod 644 /opt/secret && cat /opt/secret", "cp /opt/secret /tmp", "mv /opt/secret /opt/moved && cat /opt/moved", "ln /opt/becomes /opt/linked && cat /opt/linked"} {
			if got := output(command); !strings.Contains(got, "ermission denied") {
				t.errorf("%s gives %q", command, got)
			}
		}
	})
}

// mountsBelow has mounts below a system folder.
func (t *reporter) mountsBelow(dir string) {
	t.must(os.MkdirAll("/opt/a/b/mounted", 0o755))
	t.must(os.MkdirAll("/opt/a/plain/inner", 0o755))
	t.must(os.MkdirAll("/opt/private/mounted", 0o755))
	t.must(os.WriteFile("/opt/a/plain/inner/file", []byte("inner\n"), 0o644))
	t.must(os.WriteFile("/opt/a/file", []byte("file\n"), 0o644))
	t.must(os.WriteFile("/opt/a/bound", nil, 0o644))
	t.must(os.Symlink("plain", "/opt/a/link"))
	t.must(unix.Mount("/opt/a/file", "/opt/a/bound", "", unix.MS_BIND, ""))
	for _, mount := range []string{"/opt/a/b/mounted", "/opt/private/mounted"} {
		t.must(unix.Mount("none", mount, "tmpfs", 0, "mode=755"))
		t.must(os.WriteFile(mount+"/file", []byte("mounted\n"), 0o644))
	}
	t.must(os.Chmod("/opt/private", 0o700))
	t.must(unix.Mount("/etc/passwd", "/etc/hosts", "", unix.MS_BIND, "")) // as containers have it
	t.within(dir, func(output func(string) string) {
		for _, test := range []struct{ command, want string }{
			{"cat /opt/a/b/mounted/file /opt/a/file /opt/a/bound /opt/a/link/inner/file", "mounted\nfile\nfile\ninner\n"},
			{"echo new > /opt/a/b/mounted/new && cat /opt/a/b/mounted/new", "new\n"},
			{"echo new > /opt/a/new && ls /opt/a", "b\nbound\nfile\nlink\nnew\nplain\n"},
			{"cat /etc/hosts", "127.0.0.1 localhost m\n::1 localhost ip6-localhost ip6-loopback\n"},
			{"grep -c ^root: /etc/passwd; ls -d /etc/ssl", "1\n/etc/ssl\n"},
			{"test -e /opt/private || echo none", "none\n"},
			{"cat /etc/shadow 2>/dev/null || echo closed", "closed\n"},
		} {
			if got := output(test.command); got != test.want {
				t.errorf("%s: got %q, want %q", test.command, got, test.want)
			}
		}
	})
	for _, path := range []string{"/opt/a/b/mounted/new", "/opt/a/new"} {
		if _, err := os.Lstat(path); err == nil {
			t.errorf("%s has reached the host", path)
		}
	}
}

// volumeWithMount mounts a folder in which something is mounted.
func (t *reporter) volumeWithMount(dir string) {
	volume := dir + "/volume"
	t.must(os.MkdirAll(volume+"/mounted", 0o777))
	t.must(os.WriteFile(volume+"/beside", nil, 0o644))
	t.must(unix.Mount("/opt/a/plain", volume+"/mounted", "", unix.MS_BIND, ""))
	t.within(dir+"/4", func(output func(string) string) {
		if got := output("ls -A /data /data/mounted"); got != "/data:\nbeside\nmounted\n\n/data/mounted:\n" {
			t.errorf("the sandbox sees %q", got)
		}
	}, runtime.Mount{Source: volume, Target: "/data", ReadOnly: true})
	t.must(unix.Unmount(volume+"/mounted", 0))
}

// mountInTheWay removes a folder in which something is mounted.
func (t *reporter) mountInTheWay(dir string) {
	t.must(os.MkdirAll(dir+"/sub/mounted", 0o755))
	t.must(os.WriteFile(dir+"/sub/file", nil, 0o644))
	t.must(unix.Mount("/opt/a/plain", dir+"/sub/mounted", "", unix.MS_BIND, ""))
	ctx := context.Background()
	if err := tree.Remove(ctx, dir); err == nil || !strings.Contains(err.Error(), "sub/mounted is a mount point") {
		t.errorf("got %v", err)
	}
	if _, err := os.Stat("/opt/a/plain/inner/file"); err != nil {
		t.errorf("it has deleted what is mounted: %w", err)
	}
	if _, err := os.Stat(dir + "/sub/file"); err == nil {
		t.errorf("it has not deleted what lies beside")
	}
	t.must(unix.Unmount(dir+"/sub/mounted", 0))
	if err := tree.Remove(ctx, dir); err != nil {
		t.errorf("removing it after unmounting: %w", err)
	}
}

func TestInOwnMounts(t *testing.T) {
	if _, err := os.Stat("/opt"); err != nil {
		t.Fatalf("this test mounts something at /opt: %v", err)
	}
	if _, err := helper(t, "mounts", t.TempDir(), ownNamespaces(unix.CLONE_NEWNS)); err != nil {
		t.Error(err)
	}
}

// ownNamespaces gives a helper more namespaces, and a user namespace with it
// where an ordinary user needs one.
func ownNamespaces(flags uintptr) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Cloneflags: flags}
	if os.Geteuid() != 0 || flags&unix.CLONE_NEWUSER != 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	return attr
}

// withoutUserNamespaces makes a sandbox where that is not allowed.
func withoutUserNamespaces(dir string) error {
	if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0); err != nil {
		return err
	}
	_, err := (&Runtime{}).Create(context.Background(), runtime.Spec{ID: "u", Hostname: "u", Dir: dir})
	fmt.Println(err)
	if lacks, ok := errors.AsType[*runtime.Unsupported](err); !ok {
		return fmt.Errorf("no *runtime.Unsupported: %v", err)
	} else if !errors.Is(lacks, unix.ENOSPC) {
		return fmt.Errorf("the kernel said %v", lacks.Err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the folder is left: %v", err)
	}
	return nil
}

func diagnoseWithoutUsers(dir string) error {
	if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0); err != nil {
		return err
	}
	for _, f := range failed(Diagnose(context.Background(), dir)) {
		fmt.Printf("%s: %s\n", f.Name, f.Mend)
	}
	return nil
}

func TestUserNamespacesOff(t *testing.T) {
	out, err := helper(t, "no users", newSpec(t).Dir, ownNamespaces(unix.CLONE_NEWUSER))
	if err != nil {
		t.Error(err)
	}
	for _, want := range []string{"switched off", "user.max_user_namespaces", "--runtime process", "--endpoint URL"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q does not mention %q", out, want)
		}
	}
}
