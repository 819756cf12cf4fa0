//go:build linux

package daemon

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines POST /execute: a command that is waited for (§5).

func (d *daemon) execute(w http.ResponseWriter, r *http.Request) {
	var req wire.ExecRequest
	if err := d.readJSON(w, r, &req); err != nil {
		answer(w, err)
		return
	}
	result, err := d.run(r, req)
	if err != nil {
		answer(w, err)
		return
	}
	answerJSON(w, http.StatusOK, result)
}

// run executes req until it ends, its time is over, or the client is gone.
func (d *daemon) run(r *http.Request, req wire.ExecRequest) (*wire.ExecResponse, error) {
	limit, err := seconds("timeout", req.Timeout, 0)
	if err != nil {
		return nil, err
	}
	spec, err := d.cfg.Load().prepare(commandRequest{command: req.Command, shell: req.Shell, env: req.Env, cwd: req.Cwd, runConfig: req.RunConfig})
	if err != nil {
		return nil, err
	}
	stdout, stderr := capped{limit: d.lim.httpOutput}, capped{limit: d.lim.httpOutput}
	cmd, err := d.start(spec, stdout.add, stderr.add)
	if err != nil {
		return nil, err
	}
	var timeout <-chan time.Time
	if limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-cmd.ended:
	case <-timeout:
		if cmd.kill() {
			err = commandTimeout(limit)
		}
	case <-r.Context().Done():
		cmd.kill()
		err = refuse(wire.ErrCommand, "the command was killed: %v", errEnding) // a client that is gone reads nothing
	}
	<-cmd.ended
	if err != nil {
		return nil, err
	}
	stdout.end()
	stderr.end()
	for _, stream := range []struct {
		name string
		*capped
	}{{wire.Stdout, &stdout}, {wire.Stderr, &stderr}} {
		if stream.dropped > 0 {
			if text := stderr.kept.String(); text != "" && !strings.HasSuffix(text, "\n") {
				stderr.kept.WriteByte('\n')
			}
			fmt.Fprintf(&stderr.kept, "[%s cut after %d bytes, %d more were dropped: use the WebSocket for long output]\n",
				stream.name, d.lim.httpOutput, stream.dropped)
		}
	}
	return &wire.ExecResponse{Stdout: stdout.kept.String(), Stderr: stderr.kept.String(), ExitCode: cmd.code(), Reason: cmd.reason}, nil
}

// commandTimeout is an error that no client retries (§5).
func commandTimeout(limit time.Duration) *failure {
	f := refuse(wire.ErrCommand, "the command was killed: it ran into its timeout of %v", limit)
	f.Reason = wire.ErrCommandTimeout
	return f
}

// seconds converts a field of whole seconds, which may be least or more.
func seconds(field string, n, least int) (time.Duration, error) {
	const most = 1 << 33 // 272 years, a time.Duration's reach
	if n < least || n > most {
		return 0, refuse(wire.ErrInvalidRequest, "%s is %d: give a number of seconds, at least %d", field, n, least)
	}
	return time.Duration(n) * time.Second, nil
}
