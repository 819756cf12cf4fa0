package wire

import "encoding/json"

// This file defines snapshots and the registries that they are built from (§2.10).

// SnapshotCreate is the body of POST /snapshots. The three inline credentials
// are of the classic generation; later ones have RegistryID.
type SnapshotCreate struct {
	Name             string     `json:"name"`
	DockerImage      string     `json:"docker_image"`
	FSCapacityBytes  int64      `json:"fs_capacity_bytes"`
	RegistryID       string     `json:"registry_id,omitempty"`
	RegistryURL      string     `json:"registry_url,omitempty"`
	RegistryUsername string     `json:"registry_username,omitempty"`
	RegistryPassword string     `json:"registry_password,omitempty"`
	RunConfig        *RunConfig `json:"run_config,omitempty"`

	Labels map[string]string `json:"labels,omitzero"`
	Tag    string            `json:"tag,omitempty"` // "latest" if empty

	Description string `json:"description,omitempty"`
}

// SnapshotCapture is the body of POST /boxes/{name}/snapshot. Checkpoint is of
// the classic generation, DockerImage and FSCapacityBytes are of head.
type SnapshotCapture struct {
	Name            string     `json:"name"`
	Checkpoint      string     `json:"checkpoint,omitempty"`
	DockerImage     string     `json:"docker_image,omitempty"`
	FSCapacityBytes *int64     `json:"fs_capacity_bytes,omitempty"`
	RunConfig       *RunConfig `json:"run_config,omitempty"`

	Labels map[string]string `json:"labels,omitzero"`
	Tag    string            `json:"tag,omitempty"` // "latest" if empty

	Description string `json:"description,omitempty"`
}

// Snapshot is a root filesystem that sandboxes boot from.
type Snapshot struct {
	ID              string     `json:"id"`
	Name            string     `json:"name"`
	Status          string     `json:"status"`
	FSCapacityBytes int64      `json:"fs_capacity_bytes"`
	DockerImage     string     `json:"docker_image,omitempty"`
	ImageDigest     string     `json:"image_digest,omitempty"`
	SourceSandboxID string     `json:"source_sandbox_id,omitempty"`
	StatusMessage   string     `json:"status_message,omitempty"`
	FSUsedBytes     *int64     `json:"fs_used_bytes,omitempty"`
	CreatedBy       string     `json:"created_by,omitempty"`
	RegistryID      string     `json:"registry_id,omitempty"`
	CreatedAt       string     `json:"created_at,omitempty"`
	UpdatedAt       string     `json:"updated_at,omitempty"`
	RunConfig       *RunConfig `json:"run_config,omitempty"`

	Labels map[string]string `json:"labels,omitempty"`
	Tags   []string          `json:"tags,omitempty"` // under which it is found as name:tag now

	Description             string `json:"description,omitempty"`
	MemorySnapshotSizeBytes *int64 `json:"memory_snapshot_size_bytes,omitempty"` // nil: without memory (§16.6)
}

func (s *Snapshot) UnmarshalJSON(data []byte) error {
	type plain Snapshot
	p := plain{Status: StatusBuilding}
	err := json.Unmarshal(data, &p)
	*s = Snapshot(p)
	return err
}

// SnapshotList is one page of GET /snapshots.
type SnapshotList struct {
	Snapshots []Snapshot `json:"snapshots"`
	Offset    int        `json:"offset"`
}

// SnapshotTags is the answer to GET /snapshots-by-name/{name}.
type SnapshotTags struct {
	Name string        `json:"name"`
	Tags []SnapshotTag `json:"tags"`
}

// SnapshotTag says which snapshot name:tag stands for.
type SnapshotTag struct {
	Tag        string `json:"tag"`
	SnapshotID string `json:"snapshot_id"`
}

// RegistryCreate is the body of POST /registries; all fields are required.
type RegistryCreate struct {
	Name     string `json:"name"`
	URL      string `json:"url"`
	Username string `json:"username"`
	Password string `json:"password"`
}

// RegistryUpdate is the body of PATCH /registries/{name}; nil fields stay.
type RegistryUpdate struct {
	Name     *string `json:"name,omitempty"`
	URL      *string `json:"url,omitempty"`
	Username *string `json:"username,omitempty"`
	Password *string `json:"password,omitempty"`
}

// Registry is a place that images are pulled from. Credentials never come back.
type Registry struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	URL       string `json:"url"`
	CreatedAt string `json:"created_at,omitempty"`
	CreatedBy string `json:"created_by,omitempty"`
	UpdatedAt string `json:"updated_at,omitempty"`
	UpdatedBy string `json:"updated_by,omitempty"`
}

// RegistryList is one page of GET /registries.
type RegistryList struct {
	Registries []Registry `json:"registries"`
	Offset     int        `json:"offset"`
}
