package server

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"path"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines who runs commands in a sandbox, where and with what
// environment, as far as the sandbox says it (protocol.md §16.3).

var userRule = rule(`^[^:\s\x00]+(:[^:\s\x00]+)?$`)

func checkRunConfig(run *wire.RunConfig) error {
	switch {
	case run == nil:
		return nil
	case run.User != "" && !userRule().MatchString(run.User):
		return invalid("body.run_config.user", "the user %q is not one: want name, uid, name:group or uid:gid", run.User)
	case run.WorkDir != "" && !path.IsAbs(run.WorkDir):
		return invalid("body.run_config.work_dir", "the folder %q is relative: want an absolute path", run.WorkDir)
	}
	return checkEnv("body.run_config.env_vars", run.EnvVars)
}

// configured reports whether a sandbox says more than what a runtime places it
// with.
func (b *box) configured() bool {
	run := b.Box.RunConfig
	return run != nil && (run.User != "" || run.WorkDir != "")
}

// env is the environment of every command in a sandbox.
func (b *box) env() map[string]string {
	env := merged(ruleEnv(b.Box.ProxyConfig), b.Env)
	if b.Box.RunConfig == nil {
		return env
	}
	return merged(b.Box.RunConfig.EnvVars, env)
}

// configure tells the daemon of a sandbox what holds for the commands that start
// from now on.
func (s *Server) configure(ctx context.Context, instance runtime.Instance, b *box) error {
	config := struct {
		Env     map[string]string `json:"env"`
		User    string            `json:"user"`
		WorkDir string            `json:"work_dir"`
	}{Env: b.env()}
	if run := b.Box.RunConfig; run != nil {
		config.User, config.WorkDir = run.User, run.WorkDir
	}
	body, err := json.Marshal(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	ask, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://sandbox/config", bytes.NewReader(body))
	if err != nil {
		return err
	}
	transport := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return instance.Dial(ctx) },
		DisableKeepAlives: true,
	}
	res, err := transport.RoundTrip(ask)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode < 300 {
		return nil
	}
	said, _ := io.ReadAll(io.LimitReader(res.Body, maxJSON))
	return fail(http.StatusUnprocessableEntity, kindSandboxConfig, "run_config: %s", wire.DecodeProblem(res.StatusCode, said).Message)
}
