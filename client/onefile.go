package client

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"
)

// This file defines how one large file moves: as itself, through the endpoints
// for files. As a stream of tar it would be written twice in the sandbox.

// largeFile is the size from which on that is worth the second way.
const largeFile = transferPiece

// uploadFile copies an open file to target: it is written beside its place and
// then moved there. If that fails, the target is as it was.
func (s *Sandbox) uploadFile(ctx context.Context, f *os.File, target string, o TransferOptions) (_ *Transfer, err error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var id [8]byte
	rand.Read(id[:]) // never fails
	folder, _ := split(target)
	beside := strings.TrimRight(folder, "/") + "/.sbx-transfer-" + hex.EncodeToString(id[:])
	t := &stage{s, beside}
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), transferTidy)
			defer cancel()
			t.run(ctx, home(target)+"rm -f "+inShell(beside))
		}
	}()
	var done Transfer
	content := &wholeFile{f: f, size: info.Size()}
	content.progressReader = progressReader{r: io.LimitReader(f, info.Size()), ctx: ctx, done: &done, progress: o.Progress}
	if err := s.upload(ctx, beside, content, content.size); err != nil {
		return nil, err
	}
	result, err := t.run(ctx, home(target)+fmt.Sprintf(`[ ! -d %[1]s ] || { echo "there is a folder of this name" >&2; exit 1; }
chmod %[3]o %[2]s && touch -d @%[4]d %[2]s && mv -f %[2]s %[1]s`, inShell(strings.TrimRight(target, "/")), inShell(beside), tarMode(info.Mode()), info.ModTime().Unix()))
	if err != nil {
		return nil, err
	}
	if result.ExitCode != 0 {
		return nil, &Error{Kind: ErrOperation, Operation: "upload", Stderr: result.Stderr,
			Message: fmt.Sprintf("moving the file to %s in sandbox %s failed and wrote nothing: %s", target, s.Name, lastLines(result.Stderr))}
	}
	done.Files = 1
	return &done, nil
}

// wholeFile is a file of which so many bytes were promised. It can be sent again.
type wholeFile struct {
	progressReader
	f    *os.File
	size int64
}

func (w *wholeFile) Seek(offset int64, whence int) (int64, error) {
	at, err := w.f.Seek(offset, whence)
	if err == nil {
		w.done.Bytes, w.r = at, io.LimitReader(w.f, w.size-at)
	}
	return at, err
}

func (w *wholeFile) Read(p []byte) (int, error) {
	n, err := w.progressReader.Read(p)
	if missing := w.size - w.done.Bytes; err == io.EOF && missing > 0 {
		err = fmt.Errorf("the file became shorter while it was read: %d bytes are missing", missing)
	}
	return n, err
}

// largeScript tells the size, mode and time of a file that is large, and ends.
// What follows it packs what is not.
func largeScript(source string) string {
	return home(source) + fmt.Sprintf(`if [ -f %[1]s ] && f=$(stat -L -c '%%s %%a %%Y' %[1]s 2>/dev/null) && [ "${f%%%% *}" -gt %[2]d ]; then
	echo large $f
	exit
fi
`, inShell(source), largeFile)
}

// large reads what largeScript told; ok is false if it is something else.
func large(told string) (_ *tar.Header, ok bool) {
	fields := strings.Fields(told)
	if len(fields) != 4 || fields[0] != "large" {
		return nil, false
	}
	size, err := strconv.ParseInt(fields[1], 10, 64)
	mode, err2 := strconv.ParseUint(fields[2], 8, 32)
	seconds, err3 := strconv.ParseInt(fields[3], 10, 64)
	if err != nil || err2 != nil || err3 != nil || size < 0 {
		return nil, false
	}
	return &tar.Header{Typeflag: tar.TypeReg, Size: size, Mode: int64(mode), ModTime: time.Unix(seconds, 0)}, true
}

// downloadFile writes the file at source, of which the sandbox has told what h
// says, as the unpacker does.
func (s *Sandbox) downloadFile(ctx context.Context, source, name string, h *tar.Header, u *unpacker) error {
	stream, err := s.Download(ctx, source)
	if err != nil {
		return err
	}
	defer stream.Close()
	counted := &countingReader{r: io.LimitReader(stream, h.Size+1)}
	err = u.file(u.root, name, fs.FileMode(h.Mode)&fs.ModePerm, h, &exactly{counted, h.Size})
	if err == nil {
		u.done.Files++
	}
	return err
}

// exactly is a reader whose end is an error if it comes too early or late.
type exactly struct {
	*countingReader
	size int64
}

func (e *exactly) Read(p []byte) (int, error) {
	n, err := e.countingReader.Read(p)
	if e.n > e.size || err == io.EOF && e.n < e.size {
		return n, &Error{Kind: ErrConnection, Message: fmt.Sprintf("the file has changed while it was read: it had %d bytes", e.size)}
	}
	return n, err
}
