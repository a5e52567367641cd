package frontend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"kvstore/actors/shard"
	"kvstore/components/key"
	"kvstore/components/kverr"
	"kvstore/components/tracing"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// exchange sends frames over one stream and returns all results by id; the stream must end well, and every operation be answered
// once.
func exchange(t *testing.T, r *rig, frames ...*kvv1.PipelineRequest) map[uint64]*kvv1.PipelineResponse_Result {
	t.Helper()
	s, err := r.KV.Pipeline(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	want := 0
	for _, f := range frames {
		want += len(f.Ops)
	}
	go func() {
		for _, f := range frames {
			if err := s.Send(f); err != nil {
				sent <- err
				return
			}
		}
		sent <- s.CloseSend()
	}()
	got := make(map[uint64]*kvv1.PipelineResponse_Result)
	for {
		resp, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if resp.Header.GetServerTimeMs() == 0 {
			t.Error("a frame without server time")
		}
		for _, res := range resp.Results {
			if got[res.Id] != nil {
				t.Errorf("operation %d is answered twice", res.Id)
			}
			got[res.Id] = res
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if len(got) != want {
		t.Fatalf("%d operations, %d answers", want, len(got))
	}
	return got
}

func putOp(id uint64, k, v string) *kvv1.PipelineRequest_Op {
	return &kvv1.PipelineRequest_Op{Id: id, Op: &kvv1.PipelineRequest_Op_Put{Put: &kvv1.PutOp{Key: []byte(k), Value: []byte(v)}}}
}

func getOp(id uint64, k string) *kvv1.PipelineRequest_Op {
	return &kvv1.PipelineRequest_Op{Id: id, Op: &kvv1.PipelineRequest_Op_Get{Get: &kvv1.GetOp{Key: []byte(k)}}}
}

func deleteOp(id uint64, k string) *kvv1.PipelineRequest_Op {
	return &kvv1.PipelineRequest_Op{Id: id, Op: &kvv1.PipelineRequest_Op_Delete{Delete: &kvv1.DeleteOp{Key: []byte(k)}}}
}

// waiting is an operation whose caller tells for how many milliseconds he waits.
func waiting(ms int64, op *kvv1.PipelineRequest_Op) *kvv1.PipelineRequest_Op {
	op.TimeoutMs = ms
	return op
}

func TestPipelineAnswersEverything(t *testing.T) {
	r := newRig(t, Config{}, nil)
	const ops = 500
	frames := 60
	if testing.Short() {
		frames = 15
	}
	var puts, gets, dels []*kvv1.PipelineRequest
	for f := range frames {
		var p, g, d kvv1.PipelineRequest
		for i := range ops {
			id := uint64(f*ops + i + 1)
			k := fmt.Sprintf("k%06d", id)
			v := k
			if id%100 == 0 {
				v = string(bytes.Repeat([]byte(k), 400)) // apart
			}
			p.Ops = append(p.Ops, putOp(id, k, v))
			g.Ops = append(g.Ops, getOp(id, k))
			d.Ops = append(d.Ops, deleteOp(id, k))
		}
		puts, gets, dels = append(puts, &p), append(gets, &g), append(dels, &d)
	}
	for id, res := range exchange(t, r, puts...) {
		if !res.GetPut().GetCreated() || res.GetPut().GetVersion() == 0 {
			t.Fatalf("put %d: %v", id, res)
		}
	}
	for id, res := range exchange(t, r, gets...) {
		want := fmt.Sprintf("k%06d", id)
		if id%100 == 0 {
			want = string(bytes.Repeat([]byte(want), 400))
		}
		if string(res.GetEntry().GetValue()) != want || string(res.GetEntry().GetKey()) != fmt.Sprintf("k%06d", id) {
			t.Fatalf("get %d: %v", id, res)
		}
	}
	for id, res := range exchange(t, r, dels...) {
		if !res.GetDelete().GetDeleted() || res.GetDelete().GetRevision() == 0 {
			t.Fatalf("delete %d: %v", id, res)
		}
	}
}

// TestPipelineErrorsAreOfOperations: whatever is wrong with an operation, the others of its frame and the stream go on.
func TestPipelineErrorsAreOfOperations(t *testing.T) {
	r := newRig(t, Config{MaxValueBytes: 64 << 10}, nil)
	there := r.put(t, "there", "1").Version
	absent := &kvv1.Precondition{Check: &kvv1.Precondition_IfAbsent{IfAbsent: true}}
	withID := func(op *kvv1.PipelineRequest_Op) *kvv1.PipelineRequest_Op { op.IdentityOp = 7; return op }
	got := exchange(t, r,
		&kvv1.PipelineRequest{Ops: []*kvv1.PipelineRequest_Op{
			putOp(1, "", "v"), getOp(2, "missing"), {Id: 3}, putOp(4, "large", string(make([]byte, 64<<10+1))),
			{Id: 5, Op: &kvv1.PipelineRequest_Op_Put{Put: &kvv1.PutOp{Key: []byte("there"), Precondition: absent}}},
			deleteOp(6, string(bytes.Repeat([]byte("k"), 1025))), withID(putOp(7, "a", "v")), putOp(8, "fine", "v"), getOp(9, "\xff"),
		}},
		&kvv1.PipelineRequest{Namespace: "other", Ops: []*kvv1.PipelineRequest_Op{putOp(10, "a", "v"), getOp(11, "a")}},
		&kvv1.PipelineRequest{Namespace: "prompts", Ops: []*kvv1.PipelineRequest_Op{putOp(12, "a", "v")}},
		&kvv1.PipelineRequest{IdentityClient: []byte("short"), Ops: []*kvv1.PipelineRequest_Op{putOp(13, "a", "v")}},
		&kvv1.PipelineRequest{},
		&kvv1.PipelineRequest{Ops: []*kvv1.PipelineRequest_Op{getOp(14, "there"), waiting(-1, getOp(15, "there")), waiting(math.MaxInt64, putOp(16, "patient", "v"))}},
	)
	for id, want := range map[uint64]struct{ reason, field string }{
		1: {"INVALID_ARGUMENT", "put.key"}, 2: {"NOT_FOUND", ""}, 3: {"INVALID_ARGUMENT", "op"}, 4: {"TOO_LARGE", "put.value"},
		5: {"ALREADY_EXISTS", ""}, 6: {"TOO_LARGE", "delete.key"}, 7: {"INVALID_ARGUMENT", "identity_client"}, 9: {"INVALID_ARGUMENT", "get.key"},
		10: {"NOT_FOUND", ""}, 11: {"NOT_FOUND", ""}, 12: {"WRONG_KIND", ""}, 13: {"INVALID_ARGUMENT", "identity_client"}, 15: {"INVALID_ARGUMENT", "timeout_ms"}, 16: {},
	} {
		if e := got[id].GetError(); e.GetReason() != want.reason || e.GetField() != want.field {
			t.Errorf("operation %d: %v, want %v", id, e, want)
		}
	}
	if got[5].GetError().GetCurrentVersion() != there || got[8].GetPut().GetVersion() == 0 || string(got[14].GetEntry().GetValue()) != "1" {
		t.Errorf("%v", got)
	}
}

func TestPipelineIdentity(t *testing.T) {
	r := newRig(t, Config{}, nil)
	frame := func() *kvv1.PipelineRequest {
		a, b := putOp(1, "a", "v"), deleteOp(2, "a")
		a.IdentityOp, b.IdentityOp = 1, 2
		return &kvv1.PipelineRequest{IdentityClient: []byte("0123456789abcdef"), NotAfterMs: time.Now().Add(time.Minute).UnixMilli(), Ops: []*kvv1.PipelineRequest_Op{a, b}}
	}
	first, second := exchange(t, r, frame()), exchange(t, r, frame())
	if first[1].GetPut().GetVersion() == 0 || first[1].GetPut().GetVersion() != second[1].GetPut().GetVersion() ||
		first[2].GetDelete().GetRevision() != second[2].GetDelete().GetRevision() {
		t.Errorf("first %v\nagain %v", first, second)
	}
}

func TestPipelineMalformedFramesEndIt(t *testing.T) {
	r := newRig(t, Config{}, nil)
	many := &kvv1.PipelineRequest{}
	for i := range 1001 {
		many.Ops = append(many.Ops, getOp(uint64(i), "k"))
	}
	encode := func(m *kvv1.PipelineRequest) []byte {
		b, err := m.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, b := range map[string][]byte{
		"garbage":         {0xff, 0xff, 0xff},
		"bad operation":   {0x1a, 0x02, 0x12, 0x05},
		"too many":        encode(many),
		"more than 4 MiB": encode(&kvv1.PipelineRequest{Ops: []*kvv1.PipelineRequest_Op{putOp(1, "k", string(make([]byte, key.MaxPipelineMessage)))}}),
	} {
		s, err := r.Conn.NewStream(testContext(t), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
			kvv1.KVService_Pipeline_FullMethodName, grpc.ForceCodecV2(codec{}))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SendMsg(&frame{buf: mem.SliceBuffer(b)}); err != nil {
			t.Fatal(err)
		}
		var f frame
		if err := s.RecvMsg(&f); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// holder keeps writes until it is told to let them go.
type holder struct {
	Shards
	mu   sync.Mutex
	held []*shard.Command // guarded by mu
	open bool             // guarded by mu
	more sync.Cond
}

func (h *holder) Do(ctx context.Context, id string, cmds ...*shard.Command) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open {
		h.Shards.Do(ctx, id, cmds...)
		return
	}
	h.held = append(h.held, cmds...)
	h.more.Broadcast()
}

// TestPipelineIsBounded: while nothing is answered, no more than maxOutstandingOps are taken; then all are answered.
func TestPipelineIsBounded(t *testing.T) {
	h := &holder{}
	h.more.L = &h.mu
	r := newRig(t, Config{}, func(under Shards) Shards { h.Shards = under; return h })
	s, err := r.KV.Pipeline(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	const total = 3 * maxOutstandingOps
	go func() {
		for from := 0; from < total; from += 512 {
			f := &kvv1.PipelineRequest{}
			for i := range 512 {
				f.Ops = append(f.Ops, putOp(uint64(from+i), fmt.Sprint(from+i), "v"))
			}
			if s.Send(f) != nil {
				return
			}
		}
		_ = s.CloseSend()
	}()
	h.mu.Lock()
	for len(h.held) < maxOutstandingOps {
		h.more.Wait()
	}
	// The reader takes a frame whole, so it stands exactly at the bound: nothing more may come until something is answered.
	first := h.held
	h.held = nil
	h.mu.Unlock()
	if len(first) != maxOutstandingOps {
		t.Fatalf("%d operations were taken, the bound is %d", len(first), maxOutstandingOps)
	}
	for _, c := range first[:511] {
		c.Release(kverr.New(kverr.Unavailable, "", "not applied"))
	}
	answered := 0
	for answered < 511 {
		resp, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		answered += len(resp.Results)
	}
	h.mu.Lock()
	if len(h.held) != 0 {
		t.Errorf("a frame of 512 was taken with room for 511")
	}
	h.open = true
	h.mu.Unlock()
	for _, c := range first[511:] {
		c.Release(kverr.New(kverr.Unavailable, "", "not applied"))
	}
	for answered < total {
		resp, err := s.Recv()
		if err != nil {
			t.Fatalf("after %d answers: %v", answered, err)
		}
		answered += len(resp.Results)
	}
}

// slowWay hands nothing to the shards until it is told to.
type slowWay struct {
	Shards
	mu   sync.Mutex
	more sync.Cond
	keys map[string]bool // that came so far; guarded by mu, as is all below
	held []func()
	open bool
}

func (w *slowWay) keep(f func(), keys ...[]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open {
		f()
		return
	}
	w.held = append(w.held, f)
	for _, k := range keys {
		w.keys[string(k)] = true
	}
	w.more.Broadcast()
}

func (w *slowWay) Do(ctx context.Context, id string, cmds ...*shard.Command) {
	cmds = slices.Clone(cmds)
	var keys [][]byte
	for _, c := range cmds {
		keys = append(keys, bytes.Clone(c.Put.Key))
	}
	w.keep(func() { w.Shards.Do(ctx, id, cmds...) }, keys...)
}

func (w *slowWay) Read(ctx context.Context, id string, queries ...*shard.Query) {
	queries = slices.Clone(queries)
	w.keep(func() { w.Shards.Read(ctx, id, queries...) })
}

// TestPipelineLate: of what is long on its way to its shard nothing is begun that nobody waits for any more; all else is.
func TestPipelineLate(t *testing.T) {
	w := &slowWay{keys: map[string]bool{}, open: true}
	w.more.L = &w.mu
	r := newRig(t, Config{}, func(under Shards) Shards { w.Shards = under; return w })
	r.put(t, "there", "1")
	w.mu.Lock()
	w.open = false
	w.mu.Unlock()
	go func() {
		w.mu.Lock()
		for !w.keys["patient"] || !w.keys["for an hour"] {
			w.more.Wait()
		}
		w.mu.Unlock()
		for late := time.Now().UnixMilli() + 1; time.Now().UnixMilli() <= late; { // the frame was there before
			<-time.After(time.Millisecond)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.open = true
		for _, f := range w.held {
			f()
		}
	}()
	apart := string(make([]byte, 4<<10))
	got := exchange(t, r, &kvv1.PipelineRequest{Ops: []*kvv1.PipelineRequest_Op{
		waiting(1, putOp(1, "late", "v")), waiting(1, putOp(2, "late, apart", apart)), waiting(1, deleteOp(3, "there")), waiting(1, getOp(4, "there")),
		putOp(5, "patient", "v"), waiting(time.Hour.Milliseconds(), putOp(6, "for an hour", "v")), waiting(time.Hour.Milliseconds(), putOp(7, "for an hour, apart", apart)),
		waiting(time.Hour.Milliseconds(), getOp(8, "there")),
	}})
	for id, res := range got {
		switch late := res.GetError().GetReason() == "DEADLINE_EXCEEDED"; {
		case id <= 3 && !late, id == 4 && remote && !late, id > 4 && res.GetError() != nil:
			t.Errorf("operation %d: %v", id, res)
		}
	}
	for k, there := range map[string]bool{"late": false, "late, apart": false, "there": true, "patient": true, "for an hour": true, "for an hour, apart": true} {
		_, err := r.KV.Get(testContext(t), &kvv1.GetRequest{Get: &kvv1.GetOp{Key: []byte(k)}})
		if there && err != nil || !there && status.Code(err) != codes.NotFound {
			t.Errorf("%q: %v", k, err)
		}
	}
}

// TestPipelineLimit: time counts from when a frame came, also while it waits for room; and of a put nothing is left for the get that takes its place in the pool.
func TestPipelineLimit(t *testing.T) {
	for _, tc := range []struct {
		verb         verb
		timeout, now int64
		until        int64
		want         error
	}{
		{verb: verbPut, timeout: 0, now: 1_000_000},
		{verb: verbPut, timeout: 10, now: 1009, until: 1010},
		{verb: verbGet, timeout: 10, now: 1009, until: 1010},
		{verb: verbPut, timeout: 10, now: 1010, want: kverr.DeadlineExceeded},
		{verb: verbGet, timeout: 10, now: 1_000_000, want: kverr.DeadlineExceeded},
		{verb: verbDelete, timeout: math.MaxInt64, now: 1000, until: 1000 + maxTimeoutMS},
		{verb: verbGet, timeout: -1, now: 1000, want: kverr.InvalidArgument},
	} {
		p, o := &pipeline{came: 1000, now: tc.now}, &operation{req: request{verb: tc.verb, timeoutMS: tc.timeout}}
		err := p.limit(o)
		if (err == nil) != (tc.want == nil) || err != nil && !errors.Is(err, tc.want) {
			t.Errorf("%+v: %v", tc, err)
		}
		query := int64(0)
		if tc.verb == verbGet {
			query = tc.until
		}
		if o.cmd.UntilMS != tc.until || o.query.UntilMS != query {
			t.Errorf("%+v: the command until %d, the query until %d", tc, o.cmd.UntilMS, o.query.UntilMS)
		}
	}
}

// TestPipelineCanceled: a client that goes away leaves nothing behind, and operations that come back later find no one.
func TestPipelineCanceled(t *testing.T) {
	h := &holder{}
	h.more.L = &h.mu
	r := newRig(t, Config{}, func(under Shards) Shards { h.Shards = under; return h })
	ctx, cancel := context.WithCancel(testContext(t))
	s, err := r.KV.Pipeline(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&kvv1.PipelineRequest{Ops: []*kvv1.PipelineRequest_Op{putOp(1, "k", "v")}}); err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	for len(h.held) == 0 {
		h.more.Wait()
	}
	c := h.held[0]
	h.mu.Unlock()
	cancel()
	if _, err := s.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("%v", err)
	}
	c.Release(nil)
}

// TestPipelineStops: a stop lets a stream answer what it has taken, then ends it; it takes no more.
func TestPipelineStops(t *testing.T) {
	h := &holder{}
	h.more.L = &h.mu
	r := newRig(t, Config{}, func(under Shards) Shards { h.Shards = under; return h })
	s, err := r.KV.Pipeline(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&kvv1.PipelineRequest{Ops: []*kvv1.PipelineRequest_Op{putOp(1, "k", "v")}}); err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	for len(h.held) == 0 {
		h.more.Wait()
	}
	c := h.held[0]
	h.mu.Unlock()
	r.Server.Stop()
	r.Server.Stop() // twice is once
	c.Release(nil)
	if resp, err := s.Recv(); err != nil || len(resp.Results) != 1 || resp.Results[0].Id != 1 {
		t.Fatalf("%v, %v", resp, err)
	}
	_, err = s.Recv()
	wantKind(t, "after the last answer", err, kverr.Unavailable)
}

// wayShards counts the queries that are to be followed.
type wayShards struct {
	Shards
	all, followed atomic.Int64
}

func (w *wayShards) Read(ctx context.Context, id string, queries ...*shard.Query) {
	for _, q := range queries {
		if w.all.Add(1); q.Follow != nil {
			w.followed.Add(1)
		}
	}
	w.Shards.Read(ctx, id, queries...)
}

// TestPipelineFollowEnds: of a get that was to be followed and was refused nothing is left for the gets of others, and the spans of a frame that turns out
// malformed end.
func TestPipelineFollowEnds(t *testing.T) {
	w, queue := &wayShards{}, tracing.NewQueue()
	r := newRig(t, Config{Tracer: tracing.New(queue, 0)}, func(in Shards) Shards {
		w.Shards = in
		return w
	})
	const n = 150 // five times so many are followed within one second
	for range 5 { // it may be another processor's pool
		refused, plain := &kvv1.PipelineRequest{}, &kvv1.PipelineRequest{}
		for i := range uint64(n) {
			op := getOp(i, "")
			op.Traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
			refused.Ops, plain.Ops = append(refused.Ops, op), append(plain.Ops, getOp(i, "k"))
		}
		exchange(t, r, refused)
		exchange(t, r, plain)
	}
	if all, followed := w.all.Load(), w.followed.Load(); all != 5*n || followed != 0 {
		t.Errorf("%d gets, of which %d are followed", all, followed)
	}
	if _, spans, _ := queue.Take(nil); spans == 0 {
		t.Fatal("nobody was followed")
	}

	op := getOp(1, "k")
	op.Traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	b, err := (&kvv1.PipelineRequest{Ops: []*kvv1.PipelineRequest_Op{op}}).MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.Conn.NewStream(testContext(t), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
		kvv1.KVService_Pipeline_FullMethodName, grpc.ForceCodecV2(codec{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SendMsg(&frame{buf: mem.SliceBuffer(append(b, 0x1a, 0x02, 0x12, 0x05))}); err != nil {
		t.Fatal(err)
	}
	var f frame
	if err := s.RecvMsg(&f); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
	if _, spans, _ := queue.Take(nil); spans != 1 {
		t.Errorf("%d spans of a malformed frame ended, want 1", spans)
	}
}
