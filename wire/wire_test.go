package wire

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

// encodings pairs each message with the JSON that it must become, byte for byte.
var encodings = []struct {
	name string
	in   any
	want string
}{
	{"volume create", VolumeCreate{"data", "1Gi", true, 60}, `{"name":"data","size":"1Gi","wait_for_ready":true,"timeout":60}`},
	{"volume create sends all four", VolumeCreate{}, `{"name":"","size":"","wait_for_ready":false,"timeout":0}`},
	{"volume update", VolumeUpdate{Size: new("2Gi")}, `{"size":"2Gi"}`},
	{"volume update of nothing", VolumeUpdate{}, `{}`},
	{"template create", TemplateCreate{Name: "py", Image: "python:3.12", Resources: Resources{CPU: "500m", Memory: "512Mi"}},
		`{"name":"py","image":"python:3.12","resources":{"cpu":"500m","memory":"512Mi"}}`},
	{"template create with storage and a mount", TemplateCreate{Name: "py", Image: "i", Resources: Resources{"1", "1Gi", "10Gi"}, VolumeMounts: []VolumeMount{{"data", "/data"}}},
		`{"name":"py","image":"i","resources":{"cpu":"1","memory":"1Gi","storage":"10Gi"},"volume_mounts":[{"volume_name":"data","mount_path":"/data"}]}`},
	{"template update", TemplateUpdate{"new"}, `{"name":"new"}`},
	{"pool create", PoolCreate{"p", "t", 2, true, 30}, `{"name":"p","template_name":"t","replicas":2,"wait_for_ready":true,"timeout":30}`},
	{"pool paused", PoolUpdate{Replicas: new(0)}, `{"replicas":0}`},
	{"box create, waiting", BoxCreate{TemplateName: "t", WaitForReady: true, Timeout: new(30)}, `{"template_name":"t","wait_for_ready":true,"timeout":30}`},
	{"box create, not waiting", BoxCreate{SnapshotID: "s"}, `{"snapshot_id":"s","wait_for_ready":false}`},
	{"box create, everything", BoxCreate{SnapshotName: "n:1", Name: "web", TTLSeconds: new(0), IdleTTLSeconds: new(60), DeleteAfterStopSeconds: new(120),
		VCPUs: new(2), MemBytes: new(int64(1)), FSCapacityBytes: new(int64(2)), ProxyConfig: json.RawMessage(`{"rules":[]}`), MountConfig: json.RawMessage(`{"mounts":[]}`),
		EnvVars: map[string]string{"A": "1"}, Labels: map[string]string{}, RunConfig: &RunConfig{}},
		`{"snapshot_name":"n:1","name":"web","wait_for_ready":false,"ttl_seconds":0,"idle_ttl_seconds":60,"delete_after_stop_seconds":120,"vcpus":2,"mem_bytes":1,"fs_capacity_bytes":2,` +
			`"proxy_config":{"rules":[]},"mount_config":{"mounts":[]},"env_vars":{"A":"1"},"labels":{},"run_config":{}}`},
	{"box update of nothing", BoxUpdate{}, `{}`},
	{"box update", BoxUpdate{Name: new("b"), IdleTTLSeconds: new(0)}, `{"name":"b","idle_ttl_seconds":0}`},
	{"box status", BoxStatus{Status: "ready"}, `{"status":"ready","status_message":null}`},
	{"service url", ServiceURLRequest{Port: 80, ExpiresInSeconds: new(600)}, `{"port":80,"expires_in_seconds":600}`},
	{"service url behind a login", ServiceURLRequest{Port: 80, Access: "workspace", EmbedOrigins: []string{"https://a"}}, `{"port":80,"access":"workspace","embed_origins":["https://a"]}`},
	{"download url", DownloadURLRequest{Path: "/a"}, `{"path":"/a"}`},
	{"download url answer", DownloadURL{DownloadURL: "u", Token: "t"}, `{"download_url":"u","token":"t","expires_at":null}`},
	{"snapshot create", SnapshotCreate{Name: "s", DockerImage: "i", FSCapacityBytes: 1}, `{"name":"s","docker_image":"i","fs_capacity_bytes":1}`},
	{"snapshot capture", SnapshotCapture{Name: "s"}, `{"name":"s"}`},
	{"snapshot capture of an image", SnapshotCapture{Name: "s", DockerImage: "i", FSCapacityBytes: new(int64(9))}, `{"name":"s","docker_image":"i","fs_capacity_bytes":9}`},
	{"snapshot list", SnapshotList{Snapshots: []Snapshot{}}, `{"snapshots":[],"offset":0}`},
	{"registry create", RegistryCreate{"r", "u", "n", "p"}, `{"name":"r","url":"u","username":"n","password":"p"}`},
	{"registry update", RegistryUpdate{URL: new("u")}, `{"url":"u"}`},
	{"registry list", RegistryList{Registries: []Registry{{ID: "1", Name: "r", URL: "u"}}}, `{"registries":[{"id":"1","name":"r","url":"u"}],"offset":0}`},
	{"proxy config always has rules", ProxyConfig{Rules: []ProxyRule{}}, `{"rules":[]}`},
	{"proxy rules", ProxyConfig{Rules: []ProxyRule{
		{Name: "h", MatchHosts: []string{"*.x"}, Headers: []ProxyHeader{{Name: "A", Type: "opaque", Value: "v"}}},
		{Name: "aws", Type: "aws", Enabled: new(true), AWS: &AWSCredentials{AccessKeyID: Secret{Type: "opaque", Value: "a"}, SecretAccessKey: Secret{Type: "workspace_secret", Value: "{B}"}}},
		{Name: "role", Type: "aws", AWS: &AWSCredentials{RoleARN: "r"}},
		{Name: "gcp", Type: "gcp", Enabled: new(false), GCP: &GCPCredentials{Secret{Type: "opaque", Value: "j"}, []string{"s"}}, EnvVars: map[string]string{"E": "1"}}},
		NoProxy: []string{"n"}, AccessControl: &AccessControl{AllowList: []string{"h"}}},
		`{"rules":[{"name":"h","match_hosts":["*.x"],"headers":[{"name":"A","type":"opaque","value":"v"}]},` +
			`{"name":"aws","type":"aws","enabled":true,"aws":{"access_key_id":{"type":"opaque","value":"a"},"secret_access_key":{"type":"workspace_secret","value":"{B}"}}},` +
			`{"name":"role","type":"aws","aws":{"role_arn":"r"}},` +
			`{"name":"gcp","type":"gcp","enabled":false,"gcp":{"service_account_json":{"type":"opaque","value":"j"},"scopes":["s"]},"env_vars":{"E":"1"}}],` +
			`"no_proxy":["n"],"access_control":{"allow_list":["h"]}}`},
	{"a secret as it comes back", Secret{Type: "opaque", IsSet: new(true)}, `{"type":"opaque","is_set":true}`},
	{"mount config always has auth", MountConfig{Mounts: []Mount{
		{ID: "a", Type: "s3", MountPath: "/mnt/a", S3: &S3Mount{EndpointURL: "e", Region: "r", Bucket: "b"}, Cache: &MountCache{MaxSizeBytes: new(int64(1))}},
		{ID: "b", Type: "gcs", MountPath: "/mnt/b", ReadOnly: new(true), GCS: &GCSMount{Bucket: "b", Prefix: "p"}},
		{ID: "c", Type: "git", MountPath: "/mnt/c", Git: &GitMount{RemoteURL: "u", Ref: &GitRef{"branch", "main"}, RefreshIntervalSeconds: new(5)}},
		{ID: "d", Type: "contexthub", MountPath: "/d", ContextHub: &ContextHubMount{Repo: "-/r"}}}},
		`{"auth":{},"mounts":[{"id":"a","type":"s3","mount_path":"/mnt/a","cache":{"max_size_bytes":1},"s3":{"endpoint_url":"e","region":"r","bucket":"b","path_style":false}},` +
			`{"id":"b","type":"gcs","mount_path":"/mnt/b","read_only":true,"gcs":{"bucket":"b","prefix":"p"}},` +
			`{"id":"c","type":"git","mount_path":"/mnt/c","git":{"remote_url":"u","ref":{"type":"branch","name":"main"},"refresh_interval_seconds":5}},` +
			`{"id":"d","type":"contexthub","mount_path":"/d","contexthub":{"repo":"-/r"}}]}`},
	{"mount auth", MountAuth{AWS: &AWSCredentials{RoleARN: "r"}}, `{"aws":{"role_arn":"r"}}`},
	{"http exec without env", ExecRequest{Command: Command{Line: "ls"}, Timeout: 5, Shell: "/bin/sh"}, `{"command":"ls","timeout":5,"timeout_seconds":5,"shell":"/bin/sh"}`},
	{"http exec sends an empty env", ExecRequest{Command: Command{Argv: []string{"ls", "-l"}}, Env: map[string]string{}, Cwd: "/", RunConfig: &RunConfig{User: "0"}},
		`{"command":["ls","-l"],"timeout":0,"timeout_seconds":0,"shell":"","env":{},"cwd":"/","run_config":{"user":"0"}}`},
	{"http exec answer", ExecResponse{"a", "b", 3, ""}, `{"stdout":"a","stderr":"b","exit_code":3}`},
	{"http exec answer with a reason", ExecResponse{ExitCode: 137, Reason: "r"}, `{"stdout":"","stderr":"","exit_code":137,"reason":"r"}`},
	{"glob", GlobRequest{Pattern: "**/*.go", Path: "/src"}, `{"pattern":"**/*.go","path":"/src"}`},
	{"glob with a limit of 0", GlobRequest{"*", "/", new(0)}, `{"pattern":"*","path":"/","limit":0}`},
	{"glob answer", GlobResult{[]GlobMatch{{"/a", true, 0, ""}, {"/b", false, 7, "2026-01-02T03:04:05Z"}}, true},
		`{"matches":[{"path":"/a","is_dir":true,"size_bytes":0},{"path":"/b","is_dir":false,"size_bytes":7,"modified_at":"2026-01-02T03:04:05Z"}],"truncated":true}`},
	{"grep", GrepRequest{Pattern: "x", Path: "/src"}, `{"pattern":"x","path":"/src"}`},
	{"grep with everything", GrepRequest{"x", "/src", "*.py", new(5)}, `{"pattern":"x","path":"/src","glob":"*.py","limit":5}`},
	{"grep answer", GrepResult{[]GrepMatch{{"/a", 3, "an x"}}, false}, `{"matches":[{"path":"/a","line":3,"text":"an x"}],"truncated":false}`},
	{"uploaded", Uploaded{"/a", 3}, `{"path":"/a","written":3}`},
	{"error, form A", Problem{Type: "Conflict", Message: "taken", ID: "e1"}, `{"detail":{"error":"Conflict","message":"taken","error_id":"e1"}}`},
	{"error, form B", Problem{Details: []InputError{{[]any{"body", "name"}, "bad", "value_error"}}}, `{"detail":[{"loc":["body","name"],"msg":"bad","type":"value_error"}]}`},
	{"info", Info{Server: "sbx-star", Version: "1", Generations: []string{Seed}, Runtime: "process", Isolation: "none", Extensions: []string{}, Limits: map[string]any{}},
		`{"server":"sbx-star","version":"1","generations":["seed"],"runtime":"process","isolation":"none","extensions":[],"limits":{},` +
			`"enforces":{"cpu":false,"memory":false,"pids":false,"storage":false,"network":false,"access_control":false}}`},
}

func TestEncode(t *testing.T) {
	for _, tt := range encodings {
		t.Run(tt.name, func(t *testing.T) {
			got, err := json.Marshal(tt.in)
			if err != nil || string(got) != tt.want {
				t.Errorf("got  %s, %v\nwant %s", got, err, tt.want)
			}
		})
	}
}

// Whatever is sent is read back as it was: the two ends agree on every field.
func TestEncodedIsDecodedAgain(t *testing.T) {
	for _, tt := range encodings {
		if _, ok := tt.in.(Problem); ok {
			continue // has a decoder of its own, below
		}
		t.Run(tt.name, func(t *testing.T) {
			back := reflect.New(reflect.TypeOf(tt.in))
			if err := json.Unmarshal([]byte(tt.want), back.Interface()); err != nil {
				t.Fatal(err)
			}
			again, err := json.Marshal(back.Elem().Interface())
			if err != nil || string(again) != tt.want {
				t.Errorf("got  %s, %v\nwant %s", again, err, tt.want)
			}
		})
	}
}

// What a response leaves out, or sends as null, takes the default of protocol.md §8.
func TestDefaults(t *testing.T) {
	for _, tt := range []struct{ in, want any }{
		{&Volume{}, &Volume{Size: "unknown", StorageClass: "default"}},
		{&Template{}, &Template{Image: "unknown", Resources: Resources{CPU: "500m", Memory: "512Mi"}, VolumeMounts: []VolumeMount{}}},
		{&TemplateCreate{}, &TemplateCreate{Resources: Resources{CPU: "500m", Memory: "512Mi"}}},
		{&Resources{}, &Resources{CPU: "500m", Memory: "512Mi"}},
		{&Box{}, &Box{Status: "ready"}},
		{&BoxStatus{}, &BoxStatus{Status: "provisioning"}},
		{&Snapshot{}, &Snapshot{Status: "building"}},
		{&ExecRequest{}, &ExecRequest{Timeout: 60, Shell: "/bin/bash"}},
		{&ExecResponse{}, &ExecResponse{ExitCode: -1}},
		{&VolumeList{}, &VolumeList{}}, {&BoxList{}, &BoxList{}}, {&DownloadURL{}, &DownloadURL{}},
	} {
		if err := json.Unmarshal([]byte(`{"unknown_field":[1]}`), tt.in); err != nil || !reflect.DeepEqual(tt.in, tt.want) {
			t.Errorf("got %+v, %v; want %+v", tt.in, err, tt.want)
		}
	}
	var b Box
	if err := json.Unmarshal([]byte(`{"status":null,"ttl_seconds":null,"name":null}`), &b); err != nil || !reflect.DeepEqual(b, Box{Status: "ready"}) {
		t.Errorf("nulls: got %+v, %v", b, err)
	}
}

func TestExecTimeoutHasTwoNames(t *testing.T) {
	for body, want := range map[string]int{
		`{"command":"x","timeout":1}`:                        1,
		`{"command":"x","timeout_seconds":2}`:                2,
		`{"command":"x","timeout":1,"timeout_seconds":2}`:    2,
		`{"command":"x","timeout":0}`:                        0,
		`{"command":["x","y"]}`:                              60,
		`{"command":"x","timeout":3,"timeout_seconds":null}`: 3,
	} {
		var r ExecRequest
		if err := json.Unmarshal([]byte(body), &r); err != nil || r.Timeout != want {
			t.Errorf("%s: got %d, %v; want %d", body, r.Timeout, err, want)
		}
	}
}

var execMessages = []struct {
	m    Message
	want string
}{
	// protocol.md §14 and §16.14, to the byte but for the order that JSON leaves open.
	{&Execute{Command: Command{Line: "echo hé; sleep 9"}, TimeoutSeconds: 60, Shell: "/bin/bash", IdleTimeoutSeconds: 300, TTLSeconds: 600, CommandID: "0198c0ffee0070008000000000000001"},
		`{"type":"execute","command":"echo hé; sleep 9","timeout_seconds":60,"shell":"/bin/bash","idle_timeout_seconds":300,"kill_on_disconnect":false,"ttl_seconds":600,"command_id":"0198c0ffee0070008000000000000001"}`},
	{&Execute{Command: Command{Line: "cat"}, TimeoutSeconds: 60, Shell: "/bin/bash", IdleTimeoutSeconds: 300, TTLSeconds: 600, RunConfig: &RunConfig{User: "1000", EnvVars: map[string]string{"A": "1"}}, CloseStdin: true, CommandID: "c"},
		`{"type":"execute","command":"cat","timeout_seconds":60,"shell":"/bin/bash","idle_timeout_seconds":300,"kill_on_disconnect":false,"ttl_seconds":600,"run_config":{"user":"1000","env_vars":{"A":"1"}},"close_stdin":true,"command_id":"c"}`},
	{&Execute{Env: map[string]string{}, PTY: true, Cwd: "/x", KillOnDisconnect: true},
		`{"type":"execute","command":"","timeout_seconds":0,"shell":"","idle_timeout_seconds":0,"kill_on_disconnect":true,"ttl_seconds":0,"cwd":"/x","pty":true}`},
	{&Reconnect{"0198c0ffee0070008000000000000001", 4, 0}, `{"type":"reconnect","command_id":"0198c0ffee0070008000000000000001","stdout_offset":4,"stderr_offset":0}`},
	{&Input{"a\n<&>"}, `{"type":"input","data":"a\n<&>"}`},
	{&CloseStdin{}, `{"type":"close_stdin"}`},
	{&Kill{}, `{"type":"kill"}`},
	{&Started{"c", 42}, `{"type":"started","command_id":"c","pid":42}`},
	{&Output{Stdout, "hé\n", 0}, `{"type":"stdout","data":"hé\n","offset":0}`},
	{&Output{Stderr, "", 7}, `{"type":"stderr","data":"","offset":7}`},
	{&Exit{}, `{"type":"exit","exit_code":0}`},
	{&Exit{143, "TERM", 12, ""}, `{"type":"exit","exit_code":143,"signal":"TERM","duration_ms":12}`},
	{&Exit{137, "KILL", 12, "r"}, `{"type":"exit","exit_code":137,"signal":"KILL","duration_ms":12,"reason":"r"}`},
	{&Signal{"TERM"}, `{"type":"signal","signal":"TERM"}`},
	{&Resize{120, 40}, `{"type":"resize","cols":120,"rows":40}`},
	{&Gap{Stderr, 3, 9}, `{"type":"gap","stream":"stderr","from":3,"to":9}`},
	{&ExecError{"gone", "SessionExpired"}, `{"type":"error","error":"gone","error_type":"SessionExpired"}`},
}

func TestExecMessages(t *testing.T) {
	for _, tt := range execMessages {
		got, err := EncodeMessage(tt.m)
		if err != nil || string(got) != tt.want {
			t.Errorf("got  %s, %v\nwant %s", got, err, tt.want)
		}
		back, err := DecodeMessage([]byte(tt.want))
		if err != nil {
			t.Fatal(err)
		}
		if again, err := EncodeMessage(back); err != nil || string(again) != tt.want {
			t.Errorf("decoded and encoded again: %s, %v\nwant %s", again, err, tt.want)
		}
	}
}

func TestExecMessageDefaults(t *testing.T) {
	for in, want := range map[string]Message{
		`{"type":"execute"}`: &Execute{TimeoutSeconds: 60, Shell: "/bin/bash", IdleTimeoutSeconds: 300, TTLSeconds: 600},
		`{"type":"stdout"}`:  &Output{Stream: Stdout},
		`{"type":"exit"}`:    &Exit{ExitCode: -1},
		`{"type":"error"}`:   &ExecError{"Unknown error", "CommandError"},
		`{"type":"pong"}`:    &Unknown{"pong"},
		`{}`:                 &Unknown{""},
	} {
		if got, err := DecodeMessage([]byte(in)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v; want %+v", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		`nonsense`:                             "not a JSON message",
		`[1]`:                                  "not a JSON message",
		`{"type":"execute","command":5}`:       "execute message",
		`{"type":"stdout","data":5}`:           "stdout message",
		`{"type":"reconnect","command_id":[]}`: "reconnect message",
	} {
		if _, err := DecodeMessage([]byte(in)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: got error %v, want %s…", in, err, want)
		}
	}
}

func TestTextKeepsItsBytes(t *testing.T) {
	for in, want := range map[string]string{
		`"plain é 😀"`:          "plain é 😀",
		`"\"\\\/\b\f\n\r\t"`:   "\"\\/\b\f\n\r\t",
		`"\u00e9\ud83d\ude00"`: "é😀",
		`"\ud83dx"`:            "\ufffdx",
		`"\ude00\ud83d"`:       "\ufffd\ufffd",
		"\"cut \xf0\x9f\"":     "cut \xf0\x9f",
		"\"\x98\x80 rest\"":    "\x98\x80 rest",
		`null`:                 "",
	} {
		var got Text
		if err := json.Unmarshal([]byte(in), &got); err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v; want %q", in, got, err, want)
		}
	}
}

// On valid UTF-8 Text reads what encoding/json reads; elsewhere it refuses what
// that refuses, and never panics.
func FuzzText(f *testing.F) {
	for _, s := range []string{`"a"`, `"\u00e9"`, `"\ud83d\ude00"`, "\"\xf0\"", `"\`, `5`, `{}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var got Text
		var want string
		errGot, errWant := json.Unmarshal(data, &got), json.Unmarshal(data, &want)
		if (errGot == nil) != (errWant == nil) {
			t.Fatalf("%q: %v, but encoding/json says %v", data, errGot, errWant)
		}
		if errGot == nil && strings.ToValidUTF8(string(got), "") == string(got) && string(got) != want {
			t.Fatalf("%q: got %q, want %q", data, got, want)
		}
	})
}

func FuzzDecodeMessage(f *testing.F) {
	for _, tt := range execMessages {
		f.Add([]byte(tt.want))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := DecodeMessage(data)
		if err != nil {
			return
		}
		if _, ok := m.(*Unknown); ok {
			return
		}
		text, err := EncodeMessage(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeMessage(text); err != nil {
			t.Fatalf("%s does not decode: %v", text, err)
		}
	})
}

func TestDecodeProblem(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int
		body   string
		want   Problem
	}{
		{"form A", 409, `{"detail":{"error":"Conflict","message":"taken","error_id":"e"}}`, Problem{Type: "Conflict", Message: "taken", ID: "e"}},
		{"form A without message", 409, `{"detail":{"error":"Conflict"}}`, Problem{Type: "Conflict", Message: "Conflict"}},
		{"form A with reason", 400, `{"detail":{"error":"CommandError","message":"m","reason":"CommandTimeout"}}`, Problem{Type: "CommandError", Message: "m", Reason: "CommandTimeout"}},
		{"form B", 422, `{"detail":[{"loc":["body","a"],"msg":"x","type":"value_error"},{"loc":["body",1],"msg":"y","type":"missing"}]}`,
			Problem{Message: "x; y", Details: []InputError{{[]any{"body", "a"}, "x", "value_error"}, {[]any{"body", 1.0}, "y", "missing"}}}},
		{"form B without message", 422, `{"detail":[{"type":"t"}]}`, Problem{Message: `{"type":"t"}`, Details: []InputError{{Type: "t"}}}},
		{"form B, empty", 422, `{"detail":[]}`, Problem{Message: "Unprocessable Entity", Details: []InputError{}}},
		{"form C", 429, `{"detail":"slow down"}`, Problem{Message: "slow down"}},
		{"form C, empty", 429, `{"detail":""}`, Problem{Message: "Too Many Requests"}},
		{"form D: flat", 500, `{"error":"E","message":"m"}`, Problem{Type: "E", Message: "m"}},
		{"form D: RFC 7807", 500, `{"title":"broken"}`, Problem{Message: "broken"}},
		{"RFC 7807 with detail", 500, `{"title":"broken","detail":"very"}`, Problem{Message: "very"}},
		{"form D: no JSON", 502, `<html>`, Problem{Message: "Bad Gateway"}},
		{"form D: empty", 503, ``, Problem{Message: "Service Unavailable"}},
		{"a status without a name", 599, ``, Problem{Message: "unknown error"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := DecodeProblem(tt.status, []byte(tt.body)); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v\nwant %+v", got, tt.want)
			}
		})
	}
	p := DecodeProblem(422, []byte(`{"detail":[{"loc":["body","resources","cpu"],"msg":"x","type":"value_error"}]}`))
	if p.Field() != "cpu" || (Problem{}).Field() != "" {
		t.Errorf("field: got %q", p.Field())
	}
}

func TestNames(t *testing.T) {
	long := strings.Repeat("a", 63)
	for name, want := range map[string]bool{"a": true, "web-1": true, long: true, "": false, "-a": false, "a-": false, "A": false, "a_b": false, "a.b": false, long + "a": false, "a/b": false, "..": false, "a\n": false} {
		if ValidName(name) != want {
			t.Errorf("ValidName(%q) = %v", name, !want)
		}
	}
	for name, want := range map[string]bool{"a_b.c-1": true, strings.Repeat("a", 128): true, strings.Repeat("a", 129): false, "a:b": false, "a/b": true, "a/b.c/d_e-1": true, "a//b": false, "/a": false, "a/": false, "a/../b": false, "": false, "A": false, strings.Repeat("a/", 127) + "a": true, strings.Repeat("a/", 128) + "a": false} {
		if ValidSnapshotName(name) != want {
			t.Errorf("ValidSnapshotName(%q) = %v", name, !want)
		}
	}
	for ttl, want := range map[int]bool{0: true, 60: true, 600: true, 61: false, -60: false} {
		if ValidTTL(ttl) != want {
			t.Errorf("ValidTTL(%d) = %v", ttl, !want)
		}
	}
}
