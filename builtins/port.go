package builtins

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/client"
)

// This file defines how a workflow waits for a server in a sandbox.

// port is a TCP port.
type port int

func (p *port) Unpack(v starlark.Value) error {
	n, err := starlark.AsInt32(v)
	if err != nil {
		return fmt.Errorf("got %s, want a number", v.Type())
	}
	if n < 1 || n > 65535 {
		return fmt.Errorf("got %d, want 1 to 65535", n)
	}
	*p = port(n)
	return nil
}

// portScript ends when something listens on a port, which it takes from the
// kernel's tables: no tool is needed but sleep, and without sleep it ends with
// noSleep after one look. 0A is the state of a listener.
const (
	portScript = `while :; do
for table in /proc/net/tcp /proc/net/tcp6; do
[ -r $table ] && while read -r _ local _ state _; do
case "$state:${local##*:}" in 0A:%04X) exit 0;; esac
done < $table
done
sleep 0.1 || sleep 1 || exit %d
done 2>/dev/null`
	noSleep  = 3
	portPoll = 100 * time.Millisecond // from outside, without sleep
)

func sandboxWaitForPort(c *invocation) (starlark.Value, error) {
	var number port
	var timeout seconds
	if err := c.unpack(&number, &timeout); err != nil {
		return nil, err
	}
	command := fmt.Sprintf(portScript, int(number), noSleep)
	deadline := time.Now().Add(time.Duration(timeout))
	late := func() error {
		return &client.Error{Kind: client.ErrTimeout, ResourceType: "port", Port: int(number),
			Message: fmt.Sprintf("nothing listens on port %d of sandbox %s after %v", int(number), c.self.(*sandboxValue).resourceName(), time.Duration(timeout))}
	}
	err := c.inSandbox(timeout, late, func(ctx context.Context, box *client.Sandbox) error {
		for {
			options := client.RunOptions{Command: command, Shell: "/bin/sh", CloseStdin: true, KillOnDisconnect: true}
			if timeout > 0 {
				options.Timeout = max(time.Until(deadline), time.Millisecond)
			}
			result, err := box.Run(ctx, options)
			switch {
			case errors.Is(err, client.ErrCommandTimeout):
				return late()
			case err != nil:
				return err
			case result.ExitCode == 0:
				return nil
			case result.ExitCode != noSleep:
				return &CommandFailedError{command, result, Tail(result.Stderr), box.Name}
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(portPoll):
			}
		}
	})
	return starlark.None, err
}
