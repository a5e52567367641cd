package shard

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "kvstore/proto/gen/kvstore/dataplane/v1"
)

// TestEffectsAreProtobuf holds the hand-written encoding against the generated code: every body of some random histories is an
// EffectBody that the generated code knows whole, and encodes to the same bytes.
func TestEffectsAreProtobuf(t *testing.T) {
	kinds := map[string]int{}
	for seed := range uint64(10) {
		for _, body := range randomBodies(t, seed, 500) {
			var msg pb.EffectBody
			if err := proto.Unmarshal(body, &msg); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			again, err := proto.MarshalOptions{Deterministic: true}.Marshal(&msg)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(again, body) {
				t.Fatalf("seed %d: the generated code encodes %v as\n%x, not\n%x", seed, &msg, again, body)
			}
			for _, e := range msg.Effects {
				if len(e.ProtoReflect().GetUnknown()) > 0 || e.Kind == nil {
					t.Fatalf("seed %d: %v has fields that are not in the schema", seed, e)
				}
				kinds[string(e.ProtoReflect().WhichOneof(e.ProtoReflect().Descriptor().Oneofs().Get(0)).Name())]++
			}
		}
	}
	for _, k := range []string{"put", "delete", "expire", "remember", "relocate", "forget", "drop", "sweep"} {
		if kinds[k] == 0 {
			t.Errorf("no effect %q was made", k)
		}
	}
}

// randomBodies are the records of a random history.
func randomBodies(t testing.TB, seed uint64, commands int) (bodies [][]byte) {
	cfg := Config{TickBudget: 3, DropBudget: 5, HistoryChanges: 10_000, HistoryBytes: 1 << 30}
	k := &checker{rng: rand.New(rand.NewPCG(seed, 2)), cfg: cfg, m: New(cfg), model: newModel(cfg), clock: 1_700_000_000_000}
	k.past = []durable{{tree: k.m.Tree().Clone()}}
	last := uint64(0)
	for k.stepped < commands {
		if err := k.record(); err != nil {
			t.Fatal(err)
		}
		for _, d := range k.past {
			if d.head > last {
				bodies = append(bodies, d.body)
				last = d.head
			}
		}
	}
	// An hour later the outcomes are swept.
	k.m.Tick(k.clock + 3_600_000)
	return append(bodies, k.m.Ready().Body)
}

func TestEffectFields(t *testing.T) {
	ref := Ref{Object: ObjectID{7, 8}, ObjectBytes: 9000, Offset: 10, Length: 11, Checksum: 1 << 60}
	put := putEffect{
		namespace: 3, key: []byte("key"), value: Value{Ref: ref}, created: 100, updated: 200, expires: 300,
		contentType: "text/plain", encoding: "zstd", metadata: []Pair{{"m", "1"}, {"", ""}}, tags: []Pair{{"t", "2"}},
	}
	remember := rememberEffect{slot: 4095, id: Identity{Client: [16]byte{15: 1}, Op: 1 << 40, Index: 77}, outcome: []byte{1, 2, 3}}
	relocate := relocateEffect{key: []byte{prefixData, 3, 'k'}, from: ref, to: Ref{Object: ObjectID{9, 9}, ObjectBytes: 20, Length: 11}}
	var body []byte
	body = appendEffect(body, 5, kindPut, put.append(nil))
	body = appendEffect(body, 5, kindRemember, remember.append(nil))
	body = appendEffect(body, 6, kindRelocate, relocate.append(nil))
	body = appendEffect(body, 7, kindForget, appendForget(nil, []ObjectID{{1, 2}, {3, 4}}))
	var got pb.EffectBody
	if err := proto.Unmarshal(body, &got); err != nil {
		t.Fatal(err)
	}
	pbRef := &pb.Effect_Ref{Epoch: 7, Counter: 8, ObjectBytes: 9000, Offset: 10, Length: 11, Checksum: 1 << 60}
	want := &pb.EffectBody{Effects: []*pb.Effect{
		{Revision: 5, Kind: &pb.Effect_Put_{Put: &pb.Effect_Put{
			Namespace: 3, Key: []byte("key"), Ref: pbRef, CreatedMs: 100, UpdatedMs: 200, ExpiresMs: 300,
			ContentType: []byte("text/plain"), Encoding: []byte("zstd"),
			Metadata: []*pb.Effect_Pair{{Name: []byte("m"), Value: []byte("1")}, {}}, Tags: []*pb.Effect_Pair{{Name: []byte("t"), Value: []byte("2")}},
		}}},
		{Revision: 5, Kind: &pb.Effect_Remember_{Remember: &pb.Effect_Remember{
			Slot: 4095, Client: remember.id.Client[:], Op: 1 << 40, Index: 77, Outcome: []byte{1, 2, 3},
		}}},
		{Revision: 6, Kind: &pb.Effect_Relocate_{Relocate: &pb.Effect_Relocate{
			Key: []byte{prefixData, 3, 'k'}, From: pbRef, To: &pb.Effect_Ref{Epoch: 9, Counter: 9, ObjectBytes: 20, Length: 11},
		}}},
		{Revision: 7, Kind: &pb.Effect_Forget_{Forget: &pb.Effect_Forget{Objects: []*pb.Effect_Forget_Object{{Epoch: 1, Counter: 2}, {Epoch: 3, Counter: 4}}}}},
	}}
	if !proto.Equal(&got, want) {
		t.Errorf("got %v\nwant %v", &got, want)
	}
	var back putEffect
	if !back.decode(put.append(nil)) || back.value.Ref != ref || len(back.metadata) != 2 || back.metadata[0] != put.metadata[0] {
		t.Errorf("decoded %+v, not %+v", back, put)
	}
}

// TestUnknownEffects: what a release does not know it refuses by name, and it does not skip fields.
func TestUnknownEffects(t *testing.T) {
	long := appendEffect(nil, 1, kindDelete, appendBytesField(appendUintField(nil, 1, 1), 9, "new field"))
	for _, c := range []struct {
		name, want string
		body       []byte
	}{
		{"prepare", "PREPARE at revision 1 is not known", appendEffect(nil, 1, 16, nil)},
		{"decide", "DECIDE at revision 1 is not known", appendEffect(nil, 1, 17, nil)},
		{"split", "SPLIT at revision 1 is not known", appendEffect(nil, 1, 18, nil)},
		{"session", "SESSION at revision 1 is not known", appendEffect(nil, 1, 19, nil)},
		{"config", "CONFIG at revision 1 is not known", appendEffect(nil, 1, 20, nil)},
		{"number", "effect type 999 at revision 1 is not known", appendEffect(nil, 1, 999, nil)},
		{"no kind", "effect type 0 at revision 1 is not known", []byte{0x0a, 2, 8, 1}},
		{"new field", "DELETE at revision 1 is damaged", long},
		{"revision back", "has revision 0 after 0", appendEffect(nil, 0, kindSweep, nil)},
		{"revision hole", "has revision 2 after 0", appendEffect(nil, 2, kindSweep, nil)},
		{"cut", "not a list of effects", long[:len(long)-1]},
		{"garbage", "not a list of effects", []byte("garbage")},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := New(Config{}).Replay(c.body, 1); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// FuzzReplay feeds bodies, true ones first: no input may panic, and what is accepted leads to one tree.
func FuzzReplay(f *testing.F) {
	for _, body := range randomBodies(f, 1, 300) {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		base := New(Config{TickBudget: 10})
		for _, d := range fuzzBase {
			if err := base.Replay(d, 1000); err != nil {
				t.Fatal(err)
			}
		}
		a, b := New(Config{}), New(Config{})
		a.Restore(base.Tree().Clone())
		b.Restore(base.Tree().Clone())
		errA, errB := a.Replay(body, 2000), b.Replay(body, 2000)
		if (errA == nil) != (errB == nil) {
			t.Fatalf("one replay says %v, another %v", errA, errB)
		}
		if errA != nil {
			return
		}
		if err := sameTree(a.Tree(), b.Tree()); err != nil {
			t.Fatal(err)
		}
		v := NewView(a.Tree().Clone())
		v.List(1, ListQuery{})
		if changes, ok := v.Changes(v.OldestRevision()); ok {
			for range changes {
			}
		}
		for id := range DeadObjects(v) {
			for range Residents(v, id) {
			}
		}
		a.Tick(1 << 45)
		a.Ready()
		a.WakeMS()
	})
}

// fuzzBase are records that put something there for fuzzed effects to meet.
var fuzzBase = func() (bodies [][]byte) {
	m := New(Config{})
	m.Tick(500)
	for i := range byte(4) {
		m.Step(&Command{Op: OpPut, Namespace: 1, Put: Put{Key: []byte{'a' + i}, TTLMS: int64(i) * 1000, Value: Value{Inline: []byte("v")}},
			ID: Identity{Client: [16]byte{1}, Op: uint64(i), NotAfterMS: 1500}})
		bodies = append(bodies, m.Ready().Body)
	}
	return bodies
}()
