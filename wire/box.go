package wire

import "encoding/json"

// This file defines boxes, the wire's word for sandboxes, and what is asked of
// one: its status, its service URLs and its download URLs (§2.4–§2.9).

// BoxCreate is the body of POST /boxes in all generations; nil and empty
// fields are absent. Only WaitForReady is always sent.
type BoxCreate struct {
	TemplateName           string            `json:"template_name,omitempty"`
	SnapshotID             string            `json:"snapshot_id,omitempty"`
	SnapshotName           string            `json:"snapshot_name,omitempty"`
	Name                   string            `json:"name,omitempty"`
	WaitForReady           bool              `json:"wait_for_ready"`
	Timeout                *int              `json:"timeout,omitempty"` // absent unless WaitForReady
	TTLSeconds             *int              `json:"ttl_seconds,omitempty"`
	IdleTTLSeconds         *int              `json:"idle_ttl_seconds,omitempty"`
	DeleteAfterStopSeconds *int              `json:"delete_after_stop_seconds,omitempty"`
	VCPUs                  *int              `json:"vcpus,omitempty"`
	MemBytes               *int64            `json:"mem_bytes,omitempty"`
	FSCapacityBytes        *int64            `json:"fs_capacity_bytes,omitempty"`
	ProxyConfig            json.RawMessage   `json:"proxy_config,omitempty"` // sent verbatim (§2.11)
	MountConfig            json.RawMessage   `json:"mount_config,omitempty"` // sent verbatim (§2.12)
	EnvVars                map[string]string `json:"env_vars,omitzero"`
	Labels                 map[string]string `json:"labels,omitzero"`
	RunConfig              *RunConfig        `json:"run_config,omitempty"`
	Lease                  *Lease            `json:"lease,omitempty"`

	// §16.6; nil leaves the choice to the server.
	AccessDelegation     json.RawMessage `json:"access_delegation,omitempty"` // an AccessDelegation
	PreserveMemoryOnStop *bool           `json:"preserve_memory_on_stop,omitempty"`
	RestoreMemory        *bool           `json:"restore_memory,omitempty"`
	Persistent           *bool           `json:"persistent,omitempty"`
}

// AccessDelegation lets what runs in a box call the API as its creator (§16.6).
type AccessDelegation struct {
	Mode        string   `json:"mode"`                  // "INHERIT" or "EXPLICIT"
	Permissions []string `json:"permissions,omitempty"` // of EXPLICIT only, and at least one there
}

// Lease has a box deleted unless POST {base}/leases/{id}/renew comes at least
// every so many seconds; several boxes may be under one (§15).
type Lease struct {
	ID         string `json:"id"`
	TTLSeconds int    `json:"ttl_seconds"`
}

// BoxUpdate is the body of PATCH /boxes/{name}; nil fields stay as they are.
type BoxUpdate struct {
	Name                   *string         `json:"name,omitempty"`
	TTLSeconds             *int            `json:"ttl_seconds,omitempty"`
	IdleTTLSeconds         *int            `json:"idle_ttl_seconds,omitempty"`
	DeleteAfterStopSeconds *int            `json:"delete_after_stop_seconds,omitempty"`
	ProxyConfig            json.RawMessage `json:"proxy_config,omitempty"`
	RunConfig              *RunConfig      `json:"run_config,omitempty"`
}

// Box is a sandbox as the control plane describes it.
type Box struct {
	ID                     string            `json:"id,omitempty"`
	Name                   string            `json:"name"`
	TemplateName           string            `json:"template_name,omitempty"`
	DataplaneURL           string            `json:"dataplane_url,omitempty"` // absolute, no slash at its end
	Status                 string            `json:"status"`
	StatusMessage          string            `json:"status_message,omitempty"`
	CreatedAt              string            `json:"created_at,omitempty"`
	UpdatedAt              string            `json:"updated_at,omitempty"`
	TTLSeconds             *int              `json:"ttl_seconds,omitempty"`
	ExpiresAt              string            `json:"expires_at,omitempty"`
	IdleTTLSeconds         *int              `json:"idle_ttl_seconds,omitempty"`
	DeleteAfterStopSeconds *int              `json:"delete_after_stop_seconds,omitempty"`
	StoppedAt              string            `json:"stopped_at,omitempty"`
	SnapshotID             string            `json:"snapshot_id,omitempty"`
	VCPUs                  *int              `json:"vcpus,omitempty"`
	MemBytes               *int64            `json:"mem_bytes,omitempty"`
	FSCapacityBytes        *int64            `json:"fs_capacity_bytes,omitempty"`
	Labels                 map[string]string `json:"labels,omitempty"`
	RunConfig              *RunConfig        `json:"run_config,omitempty"`
	ProxyConfig            *ProxyConfig      `json:"proxy_config,omitempty"` // secrets without their values

	// What other servers tell, and this project's does not (§2.4, §16.6).
	CreatedBy            string            `json:"created_by,omitempty"`
	UpdatedBy            string            `json:"updated_by,omitempty"`
	CPUMillicores        *int              `json:"cpu_millicores,omitempty"`
	SizeClass            string            `json:"size_class,omitempty"`
	AccessDelegation     *AccessDelegation `json:"access_delegation,omitempty"`
	PreserveMemoryOnStop *bool             `json:"preserve_memory_on_stop,omitempty"`
	Persistent           *bool             `json:"persistent,omitempty"`
}

func (b *Box) UnmarshalJSON(data []byte) error {
	type plain Box
	p := plain{Status: StatusReady}
	err := json.Unmarshal(data, &p)
	*b = Box(p)
	return err
}

// BoxList is the answer to GET /boxes.
type BoxList struct {
	Boxes []Box `json:"sandboxes"`
}

// BoxStatus is the answer to GET /boxes/{name}/status.
type BoxStatus struct {
	Status        string  `json:"status"`
	StatusMessage *string `json:"status_message"`
}

func (s *BoxStatus) UnmarshalJSON(data []byte) error {
	type plain BoxStatus
	p := plain{Status: StatusProvisioning}
	err := json.Unmarshal(data, &p)
	*s = BoxStatus(p)
	return err
}

// RunConfig says who runs commands, where and with what environment (§16.3).
// A nil pointer to one is absent; an empty one is sent as {}.
type RunConfig struct {
	User    string            `json:"user,omitempty"`
	WorkDir string            `json:"work_dir,omitempty"`
	EnvVars map[string]string `json:"env_vars,omitempty"`
}

// ServiceURLRequest is the body of POST /boxes/{name}/service-url (§2.8, §16.8).
type ServiceURLRequest struct {
	Port             int      `json:"port"`
	ExpiresInSeconds *int     `json:"expires_in_seconds,omitempty"`
	Access           string   `json:"access,omitempty"`
	EmbedOrigins     []string `json:"embed_origins,omitempty"`
}

// ServiceURL reaches a port of a sandbox over HTTP. Up to head the first four
// fields are mandatory.
type ServiceURL struct {
	BrowserURL   string   `json:"browser_url,omitempty"`
	ServiceURL   string   `json:"service_url,omitempty"`
	Token        string   `json:"token,omitempty"`
	ExpiresAt    string   `json:"expires_at,omitempty"`
	EmbedURL     string   `json:"embed_url,omitempty"`
	EmbedOrigins []string `json:"embed_origins,omitempty"`
	Access       string   `json:"access,omitempty"`
}

// ServiceGrant is a port of a sandbox that can be reached from outside, and how:
// an item of GET /boxes/{name}/service-urls (§16.8).
type ServiceGrant struct {
	Access       string   `json:"access"` // "token", "restricted" or "workspace"
	Port         int      `json:"port"`
	CreatedAt    string   `json:"created_at,omitempty"`
	CreatedBy    string   `json:"created_by,omitempty"`
	EmbedOrigins []string `json:"embed_origins,omitempty"`
	ExpiresAt    string   `json:"expires_at,omitempty"`
}

// ServiceGrantList is one page of them; a nil NextCursor is that of the last (§16.12).
type ServiceGrantList struct {
	Items      []ServiceGrant `json:"items"`
	NextCursor *string        `json:"next_cursor"`
}

// DownloadURLRequest is the body of POST /boxes/{name}/download-url (§2.9).
type DownloadURLRequest struct {
	Path               string `json:"path"`
	ExpiresInSeconds   *int   `json:"expires_in_seconds,omitempty"`
	ContentType        string `json:"content_type,omitempty"`
	ContentDisposition string `json:"content_disposition,omitempty"` // "attachment" or "inline"
}

// DownloadURL is a link to one file of a sandbox that needs no credential.
type DownloadURL struct {
	DownloadURL string  `json:"download_url"`
	Token       string  `json:"token"`
	ExpiresAt   *string `json:"expires_at"` // nil: never
}
