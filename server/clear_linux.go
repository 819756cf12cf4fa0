package server

import (
	"context"
	"os"
	"path/filepath"

	"github.com/sbx-star/sbx-star/runtime/tree"
)

// This file defines how folders are deleted that sandboxes have written in.

// removeTree deletes a folder that nobody uses, whatever was made of it. Up to
// then nobody else gets at what is in it, such as programs that are setuid.
func removeTree(dir string) error {
	if err := os.Chmod(filepath.Dir(dir), 0o700); err != nil && !os.IsNotExist(err) {
		return err
	}
	return tree.Remove(context.Background(), dir)
}
