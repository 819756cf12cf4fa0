// Package stdlib holds the standard library of workflows: modules in Starlark,
// which load("@std//NAME.star", …) finds here. Their tests lie beside them, and
// sbx-star test runs them.
package stdlib

import "embed"

// FS are the modules, by the name that stands behind "@std//".
//
//go:embed compose.star git.star go.star matrix.star node.star project.star python.star services.star wait.star
var FS embed.FS
