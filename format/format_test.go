package format_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.starlark.net/syntax"

	"github.com/sbx-star/sbx-star/format"
)

func TestSource(t *testing.T) {
	for _, test := range []struct{ name, src, want string }{
		{"calls", "sb=sandbox( name='x',snapshot = 'y' )\n", "sb = sandbox(name = \"x\", snapshot = \"y\")\n"},
		{"while", "def f(x):\n  while x>0 :\n      x-=1\n  else_ = 3\n", "def f(x):\n    while x > 0:\n        x -= 1\n    else_ = 3\n"},
		{"while in else", "if a:\n  f()\nelse:\n  while(b):\n    g()\n", "if a:\n    f()\nelse:\n    while (b):\n        g()\n"},
		{"bytes", "x=b'\\xff'+rb\"\\d\"  # é\ny = 'é'; z = b\"\"\"a\nb\"\"\"\n", "x = b'\\xff' + rb\"\\d\"  # é\ny = \"é\"\nz = b\"\"\"a\nb\"\"\"\n"},
		{"quotes", "x = '''it's''' + '' + 'a\\'b' + 'a\"b'\n", "x = \"\"\"it's\"\"\" + \"\" + 'a\\'b' + 'a\"b'\n"},
		{"what stands for others occurs", "_ = 'for __ in'\nwhile True: _=1\n", "_ = \"for __ in\"\nwhile True:\n    _ = 1\n"},
		{"comments", "# a\n\n\n\n\nx = 1 # b\n", "# a\n\nx = 1  # b\n"},
		{"other line ends", "x=1\r\ny=2\r\n", "x = 1\ny = 2\n"},
		{"comprehension, lambda, set", "x = {k:v for k,v in y if k}\nf=lambda a,*b,**c:a\n", "x = {k: v for k, v in y if k}\nf = lambda a, *b, **c: a\n"},
		{"empty", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := format.Source("a.star", []byte(test.src))
			if err != nil || string(got) != test.want {
				t.Fatalf("got\n%s\nand %v, want\n%s", got, err, test.want)
			}
			again, err := format.Source("a.star", got)
			if err != nil || !bytes.Equal(again, got) {
				t.Errorf("formatted again it is\n%s\nand %v", again, err)
			}
		})
	}
}

func TestSyntaxError(t *testing.T) {
	_, err := format.Source("a.star", []byte("def f(:\n"))
	if _, ok := err.(syntax.Error); !ok || !strings.HasPrefix(err.Error(), "a.star:1:") {
		t.Errorf("got %T %v, want a syntax error in its first line", err, err)
	}
}

// The files of this repository are formatted as users would format theirs.
func TestOwnFiles(t *testing.T) {
	files, err := filepath.Glob("../examples/*.star")
	if err != nil || len(files) == 0 {
		t.Fatal("there are no examples", err)
	}
	for _, file := range files {
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := format.Source(file, src); err != nil || !bytes.Equal(got, src) {
			t.Errorf("%s is not formatted (%v); it would be\n%s", file, err, got)
		}
	}
}

// FuzzSource looks for a file that formatting breaks: what it makes of one can
// be read and formatted again, and holds the same texts.
func FuzzSource(f *testing.F) {
	for _, src := range []string{"while x:\n  y = b'a'\n", "x = '\xff' + \"a\\\\b\"\n", "load('a.star', 'b', c='d')\nx = [1,\n2]\n", "if a: pass\nelif b: pass\nelse:\n while c: pass\n", "x = \"\"\"a\n  b\"\"\" % (1,)\n", "def f(a, *, b = 1):\n  '''doc'''\n  return not a\n"} {
		f.Add([]byte(src))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		once, err := format.Source("a.star", src)
		if err != nil {
			return
		}
		if _, err := format.Source("a.star", once); err != nil {
			t.Errorf("%q became %q, which cannot be formatted again: %v", src, once, err)
		}
		if before, after := texts(t, src), texts(t, once); !slices.Equal(before, after) {
			t.Errorf("%q became %q: its texts were\n%q and are\n%q", src, once, before, after)
		}
	})
}

// texts are the values of a file's literals, sorted: formatting may sort loads
// and arguments. Docstrings, whose indentation it changes, are left out.
func texts(t *testing.T, src []byte) (all []string) {
	file, err := new(syntax.FileOptions).Parse("a.star", src, 0)
	if err != nil {
		t.Fatal(err)
	}
	syntax.Walk(file, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.ExprStmt:
			_, isText := n.X.(*syntax.Literal)
			return !isText
		case *syntax.LoadStmt:
			return false
		case *syntax.Literal:
			all = append(all, fmt.Sprint(n.Value))
		}
		return true
	})
	slices.Sort(all)
	return all
}
