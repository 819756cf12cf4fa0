package server

import (
	"errors"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines download URLs (protocol.md §2.9): links to one file of a
// sandbox that need no credential. A link names a path, not what is there now.
// The answer can do nothing as a page: ServeHTTP gives it no rights.

const (
	downloadPath    = "/dl/"
	defaultDownload = "application/octet-stream"
)

func (s *Server) downloadURL(c call) (int, any, error) {
	var in wire.DownloadURLRequest
	var policy struct { // what only the hosted service can do (protocol.md §16.12)
		Sandbox *bool `json:"csp_sandbox"`
		Flags   []any `json:"csp_sandbox_flags"`
		Sources []any `json:"csp_source_bundles"`
	}
	for _, part := range []any{&in, &policy} {
		if err := decode(c.body, part); err != nil {
			return 0, nil, err
		}
	}
	const fixed = "every file of this server is served from one host, with a Content-Security-Policy that lets it do nothing: leave it out"
	if err := refuse(
		refusal{"csp_sandbox", policy.Sandbox != nil, fixed},
		refusal{"csp_sandbox_flags", len(policy.Flags) > 0, fixed},
		refusal{"csp_source_bundles", len(policy.Sources) > 0, fixed},
	); err != nil {
		return 0, nil, err
	}
	if in.Path == "" || strings.Contains(in.Path, "\x00") {
		return 0, nil, invalid("body.path", "want the path of a file in the sandbox")
	}
	if e := in.ExpiresInSeconds; e != nil && (*e < 1 || *e > maxTTL) {
		return 0, nil, invalid("body.expires_in_seconds", "want an integer from 1 to %d", maxTTL)
	}
	if _, _, err := mime.ParseMediaType(in.ContentType); in.ContentType != "" && (err != nil || strings.ContainsAny(in.ContentType, "\r\n")) {
		return 0, nil, invalid("body.content_type", "the content type %q is not one", in.ContentType)
	}
	switch in.ContentDisposition {
	case "", "attachment", "inline":
	default:
		return 0, nil, invalid("body.content_disposition", "want attachment or inline")
	}
	b, err := s.findBox(c.name)
	if err != nil {
		return 0, nil, err
	}
	token := claims{Audience: forDownload, Box: b.Box.ID, Path: in.Path, ContentType: in.ContentType, Disposition: in.ContentDisposition}
	var answer wire.DownloadURL
	if in.ExpiresInSeconds != nil {
		at := s.expire(&token, *in.ExpiresInSeconds)
		answer.ExpiresAt = &at
	}
	if answer.Token, err = s.sign(c.Context(), token); err != nil {
		return 0, nil, err
	}
	// The name is for those who save it; the token is not in the path because the
	// log shows paths.
	answer.DownloadURL = s.baseURL(c.Request) + downloadPath + url.PathEscape(path.Base(in.Path)) + "?token=" + answer.Token
	return http.StatusOK, answer, nil
}

// serveDownload answers a link. Any page may lead to it.
func (s *Server) serveDownload(w *recorder, r *http.Request) error {
	if err := s.guardHost(r); err != nil {
		return err
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		f := fail(http.StatusMethodNotAllowed, kindMethod, "%s is not possible here, only GET, HEAD", r.Method)
		f.allow = "GET, HEAD"
		return f
	}
	c, err := s.verify(r.Context(), r.URL.Query().Get("token"), forDownload)
	switch {
	case errors.Is(err, errToken):
		return fail(http.StatusForbidden, kindForbidden, "the link is not one of this server, or was changed")
	case errors.Is(err, errExpired):
		return fail(http.StatusUnauthorized, kindUnauthorized, "the link has expired: ask for a new one")
	case err != nil:
		return err
	}
	target := &url.URL{Scheme: "http", Host: "sandbox", Path: "/download", RawQuery: url.Values{"path": {c.Path}}.Encode()}
	return s.with(r, c.Box, func(r *http.Request, h *handle) error {
		return s.forward(w, r, target, h, c.Box, func(res *http.Response) { c.dress(res) })
	})
}

// dress gives the answer with a file the headers of its link.
func (c *claims) dress(res *http.Response) {
	res.Header.Del("Content-Disposition")
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusPartialContent {
		return
	}
	kind := c.ContentType
	if kind == "" {
		kind = defaultDownload
	}
	res.Header.Set("Content-Type", kind)
	switch c.Disposition {
	case "inline":
		res.Header.Set("Content-Disposition", "inline")
	case "attachment":
		res.Header.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": path.Base(c.Path)}))
	}
}
