package server

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"time"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines how sandboxes stop, start and wake (protocol.md §2.6, §5).
//
// A stopped sandbox has its files, its record and its dataplane_url, and no
// processes. Whoever stops or starts one is the owner in its record until that
// is done, as with making and deleting; if that server dies, the sandbox counts
// as stopped, and the next start ends what it left running.

const (
	wakeTimeout   = 25 * time.Second // for a request that wakes a sandbox
	settleTimeout = 8 * time.Second  // for others to finish with a sandbox, below the clients' 10 seconds
	stopTimeout   = 30 * time.Second
)

var (
	errStopped = errors.New("the sandbox was stopped")
	errBusy    = errors.New("the sandbox is being made, started, stopped or deleted")
)

// busy reports whether some server works on a sandbox.
func (s *Server) busy(b *box) bool { return b.Owner != "" && !s.orphan(b) }

// own refuses a sandbox that this server has no runtime for.
func (s *Server) own(b *box) error {
	if b.Runtime == s.options.Runtime.Info().Name {
		return nil
	}
	return fail(http.StatusConflict, kindConflict, "the sandbox %q was made by the %s runtime: use a server that has this runtime", b.Box.Name, b.Runtime)
}

// claim calls decide inside update until it returns something else than
// errBusy.
func (s *Server) claim(ctx context.Context, decide func() error) error {
	late := fail(http.StatusConflict, kindConflict, "%v: ask again", errBusy)
	late.cause = errBusy
	ctx, cancel := context.WithTimeoutCause(ctx, settleTimeout, late)
	defer cancel()
	for {
		if err := s.store.update(ctx, decide); !errors.Is(err, errBusy) {
			return err
		}
		select {
		case <-time.After(peerPoll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *Server) startBox(c call) (int, any, error) {
	b, err := s.findBox(c.name)
	if err != nil {
		return 0, nil, err
	}
	if h := s.held(b.Box.ID); h != nil && h.dead(c.Context()) {
		s.forget(b.Box.ID, h, runtime.ErrGone)
	}
	s.checked(c.Context(), b) // what is ready and has no daemon is to be started
	b, _, err = s.start(c.Context(), func() (*box, error) { return s.findBox(c.name) })
	if err != nil {
		return 0, nil, err
	}
	return http.StatusAccepted, s.view(c.Request, b), nil
}

// dead reports whether a daemon that was reached before has gone.
func (h *handle) dead(ctx context.Context) bool {
	select {
	case <-h.done:
	default:
		return false
	}
	if h.err != nil {
		return false
	}
	conn, err := h.dial(ctx, "", "")
	if err != nil {
		return errors.Is(err, runtime.ErrGone)
	}
	conn.Close()
	return false
}

// start has a sandbox that is stopped or failed come up. Its record says
// provisioning when start returns, and the handle is of the one that comes up;
// it is nil if the sandbox was up or coming up already.
func (s *Server) start(ctx context.Context, find func() (*box, error)) (b *box, h *handle, err error) {
	begun := false
	err = s.claim(ctx, func() error {
		if b, err = find(); err != nil {
			return err
		}
		if err := s.own(b); err != nil {
			return err
		}
		switch status, message := s.status(b); {
		case status == wire.StatusReady, status == wire.StatusProvisioning:
			return nil
		case s.busy(b):
			return errBusy
		case b.Box.Status == wire.StatusDeleting:
			return fail(http.StatusConflict, kindConflict, "the sandbox %q cannot be started: %s", b.Box.Name, message)
		}
		begun = true
		b.Box.Status, b.Box.StatusMessage = wire.StatusProvisioning, ""
		b.Box.UpdatedAt, b.Owner = s.now(), s.store.owner
		return s.store.boxes.put(b.Box.ID, b)
	})
	if err == nil && begun {
		h = s.revive(b)
	}
	return b, h, err
}

// revive brings up a sandbox whose record says so.
func (s *Server) revive(b *box) *handle {
	return s.holdAnew(b.Box.ID, func(h *handle) (runtime.Instance, error) {
		if b.Layer != "" {
			defer s.collectSnapshots() // the one it starts with may have been deleted
		}
		instance, err := s.bringUp(h.placing, b)
		if err != nil && h.placing.Err() != nil {
			err = context.Cause(h.placing)
		}
		if err == nil {
			err = s.markReady(b.Box.ID)
		}
		if err != nil {
			s.settle(b.Box.ID, instance, err)
		}
		return instance, err
	})
}

func (s *Server) bringUp(ctx context.Context, b *box) (runtime.Instance, error) {
	spec := s.spec(b)
	if err := os.MkdirAll(spec.Dir, 0o700); err != nil {
		return nil, err
	}
	instance, err := s.options.Runtime.Adopt(ctx, spec)
	alive := err == nil
	if err != nil && !errors.Is(err, runtime.ErrGone) {
		return nil, err
	}
	if b.Unmade {
		if err := s.removeInstance(b.Box.ID, instance); err != nil {
			return instance, err
		}
		if err := os.MkdirAll(spec.Dir, 0o700); err != nil {
			return nil, err
		}
		return s.create(ctx, b)
	}
	if alive {
		if err := instance.Stop(ctx); err != nil {
			return instance, err
		}
	}
	if err := instance.Start(ctx); err != nil || !b.configured() {
		return instance, err
	}
	return instance, s.configure(ctx, instance, b)
}

func (s *Server) stopBox(c call) (int, any, error) {
	return http.StatusNoContent, nil, s.stop(c.Context(), func() (*box, error) { return s.findBox(c.name) })
}

// stop ends the processes of the sandbox that find, called inside update,
// returns, if it has any. It goes on when the caller has gone.
func (s *Server) stop(ctx context.Context, find func() (*box, error)) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	var b *box
	err := s.claim(ctx, func() error {
		found, err := find()
		if err != nil {
			return err
		}
		if err := s.own(found); err != nil {
			return err
		}
		switch status, message := s.status(found); {
		case s.busy(found):
			return errBusy
		case status == wire.StatusStopped && found.Owner == "":
			return nil
		case found.Unmade, found.Box.Status == wire.StatusDeleting:
			return fail(http.StatusConflict, kindConflict, "the sandbox %q cannot be stopped: %s", found.Box.Name, message)
		}
		b = found
		b.Box.Status, b.Box.StatusMessage = wire.StatusStopped, ""
		b.Box.StoppedAt, b.Owner = s.now(), s.store.owner
		b.Box.UpdatedAt = b.Box.StoppedAt
		return s.store.boxes.put(b.Box.ID, b)
	})
	if err != nil || b == nil {
		return err
	}
	instance, err := s.halt(ctx, b)
	s.settle(b.Box.ID, instance, err)
	if err != nil {
		f := fail(http.StatusInternalServerError, kindInternal, "the sandbox %q could not be stopped: %v", b.Box.Name, err)
		f.cause = err
		return f
	}
	return nil
}

// halt takes leave of the clients of a sandbox and ends its processes.
func (s *Server) halt(ctx context.Context, b *box) (runtime.Instance, error) {
	var instance runtime.Instance
	if h := s.held(b.Box.ID); h != nil {
		s.forget(b.Box.ID, h, errStopped)
		select {
		case <-h.done:
			instance = h.instance
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		s.takeLeave(h)
	}
	if instance == nil {
		var err error
		if instance, err = s.options.Runtime.Adopt(ctx, s.spec(b)); err != nil && !errors.Is(err, runtime.ErrGone) {
			return nil, err
		}
	}
	return instance, instance.Stop(ctx)
}

// settle writes down how stopping or starting ended: a sandbox is stopped
// unless something failed, and cleared away if it was deleted meanwhile.
func (s *Server) settle(id string, instance runtime.Instance, why error) {
	deleted := false
	err := s.store.update(context.Background(), func() error {
		b, err := s.store.boxes.get(id)
		if err != nil {
			return err
		}
		if deleted = b.Box.Status == wire.StatusDeleting; deleted {
			return nil
		}
		b.Owner = ""
		b.Box.Status, b.Box.UpdatedAt = wire.StatusStopped, s.now()
		if b.Box.StoppedAt == "" {
			b.Box.StoppedAt = b.Box.UpdatedAt
		}
		if why != nil && (b.Unmade || !errors.Is(why, errClosing)) {
			b.Box.Status, b.Box.StatusMessage = wire.StatusFailed, s.reason(why)
		}
		return s.store.boxes.put(id, b)
	})
	if deleted {
		s.clearAway(id, instance, errDeleted, false)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.options.Log.Error("the end of stopping or starting could not be recorded", "box", id, "error", err)
	}
}

// awake returns a sandbox that is ready, and its handle. One that is stopped is
// started, and the caller held until it is ready (protocol.md §5).
func (s *Server) awake(ctx context.Context, id string) (*box, *handle, error) {
	late := fail(http.StatusServiceUnavailable, wire.ErrServiceUnavailable, "the sandbox is being started: ask again")
	ctx, cancel := context.WithTimeoutCause(ctx, wakeTimeout, late)
	defer cancel()
	for {
		b, err := s.store.boxes.peek(id)
		if errors.Is(err, fs.ErrNotExist) || err == nil && b.Pool != "" {
			return nil, nil, noSandbox(id)
		}
		if err != nil {
			return nil, nil, err
		}
		if b.Runtime != s.options.Runtime.Info().Name {
			return nil, nil, notReady(b, "it was made by the "+b.Runtime+" runtime, which this server does not have")
		}
		var coming *handle
		switch status, message := s.status(b); {
		case status == wire.StatusReady:
			h, err := s.reach(ctx, b)
			if err == nil {
				return b, h, nil
			}
			if now, _ := s.store.boxes.get(id); !errors.Is(err, runtime.ErrGone) || now != nil && now.Box.Status == wire.StatusReady {
				return nil, nil, &unreachable{err}
			}
		case status == wire.StatusFailed:
			return nil, nil, notReady(b, message)
		case status == wire.StatusDeleting:
			return nil, nil, noSandbox(id)
		case status == wire.StatusProvisioning && b.Unmade:
			return nil, nil, fail(http.StatusServiceUnavailable, wire.ErrServiceUnavailable, "the sandbox %q is being made: ask again", b.Box.Name)
		case status == wire.StatusStopped && !s.busy(b):
			_, coming, err = s.start(ctx, func() (*box, error) { return s.store.boxes.get(id) })
			if errors.Is(err, fs.ErrNotExist) {
				return nil, nil, noSandbox(id)
			}
			if err != nil && !errors.Is(err, errBusy) {
				return nil, nil, err
			}
		}
		if err := coming.wait(ctx); err != nil {
			return nil, nil, err
		}
	}
}

// wait waits until a sandbox has come up or failed to; for one that others
// bring up, a while.
func (h *handle) wait(ctx context.Context) error {
	var done <-chan struct{}
	var poll <-chan time.Time
	if h != nil {
		done = h.done
	} else {
		poll = time.After(peerPoll)
	}
	select {
	case <-done:
	case <-poll:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}
