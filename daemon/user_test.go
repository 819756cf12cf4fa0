//go:build linux

package daemon_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sbx-star/sbx-star/daemon"
)

// newRootBox makes a daemon that is root, with a home that everybody can read.
func newRootBox(t *testing.T) *box {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("it takes root to become another user")
	}
	dir := openDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return spawn(t, dir, daemon.Limits{}, &syscall.SysProcAttr{})
}

func (b *box) run(command, runConfig string) (stdout string) {
	b.t.Helper()
	r := b.execute(fmt.Sprintf(`{"command":%s,"run_config":%s}`, encode(command), runConfig))
	var got struct{ Stdout, Stderr string }
	if err := json.Unmarshal([]byte(r.body), &got); err != nil || r.status != 200 || got.Stderr != "" {
		b.t.Errorf("%s as %s: %d %s", command, runConfig, r.status, r.body)
	}
	return got.Stdout
}

// Who a command runs as, by every way to say it (protocol.md §16.3).
func TestUser(t *testing.T) {
	t.Parallel()
	b := newRootBox(t)
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	group, err := user.LookupGroup("daemon")
	if err != nil {
		t.Fatal(err)
	}
	home := " " + b.home + "  "
	his := fmt.Sprintf(" %s nobody nobody", nobody.HomeDir)
	tests := []struct{ user, want string }{ // uid, gid, groups, HOME, USER, LOGNAME
		{"nobody", fmt.Sprintf("%s %s %s%s", nobody.Uid, nobody.Gid, nobody.Gid, his)},
		{nobody.Uid, fmt.Sprintf("%s %s %s%s", nobody.Uid, nobody.Gid, nobody.Gid, his)},
		{"nobody:daemon", fmt.Sprintf("%s %s %s%s", nobody.Uid, group.Gid, group.Gid, his)},
		{nobody.Uid + ":54321", nobody.Uid + " 54321 54321" + his},
		{"12345", "12345 0 0" + home},
		{"12345:54321", "12345 54321 54321" + home},
		{"12345:daemon", fmt.Sprintf("12345 %s %s%s", group.Gid, group.Gid, home)},
		{"root:54321", "0 54321 54321 /root root root"},
	}
	const who = `echo "$(id -u) $(id -g) $(id -G) $HOME $USER $LOGNAME"`
	for _, tt := range tests {
		if got := b.run(who, fmt.Sprintf(`{"user":%q,"work_dir":"/"}`, tt.user)); got != tt.want+"\n" {
			t.Errorf("%s: got %q, want %q", tt.user, got, tt.want)
		}
	}
	if got := b.run(who, `{"user":"12345","env_vars":{"HOME":"/h","USER":"u","LOGNAME":"l"}}`); got != "12345 0 0 /h u l\n" {
		t.Errorf("the environment of the request does not win: %q", got)
	}
	if got := b.run(`echo "$(id -u) $HOME $USER"`, `{"user":"root"}`); got != "0 /root root\n" {
		t.Errorf("root is %q", got)
	}
	// Groups that only list the account are its own as well, unless one is named.
	if name, gid := withGroup(t); name != "" {
		if got := strings.Fields(b.run("id -G", fmt.Sprintf(`{"user":%q,"work_dir":"/"}`, name))); !slices.Contains(got, gid) {
			t.Errorf("%s is in the groups %v, want %s among them", name, got, gid)
		}
		if got := b.run("id -G", fmt.Sprintf(`{"user":"%s:54321","work_dir":"/"}`, name)); got != "54321\n" {
			t.Errorf("%s:54321 is in the groups %q", name, got)
		}
	}
	// The user of the configuration is that of every command, and a request's wins.
	b.configure(`{"user":"12345:54321"}`)
	if got := b.run("id -u; id -g; pwd", `{}`); got != "12345\n54321\n"+b.home+"\n" {
		t.Errorf("the configured user is %q", got)
	}
	if got := b.run("id -u; id -g", `{"user":"nobody"}`); got != nobody.Uid+"\n"+nobody.Gid+"\n" {
		t.Errorf("the request's user is %q", got)
	}
	// What the runtime sets lies below the account, and what the sandbox sets above.
	b.configure(`{"base":{"USER":"base","LOGNAME":"base","HOME":"/base","A":"base"},"env":{"LOGNAME":"env"}}`)
	for config, want := range map[string]string{`{}`: "base env /base base\n", `{"user":"nobody"}`: "nobody env " + nobody.HomeDir + " base\n", `{"user":"12345"}`: " env /base base\n"} {
		if got := b.run(`echo "$USER $LOGNAME $HOME $A"`, config); got != want {
			t.Errorf("%s: got %q, want %q", config, got, want)
		}
	}
	b.configure(`{"user":"no-such"}`)
	b.execute(`{"command":"id"}`).wantProblem(t, 400, "CommandError", `user is "no-such"`)
}

// withGroup finds an account with a supplementary group, if there is one.
func withGroup(t *testing.T) (name, gid string) {
	t.Helper()
	text, err := os.ReadFile("/etc/group")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) == 4 && fields[3] != "" && fields[3] != "root" {
			name, _, _ := strings.Cut(fields[3], ",")
			if _, err := user.Lookup(name); err == nil {
				return name, fields[2]
			}
		}
	}
	return "", ""
}

// A command of another user can open its own streams by name, is held to what
// that user may do, and can be killed.
func TestUserInPractice(t *testing.T) {
	t.Parallel()
	b := newRootBox(t)
	const other = `{"run_config":{"user":"12345:54321"}}`
	s, _ := b.startV1(message("cat < /dev/stdin > /dev/stdout; echo err > /dev/stderr", other))
	s.sendBinary("\x00in")
	s.send(`{"type":"close_stdin"}`)
	if out := s.rest(); out.stdout != "in" || out.stderr != "err\n" {
		t.Errorf("got %q and %q", out.stdout, out.stderr)
	}
	s, _ = b.start(message(`echo x > $(tty) && stty size`, other, `{"pty":true}`))
	if out := s.rest(); out.stdout != "x\r\n24 80\r\n" {
		t.Errorf("at the terminal: %q", out.stdout)
	}
	os.Chmod(b.home, 0o777)
	s, _ = b.startV1(message("echo $$ > pid; trap '' TERM; echo; sleep 1000", other))
	s.next()
	s.send(`{"type":"signal","signal":"KILL"}`)
	s.restFrom(1, 0).wantExit(t, 137)
	b.wantGone("pid")

	os.Mkdir(b.path("closed"), 0o700)
	b.put("program", "#!/bin/sh\n", 0o700)
	b.put("secret", "x", 0o600)
	for command, want := range map[string]string{
		`{"command":"pwd","run_config":{"user":"12345","work_dir":` + encode(b.path("closed")) + `}}`: "closed: permission denied",
		`{"command":["./program"],"run_config":{"user":"12345"}}`:                                     "./program: permission denied",
	} {
		b.execute(command).wantProblem(t, 400, "CommandError", want)
	}
	if got := b.run("cat secret > /dev/null 2>&1 || echo no; grep -cE 'Cap(Prm|Eff):\t0+$' /proc/self/status", `{"user":"12345"}`); got != "no\n2\n" {
		t.Errorf("got %q", got)
	}
}

// Files are read and written by the configured user.
func TestFilesOfUser(t *testing.T) {
	t.Parallel()
	b := newRootBox(t)
	os.Chmod(b.home, 0o777)
	os.Mkdir(b.path("fixed"), 0o755)
	b.put("fixed/secret", "x", 0o600)
	b.configure(`{"user":"12345:54321"}`)
	if r := b.upload("new/f", "file", "mine"); r.status != 200 {
		t.Fatal(r)
	}
	for _, name := range []string{"new", "new/f"} {
		info, err := os.Stat(b.path(name))
		if err != nil {
			t.Fatal(err)
		}
		if owner := info.Sys().(*syscall.Stat_t); owner.Uid != 12345 || owner.Gid != 54321 {
			t.Errorf("%s belongs to %d:%d", name, owner.Uid, owner.Gid)
		}
	}
	b.upload("fixed/f", "file", "").wantProblem(t, 403, "PermissionDenied", "permission denied")
	b.upload("fixed/secret", "file", "").wantProblem(t, 403, "PermissionDenied", "permission denied")
	b.download("fixed/secret").wantProblem(t, 403, "PermissionDenied", "permission denied")
	if r := b.download("new/f"); r.body != "mine" {
		t.Errorf("got %d %s", r.status, r.body)
	}
	b.configure(`{"user":"no-such"}`)
	b.download("new/f").wantProblem(t, 400, "ReadError", `user is "no-such"`)
	b.upload("new/f", "file", "").wantProblem(t, 400, "WriteError", `user is "no-such"`)
	b.configure(`{}`)
	if r := b.download("fixed/secret"); r.body != "x" {
		t.Errorf("the daemon has not become root again: %d %s", r.status, r.body)
	}
}

// Users do not leak from one request into another.
func TestUsersAtOnce(t *testing.T) {
	t.Parallel()
	b := newRootBox(t)
	b.put("secret", "x", 0o600)
	const n = 8
	results := make(chan error, 2*n)
	for i := range n {
		go func() {
			var err error
			for range 10 {
				r := b.execute(fmt.Sprintf(`{"command":"id -u; cat secret 2>&1","run_config":{"user":"%d"}}`, 12345+i))
				if !strings.Contains(r.body, fmt.Sprintf(`"stdout":"%d\ncat: secret: Permission denied`, 12345+i)) {
					err = errors.New(r.body)
				}
			}
			results <- err
		}()
		go func() {
			var err error
			for range 10 {
				if r := b.download("secret"); r.body != "x" {
					err = errors.New(r.body)
				}
			}
			results <- err
		}()
	}
	for range 2 * n {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// A sandbox with one user has no other.
func TestUserOfOne(t *testing.T) {
	t.Parallel()
	b := spawn(t, t.TempDir(), daemon.Limits{}, &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	})
	if got := b.run("id -u", `{"user":"0:0"}`); got != "0\n" {
		t.Errorf("the one user is %q", got)
	}
	for _, name := range []string{"12345", "nobody", "0:54321"} {
		b.execute(fmt.Sprintf(`{"command":"id","run_config":{"user":%q}}`, name)).wantProblem(t, 400, "CommandError",
			fmt.Sprintf("the user is %q, but commands of this sandbox can only run as user 0 of group 0", name))
	}
}
