package daemon

// This file defines the buffer of one output stream.

// ring keeps the last bytes of a stream under their absolute offsets. It grows
// with what is written, up to its limit, and then overwrites the oldest.
type ring struct {
	limit int64
	buf   []byte // byte o of the stream stands at o modulo its length
	start int64  // offset of the oldest byte kept
	end   int64  // offset behind the newest
}

const ringStart = 4 << 10

// write appends p.
func (r *ring) write(p []byte) {
	if over := int64(len(p)) - r.limit; over > 0 {
		p = p[over:]
		r.end += over
		r.start = r.end
	}
	r.grow(r.end - r.start + int64(len(p)))
	for len(p) > 0 {
		n := copy(r.buf[r.end%int64(len(r.buf)):], p)
		p = p[n:]
		r.end += int64(n)
	}
	r.start = max(r.start, r.end-int64(len(r.buf)))
}

// grow makes room for n bytes, as far as the limit allows.
func (r *ring) grow(n int64) {
	n = min(n, r.limit)
	if n <= int64(len(r.buf)) {
		return
	}
	size := max(int64(len(r.buf)), min(ringStart, r.limit))
	for size < n {
		size = min(2*size, r.limit)
	}
	old := *r
	r.buf = make([]byte, size)
	for o := old.start; o < old.end; {
		from := old.buf[o%int64(len(old.buf)):]
		from = from[:min(int64(len(from)), old.end-o)]
		for len(from) > 0 {
			n := copy(r.buf[o%size:], from)
			from = from[n:]
			o += int64(n)
		}
	}
}

// appendFrom appends to p at most n bytes from offset o, which must be kept.
func (r *ring) appendFrom(p []byte, o int64, n int) []byte {
	for end := min(o+int64(n), r.end); o < end; {
		piece := r.buf[o%int64(len(r.buf)):]
		piece = piece[:min(int64(len(piece)), end-o)]
		p = append(p, piece...)
		o += int64(len(piece))
	}
	return p
}
