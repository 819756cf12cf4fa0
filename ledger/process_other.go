//go:build !linux

package ledger

import "os"

// This file stands in for the look at processes where the lock alone tells
// whether one lives.

type process struct {
	PID int `json:"pid"`
}

func thisProcess() (process, error) { return process{os.Getpid()}, nil }

func (process) alive() bool { return false }
