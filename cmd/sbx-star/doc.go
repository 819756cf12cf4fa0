package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/sbx-star/sbx-star/builtins"
	"github.com/sbx-star/sbx-star/workflow"
)

// This file defines sbx-star doc: the reference of all that a workflow can name
// and load.

// doc prints the whole reference, or what it says of each name and its members;
// of a module of the standard library, or of all of them by the name @std.
func doc(names []string, stdout io.Writer) error {
	reference := builtins.Reference()
	if len(names) == 0 {
		fmt.Fprint(stdout, reference)
		return nil
	}
	parts := strings.Split(reference, "\n## @std")
	modules := parts[1:]
	named, _, _ := strings.Cut(parts[0], "\n# The standard library\n")
	named = strings.ReplaceAll(named, "\n### ", "\n## ")
	for _, name := range names {
		found := false
		for i, module := range modules {
			heading, text, _ := strings.Cut(module, "\n")
			if name == "@std" || name == "@std"+heading {
				if found = true; name == "@std" && i > 0 {
					fmt.Fprintln(stdout)
				}
				fmt.Fprintf(stdout, "## @std%s\n%s", heading, text)
			}
		}
		for _, section := range strings.Split(named, "\n## ")[1:] {
			heading, text, _ := strings.Cut(section, "\n")
			if heading == name || heading == "the value "+name || strings.HasPrefix(heading, name+".") {
				found = true
				fmt.Fprintf(stdout, "## %s\n%s", heading, text)
			}
		}
		if !found {
			return &workflow.UsageError{Message: fmt.Sprintf("there is no documentation of %q", name), Hint: "sbx-star doc lists everything that a workflow can name, and sbx-star doc @std the standard library"}
		}
	}
	return nil
}
