package main

import (
	"errors"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/sbx-star/sbx-star/workflow"
)

// This file defines the flags for what a workflow may use up.

type budgetFlags struct {
	steps  uint64
	memory bytesFlag
}

func (f *budgetFlags) register(flags *pflag.FlagSet) {
	f.memory = bytesFlag(workflow.DefaultMaxMemory())
	flags.Uint64Var(&f.steps, "max-steps", 0, "end the workflow after `N` steps of the interpreter; 0 is no limit")
	flags.Var(&f.memory, "max-memory", "end the workflow when it uses more than `SIZE` (512Mi, 2Gi); 0 is no limit")
	flags.Lookup("max-memory").DefValue = "a quarter of the machine's"
}

func (f *budgetFlags) apply(o *workflow.Options) {
	o.MaxSteps, o.MaxMemory = f.steps, uint64(f.memory)
}

// bytesFlag is a number of bytes, with a unit or without.
type bytesFlag uint64

func (b *bytesFlag) String() string { return strconv.FormatUint(uint64(*b), 10) }
func (b *bytesFlag) Type() string   { return "size" }

func (b *bytesFlag) Set(s string) error {
	unit := 1.0
	for suffix, factor := range map[string]float64{"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "k": 1e3, "M": 1e6, "G": 1e9} {
		if number, ok := strings.CutSuffix(s, suffix); ok {
			s, unit = number, factor
			break
		}
	}
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || !(n >= 0) || n*unit > math.MaxInt64 {
		return errors.New("want a size such as 512Mi or 2Gi")
	}
	*b = bytesFlag(n * unit)
	return nil
}
