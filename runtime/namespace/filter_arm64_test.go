//go:build linux

package namespace

// This file defines what Docker refuses on arm64 alone.

var dockerRefusesHere = map[string]uint32{}
