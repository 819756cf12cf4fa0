package builtins

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines how snapshots are built from a Dockerfile.

// buildArgs are the parameters that say so.
type buildArgs struct {
	dockerfile starlark.Value // None, a string or a hostPath
	context    optional[hostPath]
	args       stringDict
	target     optional[string]
	onLog      optional[starlark.Callable]
	vcpus      positive[int]
	memBytes   positive[int64]
}

func (a *buildArgs) vars() []any {
	return []any{&a.dockerfile, &a.context, &a.args, &a.target, &a.onLog, &a.vcpus, &a.memBytes}
}

// build is what they ask for; nil without a Dockerfile.
func (a *buildArgs) build(c *invocation, want wire.SnapshotCreate, timeout seconds) (*client.DockerfileBuild, error) {
	b := &client.DockerfileBuild{Name: want.Name, BuildArgs: a.args, Target: a.target.or(""), VCPUs: a.vcpus.ptr, MemBytes: a.memBytes.ptr,
		Builder: client.BuilderName(), Labels: want.Labels, Tag: want.Tag, Description: want.Description, Timeout: time.Duration(timeout)}
	switch v := a.dockerfile.(type) {
	case starlark.NoneType:
		if a.context.ptr != nil || a.args != nil || a.target.ptr != nil || a.onLog.ptr != nil || a.vcpus.ptr != nil || a.memBytes.ptr != nil {
			return nil, c.argumentError("context, build_args, target, on_build_log, vcpus and mem_bytes need a dockerfile")
		}
		return nil, nil
	case starlark.String:
		b.Dockerfile = string(v)
	case hostPath:
		b.Dockerfile = v.path
	default:
		return nil, c.argumentError("parameter dockerfile: got %s, want its name in the context folder", v.Type())
	}
	switch {
	case b.Dockerfile == "":
		return nil, c.argumentError("parameter dockerfile: it is empty")
	case a.context.ptr == nil:
		return nil, c.argumentError("parameter context is missing: the folder that the Dockerfile may copy from, as in context = host.path(\".\")")
	case want.DockerImage != "" || want.RegistryID != "" || want.RunConfig != nil:
		return nil, c.argumentError("dockerfile excludes docker_image, registry_id and run_config: the image that is built has its own")
	}
	b.Context = a.context.ptr.path
	if want.FSCapacityBytes != 0 {
		b.FSCapacityBytes = &want.FSCapacityBytes
	}
	if fn := a.onLog.ptr; fn != nil {
		b.OnLog = func(text string) error {
			_, err := call(c.Task, *fn, starlark.Tuple{starlark.String(text)}, nil)
			return err
		}
	}
	return b, nil
}

// buildSnapshot builds. The scope knows the sandbox that builds, for the case
// that it cannot be deleted here.
func buildSnapshot(c *invocation, cl *client.Client, b *client.DockerfileBuild) (*wire.Snapshot, error) {
	builder := c.push(&entry{kind: "sandbox", name: func() string { return b.Builder }, on: cl, release: func(ctx context.Context) error {
		return ignoreNotFound(cl.DeleteSandbox(ctx, b.Builder))
	}})
	made, err := cl.CreateSnapshotFromDockerfile(c.Ctx, *b)
	var e *client.Error
	if errors.As(err, &e) && e.Kind == client.ErrValidation && e.Status == 0 { // before anything was made
		c.Run.drop(builder)
		return nil, c.argumentError("%s", e.Message)
	}
	if _, gone := cl.GetSandbox(c.Ctx, b.Builder); errors.Is(gone, client.ErrNotFound) {
		c.Run.drop(builder)
	}
	if err != nil {
		return nil, fmt.Errorf("building snapshot %q: %w", b.Name, err)
	}
	return made, nil
}
