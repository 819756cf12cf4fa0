package client

import (
	"context"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/wire"
)

// This file tests the calls on volumes and pools.

func TestRequestsForVolumesAndPools(t *testing.T) {
	for _, x := range []struct {
		what, answer, want string
		do                 func(c *Client) (any, error)
		result             any
	}{
		{"create volume", `{"name":"v","size":"1Gi"}`, `POST /v2/sandboxes/volumes {"name":"v","size":"1Gi","wait_for_ready":true,"timeout":60}`, func(c *Client) (any, error) {
			return c.CreateVolume(t.Context(), wire.VolumeCreate{Name: "v", Size: "1Gi"})
		}, &wire.Volume{Name: "v", Size: "1Gi", StorageClass: "default"}},
		{"create volume, patiently", `{}`, `POST /v2/sandboxes/volumes {"name":"v","size":"1Gi","wait_for_ready":true,"timeout":90}`, func(c *Client) (any, error) {
			return c.CreateVolume(t.Context(), wire.VolumeCreate{Name: "v", Size: "1Gi", Timeout: 90})
		}, &wire.Volume{Size: "unknown", StorageClass: "default"}},
		{"get volume", `{"id":"i"}`, `GET /v2/sandboxes/volumes/a%2Fb `, func(c *Client) (any, error) {
			return c.GetVolume(t.Context(), "a/b")
		}, &wire.Volume{ID: "i", Size: "unknown", StorageClass: "default"}},
		{"list volumes", `{"volumes":[{"name":"v"}]}`, `GET /v2/sandboxes/volumes `, func(c *Client) (any, error) {
			return c.ListVolumes(t.Context())
		}, []wire.Volume{{Name: "v", Size: "unknown", StorageClass: "default"}}},
		{"list no volumes", `{}`, `GET /v2/sandboxes/volumes `, func(c *Client) (any, error) {
			return c.ListVolumes(t.Context())
		}, []wire.Volume(nil)},
		{"rename volume", `{}`, `PATCH /v2/sandboxes/volumes/v {"name":"w"}`, func(c *Client) (any, error) {
			return c.UpdateVolume(t.Context(), "v", wire.VolumeUpdate{Name: new("w")})
		}, nil},
		{"grow volume", `{}`, `PATCH /v2/sandboxes/volumes/v {"size":"2Gi"}`, func(c *Client) (any, error) {
			return c.UpdateVolume(t.Context(), "v", wire.VolumeUpdate{Size: new("2Gi")})
		}, nil},
		{"update nothing of a volume", `{}`, `GET /v2/sandboxes/volumes/v `, func(c *Client) (any, error) {
			return c.UpdateVolume(t.Context(), "v", wire.VolumeUpdate{})
		}, nil},
		{"delete volume", ``, `DELETE /v2/sandboxes/volumes/v `, func(c *Client) (any, error) {
			return nil, c.DeleteVolume(t.Context(), "v")
		}, nil},
		{"create pool", `{"name":"p","replicas":2}`, `POST /v2/sandboxes/pools {"name":"p","template_name":"t","replicas":2,"wait_for_ready":true,"timeout":30}`, func(c *Client) (any, error) {
			return c.CreatePool(t.Context(), wire.PoolCreate{Name: "p", TemplateName: "t", Replicas: 2})
		}, &wire.Pool{Name: "p", Replicas: 2}},
		{"get pool", `{}`, `GET /v2/sandboxes/pools/p `, func(c *Client) (any, error) {
			return c.GetPool(t.Context(), "p")
		}, &wire.Pool{}},
		{"list pools", `{"pools":[{"name":"p"}]}`, `GET /v2/sandboxes/pools `, func(c *Client) (any, error) {
			return c.ListPools(t.Context())
		}, []wire.Pool{{Name: "p"}}},
		{"pause pool", `{}`, `PATCH /v2/sandboxes/pools/p {"replicas":0}`, func(c *Client) (any, error) {
			return c.UpdatePool(t.Context(), "p", wire.PoolUpdate{Replicas: new(0)})
		}, nil},
		{"update nothing of a pool", `{}`, `GET /v2/sandboxes/pools/p `, func(c *Client) (any, error) {
			return c.UpdatePool(t.Context(), "p", wire.PoolUpdate{})
		}, nil},
		{"delete pool", ``, `DELETE /v2/sandboxes/pools/p `, func(c *Client) (any, error) {
			return nil, c.DeletePool(t.Context(), "p")
		}, nil},
	} {
		got := wantRequest(t, x.what, x.answer, x.want, x.do)
		if x.result != nil {
			wantEqual(t, x.what, got, x.result)
		}
	}
}

// §3.5, and §2.1 and §2.3 for what is not creation.
func TestStatusMapsOfVolumesAndPools(t *testing.T) {
	for call, x := range map[string]struct {
		do   func(*Client, *Sandbox) error
		rows []row
	}{
		"create volume": {
			func(c *Client, _ *Sandbox) error {
				_, err := c.CreateVolume(context.Background(), wire.VolumeCreate{Name: "v"})
				return err
			},
			over(
				row{503, `{}`, ErrCreation, Error{ResourceType: "volume", ErrorType: "VolumeProvisioning"}},
				row{503, form("Full", "no room"), ErrCreation, Error{ResourceType: "volume", ErrorType: "VolumeProvisioning", Message: "no room"}},
				row{504, `{}`, ErrTimeout, Error{ResourceType: "volume"}},
				row{409, form("Conflict", "taken"), ErrAlreadyExists, Error{ResourceType: "volume", ErrorType: "Conflict"}},
				row{404, `{}`, ErrNotFound, Error{}},
			),
		},
		"get volume": {
			func(c *Client, _ *Sandbox) error { _, err := c.GetVolume(context.Background(), "v"); return err },
			over(row{404, `{}`, ErrNotFound, Error{ResourceType: "volume"}}),
		},
		"list volumes": {
			func(c *Client, _ *Sandbox) error { _, err := c.ListVolumes(context.Background()); return err },
			over(row{404, `{}`, ErrAPI, Error{Message: "this server has no /v2/sandboxes/volumes (Not Found)"}}),
		},
		"update volume": {
			func(c *Client, _ *Sandbox) error {
				_, err := c.UpdateVolume(context.Background(), "v", wire.VolumeUpdate{Size: new("1Gi")})
				return err
			},
			over(
				row{404, `{}`, ErrNotFound, Error{ResourceType: "volume"}},
				row{400, form("ResizeError", "cannot shrink"), ErrValidation, Error{ErrorType: "VolumeResize", Message: "cannot shrink"}},
				row{400, `{}`, ErrValidation, Error{ErrorType: "VolumeResize"}},
				row{409, form("Conflict", "taken"), ErrNameConflict, Error{ResourceType: "volume", ErrorType: "Conflict"}},
			),
		},
		"delete volume": {
			func(c *Client, _ *Sandbox) error { return c.DeleteVolume(context.Background(), "v") },
			over(
				row{404, `{}`, ErrNotFound, Error{ResourceType: "volume"}},
				row{409, form("Conflict", "mounted"), ErrInUse, Error{ResourceType: "volume", ErrorType: "Conflict"}},
			),
		},
		"create pool": {
			func(c *Client, _ *Sandbox) error {
				_, err := c.CreatePool(context.Background(), wire.PoolCreate{Name: "p"})
				return err
			},
			over(
				row{400, form("TemplateNotFound", "none"), ErrNotFound, Error{ResourceType: "template", ErrorType: "TemplateNotFound"}},
				row{400, form("ValidationError", "has volumes"), ErrValidation, Error{ErrorType: "ValidationError", Message: "has volumes"}},
				row{400, form("Oops", "no"), ErrClient, Error{ErrorType: "Oops"}},
				row{409, `{"detail":"taken"}`, ErrAlreadyExists, Error{ResourceType: "pool", Message: "taken"}},
				row{504, form("Timeout", "late"), ErrTimeout, Error{ResourceType: "pool", ErrorType: "Timeout"}},
				row{404, `{}`, ErrNotFound, Error{ResourceType: "pool"}},
			),
		},
		"get pool": {
			func(c *Client, _ *Sandbox) error { _, err := c.GetPool(context.Background(), "p"); return err },
			over(row{404, `{}`, ErrNotFound, Error{ResourceType: "pool"}}),
		},
		"list pools": {
			func(c *Client, _ *Sandbox) error { _, err := c.ListPools(context.Background()); return err },
			over(row{404, `{}`, ErrAPI, Error{}}),
		},
		"update pool": {
			func(c *Client, _ *Sandbox) error {
				_, err := c.UpdatePool(context.Background(), "p", wire.PoolUpdate{Replicas: new(3)})
				return err
			},
			over(
				row{404, `{}`, ErrNotFound, Error{ResourceType: "pool"}},
				row{400, form("ValidationError", "too many"), ErrValidation, Error{ErrorType: "ValidationError"}},
				row{409, `{}`, ErrNameConflict, Error{ResourceType: "pool"}},
				row{504, `{}`, ErrTimeout, Error{ResourceType: "pool"}},
			),
		},
		"delete pool": {
			func(c *Client, _ *Sandbox) error { return c.DeletePool(context.Background(), "p") },
			over(row{404, `{}`, ErrNotFound, Error{ResourceType: "pool"}}),
		},
	} {
		checkMap(t, call, x.do, x.rows)
	}
}

// §4.1, as for templates and sandboxes: what is in the way may be our own.
func TestAVolumeOrPoolWhoseAnswerWasLost(t *testing.T) {
	volume := func(c *Client) error {
		_, err := c.CreateVolume(t.Context(), wire.VolumeCreate{Name: "a", Size: "1Gi"})
		return err
	}
	pool := func(c *Client) error {
		_, err := c.CreatePool(t.Context(), wire.PoolCreate{Name: "a", TemplateName: "t", Replicas: 2})
		return err
	}
	lost, taken := answer{502, "", nil}, answer{409, form("Conflict", "taken"), nil}
	for what, x := range map[string]struct {
		do      func(*Client) error
		answers []answer
		kind    *Kind
	}{
		"our volume":                 {volume, []answer{lost, taken, {200, `{"size":"1Gi"}`, nil}}, nil},
		"another's volume":           {volume, []answer{lost, taken, {200, `{"size":"2Gi"}`, nil}}, ErrAlreadyExists},
		"a volume and nothing lost":  {volume, []answer{taken, {200, `{"size":"1Gi"}`, nil}}, ErrAlreadyExists},
		"our pool":                   {pool, []answer{lost, taken, {200, `{"template_name":"t","replicas":2}`, nil}}, nil},
		"another's pool":             {pool, []answer{lost, taken, {200, `{"template_name":"t","replicas":1}`, nil}}, ErrAlreadyExists},
		"another template's pool":    {pool, []answer{lost, taken, {200, `{"template_name":"u","replicas":2}`, nil}}, ErrAlreadyExists},
		"a volume, deleted twice":    {func(c *Client) error { return c.DeleteVolume(t.Context(), "a") }, []answer{lost, {404, "", nil}}, nil},
		"a pool, deleted twice":      {func(c *Client) error { return c.DeletePool(t.Context(), "a") }, []answer{lost, {404, "", nil}}, nil},
		"a snapshot, deleted twice":  {func(c *Client) error { return c.DeleteSnapshot(t.Context(), "a") }, []answer{lost, {404, "", nil}}, nil},
		"a registry, deleted twice":  {func(c *Client) error { return c.DeleteRegistry(t.Context(), "a") }, []answer{lost, {404, "", nil}}, nil},
		"a volume that is not there": {func(c *Client) error { return c.DeleteVolume(t.Context(), "a") }, []answer{{404, "", nil}}, ErrNotFound},
		"a registry is not sent again": {func(c *Client) error {
			_, err := c.CreateRegistry(t.Context(), wire.RegistryCreate{Name: "a"})
			return err
		}, []answer{lost, {200, `{}`, nil}}, ErrClient},
	} {
		c, _ := serve(t, x.answers...)
		err := x.do(c)
		if x.kind != nil {
			wantKind(t, err, x.kind)
		} else if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// The server's wait, and 30 seconds for its answer.
func TestCreationsWaitLongerThanTheServer(t *testing.T) {
	stuck := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	inBubble(t, Options{MaxRetries: new(int)}, stuck, func(t *testing.T, c *Client) {
		for _, x := range []struct {
			what string
			do   func() error
			want time.Duration
		}{
			{"volume", func() error { _, err := c.CreateVolume(t.Context(), wire.VolumeCreate{Name: "v"}); return err }, 90 * time.Second},
			{"volume, impatient", func() error {
				_, err := c.CreateVolume(t.Context(), wire.VolumeCreate{Name: "v", Timeout: -60})
				return err
			}, 30 * time.Second},
			{"pool", func() error {
				_, err := c.CreatePool(t.Context(), wire.PoolCreate{Name: "p", Timeout: 300})
				return err
			}, 330 * time.Second},
			{"snapshot", func() error {
				_, err := c.CreateSnapshot(t.Context(), wire.SnapshotCreate{Name: "s"})
				return err
			}, 10 * time.Second},
		} {
			start := time.Now()
			wantKind(t, x.do(), ErrConnection)
			wantEqual(t, x.what, time.Since(start), x.want)
		}
	})
}
