// Package wire holds the messages of the sandbox API as Go types: what a
// client sends and a server answers, as the protocol reference fixes it
// (protocol.md, whose sections are named where a rule comes from).
//
// The types know how to be encoded, decoded and checked, and nothing else.
// Three rules hold throughout:
//
//   - A request field whose absence means something else than its zero value
//     is a pointer, or a slice or map that is absent when nil.
//   - A response field that is missing or null takes the default of
//     protocol.md §8; unknown fields are ignored.
//   - Times are strings and are passed on as they came; sizes are bytes unless
//     the field is a Kubernetes quantity such as "512Mi"; durations are whole
//     seconds.
package wire

import "strings"

// Status values of boxes and snapshots (§2.4, §2.10).
const (
	StatusProvisioning = "provisioning"
	StatusReady        = "ready"
	StatusFailed       = "failed"
	StatusStopped      = "stopped"
	StatusDeleting     = "deleting"
	StatusBuilding     = "building"
)

// The rules say in words what ValidName, ValidSnapshotName and ValidSnapshotTag
// check.
const (
	NameRule         = "1 to 63 lower-case letters, digits and hyphens, with no hyphen first or last"
	SnapshotNameRule = "lower-case letters, digits, hyphens, underscores and dots, in parts of at most 128 with slashes between them, 255 in all"
	SnapshotTagRule  = "1 to 128 lower-case letters, digits, hyphens, underscores and dots"
)

// ValidName reports whether name can be given to a volume, template, pool, box
// or registry (§2.0).
func ValidName(name string) bool {
	return ofLowerCase(name, "-", 63) && name[0] != '-' && name[len(name)-1] != '-'
}

// ValidSnapshotName reports whether name can be given to a snapshot: parts joined
// by slashes (§2.0, §16.12), none of which is . or .. as in a path.
func ValidSnapshotName(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if !ValidSnapshotTag(part) || strings.Trim(part, ".") == "" {
			return false
		}
	}
	return len(name) <= 255
}

// ValidSnapshotTag reports whether tag can stand behind a snapshot's name (§2.0).
func ValidSnapshotTag(tag string) bool { return ofLowerCase(tag, "-_.", 128) }

// ofLowerCase reports whether s is 1 to most lower-case letters, digits and
// others. It is no regular expression because every start of a sandbox's first
// process would pay for compiling that.
func ofLowerCase(s, others string, most int) bool {
	return s != "" && len(s) <= most && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune(others, r)
	})
}

// ValidTTL reports whether seconds can be a time to live: zero, which turns it
// off, or a positive multiple of 60 (§9).
func ValidTTL(seconds int) bool { return seconds >= 0 && seconds%60 == 0 }
