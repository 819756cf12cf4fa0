package wire

// This file defines the file transfer of the data plane (§5).

// The one part of an upload's multipart body.
const (
	UploadField       = "file"
	UploadFilename    = "file"
	UploadContentType = "application/octet-stream"
)

// Uploaded is the answer to POST /upload; clients may ignore it.
type Uploaded struct {
	Path    string `json:"path"`
	Written int64  `json:"written"`
}
