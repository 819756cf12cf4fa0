package builtins

import (
	"errors"
	"strings"
	"testing"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// This file tests the rules of proxy_config and mount_config (protocol.md §2.11,
// §2.12, §16.10).

// eval evaluates an expression as a workflow would.
func eval(t *testing.T, expression string) (v starlark.Value, err error) {
	task := NewTask(t.Context(), NewRun(Options{}))
	_, names := Predeclared(task)
	err = task.Exec(Thread{Name: "test"}, func(thread *starlark.Thread) (err error) {
		v, err = starlark.EvalOptions(&syntax.FileOptions{}, thread, "test.star", expression, names)
		return err
	})
	return v, err
}

func TestConfigs(t *testing.T) {
	const keys = `aws_auth(workspace_secret("ID"), opaque_secret("key"))`
	const account = `gcp_auth(workspace_secret("SA"))`
	const scoped = `gcp_auth(workspace_secret("SA"), scopes = [" https://scope "])`
	const s3 = `s3_mount("m", "/mnt/m", "bucket")`
	for expression, want := range map[string]string{
		`workspace_secret(" NAME ")`: `{"type": "workspace_secret", "value": "{NAME}"}`,
		`workspace_secret("{NAME}")`: `{"type": "workspace_secret", "value": "{NAME}"}`,
		`opaque_secret(" x ")`:       `{"type": "opaque", "value": "x"}`,

		keys: `{"name": "aws", "type": "aws", "enabled": True, "aws": {"access_key_id": {"type": "workspace_secret", "value": "{ID}"}, "secret_access_key": {"type": "opaque", "value": "key"}}}`,
		`aws_auth(role_arn = "arn", session_tags = {" a ": " b "}, name = "role", enabled = False, env_vars = {"A": "1"})`: `{"name": "role", "type": "aws", "enabled": False, "aws": {"role_arn": "arn", "session_tags": {"a": " b "}}, "env_vars": {"A": "1"}}`,
		`aws_auth("", "", role_arn = "arn")["aws"]`:                                               `{"role_arn": "arn"}`,
		`aws_auth(opaque_secret("i"), opaque_secret("k"), role_arn = "")["aws"].keys()`:           `["access_key_id", "secret_access_key"]`,
		`aws_auth(role_arn = "arn", env_vars = {" A ": " x "})["env_vars"]`:                       `{"A": " x "}`,
		scoped + `["gcp"]["scopes"]`:                                                              `["https://scope"]`,
		account + `["gcp"].keys()`:                                                                `["service_account_json"]`,
		`gcp_auth({"type": "opaque", "value": " kept "})["gcp"]["service_account_json"]["value"]`: `" kept "`,

		`proxy_config()`: `{"rules": []}`,
		`proxy_config([{"name": "n", "type": "header"}], no_proxy = [" a "])`: `{"rules": [{"name": "n", "type": "header"}], "no_proxy": ["a"]}`,
		`proxy_config(access_control = {"allow_list": ["a"]})`:                `{"rules": [], "access_control": {"allow_list": ["a"]}}`,
		`len(proxy_config([` + keys + `, ` + scoped + `])["rules"])`:          `2`,

		s3: `{"id": "m", "type": "s3", "mount_path": "/mnt/m", "s3": {"endpoint_url": "https://s3.amazonaws.com", "region": "us-east-1", "bucket": "bucket", "path_style": False}}`,
		`s3_mount("m", "/m", "b", prefix = "p", read_only = False, cache = {"max_size_bytes": 1}, kms_key = " k ")`: `{"id": "m", "type": "s3", "mount_path": "/m", "s3": {"endpoint_url": "https://s3.amazonaws.com", "region": "us-east-1", "bucket": "b", "path_style": False, "prefix": "p", "encryption": {"kms_key": "k"}}, "read_only": False, "cache": {"max_size_bytes": 1}}`,
		`gcs_mount("m", "/m", " b ")`: `{"id": "m", "type": "gcs", "mount_path": "/m", "gcs": {"bucket": "b"}}`,
		`git_mount("m", "/m", "https://h/p", ref = {"type": "tag", "name": " v1 "}, refresh_interval_seconds = 1)`: `{"id": "m", "type": "git", "mount_path": "/m", "git": {"remote_url": "https://h/p", "ref": {"type": "tag", "name": "v1"}, "refresh_interval_seconds": 1}}`,
		`context_hub_mount("m", "/m", "-/r", initial_pull_only = False)`:                                           `{"id": "m", "type": "contexthub", "mount_path": "/m", "contexthub": {"repo": "-/r", "initial_pull_only": False}}`,

		`mount_config([git_mount("m", "/m", "https://h/p")])["auth"]`:                       `{}`,
		`mount_config([` + s3 + `], [` + keys + `])["auth"].keys()`:                         `["aws"]`,
		`mount_config([` + s3 + `], [aws_auth(role_arn = "a")])["auth"]`:                    `{"aws": {"role_arn": "a"}}`,
		`mount_config([gcs_mount("m", "/m", "b")], [` + scoped + `])["auth"]["gcp"].keys()`: `["service_account_json"]`,
		`mount_config([` + s3 + `], proxy_config = proxy_config([` + keys + `]))["auth"]`:   `{}`,
		`mount_config([` + s3 + `], [` + keys + `], proxy_config())["mounts"][0]["id"]`:     `"m"`,
	} {
		if got, err := eval(t, expression); err != nil || got.String() != want {
			t.Errorf("%s\n got %v, %v\nwant %s", expression, got, err, want)
		}
	}

	for expression, want := range map[string]string{
		`workspace_secret("  ")`:    "blank",
		`workspace_secret("{}")`:    "nothing between",
		`workspace_secret("{ }")`:   "nothing between",
		`workspace_secret("{NAME")`: "one brace",
		`workspace_secret("NAME}")`: "one brace",
		`workspace_secret("{")`:     "one brace",
		`workspace_secret(1)`:       "want a string",
		`opaque_secret(" ")`:        "blank",

		`aws_auth()`:                                                                  "or role_arn",
		`aws_auth(opaque_secret("a"))`:                                                "or role_arn",
		`aws_auth(opaque_secret("a"), "")`:                                            "or role_arn",
		`aws_auth("plain", opaque_secret("b"))`:                                       "workspace_secret(…) or opaque_secret(…)",
		`aws_auth({"type": "plain", "value": "x"}, None)`:                             "the type of a secret",
		`aws_auth({"type": "opaque", "value": " "}, None)`:                            "the value of a secret",
		`aws_auth(opaque_secret("a"), opaque_secret("b"), role_arn = "arn")`:          "exclude each other",
		`aws_auth(opaque_secret("a"), opaque_secret("b"), session_tags = {"a": "b"})`: "need a role_arn",
		`aws_auth(role_arn = "arn", session_tags = {" ": "b"})`:                       "blank",
		`aws_auth(role_arn = "arn", session_tags = {"a": " "})`:                       "blank",
		`aws_auth(role_arn = "arn", session_tags = {})`:                               "empty",
		`aws_auth(role_arn = "arn", name = " ")`:                                      "parameter name",
		`aws_auth(role_arn = "arn", env_vars = {})`:                                   "empty",
		`aws_auth(role_arn = "arn", env_vars = {"A": "  "})`:                          "blank",
		`aws_auth(role_arn = "arn", env_vars = {"": "1"})`:                            "blank",
		`aws_auth(role_arn = "arn", env_vars = {"A": 1})`:                             "want a string",
		`gcp_auth("")`: "service_account_json",
		`gcp_auth(opaque_secret("a"), scopes = [])`:         "not empty",
		`gcp_auth(opaque_secret("a"), scopes = "scope")`:    "want a list",
		`gcp_auth(opaque_secret("a"), scopes = ["a", " "])`: "element 1",
		`gcp_auth(opaque_secret("a"), scopes = [1])`:        "want a string",

		`proxy_config({"name": "n"})`:                               "want a list",
		`proxy_config([{}])`:                                        "element 0",
		`proxy_config(["rule"])`:                                    "element 0",
		`proxy_config([` + account + `])`:                           "needs scopes",
		`proxy_config([{"type": "gcp", "gcp": {"scopes": ["a"]}}])`: "service_account_json",
		`proxy_config([{"type": "aws", "aws": {}}])`:                "rule 0: want access_key_id",
		`proxy_config([{"type": "aws"}])`:                           "rule 0: want access_key_id",
		`proxy_config([` + scoped + ` | {"gcp": ` + account + `["gcp"] | {"scopes": []}}])`: "scopes",
		`proxy_config(no_proxy = [])`:                                        "not empty",
		`proxy_config(no_proxy = [" "])`:                                     "blank",
		`proxy_config(access_control = ["a"])`:                               "want a dict",
		`proxy_config(access_control = {"allow_list": [], "deny_list": []})`: "exclude each other",

		`s3_mount(" ", "/m", "b")`:                                                   "parameter id",
		`s3_mount("m", "", "b")`:                                                     "parameter mount_path",
		`s3_mount("m", "/m", "\t")`:                                                  "parameter bucket",
		`s3_mount("m", "/m", "b", region = "")`:                                      "parameter region",
		`s3_mount("m", "/m", "b", prefix = " ")`:                                     "parameter prefix",
		`s3_mount("m", "/m", "b", kms_key = " ")`:                                    "parameter kms_key",
		`s3_mount("m", "/m", "b", cache = {"max_size_byte": 1})`:                     "did you mean max_size_bytes",
		`gcs_mount("m", "/m", "b", cache = {"max_size_bytes": 0})`:                   "above 0",
		`git_mount("m", "/m", "http://h/p")`:                                         "no https URL",
		`git_mount("m", "/m", "https://h/")`:                                         "no https URL",
		`git_mount("m", "/m", "https:///p")`:                                         "no https URL",
		`git_mount("m", "/m", "git@h:p")`:                                            "no https URL",
		`git_mount("m", "/m", "https://u:p@h/p")`:                                    "names a user",
		`git_mount("m", "/m", "https://h/p?q")`:                                      "query",
		`git_mount("m", "/m", "https://h/p#f")`:                                      "fragment",
		`git_mount("m", "/m", "https://h/a b")`:                                      "blank or a NUL",
		`git_mount("m", "/m", "https://h/a\x00")`:                                    "blank or a NUL",
		`git_mount("m", "/m", "https://h/p", ref = "main")`:                          "parameter ref",
		`git_mount("m", "/m", "https://h/p", ref = {"type": "commit", "name": "a"})`: "parameter ref",
		`git_mount("m", "/m", "https://h/p", ref = {"type": "branch", "name": " "})`: "parameter ref",
		`git_mount("m", "/m", "https://h/p", refresh_interval_seconds = 0)`:          "more than 0",
		`context_hub_mount("m", "/m", "repo")`:                                       "owner/name",
		`context_hub_mount("m", "/m", "a/b/c")`:                                      "owner/name",
		`context_hub_mount("m", "/m", "/b")`:                                         "owner/name",

		`mount_config([])`:                          "no mount",
		`mount_config(None)`:                        "no mount",
		`mount_config([{}])`:                        "element 0",
		`mount_config([{"type": "nfs"}])`:           "its type is",
		`mount_config([` + s3 + `])`:                "an s3 mount needs aws_auth",
		`mount_config([gcs_mount("m", "/m", "b")])`: "a gcs mount needs gcp_auth",
		`mount_config([gcs_mount("m", "/m", "b")], proxy_config = proxy_config([` + scoped + `]))`:             "needs gcp_auth",
		`mount_config([` + s3 + `], [` + keys + `, ` + account + `])`:                                          "of gcp, and there is no mount",
		`mount_config([git_mount("m", "/m", "https://h/p")], [` + keys + `])`:                                  "of aws, and there is no mount",
		`mount_config([` + s3 + `], [` + keys + `, ` + keys + `])`:                                             "another rule for aws",
		`mount_config([` + s3 + `], ["aws"])`:                                                                  "element 0",
		`mount_config([` + s3 + `], [{"type": "azure"}])`:                                                      "want aws_auth(…) or gcp_auth(…)",
		`mount_config([` + s3 + `], [aws_auth(role_arn = "a", session_tags = {"a": "b"})])`:                    "session_tags",
		`mount_config([` + s3 + ` | {"x": [{"session_token": 1}]}], [` + keys + `])`:                           "session_token does not belong",
		`mount_config([` + s3 + `], [` + keys + `], proxy_config([` + keys + `]))`:                             "both in proxy_config and in mount_config",
		`mount_config([` + s3 + `], proxy_config = proxy_config([aws_auth(role_arn = "a", enabled = False)]))`: "needs aws_auth",
		`mount_config([` + s3 + `], proxy_config = {"rules": {"a": 1}})`:                                       "want a list",

		`sandbox(proxy_config = proxy_config([` + keys + `]), mount_config = mount_config([` + s3 + `], [` + keys + `]))`: "both in proxy_config and in mount_config",
		`sandbox(proxy_config = {"rules": "all"})`: "want a list",
	} {
		_, err := eval(t, expression)
		var argument *ArgumentError
		if !errors.As(err, &argument) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n got %v\nwant an ArgumentError with %q", expression, err, want)
		}
	}
}
