//go:build linux

package namespace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/sbx-star/sbx-star/runtime"
)

// This file defines what a sandbox sees of the host.

// systemFolders are the only folders of the host's root that a sandbox sees, as
// far as they exist. Whatever is not named here is not there.
var systemFolders = []string{"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "opt", "nix"}

// ownFiles in /etc are written for each sandbox, not taken from the host.
var ownFiles = []string{"etc/hostname", "etc/hosts", "etc/resolv.conf"}

// plan says how the host's part of a sandbox's root is put together. All paths
// are relative to the root.
type plan struct {
	Dirs   []string // folders of the sandbox's own, parents first
	Layers []string // folders of the host, each below a copy-on-write layer
	Files  []string // files of the host, bound read-only
	Links  []link   // made again with the host's target
	Image  []string // folders of an image's layers, the topmost first, in the place of all of the host's
}

type link struct{ Path, Target string }

// planHost is the plan for this machine and a sandbox that is kept in dir.
func planHost(dir string) (plan, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return plan{}, err
	}
	if top, _, _ := strings.Cut(strings.TrimPrefix(real, "/"), "/"); slices.Contains(systemFolders, top) {
		return plan{}, &runtime.Unsupported{
			What: fmt.Sprintf("the state folder lies in /%s, which every sandbox sees", top),
			Hint: "choose one outside the system's folders by XDG_STATE_HOME",
		}
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return plan{}, err
	}
	mounts, err := mountPoints(string(mountinfo))
	if err != nil {
		return plan{}, err
	}
	return planRoot("/", mounts)
}

// mountPoints returns the mount points, without their leading slash, in a text
// of the format of /proc/self/mountinfo.
func mountPoints(mountinfo string) ([]string, error) {
	var points []string
	for line := range strings.Lines(mountinfo) {
		fields := strings.Split(line, " ") // all other white space may be part of one
		if len(fields) < 5 {
			return nil, fmt.Errorf("a line of mountinfo has only %d fields", len(fields))
		}
		points = append(points, unescapeOctal(strings.TrimPrefix(fields[4], "/")))
	}
	return points, nil
}

// unescapeOctal replaces \ooo, which is how the kernel writes white space and
// the backslash.
func unescapeOctal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// planRoot plans for the root folder root, in which mounts are mount points.
func planRoot(root string, mounts []string) (plan, error) {
	var p plan
	for _, top := range systemFolders {
		info, err := os.Lstat(filepath.Join(root, top))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return plan{}, err
		}
		p.add(root, top, info.Mode(), mounts)
	}
	if len(p.Layers) == 0 {
		return plan{}, &runtime.Unsupported{
			What: "this machine has none of the system folders that the image host consists of",
			Hint: "use a server that has images by --endpoint URL",
		}
	}
	return p, nil
}

// add plans for one path. A folder with mounts below it can't be the lower side
// of an overlay for an ordinary user (they might hide something), nor would the
// overlay show what is mounted there; so it becomes a folder of the sandbox's
// own, and its entries are planned each for itself, unless it is one that not
// everybody may read.
func (p *plan) add(root, path string, mode fs.FileMode, mounts []string) {
	switch {
	case mode&fs.ModeSymlink != 0:
		if target, err := os.Readlink(filepath.Join(root, path)); err == nil {
			p.Links = append(p.Links, link{path, target})
		}
	case mode.IsRegular():
		if !slices.Contains(ownFiles, path) {
			p.Files = append(p.Files, path)
		}
	case mode.IsDir():
		below := func(mount string) bool { return strings.HasPrefix(mount, path+"/") }
		if !slices.ContainsFunc(mounts, below) {
			p.Layers = append(p.Layers, path)
			return
		}
		if mode&0o005 != 0o005 {
			return
		}
		p.Dirs = append(p.Dirs, path)
		entries, _ := os.ReadDir(filepath.Join(root, path))
		for _, e := range entries {
			if info, err := e.Info(); err == nil {
				p.add(root, path+"/"+e.Name(), info.Mode(), mounts)
			}
		}
	}
}
