package client

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// This file tests what is learned of files without reading them whole.

func TestStat(t *testing.T) {
	full := http.Header{"Content-Length": {"10"}, "ETag": {`"e"`}, "Last-Modified": {"Mon, 02 Jan 2006 15:04:05 GMT"}, "Content-Type": {"text/x"}}
	for what, x := range map[string]struct {
		header http.Header
		want   FileInfo
	}{
		"everything": {full, FileInfo{10, `"e"`, "Mon, 02 Jan 2006 15:04:05 GMT", "text/x"}},
		"nothing":    {http.Header{"Content-Type": nil, "Transfer-Encoding": {"chunked"}}, FileInfo{}},
	} {
		c, s := serve(t, answer{200, "", x.header})
		got, err := boxAt(c, s.url).Stat(t.Context(), "/a b")
		if err != nil {
			t.Fatal(err)
		}
		wantEqual(t, what, *got, x.want)
		wantEqual(t, "request", s.asked()[0].method+" "+s.asked()[0].uri, "HEAD /download?path=%2Fa+b")
	}
	checkMap(t, "stat", func(_ *Client, b *Sandbox) error { _, err := b.Stat(context.Background(), "/f"); return err }, []row{
		{404, ``, ErrNotFound, Error{ResourceType: "file", Message: "sandbox sb-1 has no file /f"}},
		{403, ``, ErrOperation, Error{ErrorType: "PermissionDenied"}},
		{401, ``, ErrAuthentication, Error{}},
		{400, ``, ErrClient, Error{Message: "/f is no file that sandbox sb-1 can read; it may be a folder"}},
		{500, ``, ErrClient, Error{}},
		{503, ``, ErrClient, Error{}},
	})
}

// §16.4, with the vectors of §16.14: the file is 0123456789 with the ETag "e".
func TestReadRange(t *testing.T) {
	at := func(n int64) *int64 { return &n }
	headers := func(contentRange string) http.Header {
		h := http.Header{"ETag": {`"e"`}, "Last-Modified": {"then"}}
		if contentRange != "" {
			h["Content-Range"] = []string{contentRange}
		}
		return h
	}
	for what, x := range map[string]struct {
		ask     Range
		sent    string // Range, If-Range, If-None-Match
		answer  answer
		content string
		start   int64
		total   *int64
		partial bool
		same    bool
	}{
		"middle":            {Range{Start: at(2), End: at(4)}, "bytes=2-4||", answer{206, "234", headers("bytes 2-4/10")}, "234", 2, at(10), true, false},
		"one byte":          {Range{Start: at(0), End: at(0)}, "bytes=0-0||", answer{206, "0", headers("bytes 0-0/10")}, "0", 0, at(10), true, false},
		"past the end":      {Range{Start: at(8), End: at(99)}, "bytes=8-99||", answer{206, "89", headers("bytes 8-9/10")}, "89", 8, at(10), true, false},
		"to the end":        {Range{Start: at(8)}, "bytes=8-||", answer{206, "89", headers("bytes 8-9/10")}, "89", 8, at(10), true, false},
		"suffix":            {Range{Suffix: at(3)}, "bytes=-3||", answer{206, "789", headers("bytes 7-9/10")}, "789", 7, at(10), true, false},
		"of unknown size":   {Range{Start: at(2), End: at(4)}, "bytes=2-4||", answer{206, "234", headers("bytes 2-4/*")}, "234", 2, nil, true, false},
		"no Content-Range":  {Range{Start: at(2), End: at(4)}, "bytes=2-4||", answer{206, "234", headers("")}, "234", 0, nil, true, false},
		"odd Content-Range": {Range{Start: at(2), End: at(4)}, "bytes=2-4||", answer{206, "234", headers("lines 2-4/10")}, "234", 0, nil, true, false},
		"stale":             {Range{Start: at(2), End: at(4), IfRange: `"x"`}, `bytes=2-4|"x"|`, answer{200, "0123456789", headers("")}, "0123456789", 0, at(10), false, false},
		"an empty file":     {Range{Start: at(5)}, `bytes=5-||`, answer{200, "", headers("")}, "", 0, at(0), false, false},
		"unchanged":         {Range{Start: at(0), IfNoneMatch: `"e"`}, `bytes=0-||"e"`, answer{304, "", headers("")}, "", 0, nil, false, true},
		"both, and changed": {Range{Suffix: at(1), IfRange: `"e"`, IfNoneMatch: `"x"`}, `bytes=-1|"e"|"x"`, answer{206, "9", headers("bytes 9-9/10")}, "9", 9, at(10), true, false},
	} {
		c, s := serve(t, x.answer)
		got, err := boxAt(c, s.url).ReadRange(t.Context(), "f", x.ask)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		h := s.asked()[0].header
		wantEqual(t, what+": sent", strings.Join([]string{h.Get("Range"), h.Get("If-Range"), h.Get("If-None-Match")}, "|"), x.sent)
		value := func(n *int64) int64 {
			if n == nil {
				return -1
			}
			return *n
		}
		wantEqual(t, what, []any{string(got.Content), got.Start, value(got.Total), got.Partial, got.Unchanged, got.ETag, got.LastModified},
			[]any{x.content, x.start, value(x.total), x.partial, x.same, `"e"`, "then"})
	}
}

func TestRangesThatAreRefused(t *testing.T) {
	at := func(n int64) *int64 { return &n }
	c, s := serve(t, answer{200, "", nil})
	for what, r := range map[string]Range{
		"nothing": {}, "an end only": {End: at(3)}, "suffix and start": {Suffix: at(1), Start: at(0)}, "suffix and end": {Suffix: at(1), End: at(0)},
		"suffix of 0": {Suffix: at(0)}, "negative suffix": {Suffix: at(-1)}, "negative start": {Start: at(-1)}, "end before start": {Start: at(3), End: at(2)},
	} {
		_, err := boxAt(c, s.url).ReadRange(t.Context(), "f", r)
		if err == nil {
			t.Errorf("%s is accepted", what)
			continue
		}
		wantKind(t, err, ErrValidation)
	}
	for _, path := range []string{"", "a\x00b"} {
		_, err := boxAt(c, s.url).ReadRange(t.Context(), path, Range{Start: at(0)})
		wantKind(t, err, ErrValidation)
		_, err = boxAt(c, s.url).Stat(t.Context(), path)
		wantKind(t, err, ErrValidation)
	}
	wantEqual(t, "requests", len(s.asked()), 0)
}

func TestRangesThatCannotBeRead(t *testing.T) {
	read := func(_ *Client, b *Sandbox) error {
		_, err := b.ReadRange(context.Background(), "f", Range{Start: new(int64(10))})
		return err
	}
	checkMap(t, "range", read, append([]row{
		{404, `{}`, ErrNotFound, Error{ResourceType: "file", Message: "sandbox sb-1 has no file f"}},
		{416, `<html>`, ErrOperation, Error{Operation: "read", Message: "the file f has nothing in the range bytes=10-"}},
		{416, form("ReadError", "no"), ErrOperation, Error{Operation: "read"}},
		{304, ``, ErrClient, Error{}}, // which nobody asked for
	}, dataplane...))

	c, s := serve(t, answer{416, "", http.Header{"Content-Range": {"bytes */10"}}})
	err := read(c, boxAt(c, s.url))
	wantEqual(t, "message", err.Error(), "the file f has nothing in the range bytes=10- (Content-Range: bytes */10)")

	for what, a := range map[string]answer{
		"less than announced in the range": {206, "23", http.Header{"Content-Range": {"bytes 2-4/10"}}},
		"more than announced in the range": {206, "2345", http.Header{"Content-Range": {"bytes 2-4/10"}}},
		"nothing":                          {206, "", http.Header{"Content-Range": {"bytes 2-4/10"}}},
		"less than the length":             {206, "23", http.Header{"Content-Range": {"bytes 2-4/10"}, "Content-Length": {"3"}}},
		"less of the whole file":           {200, "01", http.Header{"Content-Length": {"10"}}},
	} {
		c, s := serve(t, a)
		got, err := boxAt(c, s.url).ReadRange(t.Context(), "f", Range{Start: new(int64(2)), End: new(int64(4))})
		if got != nil {
			t.Errorf("%s: got %+v", what, got)
		}
		wantKind(t, err, ErrConnection)
	}
}

func TestRangesAreReadAgainAfterAFailure(t *testing.T) {
	c, s := serve(t, answer{503, `{}`, nil}, answer{206, "4", http.Header{"Content-Range": {"bytes 4-4/10"}}})
	got, err := boxAt(c, s.url).ReadRange(t.Context(), "f", Range{Start: new(int64(4)), End: new(int64(4))})
	if err != nil || string(got.Content) != "4" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestCancellationEndsARange(t *testing.T) {
	why := errors.New("why")
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Range", "bytes 0-9/10")
		w.WriteHeader(http.StatusPartialContent)
		io.WriteString(w, "012")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	inBubble(t, Options{}, handler, func(t *testing.T, c *Client) {
		start := time.Now()
		if _, err := boxAt(c, pipeURL).ReadRange(after(t, time.Second, why), "f", Range{Start: new(int64(0))}); err != why {
			t.Errorf("got %v", err)
		}
		wantEqual(t, "time", time.Since(start), time.Second)
	})
}

// FuzzContentRange: what is believed of the header is possible.
func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 2-4/10", "bytes 2-4/*", "bytes */10", "bytes 0-9223372036854775807/*", "bytes -1-4/10", "bytes 4-2/10", "bytes 2-10/10", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		first, last, total, ok := contentRange(value)
		if ok && (first < 0 || last < first || last-first+2 <= 0 || total != nil && *total <= last) || !ok && total != nil {
			t.Errorf("%q: got %d-%d of %v", value, first, last, total)
		}
	})
}
