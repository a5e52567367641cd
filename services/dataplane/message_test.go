package dataplane

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"kvstore/actors/host"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// TestFramesAreWhatIsGenerated: what a link encodes is what the generated code decodes.
func TestFramesAreWhatIsGenerated(t *testing.T) {
	l := &link{up: true, wake: make(chan struct{}, 1)}
	ref := shard.Ref{Object: shard.ObjectID{Epoch: 3, Counter: 4}, ObjectBytes: 500, Offset: 6, Length: 7, Checksum: 8}
	a, b := &target{way: l, link: l, epoch: 9}, &target{way: l, link: l}
	ra, rb := &shardRoute{id: "a-0"}, &shardRoute{id: "b-0"}
	value := &valueCall{values: [][]byte{[]byte("one"), nil, []byte("three")}, done: make(chan *kverr.Error, 1)}
	part := &valueCall{ref: ref, off: 5, p: make([]byte, 6), done: make(chan *kverr.Error, 1)}
	cmd := &shard.Command{Op: shard.OpDelete, Namespace: 1, Delete: shard.Delete{Key: []byte("k")}}
	for _, step := range []struct {
		to   *target
		from *shardRoute
		call call
	}{
		{a, ra, call{kind: callCommand, cmd: cmd, deadline: time.Now().Add(time.Hour).UnixNano()}},
		{b, rb, call{kind: callQuery, query: &shard.Query{Op: shard.QueryGet, Namespace: 2, Key: []byte("q")}, follow: &follow{ids: [24]byte{1, 23: 24}}}},
		{a, ra, call{kind: callPutValues, value: value}},
		{b, rb, call{kind: callReadPart, value: part}},
		{a, ra, call{kind: callDropValues, refs: []shard.Ref{ref, ref}}},
	} {
		k := newCall()
		*k = step.call
		k.route, k.size = step.from, 500
		var one callList
		one.add(k)
		if left := l.submit(step.to, one); !left.empty() {
			t.Fatal("a link that is up took nothing")
		}
	}
	if len(l.frames) != 1 {
		t.Fatalf("%d frames", len(l.frames))
	}
	l.frames[0].number(fieldPing, 17)
	var got dataplanev1.ExchangeRequest
	if err := got.UnmarshalVT(l.frames[0].b); err != nil {
		t.Fatal(err)
	}
	left := got.Calls[0].GetTimeoutMs()
	if left < 3_500_000 || left > 3_600_000 {
		t.Errorf("the first call's time is %d ms", left)
	}
	want := &dataplanev1.ExchangeRequest{
		Ping: 17,
		Routes: []*dataplanev1.ExchangeRequest_Route{
			{Shard: "a-0", Epoch: 9}, {Number: 1, Shard: "b-0"},
		},
		Calls: []*dataplanev1.ExchangeRequest_Call{
			{Id: 0, TimeoutMs: left, What: &dataplanev1.ExchangeRequest_Call_Command{Command: &dataplanev1.ShardCommand{
				Op: uint32(shard.OpDelete), Namespace: 1, Delete: &dataplanev1.ShardCommand_Delete{Key: []byte("k")},
			}}},
			{Id: 1, Route: 1, Follow: []byte{1, 23: 24}, What: &dataplanev1.ExchangeRequest_Call_Query{Query: &dataplanev1.ShardQuery{Op: uint32(shard.QueryGet), Namespace: 2, Key: []byte("q")}}},
			{Id: 2, What: &dataplanev1.ExchangeRequest_Call_PutValues{PutValues: &dataplanev1.PutValues{Values: [][]byte{[]byte("one"), {}, []byte("three")}}}},
			{Id: 3, Route: 1, What: &dataplanev1.ExchangeRequest_Call_ReadPart{ReadPart: &dataplanev1.ReadPart{Ref: protoRef(ref), Offset: 5, Length: 6}}},
			{Id: 4, What: &dataplanev1.ExchangeRequest_Call_DropValues{DropValues: &dataplanev1.DropValues{Refs: protoRefs([]shard.Ref{ref, ref})}}},
		},
	}
	if !proto.Equal(&got, want) {
		t.Errorf("got\n%v\nwant\n%v", &got, want)
	}

	// A caller who has gone is not sent for, and its id is free again.
	gone := &valueCall{values: [][]byte{[]byte("late")}, gone: true, done: make(chan *kverr.Error, 1)}
	k := newCall()
	k.kind, k.value, k.route, k.size = callPutValues, gone, ra, 100
	before := len(l.frames[0].b)
	var one callList
	one.add(k)
	l.submit(a, one)
	if len(l.frames[0].b) != before || l.calls != 4 || len(l.spare) != 1 {
		t.Errorf("a caller who has gone took %d bytes; %d calls, %d ids to spare", len(l.frames[0].b)-before, l.calls, len(l.spare))
	}
}

// request1 is a frame for one shard, from the generated code.
func request1(t testing.TB, calls ...*dataplanev1.ExchangeRequest_Call) []byte {
	t.Helper()
	for i, c := range calls {
		c.Id = uint32(i)
	}
	b, err := (&dataplanev1.ExchangeRequest{Routes: []*dataplanev1.ExchangeRequest_Route{{Shard: shardID(0)}}, Calls: calls}).MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func callOf(cmd *dataplanev1.ShardCommand) *dataplanev1.ExchangeRequest_Call {
	return &dataplanev1.ExchangeRequest_Call{What: &dataplanev1.ExchangeRequest_Call_Command{Command: cmd}}
}

func queryOf(q *dataplanev1.ShardQuery) *dataplanev1.ExchangeRequest_Call {
	return &dataplanev1.ExchangeRequest_Call{What: &dataplanev1.ExchangeRequest_Call_Query{Query: q}}
}

func putOf(k, v string) *dataplanev1.ExchangeRequest_Call {
	return callOf(&dataplanev1.ShardCommand{Op: uint32(shard.OpPut), Namespace: 1, Put: &dataplanev1.ShardCommand_Put{Key: []byte(k), Value: []byte(v)}})
}

// TestServerAnswersWhatIsGenerated: frames of the generated code are understood, and it understands the answers.
func TestServerAnswersWhatIsGenerated(t *testing.T) {
	c := newCluster(t, 1, 1)
	ctx := testContext(t)
	ask := func(calls ...*dataplanev1.ExchangeRequest_Call) map[uint32]*dataplanev1.ExchangeResponse_Outcome {
		t.Helper()
		answer, err := c.nodes[0].Plane.Invoke(ctx, request1(t, calls...))
		if err != nil {
			t.Fatal(err)
		}
		var resp dataplanev1.ExchangeResponse
		if err := resp.UnmarshalVT(answer); err != nil {
			t.Fatal(err)
		}
		got := make(map[uint32]*dataplanev1.ExchangeResponse_Outcome)
		for _, o := range resp.Outcomes {
			if got[o.Id] != nil {
				t.Errorf("call %d is answered twice", o.Id)
			}
			got[o.Id] = o
		}
		return got
	}
	values := [][]byte{bytes.Repeat([]byte("a"), 5000), bytes.Repeat([]byte("b"), 3000)}
	got := ask(putOf("k", "v"), putOf("l", "w"), &dataplanev1.ExchangeRequest_Call{
		What: &dataplanev1.ExchangeRequest_Call_PutValues{PutValues: &dataplanev1.PutValues{Values: values}},
	})
	refs := got[2].GetRefs().GetRefs()
	if got[0].GetResult().GetRevision() == 0 || got[1].GetResult().GetWrite().GetVersion() == 0 || len(refs) != 2 {
		t.Fatalf("%v", got)
	}
	got = ask(
		queryOf(&dataplanev1.ShardQuery{Op: uint32(shard.QueryGet), Namespace: 1, Key: []byte("k")}),
		queryOf(&dataplanev1.ShardQuery{Op: uint32(shard.QueryCount), Namespace: 1, List: &dataplanev1.ShardQuery_List{}}),
		&dataplanev1.ExchangeRequest_Call{What: &dataplanev1.ExchangeRequest_Call_ReadPart{ReadPart: &dataplanev1.ReadPart{Ref: refs[1], Offset: 10, Length: 20}}},
		callOf(&dataplanev1.ShardCommand{Op: uint32(shard.OpPut), Namespace: 1, Put: &dataplanev1.ShardCommand_Put{Key: []byte("big"), Ref: refs[0]}}),
	)
	if len(got) != 4 || len(got[0].GetAnswer().GetEntries()) != 1 || got[1].GetAnswer().GetCount() < 2 || string(got[2].GetPart()) != string(values[1][10:30]) ||
		got[3].GetResult().GetRevision() == 0 {
		t.Errorf("%v", got)
	}
	// A reference is named once, also while others of its object wait.
	named := callOf(&dataplanev1.ShardCommand{Op: uint32(shard.OpPut), Namespace: 1, Put: &dataplanev1.ShardCommand_Put{Key: []byte("again"), Ref: refs[0]}})
	dropped := callOf(&dataplanev1.ShardCommand{Op: uint32(shard.OpPut), Namespace: 1, Put: &dataplanev1.ShardCommand_Put{Key: []byte("gone"), Ref: refs[1]}})
	drop := &dataplanev1.ExchangeRequest_Call{What: &dataplanev1.ExchangeRequest_Call_DropValues{DropValues: &dataplanev1.DropValues{Refs: refs[1:]}}}
	for i, frame := range [][]*dataplanev1.ExchangeRequest_Call{{named}, {drop}, {named, dropped}} {
		for id, o := range ask(frame...) {
			if o.GetFailure().GetKind() != uint32(kverr.Unavailable) {
				t.Errorf("frame %d, call %d, which names what is not its own: %v", i, id, o)
			}
		}
	}
	if e, found, err := c.view(ctx, shardID(0)).Get(namespace, []byte("big")); !found || err != nil {
		t.Errorf("%+v %v %v", e, found, err)
	}
	soon(ctx, t, "the value that no key names is gone", func() bool {
		stored, named := c.values(ctx)
		return stored == named && named == 1
	})
}

// TestServerRefusals: what is wrong with a call is its outcome, what is wrong with a frame ends it.
func TestServerRefusals(t *testing.T) {
	c := newCluster(t, 1, 1)
	ctx := testContext(t)
	for name, call := range map[string]*dataplanev1.ExchangeRequest_Call{
		"nothing":         {},
		"op of a host":    callOf(&dataplanev1.ShardCommand{Op: uint32(shard.OpForget), Namespace: 1}),
		"op not known":    callOf(&dataplanev1.ShardCommand{Op: 99, Namespace: 1}),
		"no arguments":    callOf(&dataplanev1.ShardCommand{Op: uint32(shard.OpPut), Namespace: 1}),
		"query not known": queryOf(&dataplanev1.ShardQuery{Op: 99}),
		"no list":         queryOf(&dataplanev1.ShardQuery{Op: uint32(shard.QueryList)}),
		"no values":       {What: &dataplanev1.ExchangeRequest_Call_PutValues{PutValues: &dataplanev1.PutValues{}}},
		"part too long": {What: &dataplanev1.ExchangeRequest_Call_ReadPart{ReadPart: &dataplanev1.ReadPart{
			Ref: protoRef(shard.Ref{Object: shard.ObjectID{Epoch: 1}, Length: 1 << 30}), Length: maxInline + 1,
		}}},
		"route not named": {Route: 7, What: putOf("k", "v").What},
	} {
		answer, err := c.nodes[0].Plane.Invoke(ctx, request1(t, putOf("k", "v"), call))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var resp dataplanev1.ExchangeResponse
		if err := resp.UnmarshalVT(answer); err != nil {
			t.Fatal(err)
		}
		var good, bad int
		for _, o := range resp.Outcomes {
			switch k := kverr.Kind(o.GetFailure().GetKind()); {
			case o.GetFailure() == nil && o.Id == 0:
				good++
			case o.Id == 1 && k.NotApplied():
				bad++
			}
		}
		if good != 1 || bad != 1 {
			t.Errorf("%s: %v", name, &resp)
		}
	}
	twice, err := (&dataplanev1.ExchangeRequest{Routes: []*dataplanev1.ExchangeRequest_Route{{Shard: "a"}, {Shard: "b"}}}).MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	for name, frame := range map[string][]byte{"cut short": request1(t, putOf("k", "v"))[:20], "a route's number twice": twice} {
		if _, err := c.nodes[0].Plane.Invoke(ctx, frame); kverr.KindOf(err) != kverr.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzExchange: whatever frame comes, a host answers every call that it finds once, and goes on.
func FuzzExchange(f *testing.F) {
	c := newCluster(f, 1, 1)
	f.Add(request1(f, putOf("k", "v"), queryOf(&dataplanev1.ShardQuery{Op: uint32(shard.QueryGet), Namespace: 1, Key: []byte("k")})))
	f.Add(request1(f, queryOf(&dataplanev1.ShardQuery{Op: uint32(shard.QueryList), Namespace: 1, List: &dataplanev1.ShardQuery_List{Limit: 3}})))
	f.Add(request1(f, &dataplanev1.ExchangeRequest_Call{What: &dataplanev1.ExchangeRequest_Call_PutValues{PutValues: &dataplanev1.PutValues{Values: [][]byte{{1}}}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		answer, err := c.nodes[0].Plane.Invoke(ctx, b)
		if ctx.Err() != nil {
			t.Fatal("no answer")
		}
		if err == nil {
			if err := new(dataplanev1.ExchangeResponse).UnmarshalVT(answer); err != nil {
				t.Fatal(err)
			}
		}
		if err := do(ctx, c.nodes[0], shardID(0), put("alive", "yes")); err != nil {
			t.Fatalf("the shard after it: %v", err)
		}
	})
}

// FuzzOutcomes: whatever a host answers, a client releases each call at most once, and does not panic.
func FuzzOutcomes(f *testing.F) {
	outcome := func(o *dataplanev1.ExchangeResponse_Outcome) []byte {
		b, err := (&dataplanev1.ExchangeResponse{Outcomes: []*dataplanev1.ExchangeResponse_Outcome{o}, Pong: 3}).MarshalVT()
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	f.Add(outcome(&dataplanev1.ExchangeResponse_Outcome{Id: 0, What: &dataplanev1.ExchangeResponse_Outcome_Result{Result: &dataplanev1.ShardResult{Revision: 5}}}))
	f.Add(outcome(&dataplanev1.ExchangeResponse_Outcome{Id: 1, What: &dataplanev1.ExchangeResponse_Outcome_Answer{Answer: &dataplanev1.ShardAnswer{Revision: 5}}}))
	f.Add(outcome(&dataplanev1.ExchangeResponse_Outcome{Id: 2, What: &dataplanev1.ExchangeResponse_Outcome_Part{Part: []byte("123456")}}))
	f.Add(outcome(&dataplanev1.ExchangeResponse_Outcome{Id: 0, What: &dataplanev1.ExchangeResponse_Outcome_Failure{Failure: &dataplanev1.Failure{Kind: uint32(kverr.Exhausted)}}}))
	client, err := NewClient(ClientConfig{Locator: nowhere{}, Budget: time.Millisecond})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(client.Close)
	f.Fuzz(func(t *testing.T, b []byte) {
		l := &link{client: client, up: true, wake: make(chan struct{}, 1)}
		r := client.route("a-0")
		at := &target{way: l, link: l}
		cmd := put("k", "v")
		done := make(chan struct{}, 8)
		cmd.Done = func(*shard.Command, error) { done <- struct{}{} }
		q := &shard.Query{Op: shard.QueryGet, Key: []byte("k"), Done: func(*shard.Query, error) { done <- struct{}{} }}
		part := &valueCall{p: make([]byte, 6), done: make(chan *kverr.Error, 8)}
		for _, k := range []call{{kind: callCommand, cmd: cmd}, {kind: callQuery, query: q}, {kind: callReadPart, value: part}} {
			one := newCall()
			*one = k
			one.route, one.size = r, 100
			var list callList
			list.add(one)
			l.submit(at, list)
		}
		list, _ := l.take(b, nil)
		deliver(list, new(arena))
		left := 0
		for i := range l.slots {
			if l.slots[i].call != nil {
				left++
			}
		}
		if left != l.calls || left+len(list) != 3 {
			t.Fatalf("%d calls left, %d counted, %d answered", left, l.calls, len(list))
		}
		for range len(list) {
			select {
			case <-done:
			case <-part.done:
			case <-time.After(testTimeout):
				t.Fatal("a call that was answered is not released")
			}
		}
	})
}

// nowhere is a Locator that knows no shard.
type nowhere struct{}

func (nowhere) Locate(context.Context, string) (host.Location, error) {
	return host.Location{}, kverr.New(kverr.NotFound, "locate", "there is no such shard")
}

// TestArena: what was copied stays as it was.
func TestArena(t *testing.T) {
	var a arena
	var copies [][]byte
	for i := range 3000 {
		b := fmt.Appendf(nil, "%d %s", i, bytes.Repeat([]byte("x"), i%100))
		copies = append(copies, a.copy(b))
		clear(b)
	}
	copies = append(copies, a.copy(make([]byte, arenaBytes)))
	for i, c := range copies[:3000] {
		if want := fmt.Sprintf("%d %s", i, bytes.Repeat([]byte("x"), i%100)); string(c) != want {
			t.Fatalf("%q is %q", want, c)
		}
		if _ = append(c, "tail"...); i > 0 && !bytes.HasPrefix(copies[i-1], fmt.Appendf(nil, "%d ", i-1)) {
			t.Fatal("appending to one changed another")
		}
	}
}
