package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines the books: one JSON file per record, replaced by renaming,
// so that a reader needs no lock and a process that is killed leaves no half
// record. Whoever writes holds a lock among all processes.
//
//	templates/<id>.json
//	volumes/<id>/volume.json
//	volumes/<id>/data/       what sandboxes see of the volume
//	pools/<id>.json
//	snapshots/<id>/snapshot.json
//	snapshots/<id>/layer/    the files that sandboxes start with, if there are any
//	registries/<id>.json     credentials and all
//	boxes/<id>/box.json
//	boxes/<id>/fs/           what the runtime keeps of the sandbox
//	servers/<id>             locked as long as that server lives
//	<kind>/<id>.deleted/     on its way out

type store struct {
	dir        string
	log        *slog.Logger
	templates  table[wire.Template] // their mounts name volumes by id
	volumes    table[wire.Volume]
	pools      table[pool]
	snapshots  table[snapshot]
	registries table[registry]
	boxes      table[box]
	turn       chan struct{} // holds a token while somebody in this process writes
	lockFile   *os.File      // its lock keeps the other processes out
	owner      string        // names this server in records
	ownerFile  *os.File
}

// openStore makes the folders, and sweeps up what killed processes left
// between two steps.
func openStore(dir string, logger *slog.Logger) (st *store, err error) {
	log := &complaints{log: logger, made: map[string]string{}}
	st = &store{dir: dir, log: logger, turn: make(chan struct{}, 1), owner: uuid.NewString()}
	st.templates = table[wire.Template]{filepath.Join(dir, "templates"), ".json", log, newSeen[wire.Template](),
		"template", func(t *wire.Template) entry { return entry{t.ID, t.Name, t.CreatedAt} }}
	st.volumes = table[wire.Volume]{filepath.Join(dir, "volumes"), "/volume.json", log, newSeen[wire.Volume](),
		"volume", func(v *wire.Volume) entry { return entry{v.ID, v.Name, v.CreatedAt} }}
	st.snapshots = table[snapshot]{filepath.Join(dir, "snapshots"), "/snapshot.json", log, newSeen[snapshot](),
		"snapshot", func(s *snapshot) entry { return entry{s.Snapshot.ID, s.Snapshot.Name, s.Snapshot.CreatedAt} }}
	st.registries = table[registry]{filepath.Join(dir, "registries"), ".json", log, newSeen[registry](),
		"registry", func(r *registry) entry { return entry{r.Registry.ID, r.Registry.Name, r.Registry.CreatedAt} }}
	st.pools = table[pool]{filepath.Join(dir, "pools"), ".json", log, newSeen[pool](),
		"pool", func(p *pool) entry { return entry{p.Pool.ID, p.Pool.Name, p.Pool.CreatedAt} }}
	st.boxes = table[box]{filepath.Join(dir, "boxes"), "/box.json", log, newSeen[box](),
		"sandbox", func(b *box) entry { return entry{b.Box.ID, b.Box.Name, b.Box.CreatedAt} }}
	for _, sub := range []string{st.templates.dir, st.volumes.dir, st.pools.dir, st.snapshots.dir, st.registries.dir, st.boxes.dir, st.ownerPath("")} {
		if err := os.MkdirAll(sub, 0o700); err != nil {
			return nil, err
		}
	}
	if st.lockFile, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	err = st.update(context.Background(), func() error {
		if err := st.sweep(); err != nil {
			return err
		}
		if st.ownerFile, err = os.OpenFile(st.ownerPath(st.owner), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
			return err
		}
		_, err := tryLock(st.ownerFile)
		return err
	})
	if err != nil {
		st.close()
		return nil, err
	}
	for _, dir := range []string{st.volumes.dir, st.snapshots.dir} {
		st.clearDeleted(dir)
	}
	return st, nil
}

// clearDeleted finishes what processes were deleting when they were killed.
func (st *store) clearDeleted(dir string) {
	left, _ := filepath.Glob(filepath.Join(dir, "*"+deletedSuffix))
	for _, dir := range left {
		st.clear(dir)
	}
}

// clear deletes a detached folder. What cannot be deleted is left for the next
// start.
func (st *store) clear(dir string) {
	if err := removeTree(dir); err != nil {
		st.log.Error("a deleted folder could not be cleared", "error", err)
	}
}

// close gives the server's name back: what it was making is nobody's then.
func (st *store) close() {
	if st.ownerFile != nil {
		os.Remove(st.ownerFile.Name())
		st.ownerFile.Close()
	}
	st.lockFile.Close()
}

func (st *store) ownerPath(owner string) string { return filepath.Join(st.dir, "servers", owner) }

// alive reports whether a server that a record names still runs.
func (st *store) alive(owner string) bool {
	if owner == st.owner {
		return true
	}
	f, err := os.Open(st.ownerPath(owner))
	if err != nil {
		return false
	}
	defer f.Close()
	free, err := tryLock(f)
	return err == nil && !free
}

func (st *store) sweep() error {
	owners, err := os.ReadDir(st.ownerPath(""))
	if err != nil {
		return err
	}
	for _, e := range owners {
		if !st.alive(e.Name()) {
			os.Remove(st.ownerPath(e.Name()))
		}
	}
	boxes, err := os.ReadDir(st.boxes.dir)
	if err != nil {
		return err
	}
	for _, e := range boxes {
		if _, err := st.boxes.get(e.Name()); errors.Is(err, fs.ErrNotExist) {
			st.discard(e.Name())
		}
	}
	volumes, err := os.ReadDir(st.volumes.dir)
	for _, e := range volumes {
		if _, err := os.Stat(st.volumes.path(e.Name())); errors.Is(err, fs.ErrNotExist) {
			os.Remove(st.volumes.path(e.Name()) + newSuffix)
			os.Remove(st.volumeDir(e.Name()))
			os.Remove(filepath.Dir(st.volumeDir(e.Name())))
		}
	}
	return err
}

// discard removes the folders of a sandbox that has no record. Those that hold
// anything stay: os.Remove takes empty ones only.
func (st *store) discard(id string) {
	os.Remove(st.boxes.path(id) + newSuffix)
	os.Remove(st.boxDir(id))
	os.Remove(filepath.Dir(st.boxDir(id)))
}

// volumeDir is the folder of a volume that sandboxes see.
func (st *store) volumeDir(id string) string { return filepath.Join(st.volumes.dir, id, "data") }

// layerDir is the folder of a snapshot's files.
func (st *store) layerDir(id string) string { return filepath.Join(st.snapshots.dir, id, "layer") }

// boxDir is the folder that a sandbox's runtime has for itself.
func (st *store) boxDir(id string) string { return filepath.Join(st.boxes.dir, id, "fs") }

const lockTimeout = 30 * time.Second

// update calls write while nobody else, in this process or another, writes. It
// should be short.
func (st *store) update(ctx context.Context, write func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, lockTimeout,
		fmt.Errorf("another process holds the lock of the state folder %s", st.dir))
	defer cancel()
	select {
	case st.turn <- struct{}{}:
		defer func() { <-st.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		if ok, err := tryLock(st.lockFile); err != nil {
			return err
		} else if ok {
			defer unlock(st.lockFile)
			return write()
		}
		select {
		case <-time.After(pause): // the kernel tells nobody that a lock is free
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// table is the records of one kind.
type table[T any] struct {
	dir    string
	suffix string // of a record's file, after its id
	log    *complaints
	seen   *seen[T]
	kind   string // in words
	entry  func(*T) entry
}

// complaints are about records that cannot be read. Each is logged once, and again
// when the record has changed.
type complaints struct {
	log  *slog.Logger
	mu   sync.Mutex
	made map[string]string // by path, the state of the record and the error
}

func (c *complaints) add(path string, err error) {
	state := err.Error()
	if info, err := os.Stat(path); err == nil {
		state = fmt.Sprint(info.ModTime().UnixNano(), info.Size(), state)
	}
	c.mu.Lock()
	known := c.made[path] == state
	c.made[path] = state
	c.mu.Unlock()
	if !known {
		c.log.Warn("a record is left out", "error", err)
	}
}

// entry is what every record has.
type entry struct{ id, name, created string }

// Neither can be part of an id.
const (
	newSuffix     = ".new"
	deletedSuffix = ".deleted"
)

func (t table[T]) path(id string) string { return filepath.Join(t.dir, id+t.suffix) }

// get reads one record; one that is missing is fs.ErrNotExist. The id may be
// anything.
func (t table[T]) get(id string) (*T, error) {
	if !wire.ValidName(id) { // nor could it lead out of the folder
		return nil, fs.ErrNotExist
	}
	data, err := os.ReadFile(t.path(id))
	if err != nil {
		return nil, err
	}
	record := new(T)
	if err := json.Unmarshal(data, record); err != nil {
		return nil, fmt.Errorf("the record %s is damaged: %w", t.path(id), err)
	}
	return record, nil
}

// all reads every record in the order of their ids. One that cannot be read is
// reported in the log and left out.
func (t table[T]) all() ([]*T, error) {
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return nil, err
	}
	var records []*T
	for _, e := range entries {
		id := strings.TrimSuffix(e.Name(), t.suffix)
		record, err := t.get(id)
		if err == nil {
			records = append(records, record)
		} else {
			t.complain(id, err)
		}
	}
	return records, nil
}

// complain logs why a record is left out, unless it is gone.
func (t table[T]) complain(id string, err error) {
	if !errors.Is(err, fs.ErrNotExist) {
		t.log.add(t.path(id), err)
	}
}

// whole reads every record, or fails.
func (t table[T]) whole() ([]*T, error) {
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return nil, err
	}
	var records []*T
	for _, e := range entries {
		record, err := t.get(strings.TrimSuffix(e.Name(), t.suffix))
		if err == nil {
			records = append(records, record)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return records, nil
}

// put writes a record; only inside update.
func (t table[T]) put(id string, record *T) error {
	data, err := json.Marshal(record)
	if err != nil {
		return err
	}
	path := t.path(id)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(path+newSuffix, data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+newSuffix, path)
}

// remove deletes a record, and the folder that it had for itself; only inside
// update.
func (t table[T]) remove(id string) error {
	os.Remove(t.path(id) + newSuffix) // of a process killed while it wrote
	err := os.Remove(t.path(id))
	if dir := filepath.Dir(t.path(id)); err == nil && dir != t.dir {
		err = os.Remove(dir)
	}
	return err
}

// detach takes a record that has a folder for itself out of the books, and
// returns that folder, to be cleared; only inside update.
func (t table[T]) detach(id string) (string, error) {
	dir := filepath.Dir(t.path(id))
	return dir + deletedSuffix, os.Rename(dir, dir+deletedSuffix)
}

// find looks for a name first and then for an id (protocol.md §2.0).
func (t table[T]) find(wanted string) (*T, error) {
	return t.findThat(wanted, func(*T) bool { return true })
}

// findThat is find among the records that fit.
func (t table[T]) findThat(wanted string, fits func(*T) bool) (*T, error) {
	for _, key := range []func(entry) string{
		func(e entry) string { return e.name },
		func(e entry) string { return e.id },
	} {
		id, err := t.search(func(r *T) bool { return key(t.entry(r)) == wanted && fits(r) })
		if err != nil {
			return nil, err
		}
		if id == "" {
			continue
		}
		if r, err := t.get(id); !errors.Is(err, fs.ErrNotExist) {
			return r, err
		}
	}
	return nil, fail(http.StatusNotFound, kindNotFound, "there is no %s %q", t.kind, wanted)
}

// nameFree refuses a name that another record of the kind has.
func (t table[T]) nameFree(id, name string) error {
	taken, err := t.search(func(r *T) bool { e := t.entry(r); return e.name == name && e.id != id })
	if err == nil && taken != "" {
		return fail(http.StatusConflict, kindConflict, "there is a %s %q already", t.kind, name)
	}
	return err
}

// newest reads every record, the newest first.
func (t table[T]) newest() ([]*T, error) {
	all, err := t.all()
	slices.SortFunc(all, func(a, b *T) int {
		x, y := t.entry(a), t.entry(b)
		return cmp.Or(cmp.Compare(y.created, x.created), cmp.Compare(y.id, x.id))
	})
	return all, err
}
