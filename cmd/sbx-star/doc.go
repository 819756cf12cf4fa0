package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/sbx-star/sbx-star/builtins"
	"github.com/sbx-star/sbx-star/workflow"
)

// This file defines sbx-star doc: the reference of all that a workflow can name.

// doc prints the whole reference, or what it says of each name and its members.
func doc(names []string, stdout io.Writer) error {
	reference := builtins.Reference()
	if len(names) == 0 {
		fmt.Fprint(stdout, reference)
		return nil
	}
	for _, name := range names {
		found := false
		for _, section := range strings.Split(strings.ReplaceAll(reference, "\n### ", "\n## "), "\n## ")[1:] {
			heading, text, _ := strings.Cut(section, "\n")
			if heading == name || heading == "the value "+name || strings.HasPrefix(heading, name+".") {
				found = true
				fmt.Fprintf(stdout, "## %s\n%s", heading, text)
			}
		}
		if !found {
			return &workflow.UsageError{Message: fmt.Sprintf("there is no documentation of %q", name), Hint: "sbx-star doc lists everything that a workflow can name"}
		}
	}
	return nil
}
