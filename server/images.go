package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"time"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines which image a sandbox is made from: the reference in its record
// becomes a digest when it is first made, and stays that. What the image says of
// user, folder and environment is the lowest layer of run_config (protocol.md
// §16.3).

// notesEvery is the time between two looks at a pull in a record.
const notesEvery = time.Second

// checkImage refuses an image that the client may not name.
func (s *Server) checkImage(ref string) error {
	if runtime.IsLocalImage(ref) && !s.options.LocalFiles {
		return unsupported("image", "images in files of the server's own machine are switched off: start it with --allow-local-files, after which whoever has its key may read them")
	}
	return nil
}

// fetchImage pins the image that a sandbox is made from, once.
func (s *Server) fetchImage(ctx context.Context, b *box) error {
	images, ok := s.options.Runtime.(runtime.Images)
	if !ok || b.Image == runtime.HostImage || b.Digest != "" {
		return nil
	}
	if err := s.checkImage(b.Image); err != nil {
		return err
	}
	request := runtime.ImageRequest{Ref: b.Image, Fresh: b.fresh, UserAuth: s.options.LocalFiles, Progress: s.pullNotes(b)}
	var err error
	if request.Logins, err = s.logins(b.registry); err != nil {
		return err
	}
	began := s.options.Now()
	image, err := images.Pull(ctx, request)
	if err != nil {
		return err
	}
	s.options.Log.Info("an image is there", "image", b.Image, "digest", image.Digest, "bytes", image.Bytes, "seconds", s.options.Now().Sub(began).Seconds())
	b.Digest, b.imageBytes = image.Digest, image.Bytes
	if image.User != "" || image.WorkDir != "" || len(image.Env) > 0 {
		b.Box.RunConfig = overlay(&wire.RunConfig{User: image.User, WorkDir: image.WorkDir, EnvVars: image.Env}, b.Box.RunConfig)
	}
	return s.store.update(ctx, func() error {
		now, err := s.store.boxes.get(b.Box.ID)
		if errors.Is(err, fs.ErrNotExist) {
			return errDeleted
		}
		if err != nil {
			return err
		}
		now.Digest, now.Box.RunConfig, now.Box.StatusMessage = b.Digest, b.Box.RunConfig, ""
		return s.store.boxes.put(b.Box.ID, now)
	})
}

// pullNotes says in the record of a sandbox that is being made, or of the snapshot
// that is built with it, how far its image is.
func (s *Server) pullNotes(b *box) func(done, total int64) {
	var last time.Time
	return func(done, total int64) {
		if now := time.Now(); now.Sub(last) < notesEvery {
			return
		} else {
			last = now
		}
		note := fmt.Sprintf("pulling %s: %d of %d MB", b.Image, done>>20, total>>20)
		err := s.store.update(context.Background(), func() error {
			if sn, err := s.store.snapshots.get(b.Pool); err == nil && sn.Snapshot.Status == wire.StatusBuilding {
				sn.Snapshot.StatusMessage = note
				return s.store.snapshots.put(b.Pool, sn)
			}
			now, err := s.store.boxes.get(b.Box.ID)
			if err != nil || now.Box.Status != wire.StatusProvisioning {
				return err
			}
			now.Box.StatusMessage = note
			return s.store.boxes.put(b.Box.ID, now)
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.options.Log.Warn("the progress of a pull could not be recorded", "box", b.Box.ID, "error", err)
		}
	}
}

// logins are those of all registry records; the one that is asked for comes first.
func (s *Server) logins(first string) ([]runtime.Login, error) {
	all, err := s.store.registries.newest()
	var logins []runtime.Login
	for _, r := range all {
		u, err := url.Parse(r.Registry.URL)
		if err == nil && u.Host == "" { // without a scheme
			u, err = url.Parse("https://" + r.Registry.URL)
		}
		if err != nil || u.Host == "" {
			continue
		}
		login := runtime.Login{Host: u.Host, Username: r.Username, Password: r.Password, Plain: u.Scheme == "http"}
		if r.Registry.ID == first {
			logins = append([]runtime.Login{login}, logins...)
		} else {
			logins = append(logins, login)
		}
	}
	return logins, err
}

// imageFailed is the answer when an image cannot be had (protocol.md §2.4).
func imageFailed(err *runtime.ImageError) error {
	f := fail(http.StatusUnprocessableEntity, kindImagePull, "%v", err)
	f.cause = err
	return f
}

// collectImages has the runtime delete the images that no record names.
func (s *Server) collectImages() {
	images, ok := s.options.Runtime.(runtime.Images)
	if !ok {
		return
	}
	err := images.CollectImages(s.ctx, func() (used runtime.ImagesInUse, err error) {
		used = runtime.ImagesInUse{Refs: map[string]bool{}, Digests: map[string]bool{}}
		err = s.store.update(s.ctx, func() error {
			templates, err := s.store.templates.whole()
			if err != nil {
				return err
			}
			for _, t := range templates {
				used.Refs[t.Image] = true
			}
			snapshots, err := s.store.snapshots.whole()
			if err != nil {
				return err
			}
			for _, sn := range snapshots {
				used.Refs[sn.Image], used.Digests[sn.Digest] = true, true
			}
			boxes, err := s.store.boxes.whole()
			for _, b := range boxes {
				used.Refs[b.Image], used.Digests[b.Digest] = true, true
			}
			return err
		})
		return used, err
	})
	if err != nil && s.ctx.Err() == nil {
		s.options.Log.Error("images that nobody needs could not be cleared away", "error", err)
	}
}
