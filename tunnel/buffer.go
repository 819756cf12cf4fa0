package tunnel

import "sync"

// This file defines where bytes wait: pools of buffers, and the queue of what a
// stream has received.

// buffers are the pools of one session. What is taken need not be given back.
type buffers struct {
	frames sync.Pool    // of *frame
	chunks [4]sync.Pool // of *chunk, by chunkSizes
}

// frame is a DATA frame with room for the longest payload behind its header.
type frame [headerSize + maxPayload]byte

func (b *buffers) frame() *frame {
	if f, ok := b.frames.Get().(*frame); ok {
		return f
	}
	return new(frame)
}

// chunkSizes let a few bytes wait in little memory and many in few pieces.
var chunkSizes = [...]int{512, 4 << 10, 16 << 10, maxPayload}

// chunk holds data[r:w]. The session's reader writes behind w, the reader of the
// stream moves r.
type chunk struct {
	data    []byte
	r, w    int
	filling bool // the session's reader is writing behind w
	next    *chunk
	class   int
}

func (b *buffers) chunk(size int) *chunk {
	class := 0
	for class < len(chunkSizes)-1 && chunkSizes[class] < size {
		class++
	}
	if c, ok := b.chunks[class].Get().(*chunk); ok {
		return c
	}
	return &chunk{data: make([]byte, chunkSizes[class]), class: class}
}

func (b *buffers) release(c *chunk) {
	c.r, c.w, c.next = 0, 0, nil
	b.chunks[c.class].Put(c)
}

// queue is what was received and not yet taken. Its memory is less than four
// times its size plus a chunk. The stream's mutex guards it.
type queue struct {
	head, tail *chunk
	size       int
}

// reserve returns a chunk with room behind w for some of n bytes, which one
// goroutine fills without the mutex and commits.
func (q *queue) reserve(b *buffers, n int) *chunk {
	if q.tail == nil || q.tail.w == len(q.tail.data) {
		c := b.chunk(max(n, q.size))
		if q.tail == nil {
			q.head = c
		} else {
			q.tail.next = c
		}
		q.tail = c
	}
	q.tail.filling = true
	return q.tail
}

// commit adds the n bytes that were written to a reserved chunk.
func (q *queue) commit(c *chunk, n int) {
	c.filling = false
	if q.tail == c { // and not dropped in between
		c.w += n
		q.size += n
	}
}

// front is the oldest data, which stays valid until advance.
func (q *queue) front() []byte {
	return q.head.data[q.head.r:q.head.w]
}

// advance takes n bytes of the front.
func (q *queue) advance(b *buffers, n int) {
	c := q.head
	if c == nil { // dropped in between
		return
	}
	c.r += n
	q.size -= n
	if c.r < c.w || c.filling {
		return
	}
	if q.head = c.next; q.head == nil {
		q.tail = nil
	}
	b.release(c)
}

// drop forgets everything. The chunks may be in use and are left to the collector.
func (q *queue) drop() { *q = queue{} }
