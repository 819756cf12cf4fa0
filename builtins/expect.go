package builtins

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"time"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines how a command's output is waited for.

// expectWindow is how far back a match may begin.
const expectWindow = 1 << 20

// ExpectError is output that did not match.
type ExpectError struct {
	Command, Pattern string
	Output           string // what was seen of it
	Why              string // "within 30s"
}

func (e *ExpectError) Error() string {
	text := fmt.Sprintf("the output did not match %q %s", e.Pattern, e.Why)
	if tail := Tail(e.Output); tail != "" {
		return text + "; it ends with\n" + tail
	}
	return text + "; there was none"
}

type matchFields struct {
	Text   starlark.Value  `json:"text"`
	Groups *starlark.List  `json:"groups"`
	Named  *starlark.Dict  `json:"named"`
	Before starlark.Value  `json:"before"`
	Stream starlark.String `json:"stream"`
}

func commandExpect(c *invocation) (starlark.Value, error) {
	var re pattern
	var timeout seconds
	if err := c.unpack(&re, &timeout); err != nil {
		return nil, err
	}
	v := c.self.(*command)
	if err := v.reading.take(c.Ctx, c.strand); err != nil {
		return nil, err
	}
	defer v.reading.release()
	v.unsplit()
	defer v.resplit()
	unmatched := func(why string) error {
		return &ExpectError{v.line, re.String(), c.Run.Mask(v.partial[wire.Stdout] + v.partial[wire.Stderr]), why}
	}
	var found *record
	err := c.within(timeout, func(ctx context.Context) error {
		for {
			for _, stream := range streams {
				if found = v.match(re.Regexp, stream); found != nil {
					return nil
				}
			}
			chunk, err := v.next(ctx)
			if err == io.EOF {
				return unmatched("before the command ended")
			}
			if err != nil {
				return err
			}
			v.partial[chunk.Stream] += chunk.Data
		}
	}, func() error { return unmatched(fmt.Sprintf("within %v", time.Duration(timeout))) })
	if err != nil {
		return nil, err
	}
	return found, nil
}

// match takes what comes up to the end of the first match out of the text that
// was not handed out.
func (v *command) match(re *regexp.Regexp, stream string) *record {
	text := v.partial[stream]
	skipped := max(0, len(text)-expectWindow)
	at := re.FindStringSubmatchIndex(text[skipped:])
	if at == nil {
		return nil
	}
	groups, named := searched{text[skipped:], v.text}.groups(re, at)
	begin, end := skipped+at[0], skipped+at[1]
	v.partial[stream] = text[end:]
	return &record{"match", matchFields{output(text[begin:end], v.text), groups, named, output(text[:begin], v.text), starlark.String(stream)}}
}

// unsplit makes text of the lines that were not handed out.
func (v *command) unsplit() {
	text := map[string]string{}
	for _, line := range v.lines {
		switch t := line.Text.(type) {
		case starlark.String:
			text[line.Stream] += string(t) + "\n"
		case starlark.Bytes:
			text[line.Stream] += string(t) + "\n"
		}
	}
	v.lines = nil
	for _, stream := range streams {
		v.partial[stream] = text[stream] + v.partial[stream]
	}
}

// resplit makes lines of it again.
func (v *command) resplit() {
	for _, stream := range streams {
		text := v.partial[stream]
		v.partial[stream] = ""
		v.split(client.Chunk{Stream: stream, Data: text})
	}
}
