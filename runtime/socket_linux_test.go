package runtime

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A socket is reached however long the path of its folder is.
func TestSocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat(strings.Repeat("d", 100)+"/", 5))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ln, err := ListenUnix(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(filepath.Join(dir, "daemon.sock")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's file is %v, %v", info, err)
	}
	conn, err := DialUnix(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	other, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(other, "hello")
	other.Close()
	if got, err := io.ReadAll(conn); string(got) != "hello" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := ListenUnix(dir); err == nil || strings.Contains(err.Error(), "/proc/self") || !strings.Contains(err.Error(), dir+"/daemon.sock: address already in use") {
		t.Errorf("a second listener: %v", err)
	}
	ln.Close()
	if _, err := os.Lstat(filepath.Join(dir, "daemon.sock")); err != nil {
		t.Errorf("the socket's file went with the listener: %v", err)
	}
}

func TestSocketOfNobody(t *testing.T) {
	dir := t.TempDir()
	for _, place := range []string{filepath.Join(dir, "none"), dir} {
		if _, err := DialUnix(t.Context(), place); !errors.Is(err, ErrGone) {
			t.Errorf("no socket: %v", err)
		}
	}
	ln, err := ListenUnix(dir)
	if err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := DialUnix(cancelled, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	ln.Close()
	if _, err := DialUnix(t.Context(), dir); !errors.Is(err, ErrGone) || strings.Contains(err.Error(), "/proc/self") {
		t.Errorf("no listener: %v", err)
	}
	if _, err := ListenUnix(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}
