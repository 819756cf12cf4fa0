package tunnel

import (
	"errors"
	"fmt"
	"net"
	"syscall"
)

// This file defines the errors of the package.

// plainError is a sentence, and for errors.Is what the standard library calls it.
type plainError struct {
	text string
	as   error
}

func (e *plainError) Error() string        { return e.text }
func (e *plainError) Is(target error) bool { return target == e.as }

var (
	// ErrReset is read and written on a connection that the other end has reset,
	// after the data that had arrived. It is a syscall.ECONNRESET.
	ErrReset error = &plainError{"connection reset by the other end of the tunnel", syscall.ECONNRESET}

	// ErrClosed is the error of a connection, a session or a listener that was closed
	// here. It is a net.ErrClosed.
	ErrClosed error = &plainError{"the tunnel is closed", net.ErrClosed}
)

var (
	errPeerLeft = errors.New("the peer ended the session")
	errVersion  = errors.New("an unknown version of the prologue")
	errFinished = errors.New("the connection was closed for writing")
	errStalled  = fmt.Errorf("the peer ended its half of the connection and took nothing for %v", stallTimeout)
)

// PortNotAllowedError is status 1 of §7.3. A dial function given to [Serve]
// returns it to say so.
type PortNotAllowedError struct{ Port int }

func (e *PortNotAllowedError) Error() string {
	return fmt.Sprintf("the sandbox does not allow tunnels to port %d", e.Port)
}

// ConnectionRefusedError is status 2 of §7.3.
type ConnectionRefusedError struct{ Port int }

func (e *ConnectionRefusedError) Error() string {
	return fmt.Sprintf("nothing accepts connections on port %d inside the sandbox", e.Port)
}

// UnsupportedVersionError is status 3 of §7.3.
type UnsupportedVersionError struct{}

func (e *UnsupportedVersionError) Error() string {
	return "the sandbox does not speak version 1 of the tunnel protocol"
}

// StatusError is a status that §7.3 does not name.
type StatusError struct {
	Port   int
	Status byte
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("the sandbox refused the connection to port %d with status %d, which is of no known meaning", e.Port, e.Status)
}

// NoStatusError tells of a stream that ended, or stayed silent for too long,
// before its status came.
type NoStatusError struct {
	Port int
	Err  error // io.EOF, ErrReset, os.ErrDeadlineExceeded or a *SessionError
}

func (e *NoStatusError) Error() string {
	return fmt.Sprintf("the sandbox did not say whether port %d was connected: %v", e.Port, e.Err)
}

func (e *NoStatusError) Unwrap() error { return e.Err }

// SessionError is read and written on a connection whose session has died, after
// the data that had arrived.
type SessionError struct{ Err error }

func (e *SessionError) Error() string { return "the tunnel session was lost: " + e.Err.Error() }

func (e *SessionError) Unwrap() error { return e.Err }

// OpenError tells that the session could not be opened (again).
type OpenError struct {
	Tries     int  // 0 if reopening was not allowed
	Permanent bool // no connection will try again
	Err       error
}

func (e *OpenError) Error() string {
	switch {
	case e.Tries == 0:
		return fmt.Sprintf("the tunnel session is gone and max_reconnects is 0: %v", e.Err)
	case e.Tries == 1:
		return fmt.Sprintf("could not open the tunnel session: %v", e.Err)
	}
	return fmt.Sprintf("could not open the tunnel session in %d tries: %v", e.Tries, e.Err)
}

func (e *OpenError) Unwrap() error { return e.Err }

// PortInUseError tells that a local port is taken.
type PortInUseError struct{ Port int }

func (e *PortInUseError) Error() string {
	return fmt.Sprintf("local port %d is already in use; choose another local port, or 0 to have one picked", e.Port)
}

// PortError tells of a port number out of range.
type PortError struct {
	Name string // remote port or local port
	Port int
}

func (e *PortError) Error() string {
	return fmt.Sprintf("%s %d is not between 1 and 65535", e.Name, e.Port)
}

// protocolError is what a peer did against yamux. The session answers with
// GO_AWAY code 1 and ends.
type protocolError string

func (e protocolError) Error() string { return "protocol error: " + string(e) }
