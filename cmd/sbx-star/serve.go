package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/sbx-star/sbx-star/server"
	"github.com/sbx-star/sbx-star/workflow"
)

// This file defines sbx-star serve: the embedded server on a port, for any SDK
// of the sandbox API.

const serveUsage = `Usage:
  sbx-star serve [flags]

Serves the sandbox API until Ctrl-C. Sandboxes live on when it stops, and are
found again when it starts with the same state folder.

While it runs, a sandbox that is idle for 10 minutes is stopped, unless it was
made with other times; it wakes when it is used, and is deleted after 14 days.
GET /healthz tells without a key that it runs, GET /metrics with it how it does.

A git mount is fetched by this machine's git, which is given no credential and no
configuration of the user: what can be fetched is what anybody in this network
could. So are images, of which dir:PATH, docker-archive:FILE and oci:DIR are files
of this machine. Such paths are refused without --allow-local-files, because the key
to the API must not become one to the files of the user who serves it; with it, that
user's Docker logins are used as well. SBX_STAR_REGISTRY_MIRROR names mirrors of
registries, as in docker.io=registry.example:5000/hub.

With --root memory a sandbox takes up no disk: what it writes is in memory, up to its
limit on storage or 1 GiB. Stopping it puts that into the state folder, starting takes
it up again; what was written since is lost if the machine or the sandbox is killed.

Flags:
`

func serve(args []string, stdout, stderr io.Writer) error {
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:8787", "`ADDRESS` to listen on; port 0 picks one")
	apiKey := flags.String("api-key", "", "the `KEY` that clients must send (one is made and printed otherwise)")
	stateDir := flags.String("state-dir", "", "`FOLDER` of templates and sandboxes (the user's state folder otherwise)")
	runtime := flags.String("runtime", "namespace", "how sandboxes are made: `namespace`, or process (no isolation)")
	root := flags.String("root", rootDisk, "where the files of sandboxes lie: `disk`, or memory")
	bestEffort := flags.Bool("best-effort", false, "accept limits that this machine cannot enforce, and say so in GET /info")
	quota := flags.StringToInt64("quota", nil, "keep no more than `KIND=NUMBER,…` of sandboxes, volumes, volume-bytes, pools and snapshots")
	serviceDomain := flags.String("service-domain", "", "the `DOMAIN` below which services in sandboxes have their hosts (localhost otherwise)")
	localFiles := flags.Bool("allow-local-files", false, "let git mounts and images name files of this machine: whoever has the key may read what this user can")
	if err := parse(flags, args, serveUsage, stdout); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return nil
		}
		return err
	}
	if flags.NArg() > 0 {
		return &workflow.UsageError{Message: fmt.Sprintf("serve takes no argument %q", flags.Arg(0)), Hint: "sbx-star serve --help lists its flags"}
	}
	key := *apiKey
	if key == "" {
		key = "sbx_" + rand.Text()
	}
	options, err := serverOptions(*runtime, *root, *stateDir)
	if err != nil {
		return err
	}
	options.APIKey, options.BestEffort, options.ServiceDomain, options.LocalFiles = key, *bestEffort, *serviceDomain, *localFiles
	options.StopIdle, options.DeleteStopped = 10*time.Minute, 14*24*time.Hour // protocol.md §2.7
	if options.Quota, err = quotaOf(*quota); err != nil {
		return err
	}
	options.Log = slog.New(slog.NewTextHandler(stderr, nil))

	listener, err := listenOn(*listen)
	if err != nil {
		return &workflow.UsageError{Message: fmt.Sprintf("cannot listen on %s: %v", *listen, err), Hint: "name another address with --listen, or let the system pick a port with --listen 127.0.0.1:0"}
	}
	defer listener.Close()
	s, err := server.New(options)
	if err != nil {
		return err
	}
	defer s.Close()

	hello := fmt.Sprintf("export SBX_STAR_ENDPOINT=http://%s%s\n", listener.Addr(), basePath)
	if *apiKey == "" {
		hello += fmt.Sprintf("export SBX_STAR_API_KEY=%s\n", key)
	}
	io.WriteString(stdout, hello) // at once: who reads it waits for it
	ctx, _, stop := untilSignal(context.Background(), io.Discard)
	defer stop()
	return s.Serve(ctx, listener)
}

func quotaOf(given map[string]int64) (server.Quota, error) {
	var q server.Quota
	for kind, n := range given {
		counts := map[string]*int{"sandboxes": &q.Sandboxes, "volumes": &q.Volumes, "pools": &q.Pools, "snapshots": &q.Snapshots}
		switch count := counts[kind]; {
		case n < 1 || n > math.MaxInt32 && count != nil:
			return q, &workflow.UsageError{Message: fmt.Sprintf("the quota of %s is %d", kind, n), Hint: "a quota is a number above 0; leave it out for no limit"}
		case count != nil:
			*count = int(n)
		case kind == "volume-bytes":
			q.VolumeBytes = n
		default:
			return q, &workflow.UsageError{Message: fmt.Sprintf("there is no quota of %q", kind), Hint: "--quota takes sandboxes, volumes, volume-bytes, pools and snapshots"}
		}
	}
	return q, nil
}

// listenOn waits a moment for an address that is in use: of a server that was
// killed, a child that was just being started may still hold it.
func listenOn(address string) (listener net.Listener, err error) {
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		listener, err = net.Listen("tcp", address)
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(deadline) {
			return listener, err
		}
	}
}
