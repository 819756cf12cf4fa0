//go:build linux

// Package image keeps images from which sandboxes are made: it fetches them from
// registries and files, checks every byte by its digest, and unpacks each layer
// once into a folder that any number of sandboxes have as a lower side.
//
// Several processes may use one store at once. What is under way has a name of its
// own until it is whole, so a process that is killed leaves nothing that is read.
package image

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/runtime/tree"
)

// This file defines the store. In its folder:
//
//	lock                   shared by those who pull, for one who collects
//	names/<sha256 of ref>  which digest a reference stood for
//	manifests/<digest>     the layers and the configuration of an image
//	layers/<key>/files/    an unpacked layer
//	layers/<key>/layer     its record, which comes last
//	layers/<key>.new/      one that is being unpacked
//	blobs/<digest>         a layer as it was downloaded so far
//	blobs/<key>.lock       taken by the one who fetches that layer
//	trash/                 on its way out

// Worker does what a sandbox's root has to, so that unpacked files are its own.
// The archive and the files are a stranger's.
type Worker interface {
	// Unpack makes the folder dir and unpacks an archive into it, as Unpack does.
	Unpack(ctx context.Context, dir string, archive io.Reader, most Limits) (Unpacked, error)
	// Sum returns the Sum of a folder that Unpack made.
	Sum(ctx context.Context, dir string) (string, error)
}

// Options say how a store works. All but Mirrors are required.
type Options struct {
	Dir     string // made when it is first needed
	Worker  Worker
	Owner   string // names whom unpacked files belong to; others' layers are not used
	Mirrors string // where to go instead of registries, as in ParseMirrors
}

// Store keeps images. It is safe for concurrent use.
type Store struct {
	options Options
	mirrors map[string]string

	mu       sync.Mutex
	verified map[string]bool // keys of layers that this process has checked
}

// What an image may have.
const (
	maxLayers = 128
	maxBytes  = 32 << 30
	maxFiles  = 2_000_000
	maxConfig = 8 << 20
	maxEnv    = 256 << 10
)

const (
	stalePart = 24 * time.Hour         // since a download got its last byte, for it to be given up
	lockPoll  = 20 * time.Millisecond  // the kernel tells nobody that a lock is free
	atOnce    = 3                      // layers that one pull fetches at a time
	notesPace = 200 * time.Millisecond // between two reports of progress
)

// New returns the store in a folder.
func New(o Options) (*Store, error) {
	mirrors, err := ParseMirrors(o.Mirrors)
	if err != nil {
		return nil, err
	}
	return &Store{options: o, mirrors: mirrors, verified: map[string]bool{}}, nil
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(s.options.Dir, filepath.Join(parts...))
}

// manifest is the record of an image.
type manifest struct {
	Digest string        `json:"digest"`
	Layers []string      `json:"layers"` // digests of the unpacked archives in hex, the lowest first
	Image  runtime.Image `json:"image"`
}

// layerRecord is the record of a layer.
type layerRecord struct {
	Unpacked Unpacked `json:"unpacked"`
	Sum      string   `json:"sum"`
}

// name is the record of a reference.
type name struct {
	Ref    string `json:"ref"`
	Digest string `json:"digest"`
}

// Pull implements runtime.Images.
func (s *Store) Pull(ctx context.Context, request runtime.ImageRequest) (runtime.Image, error) {
	for _, sub := range []string{"names", "manifests", "layers", "blobs", "trash"} {
		if err := os.MkdirAll(s.path(sub), 0o700); err != nil {
			return runtime.Image{}, err
		}
	}
	unlock, err := s.lock(ctx, s.path("lock"), unix.LOCK_SH)
	if err != nil {
		return runtime.Image{}, err
	}
	defer unlock()
	if !request.Fresh {
		if m, err := s.named(request.Ref); err != nil || m != nil {
			return m.image(), err
		}
	}
	src, err := s.resolve(ctx, request)
	if err == nil {
		defer src.close()
		err = s.fetch(ctx, src, request.Progress)
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return runtime.Image{}, asImageError(request.Ref, err)
	}
	m := &manifest{Digest: src.digest, Image: src.image}
	m.Image.Digest = src.digest
	for _, l := range src.layers {
		record, err := s.layer(l.diffID)
		if err != nil {
			return runtime.Image{}, err
		}
		m.Layers = append(m.Layers, l.diffID)
		m.Image.Bytes += record.Unpacked.Bytes
	}
	if err := writeRecord(s.manifestPath(m.Digest), m); err != nil {
		return runtime.Image{}, err
	}
	return m.Image, writeRecord(s.namePath(request.Ref), name{request.Ref, m.Digest})
}

func (m *manifest) image() runtime.Image {
	if m == nil {
		return runtime.Image{}
	}
	return m.Image
}

// asImageError leaves alone what is not the image's fault.
func asImageError(ref string, err error) error {
	if e, ok := errors.AsType[*runtime.ImageError](err); ok {
		e.Ref = ref
		return err
	}
	if errors.Is(err, runtime.ErrDiskFull) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, ok := errors.AsType[*runtime.Unsupported](err); ok {
		return err
	}
	return &runtime.ImageError{Ref: ref, What: err.Error()}
}

// named returns the image that a reference stood for, if it is whole, or nil.
func (s *Store) named(ref string) (*manifest, error) {
	var n name
	if err := readRecord(s.namePath(ref), &n); err != nil || n.Ref != ref {
		return nil, ignoreMissing(err)
	}
	m, err := s.manifest(n.Digest)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	for _, diffID := range m.Layers {
		if _, err := s.layer(diffID); err != nil {
			return nil, ignoreMissing(err)
		}
	}
	return m, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (s *Store) manifest(digest string) (*manifest, error) {
	m := new(manifest)
	return m, readRecord(s.manifestPath(digest), m)
}

func (s *Store) layer(diffID string) (*layerRecord, error) {
	l := new(layerRecord)
	return l, readRecord(s.path("layers", s.key(diffID), "layer"), l)
}

// key names a layer on disk.
func (s *Store) key(diffID string) string { return diffID + "-" + s.options.Owner }

func (s *Store) namePath(ref string) string {
	sum := sha256.Sum256([]byte(ref))
	return s.path("names", hex.EncodeToString(sum[:]))
}

// manifestPath is for any text: one that is no digest has no record.
func (s *Store) manifestPath(digest string) string {
	sum, ok := strings.CutPrefix(digest, "sha256:")
	if raw, err := hex.DecodeString(sum); !ok || err != nil || len(raw) != sha256.Size {
		sum = "none"
	}
	return s.path("manifests", sum)
}

func readRecord(path string, record any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, record); err != nil {
		return fmt.Errorf("%s is damaged: delete it to have the image fetched again", path)
	}
	return nil
}

func writeRecord(path string, record any) error {
	data, err := json.Marshal(record)
	if err != nil {
		return err
	}
	temporary := path + "." + uuid.NewString() // several may write the same
	if err := os.WriteFile(temporary, data, 0o600); err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	return os.Rename(temporary, path)
}

// lock waits for the lock of a file, which it makes.
func (s *Store) lock(ctx context.Context, path string, how int) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, &os.PathError{Op: "lock", Path: path, Err: err}
		}
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		}
	}
}

// fetch sees to it that all layers are there.
func (s *Store) fetch(ctx context.Context, src *source, report func(done, total int64)) error {
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	p := &progress{report: report}
	for _, l := range src.layers {
		p.total += l.size
	}
	budget := &budget{bytes: maxBytes, files: maxFiles}
	slots := make(chan struct{}, atOnce)
	var work sync.WaitGroup
	fetched := map[string]bool{}
	for _, l := range src.layers {
		if fetched[l.diffID] { // the same one may be there twice
			continue
		}
		fetched[l.diffID] = true
		work.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if ctx.Err() != nil {
				return
			}
			if err := s.fetchLayer(ctx, l, budget, p); err != nil {
				giveUp(err)
			}
		})
	}
	work.Wait()
	return context.Cause(ctx)
}

// budget is what the layers of an image may have together.
type budget struct {
	mu    sync.Mutex
	bytes int64
	files int
}

func (b *budget) limits() Limits {
	b.mu.Lock()
	defer b.mu.Unlock()
	return Limits{b.bytes, b.files}
}

func (b *budget) spend(u Unpacked) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bytes -= u.Bytes
	b.files -= u.Files
	if b.bytes < 0 || b.files < 0 {
		return fmt.Errorf("its layers have more than %d bytes or %d files together", int64(maxBytes), maxFiles)
	}
	return nil
}

// fetchLayer sees to it that a layer is there. Of several callers, in this process
// and others, one fetches it; when that one gives up, the next goes on.
func (s *Store) fetchLayer(ctx context.Context, l layer, budget *budget, p *progress) error {
	key := s.key(l.diffID)
	unlock, err := s.lock(ctx, s.path("blobs", key+".lock"), unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	if record, err := s.layer(l.diffID); !errors.Is(err, fs.ErrNotExist) {
		p.add(l.size)
		return cmp.Or(err, budget.spend(record.Unpacked))
	}
	archive, err := l.open(ctx, p)
	if err != nil {
		return err
	}
	defer archive.Close()
	fresh := s.path("layers", key+".new")
	if err := tree.Remove(ctx, fresh); err != nil { // of a process that was killed
		return err
	}
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return err
	}
	err = s.unpack(ctx, fresh, archive, l, budget)
	if err == nil {
		err = os.Rename(fresh, s.path("layers", key))
	}
	if err != nil {
		return errors.Join(err, tree.Remove(context.WithoutCancel(ctx), fresh))
	}
	s.mu.Lock()
	s.verified[key] = true
	s.mu.Unlock()
	if l.blob != "" {
		return ignoreMissing(os.Remove(s.path("blobs", l.blob)))
	}
	return nil
}

func (s *Store) unpack(ctx context.Context, dir string, archive io.Reader, l layer, budget *budget) error {
	files := filepath.Join(dir, "files")
	got, err := s.options.Worker.Unpack(ctx, files, archive, budget.limits())
	if err != nil {
		return fmt.Errorf("the layer sha256:%s cannot be unpacked: %w", l.diffID, err)
	}
	if got.DiffID != l.diffID {
		return fmt.Errorf("the layer sha256:%s has other content than its digest says", l.diffID)
	}
	if err := budget.spend(got); err != nil {
		return err
	}
	sum, err := s.options.Worker.Sum(ctx, files)
	if err != nil {
		return err
	}
	return writeRecord(filepath.Join(dir, "layer"), layerRecord{got, sum})
}

// Layers returns the folders of an image that Pull returned, the topmost first. The
// first time that this process uses a layer, it is looked through for changes.
func (s *Store) Layers(ctx context.Context, digest string) ([]string, error) {
	m, err := s.manifest(digest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &runtime.ImageError{Ref: digest, What: "it is not in the store any more", Hint: "make the sandbox anew"}
	}
	if err != nil {
		return nil, err
	}
	var folders []string
	for _, diffID := range slices.Backward(m.Layers) {
		dir := s.path("layers", s.key(diffID))
		record, err := s.layer(diffID)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &runtime.ImageError{Ref: digest, What: "its layer sha256:" + diffID + " is not in the store any more", Hint: "make the sandbox anew"}
		}
		if err == nil {
			err = s.verify(ctx, dir, record)
		}
		if err != nil {
			return nil, err
		}
		folders = append(folders, filepath.Join(dir, "files"))
	}
	return folders, nil
}

func (s *Store) verify(ctx context.Context, dir string, record *layerRecord) error {
	key := filepath.Base(dir)
	s.mu.Lock()
	known := s.verified[key]
	s.mu.Unlock()
	if known {
		return nil
	}
	sum, err := s.options.Worker.Sum(ctx, filepath.Join(dir, "files"))
	if err != nil {
		return err
	}
	if sum != record.Sum {
		return &runtime.ImageError{
			Ref:  "sha256:" + record.Unpacked.DiffID,
			What: "the files of this layer were changed on disk after they had been unpacked",
			Hint: "delete the folder " + dir + " to have it fetched again with the next sandbox that is made",
		}
	}
	s.mu.Lock()
	s.verified[key] = true
	s.mu.Unlock()
	return nil
}

// CollectImages implements runtime.Images.
func (s *Store) CollectImages(ctx context.Context, keep func() (runtime.ImagesInUse, error)) error {
	if _, err := os.Stat(s.path("lock")); errors.Is(err, fs.ErrNotExist) {
		return nil // never used
	}
	now, cancel := context.WithCancel(ctx)
	cancel() // one look at the lock
	unlock, err := s.lock(now, s.path("lock"), unix.LOCK_EX)
	if err == nil {
		err = s.discard(keep)
		unlock()
	} else if errors.Is(err, context.Canceled) && ctx.Err() == nil {
		return nil // somebody pulls
	}
	trash, _ := filepath.Glob(s.path("trash", "*"))
	for _, dir := range trash {
		err = errors.Join(err, tree.Remove(ctx, dir))
	}
	return err
}

// discard takes what nobody needs out of the store. It has the lock.
func (s *Store) discard(keep func() (runtime.ImagesInUse, error)) error {
	used, err := keep()
	if err != nil {
		return err
	}
	digests := maps.Clone(used.Digests)
	if digests == nil {
		digests = map[string]bool{}
	}
	if err := s.each("names", func(path string) error {
		var n name
		if readRecord(path, &n) == nil && used.Refs[n.Ref] {
			digests[n.Digest] = true
			return nil
		}
		return os.Remove(path)
	}); err != nil {
		return err
	}
	layers := map[string]bool{}
	if err := s.each("manifests", func(path string) error {
		var m manifest
		if readRecord(path, &m) != nil || !digests[m.Digest] {
			return os.Remove(path)
		}
		for _, diffID := range m.Layers {
			layers[s.key(diffID)] = true
		}
		return nil
	}); err != nil {
		return err
	}
	if err := s.each("layers", func(path string) error {
		key := filepath.Base(path)
		if layers[key] || !strings.HasSuffix(strings.TrimSuffix(key, ".new"), "-"+s.options.Owner) {
			return nil
		}
		s.mu.Lock()
		delete(s.verified, key)
		s.mu.Unlock()
		return os.Rename(path, s.path("trash", uuid.NewString()))
	}); err != nil {
		return err
	}
	return s.each("blobs", func(path string) error {
		info, err := os.Stat(path)
		if err != nil || !strings.HasSuffix(path, ".lock") && time.Since(info.ModTime()) < stalePart {
			return ignoreMissing(err)
		}
		return os.Remove(path)
	})
}

// each calls do for every entry of a folder of the store.
func (s *Store) each(sub string, do func(path string) error) error {
	entries, err := os.ReadDir(s.path(sub))
	for _, e := range entries {
		err = errors.Join(err, ignoreMissing(do(s.path(sub, e.Name()))))
	}
	return ignoreMissing(err)
}

// progress adds up what is downloaded.
type progress struct {
	mu          sync.Mutex
	report      func(done, total int64)
	done, total int64
	last        time.Time
}

func (p *progress) add(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += n
	if p.report != nil && (time.Since(p.last) > notesPace || p.done == p.total) {
		p.last = time.Now()
		p.report(p.done, p.total)
	}
}
