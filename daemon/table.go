//go:build linux

package daemon

import (
	"fmt"
	"slices"
	"sync"

	"github.com/google/uuid"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the table of all sessions: how commands are found by their
// ids, and forgotten.

// table holds the sessions of a daemon. Its lock is taken before a session's.
type table struct {
	mu       sync.Mutex
	sessions map[string]*session
	running  int
	kept     []*session // ended, oldest end first
	bytes    int64      // of output in those, which grows no more
	expired  map[string]struct{}
	oldest   []string // of expired, in order of time
	lim      limits
}

func (t *table) init(lim limits) {
	t.lim = lim
	t.sessions = make(map[string]*session)
	t.expired = make(map[string]struct{})
}

const longestID = 256

// open finds the command that has the id of req, or starts it, and attaches to
// it (§6.6). The lock is held meanwhile: one id is one command.
func (d *daemon) open(req *wire.Execute, v1 bool) (*reader, error) {
	id := req.CommandID
	if len(id) > longestID {
		return nil, refuse(wire.ErrInvalidRequest, "command_id is longer than %d bytes", longestID)
	}
	if id == "" {
		v7, err := uuid.NewV7()
		if err != nil {
			return nil, fmt.Errorf("make a command id: %w", err)
		}
		id = v7.String()
	}
	t := &d.sessions
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.sessions[id]; s != nil {
		return s.attach([2]int64{}, v1), nil
	}
	if t.running >= t.lim.running {
		return nil, refuse(wire.ErrCommand, "%d commands are running, which is the most: wait for some to end", t.running)
	}
	s := newSession(id, d.lim)
	if err := s.configure(req); err != nil {
		return nil, err
	}
	spec, err := d.cfg.Load().prepare(commandRequest{command: req.Command, shell: req.Shell, env: req.Env, cwd: req.Cwd,
		runConfig: req.RunConfig, pty: req.PTY, stdin: !req.CloseStdin})
	if err != nil {
		return nil, err
	}
	reader := s.attach([2]int64{}, v1)
	s.cmd, err = d.start(spec,
		func(p []byte) { s.write(outStream, p) },
		func(p []byte) { s.write(errStream, p) })
	if err != nil {
		return nil, err
	}
	if s.cmd.input != nil {
		s.input = newInput(s.cmd.input, t.lim.input, spec.pty)
		d.work.Go(s.input.run)
	}
	t.forget(id) // an id of old is free again
	t.sessions[id] = s
	t.running++
	d.work.Go(func() {
		s.supervise(d.ctx.Done())
		t.ended(s)
		s.keep(d.ctx.Done())
		t.remove(s)
	})
	return reader, nil
}

// reopen attaches to a command that was started before.
func (d *daemon) reopen(req *wire.Reconnect, v1 bool) (*reader, error) {
	if req.CommandID == "" {
		return nil, refuse(wire.ErrInvalidRequest, "command_id is missing: name the command to attach to")
	}
	if req.StdoutOffset < 0 || req.StderrOffset < 0 {
		return nil, refuse(wire.ErrInvalidRequest, "an offset is negative: give a number of bytes")
	}
	t := &d.sessions
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.sessions[req.CommandID]; s != nil {
		return s.attach([2]int64{req.StdoutOffset, req.StderrOffset}, v1), nil
	}
	if _, ok := t.expired[req.CommandID]; ok {
		return nil, refuse(wire.ErrSessionExpired, "command %q ended and was kept no longer", req.CommandID)
	}
	return nil, refuse(wire.ErrCommandNotFound, "there is no command %q in this sandbox", req.CommandID)
}

// ended counts s among the ended sessions, and drops those that ended first if
// they are too many or hold too much. One that is being read stays.
func (t *table) ended(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running--
	t.kept = append(t.kept, s)
	t.bytes += s.size()
	full := func() bool { return len(t.kept) > t.lim.kept || t.bytes > t.lim.keptBytes }
	if !full() {
		return
	}
	for _, k := range slices.Clone(t.kept) {
		if k != s && !k.attached() {
			close(k.evicted)
			t.drop(k)
			if !full() {
				return
			}
		}
	}
}

// remove drops s unless that has happened.
func (t *table) remove(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop(s)
}

// drop forgets an ended session, but for its id. Doing so twice is harmless.
func (t *table) drop(s *session) {
	if t.sessions[s.id] != s {
		return
	}
	delete(t.sessions, s.id)
	if i := slices.Index(t.kept, s); i >= 0 {
		t.kept = slices.Delete(t.kept, i, i+1)
		t.bytes -= s.size()
	}
	t.expired[s.id] = struct{}{}
	t.oldest = append(t.oldest, s.id)
	if len(t.oldest) > t.lim.remembered {
		t.forget(t.oldest[0])
	}
}

// forget frees an expired id.
func (t *table) forget(id string) {
	if _, ok := t.expired[id]; ok {
		delete(t.expired, id)
		t.oldest = slices.DeleteFunc(t.oldest, func(o string) bool { return o == id })
	}
}
