package workflow_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/sbx-star/sbx-star/workflow"
)

// Each archive in testdata/check holds files, and in want what is found in them.
func TestCheck(t *testing.T) {
	archives, err := filepath.Glob("testdata/check/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatal("there is nothing to test", err)
	}
	for _, path := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			var files []string
			want := -1
			for i, f := range archive.Files {
				if f.Name == "want" {
					want = i
					continue
				}
				name := filepath.Join(dir, f.Name)
				if err := os.WriteFile(name, f.Data, 0o600); err != nil {
					t.Fatal(err)
				}
				files = append(files, name)
			}
			var got strings.Builder
			for _, p := range workflow.Check(files) {
				got.WriteString(strings.ReplaceAll(p.String(), dir+string(filepath.Separator), ""))
				if p.Load {
					got.WriteString(" (does not load)")
				}
				got.WriteString("\n")
			}
			if got.String() == string(archive.Files[want].Data) {
				return
			}
			if *update {
				archive.Files[want].Data = []byte(got.String())
				if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			t.Errorf("found\n%s\nwant\n%s", got.String(), archive.Files[want].Data)
		})
	}
}

func TestNothingIsWrongWithTheExamples(t *testing.T) {
	files, err := filepath.Glob("../examples/*.star")
	if err != nil || len(files) == 0 {
		t.Fatal("there are no examples", err)
	}
	for _, p := range workflow.Check(files) {
		t.Error(p)
	}
}
