package server

import (
	"math/big"
	"net/http"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines how much a server keeps at a time. The words of a refusal
// are read by clients (protocol.md §3.1): "sandbox" or "volume" beside "limit",
// or "storage" and not "limit".

// Quota limits what a server keeps at a time; zero is no limit.
type Quota struct {
	Sandboxes   int   // those that pools keep ready included
	Volumes     int   // how many
	VolumeBytes int64 // how large together
	Pools       int
	Snapshots   int // those that failed included
}

const quotaPause = "1" // seconds before asking again: something may be deleted at any time

func overQuota(format string, args ...any) *failure {
	f := fail(http.StatusTooManyRequests, kindQuota, format, args...)
	f.retryAfter = quotaPause
	return f
}

// roomFor refuses one more of a kind where there are have.
func roomFor(kinds string, have, quota int) error {
	if quota > 0 && have >= quota {
		return overQuota("the limit of %d %s is reached: delete what is not needed", quota, kinds)
	}
	return nil
}

// roomForVolume checks the size that a volume is to have; only inside update.
func (s *Server) roomForVolume(id, size string) error {
	all, err := s.store.volumes.all()
	if err != nil {
		return err
	}
	others := new(big.Rat)
	count := 0
	for _, v := range all {
		if n := quantity(v.Size); v.ID != id && n != nil {
			others.Add(others, n)
			count++
		}
	}
	if id == "" {
		if err := roomFor("volumes", count, s.options.Quota.Volumes); err != nil {
			return err
		}
	}
	allowed := s.options.Quota.VolumeBytes
	if allowed > 0 && new(big.Rat).Add(others, quantity(size)).Cmp(new(big.Rat).SetInt64(allowed)) > 0 {
		return overQuota("a volume of %s does not fit: all together may take up %d bytes of storage", size, allowed)
	}
	return nil
}

// roomForReplicas checks how many sandboxes a pool is to keep ready beside
// those in use and those of other pools; only inside update.
func (s *Server) roomForReplicas(id string, replicas int) error {
	quota := s.options.Quota.Sandboxes
	if quota == 0 {
		return nil
	}
	pools, err := s.store.pools.all()
	if err != nil {
		return err
	}
	boxes, err := s.store.boxes.all()
	if err != nil {
		return err
	}
	for _, p := range pools {
		if p.Pool.ID != id && !p.Deleting {
			replicas += p.Pool.Replicas
		}
	}
	for _, b := range boxes {
		if b.Pool == "" && b.Box.Status != wire.StatusDeleting {
			replicas++
		}
	}
	if replicas > quota {
		return plain(overQuota("the limit of %d sandboxes would be exceeded: there would be %d", quota, replicas))
	}
	return nil
}
