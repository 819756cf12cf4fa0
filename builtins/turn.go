package builtins

import (
	"context"
	"errors"
	"sync"
)

// This file defines how tasks take turns at reading one stream.

// A turn is held by one strand at a time, as often as it likes.
type turn struct {
	mu     sync.Mutex // guards what follows
	holder *strand
	held   int
	freed  chan struct{} // closed when it is free again; nil if nobody waits
}

var errReadAround = errors.New("the output of the command is being read by a loop that waits for this task")

// take waits until no other strand has the turn. The strand waits for the
// holder, and so the holder must not wait for it.
func (t *turn) take(ctx context.Context, s *strand) error {
	for {
		t.mu.Lock()
		if t.held == 0 || t.holder == s {
			t.holder = s
			t.held++
			t.mu.Unlock()
			return nil
		}
		for waits := s.task.waiting; waits != nil; waits = waits.waiting {
			if waits.strand == t.holder {
				t.mu.Unlock()
				return errReadAround
			}
		}
		if t.freed == nil {
			t.freed = make(chan struct{})
		}
		freed := t.freed
		t.mu.Unlock()
		s.yield()
		select {
		case <-freed:
		case <-ctx.Done():
		}
		if !s.regain(ctx) {
			return context.Cause(ctx)
		}
	}
}

func (t *turn) release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held--; t.held == 0 && t.freed != nil {
		close(t.freed)
		t.freed = nil
	}
}
