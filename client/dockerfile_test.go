package client

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file tests builds from a Dockerfile against a server that plays the
// sandbox that builds.

// A buildServer is that server: it answers the first commands in turn.
type buildServer struct {
	commands []func(*peer)

	mu      sync.Mutex
	log     []string
	archive []string // the entries of the context folder
	run     []wire.Execute
	sockets sync.WaitGroup
}

func exiting(code int, stderr string) func(*peer) {
	return func(p *peer) {
		p.started()
		p.say(`{"type":"stdout","data":"out\n","offset":0}`, fmt.Sprintf(`{"type":"stderr","data":%q,"offset":0}`, stderr), fmt.Sprintf(`{"type":"exit","exit_code":%d}`, code))
		p.untilEnd()
	}
}

func (s *buildServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	line := r.Method + " " + strings.TrimPrefix(r.URL.Path, "/v2/sandboxes")
	body := io.Reader(r.Body)
	if strings.HasSuffix(r.URL.Path, "/boxes") || strings.HasSuffix(r.URL.Path, "/snapshot") {
		text, _ := io.ReadAll(body)
		line += " " + string(text)
	}
	s.mu.Lock()
	s.log = append(s.log, line)
	n := len(s.run)
	s.mu.Unlock()
	switch line, _, _ := strings.Cut(line, " {"); {
	case line == "POST /boxes":
		fmt.Fprintf(w, `{"name":"builder","dataplane_url":"http://%s/sb"}`, r.Host)
	case line == "POST /sb/upload":
		file, _, err := r.FormFile("file")
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		var entries []string
		for archive := tar.NewReader(file); ; {
			h, err := archive.Next()
			if err != nil {
				break
			}
			content, _ := io.ReadAll(archive)
			entries = append(entries, strings.TrimSpace(fmt.Sprintf("%s %o %d:%d %s%s", h.Name, h.Mode, h.Uid, h.Gid, h.Linkname, content)))
		}
		s.mu.Lock()
		s.archive = entries
		s.mu.Unlock()
	case line == "GET /sb/execute/ws":
		s.sockets.Add(1)
		defer s.sockets.Done()
		(&sockets{serve: []func(*peer){func(p *peer) {
			m, _ := p.command().(*wire.Execute)
			s.mu.Lock()
			s.run = append(s.run, *m)
			s.mu.Unlock()
			s.commands[n](p)
		}}}).ServeHTTP(w, r)
	case strings.HasSuffix(line, "/snapshot"), strings.HasPrefix(line, "GET /snapshots/"):
		io.WriteString(w, `{"id":"i","name":"app","status":"ready"}`)
	}
}

// build runs a build of folder on a server that plays these commands.
func build(t *testing.T, ctx context.Context, b DockerfileBuild, commands ...func(*peer)) (*buildServer, *wire.Snapshot, error) {
	t.Helper()
	s := &buildServer{commands: commands}
	server := httptest.NewServer(s)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		s.sockets.Wait()
	})
	var notes script
	c := clientOf(t, Options{Endpoint: server.URL + "/v2/sandboxes"}, &notes.mu, &notes.waits)
	made, err := c.CreateSnapshotFromDockerfile(ctx, b)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s, made, err
}

// contextFolder is a folder with everything in it that is treated in its own way.
func contextFolder(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	for name, content := range map[string]string{"Dockerfile": "FROM scratch\n", "src/b": "b", "src/a": "a", ".git/config": "no", "src/.git/config": "yes", ".dockerignore": "x"} {
		path := filepath.Join(folder, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644), os.Chmod(path, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("../elsewhere", filepath.Join(folder, "link")), os.Chmod(filepath.Join(folder, "src/a"), 0o755)); err != nil {
		t.Fatal(err)
	}
	return folder
}

func TestASnapshotFromADockerfile(t *testing.T) {
	var log strings.Builder
	folder := contextFolder(t)
	s, made, err := build(t, t.Context(), DockerfileBuild{Name: "app", Context: folder, Dockerfile: "Dockerfile", Builder: "builder",
		BuildArgs: map[string]string{"B": "it's", "A": "1"}, Target: "final", FSCapacityBytes: new(int64(7)), VCPUs: new(2), MemBytes: new(int64(9)),
		Timeout: 90 * time.Second, OnLog: func(text string) error { log.WriteString(text); return nil }}, exiting(0, ""), exiting(0, "done\n"))
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "snapshot", made.ID, "i")
	wantEqual(t, "log", log.String(), "out\ndone\n")
	image := s.log[4][strings.Index(s.log[4], "langsmith-snapshot-build:"):][:len("langsmith-snapshot-build:")+32]
	wantEqual(t, "requests", s.log, []string{
		`POST /boxes {"name":"builder","wait_for_ready":true,"timeout":90,"vcpus":2,"mem_bytes":9,"fs_capacity_bytes":7}`,
		`POST /sb/upload`, `GET /sb/execute/ws`, `GET /sb/execute/ws`,
		`POST /boxes/builder/snapshot {"name":"app","docker_image":"` + image + `","fs_capacity_bytes":7}`,
		`GET /snapshots/i`, `DELETE /boxes/builder`,
	})
	want := []string{".dockerignore 644 0:0 x", "Dockerfile 644 0:0 FROM scratch", "link 777 0:0 ../elsewhere", "src/ 755 0:0", "src/.git/ 755 0:0", "src/.git/config 644 0:0 yes", "src/a 755 0:0 a", "src/b 644 0:0 b"}
	wantEqual(t, "archive", s.archive, want)
	root := strings.Split(s.run[0].Command.Line, "'")[1]
	root = strings.TrimSuffix(root, "/context")
	if !strings.HasPrefix(root, "/var/lib/langsmith-build/") || len(filepath.Base(root)) != 12 {
		t.Errorf("it is built in %s", root)
	}
	wantEqual(t, "unpacking", s.run[0].Command.Line, strings.ReplaceAll("rm -rf 'R/context' && mkdir -p 'R/context' && tar -x -C 'R/context' -f 'R/context.tar'", "R", root))
	for _, word := range []string{`'--opt' 'filename=Dockerfile' '--opt' 'target=final' '--opt' 'build-arg:A=1' '--opt' 'build-arg:B=it'\''s' '--output' 'type=docker,name=` + image + `'`, `'--local' 'context=` + root + `/context' '--local' 'dockerfile=` + root + `/context'`} {
		if !strings.Contains(s.run[1].Command.Line, word) {
			t.Errorf("the build lacks %s:\n%s", word, s.run[1].Command.Line)
		}
	}
	wantEqual(t, "time for each command", []int{s.run[0].TimeoutSeconds, s.run[1].TimeoutSeconds}, []int{90, 90})
}

// Whatever fails, the sandbox is deleted and nothing is captured.
func TestBuildsThatFail(t *testing.T) {
	why := errors.New("why")
	cancelled, cancel := context.WithCancelCause(t.Context())
	for what, x := range map[string]struct {
		ctx      context.Context
		onLog    func(string) error
		commands []func(*peer)
		want     string
	}{
		"unpacking":       {t.Context(), nil, []func(*peer){exiting(2, "tar: short\n")}, "could not be unpacked in the sandbox builder: exit status 2: tar: short"},
		"the build":       {t.Context(), nil, []func(*peer){exiting(0, ""), exiting(1, strings.Repeat("x\n", 50)+"no such stage\n")}, "the Dockerfile could not be built: exit status 1: " + strings.Repeat("x\n", 9) + "no such stage"},
		"who reads along": {t.Context(), func(string) error { return why }, []func(*peer){exiting(0, ""), exiting(0, "")}, "why"},
		"the caller": {cancelled, nil, []func(*peer){exiting(0, ""), func(p *peer) {
			p.started()
			cancel(why)
			p.untilEnd()
		}}, "why"},
	} {
		s, _, err := build(t, x.ctx, DockerfileBuild{Name: "app", Context: contextFolder(t), Builder: "builder", OnLog: x.onLog}, x.commands...)
		if err == nil || !strings.HasSuffix(err.Error(), x.want) {
			t.Errorf("%s: got %v, want %s", what, err, x.want)
		}
		if last := s.log[len(s.log)-1]; last != "DELETE /boxes/builder" || slices.ContainsFunc(s.log, func(l string) bool { return strings.HasPrefix(l, "POST /boxes/builder/snapshot") }) {
			t.Errorf("%s: it asked for %q", what, s.log)
		}
	}
}

// What is in the way of the builder is somebody else's.
func TestABuilderThatExists(t *testing.T) {
	c, s := serve(t, answer{409, `{}`, nil})
	_, err := c.CreateSnapshotFromDockerfile(t.Context(), DockerfileBuild{Name: "app", Context: contextFolder(t), Builder: "builder"})
	wantKind(t, err, ErrAlreadyExists)
	wantEqual(t, "requests", s.methods(), "POST")
}

func TestContextsThatAreRefused(t *testing.T) {
	folder, outside := contextFolder(t), filepath.Join(t.TempDir(), "Dockerfile")
	if err := errors.Join(os.WriteFile(outside, nil, 0o666), os.Symlink(outside, filepath.Join(folder, "away")), os.Symlink("Dockerfile", filepath.Join(folder, "same"))); err != nil {
		t.Fatal(err)
	}
	for what, x := range map[string]struct{ context, dockerfile, want string }{
		"no context":           {"", "", "context"},
		"a missing context":    {filepath.Join(folder, "none"), "", "context folder of the build cannot be used"},
		"a file as context":    {filepath.Join(folder, "Dockerfile"), "", "is not a folder"},
		"a missing Dockerfile": {folder, "src/Dockerfile", "Dockerfile cannot be used"},
		"one outside":          {folder, outside, "is not inside"},
		"one above":            {filepath.Join(folder, "src"), "../Dockerfile", "is not inside"},
		"a link to outside":    {folder, "away", "is not inside"},
		"a folder":             {folder, "src", "is not a file"},
	} {
		c, s := serve(t, answer{200, `{}`, nil})
		_, err := c.CreateSnapshotFromDockerfile(t.Context(), DockerfileBuild{Name: "a", Context: x.context, Dockerfile: x.dockerfile})
		if e := wantKind(t, err, ErrValidation); !strings.Contains(e.Message, x.want) || len(s.asked()) > 0 {
			t.Errorf("%s: %v after %d requests", what, e, len(s.asked()))
		}
	}
	link := filepath.Join(t.TempDir(), "context")
	if err := os.Symlink(folder, link); err != nil {
		t.Fatal(err)
	}
	for dockerfile, want := range map[string]string{"same": "Dockerfile", filepath.Join(link, "Dockerfile"): "Dockerfile", "": "Dockerfile"} {
		b := DockerfileBuild{Context: link, Dockerfile: dockerfile}
		if got, err := b.locate(); err != nil || got != want {
			t.Errorf("%q is %q, %v", dockerfile, got, err)
		}
	}
}

// The script is bash; here it runs with programs that write down how they are called.
func TestTheScriptOfABuild(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil || runtime.GOOS == "windows" {
		t.Skip("the script needs bash")
	}
	programs := map[string]string{
		"buildkitd": `echo "buildkitd $*" >>"$LOG"; echo says this; exec sleep 60`,
		"buildctl":  `echo "buildctl $*" >>"$LOG"; case "$*" in *" build "*) echo image; exit $BUILD;; esac`,
		"docker":    `echo "docker $*" >>"$LOG"; case "$1" in load) cat >>"$LOG";; esac`,
	}
	for what, x := range map[string]struct {
		change map[string]string
		exit   string
		code   int
		stderr string
	}{
		"well":                       {nil, "0", 0, ""},
		"a build that fails":         {nil, "3", 3, ""},
		"a daemon that dies":         {map[string]string{"buildkitd": `echo out of memory; exit 1`, "buildctl": "exit 1"}, "0", 1, "out of memory\nbuildkitd has ended\n"},
		"an image that is not taken": {map[string]string{"docker": `[ "$1" = info ]`}, "0", 1, ""},
	} {
		dir := t.TempDir()
		all := maps.Clone(programs)
		maps.Copy(all, x.change)
		for name, text := range all {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("#!"+bash+"\n"+text+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		b := DockerfileBuild{BuildArgs: map[string]string{"A": "$(false) 'x'"}}
		root := filepath.Join(dir, "the root")
		cmd := exec.CommandContext(t.Context(), bash, "-c", b.script(buildPlace{root: root, image: "image:tag"}, "deep/My.Dockerfile"))
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "LOG="+filepath.Join(dir, "log"), "BUILD="+x.exit)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != x.code || stderr.String() != x.stderr {
			t.Errorf("%s: exit status %d, want %d; stderr is %q, want %q", what, got, x.code, stderr.String(), x.stderr)
		}
		if what != "well" {
			continue
		}
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		address := "--addr unix://" + root + "/buildkit-run/buildkitd.sock"
		lines := strings.Split(strings.TrimSpace(string(log)), "\n")
		slices.Sort(lines)
		lines = slices.Compact(lines)
		wantEqual(t, "calls", strings.Join(lines, "\n"), strings.Join([]string{
			"buildctl " + address + " build --progress=plain --frontend=dockerfile.v0 --local context=" + root + "/context --local dockerfile=" + root + "/context/deep --opt filename=My.Dockerfile --opt build-arg:A=$(false) 'x' --output type=docker,name=image:tag",
			"buildctl " + address + " debug workers",
			"buildkitd " + address + " --root " + root + "/buildkit-root --oci-worker=true --containerd-worker=false --oci-worker-snapshotter=native --oci-worker-binary=buildkit-runc",
			"docker info", "docker load", "image",
		}, "\n"))
		if _, err := os.Stat(root + "/buildkit-root"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("what BuildKit has stored is left: %v", err)
		}
	}
}
