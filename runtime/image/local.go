//go:build linux

package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/runtime"
)

// This file defines how images come from files of this machine: what docker save
// wrote, an OCI layout, and a folder that is a root filesystem.

// archiveSource is an image in what docker save wrote.
func archiveSource(file string) (*source, error) {
	if info, err := os.Stat(file); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", file)
	}
	img, err := tarball.ImageFromPath(file, nil)
	if err != nil {
		return nil, &runtime.ImageError{What: file + " is not an archive of one image", Err: err, Hint: "make it by docker save IMAGE -o FILE, with one IMAGE"}
	}
	raw, err := img.RawConfigFile()
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	src, err := describe(config)
	if err != nil {
		return nil, err
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	if len(layers) != len(config.RootFS.DiffIDs) {
		return nil, fmt.Errorf("%s has %d layers and its configuration %d", file, len(layers), len(config.RootFS.DiffIDs))
	}
	src.digest = hashOf(raw).String() // Docker calls it the image's id
	for i, l := range layers {
		src.layers = append(src.layers, layer{
			diffID: config.RootFS.DiffIDs[i].Hex,
			open:   func(context.Context, *progress) (io.ReadCloser, error) { return l.Uncompressed() },
		})
	}
	return src, nil
}

// layoutSource is the image of this machine's platform in an OCI layout.
func layoutSource(_ context.Context, dir string) (*source, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, &runtime.ImageError{What: dir + " is not an OCI layout", Err: err}
	}
	img, err := pick(index, true)
	if err != nil {
		return nil, err
	}
	src, descriptors, err := describeImage(img)
	if err != nil {
		return nil, err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return nil, err
	}
	if hashOf(manifest).String() != src.digest {
		return nil, errors.New("its manifest has other content than its digest says")
	}
	for i, d := range descriptors {
		src.layers[i].size = 0 // nothing is downloaded
		src.layers[i].open = func(context.Context, *progress) (io.ReadCloser, error) {
			return layout.Path(dir).Blob(d.Digest) // the digest of what is in it is checked later
		}
	}
	return src, nil
}

// folderSource is a root filesystem as an image of one layer.
func folderSource(ctx context.Context, dir string) (*source, error) {
	if info, err := os.Stat(dir); err != nil {
		return nil, err
	} else if !info.IsDir() {
		return nil, fmt.Errorf("%s is not a folder", dir)
	}
	sum := sha256.New()
	if err := writeFolder(ctx, sum, dir); err != nil {
		return nil, err
	}
	diffID := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}
	config := &v1.ConfigFile{OS: "linux", Architecture: goruntime.GOARCH, RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{diffID}}}
	raw, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	src, err := describe(config)
	if err != nil {
		return nil, err
	}
	src.digest = hashOf(raw).String()
	src.layers = []layer{{diffID: diffID.Hex, open: func(ctx context.Context, _ *progress) (io.ReadCloser, error) {
		r, w := io.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.CloseWithError(writeFolder(ctx, w, dir))
		}()
		return &piped{r, done}, nil
	}}}
	return src, nil
}

// piped is what a goroutine writes, which Close ends and waits for.
type piped struct {
	*io.PipeReader
	done chan struct{}
}

func (p *piped) Close() error {
	err := p.PipeReader.Close()
	<-p.done
	return err
}

// writeFolder writes what is in a folder as an archive, the same as long as the
// folder is. What is mounted below it is left out, as are devices and sockets.
func writeFolder(ctx context.Context, w io.Writer, dir string) error {
	archive := tar.NewWriter(w)
	linked := map[uint64]string{}
	var device uint64
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &os.PathError{Op: "examine", Path: path, Err: err}
		}
		if path == dir {
			if device = st.Dev; st.Mode&unix.S_IFMT != unix.S_IFDIR {
				return fmt.Errorf("%s is a link: name the folder that it leads to", dir)
			}
			return nil
		}
		if st.Dev != device {
			if e.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if strings.HasPrefix(e.Name(), whiteout) {
			return fmt.Errorf("%s has a name that means a deletion in an image: rename it", path)
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return writeEntry(archive, path, name, &st, linked)
	})
	return errors.Join(err, closeIf(err == nil, archive))
}

// closeIf ends an archive that has all its entries.
func closeIf(whole bool, archive *tar.Writer) error {
	if !whole {
		return nil
	}
	return archive.Close()
}

func writeEntry(archive *tar.Writer, path, name string, st *unix.Stat_t, linked map[uint64]string) (err error) {
	h := &tar.Header{Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), Format: tar.FormatPAX}
	h.ModTime = time.Unix(st.Mtim.Unix())
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = os.Readlink(path); err != nil {
			return err
		}
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
		if first, ok := linked[st.Ino]; ok {
			h.Typeflag, h.Size, h.Linkname = tar.TypeLink, 0, first
		} else if st.Nlink > 1 {
			linked[st.Ino] = name
		}
	default:
		return nil
	}
	if h.Typeflag != tar.TypeReg {
		return archive.WriteHeader(h)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := archive.WriteHeader(h); err != nil {
		return err
	}
	if n, err := io.Copy(archive, io.LimitReader(f, h.Size)); err != nil {
		return err
	} else if n < h.Size {
		return fmt.Errorf("%s has changed while it was read: try again when nobody writes", path)
	}
	return nil
}
