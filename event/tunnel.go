package event

import "fmt"

// This file defines what befalls a tunnel.

// Tunnel says what happens to one.
type Tunnel struct {
	Place
	Sandbox    string `json:"sandbox" doc:"into which sandbox"`
	RemotePort int    `json:"remote_port" doc:"the port inside"`
	LocalPort  int    `json:"local_port,omitempty" doc:"the port on this machine, when it is opened or closed"`
	State      string `json:"state" doc:"opened, refused (one connection), lost (all of them), reopened, failed (it stays lost) or closed"`
	Error      string `json:"error,omitempty" doc:"why"`
}

// The states of a tunnel.
const (
	TunnelOpened   = "opened"
	TunnelRefused  = "refused"  // a connection was accepted here and not in the sandbox
	TunnelLost     = "lost"     // the way ended, and what went through it is reset
	TunnelReopened = "reopened" // the way is open again
	TunnelFailed   = "failed"   // the way could not be opened again
	TunnelClosed   = "closed"
)

func (e Tunnel) line() string {
	which := fmt.Sprintf("tunnel to port %d of sandbox %q", e.RemotePort, e.Sandbox)
	switch e.State {
	case TunnelOpened:
		return fmt.Sprintf("%s: open on port %d", which, e.LocalPort)
	case TunnelRefused:
		return fmt.Sprintf("warning: %s: a connection was closed: %s", which, e.Error)
	case TunnelLost:
		return fmt.Sprintf("warning: %s: its connections were reset: %s", which, e.Error)
	case TunnelFailed:
		return fmt.Sprintf("warning: %s: it stays lost: %s", which, e.Error)
	case TunnelReopened:
		return which + ": open again"
	}
	return which + ": closed"
}
