package process

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/daemon"
)

// This file defines the daemon's side: the same binary, executed again.

const daemonName = "sbx-star-daemon"

// What the daemon is started with.
const (
	listenerFD = 3 // the socket
	configFD   = 4 // a daemon.Config as JSON, up to the end of the file
	readyFD    = 5 // gets one byte when the daemon is up
)

// Child runs the daemon and exits if this process was started as one, and
// returns at once otherwise. main and TestMain call it before anything else.
func Child() {
	if len(os.Args) == 0 || os.Args[0] != daemonName {
		return
	}
	if err := runDaemon(); err != nil {
		fmt.Fprintln(os.Stderr, "sbx-star-daemon:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func runDaemon() error {
	closeInherited()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer stop()

	var cfg daemon.Config
	config := os.NewFile(configFD, "config")
	if err := json.NewDecoder(config).Decode(&cfg); err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	config.Close()
	socket := os.NewFile(listenerFD, "socket")
	ln, err := net.FileListener(socket)
	if err != nil {
		return err
	}
	socket.Close()
	ready := os.NewFile(readyFD, "ready")
	if _, err := ready.Write([]byte{1}); err != nil {
		return fmt.Errorf("say that the daemon is up: %w", err)
	}
	ready.Close()
	return daemon.Serve(ctx, ln, cfg)
}

// closeInherited keeps what this process was started with from its commands,
// and closes what it was not meant to get: descriptors that the user's shell or
// a build tool passed to the process that made the sandbox, whose other ends
// would wait for as long as the sandbox lives. The Go runtime's own are all
// close-on-exec and stay.
func closeInherited() {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil || fd <= 2 {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		switch {
		case err != nil || flags&unix.FD_CLOEXEC != 0:
		case fd <= readyFD:
			unix.CloseOnExec(fd)
		default:
			unix.Close(fd)
		}
	}
}
