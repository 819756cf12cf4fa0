package event

import "fmt"

// This file defines what befalls a tunnel while nobody waits for it.

// Tunnel says which one. Err, in the events about it, is why.
type Tunnel struct {
	Sandbox    string
	RemotePort int
}

// TunnelRefused is a connection that was accepted here and not in the sandbox.
type TunnelRefused struct {
	Tunnel
	Err error
}

// TunnelLost is the end of the way to the sandbox. What went through it is reset.
type TunnelLost struct {
	Tunnel
	Err error
}

// TunnelFailed is that the way could not be opened again for a connection.
type TunnelFailed struct {
	Tunnel
	Err error
}

// TunnelReopened is that the way is open again.
type TunnelReopened struct{ Tunnel }

func (e Tunnel) String() string {
	return fmt.Sprintf("tunnel to port %d of sandbox %q", e.RemotePort, e.Sandbox)
}

func (e TunnelRefused) line() string {
	return fmt.Sprintf("warning: %s: a connection was closed: %v", e.Tunnel, e.Err)
}

func (e TunnelLost) line() string {
	return fmt.Sprintf("warning: %s: its connections were reset: %v", e.Tunnel, e.Err)
}

func (e TunnelFailed) line() string {
	return fmt.Sprintf("warning: %s: it stays lost: %v", e.Tunnel, e.Err)
}

func (e TunnelReopened) line() string { return fmt.Sprintf("%s: open again", e.Tunnel) }
