package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines how sandboxes come and go: the way between the books and
// the runtime.
//
// Whoever works on a sandbox is named in its record as the owner until that is
// done. A sandbox that is deleted while it is being made is marked so,
// and cleared away by the one who makes it.

const (
	adoptTimeout  = 10 * time.Second
	removeTimeout = time.Minute
	giveUpGrace   = 30 * time.Second      // for a runtime to stop making a sandbox
	roomPause     = "5"                   // seconds before asking again for room on the disk
	peerPoll      = 20 * time.Millisecond // between looks whether another process has finished
)

var (
	errDeleted   = errors.New("the sandbox was deleted")
	errNotInTime = errors.New("the sandbox was not ready in time")
)

// handle is a sandbox as this server reaches it.
type handle struct {
	ctx       context.Context // ends with errClosing, errDeleted, or why it is of no use
	end       context.CancelCauseFunc
	placing   context.Context // ends with ctx, or before it with the reason to give up
	giveUp    context.CancelCauseFunc
	done      chan struct{}    // closed once placing has ended
	instance  runtime.Instance // after done; may be set beside runtime.ErrGone
	err       error            // after done
	transport *http.Transport
	tunnels   map[*tunnel]bool // to its daemon; guarded by Server.mu
}

// hold returns the handle of a sandbox. If there is none yet, it is made, and
// place is called for it in a goroutine that Close waits for.
func (s *Server) hold(id string, place func(*handle) (runtime.Instance, error)) *handle {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.handles[id]; h != nil {
		return h
	}
	return s.newHandle(id, place)
}

// holdAnew is hold for a sandbox that comes back: what hung on its earlier life
// ends.
func (s *Server) holdAnew(id string, place func(*handle) (runtime.Instance, error)) *handle {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.handles[id]; h != nil {
		h.end(errStopped)
	}
	return s.newHandle(id, place)
}

func (s *Server) newHandle(id string, place func(*handle) (runtime.Instance, error)) *handle {
	h := &handle{done: make(chan struct{}), tunnels: map[*tunnel]bool{}}
	h.ctx, h.end = context.WithCancelCause(s.ctx)
	h.placing, h.giveUp = context.WithCancelCause(h.ctx)
	h.transport = &http.Transport{
		DialContext:            h.dial,
		DisableKeepAlives:      true, // a Unix socket is dialled at once, and nothing is left to close
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
	}
	s.handles[id] = h
	s.work.Go(func() {
		h.instance, h.err = place(h)
		if h.err != nil {
			s.forget(id, h, h.err)
		}
		close(h.done)
	})
	return h
}

// forget lets go of a handle and ends what hangs on it.
func (s *Server) forget(id string, h *handle, why error) {
	s.mu.Lock()
	if s.handles[id] == h {
		delete(s.handles, id)
	}
	s.mu.Unlock()
	h.end(why)
}

func (s *Server) held(id string) *handle {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.handles[id]
}

// unreachable is a daemon that does not take connections.
type unreachable struct{ err error }

func (e *unreachable) Error() string { return "the sandbox cannot be reached: " + e.err.Error() }
func (e *unreachable) Unwrap() error { return e.err }

func (h *handle) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	conn, err := h.instance.Dial(ctx)
	if err != nil {
		return nil, &unreachable{err}
	}
	return conn, nil
}

// place makes a registered sandbox. If that fails, rollback says whether its
// record goes too or stays as failed.
func (s *Server) place(b *box, rollback bool) *handle {
	return s.hold(b.Box.ID, func(h *handle) (runtime.Instance, error) {
		if b.Layer != "" {
			defer s.collectSnapshots() // the one it starts with may have been deleted
		}
		instance, err := s.create(h.placing, b)
		if h.placing.Err() != nil {
			err = context.Cause(h.placing)
		}
		if err == nil {
			err = s.markReady(b.Box.ID)
		}
		if err != nil {
			s.clearAway(b.Box.ID, instance, err, rollback)
			return nil, err
		}
		return instance, nil
	})
}

func (s *Server) create(ctx context.Context, b *box) (runtime.Instance, error) {
	if err := s.fetchMounts(ctx, b); err != nil {
		if diskFull(err) {
			err = s.placingFailed(err, b.Image)
		}
		return nil, err
	}
	err := s.fetchImage(ctx, b)
	if refused, ok := errors.AsType[*failure](err); ok {
		return nil, refused
	}
	if err != nil {
		return nil, s.placingFailed(err, b.Image)
	}
	instance, err := s.options.Runtime.Create(ctx, s.spec(b))
	if err != nil {
		return nil, s.placingFailed(err, b.Image)
	}
	if b.configured() {
		err = s.configure(ctx, instance, b)
	}
	return instance, err
}

func (s *Server) markReady(id string) error {
	return s.store.update(context.Background(), func() error {
		b, err := s.store.boxes.get(id)
		if errors.Is(err, fs.ErrNotExist) || err == nil && b.Box.Status != wire.StatusProvisioning {
			return errDeleted
		}
		if err != nil {
			return err
		}
		b.Box.Status, b.Box.UpdatedAt, b.Owner = wire.StatusReady, s.now(), ""
		b.Box.StoppedAt, b.Unmade, b.Used = "", false, s.options.Now()
		return s.store.boxes.put(id, b)
	})
}

// clearAway undoes what was made of a sandbox, and its record with it if it is
// to be rolled back or deleted.
func (s *Server) clearAway(id string, instance runtime.Instance, why error, rollback bool) {
	err := s.removeInstance(id, instance)
	if err == nil {
		err = s.store.update(context.Background(), func() error {
			b, err := s.store.boxes.get(id)
			if err == nil && (rollback || b.Box.Status == wire.StatusDeleting) {
				return s.store.boxes.remove(id)
			}
			return err
		})
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.options.Log.Error("a sandbox that failed could not be cleared away", "box", id, "error", err)
	}
	s.markFailed(id, why) // if it is still there
}

// removeInstance removes what the runtime keeps of a sandbox, if it has any.
func (s *Server) removeInstance(id string, instance runtime.Instance) error {
	if instance != nil {
		ctx, cancel := context.WithTimeout(context.Background(), removeTimeout)
		defer cancel()
		if err := instance.Remove(ctx); err != nil {
			return err
		}
	}
	if err := removeTree(s.store.gitDir(id)); err != nil {
		return err
	}
	// The folder itself is the server's as long as no sandbox was placed in it.
	if err := os.Remove(s.store.boxDir(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// markFailed writes into a sandbox's record, if there is one and its status is
// one of those given, or any if none are, why it is of no use.
func (s *Server) markFailed(id string, why error, only ...string) {
	err := s.store.update(context.Background(), func() error {
		b, err := s.store.boxes.get(id)
		if err != nil || only != nil && !slices.Contains(only, b.Box.Status) {
			return err
		}
		b.Box.Status, b.Box.StatusMessage = wire.StatusFailed, s.reason(why)
		b.Box.UpdatedAt, b.Owner = s.now(), ""
		return s.store.boxes.put(id, b)
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.options.Log.Error("a sandbox could not be marked as failed", "box", id, "error", err)
	}
}

// reason is what a record says of an error.
func (s *Server) reason(err error) string {
	if _, ok := errors.AsType[*failure](err); !ok && diskFull(err) {
		return s.noRoom(err).Error()
	}
	return err.Error()
}

// placingFailed says why a sandbox could not be made (protocol.md §2.4).
func (s *Server) placingFailed(err error, image string) error {
	if diskFull(err) { // that may pass, and nothing is left of the attempt
		f := s.noRoom(err)
		f.status, f.problem.Type, f.retryAfter = http.StatusServiceUnavailable, kindUnschedulable, roomPause
		return f
	}
	if missing, ok := errors.AsType[*runtime.ImageError](err); ok {
		return imageFailed(missing)
	}
	kind := kindCrashLoop
	if _, ok := errors.AsType[*runtime.Unsupported](err); ok {
		kind = kindSandboxConfig
		if _, images := s.options.Runtime.(runtime.Images); !images && image != runtime.HostImage {
			kind = kindImagePull
		}
	}
	f := fail(http.StatusUnprocessableEntity, kind, "the sandbox could not be made: %v", err)
	f.cause = err
	return f
}

// waitReady waits for a sandbox that is rolled back if it fails, is not ready
// in time, or the one who asked for it goes away.
func (s *Server) waitReady(ctx context.Context, b *box, h *handle, timeout time.Duration) error {
	wait, cancel := context.WithTimeoutCause(ctx, timeout, errNotInTime)
	defer cancel()
	err := errNotInTime
	select {
	case <-h.done:
		err = h.err
	case <-wait.Done():
		h.giveUp(context.Cause(wait))
		select {
		case <-h.done:
			err = h.err
		case <-time.After(giveUpGrace):
			s.options.Log.Error("the runtime does not stop making a sandbox", "box", b.Box.ID)
		}
	}
	switch {
	case err == nil && ctx.Err() != nil:
		return errors.Join(s.delete(ctx, b.Box.ID), ctx.Err())
	case errors.Is(err, errDeleted):
		return wasDeleted()
	case errors.Is(err, errClosing):
		return fail(http.StatusServiceUnavailable, wire.ErrServiceUnavailable, "%v", err)
	case errors.Is(err, errNotInTime):
		return fail(http.StatusRequestTimeout, kindTimeout, "the sandbox %q was not ready within %s (last status: %s)", b.Box.Name, timeout, wire.StatusProvisioning)
	}
	return err
}

func wasDeleted() error {
	return fail(http.StatusGone, kindGone, "the sandbox was deleted while it was being made")
}

// reach returns the handle of a sandbox whose record says that it is ready. A
// sandbox of another process, or of this one before a restart, is adopted; one
// whose daemon has gone becomes failed and is runtime.ErrGone.
func (s *Server) reach(ctx context.Context, b *box) (*handle, error) {
	id := b.Box.ID
	h := s.hold(id, func(h *handle) (runtime.Instance, error) {
		ctx, cancel := context.WithTimeout(h.ctx, adoptTimeout)
		defer cancel()
		instance, err := s.options.Runtime.Adopt(ctx, s.spec(b))
		if errors.Is(err, runtime.ErrGone) {
			s.markFailed(id, err, wire.StatusReady) // one that was stopped or deleted is gone as well
		}
		return instance, err
	})
	select {
	case <-h.done:
		return h, h.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// delete removes a sandbox, named by name or id, and its record. It goes on
// when the caller has gone.
func (s *Server) delete(ctx context.Context, name string) error {
	return s.deleteFound(ctx, func() (*box, error) { return s.findBox(name) })
}

// deleteFound removes the sandbox that find, called inside update, returns.
func (s *Server) deleteFound(ctx context.Context, find func() (*box, error)) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	var b *box
	var inTheMaking bool
	err := s.store.update(ctx, func() (err error) {
		if b, err = find(); err != nil {
			return err
		}
		if err := s.own(b); err != nil {
			return err
		}
		inTheMaking = s.busy(b)
		if !inTheMaking {
			b.Owner = s.store.owner
		}
		b.Box.Status, b.Box.UpdatedAt = wire.StatusDeleting, s.now()
		return s.store.boxes.put(b.Box.ID, b)
	})
	if err != nil {
		return err
	}
	if b.Image != runtime.HostImage {
		defer s.collectImages()
	}
	if inTheMaking {
		err = s.interrupt(ctx, b)
	} else {
		err = s.remove(ctx, b)
	}
	if err != nil {
		s.markFailed(b.Box.ID, fmt.Errorf("it could not be removed: %w", err))
		f := fail(http.StatusInternalServerError, kindInternal, "the sandbox %q could not be removed wholly: %v", b.Box.Name, err)
		f.cause = err
		return f
	}
	return nil
}

// interrupt waits until the one who makes a sandbox has cleared it away.
func (s *Server) interrupt(ctx context.Context, b *box) error {
	var h *handle
	var done <-chan struct{}
	for {
		if h == nil && b.Owner == s.store.owner {
			if h = s.held(b.Box.ID); h != nil { // it may be registered and not yet begun
				h.giveUp(errDeleted)
				done = h.done
			}
		}
		now, err := s.store.boxes.get(b.Box.ID)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case now.Box.Status != wire.StatusDeleting:
			return errors.New(now.Box.StatusMessage)
		case s.orphan(now):
			return s.remove(ctx, now)
		}
		select {
		case <-done:
			done = nil
		case <-time.After(peerPoll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// remove removes what there is of a sandbox that nobody makes any more.
func (s *Server) remove(ctx context.Context, b *box) error {
	id := b.Box.ID
	var instance runtime.Instance
	if h := s.held(id); h != nil {
		s.forget(id, h, errDeleted)
		select {
		case <-h.done:
			instance = h.instance
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if _, err := os.Stat(s.store.boxDir(id)); err == nil && instance == nil {
		instance, err = s.options.Runtime.Adopt(ctx, s.spec(b))
		if err != nil && !errors.Is(err, runtime.ErrGone) {
			return err
		}
	}
	if err := s.removeInstance(id, instance); err != nil {
		return err
	}
	return s.store.update(ctx, func() error {
		if err := s.store.boxes.remove(id); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}
