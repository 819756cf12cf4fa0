package main

import (
	"context"
	"fmt"
	"math"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/workflow"
)

// This file defines where a workflow's sandboxes are made: on the embedded
// server, on the one that --endpoint names, or on the hosted service.

// basePath ends every base URL (protocol.md §1.2).
const basePath = "/v2/sandboxes"

// Values of --root.
const (
	rootDisk   = "disk"
	rootMemory = "memory"
)

type connectFlags struct {
	endpoint, apiKey, runtime, root string
	remote, local                   bool
}

func (f *connectFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.endpoint, "endpoint", "", "connect to the server at `URL` (or SBX_STAR_ENDPOINT)")
	flags.StringVar(&f.apiKey, "api-key", "", "the `KEY` for --endpoint (or SBX_STAR_API_KEY)")
	flags.BoolVar(&f.remote, "remote", false, "connect to the hosted service, by LANGSMITH_ENDPOINT and LANGSMITH_API_KEY")
	flags.BoolVar(&f.local, "local", false, "make sandboxes on this machine even if SBX_STAR_ENDPOINT is set")
	flags.StringVar(&f.runtime, "runtime", "namespace", "how the embedded server makes sandboxes: `namespace`, or process (no isolation)")
	flags.StringVar(&f.root, "root", rootDisk, "where its sandboxes' files lie: `disk`, or memory")
}

// connector returns how the workflow reaches its server when it first needs
// one. What it opens is closed by close, which may be called without it.
func (f *connectFlags) connector() (connect func(context.Context) (*client.Client, error), close func(), err error) {
	options, err := f.options(os.Getenv)
	if err != nil {
		return nil, nil, err
	}
	timeouts, err := webSocketTimeouts(os.Getenv)
	if err != nil {
		return nil, nil, err
	}
	if options == nil {
		return embedded(f.runtime, f.root, timeouts)
	}
	options.WebSocket = timeouts
	c, err := client.New(*options)
	if err != nil {
		return nil, nil, &workflow.UsageError{Message: err.Error(), Hint: "an endpoint looks like http://127.0.0.1:8787" + basePath}
	}
	return func(context.Context) (*client.Client, error) { return c, nil }, c.Close, nil
}

// embeddedPrefix is followed by the runtime, where a server is called by one
// word and is the embedded one.
const embeddedPrefix = "embedded:"

// target is the server that connector reaches, as a ledger names it.
func (f *connectFlags) target() (string, error) {
	options, err := f.options(os.Getenv)
	if err != nil {
		return "", err
	}
	if options == nil {
		return embeddedPrefix + f.runtime, nil
	}
	return options.Endpoint, nil
}

// options says which server to reach, or nil for the embedded one. A key that
// merely lies in the environment never chooses the hosted service.
func (f *connectFlags) options(env func(string) string) (*client.Options, error) {
	first := func(values ...string) string {
		for _, v := range values {
			if v = strings.TrimSpace(v); v != "" {
				return v
			}
		}
		return ""
	}
	endpoint := first(f.endpoint, env("SBX_STAR_ENDPOINT"))
	chosen := 0
	for _, given := range []bool{f.endpoint != "", f.remote, f.local} {
		if given {
			chosen++
		}
	}
	key := first(f.apiKey, env("SBX_STAR_API_KEY"), env("LANGSMITH_API_KEY"), env("LANGCHAIN_API_KEY"))
	switch {
	case chosen > 1:
		return nil, &workflow.UsageError{Message: "--endpoint, --remote and --local exclude each other", Hint: "give one of them"}
	case f.local, endpoint == "" && !f.remote:
		if f.apiKey != "" {
			return nil, &workflow.UsageError{Message: "--api-key without a server to send it to", Hint: "name one with --endpoint URL or --remote"}
		}
		return nil, nil
	case f.remote:
		root := first(env("LANGSMITH_ENDPOINT"), env("LANGCHAIN_ENDPOINT"), "https://api.smith.langchain.com")
		return &client.Options{
			Endpoint: strings.TrimRight(root, "/") + basePath,
			APIKey:   first(f.apiKey, env("LANGSMITH_API_KEY"), env("LANGCHAIN_API_KEY")),
		}, nil
	}
	return &client.Options{Endpoint: withBasePath(endpoint), APIKey: key}, nil
}

// webSocketTimeouts reads the environment that the SDKs read too (protocol.md
// §4.2): seconds, of which 0 and less are no bound.
func webSocketTimeouts(env func(string) string) (client.WebSocketTimeouts, error) {
	var timeouts client.WebSocketTimeouts
	for _, timeout := range []struct {
		name string
		into *time.Duration
	}{
		{"OPEN", &timeouts.Open}, {"PING_INTERVAL", &timeouts.PingInterval}, {"PING", &timeouts.Pong},
		{"CLOSE", &timeouts.Close}, {"CONNECT_BUDGET", &timeouts.ConnectBudget},
	} {
		for _, prefix := range []string{"LANGSMITH_", "LANGCHAIN_"} {
			name := prefix + "SANDBOX_WS_TIMEOUT_" + timeout.name
			value := strings.TrimSpace(env(name))
			if value == "" {
				continue
			}
			seconds, err := strconv.ParseFloat(value, 64)
			if err != nil || math.IsNaN(seconds) {
				return timeouts, &workflow.UsageError{
					Message: fmt.Sprintf("%s is %q, and must be a number of seconds", name, value),
					Hint:    "give a number such as 30, or 0 for no bound, or unset it",
				}
			}
			switch *timeout.into = time.Duration(seconds * float64(time.Second)); {
			case seconds <= 0, seconds > math.MaxInt64/float64(time.Second):
				*timeout.into = -1
			case *timeout.into == 0:
				*timeout.into = 1 // less than can be told, and not the default
			}
			break
		}
	}
	return timeouts, nil
}

// withBasePath completes an endpoint that is a server and nothing more.
func withBasePath(endpoint string) string {
	if u, err := url.Parse(endpoint); err == nil && strings.Trim(u.Path, "/") == "" {
		return strings.TrimRight(endpoint, "/") + basePath
	}
	return strings.TrimRight(endpoint, "/")
}
