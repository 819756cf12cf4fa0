package builtins

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines how servers come to delete by themselves what a run leaves
// behind when it is killed: by a lease, which the run renews while it lives; and
// on servers without leases by a time to live that is counted from the creation,
// or from the stop, and that the run moves ahead of itself (protocol.md §15,
// §2.7). Either is long enough to outlast a few renewals that fail.

const (
	leaseTime   = 10 * time.Minute
	renewEvery  = 2 * time.Minute
	renewalTime = 30 * time.Second
)

// leases are those of one run on one server.
type leases struct {
	run *Run
	cl  *client.Client
	id  string // of the lease; "" on a server without
	ttl string // which time to live stands in for it: that of generation wire.Classic, or of wire.Head; "" if none

	mu   sync.Mutex
	held []*leased
}

// leased is a sandbox with a time to live that the run prolongs.
type leased struct {
	name  func() string
	asked time.Time // before it can have been created
}

// lease gives a sandbox that is to be created and released a bounded life
// without the run. What the workflow says itself of its times stays as it is.
// The caller calls hold once there is the sandbox.
func (c *invocation) lease(cl *client.Client, request *wire.BoxCreate) (*leases, error) {
	if !c.Run.options.Leases {
		return nil, nil
	}
	l, err := c.Run.leasesOn(c.Ctx, cl)
	if err != nil || l == nil {
		return nil, err
	}
	given := request.TTLSeconds != nil || request.IdleTTLSeconds != nil || request.DeleteAfterStopSeconds != nil
	first := int(leaseTime / time.Second)
	switch {
	case l.id != "":
		request.Lease = &wire.Lease{ID: l.id, TTLSeconds: first}
	case given:
		return nil, nil
	case l.ttl == wire.Classic:
		request.TTLSeconds = &first
	case l.ttl == wire.Head:
		request.DeleteAfterStopSeconds = &first
	}
	return l, nil
}

// leasesOn are the run's leases on a server, nil if nothing can be done there.
// Only a server that is not there at all is an error.
func (r *Run) leasesOn(ctx context.Context, cl *client.Client) (*leases, error) {
	r.leasing.Lock()
	defer r.leasing.Unlock()
	if l, known := r.leases[cl]; known {
		return l, nil
	}
	l, err := r.newLeases(ctx, cl)
	if errors.Is(err, client.ErrConnection) {
		return nil, err
	}
	if err != nil {
		return nil, nil // the request itself will tell what is wrong
	}
	r.leases[cl] = l
	if l != nil && r.ended.Err() == nil {
		r.renewing.Go(l.renew)
	}
	return l, nil
}

func (r *Run) newLeases(ctx context.Context, cl *client.Client) (*leases, error) {
	info, err := serverInfo(ctx, cl)
	if err != nil {
		return nil, err
	}
	l := &leases{run: r, cl: cl}
	if info != nil && slices.Contains(info.Extensions, "leases") {
		var id [16]byte
		rand.Read(id[:]) // never fails
		l.id = hex.EncodeToString(id[:])
		return l, nil
	}
	spoken, err := generations(ctx, cl)
	switch {
	case err != nil:
		return nil, err
	case slices.Contains(spoken, wire.Head) || slices.Contains(spoken, wire.Late):
		l.ttl = wire.Head
	case slices.Contains(spoken, wire.Classic):
		l.ttl = wire.Classic
	default:
		return nil, nil
	}
	return l, nil
}

// hold prolongs a sandbox's life from now on.
func (l *leases) hold(name func() string, asked time.Time) {
	if l == nil || l.id != "" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = append(l.held, &leased{name, asked})
}

// renew runs until the run has ended.
func (l *leases) renew() {
	ticker := time.NewTicker(renewEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-l.run.ended.Done():
			return
		}
		ctx, cancel := context.WithTimeout(l.run.ended, renewalTime)
		err := l.renewOnce(ctx)
		cancel()
		if err != nil && l.run.ended.Err() == nil {
			l.run.warnOnce(fmt.Sprintf("the server was not told that this run is still alive, and deletes its sandboxes %v after it was told so last: %v", leaseTime, err))
		}
	}
}

func (l *leases) renewOnce(ctx context.Context) error {
	if l.id != "" {
		return ignoreNotFound(l.cl.RenewLease(ctx, l.id)) // there may be no sandbox now
	}
	l.mu.Lock()
	held := slices.Clone(l.held)
	l.mu.Unlock()
	var errs []error
	for _, b := range held {
		_, err := l.cl.UpdateSandbox(ctx, b.name(), l.update(time.Since(b.asked)))
		if errors.Is(err, client.ErrNotFound) { // it was released
			l.mu.Lock()
			l.held = slices.DeleteFunc(l.held, func(x *leased) bool { return x == b })
			l.mu.Unlock()
			err = nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// update moves the end of a sandbox of this age ahead. Whether the server counts
// from the creation, from a stop, which came later, or from now on, the sandbox
// lives for at least leaseTime.
func (l *leases) update(age time.Duration) wire.BoxUpdate {
	minutes := int((age+leaseTime)/time.Minute) + 1
	ttl := minutes * 60 // other numbers are refused
	if l.ttl == wire.Classic {
		return wire.BoxUpdate{TTLSeconds: &ttl}
	}
	return wire.BoxUpdate{DeleteAfterStopSeconds: &ttl}
}

// Close ends what the run does in the background, and waits for it. It is called
// after Release.
func (r *Run) Close() {
	r.leasing.Lock()
	r.end() // nobody begins to renew after this
	r.leasing.Unlock()
	r.renewing.Wait()
}
