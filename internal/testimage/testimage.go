// Package testimage makes small images for tests, and serves them from a registry
// on loopback. It needs the package busybox-static of Debian.
package testimage

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Entry is a file of a layer. A Header without a Typeflag and with Content is a
// file; without a Mode it has 0755.
type Entry struct {
	tar.Header
	Content string
}

// File, Folder and Link are the usual entries.
func File(name, content string) Entry { return Entry{tar.Header{Name: name}, content} }

// Folder is one without content.
func Folder(name string) Entry {
	return Entry{tar.Header{Name: name + "/", Typeflag: tar.TypeDir}, ""}
}

// Link is a symbolic link.
func Link(name, target string) Entry {
	return Entry{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}, ""}
}

// Tar is the archive of a layer.
func Tar(entries ...Entry) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.Mode == 0 {
			e.Mode = 0o755
		}
		e.Size = int64(len(e.Content))
		if err := w.WriteHeader(&e.Header); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, e.Content); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}

// Layer is a layer of these entries.
func Layer(entries ...Entry) (v1.Layer, error) {
	data, err := Tar(entries...)
	if err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
}

// tools are the names that busybox has in the image.
var tools = []string{"sh", "ls", "cat", "id", "stat", "touch", "rm", "mkdir", "grep", "env", "sleep", "ln", "chmod", "find", "sort", "hostname", "pwd", "dd"}

// Busybox are the entries of a root filesystem with a shell. A program that is not
// linked statically, as one with the race detector is not, finds its libraries in
// it: a daemon of this program is to run there.
func Busybox() ([]Entry, error) {
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("images of tests need busybox-static: %w", err)
	}
	entries := []Entry{
		Folder("bin"), File("bin/busybox", string(program)), Folder("etc"), File("etc/hostname", "builder\n"),
		File("bin/bash", "#!/bin/sh\nexec /bin/sh \"$@\"\n"),
		File("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000:Ann:/home/ann:/bin/sh\n"),
	}
	for _, tool := range tools {
		entries = append(entries, Link("bin/"+tool, "busybox"))
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	libraries, _ := exec.Command("ldd", self).Output() // fails of a static program
	for field := range strings.FieldsSeq(string(libraries)) {
		if !path.IsAbs(field) {
			continue
		}
		library, err := os.ReadFile(strings.TrimSuffix(field, ":"))
		if err != nil {
			return nil, err
		}
		entries = append(entries, File(field[1:], string(library)))
	}
	return entries, nil
}

// Image is an image of this machine's platform.
func Image(config v1.Config, layers ...v1.Layer) (v1.Image, error) {
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return nil, err
	}
	c, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	c = c.DeepCopy()
	c.OS, c.Architecture, c.Config = "linux", runtime.GOARCH, config
	return mutate.ConfigFile(img, c)
}

// BusyboxImage is an image of Busybox and more entries, in a layer of their own.
func BusyboxImage(config v1.Config, more ...Entry) (v1.Image, error) {
	base, err := Busybox()
	if err != nil {
		return nil, err
	}
	layers := make([]v1.Layer, 2)
	for i, entries := range [][]Entry{base, append(more, File("etc/made", ""))} {
		if layers[i], err = Layer(entries...); err != nil {
			return nil, err
		}
	}
	return Image(config, layers...)
}

// WriteFolder writes the files, folders and links among entries into a folder.
func WriteFolder(dir string, entries []Entry) error {
	for _, e := range entries {
		at := filepath.Join(dir, e.Name)
		err := os.MkdirAll(filepath.Dir(at), 0o755)
		switch {
		case err != nil:
		case e.Typeflag == tar.TypeDir:
			err = os.MkdirAll(at, 0o755)
		case e.Typeflag == tar.TypeSymlink:
			err = os.Symlink(e.Linkname, at)
		default:
			err = os.WriteFile(at, []byte(e.Content), 0o755)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Registry answers as an empty registry.
func Registry() http.Handler { return registry.New(registry.Logger(log.New(io.Discard, "", 0))) }

// Push puts an image into a registry.
func Push(reference string, img v1.Image) error {
	ref, err := name.ParseReference(reference)
	if err != nil {
		return err
	}
	return remote.Write(ref, img)
}
