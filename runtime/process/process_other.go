//go:build !linux

package process

import (
	"context"

	"github.com/sbx-star/sbx-star/runtime"
)

// This file defines what the runtime answers where its daemon cannot run.

// Child does nothing: there is no daemon here.
func Child() {}

// Create refuses.
func (*Runtime) Create(context.Context, runtime.Spec) (runtime.Instance, error) {
	return nil, unsupported()
}

// Adopt refuses.
func (*Runtime) Adopt(context.Context, runtime.Spec) (runtime.Instance, error) {
	return nil, unsupported()
}

func unsupported() error {
	return &runtime.Unsupported{
		What: "sandboxes run on Linux only",
		Hint: "run the server on a Linux machine and name it with --endpoint",
	}
}
