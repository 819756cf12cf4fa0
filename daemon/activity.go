//go:build linux

package daemon

import (
	"net/http"
	"sync/atomic"
	"time"
)

// This file defines GET /activity, by which the server learns whether the
// sandbox is idle (protocol.md §2.7).

// activity is what commands, file calls and the streams of tunnels leave behind. Those of WebSockets
// that are under way are found in the table of sessions.
type activity struct {
	requests atomic.Int64 // under way, and streams
	last     atomic.Int64 // nanoseconds since 1970
}

func (a *activity) touch() { a.last.Store(time.Now().UnixNano()) }

// during counts a request.
func (a *activity) during(handle http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a.requests.Add(1)
		a.touch()
		defer a.requests.Add(-1)
		defer a.touch()
		handle(w, r)
	}
}

// busy answers with how many commands run for a client that is there, file calls
// are under way and streams of tunnels are open, and when the last one began or
// ended, or was written to.
func (d *daemon) busy(w http.ResponseWriter, _ *http.Request) {
	answerJSON(w, http.StatusOK, struct {
		Commands int64     `json:"commands"`
		Last     time.Time `json:"last"`
	}{d.activity.requests.Load() + d.sessions.attended(), time.Unix(0, d.activity.last.Load()).UTC()})
}

// attended is how many commands run that a client is attached to.
func (t *table) attended() (n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.sessions {
		if s.attended() {
			n++
		}
	}
	return n
}

// attended reports whether the command runs and a client is attached to it.
func (s *session) attended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.final == nil && len(s.readers) > 0
}
