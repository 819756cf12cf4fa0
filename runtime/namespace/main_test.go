//go:build linux

package namespace

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/runtime/tree"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines what the tests stand on: sandboxes and what is asked of
// them, and this test program in the place of other processes.

func TestMain(m *testing.M) {
	Child()
	if name := os.Getenv(helperVar); name != "" {
		if err := helpers[name](os.Getenv(argumentVar)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0") // of the daemons, which end all the time
	os.Exit(m.Run())
}

const (
	helperVar   = "SBX_TEST_HELPER"
	argumentVar = "SBX_TEST_ARGUMENT"
)

// helpers are what this program does as another process.
var helpers map[string]func(argument string) error

// helper runs a helper to its end and returns its stdout.
func helper(t testing.TB, name, argument string, attr *syscall.SysProcAttr) (string, error) {
	t.Helper()
	return helperOf(t, "/proc/self/exe", name, argument, attr)
}

// helperOf is helper with a copy of this program.
func helperOf(t testing.TB, program, name, argument string, attr *syscall.SysProcAttr) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program)
	cmd.Env = append(os.Environ(), helperVar+"="+name, argumentVar+"="+argument)
	cmd.SysProcAttr = attr
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", name, err, stderr.Bytes())
	}
	return stdout.String(), nil
}

// box is a sandbox under test.
type box struct {
	runtime.Instance
	spec runtime.Spec
	r    *Runtime
}

func newSpec(t testing.TB) runtime.Spec {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "box")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return runtime.Spec{ID: "box-1", Hostname: "box-1", Dir: dir}
}

func create(t testing.TB, r *Runtime, spec runtime.Spec) *box {
	t.Helper()
	in, err := r.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	b := &box{in, spec, r}
	t.Cleanup(func() {
		if err := b.Remove(context.Background()); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(spec.Dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after Remove the folder is still there: %v", err)
		}
	})
	return b
}

func newBox(t testing.TB) *box {
	t.Helper()
	return create(t, &Runtime{}, newSpec(t))
}

// execute runs a command over the data plane.
func (b *box) execute(ctx context.Context, command string) (wire.ExecResponse, error) {
	return b.post(ctx, wire.ExecRequest{Command: wire.Command{Line: command}, Timeout: 60, Shell: "/bin/bash"})
}

func (b *box) post(ctx context.Context, request wire.ExecRequest) (wire.ExecResponse, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return b.Dial(ctx) },
	}}
	var result wire.ExecResponse
	body, err := json.Marshal(request)
	if err != nil {
		return result, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://box/execute", bytes.NewReader(body))
	if err != nil {
		return result, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return result, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, data)
	}
	if err == nil {
		err = json.Unmarshal(data, &result)
	}
	return result, err
}

// try runs a command that may fail.
func (b *box) try(t testing.TB, command string) wire.ExecResponse {
	t.Helper()
	result, err := b.execute(t.Context(), command)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// run runs a command that must succeed and returns its stdout without the last
// line break.
func (b *box) run(t testing.TB, command string) string {
	t.Helper()
	result := b.try(t, command)
	if result.ExitCode != 0 {
		t.Fatalf("%s: exit code %d\n%s%s", command, result.ExitCode, result.Stdout, result.Stderr)
	}
	return strings.TrimSuffix(result.Stdout, "\n")
}

// asRoot reports whether sandboxes have the many ids that root gives them.
func asRoot() bool { return hostIDs().many }

// ownsSystem reports whether the sandbox's root owns the system files, for which
// the machine must idmap them.
func (b *box) ownsSystem() bool { return asRoot() && !b.r.plain.Load() }

// leftovers describes what a sandbox could leave in or of this process: children,
// mounts and descriptors.
func leftovers(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		children, _ := os.ReadFile(task) // a thread may have ended
		b.Write(children)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	b.Write(mounts)
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		target, _ := os.Readlink("/proc/self/fd/" + fd.Name())
		if !strings.HasSuffix(target, "/fd") { // of this very listing
			fmt.Fprintln(&b, fd.Name(), target)
		}
	}
	return b.String()
}

// TestAsOrdinaryUser runs all these tests again as one, where they run as root.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		return
	}
	const user = 65532
	dir, err := os.MkdirTemp("", "sbx-star-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, "namespace.test")
	if err := os.WriteFile(copied, program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, user, user); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), copied, "-test.v", "-test.failfast=false")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "HOME="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestOwnView")) {
		t.Fatalf("%v\n%s", err, out)
	}
	if testing.Verbose() {
		t.Logf("%s", out)
	}
}

func removeTree(t testing.TB, dir string) {
	t.Helper()
	if err := tree.Remove(context.Background(), dir); err != nil {
		t.Error(err)
	}
}
