package node

import (
	"strings"
	"testing"

	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// TestMerged: what is told of a shard is what its host tells, whoever else has known it; one that nobody serves is not said to sleep.
func TestMerged(t *testing.T) {
	shard := func(state string, epoch uint64, reason string) *kvv1.StatusResponse {
		return &kvv1.StatusResponse{Engine: "redis", Shards: []*kvv1.StatusResponse_Shard{{Id: "a-0", State: state, Epoch: epoch, Reason: reason}}}
	}
	none := &kvv1.StatusResponse{Engine: "redis"}
	for name, c := range map[string]struct {
		told []*kvv1.StatusResponse
		lost string
		want string
	}{
		"served":                          {told: []*kvv1.StatusResponse{shard("active", 3, ""), none}, want: "active "},
		"served, and lost by another":     {told: []*kvv1.StatusResponse{shard("asleep", 0, "moved"), shard("active", 3, "")}, want: "active "},
		"two believe that they serve it":  {told: []*kvv1.StatusResponse{shard("active", 3, ""), shard("active", 2, "")}, want: "active "},
		"failed, and lost by another":     {told: []*kvv1.StatusResponse{shard("asleep", 0, "moved"), shard("failed", 0, "damaged")}, want: "failed damaged"},
		"failed, and then lost":           {told: []*kvv1.StatusResponse{shard("failed", 0, "damaged"), shard("asleep", 0, "moved")}, want: "failed damaged"},
		"being opened, and not found yet": {told: []*kvv1.StatusResponse{shard("asleep", 0, "moved"), shard("activating", 0, "")}, lost: "deadline", want: "activating "},
		"asleep":                          {told: []*kvv1.StatusResponse{shard("asleep", 0, "")}, want: "asleep "},
		"not found, and lost by one":      {told: []*kvv1.StatusResponse{shard("asleep", 0, "moved")}, lost: "nobody tells", want: "failed nobody tells"},
		"its host is silent":              {told: []*kvv1.StatusResponse{nil, none}, lost: "host b does not answer", want: "failed host b does not answer"},
		"nobody knows it":                 {told: []*kvv1.StatusResponse{none}, lost: "nobody tells", want: "failed nobody tells"},
	} {
		t.Run(name, func(t *testing.T) {
			r := merged([]string{"a-0"}, []string{c.lost}, c.told)
			if len(r.Shards) != 1 || r.Shards[0].State+" "+r.Shards[0].Reason != c.want {
				t.Fatalf("%v, want one shard %q", r.Shards, strings.TrimSpace(c.want))
			}
		})
	}
}
