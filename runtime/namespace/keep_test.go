//go:build linux

package namespace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/runtime"
)

// This file defines tests of what a sandbox keeps: over a stop, in a snapshot, and
// in folders that it shares.

func (b *box) must(t testing.TB, do func(context.Context) error) {
	t.Helper()
	if err := do(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// snapshot takes a snapshot, which the test owns.
func (b *box) snapshot(t testing.TB) string {
	t.Helper()
	dst := filepath.Join(t.TempDir(), "snapshot")
	if err := b.Snapshot(t.Context(), dst); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeTree(t, dst) }) // an ordinary user needs more than os.RemoveAll for that
	return dst
}

// kill ends the first process from outside, as a crash does.
func (b *box) kill(t testing.TB) {
	t.Helper()
	p, err := runtime.ReadProc(b.spec.Dir)
	if err == nil {
		err = p.Signal(unix.SIGKILL)
	}
	if err == nil {
		err = p.Wait(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestStopAndStart(t *testing.T) {
	before := leftovers(t)
	b := newBox(t)
	b.run(t, `set -e
		sleep 1000 >/dev/null 2>&1 &
		mkdir -p work/deep; echo kept > work/deep/file; chmod 000 work/deep/file; ln -s work link
		echo 'added to hosts' >> /etc/hosts
		echo new > /etc/new; mkdir /opt/app; echo app > /opt/app/file
		rm -r /srv; rmdir /media; echo file > /media
		echo memory > /tmp/file; echo memory > /run/file`)
	if b.ownsSystem() {
		b.run(t, "set -e; rm /etc/passwd; mkdir -p /usr/share/doc; rm -r /usr/share/doc; mkdir /usr/share/doc; echo only > /usr/share/doc/one; chown 7:8 work/deep/file")
	}
	check := func() {
		t.Helper()
		for _, test := range []struct{ command, want string }{
			{"cat work/deep/file link/deep/file; stat -c %a work/deep/file", "kept\nkept\n0"},
			{"tail -1 /etc/hosts; cat /etc/new /opt/app/file; hostname; cat /etc/hostname", "added to hosts\nnew\napp\nbox-1\nbox-1"},
			{"ls -d /srv 2>/dev/null || cat /media", "file"},
			{"ls /tmp /run", "/run:\nlock\n\n/tmp:"},
			{"for p in /proc/[0-9]*; do read -r name <$p/comm && echo $name; done", "sbx-star-init\nbash"},
		} {
			if got := b.run(t, test.command); got != test.want {
				t.Errorf("%s\n got: %q\nwant: %q", test.command, got, test.want)
			}
		}
		if b.ownsSystem() {
			if got := b.run(t, "test -e /etc/passwd || ls /usr/share/doc; stat -c %u:%g work/deep/file"); got != "one\n7:8" {
				t.Errorf("got %q", got)
			}
		}
	}
	for range 2 { // the second time there is nothing to do
		b.must(t, b.Stop)
	}
	if _, err := b.Dial(t.Context()); !errors.Is(err, runtime.ErrGone) {
		t.Errorf("Dial of a stopped one: %v", err)
	}
	if after := leftovers(t); after != before {
		t.Errorf("Stop has left something; before:\n%s\nafter:\n%s", before, after)
	}
	for range 2 {
		b.must(t, b.Start)
	}
	check()
	b.run(t, "touch /tmp/file")
	b.must(t, b.Start) // harmless
	b.run(t, "cat /tmp/file")

	// After a crash, and by another process's instance.
	b.run(t, "sleep 1000 >/dev/null 2>&1 &")
	b.kill(t)
	in, err := (&Runtime{}).Adopt(t.Context(), b.spec)
	if !errors.Is(err, runtime.ErrGone) {
		t.Errorf("Adopt of a killed one: %v", err)
	}
	if err := in.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	check()
	b.must(t, b.Stop)
	if _, err := (&Runtime{}).Adopt(t.Context(), b.spec); !errors.Is(err, runtime.ErrGone) {
		t.Errorf("Adopt of a stopped one: %v", err)
	}
	b.must(t, b.Start)
	check()
	b.must(t, b.Remove)
	if err := b.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "was removed") {
		t.Errorf("Start of a removed one: %v", err)
	}
	b.must(t, b.Stop)
}

// TestStartsAndStopsTogether calls everything at once; at the end there is one
// sandbox, or none.
func TestStartsAndStopsTogether(t *testing.T) {
	b := newBox(t)
	b.run(t, "echo kept > file")
	var all sync.WaitGroup
	for i := range 12 {
		all.Go(func() {
			do := b.Start
			if i%3 == 0 {
				do = b.Stop
			}
			if err := do(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	b.must(t, b.Start)
	if got := b.run(t, "cat file"); got != "kept" {
		t.Errorf("got %q", got)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	b.must(t, b.Stop)
	if err := b.Start(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	b.must(t, b.Start) // nothing is lost by that
	if got := b.run(t, "cat file"); got != "kept" {
		t.Errorf("got %q", got)
	}
}

// TestLinksLeftBehind has a sandbox put links to the host's folders where the next
// start makes or mounts something.
func TestLinksLeftBehind(t *testing.T) {
	b := newBox(t)
	outside := t.TempDir()
	if err := os.Chmod(outside, 0o777); err != nil {
		t.Fatal(err)
	}
	b.run(t, "set -e; cd /; for d in var srv home; do rm -rf $d; ln -s "+outside+" $d; done; ln -s /proc/self/root/etc x")
	b.must(t, b.Stop)
	b.must(t, b.Start)
	b.must(t, b.Stop)
	for target, want := range map[string]string{
		"/srv":       "/srv is, or lies below, a link",
		"/srv/below": "/srv/below is, or lies below, a link",
		"/x/y":       "/x/y is, or lies below, a link",
	} {
		spec := b.spec
		spec.Mounts = []runtime.Mount{{Source: t.TempDir(), Target: target}}
		in, _ := (&Runtime{}).Adopt(t.Context(), spec)
		if err := in.Start(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("this was made outside: %v, %v", entries, err)
	}
	b.must(t, b.Start) // a failed one leaves the files as they are
}

// TestHostHasChanged starts a sandbox where a folder that it has changed is not a
// layer any more.
func TestHostHasChanged(t *testing.T) {
	b := newBox(t)
	b.must(t, b.Stop)
	up := filepath.Join(b.spec.Dir, boxName, "up", "opt%2Fgone")
	if err := os.Mkdir(up, 0o755); err != nil {
		t.Fatal(err)
	}
	b.must(t, b.Start) // nothing is missing
	b.must(t, b.Stop)
	if err := os.WriteFile(filepath.Join(up, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "has changed files in /opt/gone, ") {
		t.Errorf("got %v", err)
	}
}

func TestSnapshot(t *testing.T) {
	before := leftovers(t)
	r := &Runtime{}
	b := create(t, r, newSpec(t))
	b.run(t, `set -e
		mkdir -p a/b; echo text > a/b/file; ln a/b/file hard; ln -s /etc/passwd link; mkfifo fifo
		echo closed > closed; chmod 000 closed; chmod 1750 a; touch -d @1000000000.5 a/b
		truncate -s 1T sparse
		cp /bin/sh setuid; chmod 4755 setuid
		echo memory > /tmp/memory
		echo etc > /etc/own; mkdir /usr/own; echo usr > /usr/own/file
		(while :; do sleep 0.001; done) >/dev/null 2>&1 &`)
	if b.ownsSystem() {
		b.run(t, `set -e
			rm /etc/group; echo '# mine' >> /etc/passwd; mkdir -p /usr/share/doc; rm -r /usr/share/doc; mkdir /usr/share/doc; echo one > /usr/share/doc/one
			chown 1000:1001 a/b; echo x > owned; chown 5:6 owned; chmod 4711 owned`)
	}
	snapshot := b.snapshot(t)
	b.run(t, "echo later > a/b/file; echo later > later")
	var boxes []*box
	for i := range 2 {
		spec := newSpec(t)
		spec.Hostname, spec.Snapshot = fmt.Sprintf("copy-%d", i), snapshot
		boxes = append(boxes, create(t, r, spec))
	}
	removeTree(t, snapshot) // which they need no more
	for i, c := range boxes {
		for _, test := range []struct{ command, want string }{
			{"cat a/b/file hard; stat -c %h hard; readlink link; stat -c %F:%a fifo", "text\ntext\n2\n/etc/passwd\nfifo:644"},
			{"cat closed; stat -c %a closed a setuid; stat -c %Y a/b", "closed\n0\n1750\n4755\n1000000000"},
			{"stat -c %s sparse; test $(stat -c %b sparse) -lt 100; ls /tmp later 2>/dev/null", "1099511627776\n/tmp:"},
			{"cat /etc/own /usr/own/file; ls -d /usr/bin; grep -c ^root: /etc/passwd", "etc\nusr\n/usr/bin\n1"},
			{"for p in /proc/[0-9]*; do read -r name <$p/comm && echo $name; done", "sbx-star-init\nbash"},
			{"hostname; cat /etc/hostname; grep -c copy /etc/hosts", fmt.Sprintf("copy-%d\ncopy-%[1]d\n1", i)},
			{fmt.Sprintf("echo %d > a/b/file; echo %[1]d > /etc/own; mkdir only%[1]d; ls -d only*", i), fmt.Sprintf("only%d", i)},
		} {
			if r := c.try(t, test.command); strings.TrimSuffix(r.Stdout, "\n") != test.want {
				t.Errorf("%s\n got: %q %q\nwant: %q", test.command, r.Stdout, r.Stderr, test.want)
			}
		}
		if b.ownsSystem() {
			if got := c.run(t, "test -e /etc/group || tail -1 /etc/passwd; ls /usr/share/doc; stat -c %u:%g:%a a/b owned"); got != "# mine\none\n1000:1001:755\n5:6:4711" {
				t.Errorf("got %q", got)
			}
		}
	}
	if got := boxes[0].run(t, "cat a/b/file /etc/own"); got != "0\n0" {
		t.Errorf("one sandbox has another's files: %q", got)
	}
	if got := b.run(t, "cat a/b/file; ls -d only* 2>/dev/null || echo none"); got != "later\nnone" {
		t.Errorf("the first sandbox has another's files: %q", got)
	}
	// Of a stopped one, that started with a snapshot.
	boxes[1].must(t, boxes[1].Stop)
	spec := newSpec(t)
	spec.Snapshot = boxes[1].snapshot(t)
	again := create(t, r, spec)
	if got := again.run(t, "cat a/b/file /etc/own; hostname; cat /etc/hostname"); got != "1\n1\nbox-1\nbox-1" {
		t.Errorf("got %q", got)
	}
	for _, b := range append(boxes, b, again) {
		b.must(t, b.Remove)
	}
	if after := leftovers(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestSnapshotWhileWriting takes snapshots while files come, grow and go, and
// starts with the last one.
func TestSnapshotWhileWriting(t *testing.T) {
	b := newBox(t)
	b.run(t, `(n=0; while :; do
		n=$((n+1)); d=d$((n%20)); mkdir -p $d/e; echo $n > $d/e/$n; cat $d/e/* > $d/all; mv $d/all /etc/all; ln $d/e/$n $d/l$n; mkfifo $d/p
		test $((n%7)) = 0 && rm -rf d$((n/7%20)); test -e ready || { echo done > r; mv r ready; }
	done) >/dev/null 2>&1 &
	while ! test -e ready; do sleep 0.01; done`)
	var last string
	for range 5 {
		last = b.snapshot(t)
	}
	spec := newSpec(t)
	spec.Snapshot = last
	c := create(t, b.r, spec)
	if got := c.run(t, "cat ready; find . -type d -name e | xargs cat >/dev/null 2>&1; touch d0; echo $?"); got != "done\n0" {
		t.Errorf("got %q", got)
	}
	b.run(t, "test -e ready") // it has run on
}

func TestSnapshotFails(t *testing.T) {
	b := newBox(t)
	b.run(t, "seq 1000 | xargs touch")
	missing := func(dst string) {
		t.Helper()
		if _, err := os.Lstat(dst); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", dst, err)
		}
	}
	dst := filepath.Join(t.TempDir(), "snapshot")
	cancelled, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("changed my mind")
	cancel(cause)
	if err := b.Snapshot(cancelled, dst); !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
	missing(dst)
	if err := b.Snapshot(t.Context(), t.TempDir()); !errors.Is(err, fs.ErrExist) {
		t.Errorf("to a folder that exists: %v", err)
	}
	if asRoot() {
		device := filepath.Join(b.spec.Dir, boxName, "root/device")
		if err := unix.Mknod(device, unix.S_IFCHR, int(unix.Mkdev(1, 3))); err != nil {
			t.Fatal(err)
		}
		if err := b.Snapshot(t.Context(), dst); err == nil || !strings.Contains(err.Error(), "root/device: it is a device") {
			t.Errorf("got %v", err)
		}
		missing(dst)
		if err := os.Remove(device); err != nil {
			t.Fatal(err)
		}
	}
	good := b.snapshot(t)
	spec := newSpec(t)
	for _, test := range []struct {
		change func(*runtime.Origin)
		want   string
	}{
		{func(o *runtime.Origin) { o.Runtime = "process" }, "a sandbox of the process runtime"},
		{func(o *runtime.Origin) { o.UID++ }, "the files of the snapshot belong to "},
		{func(o *runtime.Origin) { o.IDs += 7 }, "the files of the snapshot belong to the users from "},
	} {
		o := origin("x")
		test.change(&o)
		if err := runtime.WriteOrigin(good, o); err != nil {
			t.Fatal(err)
		}
		spec.Snapshot = good
		if _, err := b.r.Create(t.Context(), spec); err == nil || !isUnsupported(err) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("got %v, want %q", err, test.want)
		}
	}
	spec.Snapshot = t.TempDir()
	if _, err := b.r.Create(t.Context(), spec); err == nil || !strings.Contains(err.Error(), "is no whole snapshot") {
		t.Errorf("got %v", err)
	}
	b.must(t, b.Remove)
	if err := b.Snapshot(t.Context(), dst); err == nil {
		t.Error("there is a snapshot of a removed sandbox")
	}
	missing(dst)
}

// TestSnapshotOfRemoved removes sandboxes while snapshots of them are taken: there
// is a whole one, or none.
func TestSnapshotOfRemoved(t *testing.T) {
	for range 5 {
		b := newBox(t)
		b.run(t, "seq 300 | xargs touch")
		dst := filepath.Join(t.TempDir(), "snapshot")
		taken := make(chan error, 1)
		go func() { taken <- b.Snapshot(t.Context(), dst) }()
		b.must(t, b.Remove)
		if err := <-taken; err == nil {
			if names, err := os.ReadDir(filepath.Join(dst, filesName, "root/home/user")); err != nil || len(names) != 300 {
				t.Errorf("a snapshot has %d files (%v)", len(names), err)
			}
			removeTree(t, dst)
		} else if _, err := os.Lstat(dst); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("half of a snapshot is left: %v", err)
		}
	}
}

func TestMounts(t *testing.T) {
	before := leftovers(t)
	r := &Runtime{}
	base := t.TempDir()
	if err := os.Chmod(base, 0o700); err != nil { // closed to the sandboxes' ids
		t.Fatal(err)
	}
	volume, other := filepath.Join(base, "volume"), filepath.Join(base, "other")
	for _, dir := range []string{volume, other} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	specs := []runtime.Spec{newSpec(t), newSpec(t), newSpec(t)}
	specs[0].Mounts = []runtime.Mount{{Source: volume, Target: "/data/in/deep"}, {Source: other, Target: "/data"}, {Source: other, Target: "/tmp/other", ReadOnly: true}}
	specs[1].Mounts = []runtime.Mount{{Source: volume, Target: "/home/user"}}
	specs[2].Mounts = []runtime.Mount{{Source: volume, Target: "/etc/volume", ReadOnly: true}}
	var boxes []*box
	for _, spec := range specs {
		boxes = append(boxes, create(t, r, spec))
	}
	a, b, c := boxes[0], boxes[1], boxes[2]
	if got := a.run(t, "cd /data/in/deep; stat -c %u:%g .; echo from a > a; mkdir sub; chmod 600 a; stat -c %u:%g:%a a"); got != "0:0\n0:0:600" {
		t.Errorf("got %q", got)
	}
	if got := b.run(t, "stat -c %u:%g:%a ~/a; cat a; echo from b >> a; touch sub/b"); got != "0:0:600\nfrom a" {
		t.Errorf("got %q", got)
	}
	if got := a.run(t, "cat /data/in/deep/a; ls /data/in/deep/sub; ls /data /tmp/other"); got != "from a\nfrom b\nb\n/data:\nin\n\n/tmp/other:\nin" {
		t.Errorf("got %q", got)
	}
	if asRoot() {
		b.run(t, "chown 1234:5 sub")
		if got := a.run(t, "stat -c %u:%g /data/in/deep/sub"); got != "1234:5" {
			t.Errorf("got %q", got)
		}
	}
	if got := c.try(t, "cd /etc/volume; cat a; echo x > x").Stderr; !strings.Contains(got, "Read-only file system") {
		t.Errorf("writing to a read-only mount: %q", got)
	}
	if r := c.try(t, "cd /etc/volume; rm a; touch sub/c; chmod 777 .; touch ."); r.ExitCode == 0 {
		t.Errorf("a read-only mount changes: %+v", r)
	}
	for path, b := range map[string]*box{"/data": a, "/data/in/deep": a, "/home/user": b, "/etc/volume": c} {
		if got := b.run(t, "grep ' "+path+" ' /proc/self/mountinfo | cut -d' ' -f6"); !strings.Contains(got, "nosuid,nodev") {
			t.Errorf("%s is mounted with %q", path, got)
		}
	}
	// What is mounted is no part of a snapshot, and outlives a sandbox.
	spec := newSpec(t)
	spec.Snapshot = a.snapshot(t)
	d := create(t, r, spec)
	if got := d.run(t, "find /data"); got != "/data" {
		t.Errorf("a snapshot has what was mounted: %q", got)
	}
	b.kill(t)
	b.must(t, b.Start)
	if got := b.run(t, "cat a"); got != "from a\nfrom b" {
		t.Errorf("got %q", got)
	}
	for _, b := range []*box{a, b, c, d} {
		b.must(t, b.Remove)
	}
	if data, err := os.ReadFile(filepath.Join(volume, "a")); err != nil || string(data) != "from a\nfrom b\n" {
		t.Errorf("the volume has %q, %v", data, err)
	}
	if after := leftovers(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestMountsRefused(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	cases := []struct{ source, target, want string }{
		{dir, "/", "can't mount anything at /"},
		{dir, "/proc", "can't mount anything at /proc"},
		{dir, "/proc/self", "can't mount anything at /proc/self"},
		{dir, "/dev/shm", "can't mount anything at /dev/shm"},
		{dir, "/sys", "can't mount anything at /sys"},
		{dir, "data", "absolute paths"},
		{dir, "/data/../proc", "absolute paths"},
		{dir, "/data/", "absolute paths"},
		{"volume", "/data", "absolute paths"},
		{dir, "/var/run/data", "/var/run/data is, or lies below, a link"},
		{dir, "/etc/passwd", "/etc/passwd is, or lies below, a link or a file"},
		{dir + "/none", "/data", "no such file"},
		{link, "/data", "can't mount " + link},
		{file, "/data", "not a directory"},
	}
	if asRoot() {
		cases = append(cases, struct{ source, target, want string }{foreign, "/data", "they belong to user 0"})
	} else {
		cases = append(cases, []struct{ source, target, want string }{
			{"/", "/data", "something is mounted below"},
			{dir, "/usr/bin/data", "/usr/bin/data can't be made in the sandbox"},
		}...)
	}
	for _, test := range cases {
		spec := newSpec(t)
		spec.Mounts = []runtime.Mount{{Source: test.source, Target: test.target}}
		if in, err := (&Runtime{}).Create(t.Context(), spec); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s at %s: got %v, want %q", test.source, test.target, err, test.want)
			if err == nil {
				in.Remove(t.Context())
			}
		}
		if left, _ := os.ReadDir(spec.Dir); len(left) > 0 {
			t.Errorf("%s at %s: this is left: %v", test.source, test.target, left)
		}
	}
	spec := newSpec(t)
	spec.Mounts = []runtime.Mount{{Source: dir, Target: "/a"}, {Source: dir, Target: "/a"}}
	if _, err := (&Runtime{}).Create(t.Context(), spec); err == nil || !strings.Contains(err.Error(), "two folders at /a") {
		t.Errorf("got %v", err)
	}
}
