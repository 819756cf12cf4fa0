package builtins

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/event"
	"github.com/sbx-star/sbx-star/wire"
)

// This file tests that a run tells its server that it lives, for as long as it
// does, on servers of every generation.

// pipes is a listener in memory, which is all that a clock of a test waits for.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if conn, ok := <-p; ok {
		return conn, nil
	}
	return nil, net.ErrClosed
}
func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{} }

// leaseServer is as much of a server as a lease needs.
type leaseServer struct {
	generation string // "ours" has leases

	mu       sync.Mutex
	requests []string
	fails    bool
}

func (s *leaseServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/v2/sandboxes")
	var body map[string]any
	json.NewDecoder(r.Body).Decode(&body)
	switch {
	case path == "/info" && s.generation == "ours":
		io.WriteString(w, `{"server":"sbx-star","generations":["seed","classic","head"],"extensions":["leases"]}`)
	case path == "/info", path == "/templates" && s.generation == wire.Head, path == "/snapshots" && s.generation == wire.Seed:
		w.WriteHeader(http.StatusNotFound)
	case path == "/templates", path == "/snapshots":
		io.WriteString(w, `{}`)
	case s.fails:
		w.WriteHeader(http.StatusInternalServerError)
	default:
		ttls := ""
		for _, name := range []string{"lease", "ttl_seconds", "delete_after_stop_seconds"} {
			if v, ok := body[name]; ok {
				if lease, ok := v.(map[string]any); ok {
					v = lease["ttl_seconds"]
				}
				ttls += fmt.Sprintf(" %s=%v", name, v)
			}
		}
		if strings.HasPrefix(path, "/leases/") {
			path = "/leases/ID/renew"
		}
		s.requests = append(s.requests, r.Method+" "+path+ttls)
		io.WriteString(w, `{"id":"1","name":"w","status":"ready"}`)
	}
}

func TestLeases(t *testing.T) {
	for _, test := range []struct {
		generation, args string
		want             []string // in five minutes
	}{
		{"ours", "", []string{"POST /boxes lease=600", "POST /leases/ID/renew", "POST /leases/ID/renew", "DELETE /boxes/w"}},
		{"ours", ", ttl_seconds=60", []string{"POST /boxes lease=600 ttl_seconds=60", "POST /leases/ID/renew", "POST /leases/ID/renew", "DELETE /boxes/w"}},
		{wire.Head, "", []string{"POST /boxes delete_after_stop_seconds=600", "PATCH /boxes/w delete_after_stop_seconds=780", "PATCH /boxes/w delete_after_stop_seconds=900", "DELETE /boxes/w"}},
		{wire.Head, ", idle_ttl_seconds=60", []string{"POST /boxes", "DELETE /boxes/w"}},
		{wire.Classic, "", []string{"POST /boxes ttl_seconds=600", "PATCH /boxes/w ttl_seconds=780", "PATCH /boxes/w ttl_seconds=900", "DELETE /boxes/w"}},
		{wire.Classic, ", ttl_seconds=60", []string{"POST /boxes ttl_seconds=60", "DELETE /boxes/w"}},
		{wire.Seed, "", []string{"POST /boxes", "DELETE /boxes/w"}},
		{"ours", ", keep=True", []string{"POST /boxes"}},
	} {
		t.Run(test.generation+test.args, func(t *testing.T) {
			s := &leaseServer{generation: test.generation}
			leaseRun(t, s, `sandbox(name="w"`+test.args+`); sleep(300)`)
			if !slices.Equal(s.requests, test.want) {
				t.Errorf("sent\n%s\nwant\n%s", strings.Join(s.requests, "\n"), strings.Join(test.want, "\n"))
			}
		})
	}
}

// A server that does not take the renewal is told of once.
func TestLeaseIsNotRenewed(t *testing.T) {
	s := &leaseServer{generation: "ours"}
	warnings := leaseRun(t, s, `sandbox(name="w"); sleep(60); fails(); sleep(600)`)
	if len(warnings) != 1 || !strings.Contains(warnings[0], "10m0s") {
		t.Errorf("told: %q", warnings)
	}
}

// leaseRun runs source on a clock of its own, and returns the warnings.
func leaseRun(t *testing.T, s *leaseServer, source string) (warnings []string) {
	synctest.Test(t, func(t *testing.T) {
		connections := make(pipes)
		server := &http.Server{Handler: s}
		go server.Serve(connections)
		cl, err := client.New(client.Options{Endpoint: "http://test/v2/sandboxes", Dial: func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			connections <- far
			return near, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		run := NewRun(Options{
			Connect: func(context.Context) (*client.Client, error) { return cl, nil }, Leases: true,
			Events: func(e event.Event) {
				if w, ok := e.(event.Warning); ok {
					warnings = append(warnings, w.Text)
				}
			},
		})
		task := NewTask(t.Context(), run)
		_, names := Predeclared(task)
		names["fails"] = starlark.NewBuiltin("fails", func(*starlark.Thread, *starlark.Builtin, starlark.Tuple, []starlark.Tuple) (starlark.Value, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.fails = true
			return starlark.None, nil
		})
		err = task.Exec(Thread{Name: "main"}, func(thread *starlark.Thread) error {
			_, err := starlark.ExecFileOptions(&syntax.FileOptions{}, thread, "test.star", source, names)
			return err
		})
		if err != nil {
			t.Error(err)
		}
		task.Release(false)
		run.Close()
		cl.Close()
		server.Close()
		time.Sleep(renewEvery) // nobody is left who would renew
	})
	return warnings
}
