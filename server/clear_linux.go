package server

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/sbx-star/sbx-star/runtime/tree"
)

// This file defines how folders are deleted that sandboxes have written in, and
// how a program ends with those that it has started.

// removeTree deletes a folder that nobody uses, whatever was made of it. Up to
// then nobody else gets at what is in it, such as programs that are setuid.
func removeTree(dir string) error {
	if err := os.Chmod(filepath.Dir(dir), 0o700); err != nil && !os.IsNotExist(err) {
		return err
	}
	return tree.Remove(context.Background(), dir)
}

// ownGroup has a program that is given up end with all that it has started.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
