//go:build linux

package daemon

import (
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// What a command writes right before it ends must be read, also when its end is
// noticed between a read that found nothing and the look whether it has ended.
func TestTheLastOutputIsNotLost(t *testing.T) {
	for range 20_000 {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		unix.SetNonblock(p[0], true)
		f, w := os.NewFile(uintptr(p[0]), "pipe"), os.NewFile(uintptr(p[1]), "pipe")
		exited := make(chan struct{})
		go func() {
			io.WriteString(w, "x")
			close(exited)
			f.SetReadDeadline(past)
		}()
		got := ""
		for buf := make([]byte, 8); ; {
			n, err := read(f, buf, exited)
			got += string(buf[:n])
			if err != nil {
				break
			}
		}
		f.Close()
		w.Close()
		if got != "x" {
			t.Fatalf("read %q", got)
		}
	}
}
