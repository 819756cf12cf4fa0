package workflow_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/event"
	"github.com/sbx-star/sbx-star/workflow"
)

// This file runs the workflows in testdata: archives that hold the files of a
// workflow and, in files without an extension, what it is run with and what
// comes of it:
//
//	args       one a line
//	steps      the most that it may execute
//	memory     the most MiB that it may use
//	root       the folder in which it runs, "." otherwise
//	stdout     what it printed
//	stderr     its events, and its error as it is shown
//	code       the exit code, 0 if there is none
//	requests   what the server was asked; not compared if there is none
//	left       the names of the sandboxes that are still there
//
// With -update the last five are rewritten.

var update = flag.Bool("update", false, "rewrite what is expected in testdata")

func TestScripts(t *testing.T) {
	archives, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatal("there is nothing to test", err)
	}
	for _, path := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) { testScript(t, path) })
	}
}

// results are the files that tell what came of a run, in the order in which
// they are written; an empty one is left out.
var results = []string{"stdout", "stderr", "code", "requests", "left"}

func testScript(t *testing.T, path string) {
	archive, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	want := map[string]string{}
	for _, file := range archive.Files {
		if filepath.Ext(file.Name) == "" {
			want[file.Name] = string(file.Data)
			continue
		}
		name := filepath.Join(dir, file.Name)
		if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, file.Data, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(filepath.Join(dir, strings.TrimSpace(want["root"])))

	f := newFake(t)
	var stdout, stderr bytes.Buffer
	options := workflow.Options{
		Path: "main.star", Args: strings.Fields(want["args"]),
		Connect: func(context.Context) (*client.Client, error) { return f.client(), nil },
		Stdout:  &stdout, Events: event.Terminal(&stderr),
		Env: func(name string) (string, bool) { return "value of " + name, name == "SET" },
	}
	for name, limit := range map[string]*uint64{"steps": &options.MaxSteps, "memory": &options.MaxMemory} {
		if text, ok := want[name]; ok {
			if _, err := fmt.Sscan(text, limit); err != nil {
				t.Fatal(err)
			}
		}
	}
	options.MaxMemory <<= 20
	err = workflow.Run(t.Context(), options)
	workflow.Render(&stderr, err, false)

	got := map[string]string{"stdout": stdout.String(), "stderr": stderr.String()}
	if code := workflow.ExitCode(err); code != 0 {
		got["code"] = fmt.Sprintf("%d\n", code)
	}
	if _, ok := want["requests"]; ok {
		got["requests"] = strings.Join(inOrder(f.requests), "\n")
	}
	got["left"] = strings.Join(slices.Sorted(maps.Keys(f.boxes)), "\n")
	for name, text := range got {
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n" // as an archive has it
		}
		text = generated.ReplaceAllString(text, "$1-00000000")
		text = commandID.ReplaceAllString(text, "command ID")
		got[name] = strings.ReplaceAll(text, f.URL, "http://fake")
	}
	if *update {
		rewrite(t, absolute, archive, got)
		return
	}
	for _, name := range results {
		if got[name] != want[name] {
			t.Errorf("%s:\n--- got:\n%s--- want:\n%s", name, got[name], want[name])
		}
	}
}

// inOrder sorts sandboxes that are deleted in a row: they are at the same time.
func inOrder(requests []string) []string {
	for i := 0; i < len(requests); {
		n := i
		for n < len(requests) && strings.HasPrefix(requests[n], "DELETE /boxes/") {
			n++
		}
		slices.Sort(requests[i:n])
		i = n + 1
	}
	return requests
}

// What is another with each run.
var (
	generated = regexp.MustCompile(`\b(sbx)-[0-9a-f]{8}\b`)
	commandID = regexp.MustCompile(`\bcommand [0-9a-f]{32}\b`)
)

func rewrite(t *testing.T, path string, archive *txtar.Archive, got map[string]string) {
	var files []txtar.File
	for _, file := range archive.Files {
		if _, ok := got[file.Name]; !ok {
			files = append(files, file)
		}
	}
	kept := files[:0]
	for _, file := range files {
		if file.Name != "code" && file.Name != "left" {
			kept = append(kept, file)
		}
	}
	for _, name := range results {
		if got[name] != "" {
			kept = append(kept, txtar.File{Name: name, Data: []byte(got[name])})
		}
	}
	archive.Files = kept
	if err := os.WriteFile(path, txtar.Format(archive), 0o666); err != nil {
		t.Fatal(err)
	}
}
