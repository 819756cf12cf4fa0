package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/peterh/liner"
	"github.com/spf13/pflag"
	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/event"
	"github.com/sbx-star/sbx-star/workflow"
)

// This file defines the REPL on a terminal: lines are edited and remembered,
// Ctrl-C ends the statement and not the session, and leaving releases.

const replUsage = `Usage:
  sbx-star [flags] [repl]   explore: statements are run as they are typed

Flags:
`

const replHelp = `  help(x)   what x is and how it is used; help() names all there is
  :ls       what will be released on leaving
  :quit     leave, as Ctrl-D does; exit(N) leaves with a status
Tab completes names, attributes, parameters and, in a string, files. Ctrl-C ends
a statement that runs.
`

func repl(args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	flags := pflag.NewFlagSet("sbx-star repl", pflag.ContinueOnError)
	var where connectFlags
	where.register(flags)
	var budget budgetFlags
	budget.register(flags)
	keep := flags.Bool("keep", false, "leave what the session created, and print how to delete it")
	if err := parse(flags, args, replUsage, stdout); err != nil {
		return ignoreHelp(err)
	}
	if flags.NArg() > 0 {
		return &workflow.UsageError{Message: "repl takes no arguments", Hint: "to run a file, leave out repl: sbx-star " + flags.Arg(0)}
	}
	if !isTerminal(stdin) {
		return runWorkflow(append(args, "-"), stdin, stdout, stderr)
	}
	return explore(&where, &budget, *keep, stdout, stderr)
}

// explore runs a session on the terminal.
func explore(where *connectFlags, budget *budgetFlags, keep bool, stdout, stderr io.Writer) error {
	connect, disconnect, err := where.connector()
	if err != nil {
		return err
	}
	defer disconnect()

	abort := make(chan struct{})
	options := workflow.Options{Stdout: stdout, Events: event.Terminal(stderr), Env: os.LookupEnv, Abort: abort, Keep: keep}
	budget.apply(&options)
	closeBooks, err := where.keepBooks(&options, connect, options.Events)
	if err != nil {
		return err
	}
	defer closeBooks()
	session := workflow.NewSession(context.Background(), options)
	r := newPrompt(session)
	fmt.Fprintf(stdout, "sbx-star %s; :help says what there is, Ctrl-D leaves\n", version())
	code := r.loop(session, stdout, stderr)
	r.close()

	if held := session.Held(); len(held) > 0 && !keep {
		fmt.Fprintf(stderr, "sbx-star: releasing %s\n", strings.Join(held, ", "))
	}
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM)
	released, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-interrupts:
			close(abort)
		case <-released:
		}
	}()
	err = session.Close()
	close(released)
	<-watched
	signal.Stop(interrupts)
	if err != nil {
		return err
	}
	if code != 0 {
		return silent(code)
	}
	return nil
}

// A prompt reads lines from the terminal.
type prompt struct {
	line        *liner.State
	raw, cooked liner.ModeApplier
	history     string // the file, or "" for none
}

func newPrompt(session *workflow.Session) *prompt {
	p := &prompt{}
	p.cooked, _ = liner.TerminalMode()
	p.line = liner.NewLiner()
	p.raw, _ = liner.TerminalMode()
	p.line.SetCtrlCAborts(true)
	p.line.SetTabCompletionStyle(liner.TabPrints)
	p.line.SetWordCompleter(func(line string, pos int) (string, []string, string) {
		runes := []rune(line)
		before, after := string(runes[:pos]), string(runes[pos:])
		start, candidates := session.Complete(before)
		return before[:start], candidates, after
	})
	if dir, err := defaultStateDir(); err == nil {
		p.history = filepath.Join(dir, "history")
		if f, err := os.Open(p.history); err == nil {
			p.line.ReadHistory(f)
			f.Close()
		}
	}
	return p
}

// close gives the terminal back and writes the history, which nobody else may
// read: statements may hold what is secret.
func (p *prompt) close() {
	p.line.Close()
	if p.history == "" {
		return
	}
	var b bytes.Buffer
	p.line.WriteHistory(&b)
	if os.MkdirAll(filepath.Dir(p.history), 0o700) == nil {
		os.WriteFile(p.history, b.Bytes(), 0o600)
	}
}

// loop runs statements until the session is left, and returns the status.
func (p *prompt) loop(session *workflow.Session, stdout, stderr io.Writer) int {
	for {
		code, left := p.statement(session, stdout, stderr)
		if left {
			return code
		}
	}
}

// errAborted is a statement that Ctrl-C ended while it was being typed.
var errAborted = errors.New("the statement was aborted")

// statement reads and runs one statement.
func (p *prompt) statement(session *workflow.Session, stdout, stderr io.Writer) (code int, left bool) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	var typed strings.Builder
	text := ">>> "
	command := ""
	readLine := func() ([]byte, error) {
		p.raw.ApplyMode()
		defer p.cooked.ApplyMode()
		line, err := p.line.Prompt(text)
		switch {
		case errors.Is(err, liner.ErrPromptAborted):
			return nil, errAborted
		case err != nil:
			return nil, err
		}
		if text == ">>> " && strings.HasPrefix(strings.TrimSpace(line), ":") {
			p.line.AppendHistory(line)
			command = strings.TrimSpace(line)
			return nil, errAborted
		}
		if strings.TrimSpace(line) != "" {
			p.line.AppendHistory(line)
		}
		text = "... "
		typed.WriteString(line + "\n")
		return []byte(line + "\n"), nil
	}

	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)
	done, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case s := <-interrupts:
			cancel(&interrupted{s.(syscall.Signal)})
		case <-done:
		}
	}()
	value, err := session.Statement(ctx, readLine)
	close(done)
	<-watched
	signal.Stop(interrupts)

	var exit *workflow.ExitError
	switch {
	case command != "":
		return 0, p.command(command, session, stdout)
	case errors.Is(err, io.EOF):
		fmt.Fprintln(stdout)
		return 0, true
	case errors.Is(err, errAborted):
	case errors.As(err, &exit):
		return exit.Code, true
	case err != nil:
		workflow.Render(stderr, err, colored(stderr))
	case value != nil && value != starlark.None:
		fmt.Fprintln(stdout, session.Show(value))
	}
	return 0, false
}

// command carries out a line that begins with a colon.
func (p *prompt) command(line string, session *workflow.Session, stdout io.Writer) (leave bool) {
	switch line {
	case ":ls":
		held := session.Held()
		for _, what := range held {
			fmt.Fprintln(stdout, what)
		}
		if len(held) == 0 {
			fmt.Fprintln(stdout, "nothing")
		}
	case ":help", ":h", ":?":
		fmt.Fprint(stdout, replHelp)
	case ":quit", ":q", ":exit":
		return true
	default:
		fmt.Fprintf(stdout, "there is no %s; :help says what there is\n", line)
	}
	return false
}
