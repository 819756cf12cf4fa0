package server

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// TestPeekSeesEveryChange writes records, perhaps with the size and the number of
// the file before, and looks at them after each.
func TestPeekSeesEveryChange(t *testing.T) {
	st, err := openStore(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer st.close()
	look := func(want string) {
		t.Helper()
		for range 2 { // read, and remembered
			got, err := st.templates.peek("id")
			if want == "" {
				if !errors.Is(err, fs.ErrNotExist) {
					t.Fatalf("got %v, %v, want none", got, err)
				}
				continue
			}
			if err != nil || got.Name != want {
				t.Fatalf("got %+v, %v, want %s", got, err, want)
			}
		}
	}
	look("")
	for _, name := range []string{"a", "b", "c", "longer", "d", "e"} {
		if err := st.templates.put("id", &wire.Template{ID: "id", Name: name}); err != nil {
			t.Fatal(err)
		}
		look(name)
		old := time.Now().Add(-time.Hour)
		if err := os.Chtimes(filepath.Join(st.templates.dir, "id.json"), old, old); err != nil {
			t.Fatal(err)
		}
		look(name) // remembered from here on
		if shared, _ := st.templates.peek("id"); shared != mustPeek(t, st) {
			t.Fatal("a record that has not changed was read again")
		}
	}
	if err := st.templates.remove("id"); err != nil {
		t.Fatal(err)
	}
	look("")
	if len(st.templates.seen.records) != 0 {
		t.Errorf("%d records are remembered of none", len(st.templates.seen.records))
	}
}

func mustPeek(t *testing.T, st *store) *wire.Template {
	t.Helper()
	record, err := st.templates.peek("id")
	if err != nil {
		t.Fatal(err)
	}
	return record
}
