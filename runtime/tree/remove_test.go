//go:build linux

package tree_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"github.com/sbx-star/sbx-star/runtime/tree"
)

// TestRemove deletes random trees.
func TestRemove(t *testing.T) {
	base := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(base, "tree")
		if err != nil {
			t.Fatal(err)
		}
		at := dir
		for i, step := range rapid.SliceOfN(rapid.IntRange(0, 6), 0, 150).Draw(t, "steps") {
			name := filepath.Join(at, fmt.Sprint(i))
			switch step {
			case 0:
				err = os.WriteFile(name, nil, 0)
			case 1:
				err = os.Symlink("/", name)
			case 2:
				err = os.Mkdir(name, 0)
			case 3:
				err = os.Mkdir(filepath.Join(dir, ".deep-1"), 0o755)
				if errors.Is(err, os.ErrExist) {
					err = os.WriteFile(filepath.Join(dir, ".deep-1", fmt.Sprint(i)), nil, 0o644)
				}
			default:
				err = os.Mkdir(name, 0o755)
				at = name
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := tree.Remove(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadDir(base); err != nil || len(left) > 0 {
			t.Fatalf("left: %v, %v", left, err)
		}
	})
	if err := tree.Remove(t.Context(), filepath.Join(base, "none")); err != nil {
		t.Error(err)
	}
}
