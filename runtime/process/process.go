// Package process is a runtime without isolation: a sandbox is a folder and a
// daemon beside this process, as the same user, on the same file system and
// network. It is for tests, and for those who ask for it by name.
package process

import (
	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines what the runtime is on every system; it works on Linux only.

// Options change what New makes.
type Options struct {
	// AnyImage accepts every image name, though nothing of any image is there.
	// It is for tests of what stands above the runtime.
	AnyImage bool
}

// Runtime implements runtime.Runtime.
type Runtime struct{ opts Options }

var _ runtime.Runtime = (*Runtime)(nil)

// New makes a runtime. It holds nothing that would have to be released.
func New(opts Options) *Runtime { return &Runtime{opts} }

// name is the runtime's in Info and in snapshots.
const name = "process"

// Info says that nothing is isolated and no limit is enforced.
func (*Runtime) Info() runtime.Info {
	return runtime.Info{Name: name, Isolation: "none", Enforces: wire.Enforces{}, Storage: "not enforced: sandboxes are processes like any other"}
}
