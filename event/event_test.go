package event_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/sbx-star/sbx-star/event"
)

func TestTerminal(t *testing.T) {
	web := event.Tunnel{Sandbox: "web", RemotePort: 80}
	for _, test := range []struct {
		event event.Event
		want  string
	}{
		{event.Warning{Text: "memory is not enforced"}, "sbx-star: warning: memory is not enforced\n"},
		{event.Log{Level: "info", Text: "built"}, "sbx-star: info: built\n"},
		{event.Log{Level: "warn", Text: "slow", Fields: []event.Field{{Name: "secs", Value: "3"}, {Name: "file", Value: "a b.c"}, {Name: "none", Value: ""}}},
			`sbx-star: warning: slow secs=3 file="a b.c" none=""` + "\n"},
		{event.Kept{Kind: "sandbox", Name: "web", Reach: `sandbox.get("web")`, Delete: `sandbox.delete("web")`},
			`sbx-star: kept: sandbox "web": reach it with sandbox.get("web"), delete it with sandbox.delete("web")` + "\n"},
		{event.TunnelRefused{Tunnel: web, Err: errors.New("nothing listens")}, "sbx-star: warning: tunnel to port 80 of sandbox \"web\": a connection was closed: nothing listens\n"},
		{event.TunnelLost{Tunnel: web, Err: errors.New("it was cut")}, "sbx-star: warning: tunnel to port 80 of sandbox \"web\": its connections were reset: it was cut\n"},
		{event.TunnelFailed{Tunnel: web, Err: errors.New("no answer")}, "sbx-star: warning: tunnel to port 80 of sandbox \"web\": it stays lost: no answer\n"},
		{event.TunnelReopened{Tunnel: web}, "sbx-star: tunnel to port 80 of sandbox \"web\": open again\n"},
	} {
		var out strings.Builder
		event.Terminal(&out).Emit(test.event)
		if out.String() != test.want {
			t.Errorf("%#v:\ngot  %q\nwant %q", test.event, out.String(), test.want)
		}
	}
}

func TestNilSinkDrops(t *testing.T) {
	event.Sink(nil).Emit(event.Warning{Text: "dropped"})
}
