package runtime

import (
	"context"
	"fmt"
	"strings"
)

// This file defines what a runtime has that makes sandboxes from images other
// than HostImage.

// Images is a Runtime with images. What it keeps of them may be shared by several
// processes.
type Images interface {
	// Pull sees to it that sandboxes can be made from an image, and returns which
	// one that is. What the same or another call has fetched before, in part or
	// wholly, is not fetched again. An image that cannot be had is an *ImageError.
	Pull(ctx context.Context, request ImageRequest) (Image, error)

	// CollectImages deletes the images of which keep says that nobody needs them.
	// It asks when no pull is under way; while one is, nothing is deleted.
	CollectImages(ctx context.Context, keep func() (ImagesInUse, error)) error
}

// ImageRequest asks for an image.
type ImageRequest struct {
	Ref      string // such as "python:3.12", or one that IsLocalImage
	Fresh    bool   // look where it comes from, though there may be one of that name here
	Logins   []Login
	UserAuth bool                    // the registry logins of this process's user may be used
	Progress func(done, total int64) // bytes; may be nil. Called by one goroutine at a time, until Pull returns
}

// Login is what a registry is shown.
type Login struct {
	Host               string // of the registry, with its port if it has one
	Username, Password string
	Plain              bool // it speaks HTTP without TLS
}

// Image is one that sandboxes can be made from: its digest is the Spec.Image.
type Image struct {
	Digest  string            // "sha256:…"
	Bytes   int64             // of its unpacked files
	Env     map[string]string // of its commands
	WorkDir string            // where they run; "" if it does not say
	User    string            // as whom; "" if it does not say
}

// ImagesInUse are the images that somebody needs.
type ImagesInUse struct {
	Refs    map[string]bool // asked for by these references
	Digests map[string]bool // or named by these digests
}

// localImages begin the references to files of this machine.
var localImages = []string{"dir:", "docker-archive:", "oci:"}

// IsLocalImage reports whether a reference names files of this machine.
func IsLocalImage(ref string) bool {
	for _, prefix := range localImages {
		if strings.HasPrefix(ref, prefix) {
			return true
		}
	}
	return false
}

// ImageError says why an image cannot be had and what to do about it.
type ImageError struct {
	Ref  string
	What string // "the registry example.org can't be reached"
	Hint string // "…"; may be ""
	Err  error  // what was said; may be nil
}

func (e *ImageError) Error() string {
	text := fmt.Sprintf("the image %q cannot be had: %s", e.Ref, e.What)
	if e.Err != nil {
		text += fmt.Sprintf(" (%.500s)", e.Err)
	}
	if e.Hint != "" {
		text += ": " + e.Hint
	}
	return text
}

func (e *ImageError) Unwrap() error { return e.Err }
