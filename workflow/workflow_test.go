package workflow_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/sbx-star/sbx-star/builtins"
	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/event"
	"github.com/sbx-star/sbx-star/wire"
	"github.com/sbx-star/sbx-star/workflow"
)

// This file tests what a script alone cannot: cancellation, lost answers, and
// servers that do not let go.

// A bench runs workflows against a fake of its own.
type bench struct {
	*fake
	stdout, stderr bytes.Buffer
	options        workflow.Options
	connected      atomic.Int32
}

func newBench(t *testing.T) *bench {
	b := &bench{fake: newFake(t)}
	b.options = workflow.Options{
		Path:   "main.star",
		Stdout: &b.stdout,
		Events: event.Terminal(&b.stderr),
		Connect: func(context.Context) (*client.Client, error) {
			b.connected.Add(1)
			return b.client(), nil
		},
	}
	return b
}

func (b *bench) run(ctx context.Context, source string) error {
	b.options.Source = []byte(source)
	return workflow.Run(ctx, b.options)
}

func (b *bench) boxNames() (names []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for name := range b.boxes {
		names = append(names, name)
	}
	return names
}

// sent tells how often something was asked for.
func (b *bench) sent(request string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.requests {
		if strings.HasPrefix(r, request) {
			n++
		}
	}
	return n
}

func (b *bench) fault(request string, h http.HandlerFunc) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults[request] = h
}

func rendered(err error) string {
	var out strings.Builder
	workflow.Render(&out, err, false)
	return out.String()
}

// stopped is the cause of a cancellation, as a signal would be.
type stopped struct{}

func (stopped) Error() string { return "stopped by the test" }
func (stopped) ExitCode() int { return 143 }

// cancelOn is a writer that cancels when it is told to.
type cancelOn struct {
	io.Writer
	word   string
	cancel func()
}

func (c *cancelOn) Write(p []byte) (int, error) {
	if strings.Contains(string(p), c.word) {
		c.cancel()
	}
	return c.Writer.Write(p)
}

func TestCancelled(t *testing.T) {
	for name, body := range map[string]string{
		"command":         `sb.run("out x; hang", on_stdout = lambda s: print("now"))`,
		"quiet command":   "cmd = sb.run(\"hang\", wait = False)\n    print(\"now\")\n    cmd.wait()",
		"iteration":       "for chunk in sb.run(\"out x; hang\", wait = False):\n        print(\"now\")",
		"lines":           "for line in sb.run(\"out x\\n; hang\", wait = False).lines():\n        print(\"now\")",
		"after iteration": "print(\"now\")\n    for c in sb.run(\"out x\", wait = False):\n        fail()\n    fail()",
		"sleep":           "print(\"now\")\n    sleep(600)",
		"loop":            "print(\"now\")\n    while True:\n        pass",
		"attempt":         "print(\"now\")\n    attempt(sleep, 600)\n    print(\"not reached\")",
		"using":           "using(sandbox(name = \"inner\"), lambda sb: [print(\"now\"), sleep(600)])\n    print(\"not reached\")",
		"broken streams":  "print(\"now\")\n    while True:\n        attempt(lambda: [c for c in sb.run(\"cut\", wait = False)])",
		"parallel":        "parallel(lambda i: [print(\"now\"), sb.run(\"hang\", timeout = 0)], range(3))",
		"nested parallel": "parallel(lambda i: parallel(lambda j: [print(\"now\"), sleep(600)], range(3)), range(3))",
		"spawn":           "spawn(lambda: [print(\"now\"), sb.run(\"hang\", timeout = 0)])\n    sleep(600)",
		"result of task":  "spawn(lambda: [print(\"now\"), sleep(600)]).result()",
		"retry":           "retry(lambda: [print(\"now\"), fail()], backoff = 600)",
		"download":        "print(\"now\")\n    sb.read(\"/slow\", timeout = 0)",
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			b.options.Stdout = &cancelOn{&b.stdout, "now", func() { cancel(stopped{}) }}
			err := b.run(ctx, "def main():\n    sb = sandbox(name = \"web\")\n    defer(lambda: print(sb.run(\"out deferred\").stdout))\n    "+body)
			if !errors.Is(err, stopped{}) || workflow.ExitCode(err) != 143 {
				t.Errorf("got %v with code %d", err, workflow.ExitCode(err))
			}
			if !strings.HasPrefix(rendered(err), "sbx-star: stopped by the test, at main.star:") || strings.Count(rendered(err), "\n") != 1 {
				t.Errorf("rendered as %q", rendered(err))
			}
			if names := b.boxNames(); len(names) > 0 {
				t.Errorf("left are %q", names)
			}
			if got := b.stdout.String(); !strings.HasSuffix(got, "deferred\n") || strings.Contains(got, "not reached") {
				t.Errorf("printed %q", got)
			}
		})
	}
}

// A task that nobody asks is waited for, and hears of a cancellation then, too.
func TestCancelledWhileJoining(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	b.options.Stdout = &cancelOn{&b.stdout, "now", func() { cancel(stopped{}) }}
	err := b.run(ctx, "def main():\n    spawn(lambda: [print(\"now\"), sleep(600)])\n")
	if workflow.ExitCode(err) != 143 {
		t.Errorf("got %v with code %d", err, workflow.ExitCode(err))
	}
}

// What a user sees names no type of Go.
func TestNoTypesOfGoInMessages(t *testing.T) {
	types := regexp.MustCompile(`\*?\b(starlark|starlarkstruct|client|builtins|wire|syntax|resolve|errors|fmt)\.(\*|[A-Z]\w*(Error|Value|String|List|Dict|Tuple|Int|Wrap)\b)`)
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("there is nothing to look at", err)
	}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range archive.Files {
			for line := range strings.Lines(string(f.Data)) {
				if f.Name == "stderr" && types.MatchString(line) && !strings.Contains(line, "errors.") {
					t.Errorf("%s: %s", file, line)
				}
			}
		}
	}
	for _, dir := range []string{".", "../builtins", "../client", "../cmd/sbx-star"} {
		sources, _ := filepath.Glob(dir + "/*.go")
		for _, source := range sources {
			text, err := os.ReadFile(source)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(source, "_test.go") && strings.Contains(string(text), "%"+"T") {
				t.Errorf("%s prints the name of a type of Go", source)
			}
		}
	}
}

func TestDeadline(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := b.run(ctx, "sleep(600)"); workflow.ExitCode(err) != workflow.ExitDeadline || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v with code %d", err, workflow.ExitCode(err))
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := b.run(ctx, "sleep(600)"); workflow.ExitCode(err) != workflow.ExitInterrupt {
		t.Errorf("got %v with code %d", err, workflow.ExitCode(err))
	}
}

// A sandbox whose creation was interrupted is found by its name; one of another
// age with a name that the user chose is somebody else's.
func TestCreationInterrupted(t *testing.T) {
	for _, test := range []struct {
		name, source, created string
		left                  int
	}{
		{"own name", `sandbox()`, "2001-01-01T00:00:00Z", 0},
		{"chosen name", `sandbox(name = "web")`, "now", 0},
		{"somebody's", `sandbox(name = "web")`, "2001-01-01T00:00:00Z", 1},
		{"unknown age", `sandbox(name = "web")`, "", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			b.fault("POST /boxes", func(w http.ResponseWriter, r *http.Request) {
				var c wire.BoxCreate
				json.NewDecoder(r.Body).Decode(&c)
				created := test.created
				if created == "now" {
					created = time.Now().UTC().Format(time.RFC3339)
				}
				b.mu.Lock()
				b.boxes[c.Name] = &wire.Box{Name: c.Name, CreatedAt: created}
				b.mu.Unlock()
				cancel(stopped{})
				<-r.Context().Done() // the answer is never sent
			})
			err := b.run(ctx, test.source)
			if !errors.Is(err, stopped{}) {
				t.Errorf("got %v", err)
			}
			if names := b.boxNames(); len(names) != test.left {
				t.Errorf("left are %q", names)
			}
			var left *workflow.ReleaseError
			if errors.As(err, &left) != (test.created == "") {
				t.Errorf("told as left: %v", err)
			}
		})
	}
}

// Where the server says that nothing was created, nothing is deleted.
func TestCreationRefused(t *testing.T) {
	b := newBench(t)
	b.boxes["web"] = &wire.Box{Name: "web"}
	err := b.run(t.Context(), "attempt(sandbox, name = \"web\")\nsandbox(template = \"none\", name = \"web\")")
	if !errors.Is(err, client.ErrAlreadyExists) || len(b.boxNames()) != 1 || b.sent("DELETE") != 0 {
		t.Errorf("got %v and %q", err, b.requests)
	}
	b.fault("POST /boxes", func(w http.ResponseWriter, r *http.Request) { refuse(w, 500, "Internal", "perhaps") })
	err = b.run(t.Context(), "sandbox()")
	if !errors.Is(err, client.ErrAPI) || b.sent("DELETE /boxes/sbx-") != 1 {
		t.Errorf("got %v and %q", err, b.requests)
	}
}

func TestReleaseFails(t *testing.T) {
	b := newBench(t)
	b.fault("DELETE /boxes/b", func(w http.ResponseWriter, r *http.Request) { refuse(w, 500, "Internal", "the disk is gone") })
	source := "def main():\n    for name in [\"a\", \"b\", \"c\"]:\n        sandbox(name = name)\n    print(using(sandbox(template = \"t\", name = \"d\"), lambda sb: 1))\n"
	err := b.run(t.Context(), source)
	var left *workflow.ReleaseError
	if !errors.As(err, &left) || len(left.Left) != 1 || left.Left[0].Name != "b" || !errors.Is(left.Left[0].Err, client.ErrAPI) {
		t.Errorf("got %v", err)
	}
	if workflow.ExitCode(err) != workflow.ExitLeft || len(b.boxNames()) != 1 {
		t.Errorf("code %d, left %q", workflow.ExitCode(err), b.boxNames())
	}
	want := `sbx-star: error: what this run created and could not release is left behind:
  sandbox "b": SandboxAPIError: the disk is gone
    delete it with: sbx-star -c 'sandbox.delete("b")'
sbx-star: hint: sbx-star gc tries again to delete all of it
`
	if got := rendered(err); got != want {
		t.Errorf("rendered as\n%s", got)
	}

	// It never hides what went wrong before.
	b.boxes = map[string]*wire.Box{}
	err = b.run(t.Context(), source+"    exit(9)\n")
	if workflow.ExitCode(err) != 9 || rendered(err) != want {
		t.Errorf("code %d, rendered as\n%s", workflow.ExitCode(err), rendered(err))
	}
	b.boxes = map[string]*wire.Box{}
	err = b.run(t.Context(), source+"    fail(\"first\")\n")
	if workflow.ExitCode(err) != 1 || !strings.HasSuffix(rendered(err), "sbx-star: error: first\n"+want) {
		t.Errorf("code %d, rendered as\n%s", workflow.ExitCode(err), rendered(err))
	}
	b.boxes = map[string]*wire.Box{}
	err = b.run(t.Context(), "print(using(sandbox(name = \"b\"), lambda sb: \"went on\"))")
	if workflow.ExitCode(err) != workflow.ExitLeft || !strings.HasSuffix(b.stdout.String(), "went on\n") {
		t.Errorf("code %d, printed %q", workflow.ExitCode(err), b.stdout.String())
	}
}

// A second interrupt stops releasing, and what is left is told.
func TestAbort(t *testing.T) {
	b := newBench(t)
	abort := make(chan struct{})
	b.options.Abort = abort
	b.fault("DELETE /boxes/b", func(w http.ResponseWriter, r *http.Request) {
		close(abort)
		<-r.Context().Done()
	})
	err := b.run(t.Context(), "sandbox(name = \"a\")\ndefer(print, \"never\")\nsandbox(name = \"b\")\ndefer(len, \"\")\nsandbox(name = \"c\")\n")
	var left *workflow.ReleaseError
	if !errors.As(err, &left) || len(left.Left) != 2 || left.Left[0].Name != "b" || left.Left[1].Name != "a" {
		t.Fatalf("got %v", err)
	}
	if b.stdout.Len() != 0 || len(b.boxNames()) != 2 || b.sent("DELETE /boxes/a") != 0 {
		t.Errorf("printed %q, left %q", b.stdout.String(), b.boxNames())
	}
	if got := rendered(err); !strings.Contains(got, "sbx-star: error: deferred print: releasing was interrupted\n") {
		t.Errorf("rendered as\n%s", got)
	}
}

func TestKeep(t *testing.T) {
	b := newBench(t)
	b.options.Keep = true
	err := b.run(t.Context(), `
def main():
    sb = sandbox(name = "web")
    sb.run("hang", wait = False)
    defer(print, "not run")
    template("t", "i", ephemeral = True)
    using(sandbox(name = "inner"), lambda sb: defer(print, "run"))
`)
	if err != nil || b.stdout.String() != "run\n" {
		t.Errorf("got %v, printed %q", err, b.stdout.String())
	}
	want := `sbx-star: kept: template "t": reach it with template.get("t"), delete it with template.delete("t")
sbx-star: kept: sandbox "web": reach it with sandbox.get("web"), delete it with sandbox.delete("web")
`
	if b.stderr.String() != want || len(b.boxNames()) != 1 {
		t.Errorf("left %q, told\n%s", b.boxNames(), b.stderr.String())
	}
	b.sockets.Wait() // the command was detached from
}

func TestConnect(t *testing.T) {
	b := newBench(t)
	if err := b.run(t.Context(), "print(1)\nx = sandbox"); err != nil || b.connected.Load() != 0 {
		t.Errorf("got %v after %d connections", err, b.connected.Load())
	}
	if err := b.run(t.Context(), "sandbox()\nsandbox.list()\ntemplate.list()"); err != nil || b.connected.Load() != 1 {
		t.Errorf("got %v after %d connections", err, b.connected.Load())
	}
	b.options.Connect = func(context.Context) (*client.Client, error) { return nil, errors.New("no server here") }
	if err := b.run(t.Context(), "sandbox()"); workflow.ExitCode(err) != 1 || !strings.Contains(rendered(err), "sbx-star: error: no server here\n") {
		t.Errorf("got %v", rendered(err))
	}
}

func TestPermission(t *testing.T) {
	b := newBench(t)
	b.fault("POST /boxes", func(w http.ResponseWriter, r *http.Request) { refuse(w, 401, "Unauthorized", "wrong key") })
	err := b.run(t.Context(), "sandbox()")
	if workflow.ExitCode(err) != workflow.ExitPermission || !strings.Contains(rendered(err), "SandboxAuthenticationError: wrong key\nsbx-star: hint: check the key") {
		t.Errorf("code %d, rendered as\n%s", workflow.ExitCode(err), rendered(err))
	}
	if err := b.run(t.Context(), "print(attempt(sandbox).error.type)"); err != nil {
		t.Error(err)
	}
}

// Limits that the server does not enforce are told once, and only when a limit
// is asked for.
func TestUnenforcedLimits(t *testing.T) {
	b := newBench(t)
	b.info = &wire.Info{Runtime: "namespace", Generations: []string{wire.Seed, wire.Late}, Enforces: wire.Enforces{Storage: true}}
	if err := b.run(t.Context(), `template("a", "i"); template("b", "i", cpu = "0.5", storage = "1Gi"); sandbox(fs_capacity_bytes = 1)`); err != nil || b.stderr.Len() > 0 {
		t.Errorf("got %v, told %q", err, b.stderr.String())
	}
	if err := b.run(t.Context(), `template("c", "i", cpu = "2"); sandbox(mem_bytes = 1); print(client.runtime, client.generation)`); err != nil {
		t.Error(err)
	}
	if got := b.stderr.String(); got != "sbx-star: warning: the runtime namespace does not enforce limits on cpu and memory here\n" {
		t.Errorf("told %q", got)
	}
	if b.stdout.String() != "namespace late\n" || b.sent("GET /info") != 2 {
		t.Errorf("printed %q after %d questions", b.stdout.String(), b.sent("GET /info"))
	}
}

type panicking struct{}

func (panicking) Write([]byte) (int, error) { panic("the writer broke") }

// A bug in a builtin is told as such, and does not keep anything from being
// released.
func TestPanic(t *testing.T) {
	b := newBench(t)
	b.options.Stdout = panicking{}
	err := b.run(t.Context(), "def main():\n    sandbox(name = \"web\")\n    using(sandbox(name = \"inner\"), lambda sb: attempt(print, 1))\n")
	var internal *builtins.InternalError
	if !errors.As(err, &internal) || len(b.boxNames()) != 0 || workflow.ExitCode(err) != 1 {
		t.Fatalf("got %v, left %q", err, b.boxNames())
	}
	got := rendered(err)
	for _, want := range []string{"main.star:3:10: in main\n", "internal error: the writer broke\n", "panicking", "this is a bug of sbx-star"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space") }

func TestStdoutFails(t *testing.T) {
	b := newBench(t)
	b.options.Stdout = full{}
	if err := b.run(t.Context(), "print(1)"); !strings.Contains(rendered(err), "cannot write to stdout: no space") {
		t.Errorf("got %v", err)
	}
}

// The command that nobody waits for any more is killed: there is no handle left.
func TestCallbackFailureKills(t *testing.T) {
	b := newBench(t)
	err := b.run(t.Context(), `sandbox(name = "web").run("out x; hang", on_stdout = lambda s: fail("enough"))`)
	if err == nil {
		t.Fatal("no error")
	}
	b.sockets.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sessions {
		if s.exit == 137 {
			return
		}
	}
	t.Error("the command was not killed")
}

func TestNow(t *testing.T) {
	b := newBench(t)
	b.options.Now = func() time.Time { return time.Unix(0, 0) }
	if err := b.run(t.Context(), "print(time.now().unix)"); err != nil || b.stdout.String() != "0\n" {
		t.Errorf("got %v, printed %q", err, b.stdout.String())
	}
}

func TestEventsGoToStderr(t *testing.T) {
	b := newBench(t)
	b.options.Events, b.options.Stderr = nil, &b.stderr
	if err := b.run(t.Context(), `log.info("hello")`); err != nil || b.stderr.String() != "sbx-star: info: hello\n" {
		t.Errorf("got %v, told %q", err, b.stderr.String())
	}
}

// What comes out of a sandbox does not command the terminal, and colours are
// only written where they are asked for.
func TestRender(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{errors.New("plain\nand more"), "sbx-star: error: plain\n  and more\n"},
		{&workflow.UsageError{Message: "there is no flag --x", Hint: "look"}, "sbx-star: error: there is no flag --x\nsbx-star: hint: look\n"},
		{&client.Error{Kind: client.ErrAPI, Message: "bad \x1b[31m\u009b news\xff"}, "sbx-star: error: SandboxAPIError: bad \\x1b[31m\\x9b news\ufffd\n"},
		{fmt.Errorf("around: %w", &client.Error{Kind: client.ErrInUse, Message: "in use"}),
			"sbx-star: error: ResourceInUseError: around: in use\nsbx-star: hint: delete first what was made from it\n"},
		{&builtins.CommandError{Command: "make", Err: &client.Error{Kind: client.ErrOperation, Message: "gone", Stderr: "a\r\nb\n"}, Sandbox: "web"},
			"sbx-star: error: SandboxOperationError: gone\n  in sandbox web; the command was: make\n  its stderr ends with:\n  a\n  b\n"},
		{errors.Join(errors.New("one"), &builtins.ContextError{What: "deferred f", Err: errors.New("two")}),
			"sbx-star: error: one\nsbx-star: error: deferred f: two\n"},
	} {
		if got := rendered(test.err); got != test.want {
			t.Errorf("%v is rendered as\n%s", test.err, got)
		}
	}
	var out strings.Builder
	b := newBench(t)
	workflow.Render(&out, b.run(t.Context(), "\tx = 1"), true)
	workflow.Render(&out, b.run(t.Context(), "fail(1)"), true)
	want := "\x1b[1;31msbx-star: error:\x1b[0m main.star:1:2: got indent, want primary expression\n    \tx = 1\n    \t\x1b[1;31m^\x1b[0m\n" +
		"\x1b[2mTraceback (most recent call last):\n  main.star:1:5: in <toplevel>\n\x1b[0m    fail(1)\n        \x1b[1;31m^\x1b[0m\n\x1b[1;31msbx-star: error:\x1b[0m 1\n"
	if out.String() != want {
		t.Errorf("in colour:\n%q\nwant\n%q", out.String(), want)
	}
}

func TestExitCode(t *testing.T) {
	for _, test := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{&workflow.UsageError{}, 2},
		{fmt.Errorf("x: %w", &workflow.UsageError{}), 2},
		{&workflow.LoadError{Err: errors.New("x")}, 3},
		{&client.Error{Kind: client.ErrAuthentication}, 4},
		{stopped{}, 143},
	} {
		if got := workflow.ExitCode(test.err); got != test.want {
			t.Errorf("%v: got %d, want %d", test.err, got, test.want)
		}
	}
}
