//go:build linux

package image

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	goruntime "runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sbx-star/sbx-star/runtime"
)

// This file defines what an image is, wherever it comes from.

// source is an image that can be fetched.
type source struct {
	digest string // of the manifest, or of the configuration where there is no manifest
	image  runtime.Image
	layers []layer // the lowest first
	close  func()
}

// layer is one that can be fetched.
type layer struct {
	diffID string // of the unpacked archive, in hex
	size   int64  // of what is downloaded; 0 if nothing is
	blob   string // name of the download in blobs; "" for none
	open   func(ctx context.Context, p *progress) (io.ReadCloser, error)
}

// resolve finds out what a reference stands for now.
func (s *Store) resolve(ctx context.Context, request runtime.ImageRequest) (*source, error) {
	kind, file, _ := strings.Cut(request.Ref, ":")
	if !runtime.IsLocalImage(request.Ref) {
		return s.registrySource(ctx, request)
	}
	if !path.IsAbs(file) || path.Clean(file) != file {
		return nil, &runtime.ImageError{What: fmt.Sprintf("%q is not a whole path", file), Hint: "give it from the root on, without . and .., as in " + kind + ":/images/base"}
	}
	switch kind {
	case "dir":
		return folderSource(ctx, file)
	case "oci":
		return layoutSource(ctx, file)
	}
	return archiveSource(file)
}

// platform is what this machine runs.
func platform() string { return "linux/" + goruntime.GOARCH }

func wrongPlatform(has []string) error {
	slices.Sort(has)
	return &runtime.ImageError{
		What: fmt.Sprintf("it is for %s, and this machine is %s", strings.Join(slices.Compact(has), ", "), platform()),
		Hint: "choose one that is made for this machine",
	}
}

// pick chooses the image of this machine's platform. If only is set there must be
// one such image alone.
func pick(index v1.ImageIndex, only bool) (v1.Image, error) {
	var fit []v1.Image
	var has []string
	var look func(index v1.ImageIndex, depth int) error
	look = func(index v1.ImageIndex, depth int) error {
		m, err := index.IndexManifest()
		if err != nil {
			return err
		}
		for _, d := range m.Manifests {
			p := d.Platform
			switch {
			case d.MediaType.IsIndex() && depth < 3:
				below, err := index.ImageIndex(d.Digest)
				if err == nil {
					err = look(below, depth+1)
				}
				if err != nil {
					return err
				}
			case !d.MediaType.IsImage():
			case p != nil && p.OS+"/"+p.Architecture != platform():
				if p.OS != "unknown" { // no image, but what is said about one
					has = append(has, p.OS+"/"+p.Architecture)
				}
			case len(fit) == 0 || only:
				img, err := index.Image(d.Digest)
				if err != nil {
					return err
				}
				fit = append(fit, img)
			}
		}
		return nil
	}
	if err := look(index, 0); err != nil {
		return nil, err
	}
	switch {
	case len(fit) > 1:
		return nil, &runtime.ImageError{What: fmt.Sprintf("there are %d images", len(fit)), Hint: "keep each in a place of its own"}
	case len(fit) == 1:
		return fit[0], nil
	case len(has) > 0:
		return nil, wrongPlatform(has)
	}
	return nil, &runtime.ImageError{What: "there is no image"}
}

// describe checks the configuration of an image and takes from it what a sandbox
// is to have. What it would start by itself is left out.
func describe(config *v1.ConfigFile) (*source, error) {
	if config.OS != "" && config.OS+"/"+config.Architecture != platform() {
		return nil, wrongPlatform([]string{config.OS + "/" + config.Architecture})
	}
	src := &source{close: func() {}}
	src.image.User = config.Config.User
	if dir := config.Config.WorkingDir; dir != "" {
		src.image.WorkDir = path.Join("/", dir)
	}
	size := 0
	for _, entry := range config.Config.Env {
		size += len(entry)
		key, value, ok := strings.Cut(entry, "=")
		if !ok || key == "" {
			continue
		}
		if size > maxEnv || strings.Contains(entry, "\x00") {
			return nil, &runtime.ImageError{What: "its environment is larger than " + fmt.Sprint(maxEnv) + " bytes, or not text"}
		}
		if src.image.Env == nil {
			src.image.Env = map[string]string{}
		}
		src.image.Env[key] = value
	}
	return src, checkLayers(config.RootFS.DiffIDs)
}

func checkLayers(diffIDs []v1.Hash) error {
	if n := len(diffIDs); n == 0 || n > maxLayers {
		return &runtime.ImageError{What: fmt.Sprintf("it has %d layers, and a sandbox takes from 1 to %d", n, maxLayers)}
	}
	for _, h := range diffIDs {
		if raw, err := hex.DecodeString(h.Hex); h.Algorithm != "sha256" || err != nil || len(raw) != 32 {
			return &runtime.ImageError{What: fmt.Sprintf("%q is not the digest of a layer", h)}
		}
	}
	return nil
}

// describeImage is describe for one that has a manifest. Of its layers, digests and
// sizes are set.
func describeImage(img v1.Image) (*source, []v1.Descriptor, error) {
	m, err := img.Manifest()
	if err != nil {
		return nil, nil, err
	}
	if m.Config.Size > maxConfig {
		return nil, nil, &runtime.ImageError{What: fmt.Sprintf("its configuration is larger than %d bytes", maxConfig)}
	}
	raw, err := img.RawConfigFile()
	if err != nil {
		return nil, nil, err
	}
	if got := hashOf(raw); got != m.Config.Digest {
		return nil, nil, errors.New("its configuration has other content than its digest says")
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, nil, err
	}
	src, err := describe(config)
	if err != nil {
		return nil, nil, err
	}
	if len(m.Layers) != len(config.RootFS.DiffIDs) {
		return nil, nil, fmt.Errorf("its manifest has %d layers and its configuration %d", len(m.Layers), len(config.RootFS.DiffIDs))
	}
	digest, err := img.Digest()
	if err != nil {
		return nil, nil, err
	}
	src.digest = digest.String()
	var total int64
	for i, d := range m.Layers {
		if raw, err := hex.DecodeString(d.Digest.Hex); d.Digest.Algorithm != "sha256" || err != nil || len(raw) != 32 || d.Size < 0 || d.Size > maxBytes {
			return nil, nil, errors.New("its manifest has a layer without a proper digest and size")
		}
		total += d.Size
		src.layers = append(src.layers, layer{diffID: config.RootFS.DiffIDs[i].Hex, size: d.Size})
	}
	if total > maxBytes {
		return nil, nil, fmt.Errorf("its layers have more than %d bytes together", int64(maxBytes))
	}
	return src, m.Layers, nil
}

func hashOf(data []byte) v1.Hash {
	h, _, _ := v1.SHA256(strings.NewReader(string(data))) // memory can be read
	return h
}
