//go:build linux

package daemon

import (
	"errors"
	"strings"
	"testing"

	"github.com/sbx-star/sbx-star/wire"
)

// Whatever a client sends first, it is one of three messages or refused in a
// sentence that names no type of Go.
func FuzzFirstMessage(f *testing.F) {
	for _, seed := range []string{
		`{"type":"execute","command":"cat","timeout_seconds":60,"shell":"/bin/bash","idle_timeout_seconds":300,"kill_on_disconnect":false,"ttl_seconds":600,"run_config":{"user":"1000","env_vars":{"A":"1"}},"close_stdin":true,"command_id":"x"}`,
		`{"type":"execute","command":["a",1]}`, `{"type":"execute","env":{"A":1}}`, `{"type":"execute","pty":"yes"}`,
		`{"type":"reconnect","command_id":"x","stdout_offset":1,"stderr_offset":1e99}`, `{"type":"close_stdin"}`,
		`{"type":"input","data":"x"}`, `{"type":1}`, `[]`, `null`, ``, `{"type":"exit"`,
	} {
		f.Add([]byte(seed))
	}
	cfg := Config{Home: "/", WorkDir: "/"}
	f.Fuzz(func(t *testing.T, data []byte) {
		message, err := decodeFirst(data)
		if m, ok := message.(*wire.Execute); ok && err == nil {
			if err = newSession("x", defaultLimits()).configure(m); err == nil {
				_, err = cfg.prepare(commandRequest{command: m.Command, shell: m.Shell, env: m.Env, cwd: m.Cwd, runConfig: m.RunConfig, pty: m.PTY})
			}
		}
		refusal, ok := errors.AsType[*failure](err)
		switch {
		case err != nil && (!ok || refusal.Type == "" || refusal.Message == ""):
			t.Errorf("%q: got %v", data, err)
		case err != nil && (strings.Contains(refusal.Message, "Go ") || strings.Contains(refusal.Message, "wire.")):
			t.Errorf("%q: %s", data, refusal.Message)
		case err == nil && message == nil:
			t.Errorf("%q is neither accepted nor refused", data)
		}
	})
}
