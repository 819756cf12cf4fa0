//go:build linux

package conformance

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// This file tests the data plane: commands and files over HTTP (protocol.md §5,
// §16.3–§16.5) and commands over a WebSocket (§6.2–§6.6, §16.2, §16.14).

func TestExecute(t *testing.T) { // §5
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(`"env_vars":{"A":"1","B":"1"}`)
		const post = "POST $url/execute"
		f.do(
			step{post, `{"command":"echo out; echo err >&2","timeout":60,"shell":"/bin/bash"}`, 200, `{"stdout":"out\n","stderr":"err\n","exit_code":0}`},
			step{post, `{"command":"exit 3"}`, 200, `{"stdout":"","stderr":"","exit_code":3}`},
			step{post, `{"command":"kill -TERM $$"}`, 200, `{"exit_code":143}`},
			step{post, `{"command":["printf","%s-","a b","c"]}`, 200, `{"stdout":"a b-c-"}`},
			step{post, `{"command":"echo $0","shell":"/bin/sh"}`, 200, `{"stdout":"/bin/sh\n"}`},
			step{post, `{"command":"shopt -q login_shell || echo plain"}`, 200, `{"stdout":"plain\n"}`},
			step{post, `{"command":"echo $A$B","env":{"B":"2"}}`, 200, `{"stdout":"12\n"}`},
			step{post, `{"command":"pwd","cwd":"/usr"}`, 200, `{"stdout":"/usr\n"}`},
			step{post, `{"command":"[ . -ef $HOME ] && echo home","env":{}}`, 200, `{"stdout":"home\n"}`},
			step{post, `{"command":"readlink /proc/self/fd/0"}`, 200, `{"stdout":"/dev/null\n"}`},
			step{post, `{"command":"printf '\\303\\251\\377'"}`, 200, `{"stdout":"é�"}`},
			step{post, `{"command":"true","timeout":0}`, 200, `{"exit_code":0}`},
		)
	})
}

// The limits in time and size, and failures to start (§5).
func TestExecuteRefusals(t *testing.T) {
	t.Parallel() // it waits
	each(t, "all", func(t *testing.T, f *fixture) {
		t.Parallel()
		f.box(``)
		const post = "POST $url/execute"
		f.do(
			step{post, `{"command":"sleep 1000","timeout":60,"timeout_seconds":1}`, 400, `{"detail":{"error":"CommandError","message":"~1s","reason":"CommandTimeout"}}`},
			step{post, `{"command":"true","shell":"/no/shell"}`, 400, formA("CommandError")},
			step{post, `{"command":"true","cwd":"/no/folder"}`, 400, formA("CommandError")},
			step{post, `{"command":["no-such-program"]}`, 400, formA("CommandError")},
			step{"GET $url/execute", ``, 405, ``},
		)
		_, body, err := f.send(t.Context(), post, `{"command":"head -c 11000000 /dev/zero | tr '\\0' x"}`)
		var answer struct{ Stdout, Stderr string }
		if err != nil || json.Unmarshal(body, &answer) != nil || len(answer.Stdout) != 10<<20 || answer.Stderr == "" {
			t.Errorf("of 11 MB came %d bytes, with the note %q, %v", len(answer.Stdout), answer.Stderr, err)
		}
	})
}

func TestFiles(t *testing.T) { // §5
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		f.do(
			upload("a/b/new", "text", 200, `{"path":"a/b/new","written":4}`),
			execute("stat -c %a a/b a/b/new", 0, "755\n644\n"),
			execute("chmod 600 a/b/new", 0, ""),
			upload("a/b/new", "other", 200, `{"written":5}`),
			execute("stat -c %a a/b/new; ls -A a/b", 0, "600\nnew\n"),
			step{"GET $url/download?path=a%2Fb%2Fnew", ``, 200, "Content-Type: application/octet-stream\n=other"},
			step{"GET $url/download?path=none", ``, 404, formA("FileNotFound")},
			step{"GET $url/download?path=a", ``, 400, formA("ReadError")},
			step{"GET $url/download?path=%2Fetc%2Fpasswd%2Fx", ``, 404, formA("FileNotFound")},
			upload("a", "text", 400, formA("WriteError")),
			upload("a/b/new/x", "text", 400, formA("WriteError")),
			step{"POST $url/upload?path=x", `text`, 400, formA("InvalidRequest")},
			step{"GET $url/upload?path=x", ``, 405, ``},
			step{"GET $url/nothing", ``, 404, formA("NotFound")},
		)
	})
}

func TestRanges(t *testing.T) { // §16.4, §16.14
	each(t, "late", func(t *testing.T, f *fixture) {
		f.box(``)
		const get = "GET $url/download?path=f\nRange: bytes="
		f.do(
			upload("f", "0123456789", 200, ``),
			upload("empty", "", 200, ``),
			step{"HEAD $url/download?path=f", ``, 200, "Content-Length: 10\nAccept-Ranges: bytes\nLast-Modified: *\nEtag: $etag\n="},
			step{"GET $url/download?path=f", ``, 200, "Content-Length: 10\nAccept-Ranges: bytes\nEtag: $etag\n=0123456789"},
			step{get + "2-4", ``, 206, "Content-Range: bytes 2-4/10\nEtag: $etag\n=234"},
			step{get + "8-99", ``, 206, "Content-Range: bytes 8-9/10\n=89"},
			step{get + "-3", ``, 206, "Content-Range: bytes 7-9/10\n=789"},
			step{get + "-99", ``, 206, "Content-Range: bytes 0-9/10\n=0123456789"},
			step{get + "2-4\nIf-Range: \"x\"", ``, 200, "=0123456789"},
			step{get + "2-4\nIf-Range: $etag", ``, 206, "=234"},
			step{get + "0-\nIf-None-Match: $etag", ``, 304, "Etag: $etag\n="},
			step{get + "10-", ``, 416, "Content-Range: bytes */10\n"},
			step{get + "0-1,3-4", ``, 200, "=0123456789"},
			step{get + "x", ``, 200, "=0123456789"},
			step{"GET $url/download?path=empty\nRange: bytes=0-", ``, 200, "Content-Length: 0\n="},
			step{"HEAD $url/download?path=none", ``, 404, ``},
			step{"HEAD $url/download?path=.", ``, 400, ``},
			upload("f", "9876543210", 200, ``),
			step{"GET $url/download?path=f\nIf-None-Match: $etag", ``, 200, "=9876543210"}, // of the same size at the same second
		)
	})
}

func TestSearch(t *testing.T) { // §16.5
	each(t, "late", func(t *testing.T, f *fixture) {
		f.box(``)
		f.do(
			execute(`mkdir -p d/e && printf 'one\ntwo one\n' > d/a.py && printf 'one.' > d/e/b.py && printf 'on\0e one' > d/bin && ln -s none d/.link && pwd -P > root`, 0, ""),
			step{"GET $url/download?path=root", ``, 200, ``},
		)
		_, root, err := f.send(t.Context(), "GET $url/download?path=root", "")
		if err != nil {
			t.Fatal(err)
		}
		f.vars["d"] = strings.TrimSpace(string(root)) + "/d"
		const glob, grep = "POST $url/glob", "POST $url/grep"
		f.do(
			step{glob, `{"pattern":"*","path":"$d"}`, 200, `{"matches":[{"path":"~/d/.link","is_dir":false,"size_bytes":0},{"path":"~/d/a.py","size_bytes":12,"modified_at":"*"},{"path":"~/d/bin"},{"path":"~/d/e","is_dir":true}],"truncated":false}`},
			step{glob, `{"pattern":"**/*.py","path":"$d"}`, 200, `{"matches":[{"path":"~/d/a.py"},{"path":"~/d/e/b.py"}]}`},
			step{glob, `{"pattern":"*","path":"$d","limit":1}`, 200, `{"matches":[{"path":"~/d/.link"}],"truncated":true}`},
			step{glob, `{"pattern":"none","path":"$d"}`, 200, `{"matches":[],"truncated":false}`},
			step{glob, `{"pattern":"*","path":"relative"}`, 400, formA("InvalidRequest")},
			step{glob, `{"pattern":"","path":"$d"}`, 400, formA("InvalidRequest")},
			step{glob, `{"pattern":"[","path":"$d"}`, 400, formA("InvalidRequest")},
			step{glob, `{"pattern":"*","path":"$d/none"}`, 404, formA("FileNotFound")},
			step{glob, `{"pattern":"*","path":"$d/a.py"}`, 400, formA("ReadError")},
			step{glob, `{"pattern":"*","path":"$d","limit":0}`, 422, ``},
			step{glob, `{"pattern":"*","path":"$d","limit":10001}`, 422, ``},
			step{grep, `{"pattern":"one","path":"$d"}`, 200, `{"matches":[{"path":"~/d/a.py","line":1,"text":"one"},{"path":"~/d/a.py","line":2,"text":"two one"},{"path":"~/d/e/b.py","line":1,"text":"one."}],"truncated":false}`},
			step{grep, `{"pattern":"e.","path":"$d"}`, 200, `{"matches":[{"path":"~/d/e/b.py"}]}`},
			step{grep, `{"pattern":"one","path":"$d","glob":"b.*"}`, 200, `{"matches":[{"path":"~/d/e/b.py"}]}`},
			step{grep, `{"pattern":"one","path":"$d","glob":"e/*"}`, 200, `{"matches":[{"path":"~/d/e/b.py"}]}`},
			step{grep, `{"pattern":"one","path":"$d","limit":1}`, 200, `{"matches":[{"line":1}],"truncated":true}`},
			step{grep, `{"pattern":"one","path":"$d/a.py"}`, 200, `{"matches":[{"line":1},{"line":2}]}`},
			step{grep, `{"pattern":"","path":"$d"}`, 400, formA("InvalidRequest")},
			step{grep, `{"pattern":"x","path":"$d/none"}`, 404, formA("FileNotFound")},
		)
	})
}

func TestRunConfig(t *testing.T) { // §16.3
	each(t, "late", func(t *testing.T, f *fixture) {
		f.box(`"name":"b","run_config":{"work_dir":"/usr","env_vars":{"A":"box","B":"box","C":"box"}},"env_vars":{"B":"env"}`)
		const post = "POST $url/execute"
		f.do(
			step{post, `{"command":"pwd; echo $A $B $C","run_config":{"env_vars":{"C":"command"}}}`, 200, `{"stdout":"/usr\nbox env command\n"}`},
			step{post, `{"command":"pwd","run_config":{"work_dir":"/etc"}}`, 200, `{"stdout":"/etc\n"}`},
			step{post, `{"command":"true","run_config":{"work_dir":"relative"}}`, 400, formA("InvalidRequest")},
			step{post, `{"command":"true","run_config":{"work_dir":"/no/folder"}}`, 400, formA("CommandError")},
			step{post, `{"command":"true","run_config":{"user":"no-such-user"}}`, 400, formA("CommandError")},
			step{post, `{"command":"true","run_config":{"user":1}}`, 400, formA("InvalidRequest")},
			step{post, `{"command":"true","run_config":{},"env":{}}`, 400, formA("InvalidRequest")},
			step{post, `{"command":"true","run_config":{},"cwd":"/"}`, 400, formA("InvalidRequest")},
			step{"POST /boxes", `{"run_config":{"work_dir":"relative"}}`, 422, formB("body", "run_config", "work_dir")},
			step{"POST /boxes", `{"run_config":{"user":1}}`, 422, formB("body", "run_config", "user")},
			step{"PATCH /boxes/b", `{"run_config":{"env_vars":{"A":"patched"}}}`, 200, `{"run_config":{"work_dir":"/usr","env_vars":{"A":"patched","B":"box","C":"box"}}}`},
			step{post, `{"command":"echo $A $B"}`, 200, `{"stdout":"patched env\n"}`},
		)
		f.play(`C {"type":"execute","command":"true","run_config":{},"cwd":"/"}`, `S {"type":"error","error":"*","error_type":"InvalidRequest"}`, `1000`)
		f.play(`C {"type":"execute","command":"pwd","run_config":{"work_dir":"/etc"},"close_stdin":true}`, `S {"type":"started"}`,
			`S {"type":"stdout","data":"/etc\n"}`, `S {"type":"exit","exit_code":0}`, `1000`)
	})
}

// As clients of all generations send it.
const executeMessage = `"timeout_seconds":60,"shell":"/bin/bash","idle_timeout_seconds":300,"kill_on_disconnect":false,"ttl_seconds":600`

// command is the message that runs a command.
func command(line, more string) string {
	text, _ := json.Marshal(line)
	return `C {"type":"execute","command":` + string(text) + `,` + executeMessage + more + `}`
}

func TestExecMessages(t *testing.T) { // §6.2, §6.3, §6.4
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		const exit0 = `S {"type":"exit","exit_code":0}`
		f.play(command("printf 'hé\n'", ""), `S {"type":"started","command_id":"*","pid":"$pid"}`,
			`S {"type":"stdout","data":"hé\n","offset":0}`, exit0, `1000`)
		f.play(command("echo e >&2; exit 3", `,"command_id":"chosen"`), `S {"type":"started","command_id":"$chosen"}`,
			`S {"type":"stderr","data":"e\n","offset":0}`, `S {"type":"exit","exit_code":3}`, `1000`)
		f.play(command("echo $A; pwd", `,"env":{"A":"1"},"cwd":"/usr"`), `S {"type":"started"}`, `S {"type":"stdout","data":"~1\n"}`).Close()
		// Input, unknown fields and unknown messages.
		f.play(command("read x; echo got $x", `,"future":[1]`), `S {"type":"started"}`,
			`C {"type":"future","data":1}`, `C {"type":"input","data":"ü","future":1}`, `C {"type":"input","data":"\n"}`,
			`S {"type":"stdout","data":"got ü\n","offset":0}`, exit0, `1000`)
		f.play(command("sleep 1000 & sleep 1000", ""), `S {"type":"started"}`, `C {"type":"kill"}`, `S {"type":"exit","exit_code":137}`, `1000`)
		for _, first := range []string{`C nonsense`, `C {"type":"input","data":"x"}`, `C {"type":"future"}`, `C []`} {
			f.play(first, `S {"type":"error","error":"*","error_type":"InvalidRequest"}`, `1000`)
		}
		f.play(command("true", `,"cwd":"/no/folder"`), `S {"type":"error","error":"*","error_type":"CommandError"}`, `1000`)
		// A terminal is one stream of 80×24 with an echo; \x03 interrupts.
		s := f.play(command(`stty size; echo $TERM; exec cat`, `,"pty":true`), `S {"type":"started"}`)
		var text string
		for at := int64(0); !strings.Contains(text, "xterm-256color\r\n"); at = int64(len(text)) {
			var m message
			if err := s.ReadJSON(&m); err != nil || m.Type != "stdout" || m.Offset != at {
				t.Fatalf("%+v, %v", m, err)
			}
			text += m.Data
		}
		if !strings.Contains(text, "24 80\r\n") {
			t.Errorf("the terminal says %q", text)
		}
		s.play(`C {"type":"input","data":"a line\n"}`)
		for echoed := text + "a line\r\na line\r\n"; len(text) < len(echoed); {
			var m message
			if err := s.ReadJSON(&m); err != nil || m.Type != "stdout" || !strings.HasPrefix(echoed, text+m.Data) {
				t.Fatalf("%+v, %v", m, err)
			}
			text += m.Data
		}
		// The kernel may drop its echo of \x03 with the terminal.
		s.play(`C {"type":"input","data":"\u0003"}`)
		if texts, last := s.rest(int64(len(text)), 0); last.Type != "exit" || last.ExitCode != 130 {
			t.Errorf("after \\x03: %q, %+v", texts, last)
		}
	})
}

func TestExecErrors(t *testing.T) { // §6.5; CommandTimeout is in TestDefect04
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		f.play(`C {"type":"reconnect","command_id":"none","stdout_offset":0,"stderr_offset":0}`, `S {"type":"error","error":"*","error_type":"CommandNotFound"}`, `1000`)
		f.play(`C {"type":"execute","command":"true","ttl_seconds":0,"command_id":"dropped"}`, `S {"type":"started","command_id":"$dropped"}`, `S {"type":"exit","exit_code":0}`, `1000`)
		// It is dropped when the socket is left, which nothing tells.
		var last message
		for end := time.Now().Add(20 * time.Second); last.Type != "error" && time.Now().Before(end); {
			s := f.play(`C {"type":"reconnect","command_id":"$dropped","stdout_offset":0,"stderr_offset":0}`)
			if _, last = s.rest(0, 0); last.Type == "started" {
				_, last = s.rest(0, 0)
			}
			s.Close()
		}
		if last.ErrorType != "SessionExpired" {
			t.Errorf("got %+v", last)
		}
	})
}

func TestSessions(t *testing.T) { // §6.6, §14
	t.Parallel() // it waits
	each(t, "all", func(t *testing.T, f *fixture) {
		t.Parallel()
		f.box(``)
		const (
			started = `S {"type":"started","command_id":"$c","pid":"$pid"}`
			exit0   = `S {"type":"exit","exit_code":0}`
		)
		// The socket is lost; another goes on where it was.
		f.play(command("echo hé; read x; echo $x", `,"command_id":"c"`), started, `S {"type":"stdout","data":"hé\n","offset":0}`).Close()
		second := f.play(`C {"type":"reconnect","command_id":"$c","stdout_offset":4,"stderr_offset":0}`, started)
		// Several clients at a time, each with its own offsets.
		third := f.play(`C {"type":"reconnect","command_id":"$c","stdout_offset":1,"stderr_offset":0}`, started, `S {"type":"stdout","data":"é\n","offset":1}`)
		second.play(`C {"type":"input","data":"in\n"}`)
		for _, s := range []*socket{second, third} {
			s.play(`S {"type":"stdout","data":"in\n","offset":4}`, exit0, `1000`)
		}
		// It has ended: the rest and the end are kept. Offsets beyond it are its end.
		f.play(`C {"type":"reconnect","command_id":"$c","stdout_offset":4,"stderr_offset":0}`, started, `S {"type":"stdout","data":"in\n","offset":4}`, exit0, `1000`)
		f.play(`C {"type":"reconnect","command_id":"$c","stdout_offset":99,"stderr_offset":99}`, started, exit0, `1000`)
		// The same id again is the same command, where clients choose ids (§12).
		if f.has("head late") {
			f.play(command("echo another", `,"command_id":"c"`), started, `S {"type":"stdout","data":"hé\nin\n","offset":0}`, exit0, `1000`)
		}
		// No client for the idle time, or none at all.
		f.play(`C {"type":"execute","command":"exec sleep 1000","command_id":"idle","idle_timeout_seconds":1}`, `S {"type":"started","command_id":"$idle","pid":"$idlepid"}`).Close()
		f.play(`C {"type":"execute","command":"exec sleep 1000","command_id":"bound","kill_on_disconnect":true}`, `S {"type":"started","command_id":"$bound","pid":"$boundpid"}`).Close()
		for _, id := range []string{"idle", "bound"} {
			f.until(step{"POST $url/execute", `{"command":["bash","-c","! kill -0 $` + id + `pid"]}`, 200, `{"exit_code":0}`})
			f.play(`C {"type":"reconnect","command_id":"$`+id+`","stdout_offset":0,"stderr_offset":0}`, `S {"type":"started"}`, `S {"type":"exit","exit_code":137}`, `1000`)
		}
	})
}

// Before head the ids of commands are the server's, and before late input has no
// end (§12): what says otherwise is as unknown as any field or message. exec.v1
// has both in every generation.
func TestCommandsOfOldGenerations(t *testing.T) {
	each(t, "seed classic head", func(t *testing.T, f *fixture) {
		if f.generation == "" {
			return // together they are late
		}
		f.box(``)
		const exit0 = `S {"type":"exit","exit_code":0}`
		for _, name := range []string{"first", "second"} {
			f.play(command("echo again", `,"command_id":"mine"`), `S {"type":"started","command_id":"$`+name+`"}`, `S {"type":"stdout","data":"again\n"}`, exit0, `1000`)
		}
		first, second := f.expand("$first"), f.expand("$second")
		if head := f.generation == head; (first == "mine") != head || (first == second) != head {
			t.Errorf("the commands are %s and %s", first, second)
		}
		f.play(`C {"type":"reconnect","command_id":"$second","stdout_offset":0,"stderr_offset":0}`, `S {"type":"started","command_id":"$second"}`, `S {"type":"stdout","data":"again\n"}`, exit0, `1000`)
		f.play(command("read x; read y; echo $x$y", `,"close_stdin":true`), `S {"type":"started"}`, `C {"type":"close_stdin"}`,
			`C {"type":"input","data":"a\nb\n"}`, `S {"type":"stdout","data":"ab\n"}`, exit0, `1000`)
		f.play(`C {"type":"close_stdin"}`, `S {"type":"error","error":"~first message","error_type":"InvalidRequest"}`, `1000`)
		f.playV1(command("cat", `,"command_id":"v1"`), `S {"type":"started","command_id":"v1"}`, `C {"type":"close_stdin"}`, exit0, `1000`)
		f.playV1(command("cat", `,"close_stdin":true`), `S {"type":"started"}`, exit0, `1000`)
	})
}

func TestStandardInput(t *testing.T) { // §16.2, §16.14
	each(t, "late", func(t *testing.T, f *fixture) {
		f.box(``)
		const exit0 = `S {"type":"exit","exit_code":0}`
		f.play(command("readlink /proc/self/fd/0", `,"close_stdin":true`), `S {"type":"started"}`, `S {"type":"stdout","data":"/dev/null\n"}`, exit0, `1000`)
		f.play(command("cat; [ -p /dev/stdin ] && echo pipe", ``), `S {"type":"started"}`, `C {"type":"input","data":"a"}`, `S {"type":"stdout","data":"a","offset":0}`,
			`C {"type":"close_stdin"}`, `C {"type":"close_stdin"}`, `C {"type":"input","data":"ignored"}`, `S {"type":"stdout","data":"pipe\n","offset":1}`, exit0, `1000`)
		// The end belongs to the session, and may come before it.
		f.play(command("cat", `,"command_id":"cmd1"`), `S {"type":"started"}`).Close()
		f.play(`C {"type":"close_stdin"}`, `C {"type":"reconnect","command_id":"cmd1","stdout_offset":0,"stderr_offset":0}`, `S {"type":"started","command_id":"cmd1"}`, exit0, `1000`)
		f.play(`C {"type":"close_stdin"}`, command("cat", ``), `S {"type":"started"}`, exit0, `1000`)
		// A terminal has no end of file but \x04.
		s := f.play(command("stty -echo; echo ready; cat", `,"pty":true`), `S {"type":"started"}`)
		var text string
		for !strings.Contains(text, "ready\r\n") {
			var m message
			if err := s.ReadJSON(&m); err != nil {
				t.Fatal(err)
			}
			text += m.Data
		}
		s.play(`C {"type":"close_stdin"}`, `C {"type":"input","data":"still\n\u0004"}`)
		if texts, last := s.rest(int64(len(text)), 0); texts["stdout"] != "still\r\n" || last.Type != "exit" || last.ExitCode != 0 {
			t.Errorf("%q, %+v", texts, last)
		}
	})
}

// Upgrades that are refused (§6.1): form A before any upgrade.
func TestUpgradeRefused(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		f.do(
			step{"GET $url" + upgrade + "\nX-Api-Key: wrong", ``, 401, formA("Unauthorized")},
			step{"GET !/sb/none" + upgrade, ``, 404, formA("NotFound")},
		)
		if _, res, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(f.expand("$url"), "http")+"/execute/ws", nil); !errors.Is(err, websocket.ErrBadHandshake) || res.StatusCode != 401 {
			t.Errorf("got %v, %v", res, err)
		}
	})
}

// Further rows of files (§5, §16.4): links behave as the data plane does, and
// nothing is compressed.
func TestRangesOfLinks(t *testing.T) {
	each(t, "late", func(t *testing.T, f *fixture) {
		f.box(``)
		f.do(
			upload("f", "0123456789", 200, ``),
			upload("empty", "", 200, ``),
			step{"POST /boxes/$id/download-url", `{"path":"f"}`, 200, `{"download_url":"$link"}`},
			step{"POST /boxes/$id/download-url", `{"path":"empty"}`, 200, `{"download_url":"$empty"}`},
			step{"HEAD $url/download?path=f", ``, 200, "Last-Modified: $modified\nEtag: $etag\n="},
		)
		for _, get := range []string{"GET $url/download?path=f\nAccept-Encoding: gzip\nRange: bytes=", "GET $link\nX-Api-Key: \nAccept-Encoding: gzip\nRange: bytes="} {
			f.do(
				step{get + "2-4", ``, 206, "Content-Encoding: \nContent-Range: bytes 2-4/10\nEtag: $etag\n=234"},
				step{get + "2-4\nIf-Range: $modified", ``, 206, "=234"},
				step{get + "2-4\nIf-Range: Thu, 01 Jan 1970 00:00:00 GMT", ``, 200, "=0123456789"},
				step{get + "2-4\nIf-Range: W/$etag", ``, 200, "=0123456789"},
				step{get + "2-4\nIf-Range: \"x\"\nIf-None-Match: $etag", ``, 304, "Etag: $etag\n="},
				step{get + "10-", ``, 416, "Content-Range: bytes */10\n"},
				step{get + "0-1,3-4", ``, 200, "=0123456789"},
			)
		}
		f.do(step{"GET $empty\nRange: bytes=5-", ``, 200, "Content-Length: 0\n="})
	})
}

// Further rows of search (§16.5).
func TestSearchRows(t *testing.T) {
	each(t, "late", func(t *testing.T, f *fixture) {
		f.box(``)
		f.do(
			execute(`mkdir -p d/real && cd d && ln -s real linked && printf 'x\377y' > real/odd && head -c 10000 /dev/zero | tr '\0' x > real/wide && touch b10 b2 B && pwd -P > ../root`, 0, ""),
		)
		_, root, err := f.send(t.Context(), "GET $url/download?path=root", "")
		if err != nil {
			t.Fatal(err)
		}
		f.vars["d"] = strings.TrimSpace(string(root))
		const glob, grep = "POST $url/glob", "POST $url/grep"
		f.do(
			step{glob, `{"pattern":"**/*","path":"$d"}`, 200, `{"matches":[{"path":"$d/B"},{"path":"$d/b10"},{"path":"$d/b2"},{"path":"$d/linked","is_dir":true},{"path":"$d/real","is_dir":true},{"path":"$d/real/odd"},{"path":"$d/real/wide"}]}`},
			step{glob, `{"pattern":"[bB]?","path":"$d"}`, 200, `{"matches":[{"path":"$d/b2"}]}`},
			step{glob, `{"pattern":"[!b]","path":"$d"}`, 200, `{"matches":[{"path":"$d/B"}]}`},
			step{grep, `{"pattern":"y","path":"$d"}`, 200, `{"matches":[{"path":"$d/real/odd","line":1,"text":"x�y"}]}`},
			step{grep, `{"pattern":"xxx","path":"$d/real/wide"}`, 200, `{"matches":[{"text":"` + strings.Repeat("x", 4096) + `"}],"truncated":false}`},
			step{grep, `{"pattern":"xxx","path":"$d","limit":0}`, 422, ``},
		)
	})
}

// A daemon that was killed (§5): what may have run is no 502, and after it the
// sandbox has failed.
func TestDaemonGone(t *testing.T) {
	each(t, "all", func(t *testing.T, f *fixture) {
		f.box(``)
		f.do(step{"POST $url/execute", `{"command":"kill -9 $PPID; sleep 1000"}`, 500, formA("CommandError")})
		f.until(step{"POST $url/execute", `{"command":"true"}`, 400, formA("NotReady")})
		f.do(step{"GET /boxes/$id/status", ``, 200, `{"status":"failed","status_message":"*"}`})
	})
}
