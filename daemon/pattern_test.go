package daemon

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestPattern(t *testing.T) {
	for _, tt := range []struct {
		pattern  string
		yes, not string // paths, with spaces between
	}{
		{"*", "a .hidden a.b é \xff", "a/b"},
		{"*.py", "a.py .py a.b.py", "a.pyc py d/a.py"},
		{"a*b*c", "abc abbcc aXbYc abcbc", "ab acb abcd"},
		{"?", "a é . \xff", "ab"},
		{"a?c", "abc aéc", "ac abbc"},
		{"[abc]", "a b c", "d ab"},
		{"[a-c0-9]x", "ax bx 5x", "dx x"},
		{"[!a-c]", "d é ]", "a b"},
		{"[^a-c]", "d", "a"},
		{"[]a]", "] a", "b"},
		{"[!]a]", "b", "] a"},
		{"[a-]", "a -", "b"},
		{"[\\]]", "]", "\\ a"},
		{"[à-ý]", "é", "e \xe9"},
		{"\\*", "*", "a \\"},
		{"a\\", "a\\", "a"},
		{"**", "a a/b a/b/c", ""},
		{"**/*.go", "a.go d/a.go d/e/a.go", "a d/a.go/x"},
		{"src/**/*.go", "src/a.go src/d/a.go src/d/e/a.go", "a.go x/src/a.go src"},
		{"a/**", "a a/b a/b/c", "b ab"},
		{"a/**/**/b", "a/b a/x/b a/x/y/b", "a b"},
		{"**/a/**/b", "a/b x/a/b a/a/b a/x/a/b x/a/y/b", "a b/a"},
		{"*/b", "a/b", "b a/a/b"},
		{"a**b", "ab axb", "a/b"},
		{"{a,b}", "{a,b}", "a b"},
	} {
		p, err := compilePattern(tt.pattern)
		if err != nil {
			t.Errorf("%s: %v", tt.pattern, err)
			continue
		}
		for want, paths := range map[bool]string{true: tt.yes, false: tt.not} {
			for _, path := range strings.Fields(paths) {
				if got := matchPath(p, path); got != want {
					t.Errorf("%s and %q: got %v", tt.pattern, path, got)
				}
			}
		}
	}
	for pattern, want := range map[string]string{
		"": "is empty", "[": "not closed", "[]": "not closed", "[!]": "not closed", "a/[b": "not closed", "[a/b]": "not closed", "[a\\]": "not closed", "[a-": "not closed",
		"/a": `segment ""`, "a/": `segment ""`, "a//b": `segment ""`, "./a": `segment "."`, "../a": `segment ".."`, strings.Repeat("a", 4097): "longer than 4096",
	} {
		if _, err := compilePattern(pattern); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20s: got %v, want …%s…", pattern, err, want)
		}
	}
}

func matchPath(p pattern, path string) bool {
	at := p.begin()
	for name := range strings.SplitSeq(path, "/") {
		if !p.open(at) {
			return false
		}
		at = p.step(at, name)
	}
	return p.matched(at)
}

// wantMatch is the definition of a pattern of plain segments, * and **.
func wantMatch(p, path []string) bool {
	switch {
	case len(p) == 0:
		return len(path) == 0
	case p[0] == "**":
		return wantMatch(p[1:], path) || len(path) > 0 && wantMatch(p, path[1:])
	}
	return len(path) > 0 && wantSegment(p[0], path[0]) && wantMatch(p[1:], path[1:])
}

func wantSegment(p, name string) bool {
	switch {
	case p == "":
		return name == ""
	case p[0] == '*':
		return wantSegment(p[1:], name) || name != "" && wantSegment(p, name[1:])
	}
	return name != "" && (p[0] == '?' || p[0] == name[0]) && wantSegment(p[1:], name[1:])
}

func TestPatternIsItsDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		segments := rapid.SliceOfN(rapid.OneOf(rapid.Just("**"), rapid.StringMatching(`[ab*?]{1,5}`)), 1, 5).Draw(t, "pattern")
		path := rapid.SliceOfN(rapid.StringMatching(`[ab]{1,5}`), 1, 6).Draw(t, "path")
		p, err := compilePattern(strings.Join(segments, "/"))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := matchPath(p, strings.Join(path, "/")), wantMatch(segments, path); got != want {
			t.Fatalf("%v and %v: got %v, want %v", segments, path, got, want)
		}
	})
}

func FuzzPattern(f *testing.F) {
	for _, seed := range []string{"*", "**/a", "[a-", "[!]]", "\\", "a[\\]]b", "***", "?/[^-]"} {
		f.Add(seed, "a/b")
	}
	f.Fuzz(func(t *testing.T, text, path string) {
		p, err := compilePattern(text)
		if err != nil {
			if strings.ContainsAny(err.Error(), "%") {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		matchPath(p, path)
		// Every text matches itself where nothing in it has a meaning.
		quoted := strings.NewReplacer("*", "\\*", "?", "\\?", "[", "\\[", "\\", "\\\\").Replace(text)
		if q, err := compilePattern(quoted); err == nil && !matchPath(q, text) {
			t.Errorf("%q does not match %q", quoted, text)
		}
	})
}
