package wire

// This file defines the discovery document of this project's servers (§15).

// Generations of the API, oldest first.
const (
	Seed    = "seed"
	Classic = "classic"
	Head    = "head"
	Late    = "late"
)

// Info is the answer to GET {base}/info, which no other server has.
type Info struct {
	Server      string         `json:"server"`
	Version     string         `json:"version"`
	Generations []string       `json:"generations"`
	Runtime     string         `json:"runtime"`
	Isolation   string         `json:"isolation"`
	Extensions  []string       `json:"extensions"`
	Limits      map[string]any `json:"limits"`
	Enforces    Enforces       `json:"enforces"`
}

// Enforces says which options a runtime really holds a sandbox to.
type Enforces struct {
	CPU           bool `json:"cpu"`
	Memory        bool `json:"memory"`
	Pids          bool `json:"pids"`
	Storage       bool `json:"storage"`
	Network       bool `json:"network"`
	AccessControl bool `json:"access_control"`
}
