package event

import "fmt"

// This file defines what tells of long transfers.

// Transfer says how far a transfer of files has come. A short one tells nothing.
type Transfer struct {
	Upload  bool   // or else a download
	Sandbox string // its name
	Path    string // in the sandbox
	Files   int    // so far
	Bytes   int64
	Done    bool // it has ended well
}

func (e Transfer) line() string {
	verb, preposition := "downloading", "from"
	if e.Upload {
		verb, preposition = "uploading", "to"
	}
	state := "so far"
	if e.Done {
		state = "done"
	}
	return fmt.Sprintf("%s %s %s in sandbox %s: %d files, %.1f MiB, %s", verb, preposition, e.Path, e.Sandbox, e.Files, float64(e.Bytes)/(1<<20), state)
}
