package server

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// This file defines who may send requests: whoever has the key, and never a
// web page that a browser on the same machine happens to show. A page gives
// itself away by its Origin or Sec-Fetch-Site header, and one whose name was
// made to point at this machine by the Host header.

func (s *Server) guard(r *http.Request) error {
	if err := s.guardPages(r); err != nil {
		return err
	}
	if s.options.APIKey == "" {
		if !localAddr(r).IsLoopback() {
			return fail(http.StatusUnauthorized, kindUnauthorized, "this server has no API key and answers local clients only")
		}
		return nil
	}
	if !s.hasKey(r.Header) {
		return fail(http.StatusUnauthorized, kindUnauthorized, "the API key is missing or wrong: send it as X-Api-Key")
	}
	return nil
}

// guardPages keeps out web pages of other origins, whatever credential they
// have.
func (s *Server) guardPages(r *http.Request) error {
	if err := s.guardHost(r); err != nil {
		return err
	}
	if !sameOrigin(r) {
		return fail(http.StatusForbidden, kindForbidden, "requests from web pages of other origins are refused")
	}
	return nil
}

func (s *Server) guardHost(r *http.Request) error {
	host := hostname(r.Host)
	local := localAddr(r)
	if !s.serves(host, local) {
		return fail(http.StatusForbidden, kindForbidden, "this server does not answer to the host %q: use its address, or give the server this name in its public URL", r.Host)
	}
	return nil
}

// serves reports whether a request may be for this host. A connection from
// another machine is let in by the key alone: no page knows it, and the names
// of the server are not known here.
func (s *Server) serves(host string, local netip.Addr) bool {
	if s.publicURL != nil && strings.EqualFold(host, s.publicURL.Hostname()) {
		return true
	}
	if isLocal(host) {
		return true
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr = addr.Unmap(); addr.IsLoopback() || addr == local {
			return true
		}
	}
	return !local.IsLoopback() && s.options.APIKey != ""
}

// localAddr is the address that a request came in on; what did not come over
// the network counts as loopback.
func localAddr(r *http.Request) netip.Addr {
	if tcp, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

func sameOrigin(r *http.Request) bool {
	if crossOrigin(r) {
		return false
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin":
		return true
	}
	return false
}

// hasKey compares in constant time. Of a header sent twice the last counts
// (protocol.md §12).
func (s *Server) hasKey(header http.Header) bool {
	last := func(name string) string {
		values := header.Values(name)
		if len(values) == 0 {
			return ""
		}
		return values[len(values)-1]
	}
	bearer := last("Authorization")
	if scheme, token, ok := strings.Cut(bearer, " "); ok && strings.EqualFold(scheme, "Bearer") {
		bearer = strings.TrimSpace(token)
	} else {
		bearer = ""
	}
	return s.isKey(last("X-Api-Key")) || s.isKey(bearer)
}

func (s *Server) isKey(given string) bool {
	sum := sha256.Sum256([]byte(given))
	return subtle.ConstantTimeCompare(sum[:], s.key[:]) == 1
}

// hostname is a Host header without its port and brackets.
func hostname(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.Trim(host, "[]")
}
