package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/sbx-star/sbx-star/builtins"
	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/event"
	"github.com/sbx-star/sbx-star/ledger"
	"github.com/sbx-star/sbx-star/workflow"
)

// This file defines sbx-star gc, which deletes what killed runs have left
// behind, and how every run does the same for its own server.

const gcUsage = `Usage:
  sbx-star gc [flags]

Deletes what runs that were killed left behind: on the servers that they used,
or on the one that is named. What was kept, or made with .create, stays.

Flags:
`

func gc(args []string, stdout, stderr io.Writer) error {
	flags := pflag.NewFlagSet("sbx-star gc", pflag.ContinueOnError)
	var where connectFlags
	where.register(flags)
	if err := parse(flags, args, gcUsage, stdout); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return nil
		}
		return err
	}
	if flags.NArg() > 0 {
		return &workflow.UsageError{Message: "gc takes no arguments", Hint: "sbx-star gc --help lists its flags"}
	}
	only := "" // the one server that is named
	if where.endpoint != "" || where.remote || where.local {
		target, err := where.target()
		if err != nil {
			return err
		}
		only = target
	}
	dir, err := ledgerDir()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	found, err := ledger.Find(dir)
	if err != nil {
		fmt.Fprintf(stderr, "sbx-star: warning: %v\n", err)
	}
	c := &collection{flags: where, named: only, servers: map[string]*target{}}
	defer c.close()
	seen, left := 0, 0
	for _, dead := range found {
		for _, n := range dead.Numbers() {
			e := dead.Entries[n]
			endpoint, own := e.Endpoint, e.Endpoint == ""
			if own {
				endpoint = dead.Endpoint
			}
			if only != "" && endpoint != only {
				continue
			}
			seen++
			fate, err := c.delete(ctx, endpoint, own, e)
			switch fate {
			case builtins.Remains:
				left++
				fmt.Fprintf(stderr, "sbx-star: %s %q on %s is still there: %v\n", e.Kind, e.Name, place(endpoint), err)
				continue
			case builtins.Deleted:
				fmt.Fprintf(stdout, "deleted %s %q on %s, which a run of %s left behind\n", e.Kind, e.Name, place(endpoint), dead.Began.Local().Format(time.DateTime))
			case builtins.Missing:
				fmt.Fprintf(stdout, "%s %q on %s was gone already\n", e.Kind, e.Name, place(endpoint))
			case builtins.Foreign:
				fmt.Fprintf(stdout, "%s %q on %s is not the one that a run of %s made, and stays\n", e.Kind, e.Name, place(endpoint), dead.Began.Local().Format(time.DateTime))
			}
			err = dead.Gone(n)
			if err != nil {
				fmt.Fprintf(stderr, "sbx-star: warning: %v\n", err)
			}
		}
		if err := dead.Close(); err != nil {
			fmt.Fprintf(stderr, "sbx-star: warning: %v\n", err)
		}
	}
	switch {
	case left > 0:
		return &stillThere{left}
	case err != nil:
		return &stillThere{}
	case seen == 0:
		fmt.Fprintln(stdout, "killed runs have left nothing behind")
	}
	return nil
}

// place is how a server is called in messages.
func place(endpoint string) string {
	if _, ok := strings.CutPrefix(endpoint, embeddedPrefix); ok {
		return "this machine"
	}
	return endpoint
}

// stillThere is what gc could not delete.
type stillThere struct{ count int }

func (e *stillThere) Error() string {
	if e.count == 0 {
		return "not every list of what runs created can be read"
	}
	return fmt.Sprintf("not deleted, of what killed runs left behind: %d", e.count)
}
func (e *stillThere) ExitCode() int { return workflow.ExitLeft }
func (e *stillThere) Hint() string {
	return "run sbx-star gc again when that is mended; --endpoint URL and --api-key KEY name one server and its key"
}

// collection is one run of gc.
type collection struct {
	flags   connectFlags
	named   string // the server that the command line names, or ""
	servers map[string]*target
}

// target is a server on which something may be left.
type target struct {
	client *client.Client
	close  func()
	err    error // why it cannot be reached, or does not let us in
}

// delete is builtins.DeleteLeftover on the server that has e. A server that was not reached is not tried
// again.
func (c *collection) delete(ctx context.Context, endpoint string, own bool, e ledger.Entry) (builtins.Fate, error) {
	key := fmt.Sprint(own, endpoint)
	t := c.servers[key]
	if t == nil {
		t = c.connect(ctx, endpoint, own)
		c.servers[key] = t
	}
	if t.err != nil {
		return builtins.Remains, t.err
	}
	fate, err := builtins.DeleteLeftover(ctx, t.client, e)
	if errors.Is(err, client.ErrConnection) || errors.Is(err, client.ErrAuthentication) || ctx.Err() != nil {
		t.err = err
	}
	return fate, err
}

// connect reaches a server. The key in the environment is for the servers that
// the command line of a run named; one that a workflow named gets it only if
// the command line names it now.
func (c *collection) connect(ctx context.Context, endpoint string, own bool) *target {
	if runtime, ok := strings.CutPrefix(endpoint, embeddedPrefix); ok {
		connect, disconnect, err := embedded(runtime, rootDisk, client.WebSocketTimeouts{})
		if err != nil {
			return &target{close: func() {}, err: err}
		}
		cl, err := connect(ctx)
		return &target{cl, disconnect, err}
	}
	options := client.Options{Endpoint: endpoint}
	if own || endpoint == c.named {
		flags := c.flags
		flags.endpoint, flags.remote, flags.local = endpoint, false, false
		if resolved, err := flags.options(os.Getenv); err == nil {
			options = *resolved
		}
	}
	cl, err := client.New(options)
	if err != nil {
		return &target{close: func() {}, err: err}
	}
	return &target{cl, cl.Close, nil}
}

func (c *collection) close() {
	for _, t := range c.servers {
		t.close()
	}
}

// collector deletes, in the background of a run, what earlier runs have left on
// the server that the run connects to.
type collector struct {
	dir, target string
	events      event.Sink

	once   sync.Once
	cancel context.CancelFunc
	done   chan struct{} // nil until it has begun
}

// wrap returns connect, with the collector beginning once it has succeeded.
func (c *collector) wrap(connect func(context.Context) (*client.Client, error)) func(context.Context) (*client.Client, error) {
	return func(ctx context.Context) (*client.Client, error) {
		cl, err := connect(ctx)
		if err == nil {
			c.once.Do(func() { c.start(cl) })
		}
		return cl, err
	}
}

func (c *collector) start(cl *client.Client) {
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel, c.done = cancel, make(chan struct{})
	go func() {
		defer close(c.done)
		c.collect(ctx, cl)
	}()
}

// stop ends it, however far it is, and waits for it: the next run, or gc, goes
// on. It is called when nobody connects any more.
func (c *collector) stop() {
	if c.done != nil {
		c.cancel()
		<-c.done
	}
}

// collect leaves alone what a run has listed before it ended, with how to delete
// it, and is silent about what goes wrong: that is for gc, which is asked to.
func (c *collector) collect(ctx context.Context, cl *client.Client) {
	found, _ := ledger.Find(c.dir)
	told := false
	for _, dead := range found {
		for _, n := range dead.Numbers() {
			e := dead.Entries[n]
			if dead.Ended || e.Endpoint != "" || dead.Endpoint != c.target || ctx.Err() != nil {
				continue
			}
			if !told {
				told = true
				c.events.Emit(event.Warning{Text: fmt.Sprintf("an earlier run was killed and left %s %q behind: deleting what such runs left on %s, as sbx-star gc does",
					e.Kind, e.Name, place(c.target))})
			}
			if _, err := builtins.DeleteLeftover(ctx, cl, e); err == nil {
				dead.Gone(n)
			}
		}
		dead.Close()
	}
}

// keepBooks gives a run, or several, what they write down that is to be released,
// and has them delete what earlier ones left. The caller calls what it returns
// when they have ended, before it disconnects.
func (f *connectFlags) keepBooks(o *workflow.Options, connect func(context.Context) (*client.Client, error), events event.Sink) (closeBooks func(), err error) {
	target, err := f.target()
	if err != nil {
		return nil, err
	}
	o.Connect = connect
	o.Leases = !strings.HasPrefix(target, embeddedPrefix) // which dies with the run
	dir, err := ledgerDir()
	if err != nil {
		events.Emit(event.Warning{Text: "what is created is not written down, so that sbx-star gc does not find it if this process is killed: " + err.Error()})
		return func() {}, nil
	}
	o.Ledger = ledger.New(dir, target)
	earlier := &collector{dir: dir, target: target, events: events}
	o.Connect = earlier.wrap(connect)
	return func() {
		earlier.stop()
		if err := o.Ledger.Close(); err != nil {
			events.Emit(event.Warning{Text: err.Error()})
		}
	}, nil
}

// ledgerDir is where the ledgers lie.
func ledgerDir() (string, error) {
	state, err := defaultStateDir()
	return filepath.Join(state, "runs"), err
}

// defaultStateDir is $XDG_STATE_HOME/sbx-star, or what that stands for.
func defaultStateDir() (string, error) {
	base := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(base) { // the specification has relative ones ignored
		home, err := os.UserHomeDir()
		if err != nil {
			return "", errors.New("there is no folder for what sbx-star keeps: set HOME or XDG_STATE_HOME")
		}
		base = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(base, "sbx-star"), nil
}
