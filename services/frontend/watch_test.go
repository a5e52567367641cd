package frontend

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kvstore/actors/fanout"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// watched is a Watch stream as a test reads it.
type watched struct {
	t      *testing.T
	stream grpc.ServerStreamingClient[kvv1.WatchResponse]
	token  []byte // the last
	events []*kvv1.WatchEvent
}

func (r *rig) watch(ctx context.Context, t *testing.T, req *kvv1.WatchRequest) *watched {
	t.Helper()
	stream, err := r.KV.Watch(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	return &watched{t: t, stream: stream}
}

// until reads until a control comes, and returns the events before it.
func (w *watched) until(c kvv1.WatchControl) []*kvv1.WatchEvent {
	w.t.Helper()
	for {
		resp := w.next()
		if resp.Control == c {
			events := w.events
			w.events = nil
			return events
		}
	}
}

func (w *watched) next() *kvv1.WatchResponse {
	w.t.Helper()
	resp, err := w.stream.Recv()
	if err != nil {
		w.t.Fatal(err)
	}
	if resp.Token != nil {
		w.token = resp.Token
	}
	w.events = append(w.events, resp.Events...)
	return resp
}

// take reads until there are so many events.
func (w *watched) take(n int) []*kvv1.WatchEvent {
	w.t.Helper()
	for len(w.events) < n {
		w.next()
	}
	events := w.events[:n]
	w.events = w.events[n:]
	return events
}

func describe(events []*kvv1.WatchEvent) string {
	var all []string
	for _, e := range events {
		s := strings.TrimPrefix(e.Type.String(), "WATCH_EVENT_TYPE_") + " " + string(e.Key)
		if e.Type == kvv1.WatchEventType_WATCH_EVENT_TYPE_PUT {
			s += "=" + string(e.Value)
		}
		for flag, is := range map[string]bool{" created": e.Created, " initial": e.Initial, " left out": e.ValueLeftOut} {
			if is {
				s += flag
			}
		}
		if e.PrevValue != nil {
			s += fmt.Sprintf(" was %q", e.PrevValue)
		}
		all = append(all, s)
	}
	return strings.Join(all, ", ")
}

func (r *rig) mustPut(ctx context.Context, t *testing.T, key, value string, ttlMS int64) *kvv1.PutResponse {
	t.Helper()
	resp, err := r.KV.Put(ctx, &kvv1.PutRequest{Put: &kvv1.PutOp{Key: []byte(key), Value: []byte(value), TtlMs: ttlMS}})
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func (r *rig) mustDelete(ctx context.Context, t *testing.T, key string) {
	t.Helper()
	if _, err := r.KV.Delete(ctx, &kvv1.DeleteRequest{Delete: &kvv1.DeleteOp{Key: []byte(key)}}); err != nil {
		t.Fatal(err)
	}
}

func wantEvents(t *testing.T, got []*kvv1.WatchEvent, want string) {
	t.Helper()
	if d := describe(got); d != want {
		t.Fatalf("told\n\t%s\nwant\n\t%s", d, want)
	}
}

// TestWatchKey: a key from now on; each kind of change, with what was there before.
func TestWatchKey(t *testing.T) {
	r, ctx := newRig(t, Config{}, nil), testContext(t)
	r.mustPut(ctx, t, "k", "before", 0)
	w := r.watch(ctx, t, &kvv1.WatchRequest{Target: &kvv1.WatchRequest_Key{Key: []byte("k")}, Mode: kvv1.WatchMode_WATCH_MODE_ALL, PrevValue: true})
	wantEvents(t, w.until(kvv1.WatchControl_WATCH_CONTROL_STARTED), "")
	r.mustPut(ctx, t, "k2", "not watched", 0)
	put := r.mustPut(ctx, t, "k", "1", 0)
	r.mustPut(ctx, t, "k", "", 0)
	r.mustDelete(ctx, t, "k")
	r.mustPut(ctx, t, "k", "short", 1)
	events := w.take(5)
	wantEvents(t, events, `PUT k=1 was "before", PUT k= was "1", DELETE k was "", PUT k=short created, EXPIRE k was "short"`)
	if events[0].Version != put.Result.Version || events[1].PrevVersion != put.Result.Version || events[0].Size != 1 {
		t.Fatalf("%+v after %+v", events[0], put)
	}
	if !slices.IsSortedFunc(events, func(a, b *kvv1.WatchEvent) int { return int(a.Version) - int(b.Version) }) {
		t.Fatal("versions are not in order")
	}
}

// TestWatchPrefixWithState: what is there, SYNCED, then changes, over all shards; and the same from a token.
func TestWatchPrefixWithState(t *testing.T) {
	r, ctx := newRig(t, Config{}, nil), testContext(t)
	const n = 300
	for i := range n {
		r.mustPut(ctx, t, fmt.Sprintf("a/%03d", i), fmt.Sprint(i), 0)
	}
	r.mustPut(ctx, t, "b", "x", 0)
	w := r.watch(ctx, t, &kvv1.WatchRequest{
		Target: &kvv1.WatchRequest_Prefix{Prefix: []byte("a/")}, From: &kvv1.WatchRequest_InitialState{InitialState: true}, KeysOnly: true,
	})
	state := w.until(kvv1.WatchControl_WATCH_CONTROL_SYNCED)
	seen := map[string]bool{}
	for _, e := range state {
		if !e.Initial || e.Value != nil || e.Size == 0 || seen[string(e.Key)] || !strings.HasPrefix(string(e.Key), "a/") {
			t.Fatalf("%+v", e)
		}
		seen[string(e.Key)] = true
	}
	if len(seen) != n {
		t.Fatalf("the state has %d keys, want %d", len(seen), n)
	}
	r.mustPut(ctx, t, "a/007", "new", 0)
	wantEvents(t, w.take(1), "PUT a/007=")

	// Nobody watches while this happens.
	token := w.token
	r.mustDelete(ctx, t, "a/007")
	r.mustPut(ctx, t, "b", "y", 0)
	again := r.watch(ctx, t, &kvv1.WatchRequest{From: &kvv1.WatchRequest_Token{Token: token}, Mode: kvv1.WatchMode_WATCH_MODE_ALL})
	got := again.until(kvv1.WatchControl_WATCH_CONTROL_STARTED)
	for len(got) < 2 {
		got = append(got, again.take(1)...)
	}
	slices.SortFunc(got, func(a, b *kvv1.WatchEvent) int { return strings.Compare(string(a.Key), string(b.Key)) })
	wantEvents(t, got, "DELETE a/007, PUT b=y")
}

// TestWatchFromList: a watch from a list's token tells what came after its first page.
func TestWatchFromList(t *testing.T) {
	r, ctx := newRig(t, Config{}, nil), testContext(t)
	r.mustPut(ctx, t, "a", "1", 0)
	r.mustPut(ctx, t, "b", "1", 0)
	page, err := r.KV.List(ctx, &kvv1.ListRequest{PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	r.mustPut(ctx, t, "b", "2", 0)
	header := r.mustPut(ctx, t, "c", "1", 0).Header
	r.mustPut(ctx, t, "c", "2", 0)
	w := r.watch(ctx, t, &kvv1.WatchRequest{From: &kvv1.WatchRequest_Token{Token: page.WatchToken}, Mode: kvv1.WatchMode_WATCH_MODE_ALL})
	events := w.take(3)
	slices.SortStableFunc(events, func(a, b *kvv1.WatchEvent) int { return strings.Compare(string(a.Key), string(b.Key)) })
	wantEvents(t, events, "PUT b=2, PUT c=1 created, PUT c=2")
	// A write's own token.
	w = r.watch(ctx, t, &kvv1.WatchRequest{Target: &kvv1.WatchRequest_Key{Key: []byte("c")}, From: &kvv1.WatchRequest_Token{Token: header.Token}})
	wantEvents(t, w.take(1), "PUT c=2")
}

// TestWatchStateHasNoTokens: before SYNCED nothing has a token. Who went on from one would have the state, and never be told that it is all.
func TestWatchStateHasNoTokens(t *testing.T) {
	r, ctx := newRig(t, Config{}, nil), testContext(t)
	for i := range 100 {
		r.mustPut(ctx, t, fmt.Sprint("k", i), "v", 0)
	}
	w := r.watch(ctx, t, &kvv1.WatchRequest{From: &kvv1.WatchRequest_InitialState{InitialState: true}})
	for resp := w.next(); resp.Control != kvv1.WatchControl_WATCH_CONTROL_SYNCED; resp = w.next() {
		if resp.Token != nil {
			t.Fatalf("%d events of the state came with a token", len(resp.Events))
		}
	}
	if len(w.events) != 100 || w.token == nil {
		t.Errorf("SYNCED after %d events of 100, token %v", len(w.events), w.token)
	}
}

// absent is shards of which one cannot be watched just now.
type absent struct {
	Shards
	id atomic.Pointer[string]
}

func (a *absent) Follower(ctx context.Context) (fanout.Follower, error) {
	f, err := a.Shards.Follower(ctx)
	return &absentFollower{f, a.id.Load()}, err
}

type absentFollower struct {
	fanout.Follower
	id *string
}

func (a *absentFollower) Add(id uint64, w *fanout.Watch, credit int64, starts []fanout.Start) {
	if a.id != nil {
		starts = slices.DeleteFunc(slices.Clone(starts), func(s fanout.Start) bool { return s.Shard == *a.id })
	}
	a.Follower.Add(id, w, credit, starts)
}

// TestWatchFromTokenWithoutAShard: a watch that goes on from a token tells how far it has come from its first event on, also while one of the
// shards cannot be reached: a client that goes on from there once more is told nothing twice, and what that shard has to tell.
func TestWatchFromTokenWithoutAShard(t *testing.T) {
	shards := new(absent)
	r, ctx := newRig(t, Config{}, func(s Shards) Shards { shards.Shards = s; return shards }), testContext(t)
	ns, err := r.Server.namespace(ctx, "", "", kvv1.NamespaceKind_NAMESPACE_KIND_KV)
	if err != nil {
		t.Fatal(err)
	}
	here, there := "a", ""
	for i := 0; there == "" || ns.ShardOf([]byte(there)) == ns.ShardOf([]byte(here)); i++ {
		there = fmt.Sprintf("b%d", i)
	}
	w := r.watch(ctx, t, &kvv1.WatchRequest{Mode: kvv1.WatchMode_WATCH_MODE_ALL})
	w.until(kvv1.WatchControl_WATCH_CONTROL_STARTED)
	r.mustPut(ctx, t, here, "1", 0)
	r.mustPut(ctx, t, there, "1", 0)

	shards.id.Store(&ns.ShardOf([]byte(there)).ID)
	again := r.watch(ctx, t, &kvv1.WatchRequest{Mode: kvv1.WatchMode_WATCH_MODE_ALL, From: &kvv1.WatchRequest_Token{Token: w.token}})
	wantEvents(t, again.take(1), "PUT a=1 created")
	if again.token == nil {
		t.Fatal("an event came without a token")
	}
	shards.id.Store(nil)
	r.mustPut(ctx, t, here, "2", 0)
	last := r.watch(ctx, t, &kvv1.WatchRequest{Mode: kvv1.WatchMode_WATCH_MODE_ALL, From: &kvv1.WatchRequest_Token{Token: again.token}})
	events := last.take(2)
	slices.SortFunc(events, func(a, b *kvv1.WatchEvent) int { return strings.Compare(string(a.Key), string(b.Key)) })
	wantEvents(t, events, "PUT a=2, PUT "+there+"=1 created")
}

// TestWatchValues: values that lie apart come with their events up to 1 MiB; a transaction comes in one response.
func TestWatchValues(t *testing.T) {
	r, ctx := newRig(t, Config{}, nil), testContext(t)
	w := r.watch(ctx, t, &kvv1.WatchRequest{Mode: kvv1.WatchMode_WATCH_MODE_ALL})
	w.until(kvv1.WatchControl_WATCH_CONTROL_STARTED)
	for _, size := range []int{1 << 10, 1<<10 + 1, 100 << 10, 1 << 20, 1<<20 + 1} {
		value := strings.Repeat("v", size)
		r.mustPut(ctx, t, "k", value, 0)
		e := w.take(1)[0]
		if left := size > 1<<20; e.Size != int64(size) || e.ValueLeftOut != left || !left && string(e.Value) != value {
			t.Fatalf("%d bytes: event of %d bytes with a value of %d, left out %v", size, e.Size, len(e.Value), e.ValueLeftOut)
		}
	}
	ops := []*kvv1.TransactionRequest_Op{}
	for _, k := range []string{"{t}a", "{t}b", "{t}c"} {
		ops = append(ops, &kvv1.TransactionRequest_Op{Op: &kvv1.TransactionRequest_Op_Put{Put: &kvv1.PutOp{Key: []byte(k), Value: []byte(strings.Repeat("x", 1000))}}})
	}
	if _, err := r.KV.Transaction(ctx, &kvv1.TransactionRequest{Ops: ops}); err != nil {
		t.Fatal(err)
	}
	if resp := w.next(); len(resp.Events) != 3 || resp.Events[0].Version != resp.Events[2].Version {
		t.Fatalf("a transaction is told as %v", resp)
	}
}

// TestWatchersOfOneKey all get every event.
func TestWatchersOfOneKey(t *testing.T) {
	r, ctx := newRig(t, Config{}, nil), testContext(t)
	const watchers, writes = 50, 40
	var all []*watched
	for range watchers {
		w := r.watch(ctx, t, &kvv1.WatchRequest{Target: &kvv1.WatchRequest_Key{Key: []byte("hot")}, Mode: kvv1.WatchMode_WATCH_MODE_ALL})
		w.until(kvv1.WatchControl_WATCH_CONTROL_STARTED)
		all = append(all, w)
	}
	var writing sync.WaitGroup
	writing.Go(func() {
		for i := range writes {
			if _, err := r.KV.Put(ctx, &kvv1.PutRequest{Put: &kvv1.PutOp{Key: []byte("hot"), Value: fmt.Append(nil, i)}}); err != nil {
				t.Error(err)
			}
		}
	})
	for _, w := range all {
		for i, e := range w.take(writes) {
			if string(e.Value) != fmt.Sprint(i) {
				t.Fatalf("event %d has value %s", i, e.Value)
			}
		}
	}
	writing.Wait()
}

// TestWatchRefusals: what is wrong with a request is told, and by which field.
func TestWatchRefusals(t *testing.T) {
	r, ctx := newRig(t, Config{MaxWatches: 2}, nil), testContext(t)
	token := r.mustPut(ctx, t, "k", "v", 0).Header.Token
	other := append([]byte(nil), token...)
	other[5]++
	for name, c := range map[string]struct {
		req  *kvv1.WatchRequest
		code codes.Code
		says string
	}{
		"no key":           {&kvv1.WatchRequest{Target: &kvv1.WatchRequest_Key{}}, codes.InvalidArgument, "key"},
		"long prefix":      {&kvv1.WatchRequest{Target: &kvv1.WatchRequest_Prefix{Prefix: make([]byte, 1025)}}, codes.InvalidArgument, "prefix"},
		"no such mode":     {&kvv1.WatchRequest{Mode: 7}, codes.InvalidArgument, "mode"},
		"state false":      {&kvv1.WatchRequest{From: &kvv1.WatchRequest_InitialState{}}, codes.InvalidArgument, "initial_state"},
		"token cut":        {&kvv1.WatchRequest{From: &kvv1.WatchRequest_Token{Token: token[:len(token)-1]}}, codes.InvalidArgument, "token"},
		"token of another": {&kvv1.WatchRequest{From: &kvv1.WatchRequest_Token{Token: other}}, codes.InvalidArgument, "another keyspace"},
		"no namespace":     {&kvv1.WatchRequest{Namespace: "nope"}, codes.NotFound, "nope"},
		"prompts by key":   {&kvv1.WatchRequest{Namespace: "prompts", Target: &kvv1.WatchRequest_Prefix{}}, codes.FailedPrecondition, "scope"},
		"keys by scope":    {&kvv1.WatchRequest{Target: &kvv1.WatchRequest_Scope{Scope: &kvv1.Scope{}}}, codes.FailedPrecondition, "scope"},
	} {
		stream, err := r.KV.Watch(ctx, c.req)
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != c.code || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %v that says %q", name, err, c.code, c.says)
		}
	}
	for range 2 {
		r.watch(ctx, t, &kvv1.WatchRequest{}).until(kvv1.WatchControl_WATCH_CONTROL_STARTED)
	}
	stream, err := r.KV.Watch(ctx, &kvv1.WatchRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "2 watches") {
		t.Errorf("a watch over the limit: %v", err)
	}
}

// TestWatchEnds: the namespace is dropped, the token revoked, the server stopped.
func TestWatchEnds(t *testing.T) {
	r, ctx := newRig(t, Config{}, nil), testContext(t)
	ends := func(w *watched, code codes.Code, says string) {
		t.Helper()
		for {
			if _, err := w.stream.Recv(); err != nil {
				if status.Code(err) != code || !strings.Contains(err.Error(), says) {
					t.Fatalf("%v, want %v that says %q", err, code, says)
				}
				return
			}
		}
	}
	r.mustPut(ctx, t, "k", "v", 0)
	w := r.watch(ctx, t, &kvv1.WatchRequest{})
	w.until(kvv1.WatchControl_WATCH_CONTROL_STARTED)
	r.Server.Stop()
	ends(w, codes.Unavailable, "stopping")
}

// TestSlowWatcher: one who reads nothing holds up nobody, and is told the latest of each key when he reads again; under ALL his watch ends when the
// history is too short for him.
func TestSlowWatcher(t *testing.T) {
	r, ctx := newRig(t, Config{}, nil), testContext(t)
	latest := r.watch(ctx, t, &kvv1.WatchRequest{Target: &kvv1.WatchRequest_Prefix{Prefix: []byte("s/")}})
	all := r.watch(ctx, t, &kvv1.WatchRequest{Target: &kvv1.WatchRequest_Prefix{Prefix: []byte("s/")}, Mode: kvv1.WatchMode_WATCH_MODE_ALL})
	latest.until(kvv1.WatchControl_WATCH_CONTROL_STARTED)
	all.until(kvv1.WatchControl_WATCH_CONTROL_STARTED)
	// More than windows and history hold: 4 shards of 4 MiB.
	value := strings.Repeat("v", 1000)
	const rounds, keys = 150, 200
	for i := range rounds {
		var puts []*kvv1.PutOp
		for j := range keys {
			puts = append(puts, &kvv1.PutOp{Key: fmt.Appendf(nil, "s/%d", j), Value: fmt.Appendf(nil, "%d %s", i, value)})
		}
		if _, err := r.KV.BatchPut(ctx, &kvv1.BatchPutRequest{Puts: puts}); err != nil {
			t.Fatal(err)
		}
	}
	state, told := map[string]string{}, 0
	done := func() bool {
		if len(state) < keys {
			return false
		}
		for _, v := range state {
			if !strings.HasPrefix(v, fmt.Sprintf("%d ", rounds-1)) {
				return false
			}
		}
		return true
	}
	resyncs := 0
	for !done() {
		resp := latest.next()
		if resp.Control == kvv1.WatchControl_WATCH_CONTROL_RESYNC {
			clear(state)
			resyncs++
		}
		for _, e := range resp.Events {
			state[string(e.Key)] = string(e.Value)
			told++
		}
	}
	t.Logf("%d changes: told of %d, with %d RESYNCs", rounds*keys, told, resyncs)
	if told >= rounds*keys || resyncs == 0 {
		t.Errorf("a slow watcher was told of %d of %d changes, with %d RESYNCs", told, rounds*keys, resyncs)
	}
	for {
		_, err := all.stream.Recv()
		if err == nil {
			continue
		}
		if status.Code(err) != codes.OutOfRange || !strings.Contains(err.Error(), "not kept") {
			t.Errorf("under ALL: %v", err)
		}
		break
	}
}

// TestWatchProgress is told when nothing happens, and its token moves on with what happens elsewhere.
func TestWatchProgress(t *testing.T) {
	r, ctx := newRig(t, Config{WatchProgress: 50 * time.Millisecond}, nil), testContext(t)
	w := r.watch(ctx, t, &kvv1.WatchRequest{Target: &kvv1.WatchRequest_Key{Key: []byte("k")}})
	w.until(kvv1.WatchControl_WATCH_CONTROL_STARTED)
	w.until(kvv1.WatchControl_WATCH_CONTROL_PROGRESS)
	if len(w.token) == 0 {
		t.Error("PROGRESS without a token")
	}
}
