//go:build linux

package namespace

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	goruntime "runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/daemon"
)

// This file defines the life of a sandbox's first process. It is executed twice:
// once to set the sandbox up with every right that the new namespaces give, and
// again, from inside, to be the daemon with what is left of them. The second
// start is what takes the rights from all of the process: they belong to single
// threads, and the Go runtime has several by the time that this code runs.

// Values of argv[1], which tells them apart.
const (
	setUpStage  = "set-up"
	daemonStage = "daemon"
	copyStage   = "copy"   // of no sandbox: snapshot.go
	unpackStage = "unpack" // likewise: image.go
	sumStage    = "sum"
)

// Child becomes a sandbox's first process if that is what this process was
// started as, and never returns then; otherwise it returns at once. main, and
// TestMain of tests that make sandboxes, call it before anything else.
func Child() {
	if len(os.Args) < 2 || os.Args[0] != childName {
		return
	}
	switch os.Args[1] {
	case copyStage:
		copyAndExit()
	case unpackStage, sumStage:
		workAndExit(os.Args[1:])
	}
	o, err := readOrder()
	if err == nil && os.Args[1] == setUpStage {
		err = becomeDaemon(o)
	} else if err == nil {
		err = serve(o)
	}
	fmt.Fprintln(os.Stderr, childName+":", err)
	os.Exit(1)
}

func readOrder() (o order, err error) {
	fd, err := unix.FcntlInt(orderFD, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return o, os.NewSyscallError("order", err)
	}
	f := os.NewFile(uintptr(fd), "order")
	defer f.Close()
	if err := json.NewDecoder(io.NewSectionReader(f, 0, math.MaxInt64)).Decode(&o); err != nil {
		return o, fmt.Errorf("read the order: %w", err)
	}
	return o, nil
}

// becomeDaemon is the first stage. It returns only if something fails, which it
// has reported then.
func becomeDaemon(o order) error {
	goruntime.LockOSThread() // what mounts, and what gives up its rights, is a thread
	err := setUp(o)
	if err == nil {
		err = &stepError{stepExec, syscall.Exec("/proc/self/exe", []string{childName, daemonStage}, nil)}
	}
	return errors.Join(err, report(outcomeOf(err)))
}

// serve is the second stage.
func serve(o order) error {
	// Commands are not to see this process's descriptors, memory and program
	// through /proc, some of which are the host's.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	// Listings of processes show argv, but some show this.
	if err := os.WriteFile("/proc/self/comm", []byte(childName), 0); err != nil {
		return err
	}
	if err := unix.CloseRange(listenerFD, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return os.NewSyscallError("close_range", err)
	}
	unix.Close(orderFD)
	if !o.Disk && o.Memory == 0 {
		unix.Close(boxFD)
	}
	socket := os.NewFile(listenerFD, "socket")
	ln, err := net.FileListener(socket)
	if err != nil {
		return err
	}
	socket.Close()
	if err := report(outcome{}); err != nil {
		return err
	}
	unix.Close(controlFD)
	o.Daemon.Bounds = o.bounds()
	return daemon.Serve(context.Background(), ln, o.Daemon)
}

// report sends an outcome to the maker.
func report(out outcome) error {
	data, err := json.Marshal(out)
	if err != nil {
		return err
	}
	if _, err := unix.Write(controlFD, data); err != nil {
		return fmt.Errorf("report to the maker: %w", err)
	}
	return nil
}

// receive waits for one byte of the maker and returns the descriptor that came
// with it, or -1.
func receive() (int, error) {
	data, rights := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	n, size, _, _, err := unix.Recvmsg(controlFD, data, rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("recvmsg", err)
	}
	if n == 0 {
		return -1, errors.New("the maker is gone")
	}
	messages, err := unix.ParseSocketControlMessage(rights[:size])
	if err != nil || len(messages) == 0 {
		return -1, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return -1, err
	}
	return fds[0], nil
}
