package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// This file defines the messages that run a command: over HTTP (§5) and over a
// WebSocket (§6, with the additions of §16.2 and §16.3, and those of exec.v1 in
// §15).

// ExecV1 is the WebSocket subprotocol of §15.
const ExecV1 = "sbx.exec.v1"

// GenerationHeader is how a server that is to be of one generation tells a
// daemon so, when a client wants to run commands over a WebSocket. It never
// comes from a client.
const GenerationHeader = "Sbx-Star-Generation"

// What stands for a field that a request leaves out (§5, §6.2).
const (
	DefaultShell       = "/bin/bash"
	DefaultTimeout     = 60  // seconds; 0 is no limit
	DefaultIdleTimeout = 300 // seconds without a client; -1 is never
	DefaultTTL         = 600 // seconds after the end; -1 is the sandbox's life
)

// Command is a string for a shell or, as a JSON array, an argument vector.
type Command struct {
	Line string
	Argv []string // run directly if not nil
}

func (c Command) MarshalJSON() ([]byte, error) {
	if c.Argv != nil {
		return plainJSON(c.Argv)
	}
	return plainJSON(c.Line)
}

func (c *Command) UnmarshalJSON(data []byte) error {
	*c = Command{}
	if len(data) > 0 && data[0] == '[' {
		return json.Unmarshal(data, &c.Argv)
	}
	return json.Unmarshal(data, &c.Line)
}

// ExecRequest is the body of POST /execute. The timeout goes out under both of
// its names; coming in, timeout_seconds wins (§5, §12).
type ExecRequest struct {
	Command   Command
	Timeout   int // seconds
	Shell     string
	Env       map[string]string // absent when nil, sent when empty
	Cwd       string
	RunConfig *RunConfig
}

type execRequest struct {
	Command        Command           `json:"command"`
	Timeout        *int              `json:"timeout"`
	TimeoutSeconds *int              `json:"timeout_seconds"`
	Shell          string            `json:"shell"`
	Env            map[string]string `json:"env,omitzero"`
	Cwd            string            `json:"cwd,omitempty"`
	RunConfig      *RunConfig        `json:"run_config,omitempty"`
}

func (r ExecRequest) MarshalJSON() ([]byte, error) {
	return json.Marshal(execRequest{r.Command, &r.Timeout, &r.Timeout, r.Shell, r.Env, r.Cwd, r.RunConfig})
}

func (r *ExecRequest) UnmarshalJSON(data []byte) error {
	p := execRequest{Shell: DefaultShell}
	if err := json.Unmarshal(data, &p); err != nil {
		return err
	}
	*r = ExecRequest{Command: p.Command, Timeout: DefaultTimeout, Shell: p.Shell, Env: p.Env, Cwd: p.Cwd, RunConfig: p.RunConfig}
	for _, given := range []*int{p.Timeout, p.TimeoutSeconds} {
		if given != nil {
			r.Timeout = *given
		}
	}
	return nil
}

// ExecResponse is the answer to POST /execute.
type ExecResponse struct {
	Stdout   string `json:"stdout"`
	Stderr   string `json:"stderr"`
	ExitCode int    `json:"exit_code"`
	Reason   string `json:"reason,omitempty"` // why the sandbox's limits ended it; only this project's servers tell
}

func (r *ExecResponse) UnmarshalJSON(data []byte) error {
	type plain ExecResponse
	p := plain{ExitCode: -1}
	err := json.Unmarshal(data, &p)
	*r = ExecResponse(p)
	return err
}

// A Message is one JSON text message of the exec WebSocket: *Execute,
// *Reconnect, *Input, *CloseStdin and *Kill go to the server, and under ExecV1
// *Signal and *Resize; *Started, *Output, *Exit and *ExecError come from it,
// and under ExecV1 *Gap; *Unknown is any other and is to be ignored.
type Message interface{ messageType() string }

// Execute starts a command, or attaches to the one whose id it names. It
// always carries its first six fields.
type Execute struct {
	Command            Command           `json:"command"`
	TimeoutSeconds     int               `json:"timeout_seconds"`
	Shell              string            `json:"shell"`
	IdleTimeoutSeconds int               `json:"idle_timeout_seconds"`
	KillOnDisconnect   bool              `json:"kill_on_disconnect"`
	TTLSeconds         int               `json:"ttl_seconds"`
	Env                map[string]string `json:"env,omitempty"`
	Cwd                string            `json:"cwd,omitempty"`
	PTY                bool              `json:"pty,omitempty"`
	RunConfig          *RunConfig        `json:"run_config,omitempty"`
	CloseStdin         bool              `json:"close_stdin,omitempty"`
	CommandID          string            `json:"command_id,omitempty"`
}

// Reconnect attaches to a command and asks for its output from these offsets,
// in bytes.
type Reconnect struct {
	CommandID    string `json:"command_id"`
	StdoutOffset int64  `json:"stdout_offset"`
	StderrOffset int64  `json:"stderr_offset"`
}

// Input is written to the command's stdin.
type Input struct {
	Data string `json:"data"`
}

// CloseStdin is the end of file on stdin.
type CloseStdin struct{}

// Kill sends SIGKILL to the command's process group.
type Kill struct{}

// Signal sends a signal, named as in TERM, to the command's process group.
type Signal struct {
	Signal string `json:"signal"`
}

// Resize sets the size of the command's terminal, in characters.
type Resize struct {
	Cols int `json:"cols"`
	Rows int `json:"rows"`
}

// Started is the first message of the server, to Execute and to Reconnect.
type Started struct {
	CommandID string `json:"command_id"`
	PID       int    `json:"pid"`
}

// Stream names of Output.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// Output is a piece of one stream. Offset is how many bytes of that stream came
// before it.
type Output struct {
	Stream string `json:"-"` // Stdout or Stderr: the message's type
	Data   Text   `json:"data"`
	Offset int64  `json:"offset"`
}

// Gap says that the output from one offset to another is lost.
type Gap struct {
	Stream string `json:"stream"` // Stdout or Stderr
	From   int64  `json:"from"`
	To     int64  `json:"to"`
}

// Exit is the last message of a command that ended. What stands behind the code
// is sent under ExecV1 only.
type Exit struct {
	ExitCode   int    `json:"exit_code"`
	Signal     string `json:"signal,omitempty"`      // the one that ended it, as in TERM
	DurationMS int64  `json:"duration_ms,omitempty"` // milliseconds, rounded up, and so never 0
	Reason     string `json:"reason,omitempty"`      // why the sandbox's limits ended it
}

// ExecError is the last message of a command that failed otherwise (§6.5).
type ExecError struct {
	Error     string `json:"error"`
	ErrorType string `json:"error_type"`
}

// Error types of ExecError and of form-A errors of the data plane (§3.6, §6.5).
const (
	ErrCommand            = "CommandError"
	ErrCommandTimeout     = "CommandTimeout"
	ErrCommandNotFound    = "CommandNotFound"
	ErrSessionExpired     = "SessionExpired"
	ErrInvalidRequest     = "InvalidRequest"
	ErrRead               = "ReadError"
	ErrWrite              = "WriteError"
	ErrFileNotFound       = "FileNotFound"
	ErrPermissionDenied   = "PermissionDenied"
	ErrConnection         = "ConnectionError"
	ErrNotReady           = "NotReady"
	ErrServiceUnavailable = "ServiceUnavailable"
)

// MessageType is the type of a message on the wire.
func MessageType(m Message) string { return m.messageType() }

// Unknown is a message of a type that this package does not know.
type Unknown struct{ Type string }

func (*Execute) messageType() string    { return "execute" }
func (*Reconnect) messageType() string  { return "reconnect" }
func (*Input) messageType() string      { return "input" }
func (*CloseStdin) messageType() string { return "close_stdin" }
func (*Kill) messageType() string       { return "kill" }
func (*Signal) messageType() string     { return "signal" }
func (*Resize) messageType() string     { return "resize" }
func (*Started) messageType() string    { return "started" }
func (o *Output) messageType() string   { return o.Stream }
func (*Gap) messageType() string        { return "gap" }
func (*Exit) messageType() string       { return "exit" }
func (*ExecError) messageType() string  { return "error" }
func (u *Unknown) messageType() string  { return u.Type }

// newMessage makes an empty message of a type, with the defaults of absent fields.
var newMessage = map[string]func() Message{
	"execute": func() Message {
		return &Execute{TimeoutSeconds: DefaultTimeout, Shell: DefaultShell,
			IdleTimeoutSeconds: DefaultIdleTimeout, TTLSeconds: DefaultTTL}
	},
	"reconnect":   func() Message { return &Reconnect{} },
	"input":       func() Message { return &Input{} },
	"close_stdin": func() Message { return &CloseStdin{} },
	"kill":        func() Message { return &Kill{} },
	"signal":      func() Message { return &Signal{} },
	"resize":      func() Message { return &Resize{} },
	"started":     func() Message { return &Started{} },
	Stdout:        func() Message { return &Output{Stream: Stdout} },
	Stderr:        func() Message { return &Output{Stream: Stderr} },
	"gap":         func() Message { return &Gap{} },
	"exit":        func() Message { return &Exit{ExitCode: -1} },
	"error":       func() Message { return &ExecError{Error: "Unknown error", ErrorType: ErrCommand} },
}

// EncodeMessage returns the JSON text of m, its type first. Characters that
// matter in HTML alone are not escaped: shell commands are full of them.
func EncodeMessage(m Message) ([]byte, error) {
	if o, ok := m.(*Output); ok {
		return appendOutput(make([]byte, 0, len(o.Data)+len(o.Data)/8+64), o), nil
	}
	fields, err := plainJSON(m)
	if err != nil {
		return nil, err
	}
	head := `{"type":"` + m.messageType() + `"`
	if len(fields) > len("{}") {
		head += ","
	}
	return append([]byte(head), fields[1:]...), nil
}

// plainJSON is json.Marshal without the escapes for HTML.
func plainJSON(v any) ([]byte, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(v)
	return bytes.TrimSuffix(text.Bytes(), []byte("\n")), err
}

// DecodeMessage reads one JSON text message. A field of a wrong type is an
// error that names it, and so is a message that is no JSON object.
func DecodeMessage(data []byte) (Message, error) {
	if o := decodeOutput(data); o != nil {
		return o, nil
	}
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, fmt.Errorf("not a JSON message: %w", err)
	}
	make, ok := newMessage[head.Type]
	if !ok {
		return &Unknown{head.Type}, nil
	}
	m := make()
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("%s message: %w", head.Type, err)
	}
	return m, nil
}
