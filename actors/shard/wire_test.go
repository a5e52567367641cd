package shard

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	"kvstore/components/kverr"
	"kvstore/components/promptcache"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// wireGen makes random commands, results and queries.
type wireGen struct{ *rand.Rand }

func (g wireGen) some(p int) bool { return g.IntN(100) < p }

func (g wireGen) bytes(most int) []byte {
	n := g.IntN(most + 1)
	if n == 0 {
		return nil
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(g.Uint32())
	}
	return b
}

func (g wireGen) id() (out [16]byte) {
	for i := range out {
		out[i] = byte(g.IntN(255) + 1)
	}
	return out
}

// number is small or huge.
func (g wireGen) number() uint64 { return g.Uint64() >> g.IntN(64) }

func (g wireGen) ref() Ref {
	return Ref{Object: ObjectID{1 + g.number()>>1, g.number()}, ObjectBytes: int64(g.number() >> 1), Offset: int64(g.number() >> 1), Length: int64(g.number() >> 1), Checksum: g.Uint64() | 1}
}

func (g wireGen) value() Value {
	if g.some(40) {
		return Value{Ref: g.ref()}
	}
	return Value{Inline: g.bytes(300)}
}

func (g wireGen) check() Precondition {
	return Precondition{Check: Check(g.IntN(4)), Version: g.number()}
}

func (g wireGen) pairs() (pairs []Pair) {
	for range g.IntN(3) {
		pairs = append(pairs, Pair{string(g.bytes(10)), string(g.bytes(10))})
	}
	return pairs
}

func (g wireGen) put() Put {
	return Put{
		Key: g.bytes(40), Value: g.value(), ContentType: string(g.bytes(5)), Encoding: string(g.bytes(5)), Metadata: g.pairs(), Tags: g.pairs(),
		TTLMS: int64(g.number()), KeepTTL: g.some(50), If: g.check(), Slot: uint16(g.Uint32()),
	}
}

func (g wireGen) del() Delete {
	return Delete{Key: g.bytes(40), If: g.check(), Slot: uint16(g.Uint32())}
}

func (g wireGen) block() BlockKey {
	return BlockKey{ID: g.bytes(40), Rank: g.Uint32(), Group: uint32(g.IntN(3)), Depth: g.Uint32(), Slot: uint16(g.Uint32())}
}

func (g wireGen) blocks() (keys []BlockKey) {
	for range g.IntN(5) {
		keys = append(keys, g.block())
	}
	return keys
}

func (g wireGen) command() *Command {
	ops := []Op{OpPut, OpDelete, OpTxn, OpDropNamespace, OpLookup, OpIndex, OpRelease, OpTouch, OpPin, OpDeleteBlocks, OpClear, OpUnindex, OpEdit}
	c := &Command{Op: ops[g.IntN(len(ops))], Namespace: NamespaceID(g.Uint32())}
	if g.some(60) {
		c.ID = Identity{Client: g.id(), Op: g.number(), Index: uint32(g.number()), NotAfterMS: int64(g.number())}
	}
	switch argumentsOf(c.Op) {
	case 1 << OpPut:
		c.Put = g.put()
	case 1 << OpDelete:
		c.Delete = g.del()
	case 1 << OpEdit:
		c.Edit = &Edit{
			Key: g.bytes(40), Kind: EditKind(g.IntN(4)), Delta: int64(g.number()), Bytes: g.bytes(40), MaxBytes: int64(g.number()), ExpiresMS: int64(g.number()),
			When: EditWhen(g.IntN(16)), TTLMS: int64(g.number()), Slot: uint16(g.Uint32()),
		}
	case 1 << OpTxn:
		c.Txn = &Txn{Slot: uint16(g.Uint32())}
		for range g.IntN(4) {
			c.Txn.Conditions = append(c.Txn.Conditions, Condition{Key: g.bytes(20), If: g.check()})
		}
		for range g.IntN(4) {
			if g.some(50) {
				p := g.put()
				c.Txn.Ops = append(c.Txn.Ops, TxnOp{Put: &p})
			} else {
				d := g.del()
				c.Txn.Ops = append(c.Txn.Ops, TxnOp{Delete: &d})
			}
		}
	case promptArguments:
		p := &PromptArgs{
			Scope: g.id(), ScopeFields: g.bytes(30), Blocks: g.blocks(), LeaseMS: int64(g.number()), UntilMS: int64(g.number()),
			Capacity: Capacity{int64(g.number()), int64(g.number())}, AllScopes: g.some(50), After: g.bytes(20),
		}
		if g.some(50) {
			p.Lease = g.id()
		}
		for range g.IntN(3) {
			p.Index = append(p.Index, BlockPut{Block: g.block(), Parent: g.bytes(20), Value: g.value(), Size: int64(g.number()), Checksum: g.Uint64(), TTLMS: int64(g.number())})
		}
		if c.Op == OpUnindex {
			for range p.Blocks {
				p.Damaged = append(p.Damaged, g.ref())
			}
		}
		c.Prompt = p
	}
	return c
}

func (g wireGen) failure() *kverr.Error {
	e := &kverr.Error{
		Kind: kverr.Kind(g.IntN(22)), Op: string(g.bytes(5)), Message: string(g.bytes(20)), Field: string(g.bytes(5)), Limit: int64(g.number()),
		CurrentVersion: g.number(), RetryAfterMS: int64(g.number()),
	}
	if g.some(30) {
		e.Err = errors.New("c" + string(g.bytes(20)))
	}
	return e
}

func (g wireGen) result() *Result {
	r := &Result{
		Write: WriteResult{g.number(), g.some(50)}, Revision: g.number(), Committed: g.some(50), LeaseExpiresMS: int64(g.number()), Deleted: int64(g.number()),
		Leased: int64(g.number()), More: g.some(50), Next: g.bytes(20), Evicted: int64(g.number()), Damaged: int64(g.number()), Duplicate: g.some(50), Number: int64(g.number()),
	}
	if g.some(30) {
		r.Err = g.failure()
	}
	for range g.IntN(4) {
		r.Writes = append(r.Writes, WriteResult{g.number(), g.some(50)})
	}
	for range g.IntN(4) {
		f := TxnFailure{Condition: g.IntN(5), Op: -1, Version: g.number()}
		if g.some(50) {
			f.Condition, f.Op = -1, g.IntN(5)
		}
		r.Failures = append(r.Failures, f)
	}
	for range g.IntN(4) {
		o := BlockOutcome{
			Present: g.some(50), Stored: g.some(50), Leased: g.some(50), Refused: g.some(50), Size: int64(g.number()), Checksum: g.Uint64(), PinnedUntilMS: int64(g.number()),
		}
		if g.some(50) {
			o.Value.Ref = g.ref()
		}
		r.Blocks = append(r.Blocks, o)
	}
	return r
}

func (g wireGen) query() *Query {
	q := &Query{Op: QueryOp(1 + g.IntN(int(QueryScopes))), Namespace: NamespaceID(g.Uint32())}
	switch q.Op {
	case QueryGet:
		q.Key = g.bytes(40)
	case QueryList, QueryCount:
		q.List = &ListQuery{
			Prefix: g.bytes(5), Start: g.bytes(5), End: g.bytes(5), After: g.bytes(5), Limit: g.IntN(maxRows), MaxBytes: int64(g.number() >> 1), KeysOnly: g.some(50),
		}
	default:
		q.Prompt = &BlockQuery{Scope: g.id(), ScopeFields: g.bytes(30), Blocks: g.blocks(), StopAtMiss: g.some(50), After: g.bytes(20), Limit: g.IntN(maxRows)}
	}
	return q
}

// Conversions to the generated types, for comparison.

func protoRef(f *Ref) *dataplanev1.Effect_Ref {
	if f.Object == (ObjectID{}) {
		return nil
	}
	return &dataplanev1.Effect_Ref{
		Epoch: f.Object.Epoch, Counter: f.Object.Counter, ObjectBytes: f.ObjectBytes, Offset: f.Offset, Length: f.Length, Checksum: f.Checksum,
	}
}

func protoCheck(p Precondition) *dataplanev1.ShardCommand_Check {
	if p == (Precondition{}) {
		return nil
	}
	return &dataplanev1.ShardCommand_Check{Check: uint32(p.Check), Version: p.Version}
}

func protoPairs(pairs []Pair) (out []*dataplanev1.Effect_Pair) {
	for _, p := range pairs {
		out = append(out, &dataplanev1.Effect_Pair{Name: []byte(p.Name), Value: []byte(p.Value)})
	}
	return out
}

func protoPut(p *Put) *dataplanev1.ShardCommand_Put {
	return &dataplanev1.ShardCommand_Put{
		Key: p.Key, Value: p.Value.Inline, Ref: protoRef(&p.Value.Ref), ContentType: []byte(p.ContentType), Encoding: []byte(p.Encoding),
		Metadata: protoPairs(p.Metadata), Tags: protoPairs(p.Tags), TtlMs: p.TTLMS, KeepTtl: p.KeepTTL, Check: protoCheck(p.If), Slot: uint32(p.Slot),
	}
}

func protoDelete(d *Delete) *dataplanev1.ShardCommand_Delete {
	return &dataplanev1.ShardCommand_Delete{Key: d.Key, Check: protoCheck(d.If), Slot: uint32(d.Slot)}
}

func protoBlock(k *BlockKey) *dataplanev1.ShardCommand_Block {
	return &dataplanev1.ShardCommand_Block{Id: k.ID, Rank: k.Rank, Group: k.Group, Depth: k.Depth, Slot: uint32(k.Slot)}
}

func protoBlocks(keys []BlockKey) (out []*dataplanev1.ShardCommand_Block) {
	for i := range keys {
		out = append(out, protoBlock(&keys[i]))
	}
	return out
}

func protoCommand(c *Command) *dataplanev1.ShardCommand {
	out := &dataplanev1.ShardCommand{Op: uint32(c.Op), Namespace: uint32(c.Namespace)}
	if c.ID.Client != [16]byte{} {
		out.Client, out.ClientOp, out.Index, out.NotAfterMs = c.ID.Client[:], c.ID.Op, c.ID.Index, c.ID.NotAfterMS
	}
	switch {
	case c.Op == OpPut:
		out.Put = protoPut(&c.Put)
	case c.Op == OpDelete:
		out.Delete = protoDelete(&c.Delete)
	case c.Op == OpTxn:
		out.Txn = &dataplanev1.ShardCommand_Txn{Slot: uint32(c.Txn.Slot)}
		for _, cond := range c.Txn.Conditions {
			out.Txn.Conditions = append(out.Txn.Conditions, &dataplanev1.ShardCommand_Condition{Key: cond.Key, Check: protoCheck(cond.If)})
		}
		for _, op := range c.Txn.Ops {
			o := &dataplanev1.ShardCommand_TxnOp{}
			if op.Put != nil {
				o.Op = &dataplanev1.ShardCommand_TxnOp_Put{Put: protoPut(op.Put)}
			} else {
				o.Op = &dataplanev1.ShardCommand_TxnOp_Delete{Delete: protoDelete(op.Delete)}
			}
			out.Txn.Ops = append(out.Txn.Ops, o)
		}
	case c.Op == OpEdit:
		d := c.Edit
		out.Edit = &dataplanev1.ShardCommand_Edit{
			Key: d.Key, Kind: uint32(d.Kind), Delta: d.Delta, Bytes: d.Bytes, MaxBytes: d.MaxBytes, ExpiresMs: d.ExpiresMS, When: uint32(d.When), TtlMs: d.TTLMS,
			Slot: uint32(d.Slot),
		}
	case c.Prompt != nil:
		a := c.Prompt
		p := &dataplanev1.ShardCommand_Prompt{
			Scope: a.Scope[:], ScopeFields: a.ScopeFields, Blocks: protoBlocks(a.Blocks), LeaseMs: a.LeaseMS, UntilMs: a.UntilMS,
			CapacityBlocks: a.Capacity.Blocks, CapacityBytes: a.Capacity.Bytes, AllScopes: a.AllScopes, After: a.After,
		}
		if a.Lease != [16]byte{} {
			p.Lease = a.Lease[:]
		}
		for i := range a.Index {
			b := &a.Index[i]
			p.Index = append(p.Index, &dataplanev1.ShardCommand_BlockPut{
				Block: protoBlock(&b.Block), Parent: b.Parent, Value: b.Value.Inline, Ref: protoRef(&b.Value.Ref), Size: b.Size, Checksum: b.Checksum, TtlMs: b.TTLMS,
			})
		}
		for i := range a.Damaged {
			p.Damaged = append(p.Damaged, protoRef(&a.Damaged[i]))
		}
		out.Prompt = p
	}
	return out
}

func protoFailure(e *kverr.Error) *dataplanev1.Failure {
	if e == nil {
		return nil
	}
	out := &dataplanev1.Failure{
		Kind: uint32(e.Kind), Op: []byte(e.Op), Message: []byte(e.Message), Field: []byte(e.Field), Limit: e.Limit,
		CurrentVersion: e.CurrentVersion, RetryAfterMs: e.RetryAfterMS,
	}
	if e.Err != nil {
		out.Cause = []byte(e.Err.Error())
	}
	return out
}

func protoResult(r *Result) *dataplanev1.ShardResult {
	out := &dataplanev1.ShardResult{
		Failure: protoFailure(r.Err), Revision: r.Revision, Committed: r.Committed, LeaseExpiresMs: r.LeaseExpiresMS, Deleted: r.Deleted, Leased: r.Leased,
		More: r.More, Next: r.Next, Evicted: r.Evicted, Damaged: r.Damaged, Duplicate: r.Duplicate, Number: r.Number,
	}
	if r.Write != (WriteResult{}) {
		out.Write = &dataplanev1.ShardResult_Write{Version: r.Write.Version, Existed: r.Write.Existed}
	}
	for _, w := range r.Writes {
		out.Writes = append(out.Writes, &dataplanev1.ShardResult_Write{Version: w.Version, Existed: w.Existed})
	}
	for _, f := range r.Failures {
		out.Failures = append(out.Failures, &dataplanev1.ShardResult_TxnFailure{Condition: uint32(f.Condition + 1), Op: uint32(f.Op + 1), Version: f.Version})
	}
	for i := range r.Blocks {
		o := &r.Blocks[i]
		out.Blocks = append(out.Blocks, &dataplanev1.ShardResult_Block{
			Present: o.Present, Stored: o.Stored, Leased: o.Leased, Refused: o.Refused, Ref: protoRef(&o.Value.Ref), Size: o.Size, Checksum: o.Checksum,
			PinnedUntilMs: o.PinnedUntilMS,
		})
	}
	return out
}

func protoQuery(q *Query) *dataplanev1.ShardQuery {
	out := &dataplanev1.ShardQuery{Op: uint32(q.Op), Namespace: uint32(q.Namespace), Key: q.Key}
	if l := q.List; l != nil {
		out.List = &dataplanev1.ShardQuery_List{Prefix: l.Prefix, Start: l.Start, End: l.End, After: l.After, Limit: int64(l.Limit), MaxBytes: l.MaxBytes, KeysOnly: l.KeysOnly}
	}
	if p := q.Prompt; p != nil {
		out.Prompt = &dataplanev1.ShardQuery_Prompt{
			Scope: p.Scope[:], ScopeFields: p.ScopeFields, Blocks: protoBlocks(p.Blocks), StopAtMiss: p.StopAtMiss, After: p.After, Limit: int64(p.Limit),
		}
	}
	return out
}

// TestWireIsWhatIsGenerated: what is encoded by hand is what the generated code decodes, and the other way round.
func TestWireIsWhatIsGenerated(t *testing.T) {
	for seed := range uint64(2000) {
		g := wireGen{rand.New(rand.NewPCG(seed, 1))}
		c := g.command()
		var gotCommand Command
		bothWays(t, seed, AppendCommand(nil, c), protoCommand(c), func(b []byte) error { return DecodeCommand(b, &gotCommand) })
		if !reflect.DeepEqual(&gotCommand, c) {
			t.Fatalf("seed %d: command\n%+v came back as\n%+v", seed, c, &gotCommand)
		}
		r := g.result()
		var gotResult Result
		bothWays(t, seed, AppendResult(nil, r), protoResult(r), func(b []byte) error { return DecodeResult(b, &gotResult) })
		if !reflect.DeepEqual(&gotResult, r) {
			t.Fatalf("seed %d: result\n%+v came back as\n%+v", seed, r, &gotResult)
		}
		q := g.query()
		var gotQuery Query
		bothWays(t, seed, AppendQuery(nil, q), protoQuery(q), func(b []byte) error { return DecodeQuery(b, &gotQuery) })
		if !reflect.DeepEqual(&gotQuery, q) {
			t.Fatalf("seed %d: query\n%+v came back as\n%+v", seed, q, &gotQuery)
		}
	}
}

type vtMessage interface {
	proto.Message
	MarshalVT() ([]byte, error)
	UnmarshalVT([]byte) error
}

// bothWays hands encoded to the generated code, which must find want, and what that makes of want to decode.
func bothWays(t *testing.T, seed uint64, encoded []byte, want vtMessage, decode func([]byte) error) {
	t.Helper()
	got := want.ProtoReflect().New().Interface().(vtMessage)
	if err := got.UnmarshalVT(encoded); err != nil {
		t.Fatalf("seed %d: the generated code does not decode %T: %v", seed, want, err)
	}
	if !proto.Equal(got, want) {
		t.Fatalf("seed %d: encoded %v, want %v", seed, got, want)
	}
	b, err := want.MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	if err := decode(b); err != nil {
		t.Fatalf("seed %d: decode %v: %v", seed, want, err)
	}
}

// TestAnswersOverTheWire: every answer comes back as it was, as far as frontends see it.
func TestAnswersOverTheWire(t *testing.T) {
	r := newPromptRig(t, 0)
	for i := range 20 {
		p := Put{Key: fmt.Appendf(nil, "k%02d", i), Value: Value{Inline: bytes.Repeat([]byte{byte(i)}, i)}, TTLMS: int64(i % 3 * 1000)}
		if i%4 == 0 {
			p.ContentType, p.Metadata, p.Tags = "text/plain", []Pair{{"a", "b"}}, []Pair{{"c", "d"}}
		}
		if i%5 == 0 {
			p.Value = Value{Ref: Ref{Object: ObjectID{1, uint64(i) + 1}, ObjectBytes: 5000, Offset: 7, Length: 2000, Checksum: 42}}
		}
		r.step(&Command{Op: OpPut, Namespace: 1, Put: p})
	}
	form := mustForm(t, "model", "x")
	args := &PromptArgs{Scope: promptcache.ScopeOf(form), ScopeFields: form}
	block := func(i int) BlockKey {
		return BlockKey{ID: fmt.Appendf(nil, "b%d\x00x", i), Rank: uint32(i), Depth: uint32(i)}
	}
	for _, i := range []int{0, 1, 3, 4} {
		args.Index = append(args.Index, BlockPut{Block: block(i), Parent: []byte("up"), Value: Value{Inline: []byte("xyz")}, Size: 3, Checksum: 9, TTLMS: 1e6})
	}
	r.step(&Command{Op: OpIndex, Namespace: 2, Prompt: args})
	r.commit()
	v := NewView(r.durable)
	about := func(q BlockQuery) *BlockQuery {
		q.Scope, q.ScopeFields = args.Scope, form
		return &q
	}
	keys := []BlockKey{block(0), block(1), block(2), block(3), block(9)}
	for i, q := range []Query{
		{Op: QueryGet, Namespace: 1, Key: []byte("k04")},
		{Op: QueryGet, Namespace: 1, Key: []byte("k05")},
		{Op: QueryGet, Namespace: 1, Key: []byte("none")},
		{Op: QueryList, Namespace: 1, List: &ListQuery{Limit: 7}},
		{Op: QueryList, Namespace: 1, List: &ListQuery{Limit: 100, KeysOnly: true}},
		{Op: QueryCount, Namespace: 1, List: &ListQuery{}},
		{Op: QueryHas, Namespace: 2, Prompt: about(BlockQuery{Blocks: keys})},
		{Op: QueryHas, Namespace: 2, Prompt: about(BlockQuery{Blocks: keys, StopAtMiss: true})},
		{Op: QueryHas, Namespace: 2, Prompt: about(BlockQuery{})},
		{Op: QueryBlocks, Namespace: 2, Prompt: about(BlockQuery{Blocks: keys})},
		{Op: QueryBlocks, Namespace: 2, Prompt: about(BlockQuery{Blocks: keys, StopAtMiss: true})},
		{Op: QueryBlocks, Namespace: 3, Prompt: about(BlockQuery{Blocks: keys})},
		{Op: QueryBlockPage, Namespace: 2, Prompt: about(BlockQuery{Limit: 3})},
		{Op: QueryScope, Namespace: 2, Prompt: about(BlockQuery{})},
		{Op: QueryScopes, Namespace: 2, Prompt: about(BlockQuery{Limit: 3})},
	} {
		v.Answer(&q)
		encoded := AppendAnswer(nil, &q)
		if err := new(dataplanev1.ShardAnswer).UnmarshalVT(encoded); err != nil {
			t.Fatalf("query %d: the generated code does not decode the answer: %v", i, err)
		}
		got := q
		got.Answer = Answer{}
		if err := DecodeAnswer(encoded, &got); err != nil {
			t.Fatalf("query %d: %v", i, err)
		}
		if seen, want := seenOf(&got), seenOf(&q); seen != want {
			t.Errorf("query %d: the answer is\n%s\nwant\n%s", i, seen, want)
		}
		for n := range encoded {
			_ = DecodeAnswer(encoded[:n], &got) // must not panic
		}
	}
}

// seenOf is all that a frontend sees of an answer.
func seenOf(q *Query) string {
	a := &q.Answer
	text := fmt.Sprintf("%v %d %v %d %v %v %q %+v\n", a.Err, a.Revision, a.Found, a.Count, a.Present, a.More, a.Typed, a.Scopes)
	entry := func(e *Entry) {
		value := e.Value
		if q.List != nil && q.List.KeysOnly {
			value.Inline = nil
		}
		text += fmt.Sprintf("%q %q %+v %d %d %d %d %q %q %v %v size %d\n", e.Key, value.Inline, value.Ref, e.Version, e.CreatedMS, e.UpdatedMS, e.ExpiresMS,
			e.ContentType, e.Encoding, e.Metadata(), e.Tags(), e.Size())
	}
	if a.Found {
		entry(&a.Entry)
	}
	for i := range a.Entries {
		entry(&a.Entries[i])
	}
	for i, b := range a.Blocks {
		if q.Op == QueryBlocks && (i >= len(a.Present) || !a.Present[i]) {
			continue
		}
		b.item, b.use = nil, promptcache.Use{}
		text += fmt.Sprintf("%+v\n", b)
	}
	return text
}

// FuzzWire: whatever comes in, decoders do not panic, and what they take is what the generated code takes, and survives being sent on.
func FuzzWire(f *testing.F) {
	for seed := range uint64(50) {
		g := wireGen{rand.New(rand.NewPCG(seed, 2))}
		f.Add(AppendCommand(nil, g.command()))
		f.Add(AppendResult(nil, g.result()))
		f.Add(AppendQuery(nil, g.query()))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var c Command
		if DecodeCommand(b, &c) == nil {
			same(t, b, new(dataplanev1.ShardCommand), protoCommand(&c), AppendCommand(nil, &c), func(b []byte) error { return DecodeCommand(b, new(Command)) })
		}
		var q Query
		if DecodeQuery(b, &q) == nil {
			same(t, b, new(dataplanev1.ShardQuery), protoQuery(&q), AppendQuery(nil, &q), func(b []byte) error { return DecodeQuery(b, new(Query)) })
			_ = DecodeAnswer(b, &q)
		}
		var r Result
		if DecodeResult(b, &r) == nil {
			if err := DecodeResult(AppendResult(nil, &r), new(Result)); err != nil {
				t.Fatalf("result %+v does not survive: %v", r, err)
			}
		}
	})
}

func same(t *testing.T, b []byte, generated, want vtMessage, again []byte, decode func([]byte) error) {
	t.Helper()
	if err := generated.UnmarshalVT(b); err != nil {
		t.Fatalf("taken, but not by the generated code: %v", err)
	}
	if err := decode(again); err != nil {
		t.Fatalf("%v does not survive: %v", want, err)
	}
	// The generated code keeps apart what decoders need not: a part that is there and empty is no different from one that is not.
	back := want.ProtoReflect().New().Interface().(vtMessage)
	if err := back.UnmarshalVT(again); err != nil || !proto.Equal(back, want) {
		t.Fatalf("%v came back as %v, %v", want, back, err)
	}
}

func TestCommandOverTheWireAllocatesNothing(t *testing.T) {
	c := &Command{Op: OpPut, Namespace: 1, ID: Identity{Client: [16]byte{1}, Op: 5, NotAfterMS: 1e12}, Put: Put{Key: []byte("key"), Value: Value{Inline: make([]byte, 256)}, Slot: 7}}
	room := make([]byte, 0, 1024)
	var got Command
	if n := testing.AllocsPerRun(100, func() {
		got = Command{}
		if err := DecodeCommand(AppendCommand(room, c), &got); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkWire(b *testing.B) {
	c := &Command{Op: OpPut, Namespace: 1, ID: Identity{Client: [16]byte{1}, Op: 5, NotAfterMS: 1e12}, Put: Put{Key: []byte("key:000000001234"), Value: Value{Inline: make([]byte, 256)}, Slot: 7}}
	r := &Result{Write: WriteResult{Version: 123456}, Revision: 123456}
	b.Run("command", func(b *testing.B) {
		b.ReportAllocs()
		var room []byte
		var got Command
		for b.Loop() {
			room = AppendCommand(room[:0], c)
			got = Command{}
			if err := DecodeCommand(room, &got); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("result", func(b *testing.B) {
		b.ReportAllocs()
		var room []byte
		var got Result
		for b.Loop() {
			room = AppendResult(room[:0], r)
			got = Result{}
			if err := DecodeResult(room, &got); err != nil {
				b.Fatal(err)
			}
		}
	})
}
