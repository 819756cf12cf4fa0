package tunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// These tests run over a bad wire. Its time is synctest's, so that how fast a
// tunnel is depends on nothing but the tunnel.

// wire is a connection whose bytes take time, as over TCP: a loss holds up what
// comes after it for a round trip.
type wire struct {
	rtt    time.Duration
	rate   float64 // bytes per second
	loss   float64 // of packets
	cut    int64   // bytes in either direction after which it breaks; 0 for never
	random *rand.Rand
}

type packet struct {
	data []byte
	at   time.Time
}

const (
	packetSize = 1 << 14
	wireBuffer = 4 << 20 // what a sender may have under way unsent
)

// connect returns the two ends of a wire, and how to wait for its end, which
// closing them brings about.
func (w wire) connect() (a, b net.Conn, wait func()) {
	near, nearInner := net.Pipe()
	far, farInner := net.Pipe()
	end := sync.OnceFunc(func() { nearInner.Close(); farInner.Close() })
	seed := w.random.Uint64()
	var running sync.WaitGroup
	running.Go(func() { w.carry(nearInner, farInner, rand.New(rand.NewPCG(seed, 1)), end) })
	running.Go(func() { w.carry(farInner, nearInner, rand.New(rand.NewPCG(seed, 2)), end) })
	return near, far, running.Wait
}

func (w wire) carry(from, to net.Conn, random *rand.Rand, end func()) {
	packets := make(chan packet, 1<<14)
	go func() {
		defer close(packets)
		free := time.Now() // when the wire has room for the next packet
		for left := w.cut; ; {
			buf := make([]byte, packetSize)
			n, err := from.Read(buf)
			if w.cut > 0 {
				if left -= int64(n); left <= 0 {
					n, err = n+int(left), io.ErrUnexpectedEOF
				}
			}
			if now := time.Now(); free.Before(now) {
				free = now
			}
			free = free.Add(time.Duration(float64(n) / w.rate * float64(time.Second)))
			if random.Float64() < w.loss {
				free = free.Add(w.rtt)
			}
			if n > 0 {
				packets <- packet{buf[:n], free.Add(w.rtt / 2)}
			}
			if err != nil {
				return
			}
			if ahead := time.Until(free) - time.Duration(float64(wireBuffer)/w.rate*float64(time.Second)); ahead > 0 {
				time.Sleep(ahead)
			}
		}
	}()
	for p := range packets {
		time.Sleep(time.Until(p.at))
		if _, err := to.Write(p.data); err != nil {
			break
		}
	}
	end()
	for range packets {
	}
}

const gigabit = 1e9 / 8

// One stream fills a link of 1 Gbit/s at 100 ms in each direction, and with the
// base window of other peers it moves that window in each round trip.
func TestThroughput(t *testing.T) {
	for _, test := range []struct {
		name   string
		link   wire
		window uint32 // of the end that receives
		bytes  int
		least  float64 // bytes per second
	}{
		{"1 Gbit/s, 100 ms", wire{rtt: 100 * time.Millisecond, rate: gigabit}, 0, 256 << 20, 0.8 * gigabit},
		{"100 Mbit/s, 100 ms, 1 % loss", wire{rtt: 100 * time.Millisecond, rate: gigabit / 10, loss: 0.01}, 0, 32 << 20, 0.4 * gigabit / 10},
		{"base window", wire{rtt: 100 * time.Millisecond, rate: gigabit}, baseWindow, 16 << 20, 0.9 * baseWindow / 0.1},
	} {
		for _, up := range []bool{true, false} {
			name := test.name + ", down"
			if up {
				name = test.name + ", up"
			}
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					link := test.link
					link.random = rand.New(rand.NewPCG(1, 2))
					a, b, wait := link.connect()
					target, far := net.Pipe()
					served := make(chan struct{})
					go func() {
						defer close(served)
						Serve(context.Background(), b, func(context.Context, int) (net.Conn, error) { return target, nil }, ServeOptions{Window: test.window})
					}()
					s := New(func(context.Context) (net.Conn, error) { return a, nil }, Options{Window: test.window})
					near, err := s.Dial(t.Context(), 1)
					if err != nil {
						t.Fatal(err)
					}
					from, to := net.Conn(near), far
					if !up {
						from, to = far, near
					}
					start := time.Now()
					go func() {
						piece := make([]byte, 256<<10)
						for sent := 0; sent < test.bytes; sent += len(piece) {
							from.Write(piece)
						}
					}()
					if _, err := io.CopyN(io.Discard, to, int64(test.bytes)); err != nil {
						t.Error(err)
					}
					speed := float64(test.bytes) / time.Since(start).Seconds()
					t.Logf("%.1f MB/s", speed/1e6)
					if speed < test.least {
						t.Errorf("%.1f MB/s, want %.1f", speed/1e6, test.least/1e6)
					}
					s.Close()
					far.Close()
					<-served
					wait()
				})
			})
		}
	}
}

// Wherever a wire breaks, what was read is a beginning of what was sent, and the
// end of it is an error; only what arrived whole ends as the end of file.
func TestCuts(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	data := make([]byte, 300_000)
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	whole := 0
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			link := wire{rtt: 100 * time.Millisecond, rate: gigabit, loss: 0.01, cut: 1 + random.Int64N(400_000), random: random}
			a, b, wait := link.connect()
			served := make(chan struct{})
			go func() {
				defer close(served)
				Serve(context.Background(), b, func(context.Context, int) (net.Conn, error) {
					near, far := net.Pipe()
					go func() {
						far.Write(data)
						far.Close()
					}()
					return near, nil
				}, ServeOptions{})
			}()
			s := New(func(context.Context) (net.Conn, error) { return a, nil }, Options{})
			defer func() { s.Close(); <-served; wait() }()
			c, err := s.Dial(t.Context(), 1)
			if err != nil {
				return
			}
			got, err := io.ReadAll(c)
			switch {
			case !bytes.HasPrefix(data, got):
				t.Errorf("the wire broke at %d: %d bytes came that were not sent so", link.cut, len(got))
			case err == nil && len(got) < len(data):
				t.Errorf("the wire broke at %d: an end of file after %d bytes", link.cut, len(got))
			case err == nil:
				whole++
			case !is[*SessionError](err):
				t.Errorf("the wire broke at %d: %v", link.cut, err)
			}
			c.Close()
		})
	}
	if whole == 0 || whole == 200 {
		t.Errorf("%d of 200 arrived whole", whole)
	}
}

// A reader that takes nothing makes the sender wait, at a full window; one that
// then takes all gets all.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _, accepted, closed := muxPair(1 << 20)
		near, err := a.open(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		far := <-accepted
		data := make([]byte, 8<<20)
		rand.NewChaCha8([32]byte{}).Read(data)
		sent := make(chan error, 1)
		go func() {
			_, err := far.Write(data)
			far.CloseWrite()
			sent <- err
		}()
		time.Sleep(time.Hour)
		near.mu.Lock()
		if near.in.size != 1<<20 {
			t.Errorf("%d bytes wait", near.in.size)
		}
		near.mu.Unlock()
		sum := sha256.New()
		io.Copy(sum, near)
		if want := sha256.Sum256(data); !bytes.Equal(sum.Sum(nil), want[:]) {
			t.Error("something else came than was sent")
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
		closed()
	})
}

// However small the frames, what waits takes little more memory than it is, and
// what was taken takes none.
func TestQueueMemory(t *testing.T) {
	for _, size := range []int{1, 100, 5000, maxPayload} {
		var q queue
		b := new(buffers)
		memory := func() (n int) {
			for c := q.head; c != nil; c = c.next {
				n += len(c.data)
			}
			return n
		}
		for q.size < 1<<20 {
			for left := size; left > 0; {
				c := q.reserve(b, left)
				n := min(left, len(c.data)-c.w)
				q.commit(c, n)
				left -= n
			}
			if got := memory(); got > 2*q.size+max(512, 8*size) {
				t.Fatalf("%d bytes in frames of %d take %d", q.size, size, got)
			}
		}
		for q.size > 0 {
			q.advance(b, min(1000, q.size))
			if got := memory(); got > 2*q.size+2*maxPayload {
				t.Fatalf("%d bytes take %d", q.size, got)
			}
		}
		if q.head != nil || q.tail != nil {
			t.Error("an empty queue holds memory")
		}
	}
}

// A thousand streams are offered no more than the memory for all, the later ones
// still more than the base, and what they give back is offered again.
func TestWindowsOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, accepted, closed := muxPair(defaultWindow)
		var streams []*stream
		for i := range 1000 {
			s, err := a.open(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			far := <-accepted
			streams = append(streams, s, far)
			synctest.Wait()
			if s.extra < 0 || i < 8 && s.recvWindow != defaultWindow {
				t.Errorf("stream %d has a window of %d", i, s.recvWindow)
			}
			if far.window != s.recvWindow || s.window != far.recvWindow {
				t.Errorf("stream %d: %d are offered and %d known", i, s.recvWindow, far.window)
			}
		}
		for _, m := range []*mux{a, b} {
			if m.offered > memoryWindows*defaultWindow {
				t.Errorf("windows of %d are offered", m.offered)
			}
		}
		for _, s := range streams {
			s.Reset()
		}
		synctest.Wait()
		for _, m := range []*mux{a, b} {
			if m.offered != 0 {
				t.Errorf("windows of %d stay offered", m.offered)
			}
		}
		closed()
	})
}

// A window that was small when the stream began grows when there is room.
func TestWindowGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _, accepted, closed := muxPair(defaultWindow)
		var idle []*stream
		for range 200 {
			s, err := a.open(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			<-accepted
			idle = append(idle, s)
		}
		near, err := a.open(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		far := <-accepted
		if near.recvWindow >= baseWindow+1<<20 {
			t.Fatalf("the last stream begins with %d", near.recvWindow)
		}
		for _, s := range idle {
			s.Reset()
		}
		go far.Write(make([]byte, 4<<20))
		io.CopyN(io.Discard, near, 4<<20)
		synctest.Wait()
		if got := near.recvWindow + near.credit; got != defaultWindow {
			t.Errorf("the window is %d", got)
		}
		closed()
	})
}

// The daemon's end resets what goes beyond its streams and its backlog.
func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var counts []int
		hold := make(chan struct{})
		dial := pipeDial(t, func(ctx context.Context, port int) (net.Conn, error) {
			if port == 2 {
				<-hold
			}
			return echoTarget(ctx, port)
		}, ServeOptions{Streams: 3, Backlog: 2, Active: func(n int) { counts = append(counts, n) }})
		s := New(dial, Options{})
		for range 2 {
			go s.Dial(t.Context(), 2)
		}
		synctest.Wait()
		if _, err := s.Dial(t.Context(), 1); !errors.Is(err, ErrReset) {
			t.Errorf("beyond the backlog: %v", err)
		}
		close(hold)
		synctest.Wait()
		c, err := s.Dial(t.Context(), 1)
		if err != nil {
			t.Error(err)
		}
		if _, err := s.Dial(t.Context(), 1); !errors.Is(err, ErrReset) {
			t.Errorf("beyond the streams: %v", err)
		}
		c.Reset()
		synctest.Wait()
		if got := counts[len(counts)-1]; got != 2 {
			t.Errorf("%d streams are active: %v", got, counts)
		}
		s.Close()
		synctest.Wait()
		if got := counts[len(counts)-1]; got != 0 {
			t.Errorf("%d streams stay active", got)
		}
	})
}
