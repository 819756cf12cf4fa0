package wire

// This file defines the known keys of proxy_config (§2.11) and mount_config
// (§2.12). Both travel verbatim inside BoxCreate; these types are what the
// helpers build and what a server reads.

// Secret is a credential: {"type":"workspace_secret","value":"{NAME}"} or
// {"type":"opaque","value":"…"}. Answers carry IsSet in place of the value.
type Secret struct {
	Type  string `json:"type"`
	Value string `json:"value,omitempty"`
	IsSet *bool  `json:"is_set,omitempty"`
}

// ProxyHeader is a header that the egress proxy sets.
type ProxyHeader struct {
	Name  string `json:"name"`
	Type  string `json:"type"` // plaintext, opaque or workspace_secret
	Value string `json:"value,omitempty"`
	IsSet *bool  `json:"is_set,omitempty"`
}

// ProxyRule injects credentials into requests that leave a sandbox. An absent
// type is a header rule.
type ProxyRule struct {
	Name       string            `json:"name"`
	Type       string            `json:"type,omitempty"` // "", "aws" or "gcp"
	Enabled    *bool             `json:"enabled,omitempty"`
	MatchHosts []string          `json:"match_hosts,omitempty"`
	MatchPaths []string          `json:"match_paths,omitempty"`
	Headers    []ProxyHeader     `json:"headers,omitempty"`
	AWS        *AWSCredentials   `json:"aws,omitempty"`
	GCP        *GCPCredentials   `json:"gcp,omitempty"`
	EnvVars    map[string]string `json:"env_vars,omitempty"`

	MatchHeaders []string `json:"match_headers,omitempty"` // "name: value" (§16.10)
	Description  string   `json:"description,omitempty"`
}

// AWSCredentials sign requests: a static pair of keys, or a role, with tags in
// proxy rules only (§16.10).
type AWSCredentials struct {
	AccessKeyID     Secret            `json:"access_key_id,omitzero"`
	SecretAccessKey Secret            `json:"secret_access_key,omitzero"`
	RoleARN         string            `json:"role_arn,omitempty"`
	SessionTags     map[string]string `json:"session_tags,omitempty"`
}

// GCPCredentials authorise requests to Google's APIs.
type GCPCredentials struct {
	ServiceAccountJSON Secret   `json:"service_account_json"`
	Scopes             []string `json:"scopes,omitempty"`
}

// AccessControl lists hosts that may or may not be reached: one of the two.
type AccessControl struct {
	AllowList []string `json:"allow_list,omitempty"`
	DenyList  []string `json:"deny_list,omitempty"`
}

// ProxyConfig is the egress configuration of a sandbox. Rules is always sent.
type ProxyConfig struct {
	Rules         []ProxyRule    `json:"rules"`
	NoProxy       []string       `json:"no_proxy,omitempty"`
	AccessControl *AccessControl `json:"access_control,omitempty"`
	Description   string         `json:"description,omitempty"`
}

// MountConfig names what is mounted into a sandbox. Auth is always sent.
type MountConfig struct {
	Auth   MountAuth `json:"auth"`
	Mounts []Mount   `json:"mounts"`
}

// MountAuth holds at most one credential of each provider.
type MountAuth struct {
	AWS *AWSCredentials `json:"aws,omitempty"`
	GCP *GCPCredentials `json:"gcp,omitempty"`
}

// Mount is one of four kinds; the block that Type names is the one that is set.
type Mount struct {
	ID         string           `json:"id"`
	Type       string           `json:"type"` // s3, gcs, git or contexthub
	MountPath  string           `json:"mount_path"`
	ReadOnly   *bool            `json:"read_only,omitempty"`
	Cache      *MountCache      `json:"cache,omitempty"`
	S3         *S3Mount         `json:"s3,omitempty"`
	GCS        *GCSMount        `json:"gcs,omitempty"`
	Git        *GitMount        `json:"git,omitempty"`
	ContextHub *ContextHubMount `json:"contexthub,omitempty"`
}

// MountCache bounds what a bucket mount keeps locally.
type MountCache struct {
	MaxSizeBytes     *int64 `json:"max_size_bytes,omitempty"`
	WritebackSeconds *int   `json:"writeback_seconds,omitempty"`
}

// S3Mount is a bucket of the S3 protocol.
type S3Mount struct {
	EndpointURL string `json:"endpoint_url"`
	Region      string `json:"region"`
	Bucket      string `json:"bucket"`
	PathStyle   bool   `json:"path_style"`
	Prefix      string `json:"prefix,omitempty"`
}

// GCSMount is a bucket of Google Cloud Storage.
type GCSMount struct {
	Bucket string `json:"bucket"`
	Prefix string `json:"prefix,omitempty"`
}

// GitMount is a checkout of a repository.
type GitMount struct {
	RemoteURL              string  `json:"remote_url"`
	Ref                    *GitRef `json:"ref,omitempty"`
	RefreshIntervalSeconds *int    `json:"refresh_interval_seconds,omitempty"`
}

// GitRef is a branch or a tag.
type GitRef struct {
	Type string `json:"type"`
	Name string `json:"name"`
}

// ContextHubMount is a repository of the Context Hub, mounted read-only.
type ContextHubMount struct {
	Repo            string `json:"repo"`
	InitialPullOnly *bool  `json:"initial_pull_only,omitempty"`
}
