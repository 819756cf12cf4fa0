package builtins

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
	"pgregory.net/rapid"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/wire"
)

// This file tests what workflow's scripts do not reach, and that the stubs tell
// of all there is and of nothing else.

// valuesByType are one value of each type that has attributes.
func valuesByType() map[string]starlark.HasAttrs {
	return map[string]starlark.HasAttrs{
		"Sandbox":      newSandboxValue(nil, new(client.Sandbox)),
		"Template":     newTemplateKind().value(nil, new(wire.Template)),
		"Volume":       newVolumeKind().value(nil, new(wire.Volume)),
		"Pool":         newPoolKind().value(nil, new(wire.Pool)),
		"Snapshot":     newSnapshotKind().value(nil, new(wire.Snapshot)),
		"Registry":     newRegistryKind().value(nil, new(wire.Registry)),
		"Command":      &command{cmd: new(client.Command)},
		"Result":       newResult(new(client.Result), true),
		"Chunk":        &record{"chunk", chunkFields{Data: starlark.None}},
		"Line":         &record{"line", lineFields{Text: starlark.None}},
		"Match":        &record{"match", matchFields{}},
		"Re_match":     &record{"re_match", reMatchFields{}},
		"Service":      new(serviceValue),
		"Response":     new(responseValue),
		"Tunnel":       &tunnelValue{tunnel: new(client.Tunnel)},
		"Tunnel_stats": &record{"tunnel_stats", tunnelStats{}},
		"Download_url": &record{"download_url", wire.DownloadURL{}},
		"File_info":    &record{"file_info", fileInfo{}},
		"File_range":   &record{"file_range", fileRange{}},
		"Found":        &record{"found", found{}},
		"File_match":   &record{"file_match", wire.GlobMatch{}},
		"Transfer":     &record{"transfer", transferFields{}},
		"Text_match":   &record{"text_match", wire.GrepMatch{}},
		"Resources":    &record{"resources", wire.Resources{}},
		"Mount":        &record{"mount", wire.VolumeMount{}},
		"Status":       &record{"status", wire.BoxStatus{}},
		"Run_config":   &record{"run_config", wire.RunConfig{}},
		"Host_path":    hostPath{path: "/x"},
		"Service_url":  &record{"service_url", wire.ServiceGrant{}},

		"Access_delegation": &record{"access_delegation", wire.AccessDelegation{}},
		"Error":             newErrorValue(context.Canceled),
		"client":            &connection{},
		"Task":              &task{ended: make(chan struct{})},
	}
}

func TestStubs(t *testing.T) {
	told := map[string]bool{"Lines": true} // a value without attributes
	tell := func(name string) *starlark.Function {
		told[name] = true
		stub := stubs()[name]
		if stub == nil {
			t.Fatalf("%s has no stub", name)
		}
		if stub.Doc() == "" {
			t.Errorf("%s is not documented", name)
		}
		return stub
	}

	_, names := Predeclared(NewTask(t.Context(), NewRun(Options{})))
	names["client.registries"] = newRegistries()
	for name, v := range names {
		stub := tell(name)
		var members starlark.StringDict
		switch v := v.(type) {
		case *noun:
			members = v.members
		case *namespace:
			members = v.members
			if stub.NumParams() > 0 {
				t.Errorf("%s is no function, and its stub has parameters", name)
			}
		case *starlark.Builtin:
			if v.Name() != name {
				t.Errorf("%s calls itself %s", name, v.Name())
			}
		}
		for member, v := range members {
			if _, ok := v.(*starlark.Builtin); ok {
				tell(name + "." + member)
			}
		}
	}
	for name, v := range valuesByType() {
		documented := attributeNames(tell(name).Doc())
		for _, attr := range v.AttrNames() {
			if isMethod(name, attr) {
				tell(name + "." + attr)
			} else if !slices.Contains(documented, attr) {
				t.Errorf("the stub of %s does not tell of its attribute %s", name, attr)
			}
		}
		for _, attr := range documented {
			if !slices.Contains(v.AttrNames(), attr) {
				t.Errorf("the stub of %s tells of an attribute %s", name, attr)
			}
		}
	}
	for name, stub := range stubs() {
		if !told[name] {
			t.Errorf("there is a stub for %s, and no such thing", name)
		}
		help := stub.Doc()
		for i := range stub.NumParams() {
			param, _ := stub.Param(i)
			elsewhere := strings.Contains(help, "arguments are those of") || name == "struct"
			if !elsewhere && !regexp.MustCompile(`(?m)^ +\**`+param+`: `).MatchString(help) {
				t.Errorf("the stub of %s does not explain %s", name, param)
			}
		}
	}
}

func isMethod(typeName, attr string) bool {
	_, ok := stubs()[typeName+"."+attr]
	return ok
}

// attributeNames reads the section Attributes of a docstring.
func attributeNames(doc string) (names []string) {
	_, section, _ := strings.Cut(doc, "Attributes:\n")
	for _, m := range regexp.MustCompile(`(?m)^ +(\w+): `).FindAllStringSubmatch(section, -1) {
		names = append(names, m[1])
	}
	return names
}

// An argument that cannot be unpacked panics only when its function is called,
// so each must be called by some script of package workflow.
func TestEveryBuiltinIsCalledBySomeScript(t *testing.T) {
	var scripts strings.Builder
	err := filepath.WalkDir("../workflow/testdata", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			var text []byte
			text, err = os.ReadFile(path)
			scripts.Write(text)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, stub := range stubs() {
		documents := name != strings.ToLower(name) && !strings.Contains(name, ".") // a type
		if documents || slices.Contains([]string{"errors", "host", "log", "client", "client.registries", "json", "math", "time", "re", "base64", "hash", "expect"}, name) {
			continue
		}
		called := name + "("
		if owner, method, _ := strings.Cut(name, "."); owner != strings.ToLower(owner) {
			called = "." + method
		}
		if !strings.Contains(scripts.String(), called) {
			t.Errorf("no script calls %s (%s)", name, stub.Name())
		}
	}
}

func TestForeignThreadPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a builtin ran on a thread that is no task's")
		}
	}()
	starlark.Call(new(starlark.Thread), builtin("exit", exit), nil, nil)
}

func TestNearest(t *testing.T) {
	names := []string{"timeout", "stdin", "idle_timeout", "env"}
	for name, want := range map[string]string{
		"tiemout": "timeout", "idle-timeout": "idle_timeout", "Timeout": "timeout", "std_in": "stdin", "evn": "env", "x": "", "": "", "command": "",
	} {
		if got := nearest(name, names); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}

func TestQuantity(t *testing.T) {
	for _, same := range [][2]string{{"1", "1000m"}, {"1Gi", "1024Mi"}, {"0.5", "500m"}, {"1k", "1000"}, {"odd", "odd"}, {"0.1", "100m"}, {"1.5Gi", "1536Mi"}} {
		if !sameQuantity(same[0], same[1]) {
			t.Errorf("%s is not %s", same[0], same[1])
		}
	}
	for _, other := range [][2]string{{"1", "2"}, {"1Gi", "1G"}, {"odd", "even"}, {"", "0"}, {"1KiB", "1Ki"}, {"1e3", "1000"}, {"1/2", "0.5"}} {
		if sameQuantity(other[0], other[1]) {
			t.Errorf("%s is %s", other[0], other[1])
		}
	}
	if got := quantity("1500m"); got.Cmp(big.NewRat(3, 2)) != 0 {
		t.Error(got)
	}
}

func TestTail(t *testing.T) {
	long := strings.Repeat("x\n", 50)
	if got := Tail(long + "last\n\n"); strings.Count(got, "\n") != tailLines-1 || !strings.HasSuffix(got, "x\nlast") {
		t.Errorf("got %q", got)
	}
	if got := Tail(strings.Repeat("é", 5000)); len(got) > tailBytes || strings.Trim(got, "é") != "" {
		t.Errorf("got %d bytes", len(got))
	}
	if got := Tail("\n"); got != "" {
		t.Errorf("got %q", got)
	}
	if got := shorten(strings.Repeat("a", 200)); got != strings.Repeat("a", 100)+" …" {
		t.Errorf("got %q", got)
	}
}

func TestShellQuote(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("there is no shell to ask")
	}
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.SliceOfN(rapid.StringMatching(`[ -~\n\té]{0,8}`), 1, 8).Draw(t, "words")
		values := make([]starlark.Value, len(words))
		for i, w := range words {
			values[i] = starlark.String(w)
		}
		line, err := quoted(starlark.NewList(values))
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(sh, "-c", `printf '%s\0' `+line).Output()
		if want := strings.Join(words, "\x00") + "\x00"; err != nil || string(out) != want {
			t.Fatalf("%s gives %q (%v), want %q", line, out, err, want)
		}
	})
}

// However a command's output is cut into chunks, its lines are the same.
func TestLines(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pieces := rapid.SliceOf(rapid.StringMatching(`[ab\r\n]{1,5}`)).Draw(t, "pieces")
		v := &command{text: true, partial: map[string]string{}}
		for _, piece := range pieces {
			v.split(client.Chunk{Stream: wire.Stdout, Data: piece})
		}
		v.flush()
		var got, want []string
		for _, line := range v.lines {
			got = append(got, string(line.Text.(starlark.String)))
		}
		for line := range strings.Lines(strings.Join(pieces, "")) {
			if whole, ok := strings.CutSuffix(line, "\n"); ok {
				line = strings.TrimSuffix(whole, "\r")
			}
			want = append(want, line)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%q has lines %q, want %q", pieces, got, want)
		}
	})
}

// Lines that expect makes text of and lines again are the same lines.
func TestUnsplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := &command{text: true, partial: map[string]string{}}
		for _, piece := range rapid.SliceOf(rapid.StringMatching(`[ab\n]{1,5}`)).Draw(t, "pieces") {
			v.split(client.Chunk{Stream: rapid.SampledFrom(streams[:]).Draw(t, "stream"), Data: piece})
		}
		perStream := func() map[string][]lineFields {
			m := map[string][]lineFields{}
			for _, line := range v.lines {
				m[line.Stream] = append(m[line.Stream], line)
			}
			return m
		}
		want, partial := perStream(), maps.Clone(v.partial)
		v.unsplit()
		v.resplit()
		if got := perStream(); !reflect.DeepEqual(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
		for _, stream := range streams {
			if v.partial[stream] != partial[stream] {
				t.Fatalf("%q was left of %s, want %q", v.partial[stream], stream, partial[stream])
			}
		}
	})
}

// The script that waits for a port sees listeners of both families, and says so
// where there is no sleep.
func TestPortScript(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if _, missing := os.Stat("/proc/net/tcp"); err != nil || missing != nil {
		t.Skip("there is no shell, or no table of ports")
	}
	run := func(number int) int {
		cmd := exec.Command(sh, "-c", fmt.Sprintf(portScript, number, noSleep))
		cmd.Env = []string{"PATH=/nowhere"}
		cmd.Run()
		return cmd.ProcessState.ExitCode()
	}
	for _, network := range []string{"tcp4", "tcp6"} {
		ln, err := net.Listen(network, "localhost:0")
		if err != nil {
			t.Log(err) // this machine speaks the other family only
			continue
		}
		number := ln.Addr().(*net.TCPAddr).Port
		if code := run(number); code != 0 {
			t.Errorf("%s: exit code %d while something listens", network, code)
		}
		ln.Close()
		if code := run(number); code != noSleep {
			t.Errorf("%s: exit code %d while nothing listens", network, code)
		}
	}
}

func TestRoundedUp(t *testing.T) {
	for q, want := range map[string]int64{"500m": 1, "1": 1, "1001m": 2, "2Gi": 2 << 30, "0.5": 1} {
		if got := roundedUp(quantity(q)); got != want {
			t.Errorf("%s: got %d, want %d", q, got, want)
		}
	}
}

// Values of wire messages are frozen, and ordered the same each time.
func TestToStarlark(t *testing.T) {
	box := wire.Box{Labels: map[string]string{"b": "2", "a": "1"}, RunConfig: &wire.RunConfig{User: "u"}}
	labels := wireField(box, "labels").(*starlark.Dict)
	if labels.String() != `{"a": "1", "b": "2"}` || labels.SetKey(starlark.String("c"), starlark.None) == nil {
		t.Errorf("got %s, which is not frozen", labels)
	}
	if got := wireField(&box, "run_config").String(); got != `run_config(user="u", work_dir=None, env_vars=None)` {
		t.Error(got)
	}
	e := &client.Error{Kind: client.ErrValidation, Details: []wire.InputError{{Loc: []any{"body", 1.0, 1.5}, Msg: "m", Type: "t"}}}
	details, err := newErrorValue(e).Attr("details")
	if err != nil || details.String() != `[input_error(loc=["body", 1, 1.5], msg="m", type="t")]` {
		t.Error(details, err)
	}
	if _, err := starlark.Compare(syntax.LT, &record{"chunk", chunkFields{}}, &record{"chunk", chunkFields{}}); err == nil {
		t.Error("records have an order")
	}
}

// Each kind of error has exactly the attributes of the SDK (protocol.md §3.2).
func TestErrorAttributes(t *testing.T) {
	for kind, want := range map[*client.Kind]string{
		client.ErrClient:               "",
		client.ErrConnectTimeout:       "",
		client.ErrNotFound:             "resource_type",
		client.ErrTimeout:              "last_status resource_type",
		client.ErrValidation:           "details error_type field",
		client.ErrQuotaExceeded:        "quota_type",
		client.ErrCreation:             "error_type resource_type",
		client.ErrCommandTimeout:       "error_type operation stderr stdout timeout",
		client.ErrTunnelPortNotAllowed: "port",
	} {
		e := newErrorValue(&client.Error{Kind: kind})
		var special []string
		for _, name := range e.AttrNames() {
			if !slices.Contains([]string{"type", "message", "backtrace", "is_a"}, name) {
				special = append(special, name)
				if v, err := e.Attr(name); err != nil || v.Truth() {
					t.Errorf("%s of an empty error is %v, %v", name, v, err)
				}
			}
		}
		if got := strings.Join(special, " "); got != want {
			t.Errorf("%s has %q, want %q", kind.Name(), got, want)
		}
	}
	full := newErrorValue(&client.Error{Kind: client.ErrTunnelConnectionRefused, Port: 80})
	if port, err := full.Attr("port"); err != nil || port.String() != "80" {
		t.Error(port, err)
	}
}
