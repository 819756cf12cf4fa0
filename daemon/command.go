//go:build linux

package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines a running command: how a request becomes a process, how its
// output is read, and when it has ended.

// The terminal of a command that gets one (§6.6).
const (
	terminalRows, terminalCols = 24, 80
	terminalType               = "xterm-256color"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// commandRequest is what both ways of running a command have in common.
type commandRequest struct {
	command   wire.Command
	shell     string
	env       map[string]string
	cwd       string
	runConfig *wire.RunConfig
	pty       bool
	stdin     bool // an open pipe instead of /dev/null
}

// commandSpec is a request that was checked and completed.
type commandSpec struct {
	program string // as the request calls it, for errors
	path    string // the file to execute
	argv    []string
	env     []string
	dir     string
	who     *account
	pty     bool
	stdin   bool
}

// prepare checks a request and completes it from the configuration (§5, §16.3).
func (c *Config) prepare(req commandRequest) (commandSpec, error) {
	spec := commandSpec{pty: req.pty, stdin: req.stdin}
	if req.command.Argv != nil {
		spec.argv = req.command.Argv
	} else if req.command.Line != "" {
		shell := req.shell
		if shell == "" {
			shell = wire.DefaultShell
		}
		spec.argv = []string{shell, "-c", req.command.Line}
	}
	if len(spec.argv) == 0 || spec.argv[0] == "" {
		return spec, refuse(wire.ErrInvalidRequest, "the command is empty: give a string for the shell, or a list that starts with a program")
	}
	spec.program = spec.argv[0]

	extra, dir, name := req.env, req.cwd, c.User
	if rc := req.runConfig; rc != nil {
		if req.env != nil || req.cwd != "" {
			return spec, refuse(wire.ErrInvalidRequest, "run_config excludes env and cwd: give env_vars and work_dir inside it instead")
		}
		if rc.WorkDir != "" && !filepath.IsAbs(rc.WorkDir) {
			return spec, refuse(wire.ErrInvalidRequest, "run_config.work_dir is %q: give an absolute path", rc.WorkDir)
		}
		extra, dir = rc.EnvVars, rc.WorkDir
		if rc.User != "" {
			name = rc.User
		}
	}
	who, err := lookup(name)
	if err != nil {
		return spec, err
	}
	spec.who = who

	env := map[string]string{"PATH": defaultPath, "HOME": c.Home}
	if req.pty {
		env["TERM"] = terminalType
	}
	maps.Copy(env, c.Base)
	if who != nil {
		who.describe(env)
	}
	maps.Copy(env, c.Env)
	maps.Copy(env, extra)
	if err := checkEnv(env); err != nil {
		return spec, err
	}
	for name, value := range env {
		spec.env = append(spec.env, name+"="+value)
	}
	slices.Sort(spec.env)

	switch {
	case dir == "":
		spec.dir = c.WorkDir
	case filepath.IsAbs(dir):
		spec.dir = dir
	default:
		spec.dir = c.Home + "/" + dir
	}
	if strings.Contains(spec.dir, "\x00") || slices.ContainsFunc(spec.argv, func(arg string) bool { return strings.Contains(arg, "\x00") }) {
		return spec, refuse(wire.ErrInvalidRequest, "the command or its directory holds a zero byte")
	}
	if failed := who.do(func() { err = spec.find(env["PATH"]) }); failed != nil {
		err = failed
	}
	return spec, err
}

// find checks the directory and looks up the program, with the rights of the
// command.
func (s *commandSpec) find(path string) error {
	info, err := os.Stat(s.dir)
	if err == nil && !info.IsDir() {
		err = syscall.ENOTDIR
	}
	if err == nil {
		err = unix.Faccessat(unix.AT_FDCWD, s.dir, unix.X_OK, unix.AT_EACCESS)
	}
	if err != nil {
		return refuse(wire.ErrCommand, "cannot start the command: working directory %s: %v", s.dir, cause(err))
	}
	if s.path, err = findProgram(s.program, path, s.dir); err != nil {
		return refuse(wire.ErrCommand, "cannot start the command: %s: %v", s.program, cause(err))
	}
	return nil
}

// findProgram looks a program up as a shell would. A relative path counts from dir.
func findProgram(name, path, dir string) (string, error) {
	if strings.Contains(name, "/") {
		file := name
		if !filepath.IsAbs(file) {
			file = dir + "/" + name
		}
		return name, executable(file)
	}
	for _, folder := range filepath.SplitList(path) {
		if folder == "" {
			folder = "."
		}
		file := folder + "/" + name
		if !filepath.IsAbs(file) {
			file = dir + "/" + file
		}
		if executable(file) == nil {
			return file, nil
		}
	}
	return "", fmt.Errorf("not found in PATH %s", path)
}

func executable(file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return syscall.EISDIR
	}
	return unix.Faccessat(unix.AT_FDCWD, file, unix.X_OK, unix.AT_EACCESS)
}

// command is a started command.
type command struct {
	pid      int
	input    *os.File           // the caller closes it; nil if stdin is /dev/null
	terminal bool               // input is one
	exited   chan struct{}      // closed when the main process has ended
	ended    chan struct{}      // closed when its output has been handed over too
	status   syscall.WaitStatus // valid once ended is closed, as is took
	took     time.Duration      // until the main process had ended
	begun    time.Time
	reason   string      // why it was killed, if it was not by a request; valid once ended is closed
	killed   atomic.Bool // by a request

	d        *daemon
	draining sync.WaitGroup // pumps that have not handed over everything
}

// start executes spec. What it writes comes to stdout and stderr, each called by
// one goroutine; when they do not return, the command is held up. A terminal has
// stdout only.
func (d *daemon) start(spec commandSpec, stdout, stderr func([]byte)) (*command, error) {
	c := &command{terminal: spec.pty, exited: make(chan struct{}), ended: make(chan struct{}), d: d}
	attr := &syscall.ProcAttr{Dir: spec.dir, Env: spec.env, Sys: &syscall.SysProcAttr{Credential: spec.who.credential()}}
	var outputs []*os.File
	var theirs []int // the command's ends
	var err error
	if spec.pty {
		outputs, theirs, err = c.openTerminal(spec.who)
		attr.Sys.Setctty = true // Ctty 0: the child's stdin
	} else {
		outputs, theirs, err = c.openPipes(spec.stdin, spec.who)
	}
	var ended <-chan syscall.WaitStatus
	var kills int64 // before
	if err == nil {
		for _, fd := range theirs {
			attr.Files = append(attr.Files, uintptr(fd))
		}
		c.begun = time.Now()
		kills = d.bounds.kills()
		c.pid, ended, err = d.reaper.start(spec.path, spec.argv, attr)
	}
	slices.Sort(theirs)
	for _, fd := range slices.Compact(theirs) {
		unix.Close(fd)
	}
	if err != nil {
		for _, f := range outputs {
			f.Close()
		}
		if c.input != nil {
			c.input.Close()
		}
		if errors.Is(err, syscall.ENOENT) {
			err = errors.New("the interpreter that its first line names does not exist")
		} else if errors.Is(err, syscall.EAGAIN) {
			err = errors.New("the sandbox has as many processes as it may have at a time")
		}
		return nil, refuse(wire.ErrCommand, "cannot start the command: %s: %v", spec.program, cause(err))
	}

	if d.bounds.Started != nil {
		d.bounds.Started(c.pid)
	}
	for i, f := range outputs {
		c.draining.Add(1)
		sink := [...]func([]byte){stdout, stderr}[i]
		d.work.Go(func() { c.pump(f, sink) })
	}
	d.work.Go(func() {
		c.status = <-ended
		c.took = time.Since(c.begun)
		if c.code() == 128+int(syscall.SIGKILL) && !c.killed.Load() && d.bounds.kills() > kills {
			c.reason = d.bounds.outOfMemory()
		}
		close(c.exited)
		for _, f := range outputs {
			f.SetReadDeadline(past) // wakes its pump
		}
		c.draining.Wait()
		close(c.ended)
	})
	return c, nil
}

// kill ends the whole process group, and reports whether the main process still ran.
func (c *command) kill() bool { return c.signal(syscall.SIGKILL) }

// signal sends a signal to the process group, and reports the same.
func (c *command) signal(sig syscall.Signal) bool {
	if sig == syscall.SIGKILL {
		c.killed.Store(true)
	}
	return c.d.reaper.signal(c.pid, sig)
}

// resize sets the size of the terminal; without one it means nothing.
func (c *command) resize(cols, rows uint16) {
	if !c.terminal {
		return
	}
	if conn, err := c.input.SyscallConn(); err == nil { // else it was closed: the command is over
		conn.Control(func(fd uintptr) {
			unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
		})
	}
}

// code is the exit code, which is 128+n after a signal n (§6.6).
func (c *command) code() int {
	if c.status.Signaled() {
		return 128 + int(c.status.Signal())
	}
	return c.status.ExitStatus()
}

// exit is the last message of a command that ended, with all that exec.v1 says.
func (c *command) exit() *wire.Exit {
	m := &wire.Exit{ExitCode: c.code(), DurationMS: int64((c.took + time.Millisecond - 1) / time.Millisecond), Reason: c.reason}
	if c.status.Signaled() {
		m.Signal = signalName(c.status.Signal())
	}
	return m
}

// signalName names a signal as signalNumber reads it; one without a name is its
// number.
func signalName(sig syscall.Signal) string {
	if name := unix.SignalName(sig); name != "" {
		return strings.TrimPrefix(name, "SIG")
	}
	return strconv.Itoa(int(sig))
}

// signalNumber reads the name of a signal, as in TERM or SIGTERM.
func signalNumber(name string) (syscall.Signal, error) {
	if sig := unix.SignalNum("SIG" + strings.TrimPrefix(name, "SIG")); sig != 0 {
		return sig, nil
	}
	return 0, refuse(wire.ErrInvalidRequest, "there is no signal %q: give a name such as TERM, INT or HUP", name)
}

// openPipes makes the three standard streams. Its results are ours to read and
// the child's 0, 1 and 2.
func (c *command) openPipes(stdin bool, who *account) (outputs []*os.File, theirs []int, err error) {
	open := func(ours int) error { // ours: which end of the pipe is
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return err
		}
		unix.SetNonblock(p[ours], true)
		theirs = append(theirs, p[1-ours])
		f := os.NewFile(uintptr(p[ours]), "pipe")
		if ours == 1 {
			c.input = f
		} else {
			outputs = append(outputs, f)
		}
		return who.give(p[ours])
	}
	if stdin {
		err = open(1)
	} else {
		var fd int
		if fd, err = unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			theirs = append(theirs, fd)
		}
	}
	for range 2 {
		if err == nil {
			err = open(0)
		}
	}
	return outputs, theirs, err
}

// openTerminal makes a terminal, which is all three streams.
func (c *command) openTerminal(who *account) (outputs []*os.File, theirs []int, err error) {
	master, slave, err := pty.Open()
	if err != nil {
		return nil, nil, fmt.Errorf("open a terminal: %w", err)
	}
	defer master.Close()
	defer slave.Close()
	if err := pty.Setsize(slave, &pty.Winsize{Rows: terminalRows, Cols: terminalCols}); err != nil {
		return nil, nil, fmt.Errorf("set the size of the terminal: %w", err)
	}
	if err := who.give(int(slave.Fd())); err != nil {
		return nil, nil, err
	}
	// Two descriptors of its own for each direction, which the poller watches;
	// those of package pty are made blocking.
	var ends [2]*os.File
	for i := range ends {
		fd, err := unix.FcntlInt(master.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return outputs, nil, err
		}
		unix.SetNonblock(fd, true)
		ends[i] = os.NewFile(uintptr(fd), "terminal")
		if i == 0 {
			outputs = ends[:1]
		}
	}
	c.input = ends[1]
	fd, err := unix.FcntlInt(slave.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return outputs, nil, err
	}
	return outputs, []int{fd, fd, fd}, nil
}

const (
	pumpStart = 4 << 10
	pumpMost  = 64 << 10
	// drainMost is more than a pipe or a terminal holds: what comes after it was
	// written after the main process had ended.
	drainMost = 1 << 20
)

// pump hands over what the command writes to f, until every process has closed
// it or the main process has ended and nothing of its own can be left. What
// other processes write after that is thrown away, so that they do not fail.
func (c *command) pump(f *os.File, sink func([]byte)) {
	defer f.Close()
	stop := context.AfterFunc(c.d.halt, func() { f.Close() })
	defer stop()
	buf := make([]byte, pumpStart)
	hungUp := false // as the last read said
	for left := drainMost; left > 0; {
		n, err := read(f, buf, c.exited)
		if n > 0 {
			sink(buf[:n])
		}
		if n == len(buf) && n < pumpMost {
			buf = make([]byte, 4*n)
		}
		if isClosed(c.exited) {
			left -= n
		}
		// The kernel looks for output before it looks whether the terminal is
		// closed: the last of it may have come in between.
		again := err == syscall.EIO && !hungUp
		if hungUp = again; err != nil && !again {
			break
		}
	}
	c.draining.Done()
	buf = make([]byte, pumpStart)
	for {
		if _, err := read(f, buf, nil); err != nil {
			return
		}
	}
}

// read reads from f. Once exited is closed it does not wait for anything to be
// written; a nil channel never is.
func read(f *os.File, buf []byte, exited <-chan struct{}) (n int, err error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = conn.Read(func(fd uintptr) bool {
		for {
			over := isClosed(exited) // asked before reading: what it wrote last may come in between
			n, failed = unix.Read(int(fd), buf)
			if failed != unix.EINTR {
				return failed != unix.EAGAIN || over
			}
		}
	})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		f.SetReadDeadline(time.Time{})
		return 0, nil
	case err != nil:
		return 0, err
	case failed != nil: // EIO: no process has the terminal open any more
		return 0, failed
	case n == 0:
		return 0, errEOF
	}
	return n, nil
}

var errEOF = errors.New("end of file")

// past is a deadline that wakes who waits.
var past = time.Unix(1, 0)

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
