// Package runtime defines where a sandbox lives. A Runtime places a daemon on
// one kind of host and reaches it; it never learns about commands, files or
// tunnels, which are the daemon's.
package runtime

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/sbx-star/sbx-star/wire"
)

// HostImage is the image that needs no download: the machine's own system
// folders, read-only below the sandbox's own layer.
const HostImage = "host"

// Runtime makes sandboxes on one kind of host. Its methods may be called from
// several goroutines.
type Runtime interface {
	Info() Info

	// Create places a sandbox and returns once its daemon accepts connections.
	// When it fails, nothing of the sandbox is left. An option that this
	// machine or this runtime cannot honour is an *Unsupported error.
	Create(ctx context.Context, spec Spec) (Instance, error)

	// Adopt takes over a sandbox that another process, or this one before a
	// restart, created from the same spec. A sandbox whose daemon is no longer
	// alive is ErrGone; Start or Remove it with the instance that is returned all
	// the same.
	Adopt(ctx context.Context, spec Spec) (Instance, error)
}

// Info describes a runtime to the user, in GET /info and in listings.
type Info struct {
	Name      string // "namespace" or "process"
	Isolation string // "namespaces", "none", …
	Enforces  wire.Enforces
	Storage   string // how a limit on storage is enforced, or why it is not
	InMemory  bool   // sandboxes are to be made with Spec.InMemory
}

// Spec is what a sandbox is made from.
type Spec struct {
	ID       string            // of the box; unique, safe as a file name
	Hostname string            // what the sandbox calls itself
	Dir      string            // absolute folder of this sandbox alone, which exists; all it keeps lies there
	Image    string            // "" means HostImage
	Env      map[string]string // of every command, over the image's own
	Snapshot string            // folder that Instance.Snapshot wrote, whose files the sandbox starts with; "" for none
	Mounts   []Mount           // folders of this machine that appear in the sandbox
	Limits   Limits            // where Info.Enforces says so; elsewhere as far as it can be done
	InMemory bool              // what it writes lies in memory, and is put into Dir only by Stop
}

// Limits are how much of the machine a sandbox gets; zero is no limit.
type Limits struct {
	CPU     int64 `json:"cpu,omitempty"`     // thousandths of a core
	Memory  int64 `json:"memory,omitempty"`  // bytes; a process of one that needs more is killed
	Storage int64 `json:"storage,omitempty"` // bytes that it may write beside its mounts
}

// Mount makes a folder of this machine appear in a sandbox, to be changed by it
// and whoever else has it mounted. What is mounted below it does not come along.
// An empty folder becomes the property of the sandboxes' root.
type Mount struct {
	Source   string // absolute folder on this machine
	Target   string // absolute path in the sandbox; a missing folder is made
	ReadOnly bool
	Give     bool // what is in it becomes the property of the sandboxes' root, too; nobody else may be at it meanwhile
}

// Instance is one sandbox. Its methods may be called from several goroutines;
// between processes the callers see to it that only one starts, stops or removes
// a sandbox at a time.
type Instance interface {
	// Dial reaches the daemon; of a sandbox that does not run it is ErrGone.
	Dial(ctx context.Context) (net.Conn, error)

	// Stop ends every process of the sandbox and keeps its files. Stopping one
	// that does not run is harmless.
	Stop(ctx context.Context) error

	// Start places the daemon again on the files that Stop, a kill or the
	// machine's end left, and returns once it accepts connections. When it fails,
	// the files stay as they are. Starting a sandbox that runs is harmless.
	Start(ctx context.Context) error

	// Snapshot copies the sandbox's own layer, which is what it wrote and what
	// it deleted, into the folder dst, which it makes. What is in memory or in
	// mounts is no part of it. The sandbox may run; then each file is copied as it
	// is at that moment. When Snapshot fails, nothing of dst is left.
	Snapshot(ctx context.Context, dst string) error

	// Remove ends every process of the sandbox and deletes what it kept in
	// Spec.Dir, the folder included. Removing twice is harmless.
	Remove(ctx context.Context) error
}

// ErrGone says that a sandbox has no live daemon any more.
var ErrGone = errors.New("the sandbox's daemon is gone")

// ErrDiskFull says that there is no room, or none that this user may take up, for
// what a sandbox writes.
var ErrDiskFull = errors.New("the disk is full")

// Unsupported says what a machine or a runtime cannot do and what to do about it.
type Unsupported struct {
	What string // "user namespaces are switched off on this machine"
	Hint string // "set sysctl user.max_user_namespaces above 0, …"
	Err  error  // what the kernel said; may be nil
}

func (e *Unsupported) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s (%v): %s", e.What, e.Err, e.Hint)
	}
	return e.What + ": " + e.Hint
}

func (e *Unsupported) Unwrap() error { return e.Err }
