//go:build linux

package process_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/runtime/process"
)

const patience = 30 * time.Second

func TestMain(m *testing.M) {
	process.Child()
	os.Setenv("GORACE", "atexit_sleep_ms=0") // of the daemons, which end all the time
	if dir, ok := os.LookupEnv("CREATE_SANDBOX_IN"); ok {
		os.Unsetenv("CREATE_SANDBOX_IN")
		if _, err := process.New(process.Options{}).Create(context.Background(), runtime.Spec{ID: "x", Dir: dir}); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("created")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func remove(t *testing.T, inst runtime.Instance) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return inst.Remove(ctx)
}

func create(t *testing.T, spec runtime.Spec) runtime.Instance {
	t.Helper()
	inst, err := process.New(process.Options{}).Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, inst) })
	return inst
}

// run executes a command in a sandbox and returns its output.
func run(t *testing.T, inst runtime.Instance, command string) string {
	t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return inst.Dial(ctx) },
	}}
	body, _ := json.Marshal(map[string]any{"command": command})
	res, err := client.Post("http://box/execute", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var answer struct{ Stdout, Stderr string }
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || res.StatusCode != 200 {
		t.Fatalf("%s: %d, %v", command, res.StatusCode, err)
	}
	return answer.Stdout + answer.Stderr
}

func exists(pid int) bool { return syscall.Kill(pid, 0) == nil }

func wantMissing(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", path, err)
	}
}

func TestSandbox(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 200)) // longer than a socket's address
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	rt := process.New(process.Options{})
	if info := rt.Info(); info.Name != "process" || info.Isolation != "none" || info.Enforces.Memory || info.Enforces.Network {
		t.Errorf("Info is %+v", info)
	}
	spec := runtime.Spec{ID: "x", Dir: dir, Env: map[string]string{"A": "1"}}
	inst := create(t, spec)
	if got, want := run(t, inst, "pwd; echo $HOME $A"), dir+"/home\n"+dir+"/home 1\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := run(t, inst, "echo $PATH"), os.Getenv("PATH")+"\n"; got != want {
		t.Errorf("PATH is %q, want %q", got, want)
	}
	daemon, err := runtime.ReadProc(dir)
	if err != nil || !daemon.Alive() {
		t.Fatalf("the record is %v, %v", daemon, err)
	}
	// A session of its own: no terminal's Ctrl-C reaches it.
	if sid, err := unix.Getsid(daemon.PID); sid != daemon.PID {
		t.Errorf("the daemon %d is in session %d, %v", daemon.PID, sid, err)
	}

	again, err := process.New(process.Options{}).Adopt(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if got := run(t, again, "echo adopted"); got != "adopted\n" {
		t.Errorf("got %q", got)
	}
	for range 2 {
		if err := remove(t, again); err != nil {
			t.Error(err)
		}
	}
	if exists(daemon.PID) {
		t.Error("the daemon is still there")
	}
	wantMissing(t, dir)
	if err := remove(t, inst); err != nil {
		t.Error(err)
	}
	if _, err := inst.Dial(t.Context()); !errors.Is(err, runtime.ErrGone) {
		t.Errorf("Dial: %v", err)
	}
}

func TestImages(t *testing.T) {
	dir := t.TempDir()
	_, err := process.New(process.Options{}).Create(t.Context(), runtime.Spec{ID: "x", Dir: dir, Image: "python:3.12"})
	if u, ok := errors.AsType[*runtime.Unsupported](err); !ok || !strings.Contains(u.Error(), `"python:3.12"`) || !strings.Contains(u.Hint, `"host"`) {
		t.Errorf("got %v", err)
	}
	for _, image := range []string{"host", "python:3.12"} {
		inst, err := process.New(process.Options{AnyImage: true}).Create(t.Context(), runtime.Spec{ID: "x", Dir: t.TempDir(), Image: image})
		if err != nil {
			t.Fatal(err)
		}
		if err := remove(t, inst); err != nil {
			t.Error(err)
		}
	}
}

// What cannot be made leaves nothing behind.
func TestCreateFails(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if _, err := process.New(process.Options{}).Create(cancelled, runtime.Spec{ID: "x", Dir: dir}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	wantMissing(t, dir)

	dir = t.TempDir()
	os.Mkdir(filepath.Join(dir, "daemon.log"), 0o755)
	if _, err := process.New(process.Options{}).Create(t.Context(), runtime.Spec{ID: "x", Dir: dir}); err == nil || !strings.Contains(err.Error(), "daemon.log: is a directory") {
		t.Errorf("no log: %v", err)
	}
	wantMissing(t, dir)
}

// Nothing of a sandbox lives on, wherever it has hidden; and its folder goes,
// whatever is in it.
func TestRemove(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "kept")
	os.WriteFile(outside, nil, 0o600)
	inst := create(t, runtime.Spec{ID: "x", Dir: dir})
	run(t, inst, `
		hide='trap "" TERM HUP INT; echo $$ >> pids; while :; do sleep 0.1; done'
		bash -c "$hide" &                            # the shell's own child
		setsid bash -c "$hide" &                     # in another session
		(setsid bash -c "(setsid bash -c '$hide' &)" &) # a daemon's daemon
		(bash -c "setsid bash -c '$hide; true' & kill -STOP \$\$" &) # below one that is stopped
		while [ $(cat pids | wc -l) -lt 4 ]; do sleep 0.01; done
		mkdir -p a/b/c; touch a/b/c/f; ln -s `+outside+` a/link; ln -s / a/root; mkfifo a/fifo; chmod 0 a/b/c a/b a`)
	text, _ := os.ReadFile(filepath.Join(dir, "home/pids"))
	if err := remove(t, inst); err != nil {
		t.Error(err)
	}
	pids := strings.Fields(string(text))
	if len(pids) != 4 {
		t.Fatalf("processes are %q", pids)
	}
	for _, p := range pids {
		if pid, _ := strconv.Atoi(p); exists(pid) {
			t.Errorf("process %d lives on", pid)
		}
	}
	wantMissing(t, dir)
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("a file outside is gone: %v", err)
	}
}

// All of this works for an ordinary user, to whom unreadable folders are closed.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the other tests run as one")
	}
	const nobody = 65534
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^Test(Sandbox|CreateFails|Remove|DaemonDies|OutlivesItsMaker|StopAndStart|Snapshot)$")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// A daemon that was killed is gone, and Remove still ends what it had started.
func TestDaemonDies(t *testing.T) {
	dir := t.TempDir()
	spec := runtime.Spec{ID: "x", Dir: dir}
	inst := create(t, spec)
	run(t, inst, "(setsid bash -c 'echo $$ > pid; exec sleep 1000' &) ; while ! [ -s pid ]; do sleep 0.01; done")
	text, _ := os.ReadFile(filepath.Join(dir, "home/pid"))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	daemon, err := runtime.ReadProc(dir)
	if err != nil || !exists(pid) {
		t.Fatal(pid, err)
	}
	if err := daemon.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := daemon.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone, err := process.New(process.Options{}).Adopt(t.Context(), spec)
	if !errors.Is(err, runtime.ErrGone) {
		t.Errorf("Adopt: %v", err)
	}
	if _, err := gone.Dial(t.Context()); !errors.Is(err, runtime.ErrGone) {
		t.Errorf("Dial: %v", err)
	}
	if err := remove(t, gone); err != nil {
		t.Error(err)
	}
	if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(stat), ") Z ") {
		t.Errorf("process %d lives on: %s", pid, stat)
	}
	wantMissing(t, dir)
}

// A sandbox outlives the process that made it, and holds nothing of it open:
// neither its standard streams nor what it was itself given.
func TestOutlivesItsMaker(t *testing.T) {
	dir := t.TempDir()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "CREATE_SANDBOX_IN="+dir)
	cmd.ExtraFiles = []*os.File{w, w, w, w, w}
	out, err := cmd.CombinedOutput() // waits until nobody has the pipe open
	w.Close()
	if string(out) != "created\n" || err != nil {
		t.Fatalf("got %q, %v", out, err)
	}
	if _, err := io.ReadAll(r); err != nil {
		t.Error(err)
	}
	inst, err := process.New(process.Options{}).Adopt(t.Context(), runtime.Spec{ID: "x", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if got := run(t, inst, "echo here"); got != "here\n" {
		t.Errorf("got %q", got)
	}
	daemon, _ := runtime.ReadProc(dir)
	if err := remove(t, inst); err != nil {
		t.Error(err)
	}
	if daemon.Alive() {
		t.Error("the daemon lives on")
	}
	wantMissing(t, dir)
}

// Nothing is deleted through a mount.
func TestRemoveStopsAtMounts(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting is for root")
	}
	dir, kept := t.TempDir(), t.TempDir()
	os.WriteFile(filepath.Join(kept, "file"), nil, 0o600)
	inst := create(t, runtime.Spec{ID: "x", Dir: dir})
	place := filepath.Join(dir, "home", "mounted")
	os.Mkdir(place, 0o755)
	if err := unix.Mount(kept, place, "", unix.MS_BIND, ""); err != nil {
		t.Skip("this root may not mount:", err)
	}
	err := remove(t, inst)
	if err == nil || !strings.Contains(err.Error(), place+" is a mount point") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(kept, "file")); err != nil {
		t.Errorf("the mounted file is gone: %v", err)
	}
	if err := unix.Unmount(place, 0); err != nil {
		t.Fatal(err)
	}
	if err := remove(t, inst); err != nil {
		t.Error(err)
	}
	wantMissing(t, dir)
}

func BenchmarkCreateRemove(b *testing.B) {
	for b.Loop() {
		inst, err := process.New(process.Options{}).Create(b.Context(), runtime.Spec{ID: "x", Dir: b.TempDir()})
		if err != nil {
			b.Fatal(err)
		}
		if err := inst.Remove(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
