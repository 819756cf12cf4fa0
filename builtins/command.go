package builtins

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/event"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines how commands are run, and the values that come of it:
// result, command, chunk and line.

// runArgs are the arguments of run.
type runArgs struct {
	command               commandLine
	timeout               seconds
	env                   stringDict
	cwd                   optional[string]
	shell                 string
	onStdout, onStderr    optional[starlark.Callable]
	idleTimeout, ttl      orNever
	killOnDisconnect, pty bool
	wait, check           bool
	stdin                 optional[data]
	text                  bool
	runConfig             runConfig
	commandID             optional[string]
}

func (a *runArgs) options() client.RunOptions {
	o := client.RunOptions{
		Command: string(a.command), Env: a.env, Cwd: a.cwd.or(""), Shell: a.shell,
		Timeout: time.Duration(a.timeout), IdleTimeout: time.Duration(a.idleTimeout), TTL: time.Duration(a.ttl),
		KillOnDisconnect: a.killOnDisconnect, PTY: a.pty, RunConfig: a.runConfig.ptr, CommandID: a.commandID.or(""),
		CloseStdin: a.wait && a.stdin.ptr == nil && !a.pty,
	}
	if len(o.Env) == 0 {
		o.Env = nil
	}
	return o
}

func sandboxRun(c *invocation) (starlark.Value, error) {
	var a runArgs
	if err := c.unpack(&a.command, &a.timeout, &a.env, &a.cwd, &a.shell, &a.onStdout, &a.onStderr, &a.idleTimeout,
		&a.killOnDisconnect, &a.ttl, &a.pty, &a.wait, &a.check, &a.stdin, &a.text, &a.runConfig, &a.commandID); err != nil {
		return nil, err
	}
	callbacks := a.onStdout.ptr != nil || a.onStderr.ptr != nil
	if callbacks && !a.wait {
		return nil, c.argumentError("on_stdout and on_stderr need wait=True; without waiting, iterate over the command")
	}
	if a.runConfig.ptr != nil && (len(a.env) > 0 || a.cwd.or("") != "") {
		return nil, c.argumentError("run_config excludes env and cwd: put them into it as env_vars and work_dir")
	}
	if err := c.mayAct(); err != nil {
		return nil, err
	}
	box := c.self.(*sandboxValue).box.Load()
	told := c.started(box.Name, string(a.command))
	if a.wait && !callbacks && a.stdin.ptr == nil {
		result, err := box.Run(c.Ctx, a.options())
		if err == nil {
			told.output(wire.Stdout, len(result.Stdout))
			told.output(wire.Stderr, len(result.Stderr))
		}
		told.exit(result, err)
		if err != nil {
			return nil, &CommandError{string(a.command), err, box.Name}
		}
		c.Run.warnLost(result.LostStdout, wire.Stdout, string(a.command))
		c.Run.warnLost(result.LostStderr, wire.Stderr, string(a.command))
		return c.Run.finish(result, string(a.command), box.Name, a.text, a.check)
	}
	cmd, err := box.Start(c.Ctx, a.options())
	if err != nil {
		told.exit(nil, err)
		return nil, &CommandError{string(a.command), err, box.Name}
	}
	v := newCommand(c, cmd, told, a.text, a.check)
	if a.stdin.ptr != nil {
		v.feed(c.Ctx, *a.stdin.ptr, a.pty)
	}
	if !a.wait {
		return v, nil
	}
	defer v.close()
	result, err := v.drain(c, &a)
	if err != nil {
		cmd.Abandon() // nobody else will end it
	}
	return result, err
}

// drain reads the output to its end and calls the callbacks with it.
func (v *command) drain(c *invocation, a *runArgs) (starlark.Value, error) {
	for {
		chunk, err := v.next(c.Ctx)
		if err == io.EOF {
			return v.result(c.Ctx, c.strand)
		}
		if err != nil {
			return nil, err
		}
		callback := a.onStdout.ptr
		if chunk.Stream == wire.Stderr {
			callback = a.onStderr.ptr
		}
		if callback != nil {
			if _, err := call(c.Task, *callback, starlark.Tuple{output(chunk.Data, v.text)}, nil); err != nil {
				return nil, err
			}
		}
	}
}

// finish makes a result, or the error that check asks for.
func (r *Run) finish(result *client.Result, command, sandbox string, text, check bool) (starlark.Value, error) {
	if check && result.ExitCode != 0 {
		return nil, &CommandFailedError{r.Mask(command), result, Tail(r.Mask(result.Stderr)), sandbox}
	}
	return newResult(result, text), nil
}

func newResult(r *client.Result, text bool) *record {
	return &record{"result", resultFields{
		Stdout: output(r.Stdout, text), Stderr: output(r.Stderr, text), ExitCode: r.ExitCode, Success: r.ExitCode == 0,
		CommandID: r.CommandID, Duration: starlark.Float(r.Duration.Seconds()),
	}}
}

type resultFields struct {
	Stdout    starlark.Value `json:"stdout"`
	Stderr    starlark.Value `json:"stderr"`
	ExitCode  int            `json:"exit_code"`
	Success   bool           `json:"success"`
	CommandID string         `json:"command_id,omitempty"`
	Duration  starlark.Float `json:"duration"`
}

var streams = [...]string{wire.Stdout, wire.Stderr}

type chunkFields struct {
	Stream string         `json:"stream"`
	Data   starlark.Value `json:"data"`
	Offset int64          `json:"offset"`
}

type lineFields struct {
	Stream string         `json:"stream"`
	Text   starlark.Value `json:"text"`
}

func output(s string, text bool) starlark.Value {
	if text {
		return starlark.String(s)
	}
	return starlark.Bytes(s)
}

// command is a handle on a command. Any task may use it, and one at a time reads
// it; the scope it was made in detaches it, if it has not come to its end before.
type command struct {
	run         *Run
	cmd         *client.Command
	line        string // what runs, for messages
	sandbox     string // where
	told        *execution
	text, check bool
	release     *entry

	feeding chan struct{} // closed when all of stdin was sent, or will not be; nil without stdin
	fed     error         // why it was not; set before feeding is closed

	reading turn              // for what follows, and for what reads in cmd
	partial map[string]string // of each stream the line that has not ended yet
	lines   []lineFields      // that have ended and not been handed out
}

var (
	_ starlark.HasAttrs = (*command)(nil)
	_ starlark.Iterable = (*command)(nil)
)

func newCommand(c *invocation, cmd *client.Command, told *execution, text, check bool) *command {
	v := &command{run: c.Run, cmd: cmd, line: c.Run.Mask(told.command), sandbox: told.sandbox, told: told, text: text, check: check, partial: map[string]string{}}
	v.release = c.push(&entry{kind: "command", quiet: true, early: true, release: func(context.Context) error {
		v.detach()
		return nil
	}})
	return v
}

func (v *command) Type() string                          { return "command" }
func (v *command) Freeze()                               {}
func (v *command) Truth() starlark.Bool                  { return true }
func (v *command) Hash() (uint32, error)                 { return unhashable(v) }
func (v *command) String() string                        { return fmt.Sprintf("command(%q, %q)", v.cmd.ID(), shorten(v.line)) }
func (v *command) Iterate() starlark.Iterator            { return &chunks{v.newReader()} }
func (v *command) AttrNames() []string                   { return commandAttributes.names(nil) }
func (v *command) Attr(n string) (starlark.Value, error) { return commandAttributes.attr(v, nil, n) }

var commandAttributes = attributes[*command]{
	fields: map[string]func(*command) (starlark.Value, error){
		"command_id": func(v *command) (starlark.Value, error) { return starlark.String(v.cmd.ID()), nil },
		"pid": func(v *command) (starlark.Value, error) {
			if pid := v.cmd.PID(); pid != 0 {
				return starlark.MakeInt(pid), nil
			}
			return starlark.None, nil
		},
		"last_stdout_offset": func(v *command) (starlark.Value, error) {
			stdout, _ := v.cmd.Offsets()
			return starlark.MakeInt64(stdout), nil
		},
		"last_stderr_offset": func(v *command) (starlark.Value, error) {
			_, stderr := v.cmd.Offsets()
			return starlark.MakeInt64(stderr), nil
		},
		"result": func(v *command) (starlark.Value, error) { s := v.run.here(); return v.result(s.task.Ctx, s) },
	},
	methods: map[string]*starlark.Builtin{
		"lines":       builtin("Command.lines", commandLines),
		"expect":      builtin("Command.expect", commandExpect),
		"wait":        builtin("Command.wait", commandWait),
		"kill":        builtin("Command.kill", commandKill),
		"signal":      builtin("Command.signal", commandSignal),
		"resize":      builtin("Command.resize", commandResize),
		"send_input":  builtin("Command.send_input", commandSendInput),
		"close_stdin": builtin("Command.close_stdin", commandCloseStdin),
		"reconnect":   builtin("Command.reconnect", commandReconnect),
	},
}

// killed is the exit code of a command that SIGKILL ended.
const killed = 128 + 9

// feed sends all of stdin and closes it, while others read the output: a
// command that is not read from may not read either. The end of a terminal's
// input is a control character, twice if it comes within a line.
func (v *command) feed(ctx context.Context, input []byte, pty bool) {
	if pty {
		input = append(bytes.Clone(input), "\x04\x04"...)
		if len(input) == 2 || input[len(input)-3] == '\n' {
			input = input[:len(input)-1]
		}
	}
	v.feeding = make(chan struct{})
	go func() {
		defer close(v.feeding)
		if v.fed = v.cmd.SendInput(ctx, input); v.fed == nil {
			v.fed = v.cmd.CloseStdin(ctx)
		}
		if v.fed != nil {
			v.cmd.Kill(ctx) // it has got half of its input; unless it has ended, and did not want the rest
		}
	}()
}

// close detaches from a command that has ended or that nobody looks at again.
func (v *command) close() {
	v.run.drop(v.release)
	v.detach()
}

func (v *command) detach() {
	v.cmd.Close() // which ends sending, too
	if v.feeding != nil {
		<-v.feeding
	}
	v.told.exit(nil, nil) // unless that is known
}

// next is the next chunk, or io.EOF, or an error that names the command.
func (v *command) next(ctx context.Context) (client.Chunk, error) {
	chunk, err := v.cmd.Next(ctx)
	v.run.warnLost(chunk.Gap, chunk.Stream, v.line)
	v.told.output(chunk.Stream, len(chunk.Data))
	if err != nil && err != io.EOF {
		v.told.exit(nil, err)
		err = &CommandError{v.line, err, v.sandbox}
	}
	return chunk, err
}

// warnLost tells the user about output that came too late to be read.
func (r *Run) warnLost(bytes int64, stream, line string) {
	if bytes > 0 {
		r.options.Events.Emit(event.Warning{Text: fmt.Sprintf("%d bytes of %s were lost, which the sandbox no longer had when they were to be read: %s",
			bytes, stream, shorten(line))})
	}
}

// warnForgotten tells the user about output that a loop has read and the result
// does not have.
func (r *Run) warnForgotten(result *client.Result, line string) {
	for i, bytes := range [...]int64{result.ForgottenStdout, result.ForgottenStderr} {
		if bytes > 0 {
			r.warnOnce(fmt.Sprintf("a loop has read so much output that the result has only the last %d MiB of %s: %s", loopKeeps>>20, streams[i], shorten(line)))
		}
	}
}

// result reads on to the end. While another task reads, it waits.
func (v *command) result(ctx context.Context, s *strand) (starlark.Value, error) {
	if err := v.reading.take(ctx, s); err != nil {
		return nil, err
	}
	defer v.reading.release()
	for {
		if _, err := v.next(ctx); err == io.EOF {
			break
		} else if err != nil {
			return nil, err
		}
	}
	result, err := v.cmd.Result(ctx)
	v.told.exit(result, err)
	if err != nil {
		return nil, &CommandError{v.line, err, v.sandbox}
	}
	v.run.warnForgotten(result, v.line)
	v.close()
	if v.feeding != nil && v.fed != nil && result.ExitCode == killed {
		return nil, &CommandError{v.line, fmt.Errorf("sending stdin: %w", v.fed), v.sandbox}
	}
	return v.run.finish(result, v.line, v.sandbox, v.text, v.check)
}

// loopKeeps is how much of each stream the result has after a loop has taken the
// output: a loop may run for days.
const loopKeeps = 64 << 20

// A reader is a loop over a command's output, which has its turn from the first
// step on.
type reader struct {
	v      *command
	strand *strand
	begun  bool
}

func (v *command) newReader() reader { return reader{v: v, strand: v.run.here()} }

// begin reports false if the loop has failed.
func (r *reader) begin() bool {
	if r.begun {
		return true
	}
	if err := r.v.reading.take(r.strand.task.Ctx, r.strand); err != nil {
		r.strand.fail(err)
		return false
	}
	r.begun = true
	r.v.cmd.KeepLast(loopKeeps)
	return true
}

func (r *reader) Done() {
	if r.begun {
		r.v.reading.release()
	}
}

// next is the next chunk: none is the end, or a failure that the strand knows.
func (r *reader) next() (client.Chunk, bool) {
	chunk, err := r.v.next(r.strand.task.Ctx)
	if err != nil && err != io.EOF {
		r.strand.fail(err)
	}
	return chunk, err == nil
}

// chunks iterates over a command's output.
type chunks struct{ reader }

func (it *chunks) Next(p *starlark.Value) bool {
	if !it.begin() {
		return false
	}
	chunk, ok := it.next()
	if ok {
		*p = &record{"chunk", chunkFields{chunk.Stream, output(chunk.Data, it.v.text), chunk.Offset}}
	}
	return ok
}

func commandLines(c *invocation) (starlark.Value, error) {
	var stream optional[string]
	if err := c.unpack(&stream); err != nil {
		return nil, err
	}
	if s := stream.or(wire.Stdout); s != wire.Stdout && s != wire.Stderr {
		return nil, c.argumentError("parameter stream: got %q, want %q or %q", s, wire.Stdout, wire.Stderr)
	}
	return &lines{c.self.(*command), stream.or("")}, nil
}

// lines are the lines of a command's output.
type lines struct {
	v      *command
	stream string // "" is both
}

var _ starlark.Iterable = (*lines)(nil)

func (l *lines) Type() string               { return "lines" }
func (l *lines) String() string             { return fmt.Sprintf("lines(%s)", l.v) }
func (l *lines) Freeze()                    {}
func (l *lines) Truth() starlark.Bool       { return true }
func (l *lines) Hash() (uint32, error)      { return unhashable(l) }
func (l *lines) Iterate() starlark.Iterator { return &lineReader{l.v.newReader(), l.stream} }

// lineReader iterates over lines.
type lineReader struct {
	reader
	stream string
}

func (l *lineReader) Next(p *starlark.Value) bool {
	if !l.begin() {
		return false
	}
	v := l.v
	for {
		for len(v.lines) > 0 {
			line := v.lines[0]
			v.lines = v.lines[1:]
			if l.stream == "" || l.stream == line.Stream {
				*p = &record{"line", line}
				return true
			}
		}
		chunk, ok := l.next()
		if ok {
			v.split(chunk)
		} else if l.strand.failure != nil || l.strand.task.cancelled() != nil || !v.flush() {
			return false
		}
	}
}

// split takes the lines that a chunk completes. Only its own text is looked
// through: a line may come in many pieces.
func (v *command) split(chunk client.Chunk) {
	rest := chunk.Data
	for {
		line, after, found := strings.Cut(rest, "\n")
		if !found {
			v.partial[chunk.Stream] += rest
			return
		}
		line = v.partial[chunk.Stream] + line
		v.partial[chunk.Stream] = ""
		v.lines = append(v.lines, lineFields{chunk.Stream, output(strings.TrimSuffix(line, "\r"), v.text)})
		rest = after
	}
}

// flush makes lines of what did not end with a newline, and tells if there was any.
func (v *command) flush() bool {
	for _, stream := range streams {
		if rest := v.partial[stream]; rest != "" {
			v.lines = append(v.lines, lineFields{stream, output(rest, v.text)})
		}
	}
	clear(v.partial)
	return len(v.lines) > 0
}

func commandWait(c *invocation) (starlark.Value, error) {
	var timeout optional[seconds]
	if err := c.unpack(&timeout); err != nil {
		return nil, err
	}
	v := c.self.(*command)
	var result starlark.Value
	limit := timeout.or(0)
	err := c.within(limit, func(ctx context.Context) (err error) {
		result, err = v.result(ctx, c.strand)
		return err
	}, func() error {
		return &CommandError{v.line, &client.Error{Kind: client.ErrCommandTimeout, Operation: "command", Timeout: time.Duration(limit),
			Message: fmt.Sprintf("the command is still running after %v of waiting", time.Duration(limit))}, v.sandbox}
	})
	return result, err
}

func commandKill(c *invocation) (starlark.Value, error) {
	if err := c.unpack(); err != nil {
		return nil, err
	}
	return starlark.None, c.self.(*command).cmd.Kill(c.Ctx)
}

func commandSignal(c *invocation) (starlark.Value, error) {
	var name string
	if err := c.unpack(&name); err != nil {
		return nil, err
	}
	v := c.self.(*command)
	if err := v.cmd.Signal(c.Ctx, name); err != nil {
		return nil, &CommandError{v.line, err, v.sandbox}
	}
	return starlark.None, nil
}

func commandResize(c *invocation) (starlark.Value, error) {
	var cols, rows int
	if err := c.unpack(&cols, &rows); err != nil {
		return nil, err
	}
	if min(cols, rows) < 1 || max(cols, rows) > 65535 {
		return nil, c.argumentError("got %d columns and %d rows, want 1 to 65535 of each", cols, rows)
	}
	v := c.self.(*command)
	if err := v.cmd.Resize(c.Ctx, cols, rows); err != nil {
		return nil, &CommandError{v.line, err, v.sandbox}
	}
	return starlark.None, nil
}

func commandSendInput(c *invocation) (starlark.Value, error) {
	var input data
	if err := c.unpack(&input); err != nil {
		return nil, err
	}
	return starlark.None, c.self.(*command).cmd.SendInput(c.Ctx, input)
}

func commandCloseStdin(c *invocation) (starlark.Value, error) {
	if err := c.unpack(); err != nil {
		return nil, err
	}
	return starlark.None, c.self.(*command).cmd.CloseStdin(c.Ctx)
}

func commandReconnect(c *invocation) (starlark.Value, error) {
	if err := c.unpack(); err != nil {
		return nil, err
	}
	v := c.self.(*command)
	return newCommand(c, v.cmd.Reconnect(), c.started(v.sandbox, v.line), v.text, v.check), nil
}

func sandboxReconnect(c *invocation) (starlark.Value, error) {
	var id string
	var o client.ReconnectOptions
	var text bool
	if err := c.unpack(&id, &o.StdoutOffset, &o.StderrOffset, &text); err != nil {
		return nil, err
	}
	if id == "" || o.StdoutOffset < 0 || o.StderrOffset < 0 {
		return nil, c.argumentError("want the id of a command, and offsets from 0 on")
	}
	if err := c.mayAct(); err != nil {
		return nil, err
	}
	box := c.self.(*sandboxValue).box.Load()
	return newCommand(c, box.Reconnect(id, o), c.started(box.Name, "command "+id), text, false), nil
}

// run is the method of the same name, of the sandbox that it is given.
func run(c *invocation) (starlark.Value, error) { return c.onSandbox("Sandbox.run", sandboxRun) }

// onSandbox calls a method of the sandbox that is the first argument.
func (c *invocation) onSandbox(stub string, method builtinFunc) (starlark.Value, error) {
	var sandbox *sandboxValue
	var args starlark.Tuple
	var kwargs []starlark.Tuple
	if err := c.unpack(&sandbox, &args, &kwargs); err != nil {
		return nil, err
	}
	return method(&invocation{Task: c.Task, stub: stub, name: c.name, self: sandbox, args: args, kwargs: kwargs})
}

func shellQuoteCall(c *invocation) (starlark.Value, error) {
	var value starlark.Value
	if err := c.unpack(&value); err != nil {
		return nil, err
	}
	if s, ok := starlark.AsString(value); ok {
		return starlark.String(shellQuote(s)), nil
	}
	words, err := quoted(value)
	if err != nil {
		return nil, c.argumentError("parameter value: %w", err)
	}
	return starlark.String(words), nil
}

// shellQuote makes one word of s for a POSIX shell.
func shellQuote(s string) string {
	safe := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("@%+=:,./-_", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !safe(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'"'"'`) + "'"
}
