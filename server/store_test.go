package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/sbx-star/sbx-star/runtime/process"
	"github.com/sbx-star/sbx-star/wire"
)

// This file tests the books, and the following of frames.

const hammerVariable = "SBX_STAR_TEST_HAMMER"

func TestMain(m *testing.M) {
	process.Child()
	if dir := os.Getenv(hammerVariable); dir != "" {
		hammer(dir)
	}
	os.Exit(m.Run())
}

// hammer writes and removes records until it is killed.
func hammer(dir string) {
	st, err := openStore(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		panic(err)
	}
	fmt.Println("ready")
	for n := 0; ; n++ {
		id := fmt.Sprintf("id-%d", n%3)
		var folder string
		err := st.update(context.Background(), func() error {
			if n%2 == 0 {
				return errors.Join(
					os.MkdirAll(st.volumeDir(id), 0o700),
					st.volumes.put(id, &wire.Volume{ID: id}),
					os.WriteFile(filepath.Join(st.volumeDir(id), "file"), []byte("x"), 0o600),
					st.boxes.put(id, &box{Owner: st.owner, Image: strings.Repeat("x", 5000)}),
					st.templates.put(id, &wire.Template{ID: id, Image: strings.Repeat("x", 5000)}))
			}
			st.boxes.remove(id) // it may be missing
			folder, _ = st.volumes.detach(id)
			return nil
		})
		st.clear(folder)
		if err != nil {
			panic(err)
		}
	}
}

// A process that is killed at any moment leaves a store that can be read and
// written, and is known to be dead.
func TestKilledWriters(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(uint64(seed), 0))
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var log bytes.Buffer
	for range 12 {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), hammerVariable+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		bufio.NewReader(out).ReadString('\n')
		time.Sleep(time.Duration(random.IntN(3000)) * time.Microsecond) // a random moment, awaited by nobody
		cmd.Process.Kill()
		cmd.Wait()

		st, err := openStore(dir, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		err = st.update(t.Context(), func() error {
			boxes, err := st.boxes.all()
			for _, b := range boxes {
				if st.alive(b.Owner) {
					t.Error("a killed server counts as alive")
				}
			}
			_, readErr := st.templates.all()
			volumes, _ := os.ReadDir(st.volumes.dir)
			for _, v := range volumes { // whole, or gone
				_, recordErr := st.volumes.get(v.Name())
				_, dataErr := os.Stat(st.volumeDir(v.Name()))
				readErr = errors.Join(readErr, recordErr, dataErr)
			}
			return errors.Join(err, readErr)
		})
		if err != nil || log.Len() > 0 {
			t.Errorf("%v; the log is %s", err, log.String())
		}
		st.close()
	}
}

func openTest(t *testing.T, dir string) *store {
	t.Helper()
	st, err := openStore(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.close)
	return st
}

// Two stores on one folder are as two processes: each has its own lock files.
func TestTwoStoresOneFolder(t *testing.T) {
	dir := t.TempDir()
	stores := []*store{openTest(t, dir), openTest(t, dir)}
	const names, writers = 10, 8
	var wg sync.WaitGroup
	for i := range writers {
		st := stores[i%2]
		wg.Go(func() {
			for n := range names {
				name := fmt.Sprintf("name-%d", n)
				err := st.update(t.Context(), func() error {
					all, err := st.templates.all()
					if err != nil || slices.ContainsFunc(all, func(t *wire.Template) bool { return t.Name == name }) {
						return err
					}
					id := fmt.Sprintf("id-%d-%d", i, n)
					return st.templates.put(id, &wire.Template{ID: id, Name: name})
				})
				if err != nil {
					t.Error(err)
				}
				if all, err := st.templates.all(); err != nil || len(all) <= n {
					t.Errorf("after %s there are %d: %v", name, len(all), err)
				}
			}
		})
	}
	wg.Wait()
	if all, err := stores[0].templates.all(); err != nil || len(all) != names {
		t.Errorf("%d templates, want %d: %v", len(all), names, err)
	}
}

func TestLockIsGivenUpWithTheContext(t *testing.T) {
	dir := t.TempDir()
	a, b := openTest(t, dir), openTest(t, dir)
	a.update(t.Context(), func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		for _, st := range []*store{a, b} { // in this process, and in another
			if err := st.update(ctx, func() error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		}
		return nil
	})
	if err := b.update(t.Context(), func() error { return nil }); err != nil {
		t.Error(err)
	}
}

func TestOwners(t *testing.T) {
	dir := t.TempDir()
	a, b := openTest(t, dir), openTest(t, dir)
	if !a.alive(b.owner) || !a.alive(a.owner) || a.alive("nobody") {
		t.Error("who lives is not known")
	}
	b.ownerFile.Close() // as its process's death would
	if a.alive(b.owner) {
		t.Error("a dead server counts as alive")
	}
	openTest(t, dir)
	if _, err := os.Stat(b.ownerFile.Name()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the dead server's file is still there: %v", err)
	}
}

// What a process leaves that is killed between two steps.
func TestTornStore(t *testing.T) {
	dir := t.TempDir()
	st := openTest(t, dir)
	err := st.update(t.Context(), func() error {
		return errors.Join(
			st.templates.put("good", &wire.Template{ID: "good"}),
			st.templates.put("torn", &wire.Template{ID: "torn"}),
			st.boxes.put("full", &box{}),
			os.MkdirAll(st.boxDir("full"), 0o700),
			os.MkdirAll(st.boxDir("bare"), 0o700),
			os.MkdirAll(filepath.Join(st.boxDir("used"), "x"), 0o700),
			os.MkdirAll(filepath.Dir(st.boxDir("new")), 0o700),
			os.WriteFile(st.boxes.path("new")+newSuffix, []byte("{"), 0o600),
			os.WriteFile(st.templates.path("new")+newSuffix, []byte("{"), 0o600),
			os.Truncate(st.templates.path("torn"), 10))
	})
	if err != nil {
		t.Fatal(err)
	}
	st = openTest(t, dir)
	if all, err := st.templates.all(); err != nil || len(all) != 1 || all[0].ID != "good" {
		t.Errorf("got %v, %v", all, err)
	}
	if _, err := st.templates.get("torn"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a torn record is %v", err)
	}
	var left []string
	entries, _ := os.ReadDir(st.boxes.dir)
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if !slices.Equal(left, []string{"full", "used"}) {
		t.Errorf("left: %v", left)
	}
	for _, id := range []string{"", ".", "..", "../templates/good", "a/b", "x\x00"} {
		if _, err := st.boxes.get(id); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", id, err)
		}
	}
}

// TestComplaints has a torn record named once, and again when it is another one.
func TestComplaints(t *testing.T) {
	var log bytes.Buffer
	st, err := openStore(t.TempDir(), slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer st.close()
	for i, record := range []string{"{", `{"name":`} {
		if err := os.WriteFile(st.templates.path("torn"), []byte(record), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if all, err := st.templates.all(); len(all) != 0 || err != nil {
				t.Errorf("got %v, %v", all, err)
			}
		}
		if n := strings.Count(log.String(), "a record is left out"); n != i+1 {
			t.Errorf("record %d: %d complaints:\n%s", i, n, log.String())
		}
	}
}

// TestSetbacks has the pause between two tries grow, and end with the first that
// comes off.
func TestSetbacks(t *testing.T) {
	now := time.Now()
	sb := setbacks{}
	for _, want := range []time.Duration{5, 10, 20, 40, 80, 160, 300, 300} {
		for range 3 { // at the same time
			if got := sb.note("p", true, now); got != want*time.Second {
				t.Errorf("got a pause of %v, want %d s", got, want)
			}
		}
		now = now.Add(want*time.Second - 1)
		if !sb.rests("p", now) || sb.rests("q", now) {
			t.Error("the wrong pool rests")
		}
		if now = now.Add(1); sb.rests("p", now) {
			t.Error("it rests for too long")
		}
	}
	if sb.note("p", true, now); sb.note("p", false, now) != 0 || sb.rests("p", now) {
		t.Error("it rests after a success")
	}
}

// TestFarewell has the relay end at once when the client has answered the end,
// though it hangs up only later, and after a while when it does not answer.
func TestFarewell(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer []byte
		want   time.Duration
	}{
		{"answered", []byte{0x88, 0x82, 1, 2, 3, 4, 5, 6}, 0},
		{"answered in the middle of a message", []byte{0x01, 0x81, 1, 2, 3, 4, 5, 0x88, 0x80, 1, 2, 3, 4}, 0},
		{"not answered", []byte{0x89, 0x80, 1, 2, 3, 4}, closeTimeout},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, clientEnd := net.Pipe()
				daemon, daemonEnd := net.Pipe()
				defer client.Close()
				tunnel := &tunnel{ctx: t.Context(), client: clientEnd, fromClient: bufio.NewReader(clientEnd), daemon: daemonEnd,
					gone: func() error { return nil }, left: make(chan struct{})}
				go func() {
					daemon.Write(closeFrame(1000))
					daemon.Close()
				}()
				began := time.Now()
				ended := make(chan struct{})
				go func() { defer close(ended); tunnel.run() }()
				if _, err := io.ReadFull(client, make([]byte, 4)); err != nil {
					t.Error(err)
				}
				go io.Copy(io.Discard, client)
				client.Write(c.answer)
				<-ended
				if took := time.Since(began); took != c.want {
					t.Errorf("it ended after %v, want %v", took, c.want)
				}
			})
		})
	}
}

func TestFrames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var stream []byte
		whole := map[int]bool{0: true} // positions where a message can be put in
		open := false
		for range rapid.IntRange(1, 8).Draw(t, "frames") {
			size := rapid.OneOf(rapid.IntRange(0, 3), rapid.SampledFrom([]int{125, 126, 127, 65535, 65536})).Draw(t, "size")
			control := size <= 125 && rapid.Bool().Draw(t, "control")
			fin := control || rapid.Bool().Draw(t, "fin")
			var head byte
			switch {
			case control:
				head = 0x9
			case !open:
				head = 0x1
			}
			if fin {
				head |= 0x80
			}
			var mask byte
			if rapid.Bool().Draw(t, "masked") {
				mask = 0x80
			}
			stream = append(stream, head)
			switch {
			case size < 126:
				stream = append(stream, mask|byte(size))
			case size < 65536:
				stream = binary.BigEndian.AppendUint16(append(stream, mask|126), uint16(size))
			default:
				stream = binary.BigEndian.AppendUint64(append(stream, mask|127), uint64(size))
			}
			if mask != 0 {
				stream = append(stream, 1, 2, 3, 4)
			}
			stream = append(stream, make([]byte, size)...)
			if !control {
				open = !fin
			}
			if !open {
				whole[len(stream)] = true
			}
		}
		var f frames
		for pos := 0; pos < len(stream); {
			n := rapid.IntRange(1, min(70000, len(stream)-pos)).Draw(t, "chunk")
			f.follow(stream[pos : pos+n])
			pos += n
			if f.between() != whole[pos] {
				t.Fatalf("at byte %d of %d: between is %v", pos, len(stream), f.between())
			}
		}
	})
}

func TestQuantities(t *testing.T) {
	for _, good := range []string{"1", "0.5", "512Mi", "1.5Gi", "10k", "1e9", "999999999999999999"} {
		if m := quantityRule().FindStringSubmatch(good); m == nil || zero(m[1]) {
			t.Errorf("%s is refused", good)
		}
	}
	for _, bad := range []string{"", "Mi", "1 Gi", "1gi", "-1", "0x1", "1GiB", ".5", "1e", "1e999", "٣"} {
		if quantityRule().MatchString(bad) {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestQuantitySizes(t *testing.T) {
	for text, want := range map[string]string{"1": "1", "0.5": "1/2", "1Ki": "1024", "1.5Ki": "1536", "2k": "2000", "3M": "3000000", "1Gi": "1073741824",
		"1E": "1000000000000000000", "1Ei": "1152921504606846976", "1e3": "1000", "2E3": "2000"} {
		if got := quantity(text); got == nil || got.RatString() != want {
			t.Errorf("%s is %v, want %s", text, got, want)
		}
	}
	for _, none := range []string{"", "0", "0Gi", "x"} {
		if got := quantity(none); got != nil {
			t.Errorf("%q is %v", none, got)
		}
	}
}

func TestOverlay(t *testing.T) {
	low := &wire.RunConfig{User: "a", WorkDir: "/a", EnvVars: map[string]string{"A": "1", "B": "1"}}
	high := &wire.RunConfig{User: "b", EnvVars: map[string]string{"B": "2"}}
	want := &wire.RunConfig{User: "b", WorkDir: "/a", EnvVars: map[string]string{"A": "1", "B": "2"}}
	if got := overlay(low, high); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if overlay(low, nil) != low || overlay(nil, high) != high || overlay(nil, nil) != nil || low.EnvVars["B"] != "1" {
		t.Error("a layer that is missing changes the other")
	}
}
