//go:build unix

package builtins

import (
	"os"
	"os/exec"
	"sync"
	"syscall"
)

// This file defines how a command on this machine and all that it starts are
// ended: they are a process group.

// processGroup is a command and what it started, as far as that has stayed in
// the group.
type processGroup struct {
	cmd *exec.Cmd

	mu   sync.Mutex
	gone bool // the group's number may be another's
}

// startGroup starts a command as the first of a group. The caller waits for it.
func startGroup(cmd *exec.Cmd) (*processGroup, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return &processGroup{cmd: cmd}, cmd.Start() // the group is only looked at if it started
}

func (g *processGroup) terminate() { g.signal(syscall.SIGTERM) }
func (g *processGroup) kill()      { g.signal(syscall.SIGKILL) }
func (g *processGroup) close()     {}

func (g *processGroup) signal(s syscall.Signal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.gone {
		syscall.Kill(-g.cmd.Process.Pid, s)
	}
}

// wait waits for the command, and then ends what is left of its group. As long
// as the command has not been waited for, nobody else gets the group's number.
func (g *processGroup) wait() error {
	awaitExit(g.cmd.Process.Pid)
	g.kill()
	g.mu.Lock()
	g.gone = true
	g.mu.Unlock()
	return g.cmd.Wait()
}

// exitCode is 128 + n for a command that signal n has ended.
func exitCode(state *os.ProcessState) int {
	if status := state.Sys().(syscall.WaitStatus); status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}
