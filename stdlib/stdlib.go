// Package stdlib holds the standard library of workflows: modules in Starlark,
// which load("@std//NAME.star", …) finds here.
package stdlib

import "embed"

// FS are the modules, by the name that stands behind "@std//".
//
//go:embed *.star
var FS embed.FS
