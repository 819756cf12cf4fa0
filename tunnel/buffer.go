package tunnel

import "sync"

// This file defines where bytes wait: pools of buffers, and the queue of what a
// stream has received.

// buffers are the pools of one session. What is taken need not be given back.
type buffers struct {
	bursts sync.Pool    // of *burst
	chunks [4]sync.Pool // of *chunk, by chunkSizes
}

// burstFrames is how many of the longest frames are sent in one message: moving
// 256 KiB at a time takes half the work of moving 64.
const burstFrames = 4

const frameSize = headerSize + maxPayload

// burst is the room for some DATA frames in a row. All but the last are full.
type burst [burstFrames * frameSize]byte

func (b *buffers) burst() *burst {
	if f, ok := b.bursts.Get().(*burst); ok {
		return f
	}
	return new(burst)
}

// payload is the room for the payload of frame i.
func (b *burst) payload(i int) []byte {
	return b[i*frameSize+headerSize : (i+1)*frameSize]
}

// fill reads payload until read is short of it or fails.
func (b *burst) fill(read func([]byte) (int, error)) (n int, err error) {
	for i := range burstFrames {
		var m int
		m, err = read(b.payload(i))
		n += max(m, 0)
		if m < maxPayload || err != nil {
			break
		}
	}
	return n, err
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

// chunk returns one that has room for n bytes, or is as long as what waits before
// it.
func (b *buffers) chunk(n, waiting int) *chunk {
	class := 0
	for class < len(chunkSizes)-1 && (chunkSizes[class] < n || chunkSizes[class+1] <= waiting) {
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

// queue is what was received and not yet taken. Its memory is at most twice its
// size and two chunks. The stream's mutex guards it.
type queue struct {
	head, tail *chunk
	size       int
}

// reserve returns a chunk with room behind w for some of n bytes, which one
// goroutine fills without the mutex and commits.
func (q *queue) reserve(b *buffers, n int) *chunk {
	if q.tail == nil || q.tail.w == len(q.tail.data) {
		c := b.chunk(n, q.size)
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

// front appends the oldest data to pieces, as far as they have room. It stays
// valid until advance.
func (q *queue) front(pieces [][]byte) [][]byte {
	for c := q.head; c != nil && c.r < c.w && len(pieces) < cap(pieces); c = c.next {
		pieces = append(pieces, c.data[c.r:c.w])
	}
	return pieces
}

// advance takes n bytes from the front.
func (q *queue) advance(b *buffers, n int) {
	for n > 0 && q.head != nil { // it may have been dropped in between
		c := q.head
		step := min(n, c.w-c.r)
		c.r += step
		n -= step
		q.size -= step
		if c.r < c.w || c.filling {
			return
		}
		if q.head = c.next; q.head == nil {
			q.tail = nil
		}
		b.release(c)
	}
}

// drop forgets everything. The chunks may be in use and are left to the collector.
func (q *queue) drop() { *q = queue{} }
