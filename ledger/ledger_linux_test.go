package ledger

// This file tests ledgers with processes that are really killed.

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("LEDGER_TEST_DIR"); dir != "" { // a run that is killed
		l := New(dir, "http://own")
		for _, e := range entries {
			l.Add(e)
		}
		l.Made(1, "id-1")
		l.Gone(2)
		fmt.Println("ready")
		select {}
	}
	os.Exit(m.Run())
}

var asked = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

var entries = []Entry{
	{Kind: "sandbox", Name: "a", Asked: asked},
	{Kind: "sandbox", Name: "b", Asked: asked},
	{Kind: "volume", Name: "c", Unique: true, Endpoint: "http://other", Asked: asked},
}

// killed has a process write a ledger, and kills it.
func killed(t *testing.T, dir string, whileAlive func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "LEDGER_TEST_DIR="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.Read(make([]byte, 1))
	whileAlive()
	cmd.Process.Kill()
	cmd.Wait()
}

func files(t *testing.T, dir string) int {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestKilledRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not[yet]", "there")
	find := func() []*Left {
		t.Helper()
		found, err := Find(dir)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	killed(t, dir, func() {
		if found := find(); len(found) != 0 {
			t.Errorf("the run lives, and its ledger is found: %v", found)
		}
	})
	found := find()
	if len(found) != 1 || found[0].Endpoint != "http://own" || found[0].Ended {
		t.Fatalf("found %+v", found)
	}
	a := entries[0]
	a.ID = "id-1"
	if want := map[int]Entry{1: a, 3: entries[2]}; !reflect.DeepEqual(found[0].Entries, want) || !reflect.DeepEqual(found[0].Numbers(), []int{3, 1}) {
		t.Errorf("got %+v, want %+v", found[0].Entries, want)
	}
	if again := find(); len(again) != 0 {
		t.Error("two have got the same ledger")
	}
	found[0].Gone(3)
	found[0].Close()
	found = find()
	if want := map[int]Entry{1: a}; len(found) != 1 || !reflect.DeepEqual(found[0].Entries, want) {
		t.Fatalf("found %+v", found)
	}
	found[0].Gone(1)
	found[0].Close()
	if n := files(t, dir); n != 0 {
		t.Errorf("nothing is left, and %d files are", n)
	}
}

// Of many collectors at once each ledger is one's.
func TestCollectorsAtOnce(t *testing.T) {
	dir := t.TempDir()
	for range 3 {
		killed(t, dir, func() {})
	}
	var mu sync.Mutex
	got := map[string]int{}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			found, err := Find(dir)
			if err != nil {
				t.Error(err)
			}
			for _, left := range found {
				mu.Lock()
				got[left.ledger.file.Name()]++
				mu.Unlock()
				for _, n := range left.Numbers() {
					left.Gone(n)
				}
				left.Close()
			}
		})
	}
	all.Wait()
	for name, n := range got {
		if n != 1 {
			t.Errorf("%s was collected %d times", name, n)
		}
	}
	if len(got) != 3 || files(t, dir) != 0 {
		t.Errorf("%d were collected, %d files are left", len(got), files(t, dir))
	}
}

// Runs begin while another one looks for what dead ones have left: it may take
// their files while these are empty, and none of them remains.
func TestRunsBesideACollector(t *testing.T) {
	dir := t.TempDir()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				found, err := Find(dir)
				if err != nil || len(found) > 0 {
					t.Errorf("found %d ledgers, %v", len(found), err)
					return
				}
			}
		}
	}()
	for range 2000 {
		l := New(dir, "server")
		n, err := l.Add(entries[0])
		if err == nil {
			err = l.Gone(n)
		}
		if err == nil {
			err = l.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	<-stopped
	if n := files(t, dir); n != 0 {
		t.Errorf("%d files are left", n)
	}
}

func TestRunThatEnds(t *testing.T) {
	dir := t.TempDir()
	l := New(dir, "x")
	if err := l.Close(); err != nil || files(t, dir) != 0 {
		t.Errorf("nothing was created: %v, %d files", err, files(t, dir))
	}
	n, err := l.Add(entries[0])
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(l.file.Name()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if err := errors.Join(l.Gone(n), l.Gone(n), l.Close()); err != nil || files(t, dir) != 0 {
		t.Errorf("everything is gone: %v, %d files", err, files(t, dir))
	}
	l.Add(entries[0])
	l.Close()
	text, err := os.ReadFile(filepath.Join(dir, only(t, dir)))
	if err != nil || !strings.HasSuffix(string(text), "{\"ended\":true}\n") {
		t.Errorf("what is left was told: %s %v", text, err)
	}
}

func only(t *testing.T, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	return list[0].Name()
}

func TestNilLedger(t *testing.T) {
	var l *Ledger
	if n, err := l.Add(entries[0]); n != 0 || err != nil {
		t.Error(n, err)
	}
	if err := errors.Join(l.Made(0, ""), l.Gone(0), l.Close()); err != nil {
		t.Error(err)
	}
}

// A disk that is full for a while costs the lines of that while, and those only.
func TestFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	dir := t.TempDir()
	l := New(dir, "x")
	l.Add(entries[0])
	file := l.file
	l.file = full
	if _, err := l.Add(entries[1]); err == nil {
		t.Error("a line was written to a full disk")
	}
	l.file = file
	file.WriteString(`{"add":2,"entry":{"ki`) // as much as there was room for
	l.Add(entries[2])
	file.Close()
	found, err := Find(dir)
	if err != nil || len(found) != 0 {
		t.Errorf("the run lives: %v %v", found, err)
	}
	reader, err := os.Open(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	_, _, got, err := read(reader)
	if want := map[int]Entry{1: entries[0], 3: entries[2]}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v %v, want %+v", got, err, want)
	}
}

// A folder that cannot be written to is an error each time, and no file is left.
func TestNoFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l := New(dir, "x")
	n, err := l.Add(entries[0])
	if err == nil {
		t.Error("a ledger lies in a file")
	}
	if err := errors.Join(l.Made(n, "1"), l.Gone(n), l.Close()); err != nil {
		t.Error(err)
	}
}

// A process whose number another one has now, or of another boot, is dead.
func TestSameNumberAnotherProcess(t *testing.T) {
	self, err := thisProcess()
	if err != nil {
		t.Fatal(err)
	}
	if !self.alive() {
		t.Error("this process is dead")
	}
	later, rebooted := self, self
	later.Start += "0"
	rebooted.Boot = "another"
	if later.alive() || rebooted.alive() {
		t.Error("another process is taken for it")
	}
}

// What a run that was killed at once has left: a file without a line.
func TestEmptyFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "1-2"+suffix)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if found, err := Find(dir); err != nil || len(found) != 0 || files(t, dir) != 1 {
		t.Errorf("a run may be about to fill it: %v %v", found, err)
	}
	old := time.Now().Add(-2 * young)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	if found, err := Find(dir); err != nil || len(found) != 0 || files(t, dir) != 0 {
		t.Errorf("it is nobody's: %v %v", found, err)
	}
}

// What no run has written is told, stays as it is, and is no hindrance to the
// rest; lines that are damaged below a first one that is not cost themselves.
func TestGarbage(t *testing.T) {
	dir := t.TempDir()
	old := time.Now().Add(-2 * young)
	const head = `{"run":{"process":{"pid":1,"start":"0","boot":"another"},"endpoint":"http://own","began":"2026-01-02T03:04:05Z"}}` + "\n"
	const entry = `{"add":1,"entry":{"kind":"sandbox","name":"a"}}` + "\n"
	whole := map[string]string{
		"noise":       "\x00\xff{\n[]\n\"run\"\n",
		"headless":    entry,
		"nowhere":     `{"run":{}}` + "\n" + entry,
		"wrong-types": `{"run":{"process":"1","endpoint":[]}}` + "\n" + entry,
		"long":        head + strings.Repeat("x", maxLine+1),
	}
	for name, text := range whole {
		path := filepath.Join(dir, name+suffix)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		os.Chtimes(path, old, old)
	}
	if err := os.Mkdir(filepath.Join(dir, "folder"+suffix), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"+suffix), 0o600); err != nil {
		t.Fatal(err)
	}
	good := head + "\x00\n" + `{"add":-1,"entry":{"kind":"x"}}` + "\n" + `{"add":1,"entry":7}` + "\n" + `{"made":9,"id":"x"}{"gone":1}` + "\n{\"gone\":9}\n{}\n" + entry + `{"gone":`
	if err := os.WriteFile(filepath.Join(dir, "good"+suffix), []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		found, err := Find(dir)
		for name := range whole {
			if err == nil || !strings.Contains(err.Error(), "the ledger "+filepath.Join(dir, name+suffix)+": it is damaged") {
				t.Errorf("%s is not told: %v", name, err)
			}
			if text, _ := os.ReadFile(filepath.Join(dir, name+suffix)); string(text) != whole[name] {
				t.Errorf("%s was changed", name)
			}
		}
		for _, name := range []string{"folder", "pipe"} {
			if !strings.Contains(err.Error(), name+suffix+": ") {
				t.Errorf("%s is not told: %v", name, err)
			}
		}
		if len(found) != 1 || !reflect.DeepEqual(found[0].Entries, map[int]Entry{1: {Kind: "sandbox", Name: "a"}}) {
			t.Fatalf("found %+v", found)
		}
		found[0].Close()
	}
	// One that was cut off in its first line told of nothing.
	path := filepath.Join(t.TempDir(), "1-1"+suffix)
	os.WriteFile(path, []byte(head[:40]), 0o600)
	os.Chtimes(path, old, old)
	if found, err := Find(filepath.Dir(path)); len(found) != 0 || err != nil || files(t, filepath.Dir(path)) != 0 {
		t.Errorf("found %v %v", found, err)
	}
}

// FuzzRead checks that no file makes reading fail or panic.
func FuzzRead(f *testing.F) {
	f.Add([]byte("{\"run\":{}}\n{\"add\":1,\"entry\":{}}\n{\"made\":1,\"id\":\"x\"}\n{\"gone\":1}\n{\"ended\":true}\n"))
	f.Add([]byte("{\"add\":1,\"ent\n\n\x00"))
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, _, entries, err := read(file); err != nil && !errors.Is(err, errDamaged) {
			t.Errorf("%v %v", entries, err)
		}
	})
}
