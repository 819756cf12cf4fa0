//go:build linux

package daemon_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func (b *box) configure(config string) reply {
	b.t.Helper()
	return b.do("PUT", "/config", strings.NewReader(config))
}

// A new configuration is for commands that start later.
func TestConfigure(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	want := func(stdout string) {
		t.Helper()
		r := b.execute(`{"command":"echo $BOX $A; pwd; echo $HOME"}`)
		if want := encode(map[string]any{"stdout": stdout, "stderr": "", "exit_code": 0}); !sameJSON(r.body, want) {
			t.Errorf("got %s, want %s", r.body, want)
		}
	}
	path := b.execute(`{"command":"echo $PATH"}`).body
	want("yes\n" + b.home + "\n" + b.home + "\n")
	s, _ := b.start(message("read x; echo $BOX; pwd"))
	if r := b.configure(`{"env":{"A":"1"},"work_dir":"/"}`); r.status != 204 || r.body != "" {
		t.Fatalf("got %d %s", r.status, r.body)
	}
	want("1\n/\n" + b.home + "\n")
	if got := b.execute(`{"command":"echo $PATH"}`).body; got != path {
		t.Errorf("PATH, which is the runtime's, was %s and is %s", path, got)
	}
	s.send(`{"type":"input","data":"\n"}`)
	if out := s.rest(); out.stdout != "yes\n"+b.home+"\n" {
		t.Errorf("the running command printed %q", out.stdout)
	}
	if out, _ := b.start(message("echo $A$B; pwd", `{"run_config":{"env_vars":{"B":"2"}}}`)); out.rest().stdout != "12\n/\n" {
		t.Error("a request does not lie over the new configuration")
	}
	b.configure(`{"home":"/tmp"}`)
	want("\n/tmp\n/tmp\n")
	for _, tt := range []struct{ config, message string }{
		{`{`, "not JSON"},
		{`{"env":{"A=":"1"}}`, `"A=" cannot be set`},
		{`{"env":{"A":1}}`, "want a string, got number"},
		{`{"work_dir":"sub"}`, `work_dir is "sub": give an absolute path`},
		{`{"home":"sub"}`, `home is "sub": give an absolute path`},
		{`{"user":":1"}`, `user is ":1"`},
	} {
		b.configure(tt.config).wantProblem(t, 400, "InvalidRequest", tt.message)
	}
	want("\n/tmp\n/tmp\n") // what was refused changes nothing
}

func sameJSON(a, b string) bool {
	var x, y any
	return json.Unmarshal([]byte(a), &x) == nil && json.Unmarshal([]byte(b), &y) == nil && encode(x) == encode(y)
}

func (b *box) activity() (commands int, last time.Time) {
	b.t.Helper()
	var got struct {
		Commands int
		Last     time.Time
	}
	r := b.do("GET", "/activity", nil)
	if err := json.Unmarshal([]byte(r.body), &got); err != nil || r.status != 200 || got.Last.IsZero() {
		b.t.Fatalf("got %d %s, %v", r.status, r.body, err)
	}
	return got.Commands, got.Last
}

func TestActivity(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	commands, last := b.activity()
	if again, then := b.activity(); commands != 0 || again != 0 || !then.Equal(last) {
		t.Errorf("asking counts: %d at %v, then %d at %v", commands, last, again, then)
	}
	want := func(what string, n int) {
		t.Helper()
		await(t, what, func() bool { got, _ := b.activity(); return got == n })
	}
	later := func(what string) {
		t.Helper()
		_, then := b.activity()
		if !then.After(last) {
			t.Errorf("%s: last is %v, was %v", what, then, last)
		}
		last = then
	}
	one, started := b.start(message("read x"))
	two, _ := b.startV1(reconnect(started.CommandID, 0, 0))
	want("one command", 1)
	later("a command")
	three, _ := b.start(message("sleep 1000"))
	want("two commands", 2)
	three.conn.Close()
	want("the second to be left alone", 1)
	one.conn.Close()
	later("a socket")
	two.send(`{"type":"input","data":"\n"}`)
	two.rest()
	want("the first to end", 0)
	later("input")
	done := make(chan reply, 1)
	go func() { done <- b.execute(`{"command":"mkfifo wait; read x < wait"}`) }()
	want("a command over HTTP", 1)
	await(t, "the pipe", func() bool {
		return strings.Contains(b.execute(`{"command":"[ -p wait ] && echo > wait"}`).body, `"exit_code":0`)
	})
	<-done
	want("its end", 0)
	later("HTTP")
	b.download("nothing")
	later("a file")
}
