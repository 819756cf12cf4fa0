package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/sbx-star/sbx-star/workflow"
)

// This file defines which files check, fmt and test are about, and where those of
// the program itself lie.

// findFiles returns the files that the paths name, and those below the folders
// among them whose names end so; with no path, below the working directory.
// Folders whose names begin with a dot are passed over, and links to folders.
func findFiles(paths []string, suffix string) ([]string, error) {
	if len(paths) == 0 {
		paths = []string{"."}
	}
	var files []string
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			var cause *fs.PathError
			if errors.As(err, &cause) {
				err = cause.Err
			}
			return nil, &workflow.UsageError{Message: fmt.Sprintf("cannot look at %s: %v", path, err)}
		}
		if !info.IsDir() {
			files = append(files, path)
			continue
		}
		err = filepath.WalkDir(path, func(file string, entry fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case entry.IsDir() && file != path && strings.HasPrefix(entry.Name(), "."):
				return fs.SkipDir
			case entry.Type().IsRegular() && strings.HasSuffix(entry.Name(), suffix):
				files = append(files, file)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("looking for workflows: %w", err)
		}
	}
	return files, nil
}

// foundNone says so when there was nothing to look at, which is hardly meant.
func foundNone(files, paths []string) error {
	if len(files) > 0 {
		return nil
	}
	where := "here"
	if len(paths) > 0 {
		where = "in " + strings.Join(paths, ", ")
	}
	return &workflow.UsageError{Message: "there is no file that ends in .star " + where}
}

// defaultStateDir is $XDG_STATE_HOME/sbx-star, or what that stands for.
func defaultStateDir() (string, error) {
	base := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(base) { // the specification has relative ones ignored
		home, err := os.UserHomeDir()
		if err != nil {
			return "", errors.New("there is no folder to keep sandboxes in: set HOME or XDG_STATE_HOME")
		}
		base = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(base, "sbx-star"), nil
}
