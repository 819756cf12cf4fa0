package server

import (
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines how records are looked at often without being read often.

// seen are the records of a table as they were read last.
type seen[T any] struct {
	mu      sync.Mutex
	records map[string]sighting[T] // by id
}

func newSeen[T any]() *seen[T] { return &seen[T]{records: map[string]sighting[T]{}} }

// sighting is a record and what its file was when it was read. A record is
// replaced by another file, never written to.
type sighting[T any] struct {
	file   os.FileInfo
	record *T
}

// settled is how old a file must be for another one that replaces it to have
// another time: the clock of file systems is coarse, and a number of a deleted
// file is soon another's.
const settled = 100 * time.Millisecond

// peek is get for who only looks: the record is shared, and nothing of it may be
// changed.
func (t table[T]) peek(id string) (*T, error) {
	if !wire.ValidName(id) {
		return nil, fs.ErrNotExist
	}
	file, err := os.Stat(t.path(id))
	if err == nil {
		t.seen.mu.Lock()
		known, ok := t.seen.records[id]
		t.seen.mu.Unlock()
		if ok && os.SameFile(known.file, file) && known.file.Size() == file.Size() && known.file.ModTime().Equal(file.ModTime()) {
			return known.record, nil
		}
	}
	record, failed := t.get(id)
	t.seen.mu.Lock()
	defer t.seen.mu.Unlock()
	delete(t.seen.records, id)
	if err == nil && failed == nil && time.Since(file.ModTime()) > settled {
		t.seen.records[id] = sighting[T]{file, record}
	}
	return record, failed
}

// search peeks at the records until one matches, and returns its id, or "".
func (t table[T]) search(match func(*T) bool) (id string, err error) {
	err = t.each(func(found string, record *T) bool {
		if match(record) {
			id = found
		}
		return id == ""
	})
	return id, err
}

// each peeks at the records in the order of their ids, as long as look asks for
// more. One that cannot be read is reported in the log and left out.
func (t table[T]) each(look func(id string, record *T) bool) error {
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return err
	}
	t.seen.mu.Lock()
	if len(t.seen.records) > len(entries) {
		clear(t.seen.records) // some are of records that are gone
	}
	t.seen.mu.Unlock()
	for _, e := range entries {
		id := strings.TrimSuffix(e.Name(), t.suffix)
		record, err := t.peek(id)
		if err != nil {
			t.complain(id, err)
		} else if !look(id, record) {
			return nil
		}
	}
	return nil
}
