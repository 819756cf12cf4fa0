package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// This file defines the record by which a snapshot is known for what it is.

// Origin is what the files of a snapshot came from, and so what can start with
// them.
type Origin struct {
	Runtime  string `json:"runtime"`  // Info.Name
	UID      int    `json:"uid"`      // outside, of the sandbox's root
	GID      int    `json:"gid"`      // likewise
	IDs      int    `json:"ids"`      // how many users, and groups, the sandbox had
	Hostname string `json:"hostname"` // which some of the files have in them
}

const originFile = "snapshot.json"

// WriteOrigin records what the files in the snapshot folder dir came from. It
// comes last: without it a snapshot is not whole.
func WriteOrigin(dir string, o Origin) error {
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, originFile), data, 0o600)
}

// ReadOrigin returns what WriteOrigin recorded. Unless it is of the same runtime
// and ids as want, the snapshot is refused by an *Unsupported.
func ReadOrigin(dir string, want Origin) (Origin, error) {
	data, err := os.ReadFile(filepath.Join(dir, originFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Origin{}, fmt.Errorf("%s is no whole snapshot: take it again", dir)
	}
	if err != nil {
		return Origin{}, err
	}
	var o Origin
	if err := json.Unmarshal(data, &o); err != nil {
		return Origin{}, fmt.Errorf("%s is damaged: %w", filepath.Join(dir, originFile), err)
	}
	switch {
	case o.Runtime != want.Runtime:
		return o, &Unsupported{
			What: fmt.Sprintf("the snapshot was taken of a sandbox of the %s runtime, and this is the %s runtime", o.Runtime, want.Runtime),
			Hint: "start it with a server that has the other one, or take it again",
		}
	case o.UID != want.UID || o.GID != want.GID || o.IDs != want.IDs:
		return o, &Unsupported{
			What: fmt.Sprintf("the files of the snapshot belong to %s, and those of this server's sandboxes to %s", o.owner(), want.owner()),
			Hint: "start it with a server of the user who took it, or take it again",
		}
	}
	return o, nil
}

func (o Origin) owner() string {
	if o.IDs > 1 {
		return fmt.Sprintf("the users from %d up to %d", o.UID, o.UID+o.IDs-1)
	}
	return fmt.Sprintf("user %d of group %d", o.UID, o.GID)
}
