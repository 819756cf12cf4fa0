package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// This file defines how files and whole folders move between this machine and a
// sandbox: as one tar stream, whatever the server's generation.
//
// The stream goes through the endpoints for files, which every server has, and
// is unpacked or packed by the sandbox's own tar. It lies in a temporary folder
// of the sandbox on the way. That has a reason beyond simplicity: pieces can be
// sent again, and nothing of the target is touched before all of it is there.

// Transfer is what an upload or a download has come to.
type Transfer struct {
	Files int   // that are no folders
	Bytes int64 // of their content

	// Skipped are those that are neither file, folder nor link, the first
	// hundred of them: sockets, pipes and devices mean nothing elsewhere.
	Skipped []string
}

const mostSkipped = 100

func (t *Transfer) skip(name string) {
	if len(t.Skipped) < mostSkipped {
		t.Skipped = append(t.Skipped, name)
	}
}

// TransferOptions say how to move files.
type TransferOptions struct {
	// Exclude are patterns, as of path.Match, of the names of files and folders
	// that are left out, at any depth. For uploads.
	Exclude []string

	// Progress is called now and then with what was moved so far, by the
	// goroutine that moves it.
	Progress func(Transfer)
}

const (
	transferPiece = 8 << 20          // bytes that are sent at once and held in memory
	transferTime  = 24 * time.Hour   // of packing and unpacking, if ctx has no deadline
	transferTidy  = 20 * time.Second // to delete what lies in the sandbox
)

// UploadTree copies the file or the folder at local to target in the sandbox: what
// is in a folder goes into the folder of that path, which is made with its
// parents if it is missing, and over the files that are there. Modes and times
// are kept, owners are not; symbolic links stay links, wherever they lead, but
// local itself may be one.
//
// A failure to read, or of the connection, leaves the target as it was. If
// unpacking fails, which the error says, it may hold a part of the files.
func (s *Sandbox) UploadTree(ctx context.Context, local, target string, o TransferOptions) (_ *Transfer, err error) {
	if err := validatePath(target); err != nil {
		return nil, err
	}
	if err := validateExclude(o.Exclude); err != nil {
		return nil, err
	}
	info, err := os.Stat(local)
	if err != nil {
		return nil, err
	}
	if info.Mode().IsRegular() && info.Size() > largeFile {
		f, err := os.Open(local)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return s.uploadFile(ctx, f, target, o)
	}
	stage := newStage(s)
	defer func() {
		if err != nil {
			stage.remove(ctx)
		}
	}()
	pieces := &pieceWriter{ctx: ctx, stage: stage}
	p := newPacker(ctx, pieces, o)
	folder, name := split(target)
	if info.IsDir() {
		folder, name = target, ""
		err = p.folder(local)
	} else {
		err = p.file(local, name)
	}
	if err == nil {
		err = p.close()
	}
	if err == nil {
		err = pieces.flush()
	}
	if err != nil {
		return nil, err
	}
	result, err := stage.run(ctx, unpackScript(folder, name, stage.dir, pieces.n))
	if err != nil {
		return nil, err
	}
	if result.ExitCode != 0 {
		outcome := fmt.Sprintf("may have written a part of the %d files", p.done.Files)
		if result.ExitCode == noTarget {
			outcome = "wrote nothing"
		}
		return nil, &Error{Kind: ErrOperation, Operation: "upload", Stderr: result.Stderr,
			Message: fmt.Sprintf("unpacking to %s in sandbox %s failed and %s: %s", target, s.Name, outcome, lastLines(result.Stderr))}
	}
	return &p.done, nil
}

// DownloadTree copies the file or the folder at source in the sandbox to local:
// what is in a folder goes into the folder local, which is made with its parents
// if it is missing, and over the files that are there. Modes and times are kept,
// but for set-user-id and the like; owners are not. Symbolic links stay links,
// wherever they lead; nothing is written through them or anywhere else outside
// of local, whatever the sandbox sends.
//
// Each file appears whole or not at all. An error on the way says how many did.
func (s *Sandbox) DownloadTree(ctx context.Context, source, local string, o TransferOptions) (_ *Transfer, err error) {
	if err := validatePath(source); err != nil {
		return nil, err
	}
	stage := newStage(s)
	defer stage.remove(ctx)
	result, err := stage.run(ctx, largeScript(source)+packScript(source, stage.dir))
	if err != nil {
		return nil, err
	}
	switch {
	case result.ExitCode == noSource:
		return nil, &Error{Kind: ErrNotFound, ResourceType: "file", Message: fmt.Sprintf("sandbox %s has no %s", s.Name, source)}
	case result.ExitCode != 0:
		return nil, &Error{Kind: ErrOperation, Operation: "download", Stderr: result.Stderr, Message: fmt.Sprintf(
			"packing %s in sandbox %s failed, and nothing was written here: %s", source, s.Name, lastLines(result.Stderr))}
	}
	one, isLarge := large(result.Stdout)
	kind, length, _ := strings.Cut(strings.TrimSpace(result.Stdout), " ")
	if isLarge {
		kind, length = "file", strconv.FormatInt(one.Size, 10)
	}
	size, err := strconv.ParseInt(strings.TrimSpace(length), 10, 64)
	if err != nil || kind != "folder" && kind != "file" {
		return nil, &Error{Kind: ErrClient, Message: fmt.Sprintf("packing %s in sandbox %s told %q instead of what it made", source, s.Name, result.Stdout)}
	}

	into, name := local, ""
	if kind == "file" {
		into, name = filepath.Dir(local), filepath.Base(local)
		if info, err := os.Stat(local); err == nil && info.IsDir() {
			return nil, argumentError("%s is a file in the sandbox and %s a folder here; name the file that it is to become", source, local)
		}
	}
	if err := os.MkdirAll(into, 0o777); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(into)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	u := &unpacker{ctx: ctx, root: root, only: name, size: size, ignore: path.Base(stage.dir), progress: o.Progress}
	if isLarge {
		err = s.downloadFile(ctx, source, name, one, u)
	} else {
		err = s.downloadStream(ctx, stage.piece(0), size, u)
	}
	if err != nil {
		return nil, fmt.Errorf("downloading %s to %s: %w; %d files were written before that, each of them whole", source, local, err, u.done.Files)
	}
	return &u.done, nil
}

// downloadStream unpacks a stream of so many bytes.
func (s *Sandbox) downloadStream(ctx context.Context, source string, size int64, u *unpacker) error {
	stream, err := s.Download(ctx, source)
	if err != nil {
		return err
	}
	defer stream.Close()
	counted := &countingReader{r: stream}
	if err := u.unpack(counted); err != nil {
		return err
	}
	if _, err = io.Copy(io.Discard, counted); err == nil && counted.n != size {
		err = &Error{Kind: ErrConnection, Message: fmt.Sprintf("%d bytes arrived of %d", counted.n, size)}
	}
	return err
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// stage is the temporary folder of one transfer in the sandbox. It is below
// /var/tmp because /tmp is often memory, and a transfer may be more than that.
type stage struct {
	sandbox *Sandbox
	dir     string
}

func (t *stage) piece(n int) string { return fmt.Sprintf("%s/%08d", t.dir, n) }

func newStage(s *Sandbox) *stage {
	var id [8]byte
	rand.Read(id[:]) // never fails
	return &stage{s, "/var/tmp/.sbx-transfer-" + hex.EncodeToString(id[:])}
}

// run runs a script in the sandbox.
func (t *stage) run(ctx context.Context, script string) (*Result, error) {
	limit := transferTime
	if deadline, ok := ctx.Deadline(); ok {
		limit = max(time.Until(deadline), time.Second)
	}
	return t.sandbox.Run(ctx, RunOptions{Command: script, Shell: "/bin/sh", Timeout: limit, CloseStdin: true, KillOnDisconnect: true})
}

// remove deletes the folder, also when ctx has ended. That may fail with the
// connection that has failed already, and then is the sandbox's to forget.
func (t *stage) remove(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), transferTidy)
	defer cancel()
	t.run(ctx, "rm -rf "+t.dir)
}

// pieceWriter sends what is written to it in pieces, each a file of its own that
// can be sent again.
type pieceWriter struct {
	ctx    context.Context
	stage  *stage
	buffer bytes.Buffer
	n      int // pieces that were sent
}

func (w *pieceWriter) Write(p []byte) (int, error) {
	w.buffer.Write(p)
	if w.buffer.Len() < transferPiece {
		return len(p), nil
	}
	return len(p), w.flush()
}

func (w *pieceWriter) flush() error {
	if w.buffer.Len() == 0 {
		return nil
	}
	err := w.stage.sandbox.Upload(w.ctx, w.stage.piece(w.n), bytes.NewReader(w.buffer.Bytes()))
	w.buffer.Reset()
	w.n++
	return err
}

// The exit codes of the scripts where there is nothing to pack, and where
// unpacking cannot begin.
const (
	noSource = 44
	noTarget = 45
)

const needTar = `command -v tar >/dev/null || { echo "there is no tar in the sandbox" >&2; exit 45; }
`

// unpackScript puts the pieces of a stream together and unpacks them in a
// folder. The stream is the one file of the name, if that is not empty. Each
// piece is deleted once it is read, so that the sandbox need not hold all of it
// twice; one that is left, or missing, is a failure, because the end of a broken
// stream may look like a proper one to tar.
func unpackScript(folder, name, stage string, pieces int) string {
	target := inShell(folder)
	check := ""
	if name != "" {
		check = fmt.Sprintf("[ ! -d %s ] || { echo \"there is a folder of this name\" >&2; exit 45; }\n", inShell(strings.TrimRight(folder, "/")+"/"+name))
	}
	return home(folder) + needTar + check + fmt.Sprintf(`mkdir -p %[1]s && t=$(cd %[1]s && pwd) && cd %[2]s || exit %[4]d
set -- *
[ $# = %[3]d ] && [ -e "$1" ] || { echo "pieces of the transfer are missing" >&2; exit %[4]d; }
for f in *; do cat "$f" && rm "$f" || exit 1; done | LC_ALL=C tar -xpof - -C "$t"
s=$?
[ $s != 0 ] || [ "$(echo *)" = "*" ] || { echo "pieces of the transfer are left" >&2; s=1; }
cd / && rm -rf %[2]s
exit $s`, target, stage, pieces, noTarget)
}

// packScript packs a folder, or a file, and tells which, and the length of that.
func packScript(source, stage string) string {
	folder, name := split(source)
	return home(source) + needTar + fmt.Sprintf(`umask 077
mkdir -p %[1]s || exit 1
if [ -d %[2]s ]; then
	cd %[2]s && LC_ALL=C tar -cf %[1]s/00000000 . || exit 1
	k=folder
elif [ -e %[2]s ]; then
	cd %[3]s && LC_ALL=C tar -chf %[1]s/00000000 %[4]s || exit 1
	k=file
else
	exit %[5]d
fi
echo $k $(wc -c < %[1]s/00000000)`, stage, inShell(source), inShell(folder), "./"+quote(name), noSource)
}

// split is the folder of a path, and its last part.
func split(p string) (folder, name string) {
	p = strings.TrimRight(p, "/")
	folder, name = path.Split(p)
	if folder == "" {
		folder = "."
	}
	return folder, name
}

// home goes to where relative paths begin, wherever commands run (§5).
func home(path string) string {
	if strings.HasPrefix(path, "/") {
		return ""
	}
	return "cd /home/user 2>/dev/null\n"
}

// inShell is a path as a word of a shell that never looks like an option.
func inShell(path string) string {
	if strings.HasPrefix(path, "/") {
		return quote(path)
	}
	return "./" + quote(path)
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// lastLines is the end of what a program complains of, on one line.
func lastLines(stderr string) string {
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	text := strings.Join(lines[max(0, len(lines)-3):], "; ")
	if len(text) > 1000 {
		text = strings.ToValidUTF8(text[len(text)-1000:], "")
	}
	if text == "" {
		return "it did not say why"
	}
	return text
}
