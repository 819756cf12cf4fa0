package builtins

import (
	"fmt"
	"regexp"
	"strings"

	"go.starlark.net/starlark"
)

// This file defines re: regular expressions, in the syntax of Go.

func newRe() *namespace {
	return &namespace{name: "re", members: starlark.StringDict{
		"match":    builtin("re.match", reMatch),
		"search":   builtin("re.search", reSearch),
		"find_all": builtin("re.find_all", reFindAll),
		"sub":      builtin("re.sub", reSub),
	}}
}

// pattern is a regular expression that compiles.
type pattern struct{ *regexp.Regexp }

func (p *pattern) Unpack(v starlark.Value) (err error) {
	text, ok := starlark.AsString(v)
	if !ok {
		return fmt.Errorf("got %s, want a regular expression", v.Type())
	}
	p.Regexp, err = regexp.Compile(text)
	return err
}

// searched is what a regular expression is applied to, and how parts of it look:
// strings of a string, bytes of bytes.
type searched struct {
	text   string
	isText bool
}

func (s *searched) Unpack(v starlark.Value) error {
	switch v := v.(type) {
	case starlark.String:
		*s = searched{string(v), true}
	case starlark.Bytes:
		*s = searched{string(v), false}
	default:
		return fmt.Errorf("got %s, want a string or bytes", v.Type())
	}
	return nil
}

type reMatchFields struct {
	Text   starlark.Value `json:"text"`
	Groups *starlark.List `json:"groups"`
	Named  *starlark.Dict `json:"named"`
	Start  int            `json:"start"`
	End    int            `json:"end"`
}

// newMatch makes a value of the indices that Regexp.FindStringSubmatchIndex
// returns.
func (s searched) newMatch(re *regexp.Regexp, at []int) starlark.Value {
	groups, named := s.groups(re, at)
	return &record{"re_match", reMatchFields{output(s.text[at[0]:at[1]], s.isText), groups, named, at[0], at[1]}}
}

// groups are what the groups of a match matched, None for one that took no
// part, and those of them that have a name.
func (s searched) groups(re *regexp.Regexp, at []int) (*starlark.List, *starlark.Dict) {
	list, named := starlark.NewList(nil), new(starlark.Dict)
	names := re.SubexpNames()
	for i := 1; i < len(at)/2; i++ {
		var group starlark.Value = starlark.None
		if at[2*i] >= 0 {
			group = output(s.text[at[2*i]:at[2*i+1]], s.isText)
		}
		list.Append(group)
		if names[i] != "" {
			named.SetKey(starlark.String(names[i]), group)
		}
	}
	list.Freeze()
	named.Freeze()
	return list, named
}

func reMatch(c *invocation) (starlark.Value, error) {
	var re pattern
	var s searched
	if err := c.unpack(&re, &s); err != nil {
		return nil, err
	}
	return s.first(regexp.MustCompile(`\A(?:` + re.String() + `)`)), nil
}

func reSearch(c *invocation) (starlark.Value, error) {
	var re pattern
	var s searched
	if err := c.unpack(&re, &s); err != nil {
		return nil, err
	}
	return s.first(re.Regexp), nil
}

func (s searched) first(re *regexp.Regexp) starlark.Value {
	at := re.FindStringSubmatchIndex(s.text)
	if at == nil {
		return starlark.None
	}
	return s.newMatch(re, at)
}

// About how many bytes a match takes: as indices, of it and of each group, and as
// a value.
const (
	indexSize = 40
	matchSize = 800
	groupSize = 48
)

// reserve asks for the memory that all matches take, before they are looked for
// at once. They are counted only where that may be much.
func (s searched) reserve(c *invocation, re pattern, size func(matches, length float64) float64) (release func(), err error) {
	length := float64(len(s.text))
	bytes := size(length+1, length)
	if bytes >= small && c.Run.options.MaxMemory > 0 {
		matches, matched := 0, 0
		re.ReplaceAllStringFunc(s.text, func(match string) string {
			matches++
			matched += len(match)
			return ""
		})
		bytes = size(float64(matches), float64(matched))
	}
	return c.Run.reserve(bytes)
}

func reFindAll(c *invocation) (starlark.Value, error) {
	var re pattern
	var s searched
	if err := c.unpack(&re, &s); err != nil {
		return nil, err
	}
	groups := float64(re.NumSubexp())
	release, err := s.reserve(c, re, func(matches, _ float64) float64 {
		return matches * (indexSize + matchSize + groups*(indexSize+groupSize))
	})
	if err != nil {
		return nil, err
	}
	defer release()
	list := starlark.NewList(nil)
	for _, at := range re.FindAllStringSubmatchIndex(s.text, -1) {
		list.Append(s.newMatch(re.Regexp, at))
	}
	return list, nil
}

func reSub(c *invocation) (starlark.Value, error) {
	var re pattern
	var replacement starlark.Value
	var s searched
	var most int
	if err := c.unpack(&re, &replacement, &s, &most); err != nil {
		return nil, err
	}
	if most < 0 {
		return nil, c.argumentError("parameter count: got %d, want 0, which is all, or more", most)
	}
	if most == 0 {
		most = -1
	}
	fn, isFunction := replacement.(starlark.Callable)
	var template searched
	if !isFunction {
		if err := template.Unpack(replacement); err != nil || template.isText != s.isText {
			return nil, c.argumentError("parameter replacement: got %s, want the type of text, or a function that returns it", replacement.Type())
		}
	}
	release, err := s.reserve(c, re, func(matches, length float64) float64 {
		made := float64(len(s.text)) + matches*float64(len(template.text)) + length*float64(strings.Count(template.text, "$"))
		return 3*made + matches*indexSize*float64(1+re.NumSubexp()) // while it grows, and becomes a string
	})
	if err != nil {
		return nil, err
	}
	defer release()
	var result []byte
	end := 0
	for _, at := range re.FindAllStringSubmatchIndex(s.text, most) {
		result = append(result, s.text[end:at[0]]...)
		end = at[1]
		if !isFunction {
			result = re.ExpandString(result, template.text, s.text, at)
			continue
		}
		v, err := call(c.Task, fn, starlark.Tuple{s.newMatch(re.Regexp, at)}, nil)
		if err != nil {
			return nil, err
		}
		var made searched
		if err := made.Unpack(v); err != nil || made.isText != s.isText {
			return nil, c.argumentError("the function %s returned %s, want the type of text", fn.Name(), v.Type())
		}
		result = append(result, made.text...)
	}
	return output(string(result)+s.text[end:], s.isText), nil
}
