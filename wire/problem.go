package wire

import (
	"encoding/json"
	"net/http"
	"strings"
)

// This file defines the bodies of error answers (§3.1).

// Problem is what an error answer says. It is written in form B if it has
// details and in form A otherwise, and read from any of the forms that servers
// are known to send.
type Problem struct {
	Type    string       // detail.error; "" in forms B, C and D
	Message string       // never empty after DecodeProblem
	ID      string       // error_id
	Reason  string       // detail.reason: a closer type, where the type had to stay coarse (§5)
	Details []InputError // of form B
}

// InputError is one entry of form B: where in the request, what, and of which kind.
type InputError struct {
	Loc  []any  `json:"loc"` // strings and numbers
	Msg  string `json:"msg"`
	Type string `json:"type"`
}

// Field is the last element of the first entry's loc (§3.1), or "".
func (p Problem) Field() string {
	if len(p.Details) == 0 || len(p.Details[0].Loc) == 0 {
		return ""
	}
	field, _ := p.Details[0].Loc[len(p.Details[0].Loc)-1].(string)
	return field
}

type problemDetail struct {
	Error   string `json:"error,omitempty"`
	Message string `json:"message,omitempty"`
	ErrorID string `json:"error_id,omitempty"`
	Reason  string `json:"reason,omitempty"`
}

func (p Problem) MarshalJSON() ([]byte, error) {
	if p.Details != nil {
		return json.Marshal(map[string]any{"detail": p.Details})
	}
	return json.Marshal(map[string]any{"detail": problemDetail{p.Type, p.Message, p.ID, p.Reason}})
}

// DecodeProblem reads the body of an answer with an error status: forms A to D,
// and beyond them the flat form and the title of RFC 7807.
func DecodeProblem(status int, body []byte) Problem {
	var p Problem
	var outer struct {
		Detail json.RawMessage `json:"detail"`
		Title  string          `json:"title"`
	}
	var flat problemDetail
	if json.Unmarshal(body, &outer) == nil {
		switch {
		case strings.HasPrefix(string(outer.Detail), "{"):
			json.Unmarshal(outer.Detail, &flat)
		case strings.HasPrefix(string(outer.Detail), "["):
			p.Details, flat.Message = decodeDetails(outer.Detail)
		case strings.HasPrefix(string(outer.Detail), `"`):
			json.Unmarshal(outer.Detail, &flat.Message)
		default:
			json.Unmarshal(body, &flat)
		}
		if flat.Message == "" {
			flat.Message = outer.Title
		}
	}
	p.Type, p.Message, p.ID, p.Reason = flat.Error, flat.Message, flat.ErrorID, flat.Reason
	if p.Message == "" {
		p.Message = http.StatusText(status)
	}
	if p.Message == "" {
		p.Message = "unknown error"
	}
	return p
}

// decodeDetails reads the list of form B and joins its messages. An entry
// without a message stands in the text as it came.
func decodeDetails(raw json.RawMessage) ([]InputError, string) {
	var entries []json.RawMessage
	json.Unmarshal(raw, &entries)
	details := make([]InputError, len(entries))
	texts := make([]string, len(entries))
	for i, entry := range entries {
		json.Unmarshal(entry, &details[i])
		texts[i] = details[i].Msg
		if texts[i] == "" {
			texts[i] = string(entry)
		}
	}
	return details, strings.Join(texts, "; ")
}
