//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/client"
	sandboxes "github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/runtime/namespace"
	"github.com/sbx-star/sbx-star/server"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the row that measures the server alone, over a runtime in
// memory, and the server whose clients get text.

// memory is a runtime whose sandboxes are all one daemon in this process, which
// answers and does nothing.
type memory struct {
	listener *passed
}

func (memory) Info() sandboxes.Info { return sandboxes.Info{Name: "memory", Isolation: "none"} }

func (m memory) Create(context.Context, sandboxes.Spec) (sandboxes.Instance, error) {
	return inMemory(m), nil
}
func (m memory) Adopt(context.Context, sandboxes.Spec) (sandboxes.Instance, error) {
	return inMemory(m), nil
}

type inMemory memory

func (i inMemory) Dial(ctx context.Context) (net.Conn, error) { return i.listener.dial(ctx) }
func (inMemory) Stop(context.Context) error                   { return nil }
func (inMemory) Start(context.Context) error                  { return nil }
func (inMemory) Snapshot(context.Context, string) error       { return nil }
func (inMemory) Remove(context.Context) error                 { return nil }

// passed is a listener whose connections are handed over in memory.
type passed struct {
	net.Listener
	open func(ctx context.Context, network, addr string) (net.Conn, error)
}

func (p *passed) dial(ctx context.Context) (net.Conn, error) { return p.open(ctx, "", "") }

// doNothing is the daemon: it runs no command, and says that it has.
func doNothing(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/execute":
		io.Copy(io.Discard, r.Body)
		json.NewEncoder(w).Encode(wire.ExecResponse{})
	case "/execute/ws":
		conn, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		var first struct {
			CommandID string `json:"command_id"`
		}
		if conn.ReadJSON(&first) != nil {
			return
		}
		text, _ := wire.EncodeMessage(&wire.Started{CommandID: first.CommandID, PID: 2})
		conn.WriteMessage(websocket.TextMessage, text)
		for err == nil {
			_, _, err = conn.NextReader() // until the client goes
		}
	default:
		w.Write([]byte("{}"))
	}
}

func prepareServer(_ context.Context, b *bench) ([]probe, func(), error) {
	var probes []probe
	for _, n := range []int{10, 100, 1000, 5000} {
		n = b.sized(n)
		probes = append(probes, probe{fmt.Sprint(n), "", false, func(ctx context.Context, add adder) error {
			return measureServer(ctx, filepath.Join(b.dir, fmt.Sprintf("server-%d", n)), n, add)
		}})
	}
	return probes, nothingToRelease, nil
}

func serverGoals(fs *figures) []string {
	var lines []string
	for _, f := range fs.all {
		if f.name == "1000 sandboxes: memory of one" {
			lines = append(lines, fmt.Sprintf("an idle sandbox holds %s KiB of the server's memory (aim: at most 40)", number(summarize(f).median)))
		}
	}
	return lines
}

// measureServer makes n sandboxes on a server of its own, uses them, and opens
// streams.
func measureServer(ctx context.Context, dir string, n int, add adder) error {
	daemons, reach := server.Private()
	daemon := &http.Server{Handler: http.HandlerFunc(doNothing)}
	s, err := server.New(server.Options{Runtime: memory{&passed{daemons, reach}}, StateDir: dir, BestEffort: true, MaxSockets: 1 << 20})
	if err != nil {
		return err
	}
	listener, dial := server.Private()
	serving, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { daemon.Serve(daemons) })
	running.Go(func() { s.Serve(serving, listener) })
	c, err := client.New(client.Options{Endpoint: "http://localhost/v2/sandboxes", Dial: dial})
	if err == nil {
		err = useServer(ctx, c, n, add)
		c.Close()
	}
	stop()
	daemon.Close()
	running.Wait()
	return err
}

// mostStreams is how many are open at a time: each takes four descriptors here.
const mostStreams = 1000

func useServer(ctx context.Context, c *client.Client, n int, add adder) error {
	name := fmt.Sprintf("%d sandboxes: ", n)
	before := held()
	boxes := make(chan *client.Sandbox, n)
	begin := time.Now()
	err := atOnceDo(n, 16, func() error {
		box, err := c.CreateSandbox(ctx, wire.BoxCreate{})
		if err == nil {
			boxes <- box
		}
		return err
	})
	if err != nil {
		return err
	}
	close(boxes)
	add(name+"creates", perSecond, float64(n)/time.Since(begin).Seconds())
	var all []*client.Sandbox
	for box := range boxes {
		all = append(all, box)
	}
	c.Close() // idle connections are not the sandboxes'
	add(name+"memory of one", kibibytes, (held()-before)/float64(n)/1024)

	next := make(chan int, 2*n)
	for i := range 2 * n {
		next <- i % n
	}
	begin = time.Now()
	err = atOnceDo(2*n, 16, func() error {
		_, err := all[<-next].Exec(ctx, client.RunOptions{Command: "true", Timeout: time.Minute, CloseStdin: true})
		return err
	})
	if err != nil {
		return err
	}
	add(name+"execs", perSecond, float64(2*n)/time.Since(begin).Seconds())

	before = held()
	most := min(n, mostStreams)
	streams := make([]*client.Command, 0, most)
	begin = time.Now()
	for _, box := range all[:most] {
		cmd, err := box.Start(ctx, client.RunOptions{Command: "cat"})
		if err != nil {
			return fmt.Errorf("stream %d: %w", len(streams), err)
		}
		streams = append(streams, cmd)
	}
	add(name+fmt.Sprintf("%d streams opened", most), perSecond, float64(most)/time.Since(begin).Seconds())
	add(name+"memory of a stream, with client and daemon", kibibytes, (held()-before)/float64(most)/1024)
	for _, cmd := range streams {
		cmd.Close()
	}
	begin = time.Now()
	next = make(chan int, n)
	for i := range n {
		next <- i
	}
	err = atOnceDo(n, 16, func() error { return all[<-next].Delete(ctx) })
	add(name+"deletes", perSecond, float64(n)/time.Since(begin).Seconds())
	return err
}

// held is how many bytes this process holds, stacks included.
func held() float64 {
	runtime.GC()
	runtime.GC() // what the first one finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc + m.StackInuse)
}

// textServer serves sandboxes of this machine to clients that are not offered
// exec.v1: they get output as JSON.
func textServer(dir string) (url string, release func(), err error) {
	rt, err := namespace.New(namespace.Options{Images: filepath.Join(dir, "images")})
	if err != nil {
		return "", nil, err
	}
	s, err := server.New(server.Options{Runtime: rt, StateDir: filepath.Join(dir, "text"), BestEffort: true})
	if err != nil {
		return "", nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.Close()
		return "", nil, err
	}
	front := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("Sec-Websocket-Protocol")
		s.ServeHTTP(w, r)
	})}
	var running sync.WaitGroup
	running.Go(func() { front.Serve(ln) })
	return "http://" + ln.Addr().String(), func() {
		front.Close()
		s.Close()
		running.Wait()
	}, nil
}
