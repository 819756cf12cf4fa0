package main

import (
	"errors"
	"testing"

	"github.com/sbx-star/sbx-star/server"
	"github.com/sbx-star/sbx-star/workflow"
)

func TestQuotaFlag(t *testing.T) {
	q, err := quotaOf(map[string]int64{"sandboxes": 1, "volumes": 2, "volume-bytes": 1 << 40, "pools": 3, "snapshots": 4})
	if want := (server.Quota{Sandboxes: 1, Volumes: 2, VolumeBytes: 1 << 40, Pools: 3, Snapshots: 4}); err != nil || q != want {
		t.Errorf("got %+v, %v", q, err)
	}
	if q, err := quotaOf(nil); err != nil || q != (server.Quota{}) {
		t.Errorf("got %+v, %v", q, err)
	}
	for _, bad := range []map[string]int64{{"sandboxes": 0}, {"volume-bytes": -1}, {"pools": 1 << 40}, {"cats": 1}} {
		_, err := quotaOf(bad)
		if _, ok := errors.AsType[*workflow.UsageError](err); !ok {
			t.Errorf("%v is %v", bad, err)
		}
	}
}
