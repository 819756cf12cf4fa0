package builtins

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	starjson "go.starlark.net/lib/json"
	"go.starlark.net/starlark"

	"github.com/sbx-star/sbx-star/client"
	"github.com/sbx-star/sbx-star/wire"
)

// This file defines what reaches into a sandbox over HTTP: services, what they
// answer, and links to single files.

// serviceValue is the service of one port.
type serviceValue struct {
	run     *Run
	conn    *client.Client
	service *client.Service
	sandbox string
	port    int
}

var (
	_ starlark.HasAttrs = (*serviceValue)(nil)
	_ connected         = (*serviceValue)(nil)
)

func (s *serviceValue) String() string             { return fmt.Sprintf("service(%q, port=%d)", s.sandbox, s.port) }
func (s *serviceValue) Type() string               { return "service" }
func (s *serviceValue) Freeze()                    {}
func (s *serviceValue) Truth() starlark.Bool       { return true }
func (s *serviceValue) Hash() (uint32, error)      { return unhashable(s) }
func (s *serviceValue) connection() *client.Client { return s.conn }
func (s *serviceValue) AttrNames() []string        { return serviceAttributes.names(wire.ServiceURL{}) }
func (s *serviceValue) Attr(name string) (starlark.Value, error) {
	if wireField(wire.ServiceURL{}, name) == nil {
		return serviceAttributes.attr(s, wire.ServiceURL{}, name)
	}
	now, err := s.service.Values(s.run.here().task.Ctx) // which asks for new ones before they expire
	if err != nil {
		return nil, err
	}
	return serviceAttributes.attr(s, now, name)
}

var serviceAttributes = attributes[*serviceValue]{
	fields: map[string]func(*serviceValue) (starlark.Value, error){
		"port": func(s *serviceValue) (starlark.Value, error) { return starlark.MakeInt(s.port), nil },
	},
	methods: map[string]*starlark.Builtin{
		"get":    builtin("Service.get", serviceRequest(http.MethodGet)),
		"post":   builtin("Service.post", serviceRequest(http.MethodPost)),
		"put":    builtin("Service.put", serviceRequest(http.MethodPut)),
		"patch":  builtin("Service.patch", serviceRequest(http.MethodPatch)),
		"delete": builtin("Service.delete", serviceRequest(http.MethodDelete)),
	},
}

// defaultExpiry is how long a service's token lasts unless it is said.
const defaultExpiry = 600

func sandboxService(c *invocation) (starlark.Value, error) {
	var number port
	var expires wholeSeconds
	var access optional[string]
	var origins texts
	cl, err := c.connect(&number, &expires, &access, &origins)
	if err != nil {
		return nil, err
	}
	request := wire.ServiceURLRequest{Port: int(number), Access: access.or("")}
	if expires < 1 || expires > 86400 {
		return nil, c.argumentError("parameter expires_in_seconds: got %d, want 1 to 86400", int(expires))
	}
	if request.Access == "" || expires != defaultExpiry { // a login does not expire, and the client says so
		request.ExpiresInSeconds = (*int)(&expires)
	}
	if a := request.Access; a != "" && a != "restricted" && a != "workspace" {
		return nil, c.argumentError(`parameter access: got %q, want "restricted" or "workspace"`, a)
	}
	if origins.list != nil {
		for origin := range origins.list.Elements() {
			request.EmbedOrigins = append(request.EmbedOrigins, string(origin.(starlark.String)))
		}
	}
	name := c.self.(*sandboxValue).resourceName()
	service, err := cl.Service(c.Ctx, name, request)
	if err != nil {
		return nil, c.orLacking(cl, err, "service URLs", wire.Classic, wire.Head, wire.Late)
	}
	return &serviceValue{run: c.Run, conn: cl, service: service, sandbox: name, port: int(number)}, nil
}

// service is the method of the same name, of the sandbox that it is given.
func service(c *invocation) (starlark.Value, error) {
	return c.onSandbox("Sandbox.service", sandboxService)
}

func sandboxServiceURLs(c *invocation) (starlark.Value, error) {
	cl, err := c.connect()
	if err != nil {
		return nil, err
	}
	grants, err := cl.ServiceURLs(c.Ctx, c.self.(*sandboxValue).resourceName())
	if err != nil {
		return nil, c.orLacking(cl, err, "lists of service URLs", wire.Late)
	}
	values := make([]starlark.Value, len(grants))
	for i, grant := range grants {
		values[i] = &record{"service_url", grant}
	}
	return starlark.NewList(values), nil
}

func sandboxRevokeServiceURLs(c *invocation) (starlark.Value, error) {
	var number optional[port]
	cl, err := c.connect(&number)
	if err != nil {
		return nil, err
	}
	if err := cl.RevokeServiceURLs(c.Ctx, c.self.(*sandboxValue).resourceName(), int(number.or(0))); err != nil {
		return nil, c.orLacking(cl, err, "lists of service URLs", wire.Late)
	}
	return starlark.None, nil
}

// maxBody is the most that is read of a service's answer.
const maxBody = 64 << 20

func serviceRequest(method string) builtinFunc {
	hasBody := method != http.MethodGet && method != http.MethodDelete
	return func(c *invocation) (starlark.Value, error) {
		var path string
		var headers stringDict
		var timeout seconds
		var body optional[data]
		var object starlark.Value = starlark.None
		vars := []any{&path, &headers, &timeout}
		if hasBody {
			vars = []any{&path, &body, &object, &headers, &timeout}
		}
		if err := c.unpack(vars...); err != nil {
			return nil, err
		}
		header := http.Header{}
		for name, value := range headers {
			header.Set(name, value)
		}
		content, err := requestBody(c, body, object, header)
		if err != nil {
			return nil, err
		}
		s := c.self.(*serviceValue)
		var answer *responseValue
		err = c.within(timeout, func(ctx context.Context) error {
			var reader io.Reader
			if content != nil {
				reader = bytes.NewReader(content)
			}
			response, err := s.service.Do(ctx, method, path, header, reader)
			if err != nil {
				return err
			}
			defer response.Body.Close()
			answer, err = newResponse(response)
			return err
		}, func() error {
			return &client.Error{Kind: client.ErrConnection, Err: context.DeadlineExceeded,
				Message: fmt.Sprintf("%s %s of %s took longer than %v", method, path, s, time.Duration(timeout))}
		})
		if err != nil {
			return nil, err
		}
		return answer, nil
	}
}

// requestBody is what is sent: bytes as they are, or a value as JSON; nil for
// neither.
func requestBody(c *invocation, body optional[data], object starlark.Value, header http.Header) ([]byte, error) {
	if object == starlark.None {
		return body.or(nil), nil
	}
	if body.ptr != nil {
		return nil, c.argumentError("body and json exclude each other")
	}
	text, err := starlark.Call(&starlark.Thread{}, starjson.Module.Members["encode"], starlark.Tuple{object}, nil)
	if err != nil {
		return nil, c.argumentError("parameter json: %s", err)
	}
	if header.Get("Content-Type") == "" {
		header.Set("Content-Type", "application/json")
	}
	return []byte(text.(starlark.String)), nil
}

// responseValue is what a service has answered.
type responseValue struct{ responseFields }

type responseFields struct {
	Status  int            `json:"status"`
	Headers *starlark.Dict `json:"headers"` // names in small letters
	Body    starlark.Value `json:"body"`
}

func newResponse(r *http.Response) (*responseValue, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, &client.Error{Kind: client.ErrConnection, Message: fmt.Sprintf("the service's answer broke off after %d bytes: %v", len(body), err), Err: err}
	}
	if len(body) > maxBody {
		return nil, fmt.Errorf("the service's answer is longer than %d MiB; have the sandbox write it to a file", maxBody>>20)
	}
	headers := new(starlark.Dict)
	names := make([]string, 0, len(r.Header))
	for name := range r.Header {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		headers.SetKey(starlark.String(strings.ToLower(name)), starlark.String(strings.Join(r.Header[name], ", ")))
	}
	headers.Freeze()
	return &responseValue{responseFields{r.StatusCode, headers, starlark.Bytes(body)}}, nil
}

var _ starlark.HasAttrs = (*responseValue)(nil)

func (r *responseValue) String() string {
	return fmt.Sprintf("response(status=%d, %d bytes)", r.Status, starlark.Len(r.Body))
}
func (r *responseValue) Type() string          { return "response" }
func (r *responseValue) Freeze()               {}
func (r *responseValue) Truth() starlark.Bool  { return true }
func (r *responseValue) Hash() (uint32, error) { return unhashable(r) }
func (r *responseValue) AttrNames() []string   { return responseAttributes.names(r.responseFields) }
func (r *responseValue) Attr(name string) (starlark.Value, error) {
	return responseAttributes.attr(r, r.responseFields, name)
}

var responseAttributes = attributes[*responseValue]{methods: map[string]*starlark.Builtin{
	"json": builtin("Response.json", func(c *invocation) (starlark.Value, error) {
		if err := c.unpack(); err != nil {
			return nil, err
		}
		text := starlark.String(c.self.(*responseValue).Body.(starlark.Bytes))
		v, err := starlark.Call(&starlark.Thread{}, starjson.Module.Members["decode"], starlark.Tuple{text}, nil)
		if err != nil {
			return nil, fmt.Errorf("the answer is no JSON: %s", err)
		}
		return v, nil
	}),
}}

func sandboxDownloadURL(c *invocation) (starlark.Value, error) {
	var request wire.DownloadURLRequest
	var expires optional[wholeSeconds]
	var contentType, disposition optional[string]
	cl, err := c.connect(&request.Path, &expires, &contentType, &disposition)
	if err != nil {
		return nil, err
	}
	if expires.ptr != nil {
		seconds := int(*expires.ptr)
		if seconds < 1 {
			return nil, c.argumentError("parameter expires_in_seconds: got %d, want 1 or more", seconds)
		}
		request.ExpiresInSeconds = &seconds
	}
	request.ContentType, request.ContentDisposition = contentType.or(""), disposition.or("")
	if d := request.ContentDisposition; d != "" && d != "attachment" && d != "inline" {
		return nil, c.argumentError(`parameter content_disposition: got %q, want "attachment" or "inline"`, d)
	}
	link, err := cl.DownloadURL(c.Ctx, c.self.(*sandboxValue).resourceName(), request)
	if err != nil {
		return nil, c.orLacking(cl, err, "download URLs", wire.Head, wire.Late)
	}
	return &record{"download_url", *link}, nil
}
