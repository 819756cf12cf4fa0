//go:build linux

package daemon

import (
	"context"
	"os"
	"sync"
)

// This file defines the way of input to a command.

// input is the stdin of a command and what waits to be written to it. It
// belongs to the session: sockets come and go.
type input struct {
	file     *os.File
	limit    int
	terminal bool

	mu      sync.Mutex
	queue   []byte
	closing bool          // nothing more is taken; the file is closed behind the queue
	gone    bool          // the command is over
	changed chan struct{} // closed and replaced at every change
}

func newInput(file *os.File, limit int, terminal bool) *input {
	return &input{file: file, limit: limit, terminal: terminal, changed: make(chan struct{})}
}

// write puts data behind what waits already. While the queue is full it blocks,
// and so holds up the client, until there is room, the command is over, or ctx
// ends; a kill that comes after more than a full queue has to come by another
// socket. Input after the end of file is ignored (§16.2).
func (in *input) write(ctx context.Context, data []byte) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.queue) >= in.limit && !in.closing && !in.gone {
		if !in.wait(ctx) {
			return
		}
	}
	if !in.closing && !in.gone {
		in.queue = append(in.queue, data...)
		in.change()
	}
}

// close marks the end of file behind what was written; a terminal has none.
func (in *input) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.terminal {
		in.closing = true
		in.change()
	}
}

// end is called when the command is over.
func (in *input) end() {
	in.mu.Lock()
	in.gone, in.queue = true, nil
	in.change()
	in.mu.Unlock()
	in.file.Close()
}

// run writes the queue to the file, until end is called or nobody reads it.
func (in *input) run() {
	defer in.file.Close()
	in.mu.Lock()
	defer in.mu.Unlock()
	for !in.gone {
		if len(in.queue) == 0 {
			if in.closing {
				return
			}
			in.wait(context.Background())
			continue
		}
		data := in.queue
		in.queue = nil
		in.change()
		in.mu.Unlock()
		_, err := in.file.Write(data)
		in.mu.Lock()
		if err != nil { // every process has closed it
			in.gone, in.queue = true, nil
			in.change()
		}
	}
}

// wait gives the lock away until something changes, or returns false when ctx ends.
func (in *input) wait(ctx context.Context) bool {
	changed := in.changed
	in.mu.Unlock()
	defer in.mu.Lock()
	select {
	case <-changed:
		return true
	case <-ctx.Done():
		return false
	}
}

func (in *input) change() {
	close(in.changed)
	in.changed = make(chan struct{})
}
