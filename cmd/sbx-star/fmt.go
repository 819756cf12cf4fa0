package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/pflag"

	"github.com/sbx-star/sbx-star/format"
	"github.com/sbx-star/sbx-star/workflow"
)

// This file defines sbx-star fmt: workflows laid out as buildifier does.

const fmtUsage = `Usage:
  sbx-star fmt [flags] [PATH…]   format workflows in place, as buildifier does
  sbx-star fmt [flags] -         format standard input to standard output

PATH is a file, or a folder whose *.star are formatted; without one it is the
working directory. The names of the files that changed are printed.

Flags:
`

func formatFiles(args []string, stdin io.Reader, stdout io.Writer) error {
	flags := pflag.NewFlagSet("sbx-star fmt", pflag.ContinueOnError)
	onlyCheck := flags.Bool("check", false, "change nothing, name the files that would change, and exit with 1 if there are any")
	onlyDiff := flags.Bool("diff", false, "change nothing, print what would change, and exit with 1 if anything would")
	if err := parse(flags, args, fmtUsage, stdout); err != nil {
		return ignoreHelp(err)
	}
	if flags.NArg() == 1 && flags.Arg(0) == "-" {
		src, err := io.ReadAll(stdin)
		if err != nil {
			return fmt.Errorf("reading standard input: %w", err)
		}
		out, err := format.Source("<stdin>", src)
		switch {
		case err != nil:
			return &workflow.LoadError{Err: err}
		case (*onlyCheck || *onlyDiff) && !bytes.Equal(src, out):
			show(stdout, "<stdin>", src, out, *onlyDiff)
			return silent(workflow.ExitFailed)
		case *onlyCheck || *onlyDiff:
			return nil
		}
		_, err = stdout.Write(out)
		return err
	}
	files, err := findFiles(flags.Args(), ".star")
	if err == nil {
		err = foundNone(files, flags.Args())
	}
	if err != nil {
		return err
	}
	var errs []error
	differing := false
	for _, file := range files {
		src, err := os.ReadFile(file)
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot format: %w", err))
			continue
		}
		out, err := format.Source(file, src)
		switch {
		case err != nil:
			errs = append(errs, &workflow.LoadError{Err: err})
		case bytes.Equal(src, out):
		case *onlyCheck || *onlyDiff:
			differing = true
			show(stdout, file, src, out, *onlyDiff)
		default:
			if err := replaceFile(file, out); err != nil {
				errs = append(errs, fmt.Errorf("cannot write what was formatted: %w", err))
				continue
			}
			fmt.Fprintln(stdout, file)
		}
	}
	if len(errs) == 0 && differing {
		return silent(workflow.ExitFailed)
	}
	return errors.Join(errs...)
}

// show says how a file would change, or only that it would.
func show(w io.Writer, name string, src, out []byte, asDiff bool) {
	if asDiff {
		w.Write(diff.Diff(name, src, name+" (formatted)", out))
	} else {
		fmt.Fprintln(w, name)
	}
}

// replaceFile writes a file anew: whoever reads it finds the old text or the
// new one, also if the disk is full. What is linked to is replaced, not the link.
func replaceFile(name string, text []byte) error {
	name, err := filepath.EvalSymlinks(name)
	if err != nil {
		return err
	}
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(info.Mode().Perm()&fs.ModePerm), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
