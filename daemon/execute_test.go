//go:build linux

package daemon_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/sbx-star/sbx-star/daemon"
)

// What POST /execute answers to commands that run (protocol.md §5).
func TestExecute(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	os.Mkdir(filepath.Join(b.home, "sub"), 0o755)
	home := b.home
	for _, tt := range []struct {
		name, body, stdout, stderr string
		code                       int
	}{
		{"line", `{"command":"echo out; echo err >&2","timeout":60,"shell":"/bin/bash"}`, "out\n", "err\n", 0},
		{"only the command", `{"command":"echo $0"}`, "/bin/bash\n", "", 0},
		{"not a login shell", `{"command":"shopt -q login_shell; echo $?"}`, "1\n", "", 0},
		{"other shell", `{"command":"echo $0","shell":"/bin/sh"}`, "/bin/sh\n", "", 0},
		{"shell from PATH", `{"command":"echo $0","shell":"sh"}`, "sh\n", "", 0},
		{"list", `{"command":["printf","%s|","a b","$HOME",""]}`, "a b|$HOME||", "", 0},
		{"unknown fields", `{"command":"echo","later":{"x":1}}`, "\n", "", 0},
		{"exit code", `{"command":"exit 7"}`, "", "", 7},
		{"signal", `{"command":"kill -TERM $$"}`, "", "", 143},
		{"env", `{"command":"echo $A$BOX","env":{"A":"1"}}`, "1yes\n", "", 0},
		{"env over the sandbox's", `{"command":"echo $BOX","env":{"BOX":"no"}}`, "no\n", "", 0},
		{"empty env", `{"command":"echo $BOX","env":{}}`, "yes\n", "", 0},
		{"nothing else in the environment", `{"command":["env"],"env":{"PATH":"/bin","BOX":""}}`, "BOX=\nHOME=" + home + "\nPATH=/bin\n", "", 0},
		{"default directory", `{"command":"pwd; echo $HOME"}`, home + "\n" + home + "\n", "", 0},
		{"cwd", `{"command":"pwd","cwd":"/"}`, "/\n", "", 0},
		{"relative cwd", `{"command":"pwd","cwd":"sub"}`, home + "/sub\n", "", 0},
		{"run_config", `{"command":"pwd; echo $A","run_config":{"work_dir":"/","env_vars":{"A":"1"}}}`, "/\n1\n", "", 0},
		{"empty run_config", `{"command":"pwd","run_config":{}}`, home + "\n", "", 0},
		{"own user", fmt.Sprintf(`{"command":"id -u","run_config":{"user":"%d:%d"}}`, os.Getuid(), os.Getgid()), strconv.Itoa(os.Getuid()) + "\n", "", 0},
		{"own group and session", `{"command":"ps -o pgid=,sid= -p $$ | tr -d ' \n' | grep -qx $$$$ && echo leader"}`, "leader\n", "", 0},
		{"stdin is empty", `{"command":"cat; [ /proc/self/fd/0 -ef /dev/null ] && echo null"}`, "null\n", "", 0},
		{"only standard descriptors", `{"command":["ls","/proc/self/fd"]}`, "0\n1\n2\n3\n", "", 0}, // 3 is the folder itself
		{"no signal ignored or blocked", `{"command":"grep -E 'Sig(Blk|Ign)' /proc/self/status | tr -d '\n'"}`, "SigBlk:\t0000000000000000SigIgn:\t0000000000000000", "", 0},
		{"not UTF-8", `{"command":"printf 'a\\xff\\xe2\\x82b\\xe2\\x82\\xac\\xe2'"}`, "a\ufffd\ufffd\ufffdb€\ufffd", "", 0},
		{"no limit", `{"command":"echo","timeout":0}`, "\n", "", 0},
		{"timeout_seconds wins", `{"command":"sleep 1.2; echo late","timeout":1,"timeout_seconds":60}`, "late\n", "", 0},
		{"interpreter line", `{"command":"printf '#!/bin/sh\\necho script $1' > s; chmod +x s; ./s x"}`, "script x\n", "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := b.execute(tt.body)
			want := encode(map[string]any{"stdout": tt.stdout, "stderr": tt.stderr, "exit_code": tt.code})
			var got, wanted any
			json.Unmarshal([]byte(r.body), &got)
			json.Unmarshal([]byte(want), &wanted)
			if r.status != 200 || encode(got) != encode(wanted) || r.header.Get("Content-Type") != "application/json" {
				t.Errorf("got %d %s, want %s", r.status, r.body, want)
			}
		})
	}
}

func TestExecuteRefused(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	os.WriteFile(filepath.Join(b.home, "plain"), nil, 0o644)
	os.WriteFile(filepath.Join(b.home, "orphan"), []byte("#!/no/such/interpreter\n"), 0o755)
	for _, tt := range []struct {
		name, body    string
		status        int
		kind, message string
	}{
		{"no JSON", `{"command"`, 400, "InvalidRequest", "not JSON at byte 10"},
		{"two values", `{"command":"echo"} {}`, 400, "InvalidRequest", "not JSON"},
		{"no object", `["echo"]`, 400, "InvalidRequest", "want an object, got array"},
		{"type of timeout", `{"command":"echo","timeout":"60"}`, 400, "InvalidRequest", "timeout: want a whole number, got string"},
		{"fraction", `{"command":"echo","timeout":1.5}`, 400, "InvalidRequest", "timeout: want a whole number, got number 1.5"},
		{"type of command", `{"command":5}`, 400, "InvalidRequest", "command: want a string, got number"},
		{"type in a list", `{"command":["a",5]}`, 400, "InvalidRequest", "command: want a string, got number"},
		{"type of run_config", `{"command":"echo","run_config":{"user":0}}`, 400, "InvalidRequest", "run_config.user: want a string, got number"},
		{"no command", `{}`, 400, "InvalidRequest", "the command is empty"},
		{"empty list", `{"command":[]}`, 400, "InvalidRequest", "the command is empty"},
		{"negative timeout", `{"command":"echo","timeout":-1}`, 400, "InvalidRequest", "timeout is -1"},
		{"timeout beyond time", `{"command":"echo","timeout":99999999999}`, 400, "InvalidRequest", "timeout is 99999999999"},
		{"both spellings", `{"command":"echo","env":{},"run_config":{}}`, 400, "InvalidRequest", "run_config excludes env and cwd"},
		{"both directories", `{"command":"echo","cwd":"/","run_config":{"work_dir":"/"}}`, 400, "InvalidRequest", "run_config excludes"},
		{"relative work_dir", `{"command":"echo","run_config":{"work_dir":"sub"}}`, 400, "InvalidRequest", "absolute path"},
		{"variable name", `{"command":"echo","env":{"A=B":"1"}}`, 400, "InvalidRequest", `"A=B" cannot be set`},
		{"zero byte in a variable", `{"command":"echo","env":{"A":"\u0000"}}`, 400, "InvalidRequest", `"A" cannot be set`},
		{"zero byte", `{"command":"echo \u0000"}`, 400, "InvalidRequest", "zero byte"},
		{"no such user", `{"command":"echo","run_config":{"user":"no-such"}}`, 400, "CommandError", `user is "no-such", and this sandbox has none of that name`},
		{"no such group", `{"command":"echo","run_config":{"user":"root:no-such"}}`, 400, "CommandError", `"root:no-such", and this sandbox has no such group`},
		{"no user", `{"command":"echo","run_config":{"user":":1"}}`, 400, "InvalidRequest", `user is ":1": give a name`},
		{"no group", `{"command":"echo","run_config":{"user":"1:"}}`, 400, "InvalidRequest", `user is "1:"`},
		{"two groups", `{"command":"echo","run_config":{"user":"1:2:3"}}`, 400, "InvalidRequest", `user is "1:2:3"`},
		{"nobody's id", `{"command":"echo","run_config":{"user":"4294967295"}}`, 400, "CommandError", `none of that name`},
		{"negative id", `{"command":"echo","run_config":{"user":"-1"}}`, 400, "CommandError", `none of that name`},
		{"no shell", `{"command":"echo","shell":"/no/such/shell"}`, 400, "CommandError", "/no/such/shell: no such file or directory"},
		{"shell not in PATH", `{"command":"echo","shell":"nosuchshell"}`, 400, "CommandError", "nosuchshell: not found in PATH"},
		{"no cwd", `{"command":"echo","cwd":"/no/such"}`, 400, "CommandError", "working directory /no/such: no such file or directory"},
		{"cwd is a file", `{"command":"echo","cwd":"plain"}`, 400, "CommandError", "plain: not a directory"},
		{"not executable", `{"command":["./plain"]}`, 400, "CommandError", "./plain: permission denied"},
		{"a directory", `{"command":["/tmp"]}`, 400, "CommandError", "/tmp: is a directory"},
		{"no interpreter", `{"command":["./orphan"]}`, 400, "CommandError", "the interpreter that its first line names does not exist"},
		{"too long", `{"command":"` + strings.Repeat("x", 200<<10) + `"}`, 400, "CommandError", "argument list too long"},
		{"too large", `{"command":"` + strings.Repeat("x", 1<<20) + `"}`, 413, "InvalidRequest", "larger than 1048576 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b.execute(tt.body).wantProblem(t, tt.status, tt.kind, tt.message)
		})
	}
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.do("GET", "/", nil).wantProblem(t, 404, "NotFound", "no such path: /")
	b.do("POST", "/execute/", nil).wantProblem(t, 404, "NotFound", "/execute/")
	for path, allowed := range map[string]string{"/execute": "POST", "/execute/ws": "GET", "/upload": "POST", "/download": "GET, HEAD",
		"/glob": "POST", "/grep": "POST", "/activity": "GET", "/config": "PUT", "/connect": "GET"} {
		r := b.do("DELETE", path, nil)
		r.wantProblem(t, 405, "MethodNotAllowed", "use "+allowed)
		if r.header.Get("Allow") != allowed {
			t.Errorf("%s: Allow is %q", path, r.header.Get("Allow"))
		}
	}
	b.do("GET", "/execute/ws", nil).wantProblem(t, 426, "InvalidRequest", "WebSocket")
	b.do("GET", "/execute/ws", nil, "Connection", "Upgrade", "Upgrade", "websocket").wantProblem(t, 400, "InvalidRequest", "version")
}

// A command whose time is over is killed with all its group, and no client runs
// it again.
func TestExecuteTimeout(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	r := b.execute(`{"command":"sleep 1000 & echo $! > pid; wait","timeout":1}`)
	r.wantProblem(t, 400, "CommandError", "timeout of 1s")
	if !strings.Contains(r.body, `"reason":"CommandTimeout"`) {
		t.Errorf("no reason in %s", r.body)
	}
	b.wantGone("pid")
}

// A command whose client goes away is killed with all its group.
func TestExecuteCancelled(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "POST", "http://box/execute", strings.NewReader(`{"command":"sleep 1000 & echo $! > pid; wait"}`))
	done := make(chan error, 1)
	go func() {
		_, err := b.http.Do(req)
		done <- err
	}()
	await(t, "the command", func() bool { return b.pid("pid") > 0 })
	cancel()
	if err := <-done; err == nil {
		t.Error("the cancelled request was answered")
	}
	b.wantGone("pid")
}

// pid reads a process number that a command wrote to a file, once it is whole.
func (b *box) pid(file string) int {
	text, _ := os.ReadFile(filepath.Join(b.home, file))
	pid, _ := strconv.Atoi(strings.TrimSuffix(string(text), "\n"))
	if !strings.HasSuffix(string(text), "\n") {
		return 0
	}
	return pid
}

func (b *box) wantGone(file string) {
	b.t.Helper()
	pid := b.pid(file)
	if pid <= 0 {
		b.t.Fatalf("no process number in %s", file)
	}
	await(b.t, "a process to end", func() bool { return !exists(pid) })
}

// exists reports whether there is such a process, be it one that nobody waited for.
func exists(pid int) bool { return syscall.Kill(pid, 0) == nil }

func TestExecuteLongOutput(t *testing.T) {
	t.Parallel()
	b := newLimitedBox(t, daemon.Limits{HTTPOutput: 1000})
	r := b.execute(`{"command":"printf '%0998d€€€' 0; echo -n note >&2"}`)
	var got struct{ Stdout, Stderr string }
	json.Unmarshal([]byte(r.body), &got)
	if want := strings.Repeat("0", 998); got.Stdout != want {
		t.Errorf("stdout has %d bytes, want the %d before the first code point that does not fit", len(got.Stdout), len(want))
	}
	if want := "note\n[stdout cut after 1000 bytes, 9 more were dropped: use the WebSocket for long output]\n"; got.Stderr != want {
		t.Errorf("stderr is %q, want %q", got.Stderr, want)
	}
}

// An orphan comes to the daemon, which waits for it when it ends.
func TestOrphans(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	r := b.execute(`{"command":"(setsid sh -c 'echo $$ > orphan; exec sleep 1000' &) ; while ! [ -s orphan ]; do sleep 0.01; done; echo $PPID"}`)
	var got struct{ Stdout string }
	json.Unmarshal([]byte(r.body), &got)
	orphan := b.pid("orphan")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", orphan))
	if err != nil || !strings.Contains(string(status), "PPid:\t"+got.Stdout) {
		t.Fatalf("the orphan's parent is not the daemon %s: %v\n%s", got.Stdout, err, status)
	}
	b.execute(fmt.Sprintf(`{"command":"kill -9 %d"}`, orphan))
	b.wantGone("orphan")
}

// A process that outlives the shell does not hold back the answer, and is not
// hurt by writing to a pipe that nobody reads.
func TestBackgroundChild(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	r := b.execute(`{"command":"(while ! [ -e go ]; do sleep 0.01; done; head -c 1000000 /dev/zero; echo late; echo $? > wrote) & echo now"}`)
	if want := `{"stdout":"now\n","stderr":"","exit_code":0}`; r.body != want {
		t.Errorf("got %s, want %s", r.body, want)
	}
	os.WriteFile(filepath.Join(b.home, "go"), nil, 0o644)
	await(t, "the child to go on writing", func() bool {
		text, _ := os.ReadFile(filepath.Join(b.home, "wrote"))
		return string(text) == "0\n"
	})
	// One that never stops writing does not hold it back either.
	if r := b.execute(`{"command":"yes & echo $! > pid; head -c 3000000 /dev/zero | wc -c >&2"}`); r.status != 200 || !strings.Contains(r.body, "3000000") {
		t.Errorf("got %d and %d bytes", r.status, len(r.body))
	}
	if !exists(b.pid("pid")) {
		t.Error("the writing child is gone")
	}
}
