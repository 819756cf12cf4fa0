package workflow

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"go.starlark.net/syntax"

	"github.com/sbx-star/sbx-star/event"
)

// This file defines how the tests of workflows are found and run: each test_
// function is a run of its own, with its own modules and its own scope, so that
// no test sees what another one did.

// A Test is a function of a test file.
type Test struct {
	File, Name string
	Pos        syntax.Position
}

// TestResult is what came of a test. A file that does not load is the result
// of a test without a name.
type TestResult struct {
	Test
	Duration time.Duration
	Output   string // what it printed and its events, in the order of their coming
	Err      error  // as Run returns it; nil if it passed
}

// TestOptions say which tests to run and how.
type TestOptions struct {
	Files    []string
	Match    *regexp.Regexp // of the names that are run; nil for all
	Parallel int            // how many run at once, 1 if it is less
	FailFast bool           // start none after one has failed
	Timeout  time.Duration  // of each test; 0 is none

	// Run is how each test is run: its Path, Args, Stdout and Events are set
	// for each.
	Run Options

	// Begin is told of each test that starts, Report of each that ended: in any
	// order if Parallel is above 1, but never two at once.
	Begin  func(Test)
	Report func(TestResult)
}

// ErrTestTimeout is why a test was ended by TestOptions.Timeout.
var ErrTestTimeout = errors.New("the test took too long")

// RunTests runs the tests of the files, in their order, and returns how many
// passed and failed. It returns once all that were started have released what
// they acquired. A test that ctx ends is a failed one, and none is started
// after that.
func RunTests(ctx context.Context, o TestOptions) (passed, failed int) {
	var mu sync.Mutex // guards the counts, and Begin and Report
	report := func(r TestResult) {
		mu.Lock()
		defer mu.Unlock()
		if r.Err == nil {
			passed++
		} else {
			failed++
		}
		o.Report(r)
	}
	stopped := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return ctx.Err() != nil || o.FailFast && failed > 0
	}

	slots := make(chan struct{}, max(o.Parallel, 1))
	var running sync.WaitGroup
files:
	for _, file := range o.Files {
		tests, err := findTests(file)
		if err != nil {
			report(TestResult{Test: Test{File: file}, Err: err})
			continue
		}
		for _, test := range tests {
			if o.Match != nil && !o.Match.MatchString(test.Name) {
				continue
			}
			slots <- struct{}{}
			if stopped() {
				break files
			}
			mu.Lock()
			o.Begin(test)
			mu.Unlock()
			running.Go(func() {
				defer func() { <-slots }()
				report(o.run(ctx, test))
			})
		}
	}
	running.Wait()
	return passed, failed
}

// run runs one test.
func (o *TestOptions) run(ctx context.Context, test Test) TestResult {
	if o.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("%w: %v have passed", ErrTestTimeout, o.Timeout))
		defer cancel()
	}
	var output lockedBuffer
	run := o.Run
	run.Path, run.Call = test.File, test.Name
	run.Stdout, run.Events = &output, event.Terminal(&output)
	start := time.Now()
	err := Run(ctx, run)
	return TestResult{test, time.Since(start), output.String(), err}
}

// findTests are the test_ functions of a file, in its order. It reads and
// compiles the file and what it loads, and runs nothing.
func findTests(path string) ([]Test, error) {
	l := newCompiler()
	defer l.close()
	if _, err := l.compile(Options{Path: path}); err != nil {
		return nil, err
	}
	file := l.order[len(l.order)-1]
	var tests []Test
	for _, stmt := range parseAgain(l, file).Stmts {
		if def, ok := stmt.(*syntax.DefStmt); ok && strings.HasPrefix(def.Name.Name, "test_") {
			tests = append(tests, Test{path, def.Name.Name, def.Name.NamePos})
		}
	}
	return tests, nil
}

// lockedBuffer takes what several goroutines write.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
