package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/sbx-star/sbx-star/runtime"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines mount_config (protocol.md §2.12), of which this server has the
// git mounts: a repository is fetched by the machine's own git into a folder of
// the sandbox, before that is made.
//
// Git runs with nothing that is the server's: no configuration, no credential, no
// home. So what it fetches is what anybody on this network may. A repository on
// this machine could be one that only the server's user may read, so paths are
// refused unless whoever started the server allowed them.

const (
	gitTimeout = 10 * time.Minute
	gitBytes   = 2 << 30 // of a repository, with its working tree
	gitLook    = 200 * time.Millisecond
	maxMounts  = 16
)

// gitMount is a repository in a sandbox's record.
type gitMount struct {
	URL    string `json:"url"`
	Ref    string `json:"ref,omitempty"` // whole, such as refs/heads/main
	Target string `json:"target"`
}

var refRule = rule(`^[A-Za-z0-9_][A-Za-z0-9._/+@-]{0,254}$`)

// gitMounts reads and checks mount_config.
func (s *Server) gitMounts(raw json.RawMessage) ([]gitMount, error) {
	var config wire.MountConfig
	if asked, err := decodeAt("mount_config", raw, &config); err != nil || !asked {
		return nil, err
	}
	const at = "body.mount_config.mounts"
	switch {
	case len(config.Mounts) == 0:
		return nil, invalid(at, "want a list that is not empty")
	case len(config.Mounts) > maxMounts:
		return nil, invalid(at, "want %d mounts at most", maxMounts)
	}
	var mounts []gitMount
	for i, m := range config.Mounts {
		at := at + "." + strconv.Itoa(i)
		if m.Type != "git" {
			return nil, unsupported("mount_config", fmt.Sprintf("this server has no mounts of type %q, only git", m.Type))
		}
		if config.Auth.AWS != nil || config.Auth.GCP != nil {
			return nil, invalid("body.mount_config.auth", "a git mount takes no credentials")
		}
		switch {
		case m.Git == nil:
			return nil, invalid(at+".git", "want an object with remote_url")
		case m.ReadOnly != nil || m.Cache != nil:
			return nil, unsupported("mount_config", "read_only and cache are of bucket mounts, and this is a git mount")
		case m.Git.RefreshIntervalSeconds != nil:
			return nil, unsupported("mount_config", "refresh_interval_seconds: this server fetches a repository once, when the sandbox is made")
		case !mountable(m.MountPath):
			return nil, invalid(at+".mount_path", "the path %q is not one to mount at: want an absolute path without . and .., outside of /dev, /proc and /sys", m.MountPath)
		}
		for _, other := range mounts {
			if within(m.MountPath, other.Target) || within(other.Target, m.MountPath) {
				return nil, invalid(at+".mount_path", "the paths %q and %q overlap", other.Target, m.MountPath)
			}
		}
		address, err := s.gitURL(at+".git.remote_url", m.Git.RemoteURL)
		if err != nil {
			return nil, err
		}
		mount := gitMount{URL: address, Target: m.MountPath}
		if ref := m.Git.Ref; ref != nil {
			kind := map[string]string{"branch": "refs/heads/", "tag": "refs/tags/"}[ref.Type]
			if kind == "" {
				return nil, invalid(at+".git.ref.type", "want branch or tag")
			}
			if !refRule().MatchString(ref.Name) || strings.Contains(ref.Name, "..") || strings.Contains(ref.Name, "//") || strings.Contains(ref.Name, "@{") {
				return nil, invalid(at+".git.ref.name", "the name %q is not one of a %s", ref.Name, ref.Type)
			}
			mount.Ref = kind + ref.Name
		}
		mounts = append(mounts, mount)
	}
	if _, err := exec.LookPath("git"); err != nil {
		return nil, unsupported("mount_config", "this server has no git: install it to have git mounts")
	}
	return mounts, nil
}

// gitURL checks the address of a repository: https only, and nothing in it that
// could be a credential.
func (s *Server) gitURL(loc, address string) (string, error) {
	if strings.HasPrefix(address, "/") || strings.HasPrefix(address, "file:") {
		if !s.options.LocalFiles {
			return "", unsupported("mount_config", "repositories on the server's own machine are switched off: start it with --allow-local-files, after which whoever has its key may read them")
		}
		path := strings.TrimPrefix(address, "file://")
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsAny(path, "\x00\n%?#") {
			return "", invalid(loc, "want the absolute path of a repository, or an https URL")
		}
		return "file://" + path, nil
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || strings.Trim(u.Path, "/") == "" || u.User != nil ||
		u.RawQuery != "" || u.ForceQuery || strings.ContainsAny(address, "# \t\r\n\x00\\") {
		return "", invalid(loc, "want an https URL with a host and a path, and without user, query and fragment")
	}
	return address, nil
}

// gitDir is the folder of the repositories of a sandbox.
func (st *store) gitDir(id string) string { return filepath.Join(filepath.Dir(st.boxDir(id)), "git") }

// fetchMounts fills the folders of a sandbox's git mounts anew.
func (s *Server) fetchMounts(ctx context.Context, b *box) error {
	if len(b.Git) == 0 {
		return nil
	}
	dir := s.store.gitDir(b.Box.ID)
	if err := removeTree(dir); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, gitTimeout, fmt.Errorf("it took longer than %s", gitTimeout))
	defer cancel()
	for i, m := range b.Git {
		into := filepath.Join(dir, strconv.Itoa(i))
		if err := os.MkdirAll(into, 0o700); err != nil {
			return err
		}
		if err := s.fetchGit(ctx, m, into); err != nil {
			if diskFull(err) || ctx.Err() != nil && context.Cause(ctx) == ctx.Err() {
				return err
			}
			return fail(http.StatusUnprocessableEntity, kindSandboxConfig, "mount_config: the repository %s could not be fetched: %v", m.URL, err)
		}
	}
	return nil
}

var errTooLarge = fmt.Errorf("it is larger than %d bytes", gitBytes)

// fetchGit makes a checkout of one commit, bounded in time and size.
func (s *Server) fetchGit(ctx context.Context, m gitMount, dir string) error {
	ctx, giveUp := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(gitLook):
				if filesSize(dir) > gitBytes {
					giveUp(errTooLarge)
				}
			}
		}
	}()
	defer func() { giveUp(nil); <-watched }()
	home, err := os.MkdirTemp("", "sbx-star-git-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(home)
	from, to := "HEAD", "FETCH_HEAD"
	if m.Ref != "" {
		from = m.Ref
	}
	steps := [][]string{
		{"init", "--quiet", "--template=", "."},
		{"fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--", m.URL, from},
	}
	if branch, ok := strings.CutPrefix(m.Ref, "refs/heads/"); ok {
		steps = append(steps, []string{"checkout", "--quiet", "-B", branch, to})
	} else {
		steps = append(steps, []string{"checkout", "--quiet", "--detach", to})
	}
	if strings.HasPrefix(m.URL, "https:") { // a path would tell of the server's machine
		steps = append(steps, []string{"remote", "add", "origin", m.URL})
	}
	for _, args := range steps {
		if err := git(ctx, home, dir, args); err != nil {
			return err
		}
	}
	if filesSize(dir) > gitBytes {
		return errTooLarge
	}
	err = os.Remove(filepath.Join(dir, ".git", "FETCH_HEAD")) // which has the address
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// git runs the machine's git without what is the server's.
func git(ctx context.Context, home, dir string, args []string) error {
	cmd := exec.CommandContext(ctx, "git", append([]string{
		"-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "credential.helper=",
		"-c", "http.followRedirects=false", "-c", "gc.auto=0",
	}, args...)...)
	cmd.Dir = dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "XDG_CONFIG_HOME=" + home, "LC_ALL=C",
		"GIT_ALLOW_PROTOCOL=https:file", // to which addresses were bounded before; a redirect is not followed
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=false", "GIT_CEILING_DIRECTORIES=" + filepath.Dir(dir),
	}
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO"} {
		if value, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	var said opening
	cmd.Stdout, cmd.Stderr = &said, &said
	ownGroup(cmd)
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	if _, ran := errors.AsType[*exec.ExitError](err); !ran {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(said.text)), "\n")
	return errors.New(strings.TrimPrefix(strings.ToValidUTF8(lines[0], "?"), "fatal: "))
}

// opening keeps the first thousand bytes of what a program says.
type opening struct{ text []byte }

func (t *opening) Write(p []byte) (int, error) {
	t.text = append(t.text, p[:min(len(p), 1000-min(1000, len(t.text)))]...)
	return len(p), nil
}

// gitSpec is what of the git mounts a runtime is told.
func (s *Server) gitSpec(b *box) (mounts []runtime.Mount) {
	for i, m := range b.Git {
		mounts = append(mounts, runtime.Mount{Source: filepath.Join(s.store.gitDir(b.Box.ID), strconv.Itoa(i)), Target: m.Target, Give: true})
	}
	return mounts
}
