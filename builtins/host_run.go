package builtins

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/client"
)

// This file defines host.run: a command on this machine.

const (
	hostGrace = 3 * time.Second // for a command to end by itself when it is told to
	hostDrain = time.Second     // for output when all that could be ended has
)

// hostCommand is a string for the shell, or the words of a command.
type hostCommand struct {
	words []string
	shown string // as a shell would take it
}

func (h *hostCommand) Unpack(v starlark.Value) error {
	var line commandLine
	if err := line.Unpack(v); err != nil {
		return err
	}
	h.shown, h.words = string(line), nil
	if _, ok := v.(starlark.String); ok {
		if runtime.GOOS == "windows" {
			h.words = []string{"cmd", "/c", h.shown}
		} else {
			h.words = []string{"/bin/sh", "-c", h.shown}
		}
		return nil
	}
	for word := range starlark.Elements(v.(starlark.Iterable)) {
		h.words = append(h.words, string(word.(starlark.String)))
	}
	return nil
}

func hostRun(c *invocation) (starlark.Value, error) {
	var command hostCommand
	var env stringDict
	var cwd optional[hostFile]
	var timeout seconds
	var check, text bool
	var stdin optional[data]
	var callbacks [2]optional[starlark.Callable]
	if err := c.unpack(&command, &env, &cwd, &timeout, &check, &stdin, &callbacks[0], &callbacks[1], &text); err != nil {
		return nil, err
	}
	if err := c.mayAct(); err != nil {
		return nil, err
	}
	shown := c.Run.Mask(command.shown)
	cmd := exec.Command(command.words[0], command.words[1:]...)
	if cmd.Dir = string(cwd.or("")); cmd.Dir != "" {
		if info, err := os.Stat(cmd.Dir); err != nil || !info.IsDir() {
			return nil, c.argumentError("parameter cwd: there is no folder %s", cmd.Dir)
		}
	}
	if len(env) > 0 {
		cmd.Env = os.Environ()
		for name, value := range env {
			if name == "" || strings.ContainsAny(name+value, "\x00") || strings.Contains(name, "=") {
				return nil, c.argumentError("parameter env: %q cannot be the name or the value of an environment variable", name)
			}
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	if stdin.ptr != nil {
		cmd.Stdin = strings.NewReader(string(*stdin.ptr))
	}
	var result *client.Result
	err := c.within(timeout, func(ctx context.Context) (err error) {
		result, err = runProcess(ctx, cmd, func(stream int, piece string) error {
			if callbacks[stream].ptr == nil {
				return nil
			}
			if text {
				piece = strings.ToValidUTF8(piece, "\ufffd")
			}
			_, err := call(c.Task, *callbacks[stream].ptr, starlark.Tuple{output(piece, text)}, nil)
			return err
		})
		return err
	}, func() error {
		e := &client.Error{Kind: client.ErrCommandTimeout, Operation: "command", Timeout: time.Duration(timeout),
			Message: fmt.Sprintf("the command did not end within %v, and was killed", time.Duration(timeout))}
		if result != nil {
			e.Stdout, e.Stderr = result.Stdout, result.Stderr
		}
		return &CommandError{shown, e, ""}
	})
	var failed *exec.Error
	var path *os.PathError
	if errors.As(err, &failed) || errors.As(err, &path) {
		return nil, c.argumentError("cannot run %s: %w", shorten(shown), err)
	}
	if err != nil {
		return nil, err
	}
	if text {
		result.Stdout, result.Stderr = strings.ToValidUTF8(result.Stdout, "\ufffd"), strings.ToValidUTF8(result.Stderr, "\ufffd")
	}
	return c.Run.finish(result, command.shown, "", text, check)
}

// A hostPiece is what a command has written, or that a stream has ended.
type hostPiece struct {
	stream int
	text   string
}

// runProcess runs a command, its whole process group, and waits for it. Each
// piece of output is given to on, on this goroutine. When the command ends, when
// ctx does or on fails, what is left of the group is ended; a program that has
// left its group is not waited for. What came before an error is returned with it.
func runProcess(ctx context.Context, cmd *exec.Cmd, on func(stream int, piece string) error) (*client.Result, error) {
	var readers, writers [2]*os.File
	defer func() {
		for i := range readers {
			readers[i].Close() // again is harmless, and so is nil
			writers[i].Close()
		}
	}()
	for i := range readers {
		var err error
		if readers[i], writers[i], err = os.Pipe(); err != nil {
			return nil, err
		}
	}
	cmd.Stdout, cmd.Stderr = writers[0], writers[1]
	cmd.WaitDelay = hostDrain // for stdin that nobody reads
	started := time.Now()
	group, err := startGroup(cmd)
	if err != nil {
		return nil, err
	}
	defer group.close()
	defer group.kill() // if a callback panics
	writers[0].Close()
	writers[1].Close()

	pieces, stopped := make(chan hostPiece), make(chan struct{})
	defer close(stopped)
	var reading sync.WaitGroup
	for i := range readers {
		reading.Go(func() { readPieces(i, readers[i], pieces, stopped) })
	}
	ended := make(chan error, 1)
	go func() { ended <- group.wait() }() // received below, on every path
	drained := make(chan struct{})
	go func() { reading.Wait(); close(drained) }()

	var outputs [2]strings.Builder
	var failure, waitErr error
	stop, exited, cancelled := time.NewTimer(0), false, ctx.Done()
	if !stop.Stop() {
		<-stop.C
	}
	end := func(err error) {
		if failure == nil {
			failure, cancelled = err, nil
			group.terminate()
			stop.Reset(hostGrace)
		}
	}
	for done := false; !done; {
		select {
		case piece := <-pieces:
			outputs[piece.stream].WriteString(piece.text)
			if failure == nil {
				if err := on(piece.stream, piece.text); err != nil {
					end(err)
				}
			}
		case <-cancelled:
			end(context.Cause(ctx))
		case waitErr = <-ended:
			exited = true
			ended = nil
			stop.Reset(hostDrain)
		case <-stop.C:
			if !exited {
				group.kill()
				continue
			}
			for _, r := range readers {
				r.Close() // somebody outside of the group has the other end
			}
		case <-drained:
			drained = nil
		}
		done = exited && drained == nil
	}
	stop.Stop()

	result := &client.Result{Stdout: outputs[0].String(), Stderr: outputs[1].String(), Duration: time.Since(started)}
	result.RawStdout, result.RawStderr = result.Stdout, result.Stderr
	if failure != nil {
		return result, failure
	}
	var exit *exec.ExitError
	if waitErr != nil && !errors.As(waitErr, &exit) && !errors.Is(waitErr, exec.ErrWaitDelay) {
		return result, waitErr
	}
	result.ExitCode = exitCode(cmd.ProcessState)
	return result, nil
}

// readPieces hands over what it reads to the end. A character is not cut.
func readPieces(stream int, r io.Reader, to chan<- hostPiece, stopped <-chan struct{}) {
	buffer := make([]byte, 32<<10)
	held := 0
	for {
		n, err := r.Read(buffer[held:])
		n += held
		whole := n
		if err == nil {
			whole = wholeRunes(buffer[:n])
		}
		if whole > 0 {
			select {
			case to <- hostPiece{stream, string(buffer[:whole])}:
			case <-stopped:
				return
			}
		}
		if err != nil {
			return
		}
		held = copy(buffer, buffer[whole:n])
	}
}

// wholeRunes is the length of text without an incomplete character at its end.
func wholeRunes(text []byte) int {
	for i := len(text) - 1; i >= max(0, len(text)-utf8.UTFMax); i-- {
		if utf8.RuneStart(text[i]) {
			if !utf8.FullRune(text[i:]) {
				return i
			}
			break
		}
	}
	return len(text)
}
