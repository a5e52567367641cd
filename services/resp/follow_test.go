package resp_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"kvstore/actors/host"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
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

// TestFollowedToTheEnd: an APPEND that has to be done anew by reading, when the next request is begun already, is followed as itself.
func TestFollowedToTheEnd(t *testing.T) {
	q := tracing.NewQueue()
	r, f := newFollowed(t, frontend.Config{InlineLimit: 1 << 10, Tracer: tracing.New(q, 1)})
	l := dial(t, r.Addr)
	l.do("SET", "a", strings.Repeat("v", 1000))
	f.taken()
	l.send(encode("APPEND", "a", strings.Repeat("w", 1000)) + encode("STRLEN", "a"))
	l.expect(":2000\r\n:2000\r\n")
	_, ways := f.taken()
	encoded, _, _ := q.Take(nil)
	var m tracepb.ScopeSpans
	must(t, proto.Unmarshal(encoded, &m))
	names := map[string]string{}
	for _, s := range m.Spans {
		names[string(s.SpanId)] = s.Name
	}
	calls := map[string]int{}
	for _, w := range ways {
		calls[names[string(w.Span[:])]]++
	}
	if calls["resp append"] != 3 || calls["resp strlen"] != 1 || len(ways) != 4 { // the append, its reading and its writing
		t.Errorf("calls of shards for %v", calls)
	}
}

// counts counts requests of all kinds as one.
type counts struct {
	mu    sync.Mutex
	kinds []kverr.Kind // guarded by mu; 0 = it went well
}

func (c *counts) Call(string, string, bool) frontend.Counter { return &counts{} }
func (c *counts) Operation(string, string) frontend.Counter  { return c }
func (c *counts) Refused(kverr.Kind)                         {}
func (c *counts) Done(n int, took time.Duration)             { c.Failed(n, took, 0) }

func (c *counts) Failed(n int, _ time.Duration, kind kverr.Kind) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kinds = append(c.kinds, slices.Repeat([]kverr.Kind{kind}, n)...)
}

// TestWhatFailed: requests are counted by what their replies tell, whatever the values look like that were sent on the way.
func TestWhatFailed(t *testing.T) {
	c, s := &counts{}, &slow{}
	r := newRig(t, rigConfig{Front: frontend.Config{Meter: c}, Wrap: func(in frontend.Shards) frontend.Shards {
		s.Shards = in
		return s
	}})
	l := dial(t, r.Addr)
	minus := strings.Repeat("-", 3<<20)
	long := bulk(minus, true)
	for _, step := range []struct {
		args []string
		want string
		kind kverr.Kind
	}{
		{[]string{"SET", "long", minus}, "+OK\r\n", 0},
		{[]string{"GET", "long"}, long, 0},
		{[]string{"MGET", "long", "long", "no"}, "*3\r\n" + long + long + "$-1\r\n", 0},
		{[]string{"GETSET", "minus", "-"}, "$-1\r\n", 0},
		{[]string{"GETSET", "minus", "-"}, "$1\r\n-\r\n", 0},
		{[]string{"INCR", "minus"}, "-ERR value is not an integer or out of range\r\n", kverr.InvalidArgument},
		{[]string{"NONSENSE"}, "-ERR unknown command", kverr.InvalidArgument},
		{[]string{"SET", "a"}, "-ERR wrong number of arguments for 'set' command\r\n", kverr.InvalidArgument},
		{[]string{"GET", ""}, "-ERR INVALID_ARGUMENT", kverr.InvalidArgument},
		{[]string{"EXEC"}, "-ERR EXEC without MULTI\r\n", kverr.InvalidArgument},
		{[]string{"DOWN"}, "-ERR unknown command", kverr.InvalidArgument},
		{[]string{"GET", "a"}, "-TRYAGAIN m\r\n", kverr.Unavailable},
		{[]string{"MGET", "a", "b"}, "*2\r\n-TRYAGAIN m\r\n-TRYAGAIN m\r\n", kverr.Unavailable},
		{[]string{"SET", "a", "1"}, "-TRYAGAIN m\r\n", kverr.Unavailable},
		{[]string{"GETSET", "a", "1"}, "-TRYAGAIN m\r\n", kverr.Unavailable},
		{[]string{"PING"}, "+PONG\r\n", 0},
	} {
		if step.args[0] == "DOWN" {
			s.refuse.Store(&kverr.Error{Kind: kverr.Unavailable, Message: "m"})
		}
		if got := l.do(step.args...); !strings.HasPrefix(got, step.want) {
			t.Fatalf("%.60q answers %.100q, want %.100q", step.args, got, step.want)
		}
		l.do("PING") // by now it is counted
		c.mu.Lock()
		if len(c.kinds) != 2 || c.kinds[0] != step.kind || c.kinds[1] != 0 {
			t.Errorf("%.60q is counted as %v, want %v", step.args, c.kinds, step.kind)
		}
		c.kinds = nil
		c.mu.Unlock()
	}
}
