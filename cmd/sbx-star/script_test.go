//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	imagename "github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sbx-star/sbx-star/internal/fakeserver"
	"github.com/sbx-star/sbx-star/internal/testimage"
)

// This file runs the golden scripts of testdata/scripts: each runs sbx-star as
// a user would, with a fake server of its own to talk to.

var update = flag.Bool("update", false, "rewrite the golden files in the scripts")

func TestMain(m *testing.M) {
	runChild()                                                    // daemons are this binary, run again
	os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0") // of the daemons, which end all the time
	testscript.Main(m, map[string]func(){"sbx-star": main, "peer": peer})
}

const scripts = "../../testdata/scripts"

func TestScripts(t *testing.T) { testscript.Run(t, params(scripts, *update)) }

func params(dir string, update bool) testscript.Params {
	commands := fakeserver.Commands()
	maps.Copy(commands, scriptCommands)
	return testscript.Params{
		Dir:                 dir,
		Setup:               setup,
		Cmds:                commands,
		UpdateScripts:       update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	}
}

// A script with a line "# generations: seed classic …" says the same to servers of
// each of them: it runs again as NAME@GENERATION.
var generationsLine = regexp.MustCompile(`(?m)^# generations: (.*)$`)

func TestScriptsInGenerations(t *testing.T) {
	files, err := filepath.Glob(scripts + "/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found := generationsLine.FindSubmatch(text)
		if found == nil {
			continue
		}
		for _, generation := range strings.Fields(string(found[1])) {
			name := strings.TrimSuffix(filepath.Base(file), ".txtar") + "@" + generation + ".txtar"
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o666); err != nil {
				t.Fatal(err)
			}
		}
	}
	testscript.Run(t, params(dir, false))
}

func setup(env *testscript.Env) error {
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	env.Setenv("ROOT", root)
	env.Setenv("PEER", program(env.Getenv("PATH"), "peer"))
	env.Setenv("XDG_STATE_HOME", filepath.Join(env.WorkDir, ".state"))
	env.Values[serverKey{}] = new(background)
	env.Defer(func() { // of a script that failed before it deleted what it kept
		for _, p := range processesIn(filepath.Join(env.WorkDir, ".state")) {
			syscall.Kill(p, syscall.SIGKILL)
		}
	})
	if err := fakeserver.Setup(env); err != nil {
		return err
	}
	if _, generation, ok := strings.Cut(filepath.Base(env.WorkDir), "@"); ok {
		return fakeserver.OfEnv(env).Fault([]string{"generation", generation})
	}
	return nil
}

// scriptCommands are what scripts can say beyond testscript's own commands and
// those of the fake server:
//
//	exits CODE COMMAND…           fails unless the command ends with this status
//	signal NAMES REGEXP CODE COMMAND…
//	                              signals the command once the fake server's log
//	                              matches (for REGEXP "-": once it has printed
//	                              something), and then is as exits. A second
//	                              signal, as in INT,INT, follows once it has said
//	                              something about the first, and then asked for a
//	                              deletion
//	killed REGEXP COMMAND…        ends the command by SIGKILL once the fake server's
//	                              log matches
//	cut-every-byte WANT COMMAND…  runs the command once for each byte that it is
//	                              sent over WebSockets, the connection cut there,
//	                              and fails unless it prints what WANT holds
//	serve ADDRESS FLAGS…          starts sbx-star serve in the background and sets
//	                              what it prints: SBX_STAR_ENDPOINT and the key
//	images                        serves an image from a registry on loopback and
//	                              sets REGISTRY; the same image is in archive.tar,
//	                              oci and dir, and one of another machine in far
//	stop CODE                     ends it by SIGTERM; fails unless it ends with CODE
//	leftovers                     fails if a sandbox of the state folder is left:
//	                              a folder, a process or a mount
var scriptCommands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"exits": func(ts *testscript.TestScript, neg bool, args []string) {
		need(ts, args, 2, "exits CODE COMMAND…")
		cmd := command(ts, args[1:])
		ts.Check(cmd.Start())
		wait(ts, cmd, args[0])
	},
	"terminal": terminal,
	"signal":   signalCommand,
	"killed": func(ts *testscript.TestScript, neg bool, args []string) {
		need(ts, args, 2, "killed REGEXP COMMAND…")
		signalCommand(ts, neg, append([]string{"KILL", args[0], "-1"}, args[1:]...))
	},
	"cut-every-byte": cutEveryByte,
	"serve":          serveInBackground,
	"images":         makeImages,
	"stop": func(ts *testscript.TestScript, neg bool, args []string) {
		need(ts, args, 1, "stop CODE")
		server := ts.Value(serverKey{}).(*background)
		server.cmd.Process.Signal(syscall.SIGTERM)
		wait(ts, server.cmd, args[0])
	},
	"leftovers": func(ts *testscript.TestScript, neg bool, args []string) {
		state := filepath.Join(ts.Getenv("XDG_STATE_HOME"), "sbx-star")
		var left []string
		boxes, err := os.ReadDir(filepath.Join(state, "boxes"))
		ts.Check(err)
		for _, box := range boxes {
			left = append(left, "folder "+box.Name())
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		ts.Check(err)
		if strings.Contains(string(mounts), state) {
			left = append(left, "a mount")
		}
		for _, p := range processesIn(state) {
			left = append(left, fmt.Sprintf("process %d", p))
		}
		if (len(left) > 0) != neg {
			ts.Fatalf("left: %v", left)
		}
	},
}

func signalCommand(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 4, "signal NAMES REGEXP CODE COMMAND…")
	cmd := command(ts, args[3:])
	printed := &notice{w: new(bytes.Buffer), seen: make(chan struct{})}
	said := &notice{w: new(bytes.Buffer), seen: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = printed, said
	ts.Check(cmd.Start())
	ts.Defer(func() { cmd.Process.Kill() })
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	moment := func(n *notice) {
		select {
		case <-n.seen:
		case <-ctx.Done():
			ts.Fatalf("the command says nothing")
		}
	}
	if args[1] == "-" {
		moment(printed)
	} else {
		ts.Check(fakeserver.Of(ts).Await(ctx, 1, regexp.MustCompile(args[1]).MatchString))
	}
	for i, name := range strings.Split(args[0], ",") {
		if i > 0 {
			moment(said)
			// What is asked for in vain now must not come about later, when the
			// script is on to something else.
			ts.Check(fakeserver.Of(ts).Await(ctx, 1, regexp.MustCompile("^DELETE ").MatchString))
		}
		cmd.Process.Signal(map[string]syscall.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}[name])
	}
	wait(ts, cmd, args[2])
}

func need(ts *testscript.TestScript, args []string, n int, usage string) {
	if len(args) < n {
		ts.Fatalf("usage: %s", usage)
	}
}

// command is a command of the script, with its environment and folder.
func command(ts *testscript.TestScript, args []string) *exec.Cmd {
	path, err := exec.LookPath(args[0])
	if args[0] == "sbx-star" {
		path, err = program(ts.Getenv("PATH"), "sbx-star"), nil
	}
	ts.Check(err)
	cmd := exec.Command(path, args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "HOME", "XDG_STATE_HOME", "PEER", "SBX_STAR_ENDPOINT", "SBX_STAR_API_KEY"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	cmd.Stdout, cmd.Stderr = new(bytes.Buffer), new(bytes.Buffer)
	return cmd
}

// program is a program that TestMain names, by the PATH of a script.
func program(path, name string) string {
	bin, _, _ := strings.Cut(path, ":")
	return filepath.Join(bin, name)
}

// wait waits for a command, hands its output to the script, and checks its status.
func wait(ts *testscript.TestScript, cmd *exec.Cmd, status string) {
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("%v", err)
	}
	fmt.Fprint(ts.Stdout(), cmd.Stdout)
	fmt.Fprint(ts.Stderr(), cmd.Stderr)
	if got := strconv.Itoa(cmd.ProcessState.ExitCode()); got != status {
		ts.Fatalf("the exit status is %s, want %s\n%s%s", got, status, cmd.Stdout, cmd.Stderr)
	}
}

// notice is a buffer that tells when something was written to it.
type notice struct {
	mu   sync.Mutex
	w    *bytes.Buffer
	once sync.Once
	seen chan struct{}
}

func (n *notice) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	defer n.once.Do(func() { close(n.seen) })
	return n.w.Write(p)
}

func (n *notice) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.w.String()
}

// background is the server that a script has started last.
type background struct{ cmd *exec.Cmd }

type serverKey struct{}

func serveInBackground(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 1, "serve ADDRESS FLAGS…")
	cmd := command(ts, append([]string{"sbx-star", "serve", "--listen"}, args...))
	printed := &notice{w: new(bytes.Buffer), seen: make(chan struct{})}
	cmd.Stdout = printed
	ts.Check(cmd.Start())
	ts.Defer(func() { cmd.Process.Kill() })
	select {
	case <-printed.seen:
	case <-time.After(30 * time.Second):
		ts.Fatalf("the server prints nothing")
	}
	for line := range strings.Lines(printed.String()) {
		name, value, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, "export ")), "=")
		ts.Setenv(name, value)
	}
	ts.Value(serverKey{}).(*background).cmd = cmd
}

func makeImages(ts *testscript.TestScript, neg bool, args []string) {
	img, err := testimage.BusyboxImage(v1.Config{Env: []string{"COLOR=blue"}, WorkingDir: "/data", Cmd: []string{"nothing"}},
		testimage.Folder("data"), testimage.File("data/note", "from the image\n"))
	ts.Check(err)
	far, err := testimage.Image(v1.Config{})
	ts.Check(err)
	far, err = mutate.ConfigFile(far, &v1.ConfigFile{OS: "linux", Architecture: "s390x"})
	ts.Check(err)
	server := httptest.NewServer(testimage.Registry())
	ts.Defer(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	ts.Setenv("REGISTRY", host)
	ts.Check(testimage.Push(host+"/team/app:1", img))
	ts.Check(testimage.Push(host+"/team/far:1", far))
	ref, err := imagename.NewTag(host + "/team/app:1")
	ts.Check(err)
	ts.Check(tarball.WriteToFile(ts.MkAbs("archive.tar"), ref, img))
	oci, err := layout.Write(ts.MkAbs("oci"), empty.Index)
	ts.Check(err)
	ts.Check(oci.AppendImage(img))
	entries, err := testimage.Busybox()
	ts.Check(err)
	ts.Check(testimage.WriteFolder(ts.MkAbs("dir"), entries))
}

func cutEveryByte(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 2, "cut-every-byte WANT COMMAND…")
	want := ts.ReadFile(args[0])
	fake := fakeserver.Of(ts)
	total := 0
	for n := 1; ; n++ { // until a cut comes after the last byte: it is left over
		ts.Check(fake.Fault([]string{"cut-ws", fmt.Sprintf("after=%dB", n)}))
		total = n
		if n >= maxCuts {
			break
		}
	}
	results := make(chan error, total)
	slots := make(chan struct{}, 24) // they mostly wait to reconnect
	for range total {
		slots <- struct{}{}
		cmd := command(ts, args[1:])
		go func() {
			defer func() { <-slots }()
			err := cmd.Run()
			if got := cmd.Stdout.(*bytes.Buffer).String(); err != nil || got != want {
				err = fmt.Errorf("%v: got %q\n%s", err, got, cmd.Stderr)
			}
			results <- err
		}()
	}
	var failed []error
	for range total {
		if err := <-results; err != nil {
			failed = append(failed, err)
		}
	}
	if pending := fake.Pending(); len(pending) != 0 {
		ts.Fatalf("only some of %d cuts came about, %d are left: the streams are shorter", total, len(pending))
	}
	ts.Check(errors.Join(failed...))
}

// maxCuts is less than what the shortest of the cut streams sends.
const maxCuts = 200

// processesIn lists the first processes of the sandboxes of a state folder, by
// their logs.
func processesIn(state string) (found []int) {
	logs, _ := filepath.Glob("/proc/[0-9]*/fd/2")
	for _, link := range logs {
		if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, state+"/") {
			pid, _ := strconv.Atoi(strings.Split(link, "/")[2])
			found = append(found, pid)
		}
	}
	return found
}
