package server

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines which sandboxes end by themselves, and when (protocol.md
// §2.7, §15). The janitor of any server on a state folder sees to it, and only
// while one runs: nothing else on the machine does.
//
// A sandbox of the classic generation, which was made from a template or with
// ttl_seconds, is deleted when it has been idle for long enough; any other is
// stopped, and wakes when it is asked for something. Idle time is counted while
// a server runs: after a restart clients have the whole of it to come back. What
// says nothing of its times has those of the server that made it, and of one
// that was told none, such as the embedded server, it is never stopped.

const (
	tidyEvery = 10 * time.Second // between two looks of the janitor
	endAtOnce = 8                // sandboxes that it ends at a time
	maxTTL    = 100 * 366 * 24 * 60 * 60
)

// What is to become of a sandbox.
const (
	toDelete = "delete"
	toStop   = "stop"
)

// expiry fills in when a sandbox is to be deleted in any case.
func (b *box) expiry() {
	b.Box.ExpiresAt = ""
	if created, err := time.Parse(time.RFC3339, b.Box.CreatedAt); err == nil && lasts(b.Box.TTLSeconds) {
		b.Box.ExpiresAt = created.Add(seconds(*b.Box.TTLSeconds)).Format(timeForm)
	}
}

// lasts reports whether a time to live is given and not switched off.
func lasts(ttl *int) bool { return ttl != nil && *ttl > 0 }

func seconds(n int) time.Duration { return time.Duration(n) * time.Second }

// lifetimes sets what a sandbox that is to be made has of its times to live, and
// of the server's own for what it leaves open.
func (s *Server) lifetimes(b *box, in *boxCreate) {
	b.Classic = in.TTLSeconds != nil || in.TemplateName != ""
	b.Box.TTLSeconds, b.Box.IdleTTLSeconds, b.Box.DeleteAfterStopSeconds = in.TTLSeconds, in.IdleTTLSeconds, in.DeleteAfterStopSeconds
	if b.Classic {
		return
	}
	own := func(given *int, fallback time.Duration) *int {
		if n := int(fallback / time.Second); given == nil && n > 0 {
			return &n
		}
		return given
	}
	b.Box.IdleTTLSeconds = own(in.IdleTTLSeconds, s.options.StopIdle)
	b.Box.DeleteAfterStopSeconds = own(in.DeleteAfterStopSeconds, s.options.DeleteStopped)
}

// use counts in a request that keeps a sandbox from being idle, until done is
// called.
func (s *Server) use(id string) (done func()) {
	s.mu.Lock()
	s.uses[id]++
	s.mu.Unlock()
	return func() {
		if b, err := s.store.boxes.peek(id); err == nil {
			s.touch(b)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.uses[id]--; s.uses[id] == 0 {
			delete(s.uses, id)
		}
	}
}

func (s *Server) used(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.uses[id] > 0
}

// touch writes down that a sandbox is in use, for all servers to see, unless
// that was done a moment ago.
func (s *Server) touch(b *box) {
	id, now := b.Box.ID, s.options.Now()
	if now.Sub(b.Used) < tidyEvery {
		return
	}
	err := s.store.update(context.Background(), func() error {
		b, err := s.store.boxes.get(id)
		if err != nil {
			return err
		}
		b.Used = now
		return s.store.boxes.put(id, b)
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.options.Log.Error("the use of a sandbox could not be recorded", "box", id, "error", err)
	}
}

// due says what is to become of a sandbox now, and by which of its settings; ""
// if nothing is.
func (s *Server) due(b *box) (action, setting string) {
	status, _ := s.status(b)
	if b.Pool != "" || b.Runtime != s.options.Runtime.Info().Name || b.Box.Status == wire.StatusDeleting && s.busy(b) {
		return "", ""
	}
	now := s.options.Now()
	if b.Lease != nil && !now.Before(b.Lease.Until) {
		return toDelete, "lease"
	}
	if at, err := time.Parse(time.RFC3339, b.Box.ExpiresAt); err == nil && !now.Before(at) {
		return toDelete, "ttl_seconds"
	}
	if at, err := time.Parse(time.RFC3339, b.Box.StoppedAt); err == nil && status == wire.StatusStopped &&
		lasts(b.Box.DeleteAfterStopSeconds) && !now.Before(at.Add(seconds(*b.Box.DeleteAfterStopSeconds))) {
		return toDelete, "delete_after_stop_seconds"
	}
	if !lasts(b.Box.IdleTTLSeconds) || s.used(b.Box.ID) || status == wire.StatusProvisioning {
		return "", ""
	}
	since := b.Used
	if since.Before(s.began) {
		since = s.began
	}
	// What the record says of the last use may be that much too early.
	if now.Before(since.Add(seconds(*b.Box.IdleTTLSeconds) + tidyEvery)) {
		return "", ""
	}
	switch {
	case b.Classic:
		return toDelete, "idle_ttl_seconds"
	case status == wire.StatusReady:
		return toStop, "idle_ttl_seconds"
	}
	return "", ""
}

// janitor ends what is due until the server closes.
func (s *Server) janitor() {
	ticker := time.NewTicker(tidyEvery)
	defer ticker.Stop()
	s.collectImages()
	for {
		s.tidy()
		select {
		case <-ticker.C:
		case <-s.ctx.Done():
			return
		}
	}
}

// tidy ends what is due, and returns once that is done.
func (s *Server) tidy() {
	all, err := s.store.boxes.all()
	if err != nil {
		s.options.Log.Error("the sandboxes could not be looked through", "error", err)
	}
	slots := make(chan struct{}, endAtOnce)
	var work sync.WaitGroup
	for _, b := range all {
		if s.used(b.Box.ID) {
			s.touch(b)
		}
		action, setting := s.due(b)
		if action == "" || s.ctx.Err() != nil {
			continue
		}
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			s.finish(b, action, setting)
		})
	}
	work.Wait()
}

// finish stops or deletes a sandbox unless another server has, or it is not due
// any more.
func (s *Server) finish(b *box, action, setting string) {
	errNotDue := errors.New("it is not due any more")
	find := func() (*box, error) {
		now, err := s.store.boxes.get(b.Box.ID)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errNotDue
		}
		if err == nil {
			if again, _ := s.due(now); again != action {
				err = errNotDue
			}
		}
		return now, err
	}
	end := s.stop
	if action == toDelete {
		end = s.deleteFound
	}
	switch err := end(s.ctx, find); {
	case errors.Is(err, errNotDue):
	case err != nil:
		s.options.Log.Error("a sandbox is due and stays, which is tried again soon", "box", b.Box.ID, "action", action, "by", setting, "error", err)
	default:
		s.options.Log.Info("a sandbox was due", "box", b.Box.ID, "action", action, "by", setting)
	}
}
