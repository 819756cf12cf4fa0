package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file tests the calls on snapshots and registries.

func TestRequestsForSnapshotsAndRegistries(t *testing.T) {
	for _, x := range []struct {
		what, answer, want string
		do                 func(c *Client) (any, error)
		result             any
	}{
		{"create", `{"id":"i"}`, `POST /v2/sandboxes/snapshots {"name":"s","docker_image":"alpine","fs_capacity_bytes":7}`, func(c *Client) (any, error) {
			return c.CreateSnapshot(t.Context(), wire.SnapshotCreate{Name: "s", DockerImage: "alpine", FSCapacityBytes: 7})
		}, &wire.Snapshot{ID: "i", Status: wire.StatusBuilding}},
		{"create, by registry", `{}`, `POST /v2/sandboxes/snapshots {"name":"s","docker_image":"a","fs_capacity_bytes":7,"registry_id":"r","run_config":{}}`, func(c *Client) (any, error) {
			return c.CreateSnapshot(t.Context(), wire.SnapshotCreate{Name: "s", DockerImage: "a", FSCapacityBytes: 7, RegistryID: "r", RunConfig: &wire.RunConfig{}})
		}, nil},
		{"capture", `{"id":"i","status":"ready"}`, `POST /v2/sandboxes/boxes/b%20c/snapshot {"name":"s"}`, func(c *Client) (any, error) {
			return c.CaptureSnapshot(t.Context(), "b c", wire.SnapshotCapture{Name: "s"})
		}, &wire.Snapshot{ID: "i", Status: wire.StatusReady}},
		{"get", `{}`, `GET /v2/sandboxes/snapshots/i `, func(c *Client) (any, error) { return c.GetSnapshot(t.Context(), "i") }, nil},
		{"list", `{"snapshots":[{"id":"i","status":"failed"}],"offset":0}`, `GET /v2/sandboxes/snapshots?limit=500 `, func(c *Client) (any, error) {
			return c.ListSnapshots(t.Context(), ListQuery{})
		}, []wire.Snapshot{{ID: "i", Status: wire.StatusFailed}}},
		{"list some", `{}`, `GET /v2/sandboxes/snapshots?limit=2&name_contains=a%26b&offset=4 `, func(c *Client) (any, error) {
			return c.ListSnapshots(t.Context(), ListQuery{NameContains: "a&b", Limit: 2, Offset: 4})
		}, []wire.Snapshot(nil)},
		{"delete", ``, `DELETE /v2/sandboxes/snapshots/i `, func(c *Client) (any, error) { return nil, c.DeleteSnapshot(t.Context(), "i") }, nil},
		{"create registry", `{"id":"i"}`, `POST /v2/sandboxes/registries {"name":"r","url":"https://r","username":"u","password":"p"}`, func(c *Client) (any, error) {
			return c.CreateRegistry(t.Context(), wire.RegistryCreate{Name: "r", URL: "https://r", Username: "u", Password: "p"})
		}, &wire.Registry{ID: "i"}},
		{"get registry", `{}`, `GET /v2/sandboxes/registries/r `, func(c *Client) (any, error) { return c.GetRegistry(t.Context(), "r") }, nil},
		{"list registries", `{"registries":[{"name":"r"}]}`, `GET /v2/sandboxes/registries?limit=50 `, func(c *Client) (any, error) {
			return c.ListRegistries(t.Context(), ListQuery{})
		}, []wire.Registry{{Name: "r"}}},
		{"update registry", `{}`, `PATCH /v2/sandboxes/registries/r {"password":"q"}`, func(c *Client) (any, error) {
			return c.UpdateRegistry(t.Context(), "r", wire.RegistryUpdate{Password: new("q")})
		}, nil},
		{"delete registry", ``, `DELETE /v2/sandboxes/registries/r `, func(c *Client) (any, error) { return nil, c.DeleteRegistry(t.Context(), "r") }, nil},
	} {
		got := wantRequest(t, x.what, x.answer, x.want, x.do)
		if x.result != nil {
			wantEqual(t, x.what, got, x.result)
		}
	}
}

func TestStatusMapsOfSnapshotsAndRegistries(t *testing.T) {
	for call, x := range map[string]struct {
		do   func(*Client, *Sandbox) error
		rows []row
	}{
		"create": {func(c *Client, _ *Sandbox) error {
			_, err := c.CreateSnapshot(context.Background(), wire.SnapshotCreate{Name: "s"})
			return err
		}, over(row{404, `{}`, ErrNotFound, Error{}})},
		"capture": {func(c *Client, _ *Sandbox) error {
			_, err := c.CaptureSnapshot(context.Background(), "b", wire.SnapshotCapture{Name: "s"})
			return err
		}, over(row{404, `{}`, ErrNotFound, Error{ResourceType: "sandbox"}})},
		"get": {func(c *Client, _ *Sandbox) error {
			_, err := c.GetSnapshot(context.Background(), "i")
			return err
		}, over(row{404, `{}`, ErrNotFound, Error{ResourceType: "snapshot"}})},
		"wait": {func(c *Client, _ *Sandbox) error {
			_, err := c.WaitForSnapshot(context.Background(), "i", time.Hour, 0)
			return err
		}, over(row{404, `{}`, ErrNotFound, Error{ResourceType: "snapshot"}})},
		"list": {func(c *Client, _ *Sandbox) error {
			_, err := c.ListSnapshots(context.Background(), ListQuery{})
			return err
		}, over(row{404, `{}`, ErrAPI, Error{Message: "this server has no /v2/sandboxes/snapshots (Not Found)"}})},
		"delete": {func(c *Client, _ *Sandbox) error { return c.DeleteSnapshot(context.Background(), "i") },
			over(row{404, `{}`, ErrNotFound, Error{ResourceType: "snapshot"}})},
		"create registry": {func(c *Client, _ *Sandbox) error {
			_, err := c.CreateRegistry(context.Background(), wire.RegistryCreate{Name: "r"})
			return err
		}, over(row{409, `{}`, ErrAlreadyExists, Error{ResourceType: "registry"}})},
		"list registries": {func(c *Client, _ *Sandbox) error {
			_, err := c.ListRegistries(context.Background(), ListQuery{})
			return err
		},
			over(row{404, `{}`, ErrAPI, Error{}})},
		"update registry": {func(c *Client, _ *Sandbox) error {
			_, err := c.UpdateRegistry(context.Background(), "r", wire.RegistryUpdate{})
			return err
		}, over(row{404, `{}`, ErrNotFound, Error{ResourceType: "registry"}}, row{409, `{}`, ErrNameConflict, Error{ResourceType: "registry"}})},
		"delete registry": {func(c *Client, _ *Sandbox) error { return c.DeleteRegistry(context.Background(), "r") },
			over(row{404, `{}`, ErrNotFound, Error{ResourceType: "registry"}})},
	} {
		checkMap(t, call, x.do, x.rows)
	}
}

// §2.10: wait_for_snapshot.
func TestWaitForSnapshot(t *testing.T) {
	status := func(s string) answer {
		return answer{200, fmt.Sprintf(`{"id":"i","name":"s","status":%q,"status_message":"why"}`, s), nil}
	}
	c, s := serve(t, answer{200, `{}`, nil}, status("building"), status("ready"))
	snapshot, err := c.WaitForSnapshot(t.Context(), "i", time.Hour, 3*time.Second)
	if err != nil || snapshot.ID != "i" {
		t.Fatalf("got %+v, %v", snapshot, err)
	}
	wantEqual(t, "waits", s.slept(), []time.Duration{3 * time.Second, 3 * time.Second})
	wantEqual(t, "requests", s.methods(), "GET GET GET")

	c, s = serve(t, status("building"), status("failed"))
	_, err = c.WaitForSnapshot(t.Context(), "i", time.Hour, 0)
	e := wantKind(t, err, ErrCreation)
	wantEqual(t, "failed", e.Error()+" "+e.ResourceType, "why snapshot")
	wantEqual(t, "no interval is one of two seconds", s.slept(), []time.Duration{2 * time.Second})

	c, _ = serve(t, answer{200, `{"name":"s","status":"failed"}`, nil})
	_, err = c.WaitForSnapshot(t.Context(), "i", 0, 0)
	wantEqual(t, "failed without a reason", wantKind(t, err, ErrCreation).Error(), "snapshot s could not be made ready")

	c, s = serve(t, status("deleting"))
	_, err = c.WaitForSnapshot(t.Context(), "i", 0, time.Second)
	wantEqual(t, "last status", wantKind(t, err, ErrTimeout).LastStatus, "deleting")
	wantEqual(t, "looks without time", len(s.asked()), 1)

	inBubble(t, Options{}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{}`) }), func(t *testing.T, c *Client) {
		start := time.Now()
		_, err := c.WaitForSnapshot(t.Context(), "i", 5*time.Second, 2*time.Second)
		wantKind(t, err, ErrTimeout)
		wantEqual(t, "time", time.Since(start), 5*time.Second)
		why := errors.New("why")
		if _, err := c.WaitForSnapshot(after(t, time.Second, why), "i", time.Hour, time.Minute); err != why {
			t.Errorf("cancelled: %v", err)
		}
	})
}
