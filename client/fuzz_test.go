package client

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// This file fuzzes how names go into URLs, and the waits that servers ask for.

// A name stands in a path as one segment, from which it can be read again.
func FuzzEscape(f *testing.F) {
	for _, s := range []string{"a/b c", "..", "%2F", "é", "a+b", "a?b#c", "\x00", "~", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		escaped := escape(name)
		if strings.ContainsAny(escaped, "/?#+ \x00") {
			t.Errorf("%q becomes %q", name, escaped)
		}
		u, err := url.Parse("http://h/boxes/" + escaped + "/stop")
		if err != nil || u.Path != "/boxes/"+name+"/stop" || u.EscapedPath() != "/boxes/"+escaped+"/stop" {
			t.Errorf("%q is sent as %v, %v", name, u, err)
		}
	})
}

// A wait is never negative, unless there is none.
func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"2", "0.5", "-1", "1e300", "NaN", "Inf", "-Inf", "Wed, 21 Oct 2015 07:28:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if d := retryAfter(http.Header{"Retry-After": {value}}); d < 0 && d != -1 {
			t.Errorf("%q is %s", value, d)
		}
	})
}
