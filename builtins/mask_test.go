package builtins

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/sbx-star/sbx-star/event"
)

// This file tests that no secret gets through, however output is cut.

// A stream in pieces is masked as it is in one, and nothing of it is lost.
func TestMaskedStream(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m Mask
		secrets := rapid.SliceOfN(rapid.StringMatching(`[ab\n]{4,10}`), 1, 3).Draw(t, "secrets")
		for _, s := range secrets {
			m.Add(s)
		}
		pieces := rapid.SliceOf(rapid.OneOf(rapid.StringMatching(`[abc\n]{0,6}`), rapid.SampledFrom(secrets))).Draw(t, "pieces")
		var out strings.Builder
		w := &maskedWriter{mask: &m, to: &out}
		for _, piece := range pieces {
			if n, err := w.Write([]byte(piece)); n != len(piece) || err != nil {
				t.Fatal(n, err)
			}
		}
		if err := w.flush(); err != nil {
			t.Fatal(err)
		}
		if want := m.Text(strings.Join(pieces, "")); out.String() != want {
			t.Fatalf("got %q, want %q", out.String(), want)
		}
		for _, s := range secrets {
			if strings.Contains(out.String(), s) {
				t.Fatalf("%q shows in %q", s, out.String())
			}
		}
	})
}

func TestMaskKeepsTheRest(t *testing.T) {
	var m Mask
	m.Add("secret-1")
	m.Add("cret-1more")
	for text, want := range map[string]string{
		"":                            "",
		"nothing":                     "nothing",
		"a secret-1 b":                "a *** b",
		"secret-1secret-1":            "******",
		"secret-1more":                "***",
		"secret-":                     "secret-",
		"Basic dXNlcjpzZWNyZXQtMQ==":  "Basic dXNlcjp***Q==",
		"7365637265742d31 and 737365": "*** and 737365",
	} {
		if got := m.Text(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestMaskedEvents(t *testing.T) {
	var m Mask
	var got event.Log
	sink := m.sink(func(e event.Event) { got = e.(event.Log) })
	e := event.Log{Text: "my secret", Fields: []event.Field{{Name: "k", Value: "secret"}}}
	sink(e)
	if got.Text != "my secret" {
		t.Error(got)
	}
	m.Add("secret")
	sink(e)
	if got.Text != "my ***" || got.Fields[0].Value != "***" {
		t.Errorf("got %+v", got)
	}
	if e.Fields[0].Value != "secret" {
		t.Error("the event itself was changed")
	}
}
