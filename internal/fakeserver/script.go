//go:build linux

package fakeserver

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// This file defines what golden scripts can say to their fake server.

// scriptKey is the API key of the servers that Setup starts.
const scriptKey = "fake-key"

type valueKey struct{}

// Of returns the server of a script that was set up by Setup.
func Of(ts *testscript.TestScript) *Server { return ts.Value(valueKey{}).(*Server) }

// OfEnv is Of, before the script runs.
func OfEnv(env *testscript.Env) *Server { return env.Values[valueKey{}].(*Server) }

// Setup starts a server for one script, names it and its key in
// SBX_STAR_ENDPOINT and SBX_STAR_API_KEY, and closes it in the end. A script
// fails if a fault that it ordered never came about.
func Setup(env *testscript.Env) error {
	s, err := Start(Options{APIKey: scriptKey})
	if err != nil {
		return err
	}
	env.Values[valueKey{}] = s
	env.Setenv("SBX_STAR_ENDPOINT", s.URL())
	env.Setenv("SBX_STAR_API_KEY", scriptKey)
	env.Defer(func() {
		if err := s.Close(); err != nil {
			env.T().Log("closing the fake server: ", err)
			env.T().FailNow()
		}
		if pending := s.Pending(); len(pending) > 0 {
			env.T().Log("these faults never came about: ", strings.Join(pending, ", "))
			env.T().FailNow()
		}
	})
	return nil
}

const awaitTimeout = 30 * time.Second

// Commands are the script commands of a fake server:
//
//	fault ORDER…         see Server.Fault; frames=FILE is a file of the script
//	requests [-reset]    prints the log, for cmp stdout and its -update
//	sent FILE            fails unless the log is as the file
//	await REGEXP [N]     waits until N lines of the log match
//	sandboxes N          fails unless there are N sandboxes
//	processes N          fails unless N processes live in sandboxes, daemons included
func Commands() map[string]func(ts *testscript.TestScript, neg bool, args []string) {
	commands := map[string]func(*testscript.TestScript, *Server, []string) error{
		"fault":     scriptFault,
		"requests":  scriptRequests,
		"sent":      scriptSent,
		"await":     scriptAwait,
		"sandboxes": func(_ *testscript.TestScript, s *Server, args []string) error { return wantCount(args, s.Sandboxes) },
		"processes": func(_ *testscript.TestScript, s *Server, args []string) error { return wantCount(args, s.Processes) },
	}
	adapted := map[string]func(*testscript.TestScript, bool, []string){}
	for name, command := range commands {
		adapted[name] = func(ts *testscript.TestScript, neg bool, args []string) {
			if neg {
				ts.Fatalf("%s cannot be negated", name)
			}
			ts.Check(command(ts, Of(ts), args))
		}
	}
	return adapted
}

func scriptFault(ts *testscript.TestScript, s *Server, args []string) error {
	for i, arg := range args {
		if file, ok := strings.CutPrefix(arg, "frames="); ok {
			args[i] = "frames=" + ts.MkAbs(file)
		}
	}
	return s.Fault(args)
}

func logText(s *Server) string {
	var text strings.Builder
	for _, line := range s.Requests() {
		fmt.Fprintln(&text, line)
	}
	return text.String()
}

func scriptRequests(ts *testscript.TestScript, s *Server, args []string) error {
	fmt.Fprint(ts.Stdout(), logText(s))
	switch {
	case len(args) == 1 && args[0] == "-reset":
		s.ResetLog()
	case len(args) > 0:
		return fmt.Errorf("usage: requests [-reset]")
	}
	return nil
}

func scriptSent(ts *testscript.TestScript, s *Server, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: sent FILE")
	}
	if got, want := logText(s), ts.ReadFile(args[0]); got != want {
		return fmt.Errorf("what was sent is\n%s\nand should be as %s:\n%s", got, args[0], want)
	}
	return nil
}

func scriptAwait(_ *testscript.TestScript, s *Server, args []string) error {
	n := 1
	var err error
	if len(args) == 2 {
		n, err = strconv.Atoi(args[1])
	}
	if len(args) < 1 || len(args) > 2 || err != nil {
		return fmt.Errorf("usage: await REGEXP [N]")
	}
	pattern, err := regexp.Compile(args[0])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), awaitTimeout)
	defer cancel()
	return s.Await(ctx, n, pattern.MatchString)
}

func wantCount(args []string, count func() (int, error)) error {
	if len(args) != 1 {
		return fmt.Errorf("want a number")
	}
	want, err := strconv.Atoi(args[0])
	if err != nil {
		return fmt.Errorf("want a number, got %q", args[0])
	}
	if got, err := count(); err != nil || got != want {
		return fmt.Errorf("there are %d, want %d: %v", got, want, err)
	}
	return nil
}
