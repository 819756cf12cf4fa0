package wire

import "encoding/json"

// This file defines the resources of the seed and classic generations:
// volumes, templates and pools (§2.1–§2.3).

// VolumeCreate is the body of POST /volumes. All four fields are always sent.
type VolumeCreate struct {
	Name         string `json:"name"`
	Size         string `json:"size"` // Kubernetes quantity
	WaitForReady bool   `json:"wait_for_ready"`
	Timeout      int    `json:"timeout"`
}

// VolumeUpdate is the body of PATCH /volumes/{name}; nil fields stay as they are.
type VolumeUpdate struct {
	Name *string `json:"name,omitempty"`
	Size *string `json:"size,omitempty"`
}

// Volume is a folder that outlives sandboxes.
type Volume struct {
	ID           string `json:"id,omitempty"`
	Name         string `json:"name"`
	Size         string `json:"size"`
	StorageClass string `json:"storage_class"`
	CreatedAt    string `json:"created_at,omitempty"`
	UpdatedAt    string `json:"updated_at,omitempty"`
}

func (v *Volume) UnmarshalJSON(data []byte) error {
	type plain Volume
	p := plain{Size: "unknown", StorageClass: "default"}
	err := json.Unmarshal(data, &p)
	*v = Volume(p)
	return err
}

// VolumeList is the answer to GET /volumes.
type VolumeList struct {
	Volumes []Volume `json:"volumes"`
}

// Resources are the limits of a template: CPU in cores or millicores ("2",
// "500m"), memory and storage as Kubernetes quantities.
type Resources struct {
	CPU     string `json:"cpu"`
	Memory  string `json:"memory"`
	Storage string `json:"storage,omitempty"`
}

// The limits of a template that names none (§8).
const (
	DefaultCPU    = "500m"
	DefaultMemory = "512Mi"
)

func (r *Resources) UnmarshalJSON(data []byte) error {
	type plain Resources
	p := plain{CPU: DefaultCPU, Memory: DefaultMemory}
	err := json.Unmarshal(data, &p)
	*r = Resources(p)
	return err
}

// VolumeMount says where a volume appears in a sandbox.
type VolumeMount struct {
	VolumeName string `json:"volume_name"`
	MountPath  string `json:"mount_path"`
}

// TemplateCreate is the body of POST /templates.
type TemplateCreate struct {
	Name         string        `json:"name"`
	Image        string        `json:"image"`
	Resources    Resources     `json:"resources"`
	VolumeMounts []VolumeMount `json:"volume_mounts,omitempty"`
}

func (t *TemplateCreate) UnmarshalJSON(data []byte) error {
	type plain TemplateCreate
	p := plain{Resources: Resources{CPU: DefaultCPU, Memory: DefaultMemory}}
	err := json.Unmarshal(data, &p)
	*t = TemplateCreate(p)
	return err
}

// TemplateUpdate is the body of PATCH /templates/{name}: only the name can change.
type TemplateUpdate struct {
	Name string `json:"name"`
}

// Template is an image with limits and mounts that sandboxes are made from.
type Template struct {
	ID           string        `json:"id,omitempty"`
	Name         string        `json:"name"`
	Image        string        `json:"image"`
	Resources    Resources     `json:"resources"`
	VolumeMounts []VolumeMount `json:"volume_mounts"`
	CreatedAt    string        `json:"created_at,omitempty"`
	UpdatedAt    string        `json:"updated_at,omitempty"`
}

func (t *Template) UnmarshalJSON(data []byte) error {
	type plain Template
	p := plain{Image: "unknown", Resources: Resources{CPU: DefaultCPU, Memory: DefaultMemory}, VolumeMounts: []VolumeMount{}}
	err := json.Unmarshal(data, &p)
	*t = Template(p)
	return err
}

// TemplateList is the answer to GET /templates.
type TemplateList struct {
	Templates []Template `json:"templates"`
}

// PoolCreate is the body of POST /pools. All fields are always sent.
type PoolCreate struct {
	Name         string `json:"name"`
	TemplateName string `json:"template_name"`
	Replicas     int    `json:"replicas"`
	WaitForReady bool   `json:"wait_for_ready"`
	Timeout      int    `json:"timeout"`
}

// PoolUpdate is the body of PATCH /pools/{name}; nil fields stay as they are,
// and zero replicas pause the pool.
type PoolUpdate struct {
	Name     *string `json:"name,omitempty"`
	Replicas *int    `json:"replicas,omitempty"`
}

// Pool keeps sandboxes of one template warm.
type Pool struct {
	ID           string `json:"id,omitempty"`
	Name         string `json:"name"`
	TemplateName string `json:"template_name"`
	Replicas     int    `json:"replicas"` // as desired
	CreatedAt    string `json:"created_at,omitempty"`
	UpdatedAt    string `json:"updated_at,omitempty"`
}

// PoolList is the answer to GET /pools.
type PoolList struct {
	Pools []Pool `json:"pools"`
}
