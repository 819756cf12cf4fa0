package server

import (
	"errors"
	"net/http"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines volumes (protocol.md §2.1): folders that outlive the
// sandboxes that see them, several at once if their templates say so.

const storageClass = "standard"

func (s *Server) createVolume(c call) (int, any, error) {
	var in wire.VolumeCreate
	if err := decode(c.body, &in); err != nil {
		return 0, nil, err
	}
	if err := checkName(in.Name); err != nil {
		return 0, nil, err
	}
	if err := s.checkSize(in.Size); err != nil {
		return 0, nil, err
	}
	now := s.now()
	v := &wire.Volume{Name: in.Name, Size: in.Size, StorageClass: storageClass, CreatedAt: now, UpdatedAt: now}
	err := s.store.update(c.Context(), func() error {
		if err := s.store.volumes.nameFree("", v.Name); err != nil {
			return err
		}
		if err := s.roomForVolume("", v.Size); err != nil {
			return err
		}
		v.ID = s.options.NewID()
		// The folder first: what has no record is swept up, what has one is whole.
		if err := os.MkdirAll(s.store.volumeDir(v.ID), 0o700); err != nil {
			return err
		}
		return s.store.volumes.put(v.ID, v)
	})
	if _, told := errors.AsType[*failure](err); err != nil && !told {
		f := fail(http.StatusServiceUnavailable, kindNoVolume, "the volume %q could not be made: the server's log says why under this id", v.Name)
		f.cause = err
		return 0, nil, f
	}
	return http.StatusCreated, v, err
}

func (s *Server) checkSize(size string) error {
	if quantity(size) == nil {
		return invalid("body.size", "the size %q is not one: want a quantity such as 512Mi or 10Gi", size)
	}
	return s.checkLimits(limit{"size", true, false})
}

func (s *Server) listVolumes(c call) (int, any, error) {
	all, err := s.store.volumes.newest()
	if err != nil {
		return 0, nil, err
	}
	page, err := page(c.URL.Query(), all)
	if err != nil {
		return 0, nil, err
	}
	list := wire.VolumeList{Volumes: []wire.Volume{}}
	for _, v := range page {
		list.Volumes = append(list.Volumes, *v)
	}
	return http.StatusOK, list, nil
}

func (s *Server) getVolume(c call) (int, any, error) {
	v, err := s.store.volumes.find(c.name)
	return http.StatusOK, v, err
}

func (s *Server) updateVolume(c call) (int, any, error) {
	var in wire.VolumeUpdate
	if err := decode(c.body, &in); err != nil {
		return 0, nil, err
	}
	if in.Name != nil {
		if err := checkName(*in.Name); err != nil {
			return 0, nil, err
		}
	}
	if in.Size != nil {
		if err := s.checkSize(*in.Size); err != nil {
			return 0, nil, err
		}
	}
	var v *wire.Volume
	err := s.store.update(c.Context(), func() (err error) {
		if v, err = s.store.volumes.find(c.name); err != nil {
			return err
		}
		before := *v
		if in.Name != nil {
			if err := s.store.volumes.nameFree(v.ID, *in.Name); err != nil {
				return err
			}
			v.Name = *in.Name
		}
		if in.Size != nil {
			switch quantity(*in.Size).Cmp(quantity(v.Size)) {
			case -1:
				return fail(http.StatusBadRequest, kindResize, "the volume %q cannot shrink from %s to %s", before.Name, v.Size, *in.Size)
			case 1:
				if err := s.roomForVolume(v.ID, *in.Size); err != nil {
					return err
				}
				v.Size = *in.Size
			}
		}
		if *v == before {
			return nil
		}
		v.UpdatedAt = s.now()
		return s.store.volumes.put(v.ID, v)
	})
	return http.StatusOK, v, err
}

// deleteVolume answers once no file of the volume is left.
func (s *Server) deleteVolume(c call) (int, any, error) {
	var folder string
	err := s.store.update(c.Context(), func() error {
		v, err := s.store.volumes.find(c.name)
		if err != nil {
			return err
		}
		if err := s.volumeUnused(v); err != nil {
			return err
		}
		folder, err = s.store.volumes.detach(v.ID)
		return err
	})
	if err != nil {
		return 0, nil, err
	}
	s.store.clear(folder)
	return http.StatusNoContent, nil, nil
}

func (s *Server) volumeUnused(v *wire.Volume) error {
	mounts := func(list []wire.VolumeMount) bool {
		return slices.ContainsFunc(list, func(m wire.VolumeMount) bool { return m.VolumeName == v.ID })
	}
	const inUse = "the volume %q is in use by the %s %q: delete that first"
	templates, err := s.store.templates.all()
	if err != nil {
		return err
	}
	for _, t := range templates {
		if mounts(t.VolumeMounts) {
			return fail(http.StatusConflict, kindConflict, inUse, v.Name, "template", t.Name)
		}
	}
	boxes, err := s.store.boxes.all()
	for _, b := range boxes {
		if mounts(b.Mounts) {
			return fail(http.StatusConflict, kindConflict, inUse, v.Name, "sandbox", b.Box.Name)
		}
	}
	return err
}

// mounts checks what a template wants mounted, and returns it with the volumes'
// ids in place of their names, which can change.
func (s *Server) mounts(asked []wire.VolumeMount) ([]wire.VolumeMount, error) {
	mounts := []wire.VolumeMount{}
	for i, m := range asked {
		at := "body.volume_mounts." + strconv.Itoa(i)
		v, err := s.store.volumes.find(m.VolumeName)
		if f, ok := errors.AsType[*failure](err); ok {
			return nil, invalid(at+".volume_name", "%v", f)
		}
		if err != nil {
			return nil, err
		}
		if !mountable(m.MountPath) {
			return nil, invalid(at+".mount_path", "the path %q is not one to mount at: want an absolute path without . and .., outside of /dev, /proc and /sys", m.MountPath)
		}
		for _, other := range mounts {
			if within(m.MountPath, other.MountPath) || within(other.MountPath, m.MountPath) {
				return nil, invalid(at+".mount_path", "the paths %q and %q overlap", other.MountPath, m.MountPath)
			}
		}
		mounts = append(mounts, wire.VolumeMount{VolumeName: v.ID, MountPath: m.MountPath})
	}
	return mounts, nil
}

func mountable(target string) bool {
	if !strings.HasPrefix(target, "/") || target == "/" || path.Clean(target) != target || strings.Contains(target, "\x00") {
		return false
	}
	return !slices.ContainsFunc([]string{"/dev", "/proc", "/sys"}, func(dir string) bool { return within(target, dir) })
}

// within reports whether a clean path is dir or below it.
func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }
