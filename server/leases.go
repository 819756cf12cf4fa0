package server

import (
	"net/http"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines leases (protocol.md §15): who makes sandboxes under a lease
// and then dies leaves none behind for longer than the lease.

// lease is the part of a sandbox's record that says how long it may stay.
type lease struct {
	ID      string    `json:"id"`
	Seconds int       `json:"seconds"` // that each renewal gives
	Until   time.Time `json:"until"`
}

const maxLease = 24 * 60 * 60 // seconds

var leaseRule = rule(`^[A-Za-z0-9_-]{1,128}$`)

// newLease checks what a sandbox's creation asks for, and begins it; nil is none.
func (s *Server) newLease(in *wire.Lease) (*lease, error) {
	switch {
	case in == nil:
		return nil, nil
	case !leaseRule().MatchString(in.ID):
		return nil, invalid("body.lease.id", "want 1 to 128 letters, digits, hyphens and underscores")
	case in.TTLSeconds < 1 || in.TTLSeconds > maxLease:
		return nil, invalid("body.lease.ttl_seconds", "want an integer from 1 to %d", maxLease)
	}
	return &lease{in.ID, in.TTLSeconds, s.options.Now().Add(seconds(in.TTLSeconds))}, nil
}

// renewLease begins the time of a lease anew for every sandbox under it.
func (s *Server) renewLease(c call) (int, any, error) {
	err := s.store.update(c.Context(), func() error {
		all, err := s.store.boxes.all()
		if err != nil {
			return err
		}
		renewed := false
		for _, b := range all {
			if status, _ := s.status(b); b.Lease == nil || b.Lease.ID != c.name || status == wire.StatusDeleting {
				continue
			}
			b.Lease.Until = s.options.Now().Add(seconds(b.Lease.Seconds))
			if err := s.store.boxes.put(b.Box.ID, b); err != nil {
				return err
			}
			renewed = true
		}
		if !renewed {
			return fail(http.StatusNotFound, kindNotFound, "there is no sandbox under the lease %q", c.name)
		}
		return nil
	})
	return http.StatusNoContent, nil, err
}
