package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"

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

Flags:
`

func serve(args []string, stdout, stderr io.Writer) error {
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:8787", "`ADDRESS` to listen on; port 0 picks one")
	apiKey := flags.String("api-key", "", "the `KEY` that clients must send (one is made and printed otherwise)")
	stateDir := flags.String("state-dir", "", "`FOLDER` of templates and sandboxes (the user's state folder otherwise)")
	runtime := flags.String("runtime", "namespace", "how sandboxes are made: `namespace`, or process (no isolation)")
	bestEffort := flags.Bool("best-effort", false, "accept limits that this machine cannot enforce, and say so in GET /info")
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
	options, err := serverOptions(*runtime, *stateDir)
	if err != nil {
		return err
	}
	options.APIKey, options.BestEffort = key, *bestEffort
	options.Log = slog.New(slog.NewTextHandler(stderr, nil))

	listener, err := net.Listen("tcp", *listen)
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
