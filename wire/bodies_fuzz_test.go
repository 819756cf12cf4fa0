package wire

import (
	"bytes"
	"encoding/json"
	"net/url"
	"path"
	"strings"
	"testing"
)

// This file fuzzes the decoders of JSON bodies, of errors, and of names.

// bodies makes an empty one of each kind of body.
var bodies = []func() any{
	func() any { return new(BoxCreate) }, func() any { return new(BoxUpdate) }, func() any { return new(Box) },
	func() any { return new(BoxList) }, func() any { return new(BoxStatus) }, func() any { return new(ServiceURLRequest) },
	func() any { return new(ServiceURL) }, func() any { return new(DownloadURLRequest) }, func() any { return new(DownloadURL) },
	func() any { return new(ProxyConfig) }, func() any { return new(MountConfig) }, func() any { return new(ExecRequest) },
	func() any { return new(ExecResponse) }, func() any { return new(Uploaded) }, func() any { return new(GlobRequest) },
	func() any { return new(GlobResult) }, func() any { return new(GrepRequest) }, func() any { return new(GrepResult) },
	func() any { return new(Info) }, func() any { return new(VolumeCreate) }, func() any { return new(VolumeUpdate) },
	func() any { return new(Volume) }, func() any { return new(TemplateCreate) }, func() any { return new(Template) },
	func() any { return new(PoolCreate) }, func() any { return new(PoolUpdate) }, func() any { return new(Pool) },
	func() any { return new(SnapshotCreate) }, func() any { return new(SnapshotCapture) }, func() any { return new(Snapshot) },
	func() any { return new(SnapshotList) }, func() any { return new(RegistryCreate) }, func() any { return new(Registry) },
}

// What was read of a body is read again of what is written of it.
func FuzzBodies(f *testing.F) {
	for i, make := range bodies {
		text, err := json.Marshal(make())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), text)
	}
	f.Add(uint8(0), []byte(`{"name":"b","timeout":30,"wait_for_ready":true,"labels":{"a":"b"},"run_config":{"user":"0","env_vars":{"A":"1"}},"lease":{"id":"x","ttl_seconds":60}}`))
	f.Add(uint8(11), []byte(`{"command":["a","b"],"timeout":1,"timeout_seconds":2,"env":{}}`))
	f.Add(uint8(15), []byte(`{"matches":[{"path":"/a","is_dir":true,"size_bytes":1,"modified_at":"2026-01-01T00:00:00Z"}],"truncated":true}`))
	f.Fuzz(func(t *testing.T, kind uint8, data []byte) {
		make := bodies[int(kind)%len(bodies)]
		first := make()
		if json.Unmarshal(data, first) != nil {
			return
		}
		text, err := json.Marshal(first)
		if err != nil {
			t.Fatalf("%q is read and cannot be written: %v", data, err)
		}
		second := make()
		if err := json.Unmarshal(text, second); err != nil {
			t.Fatalf("%s cannot be read again: %v", text, err)
		}
		if again, err := json.Marshal(second); err != nil || !bytes.Equal(again, text) {
			t.Errorf("%s becomes %s, %v", text, again, err)
		}
	})
}

// Every error has a text, whatever its body is.
func FuzzProblem(f *testing.F) {
	for _, s := range []string{`{"detail":{"error":"E","message":"m","error_id":"i"}}`, `{"detail":[{"loc":["body",1],"msg":"m","type":"t"}]}`, `{"detail":"m"}`, `{"title":"t"}`, `<html>`, ``} {
		f.Add(422, []byte(s))
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		p := DecodeProblem(status, body)
		if p.Message == "" {
			t.Errorf("%d %q has no message: %+v", status, body, p)
		}
		p.Field()
	})
}

// A valid name is a segment of a path as it stands, or several of a snapshot's.
func FuzzNames(f *testing.F) {
	for _, s := range []string{"a", "web-1", "..", "a/b", "a/../b", "a%2fb", "A", "a_b.c", "é", "a\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		var segments []string
		if ValidName(name) {
			segments = append(segments, name)
		}
		if ValidSnapshotName(name) {
			segments = append(segments, strings.Split(name, "/")...)
		}
		for _, s := range segments {
			if url.PathEscape(s) != s || url.QueryEscape(s) != s || path.Clean("/a/"+s) != "/a/"+s || strings.ContainsAny(s, ":/\\\x00") {
				t.Errorf("%q has the segment %q, which is no plain one", name, s)
			}
		}
	})
}
