package workflow

import (
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/builtins"
)

// This file defines the flags of a workflow, which are the parameters of its
// main function (language.md §2), and its help.

// A signature is what main can be called with.
type signature struct {
	main       *starlark.Function
	flags      []mainFlag // those that can be given without a name first
	positional int        // how many those are
	varargs    string     // the name of *args, or ""
}

type mainFlag struct {
	param        string
	kind         flagKind
	defaultValue starlark.Value // nil if it is required
}

func (f mainFlag) name() string { return strings.ReplaceAll(f.param, "_", "-") }

type flagKind string

const (
	boolFlag   flagKind = "bool"
	intFlag    flagKind = "int"
	floatFlag  flagKind = "float"
	stringFlag flagKind = "string"
	listFlag   flagKind = "list"
)

// newSignature reads the parameters of the entry file's main.
func newSignature(entry *module) (*signature, error) {
	v := entry.mainFrom()
	main, ok := v.(*starlark.Function)
	if v == nil {
		return nil, badSignature(entry.mainPos, "main is not defined when the file ends")
	}
	if !ok {
		return nil, badSignature(entry.mainPos, "main is a %s, want a function", v.Type())
	}
	s := &signature{main: main}
	named := main.NumParams()
	if main.HasKwargs() {
		name, pos := main.Param(named - 1)
		return nil, badSignature(pos, "main cannot take **%s: a flag needs a parameter of its own", name)
	}
	if main.HasVarargs() {
		named--
		s.varargs, _ = main.Param(named)
	}
	s.positional = named - main.NumKwonlyParams()
	for i := range named {
		name, pos := main.Param(i)
		flag := mainFlag{param: name, defaultValue: main.ParamDefault(i)}
		if flag.kind, ok = kindOf(flag.defaultValue); !ok {
			return nil, badSignature(pos, "the default of parameter %s is of type %s, want a bool, an int, a float, a string, a list of strings or None",
				name, flag.defaultValue.Type())
		}
		if isHelp("--" + name) {
			return nil, badSignature(pos, "main cannot have a parameter named %s: that flag prints the help", name)
		}
		s.flags = append(s.flags, flag)
	}
	return s, nil
}

// kindOf is the kind of flag that a default makes. None is a string that may be
// left out.
func kindOf(v starlark.Value) (flagKind, bool) {
	switch v := v.(type) {
	case nil, starlark.NoneType, starlark.String:
		return stringFlag, true
	case starlark.Bool:
		return boolFlag, true
	case starlark.Int:
		return intFlag, true
	case starlark.Float:
		return floatFlag, true
	case *starlark.List:
		for element := range v.Elements() {
			if _, ok := element.(starlark.String); !ok {
				return "", false
			}
		}
		return listFlag, true
	}
	return "", false
}

var errHelp = errors.New("help is wanted")

func isHelp(arg string) bool { return arg == "--help" || arg == "-h" }

// parse reads the command line of the workflow.
func (s *signature) parse(args []string) (positional starlark.Tuple, kwargs []starlark.Tuple, err error) {
	given := map[string]starlark.Value{}
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--":
			positional = appendStrings(positional, args)
			args = nil
		case isHelp(arg):
			return nil, nil, errHelp
		case strings.HasPrefix(arg, "--"):
			if args, err = s.parseFlag(arg, args, given); err != nil {
				return nil, nil, err
			}
		case len(arg) > 1 && arg[0] == '-' && !isNumber(arg):
			return nil, nil, s.unknown(arg)
		default:
			positional = append(positional, starlark.String(arg))
		}
	}
	if len(positional) > 0 && s.varargs == "" {
		return nil, nil, fmt.Errorf("main takes no arguments besides flags, got %s", positional[0])
	}
	var missing []string
	var before starlark.Tuple // of *args: these cannot be given by name when it gets something
	for i, flag := range s.flags {
		v := given[flag.param]
		switch {
		case v == nil && flag.defaultValue == nil:
			missing = append(missing, "--"+flag.name())
		case v == nil && i >= s.positional:
		case v == nil:
			before = append(before, flag.defaultValue)
		case i < s.positional:
			before = append(before, v)
		default:
			kwargs = append(kwargs, starlark.Tuple{starlark.String(flag.param), v})
		}
	}
	switch len(missing) {
	case 0:
		return append(before, positional...), kwargs, nil
	case 1:
		return nil, nil, fmt.Errorf("flag %s is missing", missing[0])
	}
	return nil, nil, fmt.Errorf("flags %s are missing", strings.Join(missing, ", "))
}

// parseFlag reads one flag and, where it needs it, its value from the next
// argument. It returns the arguments that are left.
func (s *signature) parseFlag(arg string, rest []string, given map[string]starlark.Value) ([]string, error) {
	name, text, hasValue := strings.Cut(arg[2:], "=")
	negated := false
	i := s.find(name)
	if i < 0 && strings.HasPrefix(name, "no-") {
		if i = s.find(name[len("no-"):]); i >= 0 && s.flags[i].kind == boolFlag && !hasValue {
			negated = true
		} else {
			i = -1
		}
	}
	if i < 0 {
		return nil, s.unknown("--" + name)
	}
	flag := s.flags[i]
	if given[flag.param] != nil && flag.kind != listFlag {
		return nil, fmt.Errorf("flag --%s is given twice", flag.name())
	}
	switch {
	case flag.kind == boolFlag && !hasValue:
		given[flag.param] = starlark.Bool(!negated)
		return rest, nil
	case !hasValue && (len(rest) == 0 || strings.HasPrefix(rest[0], "--")):
		return nil, fmt.Errorf("flag --%s needs a value: --%s=VALUE", name, name)
	case !hasValue:
		text, rest = rest[0], rest[1:]
	}
	v, err := flag.kind.value(text)
	if err != nil {
		return nil, fmt.Errorf("flag --%s: %w", name, err)
	}
	if list, ok := given[flag.param].(*starlark.List); ok {
		return rest, list.Append(v)
	}
	if flag.kind == listFlag {
		v = starlark.NewList([]starlark.Value{v})
	}
	given[flag.param] = v
	return rest, nil
}

func (s *signature) find(name string) int {
	return slices.IndexFunc(s.flags, func(f mainFlag) bool { return f.name() == name })
}

func (s *signature) unknown(arg string) error {
	names := []string{"help"}
	for _, flag := range s.flags {
		names = append(names, flag.name())
	}
	return fmt.Errorf("there is no flag %s%s", arg, builtins.DidYouMean("--", strings.TrimLeft(arg, "-"), names))
}

// value converts the text of one value.
func (k flagKind) value(text string) (starlark.Value, error) {
	switch k {
	case boolFlag:
		switch text {
		case "true":
			return starlark.True, nil
		case "false":
			return starlark.False, nil
		}
		return nil, fmt.Errorf("got %q, want true or false", text)
	case intFlag:
		n, ok := new(big.Int).SetString(text, 10)
		if !ok {
			return nil, fmt.Errorf("got %q, want a whole number", text)
		}
		return starlark.MakeBigInt(n), nil
	case floatFlag:
		f, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, fmt.Errorf("got %q, want a number", text)
		}
		return starlark.Float(f), nil
	}
	return starlark.String(text), nil
}

func isNumber(arg string) bool {
	_, err := strconv.ParseFloat(arg, 64)
	return err == nil
}

func appendStrings(to starlark.Tuple, texts []string) starlark.Tuple {
	for _, text := range texts {
		to = append(to, starlark.String(text))
	}
	return to
}

// writeHelp prints what a docstring says, and the flags; s is nil if the file
// has no main.
func writeHelp(w io.Writer, path, doc string, s *signature) error {
	about, help := splitDoc(doc)
	var b strings.Builder
	b.WriteString("Usage: sbx-star " + path)
	if s != nil && len(s.flags) > 0 {
		b.WriteString(" [flags]")
	}
	if s != nil && s.varargs != "" {
		b.WriteString(" [" + s.varargs + "...]")
	}
	b.WriteString("\n")
	if about != "" {
		b.WriteString("\n" + about + "\n")
	}
	if s != nil && len(s.flags) > 0 {
		b.WriteString("\nFlags:\n")
		var rows [][2]string
		for _, flag := range s.flags {
			rows = append(rows, [2]string{"--" + flag.name() + flag.kind.placeholder(), flag.describe(help[flag.param])})
		}
		writeColumns(&b, rows)
	}
	if s != nil && s.varargs != "" && help[s.varargs] != "" {
		b.WriteString("\nArguments:\n")
		writeColumns(&b, [][2]string{{s.varargs, help[s.varargs]}})
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (k flagKind) placeholder() string {
	switch k {
	case boolFlag:
		return ""
	case listFlag:
		return " string"
	}
	return " " + string(k)
}

func (f mainFlag) describe(help string) string {
	var notes []string
	if f.kind == listFlag {
		notes = append(notes, "may be given several times")
	}
	switch v := f.defaultValue.(type) {
	case nil:
		notes = append(notes, "required")
	case starlark.NoneType:
	case starlark.String:
		if v != "" {
			notes = append(notes, "default "+v.String())
		}
	case starlark.Bool:
		if v {
			notes = append(notes, "default true; --no-"+f.name()+" is false")
		}
	case *starlark.List:
		if v.Len() > 0 {
			notes = append(notes, "default "+v.String())
		}
	default:
		notes = append(notes, "default "+v.String())
	}
	if len(notes) == 0 {
		return help
	}
	return strings.TrimSpace(help + " (" + strings.Join(notes, "; ") + ")")
}

func writeColumns(b *strings.Builder, rows [][2]string) {
	width := 0
	for _, row := range rows {
		width = max(width, len(row[0]))
	}
	for _, row := range rows {
		b.WriteString(strings.TrimRight(fmt.Sprintf("  %-*s   %s", width, row[0], row[1]), " ") + "\n")
	}
}

// splitDoc takes a docstring apart: its text without the section "Args:", and
// from that section the help of each parameter.
func splitDoc(doc string) (about string, help map[string]string) {
	help = map[string]string{}
	var kept []string
	inArgs, param, paramIndent := false, "", -1
	for _, line := range dedent(doc) {
		text := strings.TrimSpace(line)
		indent := len(line) - len(strings.TrimLeft(line, " "))
		switch {
		case text == "Args:" && indent == 0:
			inArgs, param, paramIndent = true, "", -1
		case inArgs && text == "":
		case inArgs && indent > 0:
			if paramIndent < 0 {
				paramIndent = indent
			}
			name, rest, found := strings.Cut(text, ":")
			if found && indent == paramIndent {
				param = strings.TrimLeft(name, "*")
				help[param] = strings.TrimSpace(rest)
			} else if param != "" {
				help[param] = strings.TrimSpace(help[param] + " " + text)
			}
		default:
			inArgs = false
			kept = append(kept, line)
		}
	}
	return strings.TrimSpace(strings.Join(kept, "\n")), help
}

// dedent is the lines of a docstring without what its place in the file has
// indented them by.
func dedent(doc string) []string {
	lines := strings.Split(strings.ReplaceAll(doc, "\t", "        "), "\n")
	margin := -1
	for _, line := range lines[1:] {
		if text := strings.TrimLeft(line, " "); text != "" && (margin < 0 || len(line)-len(text) < margin) {
			margin = len(line) - len(text)
		}
	}
	for i, line := range lines {
		if i == 0 || margin < 0 {
			lines[i] = strings.TrimSpace(line)
		} else {
			lines[i] = strings.TrimRight(line[min(margin, len(line)):], " ")
		}
	}
	return lines
}
