package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines pools (protocol.md §2.3): sandboxes of a template that are
// made before anybody asks for them. They are ordinary sandboxes whose record
// names the pool; nobody sees them until a POST /boxes takes one over.
//
// Every server on a state folder tends its pools. What is missing is counted and
// registered in one step of the store, so that two of them never fill the same gap.

const (
	minPoolWait = 10 // seconds (protocol.md §13)
	maxReplicas = 100
	poolWorkers = 4 // sandboxes that are made at a time
	poolRounds  = 5 * time.Second
	poolPause   = 5 * time.Minute // at most, after failures, before a pool is filled again
)

// pool is the record of one.
type pool struct {
	Pool       wire.Pool `json:"pool"` // less the template's name, which can change
	TemplateID string    `json:"template_id"`
	Runtime    string    `json:"runtime"`            // whose sandboxes it keeps
	Deleting   bool      `json:"deleting,omitempty"` // it goes when its last sandbox has gone
}

func (s *Server) createPool(c call) (int, any, error) {
	in := wire.PoolCreate{Timeout: defaultWait}
	if err := decode(c.body, &in); err != nil {
		return 0, nil, err
	}
	if err := checkName(in.Name); err != nil {
		return 0, nil, err
	}
	if err := checkReplicas(in.Replicas, 1); err != nil {
		return 0, nil, err
	}
	now := s.now()
	p := &pool{Pool: wire.Pool{Name: in.Name, Replicas: in.Replicas, CreatedAt: now, UpdatedAt: now}, Runtime: s.options.Runtime.Info().Name}
	var first *box
	err := s.store.update(c.Context(), func() error {
		if _, err := s.findPool(in.Name); err == nil {
			return plain(fail(http.StatusConflict, kindConflict, "there is a pool %q already", in.Name))
		}
		t, err := s.store.templates.find(in.TemplateName)
		if f, ok := errors.AsType[*failure](err); ok {
			return fail(http.StatusBadRequest, kindNoTemplate, "%v", f)
		}
		if err != nil {
			return err
		}
		if len(t.VolumeMounts) > 0 {
			return fail(http.StatusBadRequest, kindValidation, "the template %q mounts volumes: a pool cannot keep sandboxes of it ready", t.Name)
		}
		if err := s.checkResources(t.Resources); err != nil {
			return err
		}
		all, err := s.store.pools.all()
		if err != nil {
			return err
		}
		if f, ok := errors.AsType[*failure](roomFor("pools", len(all), s.options.Quota.Pools)); ok {
			return plain(f)
		}
		if err := s.roomForReplicas("", in.Replicas); err != nil {
			return err
		}
		p.Pool.ID, p.TemplateID = s.options.NewID(), t.ID
		if err := s.store.pools.put(p.Pool.ID, p); err != nil || !in.WaitForReady {
			return err
		}
		if first, err = s.registerWarm(p); err != nil {
			return errors.Join(err, s.store.pools.remove(p.Pool.ID))
		}
		return nil
	})
	if err != nil {
		return 0, nil, err
	}
	if first != nil {
		wait := time.Duration(min(max(in.Timeout, minPoolWait), maxWait)) * time.Second
		if err := s.waitReady(c.Context(), first, s.place(first, true), wait); err != nil {
			return 0, nil, errors.Join(s.poolFailed(p, wait, err), s.removePool(c.Context(), p))
		}
	}
	s.tendPools()
	return http.StatusCreated, s.viewPool(p), nil
}

// poolFailed says why a pool has no sandbox that is ready.
func (s *Server) poolFailed(p *pool, wait time.Duration, err error) error {
	if f, ok := errors.AsType[*failure](err); ok && f.status == http.StatusRequestTimeout {
		return fail(http.StatusGatewayTimeout, kindTimeout, "the pool %q had no sandbox ready within %s", p.Pool.Name, wait)
	}
	return err
}

func checkReplicas(n, least int) error {
	if n < least || n > maxReplicas {
		return invalid("body.replicas", "want an integer from %d to %d, got %d", least, maxReplicas, n)
	}
	return nil
}

// viewPool is a pool as it is answered.
func (s *Server) viewPool(p *pool) wire.Pool {
	v := p.Pool
	if t, err := s.store.templates.get(p.TemplateID); err == nil {
		v.TemplateName = t.Name
	}
	return v
}

func (s *Server) findPool(name string) (*pool, error) {
	return s.store.pools.findThat(name, func(p *pool) bool { return !p.Deleting })
}

func (s *Server) getPool(c call) (int, any, error) {
	p, err := s.findPool(c.name)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, s.viewPool(p), nil
}

func (s *Server) listPools(c call) (int, any, error) {
	all, err := s.store.pools.newest()
	if err != nil {
		return 0, nil, err
	}
	list := wire.PoolList{Pools: []wire.Pool{}}
	for _, p := range all {
		if !p.Deleting {
			list.Pools = append(list.Pools, s.viewPool(p))
		}
	}
	list.Pools, err = page(c.URL.Query(), list.Pools)
	return http.StatusOK, list, err
}

// updatePool answers at once: sandboxes come and go behind it.
func (s *Server) updatePool(c call) (int, any, error) {
	var in wire.PoolUpdate
	if err := decode(c.body, &in); err != nil {
		return 0, nil, err
	}
	if in.Name != nil {
		if err := checkName(*in.Name); err != nil {
			return 0, nil, err
		}
	}
	if in.Replicas != nil {
		if err := checkReplicas(*in.Replicas, 0); err != nil {
			return 0, nil, err
		}
	}
	var p *pool
	err := s.store.update(c.Context(), func() (err error) {
		if p, err = s.findPool(c.name); err != nil {
			return err
		}
		before := p.Pool
		if in.Name != nil {
			if err := s.store.pools.nameFree(p.Pool.ID, *in.Name); err != nil {
				return err
			}
			p.Pool.Name = *in.Name
		}
		if in.Replicas != nil {
			p.Pool.Replicas = *in.Replicas
			if p.Pool.Replicas > before.Replicas {
				if err := s.roomForReplicas(p.Pool.ID, p.Pool.Replicas); err != nil {
					return err
				}
			}
		}
		if p.Pool == before {
			return nil
		}
		p.Pool.UpdatedAt = s.now()
		return s.store.pools.put(p.Pool.ID, p)
	})
	if err != nil {
		return 0, nil, err
	}
	s.tendPools()
	return http.StatusOK, s.viewPool(p), nil
}

func (s *Server) deletePool(c call) (int, any, error) {
	p, err := s.findPool(c.name)
	if err != nil {
		return 0, nil, err
	}
	if p.Runtime != s.options.Runtime.Info().Name {
		return 0, nil, fail(http.StatusConflict, kindConflict, "the pool %q keeps sandboxes of the %s runtime: delete it with a server that has this runtime", p.Pool.Name, p.Runtime)
	}
	return http.StatusNoContent, nil, s.removePool(c.Context(), p)
}

// removePool removes a pool and the sandboxes that it keeps. It goes on when the
// caller has gone.
func (s *Server) removePool(ctx context.Context, p *pool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	err := s.store.update(ctx, func() error {
		now, err := s.store.pools.get(p.Pool.ID)
		if errors.Is(err, fs.ErrNotExist) || err == nil && now.Deleting {
			return fail(http.StatusNotFound, kindNotFound, "there is no pool %q", p.Pool.Name)
		}
		if err != nil {
			return err
		}
		now.Deleting = true
		return s.store.pools.put(p.Pool.ID, now)
	})
	if err != nil {
		return err
	}
	boxes, err := s.store.boxes.all()
	if err != nil {
		return err
	}
	var gone sync.WaitGroup
	errs := make([]error, len(boxes))
	for i, b := range boxes {
		if b.Pool == p.Pool.ID {
			gone.Go(func() { errs[i] = s.deleteHidden(ctx, b) })
		}
	}
	gone.Wait()
	return cmp.Or(errors.Join(errs...), s.store.update(ctx, func() error { return s.dropPool(p.Pool.ID) }))
}

// dropPool removes the record of a pool that keeps nothing any more; only inside
// update.
func (s *Server) dropPool(id string) error {
	boxes, err := s.store.boxes.all()
	if err != nil || slices.ContainsFunc(boxes, func(b *box) bool { return b.Pool == id }) {
		return err
	}
	if err := s.store.pools.remove(id); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// deleteHidden deletes a sandbox that nobody sees, unless it was handed out or deleted
// meanwhile.
func (s *Server) deleteHidden(ctx context.Context, b *box) error {
	errHandedOut := errors.New("it is in use or gone")
	err := s.deleteFound(ctx, func() (*box, error) {
		now, err := s.store.boxes.get(b.Box.ID)
		if errors.Is(err, fs.ErrNotExist) || err == nil && now.Pool != b.Pool {
			return nil, errHandedOut
		}
		return now, err
	})
	if errors.Is(err, errHandedOut) {
		return nil
	}
	return err
}

// newHidden is a sandbox that nobody sees: of a pool, or to try the image of a
// snapshot.
func (s *Server) newHidden(of, image string) *box {
	return &box{
		Box: wire.Box{Status: wire.StatusProvisioning}, Pool: of, Unmade: true,
		Runtime: s.options.Runtime.Info().Name, Image: image, Owner: s.store.owner,
	}
}

// registerWarm writes the first record of a sandbox for a pool; only inside
// update.
func (s *Server) registerWarm(p *pool) (*box, error) {
	b := s.newHidden(p.Pool.ID, runtime.HostImage)
	return b, s.register(b, &boxCreate{BoxCreate: wire.BoxCreate{TemplateName: p.TemplateID}})
}

// handOut makes b, which is being registered, of a sandbox that a pool has ready.
// It reports whether there was one.
func (s *Server) handOut(b *box, in *boxCreate, all []*box) bool {
	if !in.ordinary || b.TemplateID == "" {
		return false
	}
	i := slices.IndexFunc(all, func(w *box) bool {
		return w.Pool != "" && w.TemplateID == b.TemplateID && w.Runtime == b.Runtime && w.Box.Status == wire.StatusReady
	})
	if i < 0 {
		return false
	}
	warm := all[i]
	b.Box.ID, b.Box.Name, b.Hostname = warm.Box.ID, cmp.Or(in.Name, warm.Box.Name), warm.Hostname
	b.Box.Status, b.Unmade, b.Owner = wire.StatusReady, false, ""
	b.Digest, b.Box.RunConfig = warm.Digest, warm.Box.RunConfig
	b.Limits, b.InMemory = warm.Limits, warm.InMemory
	return true
}

// ordinary reports whether the body of POST /boxes asks for nothing that a
// sandbox made beforehand may lack.
func ordinary(body []byte) bool {
	var fields map[string]json.RawMessage
	if json.Unmarshal(body, &fields) != nil {
		return false
	}
	for name, value := range fields {
		switch name {
		case "template_name", "name", "labels", "wait_for_ready", "timeout", "lease",
			"ttl_seconds", "idle_ttl_seconds", "delete_after_stop_seconds":
			continue
		}
		switch string(value) {
		case "null", "false", "{}":
			continue
		}
		return false
	}
	return true
}

// answers reports whether the daemon of a sandbox takes connections.
func (s *Server) answers(ctx context.Context, b *box) bool {
	h, err := s.reach(ctx, b)
	if err != nil {
		return false
	}
	conn, err := h.dial(ctx, "", "")
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// tendPools has the pools looked after soon.
func (s *Server) tendPools() {
	select {
	case s.tend <- struct{}{}:
	default: // it is about to happen
	}
}

// keepUp fills and empties the pools, and clears away deleted snapshots, until
// the server closes.
func (s *Server) keepUp() {
	ticker := time.NewTicker(poolRounds)
	defer ticker.Stop()
	failing := setbacks{}
	for always := true; ; always = false { // what a killed server left may be of no pool
		for s.poolRound(always, failing) {
			always = false
		}
		s.collectSnapshots()
		select {
		case <-s.tend:
		case <-ticker.C: // for what failed, and what other servers handed out
		case <-s.ctx.Done():
			return
		}
	}
}

// setbacks are the pools, by id, whose sandboxes could not be made. Only keepUp
// has them.
type setbacks map[string]*setback

type setback struct {
	pause time.Duration // doubles with each
	until time.Time
}

// note takes in how making a sandbox for a pool ended, and returns the pause that
// is made now.
func (sb setbacks) note(id string, failed bool, now time.Time) time.Duration {
	if !failed {
		delete(sb, id)
		return 0
	}
	b := sb[id]
	if b == nil {
		b = &setback{pause: poolRounds / 2}
		sb[id] = b
	}
	if !now.Before(b.until) { // one for all that failed at a time
		b.pause = min(2*b.pause, poolPause)
		b.until = now.Add(b.pause)
	}
	return b.pause
}

func (sb setbacks) rests(id string, now time.Time) bool {
	b := sb[id]
	return b != nil && now.Before(b.until)
}

// poolRound removes what the pools have too much, and makes some of what they
// lack. It reports whether there may be more to do, which is not so if anything
// failed.
func (s *Server) poolRound(always bool, failing setbacks) (more bool) {
	if pools, err := s.store.pools.all(); err == nil && len(pools) == 0 && !always {
		return false
	}
	dead := s.deadWarm()
	var surplus, fresh []*box
	err := s.store.update(s.ctx, func() (err error) {
		surplus, fresh, err = s.planPools(dead, failing)
		return err
	})
	errs := make([]error, len(surplus)+len(fresh))
	var work sync.WaitGroup
	for i, b := range surplus {
		work.Go(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), removeTimeout)
			defer cancel()
			errs[i] = s.deleteHidden(ctx, b)
		})
	}
	for i, b := range fresh {
		work.Go(func() { errs[len(surplus)+i] = s.waitReady(s.ctx, b, s.place(b, true), maxWait*time.Second) })
	}
	work.Wait()
	if s.ctx.Err() != nil {
		return false
	}
	for i, b := range fresh {
		err := errs[len(surplus)+i]
		errs[len(surplus)+i] = nil
		pause := failing.note(b.Pool, err != nil, time.Now())
		more = more || err == nil
		if err != nil {
			s.options.Log.Error("a sandbox for a pool could not be made", "pool", b.Pool, "again_in", pause, "error", err)
		}
	}
	if err = errors.Join(append(errs, err)...); err != nil {
		s.options.Log.Error("the pools could not be tended, which is tried again soon", "error", err)
		return false
	}
	return more || len(surplus) > 0
}

// deadWarm returns the ids of sandboxes that wait in pools and cannot be reached.
func (s *Server) deadWarm() map[string]bool {
	dead := map[string]bool{}
	boxes, _ := s.store.boxes.all() // what comes next reads them again
	for _, b := range boxes {
		if b.Pool != "" && b.Runtime == s.options.Runtime.Info().Name && b.Box.Status == wire.StatusReady && !s.answers(s.ctx, b) {
			dead[b.Box.ID] = true
		}
	}
	return dead
}

// planPools decides what is to be removed, and registers what is to be made;
// only inside update.
func (s *Server) planPools(dead map[string]bool, failing setbacks) (surplus, fresh []*box, err error) {
	if s.ctx.Err() != nil {
		return nil, nil, context.Cause(s.ctx) // nothing can be reached any more
	}
	pools, err := s.store.pools.all()
	if err != nil {
		return nil, nil, err
	}
	boxes, err := s.store.boxes.all()
	if err != nil {
		return nil, nil, err
	}
	for _, b := range boxes {
		if b.Pool != "" && b.Runtime == s.options.Runtime.Info().Name && !s.wanted(b, pools) {
			surplus = append(surplus, b)
		}
	}
	for _, p := range pools {
		if p.Runtime != s.options.Runtime.Info().Name {
			continue
		}
		have := 0
		for _, b := range boxes {
			if b.Pool != p.Pool.ID {
				continue
			}
			switch status, _ := s.status(b); {
			case status == wire.StatusDeleting: // somebody is at it
			case p.Deleting, dead[b.Box.ID], status == wire.StatusFailed, have >= p.Pool.Replicas:
				surplus = append(surplus, b)
			default:
				have++
			}
		}
		if p.Deleting {
			if err := s.dropPool(p.Pool.ID); err != nil {
				return surplus, fresh, err
			}
			continue
		}
		if failing.rests(p.Pool.ID, time.Now()) {
			continue
		}
		for ; have < p.Pool.Replicas && len(fresh) < poolWorkers; have++ {
			b, err := s.registerWarm(p)
			if f, ok := errors.AsType[*failure](err); ok && f.status == http.StatusTooManyRequests {
				return surplus, fresh, nil // the pool has to do with fewer
			}
			if err != nil {
				return surplus, fresh, fmt.Errorf("the pool %q: %w", p.Pool.Name, err)
			}
			fresh = append(fresh, b)
		}
	}
	return surplus, fresh, nil
}

// wanted reports whether there is a pool that keeps a sandbox, or a snapshot that
// is being built with it.
func (s *Server) wanted(b *box, pools []*pool) bool {
	if slices.ContainsFunc(pools, func(p *pool) bool { return p.Pool.ID == b.Pool }) {
		return true
	}
	sn, err := s.store.snapshots.get(b.Pool)
	return err == nil && sn.Owner != "" && s.store.alive(sn.Owner)
}
