package client

import (
	"context"
	"fmt"
	"net/http"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the search through a sandbox's files (protocol.md §16.5).

// Glob finds the files and folders below the folder at path, which is absolute,
// whose paths relative to it match the pattern: ** is any number of folders, and
// *, ? and […] are within one name. A limit of 0 is the server's own. A result
// that is truncated is incomplete. ErrNotFound is about path, and ErrOperation
// that the server cannot search.
func (s *Sandbox) Glob(ctx context.Context, pattern, path string, limit int) (*wire.GlobResult, error) {
	most, err := validateSearch(pattern, path, limit)
	if err != nil {
		return nil, err
	}
	result, err := search[wire.GlobResult](ctx, s, "glob", path, wire.GlobRequest{Pattern: pattern, Path: path, Limit: most})
	if err == nil && result.Matches == nil {
		result.Matches = []wire.GlobMatch{}
	}
	return result, err
}

// Ls is what the folder at path holds itself: Glob with the pattern *.
func (s *Sandbox) Ls(ctx context.Context, path string, limit int) (*wire.GlobResult, error) {
	return s.Glob(ctx, "*", path, limit)
}

// Grep finds the lines that contain the pattern, which is literal text, in the
// files below path, or those of them that match glob if it is not empty: without
// a slash it is about the file's name, with one about its path. All else is as
// with Glob.
func (s *Sandbox) Grep(ctx context.Context, pattern, path, glob string, limit int) (*wire.GrepResult, error) {
	most, err := validateSearch(pattern, path, limit)
	if err != nil {
		return nil, err
	}
	result, err := search[wire.GrepResult](ctx, s, "grep", path, wire.GrepRequest{Pattern: pattern, Path: path, Glob: glob, Limit: most})
	if err == nil && result.Matches == nil {
		result.Matches = []wire.GrepMatch{}
	}
	return result, err
}

func validateSearch(pattern, path string, limit int) (most *int, err error) {
	switch {
	case pattern == "":
		return nil, argumentError("the pattern to search for is empty")
	case limit < 0:
		return nil, argumentError("the limit of a search is %d, and must be 0, which is the server's own, or positive", limit)
	case limit > 0:
		most = &limit
	}
	return most, validatePath(path)
}

// search asks for the matches below path.
func search[T any](ctx context.Context, s *Sandbox, operation, path string, body any) (*T, error) {
	return send[T](ctx, s.client, call{method: http.MethodPost, path: s.dataplane(operation, false), body: body, timeout: fileTimeout, errors: func(e *Error, p wire.Problem) {
		mapDataplane(e, p)
		switch {
		case p.Type == "NotImplemented", e.Status == http.StatusMethodNotAllowed, e.Status == http.StatusNotImplemented:
			e.Kind, e.ResourceType, e.Operation = ErrOperation, "", ""
			e.Message = "this server cannot search: it has no /" + operation
		case e.Status == http.StatusNotFound:
			e.Kind, e.ResourceType, e.Operation = ErrNotFound, "file", ""
			e.Message = fmt.Sprintf("sandbox %s has no %s", s.Name, path)
			if p.Type != wire.ErrFileNotFound {
				e.Message += ", or its server cannot search"
			}
		}
	}})
}
