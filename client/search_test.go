package client

import (
	"context"
	"testing"

	"github.com/sbx-star/sbx-star/wire"
)

// This file tests the search through files.

func TestSearches(t *testing.T) {
	box := func(c *Client) *Sandbox { return boxAt(c, c.base.Scheme+"://"+c.base.Host+"/sb-1") }
	for _, x := range []struct {
		what, answer, want string
		do                 func(c *Client) (any, error)
		result             any
	}{
		{"glob", `{"matches":[{"path":"/w/a","is_dir":false,"size_bytes":3,"modified_at":"then"},{"path":"/w/b","is_dir":true}],"truncated":true}`, `POST /sb-1/glob {"pattern":"**/*.go","path":"/w","limit":2}`, func(c *Client) (any, error) {
			return box(c).Glob(t.Context(), "**/*.go", "/w", 2)
		}, &wire.GlobResult{Matches: []wire.GlobMatch{{Path: "/w/a", SizeBytes: 3, ModifiedAt: "then"}, {Path: "/w/b", IsDir: true}}, Truncated: true}},
		{"ls", `{}`, `POST /sb-1/glob {"pattern":"*","path":"/w"}`, func(c *Client) (any, error) {
			return box(c).Ls(t.Context(), "/w", 0)
		}, &wire.GlobResult{Matches: []wire.GlobMatch{}}},
		{"grep", `{"matches":[{"path":"/w/a","line":7,"text":"a*"}]}`, `POST /sb-1/grep {"pattern":"a*","path":"/w","glob":"*.py","limit":1}`, func(c *Client) (any, error) {
			return box(c).Grep(t.Context(), "a*", "/w", "*.py", 1)
		}, &wire.GrepResult{Matches: []wire.GrepMatch{{Path: "/w/a", Line: 7, Text: "a*"}}}},
		{"grep everywhere", `{"matches":null}`, `POST /sb-1/grep {"pattern":"a","path":"/"}`, func(c *Client) (any, error) {
			return box(c).Grep(t.Context(), "a", "/", "", 0)
		}, &wire.GrepResult{Matches: []wire.GrepMatch{}}},
	} {
		got := wantRequest(t, x.what, x.answer, x.want, x.do)
		wantEqual(t, x.what, got, x.result)
		switch got := got.(type) {
		case *wire.GlobResult:
			if got.Matches == nil {
				t.Errorf("%s: the matches are nil", x.what)
			}
		case *wire.GrepResult:
			if got.Matches == nil {
				t.Errorf("%s: the matches are nil", x.what)
			}
		}
	}
}

func TestSearchesThatFail(t *testing.T) {
	for operation, do := range map[string]func(*Client, *Sandbox) error{
		"glob": func(_ *Client, b *Sandbox) error { _, err := b.Glob(context.Background(), "*", "/w", 0); return err },
		"grep": func(_ *Client, b *Sandbox) error {
			_, err := b.Grep(context.Background(), "x", "/w", "", 0)
			return err
		},
	} {
		cannot := "this server cannot search: it has no /" + operation
		checkMap(t, operation, do, append([]row{
			{404, form("FileNotFound", "none"), ErrNotFound, Error{ResourceType: "file", ErrorType: "FileNotFound", Message: "sandbox sb-1 has no /w"}},
			{404, `404 page not found`, ErrNotFound, Error{ResourceType: "file", Message: "sandbox sb-1 has no /w, or its server cannot search"}},
			{404, form("NotImplemented", "none"), ErrOperation, Error{ErrorType: "NotImplemented", Message: cannot}},
			{501, form("NotImplemented", "none"), ErrOperation, Error{ErrorType: "NotImplemented", Message: cannot}},
			{405, `{}`, ErrOperation, Error{Message: cannot}},
			{400, form("InvalidRequest", "path is relative"), ErrClient, Error{ErrorType: "InvalidRequest", Message: "path is relative"}},
		}, dataplane...))
	}
}

func TestSearchesThatAreRefused(t *testing.T) {
	c, s := serve(t, answer{200, `{}`, nil})
	b := boxAt(c, s.url)
	for _, x := range []struct {
		pattern, path string
		limit         int
	}{{"", "/", 0}, {"*", "", 0}, {"*", "/a\x00", 0}, {"*", "/", -1}} {
		got, err := b.Glob(t.Context(), x.pattern, x.path, x.limit)
		wantKind(t, err, ErrValidation)
		found, err := b.Grep(t.Context(), x.pattern, x.path, "", x.limit)
		wantKind(t, err, ErrValidation)
		if got != nil || found != nil {
			t.Errorf("%+v: got %v, %v", x, got, found)
		}
	}
	wantEqual(t, "requests", len(s.asked()), 0)
}
