package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines how a command is asked for, its result, and the way that is
// taken when the caller only wants the result (protocol.md §5, §6.10).

// RunOptions say what to run and how.
type RunOptions struct {
	Command string            // for the shell
	Env     map[string]string // over the sandbox's own
	Cwd     string
	Shell   string // "" means /bin/bash

	Timeout     time.Duration // of the command; 0 is none. Whole seconds, rounded up
	IdleTimeout time.Duration // killed after so long without a client; 0 means 300 s, negative never
	TTL         time.Duration // kept for Reconnect after its end; 0 means 600 s, negative as long as the sandbox

	KillOnDisconnect bool // kill it as soon as nobody is attached
	PTY              bool // run it on a terminal of 80×24
	CloseStdin       bool // give it no input: its stdin is empty

	RunConfig *wire.RunConfig // in place of Env and Cwd (§16.3)
	CommandID string          // "" makes one; an id that exists is attached to
	Headers   http.Header     // of this call and of every reconnect
}

// Result is what a command came to.
type Result struct {
	Stdout, Stderr string // as much as the handle saw
	ExitCode       int    // 128+n if signal n ended it
	CommandID      string
	Duration       time.Duration // of the command, if the server tells; else from its start, or the attachment, to its end as seen from here

	RawStdout, RawStderr string // the bytes behind Stdout and Stderr; see Chunk

	LostStdout, LostStderr int64 // bytes missing in them, which the sandbox no longer had; see Chunk.Gap

	ForgottenStdout, ForgottenStderr int64 // bytes missing at the start of Stdout and Stderr, because of KeepLast

	Signal string // that ended it, as in TERM; "" for none or if the server does not tell
	Reason string // why the sandbox's limits ended it; "" if they did not or if the server does not tell
}

// Run runs a command and waits for its end. When ctx ends first, the command is
// killed. A server without WebSockets is asked over plain HTTP, if nothing that
// HTTP cannot do was asked for.
func (s *Sandbox) Run(ctx context.Context, o RunOptions) (*Result, error) {
	cmd, err := s.Start(ctx, o)
	if err != nil {
		what := o.beyondHTTP()
		switch {
		case !noSocket(err):
			return nil, err
		case what != "":
		case !o.CloseStdin:
			what = "input"
		case o.Timeout == 0:
			what = "a command without a timeout"
		}
		if what == "" {
			return s.Exec(ctx, o)
		}
		var e *Error
		errors.As(err, &e)
		e.Message = fmt.Sprintf("%s: there is no WebSocket for commands, and plain HTTP has no means for %s", e.Message, what)
		return nil, e
	}
	defer cmd.Close()
	result, err := cmd.Result(ctx)
	if ctx.Err() != nil {
		cmd.Abandon()
	}
	return result, err
}

// beyondHTTP is what was asked for that plain HTTP has no means for, or "".
func (o RunOptions) beyondHTTP() string {
	switch {
	case o.PTY:
		return "a terminal"
	case o.CommandID != "":
		return "a command_id"
	}
	return ""
}

// noSocket reports whether an upgrade was refused in a way that says that there
// is nothing to upgrade to, so that nothing was executed.
func noSocket(err error) bool {
	var e *Error
	if !errors.As(err, &e) || e.Kind != ErrConnection {
		return false
	}
	return e.Status == http.StatusNotFound || e.Status == http.StatusMethodNotAllowed || e.Status == http.StatusUpgradeRequired
}

// Exec runs a command over plain HTTP, with nothing on its stdin. Its output
// comes when it has ended, and the server bounds how much that is. There is
// nothing to attach to, so IdleTimeout and TTL have no object, the end of the
// request is the disconnect of KillOnDisconnect, and PTY and a CommandID are
// refused. Without a Timeout, nobody waits
// longer than ten seconds.
func (s *Sandbox) Exec(ctx context.Context, o RunOptions) (*Result, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	if what := o.beyondHTTP(); what != "" {
		return nil, argumentError("plain HTTP has no means for %s; use Start or Run", what)
	}
	started := time.Now()
	response, err := send[wire.ExecResponse](ctx, s.client, call{
		method: http.MethodPost, path: s.dataplane("execute", false), headers: o.Headers, policy: executing,
		timeout: o.Timeout + 10*time.Second, errors: mapDataplane,
		body: wire.ExecRequest{Command: wire.Command{Line: o.Command}, Timeout: seconds(o.Timeout), Shell: o.shell(), Env: o.Env, Cwd: o.Cwd, RunConfig: o.RunConfig},
	})
	var e *Error
	if errors.As(err, &e) && e.Kind == ErrCommandTimeout {
		e.Timeout = o.Timeout
	}
	if err != nil {
		return nil, err
	}
	return &Result{Stdout: response.Stdout, Stderr: response.Stderr, ExitCode: response.ExitCode, Duration: time.Since(started),
		RawStdout: response.Stdout, RawStderr: response.Stderr, Reason: reason(response.Reason)}, nil
}

func (o RunOptions) validate() error {
	switch {
	case o.Command == "":
		return argumentError("there is no command to run")
	case o.RunConfig != nil && (o.Env != nil || o.Cwd != ""):
		return argumentError("run_config excludes env and cwd; put both into it")
	case o.Timeout < 0:
		return argumentError("the timeout of a command is %v, and must be 0, which is none, or positive", o.Timeout)
	}
	return nil
}

func (o RunOptions) shell() string {
	if o.Shell == "" {
		return wire.DefaultShell
	}
	return o.Shell
}

// message is the execute message for the options.
func (o RunOptions) message() *wire.Execute {
	return &wire.Execute{
		Command: wire.Command{Line: o.Command}, TimeoutSeconds: seconds(o.Timeout), Shell: o.shell(),
		IdleTimeoutSeconds: secondsOr(o.IdleTimeout, wire.DefaultIdleTimeout), TTLSeconds: secondsOr(o.TTL, wire.DefaultTTL),
		KillOnDisconnect: o.KillOnDisconnect, Env: o.Env, Cwd: o.Cwd, PTY: o.PTY,
		RunConfig: o.RunConfig, CloseStdin: o.CloseStdin && !o.PTY, CommandID: o.CommandID,
	}
}

// seconds rounds up: a timeout of half a second must not become none.
func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

func secondsOr(d time.Duration, otherwise int) int {
	switch {
	case d == 0:
		return otherwise
	case d < 0:
		return -1
	}
	return seconds(d)
}

// reason is a server's reason, no longer than one needs to be.
func reason(text string) string { return fmt.Sprintf("%.200s", text) }
