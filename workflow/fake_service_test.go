package workflow_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"path"
	"slices"
	"strings"

	"github.com/gorilla/websocket"

	"github.com/sbx-star/sbx-star/tunnel"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines what of the fake server reaches into a sandbox: services,
// links to files, tunnels, and searches.

// serveServices answers for every port with what it was asked; port 81 says
// what is no JSON.
func (f *fake) serveServices(handle func(string, http.HandlerFunc), mux *http.ServeMux) {
	handle("POST /boxes/{name}/service-url", f.box(func(w http.ResponseWriter, r *http.Request, box *wire.Box) {
		var request wire.ServiceURLRequest
		json.NewDecoder(r.Body).Decode(&request)
		if request.Access != "" {
			answer(w, wire.ServiceURL{BrowserURL: f.URL + "/login", Access: request.Access})
			return
		}
		base := fmt.Sprintf("%s/service/%d", f.URL, request.Port)
		answer(w, wire.ServiceURL{ServiceURL: base, BrowserURL: base + "/_svc/auth?token=t", Token: "t", ExpiresAt: "2100-01-01T00:00:00Z"})
	}))
	mux.HandleFunc("/service/{port}/{path...}", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Method", r.Method)
		w.Header().Del("Date")
		if r.PathValue("port") == "81" {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		answer(w, map[string]string{"path": r.URL.RequestURI(), "token": r.Header.Get("X-Langsmith-Sandbox-Service-Token"),
			"a": r.Header.Get("X-A"), "type": r.Header.Get("Content-Type"), "body": string(body)})
	})
	handle("POST /boxes/{name}/download-url", f.box(func(w http.ResponseWriter, r *http.Request, box *wire.Box) {
		answer(w, wire.DownloadURL{DownloadURL: f.URL + "/link", Token: "t"})
	}))
}

// tunnel leads to nothing but port 80, and port 22 is not allowed.
func (f *fake) tunnel(w http.ResponseWriter, r *http.Request) {
	conn, err := new(websocket.Upgrader).Upgrade(w, r, nil)
	if err != nil {
		return
	}
	f.sockets.Add(1)
	defer f.sockets.Done()
	tunnel.Serve(context.Background(), tunnel.WebSocket(conn), func(_ context.Context, port int) (net.Conn, error) {
		near, far := net.Pipe()
		far.Close()
		switch port {
		case 80:
			return near, nil
		case 22:
			return nil, &tunnel.PortNotAllowedError{Port: port}
		}
		return nil, errors.New("nothing listens there")
	}, tunnel.ServeOptions{})
}

func (f *fake) serveSearches(mux *http.ServeMux) {
	below := func(root string) (names []string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, name := range slices.Sorted(maps.Keys(f.files)) {
			if strings.HasPrefix(name, root+"/") {
				names = append(names, name)
			}
		}
		return names
	}
	mux.HandleFunc("POST /data/{name}/glob", func(w http.ResponseWriter, r *http.Request) {
		var request wire.GlobRequest
		json.NewDecoder(r.Body).Decode(&request)
		result := wire.GlobResult{Matches: []wire.GlobMatch{}}
		for _, name := range below(request.Path) {
			if ok, _ := path.Match(request.Path+"/"+request.Pattern, name); ok {
				result.Matches = append(result.Matches, wire.GlobMatch{Path: name, SizeBytes: int64(len(f.files[name]))})
			}
		}
		if request.Limit != nil && len(result.Matches) > *request.Limit {
			result.Matches, result.Truncated = result.Matches[:*request.Limit], true
		}
		answer(w, result)
	})
	mux.HandleFunc("POST /data/{name}/grep", func(w http.ResponseWriter, r *http.Request) {
		var request wire.GrepRequest
		json.NewDecoder(r.Body).Decode(&request)
		var result wire.GrepResult
		for _, name := range below(request.Path) {
			if ok, _ := path.Match(request.Glob, path.Base(name)); !ok && request.Glob != "" {
				continue
			}
			for i, line := range strings.Split(string(f.files[name]), "\n") {
				if strings.Contains(line, request.Pattern) {
					result.Matches = append(result.Matches, wire.GrepMatch{Path: name, Line: i + 1, Text: line})
				}
			}
		}
		answer(w, result)
	})
}
