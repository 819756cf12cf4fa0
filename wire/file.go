package wire

// This file defines the file transfer of the data plane (§5) and the search
// through files (§16.5).

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

// GlobRequest is the body of POST /glob. Path is the absolute directory that
// the pattern is relative to.
type GlobRequest struct {
	Pattern string `json:"pattern"`
	Path    string `json:"path"`
	Limit   *int   `json:"limit,omitempty"` // matches; the server has a default
}

// GlobResult is its answer. Truncated says that there may be more matches.
type GlobResult struct {
	Matches   []GlobMatch `json:"matches"`
	Truncated bool        `json:"truncated"`
}

// GlobMatch is a file or a directory. Path is absolute.
type GlobMatch struct {
	Path       string `json:"path"`
	IsDir      bool   `json:"is_dir"`
	SizeBytes  int64  `json:"size_bytes"`
	ModifiedAt string `json:"modified_at,omitempty"` // RFC 3339
}

// GrepRequest is the body of POST /grep. Pattern is literal text; Path is an
// absolute directory, or a file.
type GrepRequest struct {
	Pattern string `json:"pattern"`
	Path    string `json:"path"`
	Glob    string `json:"glob,omitempty"`  // of the files to search; "" is all
	Limit   *int   `json:"limit,omitempty"` // matches; the server has a default
}

// GrepResult is its answer. Truncated says that there may be more matches.
type GrepResult struct {
	Matches   []GrepMatch `json:"matches"`
	Truncated bool        `json:"truncated"`
}

// GrepMatch is a line that holds the text. Path is absolute.
type GrepMatch struct {
	Path string `json:"path"`
	Line int    `json:"line"` // from 1
	Text string `json:"text"` // of the line, without its end
}
