package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file tests the maps from answers to errors, each through a call that
// uses it.

func TestHierarchy(t *testing.T) {
	parents := map[string]string{
		"SandboxClientError": "", "SandboxAPIError": "SandboxClientError", "SandboxAuthenticationError": "SandboxClientError",
		"SandboxConnectionError": "SandboxClientError", "SandboxServerReloadError": "SandboxConnectionError",
		"SandboxRetryableConnectionError": "SandboxConnectionError", "SandboxConnectTimeoutError": "SandboxRetryableConnectionError",
		"ResourceNotFoundError": "SandboxClientError", "ResourceTimeoutError": "SandboxClientError", "ResourceInUseError": "SandboxClientError",
		"ResourceAlreadyExistsError": "SandboxClientError", "ResourceNameConflictError": "SandboxClientError", "ValidationError": "SandboxClientError",
		"QuotaExceededError": "SandboxClientError", "ResourceCreationError": "SandboxClientError", "DataplaneNotConfiguredError": "SandboxClientError",
		"SandboxNotReadyError": "SandboxClientError", "SandboxOperationError": "SandboxClientError", "CommandTimeoutError": "SandboxOperationError",
		"TunnelError": "SandboxClientError", "TunnelPortNotAllowedError": "TunnelError", "TunnelConnectionRefusedError": "TunnelError",
		"TunnelUnsupportedVersionError": "TunnelError",
	}
	var seen []*Kind
	for _, k := range Kinds() {
		parent, known := parents[k.Name()]
		if !known {
			t.Errorf("%s is not in §3.2, or twice", k.Name())
		}
		delete(parents, k.Name())
		if got := k.Parent(); got == nil && parent != "" || got != nil && got.Name() != parent {
			t.Errorf("%s is not below %q", k, parent)
		}
		if k.Parent() != nil && !slices.Contains(seen, k.Parent()) {
			t.Errorf("%s comes before its parent", k)
		}
		seen = append(seen, k)
	}
	if len(parents) > 0 {
		t.Errorf("missing: %v", parents)
	}
}

func TestIs(t *testing.T) {
	cause := errors.New("cause")
	err := fmt.Errorf("wrapped: %w", &Error{Kind: ErrConnectTimeout, Err: cause})
	for _, k := range Kinds() {
		want := slices.Contains([]*Kind{ErrConnectTimeout, ErrRetryableConnection, ErrConnection, ErrClient}, k)
		if got := errors.Is(err, k); got != want {
			t.Errorf("Is(%s) = %v", k, got)
		}
	}
	if !errors.Is(err, cause) || errors.Is(err, context.Canceled) {
		t.Error("the cause is not found")
	}
}

func TestTextOfErrors(t *testing.T) {
	for want, e := range map[string]*Error{
		"no":                                {Kind: ErrClient, Message: "no", ErrorType: "Unauthorized"},
		"no (last_status: stopped)":         {Kind: ErrTimeout, Message: "no", LastStatus: "stopped"},
		"no [ImagePull]":                    {Kind: ErrCreation, Message: "no", ErrorType: "ImagePull"},
		"no [ReadError] (error_id=e-1)":     {Kind: ErrOperation, Message: "no", ErrorType: "ReadError", ErrorID: "e-1"},
		"no [CommandTimeout]":               {Kind: ErrCommandTimeout, Message: "no", ErrorType: "CommandTimeout"},
		"no (error_id=e-1)":                 {Kind: ErrAPI, Message: "no", ErrorType: "Oops", ErrorID: "e-1"},
		"no (last_status: x) (error_id=e1)": {Kind: ErrTimeout, Message: "no", LastStatus: "x", ErrorID: "e1"},
	} {
		wantEqual(t, e.Kind.Name(), e.Error(), want)
	}
}

// A row is an answer and what is made of it.
type row struct {
	status int
	body   string
	kind   *Kind
	want   Error // of the fields that the row is about
}

const (
	listForm  = `{"detail":[{"loc":["body","resources","cpu"],"msg":"bad cpu","type":"value_error"},{"loc":["body"],"type":"missing"}]}`
	otherForm = `{"detail":[{"loc":["body","name"],"msg":"missing","type":"missing"}]}`
)

func form(errorType, message string) string {
	return fmt.Sprintf(`{"detail":{"error":%q,"message":%q,"error_id":"e-1"}}`, errorType, message)
}

// check compares what every row is about.
func (r row) check(t *testing.T, call string, err error) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Errorf("%s: %d %s: got %v", call, r.status, r.body, err)
		return
	}
	got := Error{ResourceType: e.ResourceType, ErrorType: e.ErrorType, Field: e.Field, QuotaType: e.QuotaType, Operation: e.Operation}
	want := Error{ResourceType: r.want.ResourceType, ErrorType: r.want.ErrorType, Field: r.want.Field, QuotaType: r.want.QuotaType, Operation: r.want.Operation}
	if e.Kind != r.kind || fmt.Sprint(got) != fmt.Sprint(want) || e.Status != r.status {
		t.Errorf("%s: %d %s:\ngot  %s %d %+v\nwant %s %d %+v", call, r.status, r.body, e.Kind, e.Status, got, r.kind, r.status, want)
	}
	if r.want.Message != "" && e.Message != r.want.Message {
		t.Errorf("%s: %d %s: got message %q, want %q", call, r.status, r.body, e.Message, r.want.Message)
	}
	if (e.Kind == ErrValidation) != (e.Details != nil) {
		t.Errorf("%s: %d %s: details are %#v", call, r.status, r.body, e.Details)
	}
}

// generic is §3.3.
var generic = []row{
	{401, form("Unauthorized", "no"), ErrAuthentication, Error{ErrorType: "Unauthorized", Message: "no"}},
	{403, `{"detail":"not yours"}`, ErrAuthentication, Error{Message: "not yours"}},
	{422, listForm, ErrValidation, Error{Field: "cpu", Message: `bad cpu; {"loc":["body"],"type":"missing"}`}},
	{422, `{"detail":"bad"}`, ErrValidation, Error{Message: "bad"}},
	{429, `{"detail":"Limit of 10 sandbox(es) per organization exceeded"}`, ErrQuotaExceeded, Error{QuotaType: "sandbox_count"}},
	{429, `{"detail":"too much CPU"}`, ErrQuotaExceeded, Error{QuotaType: "cpu"}},
	{429, `{"detail":"too much memory"}`, ErrQuotaExceeded, Error{QuotaType: "memory"}},
	{429, `{"detail":"volume count"}`, ErrQuotaExceeded, Error{QuotaType: "volume_count"}},
	{429, `{"detail":"volume storage"}`, ErrQuotaExceeded, Error{QuotaType: "storage"}},
	{429, `{}`, ErrQuotaExceeded, Error{Message: "Too Many Requests"}},
	{500, form("Oops", "no"), ErrAPI, Error{ErrorType: "Oops"}},
	{500, `{"error":"Oops","message":"flat"}`, ErrAPI, Error{ErrorType: "Oops", Message: "flat"}},
	{500, `{"title":"seven"}`, ErrAPI, Error{Message: "seven"}},
	{502, form("ConnectionError", "gone"), ErrConnection, Error{ErrorType: "ConnectionError"}},
	{502, `{"detail":"bad gateway"}`, ErrClient, Error{Message: "bad gateway"}},
	{400, form("TemplateNotFound", "no"), ErrClient, Error{ErrorType: "TemplateNotFound"}},
	{408, `{"detail":""}`, ErrClient, Error{Message: "Request Timeout"}},
	{409, `{"detail":"taken"}`, ErrClient, Error{Message: "taken"}},
	{413, `{}`, ErrClient, Error{}},
	{418, `{}`, ErrClient, Error{}},
	{503, `{}`, ErrClient, Error{}},
	{504, `{}`, ErrClient, Error{}},
	{599, `{}`, ErrClient, Error{Message: "unknown error"}},
}

// over is the generic map with other rows in place of those for some statuses.
func over(rows ...row) []row {
	all := slices.DeleteFunc(slices.Clone(generic), func(g row) bool {
		return slices.ContainsFunc(rows, func(r row) bool { return r.status == g.status })
	})
	return append(all, rows...)
}

func TestStatusMaps(t *testing.T) {
	for call, x := range map[string]struct {
		do   func(*Client, *Sandbox) error
		rows []row
	}{
		"info": {
			func(c *Client, _ *Sandbox) error { _, err := c.Info(context.Background()); return err },
			over(row{404, `{}`, ErrNotFound, Error{}}),
		},
		"get sandbox": {
			func(c *Client, _ *Sandbox) error { _, err := c.GetSandbox(context.Background(), "a"); return err },
			over(row{404, `{}`, ErrNotFound, Error{ResourceType: "sandbox"}}),
		},
		"sandbox status": {
			func(c *Client, _ *Sandbox) error { _, err := c.SandboxStatus(context.Background(), "a"); return err },
			over(row{404, `{}`, ErrNotFound, Error{ResourceType: "sandbox"}}),
		},
		"delete sandbox": {
			func(c *Client, _ *Sandbox) error { return c.DeleteSandbox(context.Background(), "a") },
			over(row{404, `{}`, ErrNotFound, Error{ResourceType: "sandbox"}}),
		},
		"update sandbox": {
			func(c *Client, _ *Sandbox) error {
				_, err := c.UpdateSandbox(context.Background(), "a", wire.BoxUpdate{Name: new("b")})
				return err
			},
			over(row{404, `{}`, ErrNotFound, Error{ResourceType: "sandbox"}}, row{409, form("Conflict", "taken"), ErrNameConflict, Error{ResourceType: "sandbox", ErrorType: "Conflict"}}),
		},
		"list sandboxes": {
			func(c *Client, _ *Sandbox) error { _, err := c.ListSandboxes(context.Background()); return err },
			over(row{404, `{}`, ErrAPI, Error{Message: "this server has no /v2/sandboxes/boxes (Not Found)"}}),
		},
		"list templates": {
			func(c *Client, _ *Sandbox) error { _, err := c.ListTemplates(context.Background()); return err },
			over(row{404, form("NotImplemented", "none"), ErrAPI, Error{ErrorType: "NotImplemented", Message: "this server has no /v2/sandboxes/templates (none)"}}),
		},
		"get template": {
			func(c *Client, _ *Sandbox) error { _, err := c.GetTemplate(context.Background(), "a"); return err },
			over(row{404, `{}`, ErrNotFound, Error{ResourceType: "template"}}),
		},
		"create template": {
			func(c *Client, _ *Sandbox) error {
				_, err := c.CreateTemplate(context.Background(), wire.TemplateCreate{Name: "a"})
				return err
			},
			over(row{409, `{}`, ErrAlreadyExists, Error{ResourceType: "template"}}),
		},
		"update template": {
			func(c *Client, _ *Sandbox) error {
				_, err := c.UpdateTemplate(context.Background(), "a", wire.TemplateUpdate{Name: "b"})
				return err
			},
			over(row{404, `{}`, ErrNotFound, Error{ResourceType: "template"}}, row{409, `{}`, ErrNameConflict, Error{ResourceType: "template"}}),
		},
		"delete template": {
			func(c *Client, _ *Sandbox) error { return c.DeleteTemplate(context.Background(), "a") },
			over(row{404, `{}`, ErrNotFound, Error{ResourceType: "template"}}, row{409, form("Conflict", "used"), ErrInUse, Error{ResourceType: "template", ErrorType: "Conflict"}}),
		},
		"create sandbox": {
			func(c *Client, _ *Sandbox) error {
				_, err := c.CreateSandbox(context.Background(), wire.BoxCreate{})
				return err
			},
			over(
				row{408, `{"detail":"still provisioning"}`, ErrTimeout, Error{ResourceType: "sandbox", Message: "still provisioning"}},
				row{504, `{}`, ErrTimeout, Error{ResourceType: "sandbox"}},
				row{409, form("Conflict", "taken"), ErrAlreadyExists, Error{ResourceType: "sandbox", ErrorType: "Conflict"}},
				row{422, listForm, ErrValidation, Error{Field: "cpu"}},
				row{422, otherForm, ErrValidation, Error{Field: "name"}},
				row{422, form("ImagePull", "no image"), ErrCreation, Error{ResourceType: "sandbox", ErrorType: "ImagePull"}},
				row{422, `{"detail":"bad"}`, ErrCreation, Error{ResourceType: "sandbox", Message: "bad"}},
				row{429, `{"detail":"sandbox limit"}`, ErrQuotaExceeded, Error{QuotaType: "sandbox_count"}},
				row{503, `{}`, ErrCreation, Error{ResourceType: "sandbox", ErrorType: "Unschedulable"}},
				row{503, form("VolumeProvisioning", "full"), ErrCreation, Error{ResourceType: "sandbox", ErrorType: "VolumeProvisioning"}},
				row{500, form("CrashLoop", "again"), ErrCreation, Error{ResourceType: "sandbox", ErrorType: "CrashLoop"}},
				row{500, form("Oops", "no"), ErrAPI, Error{ErrorType: "Oops"}},
				row{404, `{}`, ErrNotFound, Error{}},
			),
		},
		"execute": {
			func(_ *Client, b *Sandbox) error {
				_, err := b.Exec(context.Background(), RunOptions{Command: "x", Timeout: 7 * time.Second})
				return err
			},
			append([]row{{404, `{}`, ErrNotFound, Error{ResourceType: "file"}}}, dataplane...),
		},
		"upload": {
			func(_ *Client, b *Sandbox) error { return b.Upload(context.Background(), "f", strings.NewReader("x")) },
			append([]row{{404, `{}`, ErrNotFound, Error{ResourceType: "file"}}}, dataplane...),
		},
		"download": {
			func(_ *Client, b *Sandbox) error { _, err := b.Download(context.Background(), "f"); return err },
			append([]row{
				{404, `{}`, ErrNotFound, Error{ResourceType: "file", Message: "sandbox sb-1 has no file f"}},
				{404, form("ReadError", "no"), ErrNotFound, Error{ResourceType: "file", ErrorType: "ReadError"}},
			}, dataplane...),
		},
	} {
		checkMap(t, call, x.do, x.rows)
	}
}

// checkMap answers the call with each row.
func checkMap(t *testing.T, call string, do func(*Client, *Sandbox) error, rows []row) {
	t.Helper()
	for _, r := range rows {
		c, s := serve(t, answer{r.status, r.body, nil})
		c.retries = 0
		r.check(t, call, do(c, boxAt(c, s.url)))
	}
}

// dataplane is §3.6 in its order.
var dataplane = []row{
	{403, form("WriteError", "no"), ErrOperation, Error{Operation: "write", ErrorType: "WriteError"}},
	{500, form("ReadError", "no"), ErrOperation, Error{Operation: "read", ErrorType: "ReadError"}},
	{400, form("CommandError", "no shell"), ErrOperation, Error{Operation: "command", ErrorType: "CommandError"}},
	{400, form("CommandTimeout", "late"), ErrCommandTimeout, Error{Operation: "command", ErrorType: "CommandTimeout"}},
	{400, `{"detail":{"error":"CommandError","message":"late","reason":"CommandTimeout"}}`, ErrCommandTimeout, Error{Operation: "command", ErrorType: "CommandTimeout", Message: "late"}},
	{403, form("Forbidden", "no"), ErrOperation, Error{ErrorType: "PermissionDenied"}},
	{502, form("ConnectionError", "gone"), ErrConnection, Error{ErrorType: "ConnectionError"}},
	{502, `{}`, ErrClient, Error{}},
	{400, form("NotReady", "failed"), ErrNotReady, Error{ErrorType: "NotReady"}},
	{503, form("ServiceUnavailable", "booting"), ErrNotReady, Error{ErrorType: "ServiceUnavailable"}},
	{503, form("NotReady", "no"), ErrClient, Error{ErrorType: "NotReady"}},
	{400, form("FileNotFound", "none"), ErrNotFound, Error{ResourceType: "file", ErrorType: "FileNotFound"}},
	{401, form("Unauthorized", "no"), ErrAuthentication, Error{ErrorType: "Unauthorized"}},
	{429, `{"detail":"memory"}`, ErrQuotaExceeded, Error{QuotaType: "memory"}},
	{500, form("Oops", "no"), ErrClient, Error{ErrorType: "Oops"}},
	{400, otherForm, ErrClient, Error{Message: "missing"}},
	{422, listForm, ErrClient, Error{}},
}

func TestTheTimeoutOfACommandOverHTTP(t *testing.T) {
	c, s := serve(t, answer{400, form("CommandTimeout", "late"), nil})
	_, err := boxAt(c, s.url).Exec(t.Context(), RunOptions{Command: "x", Timeout: 7 * time.Second})
	wantEqual(t, "timeout", wantKind(t, err, ErrCommandTimeout).Timeout, 7*time.Second)
}

// §6.1: answers to an upgrade.
func TestStatusesOfUpgrades(t *testing.T) {
	for _, r := range []row{
		{200, `{}`, ErrConnection, Error{}},
		{400, form("InvalidRequest", "no"), ErrConnection, Error{ErrorType: "InvalidRequest"}},
		{401, form("Unauthorized", "no"), ErrAuthentication, Error{ErrorType: "Unauthorized"}},
		{403, `{}`, ErrAuthentication, Error{}},
		{404, `{}`, ErrConnection, Error{}},
		{426, `{}`, ErrConnection, Error{}},
		{429, `{}`, ErrRetryableConnection, Error{}},
		{500, `<html>`, ErrRetryableConnection, Error{}},
		{502, `{}`, ErrRetryableConnection, Error{}},
		{503, form("ServiceUnavailable", "booting"), ErrRetryableConnection, Error{ErrorType: "ServiceUnavailable", Message: "booting"}},
		{504, `{}`, ErrRetryableConnection, Error{}},
	} {
		c, s := serve(t, answer{r.status, r.body, nil})
		_, err := boxAt(c, s.url).Start(t.Context(), RunOptions{Command: "x"})
		r.check(t, "upgrade", err)
		if strings.Contains(err.Error(), "<") {
			t.Errorf("%d: an unstructured body is shown: %v", r.status, err)
		}
		if r.kind == ErrConnection || r.kind == ErrAuthentication {
			wantEqual(t, fmt.Sprint(r.status, " is asked"), len(s.asked()), 1)
		}
	}
}

// FuzzAnswers: no answer breaks the client, and each becomes an error with a
// kind and a text.
func FuzzAnswers(f *testing.F) {
	for _, r := range slices.Concat(generic, dataplane) {
		f.Add(r.status, []byte(r.body))
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		for _, m := range []mapper{mapGeneric, mapBoxCreate, mapDataplane, listing, of("x"), conflicting("x", ErrInUse)} {
			e := answerError("GET", "/p", status, http.Header{}, body, m)
			if e.Kind == nil || e.Error() == "" || !errors.Is(e, ErrClient) {
				t.Errorf("%d %q: got %+v", status, body, e)
			}
		}
	})
}
