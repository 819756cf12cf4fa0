//go:build linux

package main

import (
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/creack/pty"
	"github.com/rogpeppe/go-internal/testscript"
)

// This file defines the script command that is a person at a terminal:
//
//	terminal CODE DIALOGUE COMMAND…
//
// runs the command on a pseudo-terminal and fails unless it ends with CODE. The
// lines of the file DIALOGUE are what the person does:
//
//	> TEXT     types TEXT, in which escapes are as in Go, and Enter
//	! TEXT     types TEXT alone
//	< REGEXP   waits until the terminal shows this, behind what was waited for
//	           last; the escape sequences of the terminal are left out
//
// Empty lines and those that begin with # are passed over.
func terminal(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 3, "terminal CODE DIALOGUE COMMAND…")
	cmd := command(ts, args[2:])
	cmd.Env = append(cmd.Env, "TERM=xterm")
	cmd.Stdout, cmd.Stderr = nil, nil
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 30, Cols: 100})
	ts.Check(err)
	shown := &screen{changed: make(chan struct{}, 1)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 4096)
		for {
			n, err := tty.Read(buf)
			shown.add(buf[:n])
			if err != nil { // the last program that had it open has ended
				return
			}
		}
	}()
	ended := false
	defer func() {
		if !ended {
			cmd.Process.Kill()
			cmd.Wait()
		}
		tty.Close()
		<-read
	}()
	for _, line := range strings.Split(ts.ReadFile(args[1]), "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		text := strings.TrimPrefix(line[1:], " ")
		switch line[0] {
		case '>', '!':
			keys, err := strconv.Unquote(`"` + strings.ReplaceAll(text, `"`, `\"`) + `"`)
			ts.Check(err)
			if line[0] == '>' {
				keys += "\r"
			}
			_, err = tty.WriteString(keys)
			ts.Check(err)
		case '<':
			if !shown.wait(regexp.MustCompile(text)) {
				ts.Fatalf("the terminal does not show %s, but\n%s", text, shown)
			}
		default:
			ts.Fatalf("a dialogue has no lines such as %q", line)
		}
	}
	timer := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer timer.Stop()
	err = cmd.Wait()
	ended = true
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("%v", err)
	}
	fmt.Fprint(ts.Stdout(), shown)
	if got := strconv.Itoa(cmd.ProcessState.ExitCode()); got != args[0] {
		ts.Fatalf("the exit status is %s, want %s\n%s", got, args[0], shown)
	}
}

// patience is how long a person waits for a terminal to show something.
const patience = 30 * time.Second

// screen is what a terminal was sent.
type screen struct {
	mu      sync.Mutex
	text    string // without escape sequences
	partial []byte
	seen    int // what was waited for ends here
	changed chan struct{}
}

var escape = regexp.MustCompile("\x1b\\[[0-9;?]*[a-zA-Z]|\r|\a")

func (s *screen) add(p []byte) {
	s.mu.Lock()
	s.partial = append(s.partial, p...)
	if i := strings.LastIndexByte(string(s.partial), '\x1b'); i < 0 || escape.Match(s.partial[i:]) {
		s.text += escape.ReplaceAllString(string(s.partial), "")
		s.partial = nil
	}
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text
}

func (s *screen) wait(what *regexp.Regexp) bool {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		s.mu.Lock()
		at := what.FindStringIndex(s.text[s.seen:])
		if at != nil {
			s.seen += at[1]
		}
		s.mu.Unlock()
		if at != nil {
			return true
		}
		select {
		case <-s.changed:
		case <-timer.C:
			return false
		}
	}
}
