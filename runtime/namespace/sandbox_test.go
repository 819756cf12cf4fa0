//go:build linux

package namespace

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/runtime"
)

// This file defines tests of what a sandbox sees and may do.

func TestOwnView(t *testing.T) {
	spec := newSpec(t)
	spec.Env = map[string]string{"COLOR": "blue", "LANG": "C"}
	b := create(t, &Runtime{}, spec)
	for _, test := range []struct{ command, want string }{
		{"for p in /proc/[0-9]*; do read -r name <$p/comm && echo $name; done", "sbx-star-init\nbash"},
		{"cat /proc/1/cmdline | tr '\\0' ' '", "sbx-star-init daemon "},
		{"hostname; cat /proc/sys/kernel/domainname /etc/hostname", "box-1\n(none)\nbox-1"},
		{"id -u; id -g; umask; ulimit -c; pwd; echo ~ $HOME", "0\n0\n0022\n0\n/home/user\n/home/user /home/user"},
		{"ls -A /root /home /home/user /srv /mnt /media", "/home:\nuser\n\n/home/user:\n\n/media:\n\n/mnt:\n\n/root:\n\n/srv:"},
		{"find /tmp /var/tmp /run /dev/shm -mindepth 1", "/run/lock"},
		{"env -u PATH -u SHLVL -u _ -u PWD -u OLDPWD | sort", "COLOR=blue\nHOME=/home/user\nLANG=C\nLOGNAME=root\nUSER=root"},
		{"grep -E ' /(tmp|run|dev/shm) ' /proc/mounts | cut -d' ' -f2,4 | sed 's/relatime,//; s/,nr.*//'",
			"/tmp rw,nosuid,nodev,size=1048576k\n/run rw,nosuid,nodev,size=65536k\n/dev/shm rw,nosuid,nodev,noexec,size=262144k"},
		{"cut -d: -f3 /proc/self/cgroup | sed 's,^/run$,/,' | sort -u", "/"},
		{"ls -A / | grep -vE '^(usr|bin|sbin|lib|lib32|lib64|libx32|etc|opt|nix)$' | tr '\\n' ' '",
			"dev home media mnt proc root run srv tmp var "},
		{"touch /new /home/user/new /root/new /var/lib/new /srv/new && ls /new", "/new"},
		{"getent hosts box-1 && getent ahosts localhost | head -1 | cut -d' ' -f1", "127.0.0.1       localhost box-1\n::1"},
	} {
		if got := b.run(t, test.command); got != test.want {
			t.Errorf("%s\n got: %q\nwant: %q", test.command, got, test.want)
		}
	}
	for _, path := range []string{spec.Dir, t.TempDir(), "/sys", "/boot", "/proc/1/root/" + spec.Dir} {
		if r := b.try(t, "ls -d "+path); r.ExitCode == 0 {
			t.Errorf("%s can be seen", path)
		}
	}
	if got := b.run(t, "cat /proc/mounts"); strings.Contains(got, spec.Dir) {
		t.Errorf("the mounts tell where the sandbox is kept:\n%s", got)
	}
}

func TestWritesStayInside(t *testing.T) {
	b := newBox(t)
	name := filepath.Base(filepath.Dir(b.spec.Dir)) + "-" + fmt.Sprint(os.Getpid())
	before, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/etc/", "/usr/", "/opt/", "/"} {
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		if got := b.run(t, "echo inside > "+dir+name+" && cat "+dir+name); got != "inside" {
			t.Errorf("%s: got %q", dir, got)
		}
		if _, err := os.Lstat(dir + name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s has reached the host: %v", dir+name, err)
		}
	}
	if b.ownsSystem() {
		b.run(t, `set -e
			test "$(stat -c %u:%g /usr/bin/env /etc/passwd)" = "$(printf '0:0\n0:0')"
			echo 'bob:x:1234:1234::/home/bob:/bin/sh' >> /etc/passwd
			chown 1234:1234 /usr/bin/env
			mv /usr/bin/env /usr/bin/env2
			rm /etc/group
			mkdir /home/bob
			chown bob /home/bob
			echo new > /usr/bin/new`)
		for _, path := range []string{"/etc/group", "/usr/bin/env"} {
			if _, err := os.Stat(path); err != nil {
				t.Error(err)
			}
		}
	}
	if after, err := os.ReadFile("/etc/passwd"); err != nil || string(after) != string(before) {
		t.Errorf("the host's /etc/passwd has changed (%v)", err)
	}
}

// TestUserCanBeAdded checks that account tools work though the shadow file is
// out of reach.
func TestUserCanBeAdded(t *testing.T) {
	b := newBox(t)
	if !b.ownsSystem() {
		return
	}
	if r := b.try(t, "command -v useradd"); r.ExitCode != 0 {
		t.Log("this machine has no useradd")
		return
	}
	if got := b.run(t, "useradd -m bob && setpriv --reuid bob --regid bob --clear-groups id -un"); got != "bob" {
		t.Errorf("got %q", got)
	}
}

// closedFiles returns files of the host that not everybody may read: which this
// process cannot, or as root those whose mode says so.
func closedFiles(t *testing.T, roots ...string) []string {
	t.Helper()
	var closed []string
	for _, root := range roots {
		filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil
			}
			info, err := d.Info()
			if err != nil {
				return nil
			}
			if d.IsDir() && info.Mode()&0o001 == 0 && os.Geteuid() == 0 {
				filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
					closed = append(closed, path)
					return nil
				})
				return fs.SkipDir
			}
			if d.Type().IsRegular() && info.Mode()&0o004 == 0 && (os.Geteuid() == 0 || unix.Access(path, unix.R_OK) != nil) {
				closed = append(closed, path)
			}
			return nil
		})
	}
	return closed
}

func TestSecretsStayClosed(t *testing.T) {
	closed := closedFiles(t, "/etc", "/opt")
	if !slices.Contains(closed, "/etc/shadow") {
		t.Fatalf("this machine has no closed /etc/shadow to test with: %q", closed)
	}
	for _, noIdmap := range []bool{false, true} {
		r := &Runtime{noIdmap: noIdmap}
		b := create(t, r, newSpec(t))
		var script strings.Builder
		script.WriteString("try() { if [ -d \"$1\" ]; then ls -A \"$1\"; else cat \"$1\"; fi >/dev/null 2>&1 && echo \"$1\"; true; }\n")
		script.WriteString("try /etc/passwd\n")
		for _, path := range closed {
			fmt.Fprintf(&script, "try '%s'\n", path)
		}
		if got := b.run(t, script.String()); got != "/etc/passwd" {
			t.Errorf("noIdmap %v: these can be read:\n%s", noIdmap, got)
		}
		if says := r.Info().Isolation; strings.Contains(says, "nobody") != (asRoot() && !b.ownsSystem()) || noIdmap && b.ownsSystem() {
			t.Errorf("noIdmap %v: Info says %q", noIdmap, says)
		}
	}
}

func TestNetworkIsOwn(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	abstract := fmt.Sprintf("sbx-star-test-%d", os.Getpid())
	socket, err := net.Listen("unix", "@"+abstract)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	b := newBox(t)
	port := tcp.Addr().(*net.TCPAddr).Port
	// The loopback interface is up, or the network would be unreachable.
	r := b.try(t, fmt.Sprintf("exec 3<>/dev/tcp/127.0.0.1/%d", port))
	if r.ExitCode == 0 || !strings.Contains(r.Stderr, "Connection refused") {
		t.Errorf("connecting to the host: %+v", r)
	}
	if r := b.try(t, "exec 3<>/dev/tcp/192.0.2.1/80"); r.ExitCode == 0 || !strings.Contains(r.Stderr, "unreachable") {
		t.Errorf("connecting to the world: %+v", r)
	}
	if got := b.run(t, "grep -c : /proc/net/dev; grep -c "+abstract+" /proc/net/unix || true"); got != "1\n0" {
		t.Errorf("interfaces, host's sockets: %q", got)
	}
	if info := (&Runtime{}).Info(); info.Name != "namespace" || !info.Enforces.Network {
		t.Errorf("Info: %+v", info)
	}
}

func TestRights(t *testing.T) {
	var caps uint64
	for _, c := range keptCapabilities {
		caps |= 1 << c
	}
	want := fmt.Sprintf("CapInh: %016x\nCapPrm: %016x\nCapEff: %016x\nCapBnd: %016x\nCapAmb: %016x\nNoNewPrivs: 1\nSeccomp: 2", 0, caps, caps, caps, 0)
	b := newBox(t)
	b.run(t, "true") // the daemon has started what threads it needs
	const filter = "grep -E '^(Cap|NoNew|Seccomp:)' | tr -d '\\t' | sed 's/:/: /'"
	if got := b.run(t, "cat /proc/self/status | "+filter); got != want {
		t.Errorf("a command has\n%s\nwant\n%s", got, want)
	}
	threads := strings.Fields(b.run(t, "ls /proc/1/task"))
	if len(threads) < 2 {
		t.Errorf("the first process has threads %q", threads)
	}
	for _, thread := range threads {
		if got := b.run(t, "cat /proc/1/task/"+thread+"/status | "+filter); got != want {
			t.Errorf("thread %s of the first process has\n%s", thread, got)
		}
	}
}

func TestRefused(t *testing.T) {
	b := newBox(t)
	for _, command := range []string{
		"mount -t tmpfs none /mnt",
		"mount -o remount,rw /proc/sys",
		"mount --bind /usr /mnt",
		"umount /proc/sys",
		"umount -l /etc",
		"unshare --user true",
		"unshare --mount true",
		"unshare --net true",
		"nsenter --target 1 --mount true",
		"hostname other",
		"echo x > /proc/sys/kernel/core_pattern",
		"echo 1 > /proc/sys/net/ipv4/ip_forward",
		"echo 100 > /proc/sys/user/max_user_namespaces",
		"echo h > /proc/sysrq-trigger",
		"mknod /tmp/disk b 254 0",
		"mknod /home/user/mem c 1 1",
		"head -c1 /dev/kmsg",
		"cat /proc/1/environ",
		"cat /proc/1/maps",
		"cat /proc/1/stack",
		"ls /proc/1/root/",
		"ls /proc/1/cwd/",
		"cat /proc/1/exe",
		"echo > /proc/1/exe",
		"readlink /proc/1/fd/2",
		"cat /proc/1/fd/3",
		"readlink /proc/1/ns/mnt",
		"echo x > /proc/1/mem",
		"ls /proc/1/map_files/*",
		"echo -1000 > /proc/self/oom_score_adj",
	} {
		if r := b.try(t, command); r.ExitCode == 0 || r.ExitCode == 127 {
			t.Errorf("%s: %+v", command, r)
		}
	}
	// What is covered can be read, and is empty.
	if got := b.run(t, "cat /proc/kcore /proc/keys /proc/kallsyms /proc/timer_list 2>/dev/null | wc -c"); got != "0" {
		t.Errorf("covered files of /proc give %s bytes", got)
	}
	// A signal without a handler does not reach the first process from inside.
	b.run(t, "kill -KILL 1; kill -STOP 1")
	b.run(t, "true")
}

func TestDev(t *testing.T) {
	b := newBox(t)
	if got, want := b.run(t, "ls /dev | tr '\\n' ' '"), "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero "; got != want {
		t.Errorf("/dev has %q, want %q", got, want)
	}
	if got := b.run(t, `find / /dev/pts -xdev -type b; for f in /dev/*; do test -c $f && stat -L -c %F:%t:%T $f; done | sort -u | tr '\n' ' '`); got != "character special file:1:3 "+
		"character special file:1:5 character special file:1:7 character special file:1:8 character special file:1:9 character special file:5:0 character special file:5:2 " {
		t.Errorf("device nodes: %q", got)
	}
	b.run(t, `set -e
		head -c 16 /dev/urandom | wc -c
		echo x > /dev/null
		test "$(head -c 2 /dev/zero | od -An -tx1)" = " 00 00"
		echo ok > /dev/stderr
		! echo x > /dev/full
		true < /dev/fd/0`)
}

// TestClosedProgram makes a sandbox with a program that only root may execute.
func TestClosedProgram(t *testing.T) {
	if !asRoot() {
		return // the sandbox's root is the program's owner
	}
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	closed := filepath.Join(t.TempDir(), "closed")
	if err := os.WriteFile(closed, program, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = helperOf(t, closed, "make", newSpec(t).Dir, nil)
	if err == nil || !strings.Contains(err.Error(), "chmod a+rx") {
		t.Errorf("got %v", err)
	}
}

// TestDescriptors checks that what happens to be open in the maker does not
// reach a sandbox.
func TestDescriptors(t *testing.T) {
	dir, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	const leak = 777
	if err := unix.Dup2(int(dir.Fd()), leak); err != nil { // not closed by an exec
		t.Fatal(err)
	}
	defer unix.Close(leak)
	b := newBox(t)
	if got := b.run(t, "ls /proc/1/fd | grep -c 777 || true; ls /proc/self/fd | tr '\\n' ' '"); got != "0\n0 1 2 3 " {
		t.Errorf("the first process has it, and a command has: %q", got)
	}
}

func TestRefusesToCreate(t *testing.T) {
	good := newSpec(t)
	b := create(t, &Runtime{}, good)
	link := filepath.Join(t.TempDir(), "state")
	if err := os.Symlink("/usr/share", link); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		change func(*runtime.Spec)
		want   string
	}{
		{func(s *runtime.Spec) { s.Image = "python:3" }, "this server keeps no images"},
		{func(s *runtime.Spec) { s.Hostname = "" }, "a host name is"},
		{func(s *runtime.Spec) { s.Hostname = "a b" }, "a host name is"},
		{func(s *runtime.Spec) { s.Dir = link }, "the state folder lies in /usr"},
		{func(s *runtime.Spec) {}, "holds a sandbox already"},
		{func(s *runtime.Spec) { s.Dir += "/none" }, "no such file"},
	} {
		spec := good
		test.change(&spec)
		if _, err := (&Runtime{}).Create(t.Context(), spec); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("got %v, want %q", err, test.want)
		}
	}
	b.run(t, "true") // which none of them has touched
}
