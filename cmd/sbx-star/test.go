package main

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/sbx-star/sbx-star/event"
	"github.com/sbx-star/sbx-star/workflow"
)

// This file defines sbx-star test: the tests of workflows, and how their
// results are told.

const testUsage = `Usage:
  sbx-star test [flags] [PATH…]   run every test_ function of every *_test.star

PATH is a file, or a folder whose *_test.star are run; without one it is the
working directory. Each test runs by itself: its file is loaded anew, and what
it creates is released when it ends. The output of tests that fail is shown. The
exit status is 0 if all passed, 1 if one failed, and 5 if there was none to run.

Flags:
`

func test(args []string, stdout, stderr io.Writer) error {
	flags := pflag.NewFlagSet("sbx-star test", pflag.ContinueOnError)
	var where connectFlags
	where.register(flags)
	var budget budgetFlags
	budget.register(flags)
	match := flags.String("run", "", "run only the tests whose names match `REGEXP`")
	parallel := flags.Int("parallel", 1, "run `N` tests at once")
	failFast := flags.Bool("failfast", false, "start no test after one has failed")
	verbose := flags.BoolP("verbose", "v", false, "show the output of tests that pass, too")
	asJSON := flags.Bool("json", false, "print what happens as lines of JSON")
	junit := flags.String("junit", "", "write the results to `FILE` in the form of JUnit")
	update := flags.Bool("update", false, "write the files that expect.golden compares with")
	var timeout deadline
	flags.Var(&timeout, "timeout", "end a test after `DURATION` (90, 90s, 5m)")
	if err := parse(flags, args, testUsage, stdout); err != nil {
		return ignoreHelp(err)
	}
	var names *regexp.Regexp
	if *match != "" {
		var err error
		if names, err = regexp.Compile(*match); err != nil {
			return &workflow.UsageError{Message: fmt.Sprintf("--run: %v", err)}
		}
	}
	if *parallel < 1 {
		return &workflow.UsageError{Message: fmt.Sprintf("--parallel: got %d, want 1 or more", *parallel)}
	}
	files, err := findFiles(flags.Args(), "_test.star")
	if err != nil {
		return err
	}
	connect, disconnect, err := where.connector()
	if err != nil {
		return err
	}
	defer disconnect()
	var run workflow.Options
	closeBooks, err := where.keepBooks(&run, connect, event.Terminal(stderr))
	if err != nil {
		return err
	}
	defer closeBooks()
	ctx, again, stop := untilSignal(context.Background(), stderr)
	defer stop()
	run.Env, run.Abort, run.UpdateGolden = os.LookupEnv, again, *update
	budget.apply(&run)

	show := showTests(stdout, *verbose)
	if *asJSON {
		show = encodeTests(stdout)
	}
	var results []workflow.TestResult
	start := time.Now()
	passed, failed := workflow.RunTests(ctx, workflow.TestOptions{
		Files: files, Match: names, Parallel: *parallel, FailFast: *failFast, Timeout: time.Duration(timeout),
		Run:   run,
		Begin: show.begin,
		Report: func(r workflow.TestResult) {
			results = append(results, r)
			show.end(r)
		},
	})
	show.done(passed, failed, time.Since(start))
	if *junit != "" {
		if err := writeJUnit(*junit, results); err != nil {
			return fmt.Errorf("cannot write the results: %w", err)
		}
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case failed > 0:
		return silent(workflow.ExitFailed)
	case passed == 0:
		return &noTests{names}
	}
	return nil
}

// noTests says that there was nothing to run.
type noTests struct{ match *regexp.Regexp }

func (e *noTests) ExitCode() int { return workflow.ExitNoTests }
func (e *noTests) Error() string {
	if e.match != nil {
		return fmt.Sprintf("there is no test whose name matches %s", e.match)
	}
	return "there are no tests: they are functions named test_… in files named …_test.star"
}

// testView is who is told of tests.
type testView struct {
	begin func(workflow.Test)
	end   func(workflow.TestResult)
	done  func(passed, failed int, took time.Duration)
}

// showTests tells a person: one line a test, and below it what the test
// printed and why it failed.
func showTests(w io.Writer, verbose bool) testView {
	color := colored(w)
	paint := func(code, text string) string {
		if !color {
			return text
		}
		return "\x1b[" + code + "m" + text + "\x1b[0m"
	}
	return testView{
		begin: func(workflow.Test) {},
		end: func(r workflow.TestResult) {
			outcome := paint("32", "ok  ")
			if r.Err != nil {
				outcome = paint("1;31", "FAIL")
			}
			fmt.Fprintf(w, "%s  %s (%.2fs)\n", outcome, nameOf(r.Test), r.Duration.Seconds())
			if r.Err != nil || verbose {
				for line := range strings.Lines(r.Output) {
					fmt.Fprintf(w, "      %s\n", strings.TrimSuffix(line, "\n"))
				}
			}
			if r.Err != nil {
				workflow.Render(w, r.Err, color)
			}
		},
		done: func(passed, failed int, took time.Duration) {
			if passed+failed > 0 {
				fmt.Fprintf(w, "%d passed, %d failed (%.2fs)\n", passed, failed, took.Seconds())
			}
		},
	}
}

// nameOf is a test as messages call it: the file alone if it does not load.
func nameOf(t workflow.Test) string {
	if t.Name == "" {
		return t.File
	}
	return fmt.Sprintf("%s:%d %s", t.File, t.Pos.Line, t.Name)
}

// testEvent is a line of --json.
type testEvent struct {
	Time    time.Time `json:"time"`
	Action  string    `json:"action"` // "run", "pass" or "fail"
	File    string    `json:"file"`
	Test    string    `json:"test,omitempty"` // "" for a file that does not load
	Line    int       `json:"line,omitempty"`
	Seconds *float64  `json:"seconds,omitempty"` // of one that ended
	Output  string    `json:"output,omitempty"`
	Error   string    `json:"error,omitempty"` // as a person would see it
}

func encodeTests(w io.Writer) testView {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	return testView{
		begin: func(t workflow.Test) {
			encoder.Encode(testEvent{Time: time.Now(), Action: "run", File: t.File, Test: t.Name, Line: int(t.Pos.Line)})
		},
		end: func(r workflow.TestResult) {
			seconds := r.Duration.Seconds()
			e := testEvent{Time: time.Now(), Action: "pass", File: r.File, Test: r.Name, Line: int(r.Pos.Line), Seconds: &seconds, Output: r.Output}
			if r.Err != nil {
				e.Action, e.Error = "fail", rendered(r.Err)
			}
			encoder.Encode(e)
		},
		done: func(int, int, time.Duration) {},
	}
}

func rendered(err error) string {
	var b strings.Builder
	workflow.Render(&b, err, false)
	return b.String()
}

// The form of JUnit's reports that build servers read.
type (
	junitSuites struct {
		XMLName  xml.Name      `xml:"testsuites"`
		Tests    int           `xml:"tests,attr"`
		Failures int           `xml:"failures,attr"`
		Suites   []*junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Time     string      `xml:"time,attr"`
		Cases    []junitCase `xml:"testcase"`
		seconds  float64
	}
	junitCase struct {
		Name      string        `xml:"name,attr"`
		Classname string        `xml:"classname,attr"`
		Time      string        `xml:"time,attr"`
		Failure   *junitFailure `xml:"failure"`
		Output    string        `xml:"system-out,omitempty"`
	}
	junitFailure struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
)

// writeJUnit writes a report with one suite for each file.
func writeJUnit(name string, results []workflow.TestResult) error {
	all := junitSuites{}
	suites := map[string]*junitSuite{}
	for _, r := range results {
		suite := suites[r.File]
		if suite == nil {
			suite = &junitSuite{Name: r.File}
			suites[r.File] = suite
			all.Suites = append(all.Suites, suite)
		}
		c := junitCase{Name: r.Name, Classname: r.File, Time: fmt.Sprintf("%.3f", r.Duration.Seconds()), Output: r.Output}
		if c.Name == "" {
			c.Name = "load"
		}
		if r.Err != nil {
			c.Failure = &junitFailure{r.Err.Error(), rendered(r.Err)}
			suite.Failures++
			all.Failures++
		}
		suite.Tests++
		all.Tests++
		suite.seconds += r.Duration.Seconds()
		suite.Time = fmt.Sprintf("%.3f", suite.seconds)
		suite.Cases = append(suite.Cases, c)
	}
	text, err := xml.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append([]byte(xml.Header), append(text, '\n')...), 0o666)
}
