// Package ledger keeps books on what runs create, so that what a killed run
// left behind can be found and deleted. A run has one file of its own, in which
// it writes the name of a resource before it asks for it, and strikes the name
// out once the resource is gone. The file disappears with the last of them.
//
// A ledger holds endpoints and never a key.
package ledger

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// This file defines the ledger of a run that lives, and the form of the file:
// a JSON object on each line, appended by one write each. They are not synced:
// a killed process loses nothing that way, and a power cut takes no more than
// the last seconds' lines, of which a server's leases take care.

// Entry is one resource.
type Entry struct {
	Kind     string    `json:"kind"` // "sandbox", "volume", …
	Name     string    `json:"name"`
	Unique   bool      `json:"unique,omitempty"`   // nobody else has chosen this name
	ID       string    `json:"id,omitempty"`       // once the server has told it
	Endpoint string    `json:"endpoint,omitempty"` // "" is the run's own connection
	Asked    time.Time `json:"asked"`              // when its creation was asked for
}

// header is the first line.
type header struct {
	Process  process   `json:"process"`
	Endpoint string    `json:"endpoint"` // what the run connects to
	Began    time.Time `json:"began"`
}

// line is one line; one of its fields is set, but ID goes with Made and Entry
// with Add. Ended is the last one of a run that was not killed: it has told the
// user what it leaves.
type line struct {
	Run   *header `json:"run,omitempty"`
	Add   int     `json:"add,omitempty"`
	Entry *Entry  `json:"entry,omitempty"`
	Made  int     `json:"made,omitempty"`
	ID    string  `json:"id,omitempty"`
	Gone  int     `json:"gone,omitempty"`
	Ended bool    `json:"ended,omitempty"`
}

// Ledger is the ledger of this process's run. A nil one takes everything and
// keeps nothing. It may be used from several goroutines.
type Ledger struct {
	dir, endpoint string

	mu    sync.Mutex
	file  *os.File // nil until there is something to write
	open  map[int]bool
	count int
	torn  bool // the last write may have ended within a line
}

// New returns the ledger of a run that connects to endpoint. Its file lies in
// dir, and it and the folder are made when the first entry is added.
func New(dir, endpoint string) *Ledger {
	return &Ledger{dir: dir, endpoint: endpoint, open: map[int]bool{}}
}

// Add writes down what is about to be created, and returns its number for Made
// and Gone. After an error the number counts as well, but nobody else will find
// the entry.
func (l *Ledger) Add(e Entry) (int, error) {
	if l == nil {
		return 0, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count++
	if err := l.start(); err != nil {
		return l.count, err
	}
	l.open[l.count] = true
	return l.count, l.write(line{Add: l.count, Entry: &e})
}

// Made adds the id of what was created. An error means that it is not known.
func (l *Ledger) Made(n int, id string) error { return l.change(n, line{Made: n, ID: id}) }

// Gone strikes an entry out.
func (l *Ledger) Gone(n int) error { return l.change(n, line{Gone: n}) }

func (l *Ledger) change(n int, change line) error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.open[n] {
		return nil
	}
	if change.Gone != 0 {
		delete(l.open, n)
	}
	return l.write(change)
}

// Close ends the run. The file is deleted unless something in it is left.
func (l *Ledger) Close() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	var err error
	if len(l.open) > 0 {
		err = l.write(line{Ended: true})
	}
	err = errors.Join(err, l.file.Close())
	if len(l.open) == 0 {
		if removed := os.Remove(l.file.Name()); !errors.Is(removed, fs.ErrNotExist) {
			err = errors.Join(err, removed)
		}
	}
	l.file = nil
	return err
}

// start makes the file, unless there is one.
func (l *Ledger) start() error {
	if l.file != nil {
		return nil
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	self, err := thisProcess()
	if err != nil {
		return err
	}
	for { // a collector may take an empty file for a moment
		file, err := os.CreateTemp(l.dir, fmt.Sprintf("%d-*%s", self.PID, suffix))
		if err != nil {
			return err
		}
		if err := tryLock(file); errors.Is(err, errLocked) {
			file.Close()
			os.Remove(file.Name()) // a collector leaves young ones alone
			continue
		} // a file system without locks leaves it to the process's number
		l.file = file
		break
	}
	err = l.write(line{Run: &header{self, l.endpoint, time.Now().UTC()}})
	if err != nil { // without its first line it is nobody's
		os.Remove(l.file.Name())
		l.file.Close()
		l.file, l.torn = nil, false
	}
	return err
}

func (l *Ledger) write(record line) error {
	data, err := json.Marshal(record)
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if l.torn {
		data = append([]byte{'\n'}, data...)
	}
	_, err = l.file.Write(data)
	l.torn = err != nil
	return err
}

const suffix = ".jsonl"

// Left is the ledger of a run that is dead. Whoever has it holds its lock, so
// that nobody else works on it, until Close.
type Left struct {
	Endpoint string // what the run connected to
	PID      int
	Began    time.Time
	Ended    bool          // by itself: it has told the user of the entries
	Entries  map[int]Entry // what is still to be deleted

	ledger Ledger
}

// Numbers are those of the entries, the one that was created last first.
func (l *Left) Numbers() []int {
	numbers := slices.Sorted(maps.Keys(l.Entries))
	slices.Reverse(numbers)
	return numbers
}

// Gone strikes an entry out.
func (l *Left) Gone(n int) error {
	delete(l.Entries, n)
	return l.ledger.Gone(n)
}

// Close lets go of the ledger, which is deleted if nothing is left in it.
func (l *Left) Close() error { return l.ledger.Close() }

// Find returns the ledgers of dead runs, oldest first, but for those that
// somebody else holds. The caller closes each. What cannot be read is in the
// error, and no hindrance to the others.
func Find(dir string) (found []*Left, err error) {
	paths, _ := filepath.Glob(filepath.Join(globEscape(dir), "*"+suffix)) // the pattern is well formed
	for _, path := range paths {
		left, readErr := open(path)
		if readErr != nil && !errors.Is(readErr, fs.ErrNotExist) && !errors.Is(readErr, errLocked) {
			err = errors.Join(err, fmt.Errorf("the ledger %s: %w", path, readErr))
		}
		if left != nil {
			found = append(found, left)
		}
	}
	slices.SortFunc(found, func(a, b *Left) int { return a.Began.Compare(b.Began) })
	return found, err
}

var globEscape = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace

// young is how long an empty file may be one that a run is about to fill.
const young = time.Minute

// errDamaged is a ledger that no run has written like that: what it tells of
// cannot be found.
var errDamaged = errors.New("it is damaged and does not tell which run made it on which server; delete it when you know that nothing of that run is left")

// open returns the ledger at path if it is a dead run's, and nil if a living
// one's.
func open(path string) (_ *Left, err error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	if err := tryLock(file); errors.Is(err, errLocked) {
		return nil, err
	}
	if _, err := os.Stat(path); err != nil { // somebody was faster, and has finished it
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errDamaged
	}
	head, ended, entries, err := read(file)
	if err != nil {
		return nil, err
	}
	left := &Left{Ended: ended, Entries: entries, ledger: Ledger{file: file, open: map[int]bool{}, torn: true}}
	for n := range entries {
		left.ledger.open[n] = true
	}
	if head == nil { // it was killed before it could say anything, or is about to
		if time.Since(info.ModTime()) > young {
			return nil, left.Close()
		}
		return nil, errLocked
	}
	if head.Process.alive() {
		return nil, errLocked
	}
	left.Endpoint, left.PID, left.Began = head.Endpoint, head.Process.PID, head.Began
	return left, nil
}

// maxLine is more than a line of a ledger can have.
const maxLine = 1 << 20

// read passes over lines that are no records: a full disk cuts them off. Without
// a first line that says whose they are, they are damage; a file that has not come
// to the end of its first line has no head, and no error.
func read(file *os.File) (head *header, ended bool, entries map[int]Entry, err error) {
	entries = map[int]Entry{}
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, maxLine)
	lines := false // that have come to their end
	scanner.Split(func(text []byte, atEnd bool) (int, []byte, error) {
		n, token, err := bufio.ScanLines(text, atEnd)
		lines = lines || n > len(token)
		return n, token, err
	})
	for scanner.Scan() {
		var l line
		if len(bytes.TrimSpace(scanner.Bytes())) == 0 || json.Unmarshal(scanner.Bytes(), &l) != nil {
			continue
		}
		switch {
		case l.Run != nil && l.Run.Endpoint != "":
			head = l.Run
		case l.Entry != nil && l.Add > 0:
			entries[l.Add] = *l.Entry
		case l.Made != 0:
			if e, ok := entries[l.Made]; ok {
				e.ID = l.ID
				entries[l.Made] = e
			}
		case l.Gone != 0:
			delete(entries, l.Gone)
		case l.Ended:
			ended = true
		}
	}
	err = scanner.Err()
	if errors.Is(err, bufio.ErrTooLong) || err == nil && head == nil && lines {
		err = errDamaged
	}
	return head, ended, entries, err
}
