package server_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sbx-star/sbx-star/server"
)

// This file tests git mounts (protocol.md §2.12).

// repository makes one with the branch main, a branch other and the tag v1.
func repository(t *testing.T) string {
	dir := filepath.Join(t.TempDir(), "repo")
	script := `git init -q -b main "$0" && cd "$0" && echo main > f && ln -s /etc/passwd link && git add . && git commit -qm one &&
		git tag v1 && git checkout -qb other && echo other > f && git commit -qam two && git checkout -q main && echo later > f && git commit -qam three`
	cmd := exec.Command("sh", "-c", script, dir)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_AUTHOR_NAME=n", "GIT_AUTHOR_EMAIL=e", "GIT_COMMITTER_NAME=n", "GIT_COMMITTER_EMAIL=e")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir
}

// gitBody is the body of POST /boxes with one git mount.
func gitBody(remote, more string) string {
	quoted, _ := json.Marshal(remote)
	return `{"name":"x","wait_for_ready":true,"mount_config":{"auth":{},"mounts":[{"id":"m","type":"git","mount_path":"/mnt/m","git":{"remote_url":` + string(quoted) + more + `}}]}}`
}

func TestGitMounts(t *testing.T) {
	repo := repository(t)
	h := &host{}
	f := serve(t, h, func(o *server.Options) { o.LocalFiles = true })
	for ref, want := range map[string]string{
		"": "later\n",
		`,"ref":{"type":"branch","name":"other"}`: "other\n",
		`,"ref":{"type":"tag","name":"v1"}`:       "main\n",
	} {
		for _, remote := range []string{repo, "file://" + repo} {
			f.do("POST", "/boxes", gitBody(remote, ref)).want(t, 201)
			spec := h.created[len(h.created)-1]
			if len(spec.Mounts) != 1 || spec.Mounts[0].Target != "/mnt/m" || !spec.Mounts[0].Give || spec.Mounts[0].ReadOnly {
				t.Fatalf("the mounts are %+v", spec.Mounts)
			}
			dir := spec.Mounts[0].Source
			if text, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(text) != want {
				t.Errorf("%s: got %q, %v, want %q", ref, text, err, want)
			}
			if link, err := os.Readlink(filepath.Join(dir, "link")); link != "/etc/passwd" {
				t.Errorf("the link leads to %q, %v", link, err)
			}
			// Nothing in it tells of the server's machine.
			filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
				if err == nil && e.Type().IsRegular() {
					if text, err := os.ReadFile(path); err != nil || strings.Contains(string(text), repo) {
						t.Errorf("%s has the path of the repository, %v", path, err)
					}
				}
				return err
			})
			f.do("POST", "/boxes/x/stop", "").want(t, 204)
			if _, err := os.Stat(dir); err != nil {
				t.Errorf("it went with a stop: %v", err)
			}
			f.do("DELETE", "/boxes/x", "").want(t, 204)
			f.empty(h)
		}
	}
	for remote, said := range map[string]string{repo + "-none": "could not be fetched", t.TempDir(): "could not be fetched"} {
		f.do("POST", "/boxes", gitBody(remote, "")).want(t, 422, `"error":"SandboxConfig"`, said)
		f.empty(h)
	}
	f.do("POST", "/boxes", gitBody(repo, `,"ref":{"type":"branch","name":"none"}`)).want(t, 422, `"error":"SandboxConfig"`, "could not be fetched", "none")
	f.empty(h)
	f.do("POST", "/boxes", gitBody("https://127.0.0.1:1/x", "")).want(t, 422, `"error":"SandboxConfig"`, "could not be fetched")
	f.empty(h)
}

func TestGitMountRefusals(t *testing.T) {
	repo := repository(t)
	h := &host{}
	f := serve(t, h, nil)
	for _, remote := range []string{repo, "file://" + repo, "file:" + repo} {
		f.do("POST", "/boxes", gitBody(remote, "")).want(t, 422, `"error":"SandboxConfig"`, "--allow-local-files")
	}
	for _, remote := range []string{"", "http://h/p", "ssh://h/p", "git@h:p", "https://h", "https://h/", "https://u@h/p", "https://u:p@h/p", "https://h/p?x", "https://h/p?",
		"https://h/p#x", "https://h/p q", " https://h/p", "../repo", "ext::sh -c id", "--upload-pack=id", "https:///p"} {
		f.do("POST", "/boxes", gitBody(remote, "")).want(t, 422, `"loc":["body","mount_config","mounts",0,"git","remote_url"]`)
	}
	for _, ref := range []string{"", "-x", "a..b", "a b", "a:b", "+a", "a@{1}", "a//b", strings.Repeat("a", 300)} {
		f.do("POST", "/boxes", gitBody("https://h/p", `,"ref":{"type":"branch","name":"`+ref+`"}`)).want(t, 422, `"ref","name"]`)
	}
	for more, want := range map[string]string{
		`,"ref":{"type":"commit","name":"x"}`: `"ref","type"]`,
		`,"refresh_interval_seconds":60`:      "refresh_interval_seconds: ",
		`,"ref":"main"`:                       "want an object, got string",
	} {
		f.do("POST", "/boxes", gitBody("https://h/p", more)).want(t, 422, want)
	}
	good := gitBody("https://h/p", "")
	for old, now := range map[string]string{
		`"/mnt/m"`: `"/proc/m"`, `"auth":{}`: `"auth":{"aws":{"access_key_id":{"type":"opaque","value":"x"}}}`,
		`"type":"git"`: `"type":"contexthub"`, `"id":"m"`: `"id":"m","read_only":true`,
		`"mounts":[`: `"mounts":[{"type":"git","mount_path":"/mnt","git":{"remote_url":"https://h/q"}},`,
	} {
		f.do("POST", "/boxes", strings.Replace(good, old, now, 1)).want(t, 422)
	}
	t.Setenv("PATH", t.TempDir())
	f.do("POST", "/boxes", good).want(t, 422, `"error":"SandboxConfig"`, "has no git")
	f.empty(h)
}
