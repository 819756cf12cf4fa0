//go:build linux

package main

import (
	"slices"
)

// This file defines what is made of the values that were measured.

// A unit is what a figure is counted in.
type unit struct {
	name string
	more bool // more of it is better
}

var (
	milliseconds = unit{name: "ms"}
	microseconds = unit{name: "µs"}
	throughput   = unit{name: "MB/s", more: true}
	perSecond    = unit{name: "/s", more: true}
	mebibytes    = unit{name: "MiB"}
	kibibytes    = unit{name: "KiB"}
)

// A figure is all that was measured of one thing.
type figure struct {
	name   string
	unit   unit
	values []float64
}

// summary is what is told of a figure: the middle, the best value, and the one
// that nine of ten are not worse than.
type summary struct {
	median, best, p90 float64
	n                 int
}

func summarize(f *figure) summary {
	values := slices.Sorted(slices.Values(f.values))
	if f.unit.more {
		slices.Reverse(values)
	}
	n := len(values)
	if n == 0 {
		return summary{}
	}
	median := values[n/2]
	if n%2 == 0 {
		median = (values[n/2-1] + values[n/2]) / 2
	}
	return summary{median, values[0], values[(9*n+9)/10-1], n}
}

// figures are those of a row, in the order in which they were first measured.
type figures struct{ all []*figure }

func (fs *figures) add(name string, u unit, value float64) {
	f := fs.get(name)
	if f == nil {
		f = &figure{name: name, unit: u}
		fs.all = append(fs.all, f)
	}
	f.values = append(f.values, value)
}

func (fs *figures) get(name string) *figure {
	for _, f := range fs.all {
		if f.name == name {
			return f
		}
	}
	return nil
}

// median is 0 for what was not measured.
func (fs *figures) median(name string) float64 {
	if f := fs.get(name); f != nil {
		return summarize(f).median
	}
	return 0
}
