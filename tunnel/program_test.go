package tunnel

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// These tests have real protocols go through a tunnel.

func TestHTTP(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Write(body)
	})
	mux.HandleFunc("GET /chunks", func(w http.ResponseWriter, r *http.Request) {
		for i := range 100 {
			fmt.Fprintf(w, "chunk %d\n", i)
			w.(http.Flusher).Flush()
		}
	})
	mux.HandleFunc("GET /upgrade", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Upgrade", "shout")
		w.Header().Set("Connection", "Upgrade")
		w.WriteHeader(http.StatusSwitchingProtocols)
		c, both, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		for {
			line, err := both.ReadString('\n')
			if err != nil {
				return
			}
			io.WriteString(c, strings.ToUpper(line))
		}
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	l := listenLocal(t, webSocketDial(t, nil, ServeOptions{}), server.Listener.Addr().(*net.TCPAddr).Port)
	base := "http://" + l.Addr().String()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for i := range 50 {
		want := strings.Repeat("x", i*1000)
		r, err := client.Post(base+"/echo", "text/plain", strings.NewReader(want))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r.Body)
		r.Body.Close()
		if string(got) != want || err != nil {
			t.Errorf("%d bytes came back of %d, then %v", len(got), len(want), err)
		}
	}
	r, err := client.Get(base + "/chunks")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r.Body)
	r.Body.Close()
	if lines := strings.Count(string(got), "\n"); lines != 100 || err != nil {
		t.Errorf("%d chunks came, then %v", lines, err)
	}
	if got := l.Stats().Connections; got != 1 {
		t.Errorf("%d connections were kept alive", got)
	}
	c := dialLocal(t, l)
	fmt.Fprintf(c, "GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\n")
	br := bufio.NewReader(c)
	if r, err := http.ReadResponse(br, nil); err != nil || r.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("the upgrade is %v, %v", r, err)
	}
	for i := range 10 {
		fmt.Fprintf(c, "line %d\n", i)
		if line, err := br.ReadString('\n'); line != fmt.Sprintf("LINE %d\n", i) || err != nil {
			t.Errorf("got %q, %v", line, err)
		}
	}
	c.Close()
}

// Requests and answers of a length and a body, as databases speak.
func TestChatter(t *testing.T) {
	port := listenTarget(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		for {
			var size uint32
			if err := binary.Read(r, binary.BigEndian, &size); err != nil {
				return
			}
			body := make([]byte, size)
			if _, err := io.ReadFull(r, body); err != nil {
				t.Error(err)
				return
			}
			answer := binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(body))
			if _, err := c.Write(answer); err != nil {
				t.Error(err)
			}
		}
	})
	c := dialLocal(t, listenLocal(t, webSocketDial(t, nil, ServeOptions{}), port))
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 10_000 {
		body := make([]byte, r.IntN(300))
		for j := range body {
			body[j] = byte(r.Uint32())
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)); err != nil {
			t.Fatal(err)
		}
		var sum uint32
		if err := binary.Read(c, binary.BigEndian, &sum); err != nil || sum != crc32.ChecksumIEEE(body) {
			t.Fatalf("answer %d is %x, %v", i, sum, err)
		}
	}
}

// A gigabyte in both directions at once.
func TestGigabyte(t *testing.T) {
	size := int64(1 << 30)
	if testing.Short() {
		size = 1 << 26
	}
	piece := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{}).Read(piece)
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	want := uint32(0)
	for range size / int64(len(piece)) {
		want = crc32.Update(want, castagnoli, piece)
	}
	exchange := func(c *net.TCPConn) {
		var writing sync.WaitGroup
		writing.Go(func() {
			for range size / int64(len(piece)) {
				if _, err := c.Write(piece); err != nil {
					t.Error(err)
					return
				}
			}
			c.CloseWrite()
		})
		sum := crc32.New(castagnoli)
		n, err := io.CopyBuffer(sum, struct{ io.Reader }{c}, make([]byte, 256<<10))
		if n != size || err != nil || sum.Sum32() != want {
			t.Errorf("%d bytes of %d with sum %x, not %x, then %v", n, size, sum.Sum32(), want, err)
		}
		writing.Wait()
	}
	done := make(chan struct{})
	l := listenLocal(t, webSocketDial(t, nil, ServeOptions{}), listenTarget(t, func(c *net.TCPConn) {
		defer close(done)
		exchange(c)
	}))
	exchange(dialLocal(t, l))
	<-done
}

// A thousand connections that say nothing cost little: no buffers, whether or not
// much has gone through them before.
func TestIdleMemory(t *testing.T) {
	port := listenTarget(t, echo)
	l := listenLocal(t, webSocketDial(t, nil, ServeOptions{}), port)
	dialLocal(t, l)
	heap := func() int64 {
		runtime.GC()
		runtime.GC() // empties the pools
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	const count = 1000
	var conns []*net.TCPConn
	for range count {
		c := dialLocal(t, l)
		conns = append(conns, c)
		go c.Write(make([]byte, 100_000))
		if _, err := io.CopyN(io.Discard, c, 100_000); err != nil {
			t.Fatal(err)
		}
	}
	each := (heap() - before) / count
	t.Logf("%d bytes each", each)
	if each > 20<<10 { // of all five sockets, and of the 32 KiB that echo's copy may hold
		t.Errorf("an idle connection holds %d bytes of the heap", each)
	}
	runtime.KeepAlive(conns)
}
