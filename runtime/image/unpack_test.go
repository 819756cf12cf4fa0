//go:build linux

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/sbx-star/sbx-star/internal/testimage"
)

// This file defines tests of the unpacking of hostile and of ordinary archives.

func unpackInto(t testing.TB, dir string, archive []byte, most Limits) (Unpacked, error) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return Unpack(f, bytes.NewReader(archive), 1, most)
}

func archiveOf(t testing.TB, entries ...testimage.Entry) []byte {
	t.Helper()
	data, err := testimage.Tar(entries...)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func hardLink(name, target string) testimage.Entry {
	return testimage.Entry{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}}
}

var ample = Limits{Bytes: 1 << 20, Files: 1000}

// TestHostileArchives has archives try to reach a file beside the layer.
func TestHostileArchives(t *testing.T) {
	for _, test := range []struct {
		name    string
		entries []testimage.Entry
		want    string
	}{
		{"a path up", []testimage.Entry{testimage.File("../secret", "x")}, "leads out"},
		{"a path up from below", []testimage.Entry{testimage.File("a/../../secret", "x")}, "leads out"},
		{"a folder that is a link out", []testimage.Entry{testimage.Link("d", ".."), testimage.File("d/secret", "x")}, "below a link"},
		{"a folder that is an absolute link", []testimage.Entry{testimage.Link("d", "/"), testimage.File("d/secret", "x")}, "below a link"},
		{"a folder that is a link inside", []testimage.Entry{testimage.Folder("e"), testimage.Link("d", "e"), testimage.File("d/x", "x")}, "below a link"},
		{"a hard link up", []testimage.Entry{hardLink("l", "../secret")}, "leads out"},
		{"a hard link through a link", []testimage.Entry{testimage.Link("d", ".."), hardLink("l", "d/secret")}, "which the layer has not"},
		{"a hard link to a folder", []testimage.Entry{testimage.Folder("d"), hardLink("l", "d")}, "not as a file"},
		{"a hard link to nothing", []testimage.Entry{hardLink("l", "nothing")}, "not as a file"},
		{"a hard link to what hides", []testimage.Entry{testimage.File(".wh.a", ""), hardLink("l", "a")}, "not as a file"},
		{"a deletion of the folder above", []testimage.Entry{testimage.File(".wh...", "")}, "hides nothing"},
		{"a deletion of the folder", []testimage.Entry{testimage.File("d/.wh..", "")}, "hides nothing"},
		{"a deletion through a link", []testimage.Entry{testimage.Link("d", ".."), testimage.File("d/.wh.secret", "")}, "below a link"},
		{"a file below a file", []testimage.Entry{testimage.File("f", ""), testimage.File("f/g", "")}, "below a link or a file"},
		{"a full folder that becomes a file", []testimage.Entry{testimage.File("d/f", ""), testimage.File("d", "")}, "not empty"},
		{"too much", []testimage.Entry{testimage.File("f", strings.Repeat("x", 2<<20))}, "larger than|more than"},
		{"too deep", []testimage.Entry{testimage.File(strings.Repeat("d/", 300)+"f", "")}, "deeper than"},
	} {
		t.Run(test.name, func(t *testing.T) {
			outside := t.TempDir()
			secret := filepath.Join(outside, "secret")
			if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := unpackInto(t, filepath.Join(outside, "layer"), archiveOf(t, test.entries...), ample)
			found := false
			for want := range strings.SplitSeq(test.want, "|") {
				found = found || err != nil && strings.Contains(err.Error(), want)
			}
			if !found {
				t.Errorf("got %v, want %q", err, test.want)
			}
			intact(t, outside)
		})
	}
	many := make([]testimage.Entry, 1001)
	for i := range many {
		many[i] = testimage.Folder("d")
	}
	if _, err := unpackInto(t, filepath.Join(t.TempDir(), "layer"), archiveOf(t, many...), ample); err == nil || !strings.Contains(err.Error(), "more than 1000 files") {
		t.Errorf("too many: %v", err)
	}
}

// intact fails unless there is nothing beside the layer but the secret as it was.
func intact(t testing.TB, outside string) {
	t.Helper()
	entries, err := os.ReadDir(outside)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(outside, "secret"))
	if len(entries) != 2 || string(text) != "secret" || err != nil {
		t.Errorf("outside there are %v and %q (%v)", entries, text, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(outside, "secret"), &st); err != nil || st.Nlink != 1 {
		t.Errorf("the secret has %d names (%v)", st.Nlink, err)
	}
}

// TestUnpack has what is odd and allowed, compressed in each way.
func TestUnpack(t *testing.T) {
	plain := archiveOf(t,
		testimage.File("/absolute", "a"), testimage.File("./dot", "d"), testimage.File("made/for/it", "m"),
		testimage.File("twice", "first"), testimage.File("twice", "second"),
		testimage.File("f", "f"), hardLink("f", "f"), hardLink("also/f", "/f"),
		testimage.Link("dangling", "/nowhere"), hardLink("dangling2", "dangling"),
		testimage.Entry{Header: tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		testimage.Entry{Header: tar.Header{Name: "marked/", Typeflag: tar.TypeDir, Format: tar.FormatPAX,
			PAXRecords: map[string]string{"SCHILY.xattr." + opaqueMark: "y", "SCHILY.xattr.user.overlay.redirect": "/"}}},
		testimage.File("opaque/.wh..wh..opq", ""), testimage.File(".wh..wh.plnk", ""),
		testimage.File("kept/x", ""), testimage.File(".wh.kept", ""),
		testimage.File(".wh.back", ""), testimage.Folder("back"), testimage.File(".wh.gone", ""),
	)
	var zipped, zstded bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(plain)
	z.Close()
	s, err := zstd.NewWriter(&zstded)
	if err != nil {
		t.Fatal(err)
	}
	s.Write(plain)
	s.Close()
	for name, archive := range map[string][]byte{"plain": plain, "gzip": zipped.Bytes(), "zstd": zstded.Bytes()} {
		dir := filepath.Join(t.TempDir(), "layer")
		got, err := unpackInto(t, dir, archive, ample)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if want := hashOf(plain).Hex; got.DiffID != want {
			t.Errorf("%s: the digest is %s, want %s", name, got.DiffID, want)
		}
		for file, want := range map[string]string{"absolute": "a", "dot": "d", "made/for/it": "m", "twice": "second", "f": "f", "also/f": "f", "kept/x": ""} {
			if text, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(text) != want {
				t.Errorf("%s: %s has %q (%v)", name, file, text, err)
			}
		}
		for _, file := range []string{"null", ".wh..wh.plnk", "opaque/.wh..wh..opq"} {
			if _, err := os.Lstat(filepath.Join(dir, file)); err == nil {
				t.Errorf("%s: there is %s", name, file)
			}
		}
		for folder, want := range map[string]bool{"opaque": true, "kept": true, "back": true, "marked": false, "made": false} {
			mark := make([]byte, 1)
			_, err := unix.Getxattr(filepath.Join(dir, folder), opaqueMark, mark)
			if (err == nil) != want {
				t.Errorf("%s: %s is opaque: %v", name, folder, err)
			}
		}
		if _, err := unix.Getxattr(filepath.Join(dir, "marked"), "user.overlay.redirect", make([]byte, 1)); err == nil {
			t.Errorf("%s: a mark of the overlay came out of the archive", name)
		}
		if info, err := os.Lstat(filepath.Join(dir, "gone")); err != nil || info.Mode()&fs.ModeCharDevice == 0 {
			t.Errorf("%s: gone is %v (%v)", name, info, err)
		}
	}
	if _, err := unpackInto(t, filepath.Join(t.TempDir(), "cut"), plain[:len(plain)/2-100], ample); err == nil {
		t.Error("half an archive was accepted")
	}
}

// TestBomb has a small archive become large.
func TestBomb(t *testing.T) {
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(archiveOf(t, testimage.File("f", strings.Repeat("\x00", 8<<20))))
	z.Close()
	if _, err := unpackInto(t, filepath.Join(t.TempDir(), "layer"), zipped.Bytes(), ample); err == nil {
		t.Error("it was accepted")
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(archiveOf(f, testimage.Link("d", ".."), testimage.File("d/secret", "x")))
	f.Add(archiveOf(f, testimage.File("a/.wh.b", ""), testimage.Folder("a/b"), hardLink("c", "a/b"), testimage.File("a/.wh..wh..opq", "")))
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0})
	f.Fuzz(func(t *testing.T, archive []byte) {
		outside := t.TempDir()
		if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(outside, "layer")
		got, err := unpackInto(t, dir, archive, Limits{Bytes: 1 << 16, Files: 100})
		intact(t, outside)
		if err == nil && (got.Bytes > 1<<16 || got.Files > 100) {
			t.Errorf("got %+v", got)
		}
		open := func(path string, _ fs.DirEntry, _ error) error { os.Chmod(path, 0o700); return nil }
		filepath.WalkDir(dir, open) // so that it can be removed
	})
}
