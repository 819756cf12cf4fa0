package server_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// taken is a body whose last byte has been read when it is taken away.
type taken struct{ *strings.Reader }

func (b taken) Read(p []byte) (int, error) {
	if b.Len() == 0 {
		return 0, http.ErrBodyReadAfterClose
	}
	return b.Reader.Read(p)
}

func (taken) Close() error { return nil }

// A request's body may go as soon as it was read, and the answer still comes.
func TestBodyTakenAway(t *testing.T) {
	port := app(t)
	h := &host{daemon: http.HandlerFunc(inside)}
	f := serve(t, h, nil)
	a := f.do("POST", "/boxes", `{"name":"b"}`)
	a.want(t, 201)
	var box wire.Box
	a.decode(t, &box)
	link := f.link("b", fmt.Sprintf(`{"port":%d}`, port))
	for _, path := range []string{link.ServiceURL + "/", box.DataplaneURL + "/execute"} {
		r := httptest.NewRequest("POST", path, nil)
		r.Body, r.ContentLength = taken{strings.NewReader("text")}, 4
		r.Header.Set(tokenHeader, link.Token)
		r.Header.Set("X-Api-Key", f.key)
		w := httptest.NewRecorder()
		done := make(chan struct{})
		go func() { defer close(done); f.server.ServeHTTP(w, r) }()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatal("no answer")
		}
		if w.Code != 200 || !strings.Contains(w.Body.String(), "text") {
			t.Errorf("%s: got %d %s", path, w.Code, w.Body)
		}
	}
}
