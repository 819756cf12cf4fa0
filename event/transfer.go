package event

import "fmt"

// This file defines what tells of long transfers.

// Transfer says how far a transfer of files has come. A short one tells nothing.
type Transfer struct {
	Place
	Upload  bool   `json:"upload" doc:"whether to the sandbox, or else from it"`
	Sandbox string `json:"sandbox" doc:"which sandbox"`
	Path    string `json:"path" doc:"in the sandbox"`
	Files   int    `json:"files" doc:"how many so far"`
	Bytes   int64  `json:"bytes" doc:"how much so far"`
	Done    bool   `json:"done" doc:"whether it has ended well"`
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
