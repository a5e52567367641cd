package resp_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	"kvstore/actors/host"
	"kvstore/actors/shard"
	"kvstore/components/tracing"
	"kvstore/services/frontend"
)

// follower notes whom shards are told to follow.
type follower struct {
	frontend.Shards
	mu   sync.Mutex
	all  int         // commands and queries; guarded by mu
	ways []*host.Way // guarded by mu
}

func (f *follower) note(w *host.Way) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all++; w != nil {
		f.ways = append(f.ways, w)
	}
}

// taken are those since the last time.
func (f *follower) taken() (all int, ways []*host.Way) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all, ways = f.all, f.ways
	f.all, f.ways = 0, nil
	return all, ways
}

func (f *follower) Do(ctx context.Context, id string, cmds ...*shard.Command) {
	for _, c := range cmds {
		f.note(c.Follow)
	}
	f.Shards.Do(ctx, id, cmds...)
}

func (f *follower) Read(ctx context.Context, id string, queries ...*shard.Query) {
	for _, q := range queries {
		f.note(q.Follow)
	}
	f.Shards.Read(ctx, id, queries...)
}

func newFollowed(t *testing.T, cfg frontend.Config) (*rig, *follower) {
	t.Helper()
	f := &follower{}
	return newRig(t, rigConfig{Front: cfg, Wrap: func(in frontend.Shards) frontend.Shards {
		f.Shards = in
		return f
	}}), f
}

// TestFollowedOnce: of a request on many keys one part a shard is followed, and of who is followed nothing is left for those who come after.
func TestFollowedOnce(t *testing.T) {
	followed, f := newFollowed(t, frontend.Config{Tracer: tracing.New(tracing.NewQueue(), 1)})
	nobody, g := newFollowed(t, frontend.Config{})
	reads, writes := []string{"MGET"}, []string{"MSET"}
	for i := range 800 {
		k := strings.Repeat("k", 1+i)
		reads, writes = append(reads, k), append(writes, k, "1")
	}
	l, m := dial(t, followed.Addr), dial(t, nobody.Addr)
	for _, r := range []struct{ first, then []string }{{reads, writes}, {writes, reads}} {
		for range 5 { // it may be another processor's pool
			l.do(r.first...)
			if all, ways := f.taken(); all != 800 || len(ways) == 0 || len(ways) > 4 {
				t.Fatalf("%s: %d parts to 4 shards, of which %d are followed", r.first[0], all, len(ways))
			}
			m.do(r.then...)
			if all, ways := g.taken(); all != 800 || len(ways) > 0 {
				t.Fatalf("%s where nobody follows: %d parts, of which %d are followed", r.then[0], all, len(ways))
			}
		}
	}
}
