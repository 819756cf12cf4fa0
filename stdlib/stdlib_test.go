package stdlib_test

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.starlark.net/syntax"

	"github.com/sbx-star/sbx-star/format"
	"github.com/sbx-star/sbx-star/stdlib"
	"github.com/sbx-star/sbx-star/workflow"
)

// This file defines what every module of the standard library has to fulfil.
// What the modules do is tested in Starlark, which a golden script runs.

var options = syntax.FileOptions{Set: true, While: true, Recursion: true}

func TestModules(t *testing.T) {
	files, err := filepath.Glob("*.star")
	if err != nil || len(files) < 16 {
		t.Fatalf("there are %d files here (%v)", len(files), err)
	}
	for _, name := range files {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if formatted, err := format.Source(name, src); err != nil || !bytes.Equal(formatted, src) {
			t.Errorf("%s is not as sbx-star fmt has it (%v)", name, err)
		}
		embedded, err := stdlib.FS.ReadFile(name)
		if strings.HasSuffix(name, "_test.star") {
			if err == nil {
				t.Errorf("%s is embedded, although nobody needs it", name)
			}
			continue
		}
		if err != nil || !bytes.Equal(embedded, src) {
			t.Errorf("%s is not embedded (%v)", name, err)
		}
		file, err := options.Parse(name, src, 0)
		if err != nil {
			t.Fatal(err)
		}
		if text(file.Stmts[0]) == "" {
			t.Errorf("%s says nothing of itself", name)
		}
		for _, stmt := range file.Stmts {
			if def, ok := stmt.(*syntax.DefStmt); ok && !strings.HasPrefix(def.Name.Name, "_") {
				documented(t, def)
			}
		}
	}
	for _, problem := range workflow.Check(files) {
		t.Errorf("sbx-star check: %v", problem)
	}
}

// documented fails the test unless the function says what it does, takes and
// returns: each of its parameters, in their order, and nothing else.
func documented(t *testing.T, def *syntax.DefStmt) {
	where := def.Name.NamePos.String() + ": " + def.Name.Name
	doc := text(def.Body[0])
	summary, rest, _ := strings.Cut(doc, "\n")
	if !regexp.MustCompile(`^[A-Z].*\.$`).MatchString(summary) {
		t.Errorf("%s: its first line is no sentence: %q", where, summary)
	}
	args, returns, ok := strings.Cut(rest, "\n    Returns:\n")
	if !ok || strings.TrimSpace(returns) == "" {
		t.Errorf("%s: it does not say what it returns", where)
	}
	_, args, _ = strings.Cut(args, "\n    Args:\n")
	var got, want []string
	for _, line := range regexp.MustCompile(`(?m)^      (\w+): .+\.$`).FindAllStringSubmatch(args, -1) {
		got = append(got, line[1])
	}
	for _, param := range def.Params {
		if binary, ok := param.(*syntax.BinaryExpr); ok {
			param = binary.X
		}
		if ident, ok := param.(*syntax.Ident); ok { // and not the star before those that have to be named
			want = append(want, ident.Name)
		}
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("%s: it documents the parameters %v and has %v", where, got, want)
	}
}

// text is a string that stands alone as a statement, or "".
func text(stmt syntax.Stmt) string {
	if stmt, ok := stmt.(*syntax.ExprStmt); ok {
		if literal, ok := stmt.X.(*syntax.Literal); ok && literal.Token == syntax.STRING {
			return literal.Value.(string)
		}
	}
	return ""
}
