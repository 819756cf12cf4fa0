package event_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/event"
)

func TestTerminal(t *testing.T) {
	web := func(state, reason string) event.Event {
		return event.Tunnel{Sandbox: "web", RemotePort: 80, State: state, Error: reason}
	}
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
		{web(event.TunnelRefused, "nothing listens"), "sbx-star: warning: tunnel to port 80 of sandbox \"web\": a connection was closed: nothing listens\n"},
		{web(event.TunnelLost, "it was cut"), "sbx-star: warning: tunnel to port 80 of sandbox \"web\": its connections were reset: it was cut\n"},
		{web(event.TunnelFailed, "no answer"), "sbx-star: warning: tunnel to port 80 of sandbox \"web\": it stays lost: no answer\n"},
		{web(event.TunnelReopened, ""), "sbx-star: tunnel to port 80 of sandbox \"web\": open again\n"},
		{web(event.TunnelClosed, ""), ""},
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

var update = flag.Bool("update", false, "rewrite docs/events.md")

// docs/events.md is what the types say, and every field of every event is in it.
func TestSchema(t *testing.T) {
	const path = "../docs/events.md"
	want := event.Schema()
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s is not what the types say; go test ./event -run Schema -update rewrites it (%v)", path, err)
	}
	if strings.Contains(want, "| `` |") || strings.Contains(want, "|  |") {
		t.Error("a field has no name, or nothing is said of it")
	}
}

func code(n int) *int { return &n }

var place = event.Place{Task: "main", Pos: "a.star:1:2"}

// every is one event of each kind, with its JSON behind the time and its line.
var every = []struct {
	event      event.Event
	json, line string
}{
	{event.Create{Place: place, Span: 1, Resource: event.Resource{Kind: "sandbox", Name: "w"}},
		`"event":"create","task":"main","pos":"a.star:1:2","span":1,"kind":"sandbox","name":"w"}`, `creating sandbox "w"`},
	{event.Created{Span: 1, Resource: event.Resource{Kind: "sandbox", Name: "w"}, ID: "1", Seconds: 1.25},
		`"event":"created","span":1,"kind":"sandbox","name":"w","id":"1","seconds":1.25}`, `created sandbox "w" (1.2s)`},
	{event.Start{Span: 2, Sandbox: "w", Command: "a <b\x1b"}, `"event":"start","span":2,"sandbox":"w","command":"a <b\u001b"}`, `w $ a <b\x1b`},
	{event.Output{Span: 2, Sandbox: "w", Stream: "stdout", Bytes: 3}, `"event":"output","span":2,"sandbox":"w","stream":"stdout","bytes":3}`, `w: 3 bytes of stdout`},
	{event.Exit{Span: 2, Sandbox: "w", Command: "a", ExitCode: code(0), Seconds: 75}, `"event":"exit","span":2,"sandbox":"w","command":"a","exit_code":0,"seconds":75}`, `w: exit code 0 (1m15s): a`},
	{event.Tunnel{Sandbox: "w", RemotePort: 80, LocalPort: 81, State: event.TunnelOpened},
		`"event":"tunnel","sandbox":"w","remote_port":80,"local_port":81,"state":"opened"}`, `tunnel to port 80 of sandbox "w": open on port 81`},
	{event.Transfer{Upload: true, Sandbox: "w", Path: "/a", Files: 2, Bytes: 1 << 20},
		`"event":"transfer","upload":true,"sandbox":"w","path":"/a","files":2,"bytes":1048576,"done":false}`, `uploading to /a in sandbox w: 2 files, 1.0 MiB, so far`},
	{event.Release{Span: 4, Resource: event.Resource{Kind: "pool", Name: "p"}}, `"event":"release","span":4,"kind":"pool","name":"p"}`, `deleting pool "p"`},
	{event.Released{Span: 4, Resource: event.Resource{Kind: "pool", Name: "p"}, Error: "no"}, `"event":"released","span":4,"kind":"pool","name":"p","seconds":0,"error":"no"}`, `could not delete pool "p": no`},
	{event.Kept{Kind: "pool", Name: "p", Reach: "r", Delete: "d"}, `"event":"kept","kind":"pool","name":"p","reach":"r","delete":"d"}`, `kept: pool "p": reach it with r, delete it with d`},
	{event.Warning{Text: "two\nlines"}, `"event":"warning","text":"two\nlines"}`, "warning: two\n  lines"},
	{event.Log{Level: "error", Text: "x", Fields: []event.Field{{Name: "a", Value: "b"}}}, `"event":"log","level":"error","text":"x","fields":[{"name":"a","value":"b"}]}`, "error: x a=b"},
	{event.Failure{Text: "no\n"}, `"event":"failure","text":"no\n"}`, ""}, // it is rendered
	{event.End{ExitCode: 1, Seconds: 7300}, `"event":"end","exit_code":1,"seconds":7300}`, `ended with exit status 1 (2h01m)`},
}

func TestJSON(t *testing.T) {
	var out strings.Builder
	now := func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.FixedZone("", 3600)) }
	sink := event.JSON(&out, now, func(err error) { t.Error(err) })
	want := ""
	for _, e := range every {
		sink.Emit(e.event)
		want += `{"time":"2026-01-02T02:04:05.006Z",` + e.json + "\n"
	}
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	if n := strings.Count(event.Schema(), "\n## "); n != len(every) {
		t.Errorf("there are %d events, and %d are tested", n, len(every))
	}
}

type full struct{ writes int }

func (f *full) Write([]byte) (int, error) { f.writes++; return 0, errors.New("full") }

func TestJSONToAFullDisk(t *testing.T) {
	var w full
	var failures []error
	sink := event.JSON(&w, time.Now, func(err error) { failures = append(failures, err) })
	sink.Emit(event.End{})
	sink.Emit(event.End{})
	if w.writes != 1 || len(failures) != 1 {
		t.Errorf("%d writes, and %v was told", w.writes, failures)
	}
}

func TestLines(t *testing.T) {
	for level, shown := range map[event.Level]func(event.Event) bool{
		event.Quiet: func(e event.Event) bool { l, ok := e.(event.Log); return ok && l.Level == "error" },
		event.Normal: func(e event.Event) bool {
			switch e.(type) {
			case event.Warning, event.Log, event.Kept, event.Transfer:
				return true
			}
			return false
		},
		event.Verbose: func(e event.Event) bool { _, failed := e.(event.Failure); return !failed },
	} {
		for _, e := range every {
			var out strings.Builder
			event.Lines(&out, level).Emit(e.event)
			want := ""
			if shown(e.event) {
				want = "sbx-star: " + e.line + "\n"
			}
			if out.String() != want {
				t.Errorf("level %d: got %q, want %q", level, out.String(), want)
			}
		}
	}
}

// No text of any event gets past the mask, and the event itself stays as it was.
func TestMask(t *testing.T) {
	for _, e := range every {
		before := fmt.Sprintf("%+v", e.event)
		event.Mask(func(masked event.Event) {
			var out strings.Builder
			event.JSON(&out, time.Now, nil).Emit(masked)
			var fields any
			if err := json.Unmarshal([]byte(out.String()), &fields); err != nil {
				t.Fatal(err)
			}
			delete(fields.(map[string]any), "time")
			delete(fields.(map[string]any), "event")
			if shown := fmt.Sprint(texts(fields)); strings.Trim(shown, "[* ]") != "" {
				t.Errorf("%s shows %s", out.String(), shown)
			}
		}, func(string) string { return "***" }).Emit(e.event)
		if after := fmt.Sprintf("%+v", e.event); after != before {
			t.Errorf("%s has become %s", before, after)
		}
	}
}

// texts are all strings in a JSON value, but for the names of fields.
func texts(v any) (found []string) {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []any:
		for _, element := range v {
			found = append(found, texts(element)...)
		}
	case map[string]any:
		for _, element := range v {
			found = append(found, texts(element)...)
		}
	}
	return found
}
