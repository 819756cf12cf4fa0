package builtins

import (
	"errors"
	"os"
	"os/exec"
	"unsafe"

	"golang.org/x/sys/windows"
)

// This file defines how a command on this machine and all that it starts are
// ended: they are a job.

// processGroup is a command and what it started.
type processGroup struct {
	cmd *exec.Cmd
	job windows.Handle
}

// startGroup starts a command in a job that ends with its handle. The caller
// waits for it.
func startGroup(cmd *exec.Cmd) (*processGroup, error) {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return nil, err
	}
	g := &processGroup{cmd, job}
	limits := windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION{
		BasicLimitInformation: windows.JOBOBJECT_BASIC_LIMIT_INFORMATION{LimitFlags: windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE},
	}
	if _, err = windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation, uintptr(unsafe.Pointer(&limits)), uint32(unsafe.Sizeof(limits))); err == nil {
		err = cmd.Start()
	}
	if err != nil {
		g.close()
		return nil, err
	}
	var assigned error
	err = cmd.Process.WithHandle(func(process uintptr) { assigned = windows.AssignProcessToJobObject(job, windows.Handle(process)) })
	if err = errors.Join(err, assigned); err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		g.close()
		return nil, err
	}
	return g, nil
}

func (g *processGroup) terminate() { g.kill() } // there is no gentler way
func (g *processGroup) kill()      { windows.TerminateJobObject(g.job, 1) }
func (g *processGroup) close()     { windows.CloseHandle(g.job) }

// wait waits for the command, and then ends what is left of its job.
func (g *processGroup) wait() error {
	err := g.cmd.Wait()
	g.kill()
	return err
}

func exitCode(state *os.ProcessState) int { return state.ExitCode() }
