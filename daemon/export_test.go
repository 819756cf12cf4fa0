//go:build linux

package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// UnderTest is the name of a process that is a daemon with other limits than
// the usual. Its first argument is a JSON object of Limits, its second one of
// Config, and its descriptor 3 the socket.
const UnderTest = "daemon-under-test"

// Limits replaces the limits that are not zero.
type Limits struct {
	Ring, KeptBytes, Body                                        int64
	HTTPOutput, Input, Running, Kept, Remembered, Matches, Batch int
	First, Ping, Pong, Stall, Linger, Idle, Hangup, Search       time.Duration
}

// Child runs the daemon if this process is one.
func Child() {
	if os.Args[0] != UnderTest {
		return
	}
	var l Limits
	var cfg Config
	err := json.Unmarshal([]byte(os.Args[1]), &l)
	if err == nil {
		err = json.Unmarshal([]byte(os.Args[2]), &cfg)
	}
	var ln net.Listener
	if err == nil {
		syscall.CloseOnExec(3)
		ln, err = net.FileListener(os.NewFile(3, "socket"))
	}
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		err = serve(ctx, ln, cfg, l.apply(defaultLimits()))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (l Limits) apply(lim limits) limits {
	override(&lim.ring, l.Ring)
	override(&lim.keptBytes, l.KeptBytes)
	override(&lim.body, l.Body)
	override(&lim.httpOutput, l.HTTPOutput)
	override(&lim.input, l.Input)
	override(&lim.running, l.Running)
	override(&lim.kept, l.Kept)
	override(&lim.remembered, l.Remembered)
	override(&lim.first, l.First)
	override(&lim.ping, l.Ping)
	override(&lim.pong, l.Pong)
	override(&lim.stall, l.Stall)
	override(&lim.linger, l.Linger)
	override(&lim.matches, l.Matches)
	override(&lim.batch, l.Batch)
	override(&lim.search, l.Search)
	override(&lim.idle, l.Idle)
	override(&lim.hangup, l.Hangup)
	return lim
}

func override[T comparable](field *T, value T) {
	var zero T
	if value != zero {
		*field = value
	}
}
