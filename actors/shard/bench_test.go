package shard

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"

	"kvstore/actors/host"
)

// bench is a machine with n keys of 16 bytes and values of 256, as puts with identities have made it, in bodies of 64 commands.
type bench struct {
	m    *Machine
	c    Command
	key  [16]byte
	step int
	now  int64
	out  []host.Gated[*Command]
}

func newBench(n, valueBytes int) *bench {
	b := &bench{m: New(Config{}), now: 1_700_000_000_000}
	b.m.Tick(b.now)
	b.c.Namespace = 1
	b.c.Put.Value.Inline = make([]byte, valueBytes)
	for i := range n {
		b.put(i)
	}
	b.m.Ready()
	return b
}

// scatter is key i, in no order.
func (b *bench) scatter(i int) []byte {
	binary.BigEndian.PutUint64(b.key[:], uint64(i)*0x9e3779b97f4a7c15)
	binary.BigEndian.PutUint64(b.key[8:], uint64(i))
	return b.key[:]
}

func (b *bench) put(i int) {
	b.step++
	b.c.Op = OpPut
	b.c.Put.Key = b.scatter(i)
	b.c.Put.Slot = uint16(i & maxSlot)
	b.identify()
	b.run()
}

func (b *bench) identify() {
	b.c.ID = Identity{Client: [16]byte{1, byte(b.step & 3)}, Op: uint64(b.step >> 2), NotAfterMS: b.now + 60_000}
}

func (b *bench) run() {
	b.m.Step(&b.c)
	if b.c.Result.Err != nil {
		panic(b.c.Result.Err)
	}
	b.out = b.m.Replies(b.out[:0])
	if b.step%64 == 0 {
		b.now += 2
		b.m.Tick(b.now)
		b.m.Ready()
		b.m.Tree().Clone()
	}
}

func sizes(b *testing.B, f func(b *testing.B, n int)) {
	for _, n := range []int{10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("keys=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			f(b, n)
		})
	}
}

func BenchmarkStepPut(b *testing.B) {
	sizes(b, func(b *testing.B, n int) {
		k := newBench(n, 256)
		for i := 0; b.Loop(); i++ {
			k.put(i * 7919 % n)
		}
	})
}

func BenchmarkStepPutPlain(b *testing.B) { // without identity
	sizes(b, func(b *testing.B, n int) {
		k := newBench(n, 256)
		for i := 0; b.Loop(); i++ {
			k.step++
			k.c.ID = Identity{}
			k.c.Put.Key = k.scatter(i * 7919 % n)
			k.run()
		}
	})
}

func BenchmarkStepDelete(b *testing.B) { // each followed by a put that brings the key back
	sizes(b, func(b *testing.B, n int) {
		k := newBench(n, 256)
		for i := 0; b.Loop(); i++ {
			k.step++
			k.c.Op = OpDelete
			k.c.Delete.Key = k.scatter(i * 7919 % n)
			k.identify()
			k.run()
			k.put(i * 7919 % n)
		}
	})
}

func BenchmarkStepTxn(b *testing.B) { // two conditions, four puts
	sizes(b, func(b *testing.B, n int) {
		k := newBench(n, 256)
		var puts [4]Put
		var keys [4][16]byte
		txn := &Txn{Conditions: make([]Condition, 2), Ops: make([]TxnOp, 4)}
		for i := 0; b.Loop(); i++ {
			k.step++
			for j := range puts {
				keys[j] = [16]byte(k.scatter((i*7919 + j) % n))
				puts[j] = Put{Key: keys[j][:], Value: k.c.Put.Value}
				txn.Ops[j].Put = &puts[j]
			}
			for j := range txn.Conditions {
				txn.Conditions[j] = Condition{Key: keys[j][:], If: Precondition{Check: CheckPresent}}
			}
			k.c.Op, k.c.Txn = OpTxn, txn
			k.identify()
			k.run()
		}
	})
}

func BenchmarkGet(b *testing.B) {
	sizes(b, func(b *testing.B, n int) {
		k := newBench(n, 256)
		v := NewView(k.m.Tree().Clone())
		for i := 0; b.Loop(); i++ {
			if _, ok, _ := v.Get(1, k.scatter(i*7919%n)); !ok {
				b.Fatal("a key is missing")
			}
		}
	})
}

func BenchmarkList100(b *testing.B) {
	sizes(b, func(b *testing.B, n int) {
		k := newBench(n, 256)
		v := NewView(k.m.Tree().Clone())
		for i := 0; b.Loop(); i++ {
			v.List(1, ListQuery{Start: k.scatter(i * 7919 % n), Limit: 100})
		}
	})
}

// BenchmarkReplay replays bodies of one put, which a shard logs that is written now and then, and of 64, into a machine of n keys; one
// operation is one put.
func BenchmarkReplay(b *testing.B) {
	for _, width := range []int{1, 64} {
		b.Run(fmt.Sprintf("width=%d", width), func(b *testing.B) {
			sizes(b, func(b *testing.B, n int) {
				k := newBench(n, 256)
				var bodies [][]byte
				var times []int64
				other := New(Config{})
				other.Restore(k.m.Tree().Clone())
				for i := range 64_000 / width {
					for j := range width {
						k.c.Put.Key = k.scatter((i*width + j) * 7919 % n)
						k.step = i*width + j + 1<<30
						k.identify()
						k.m.Step(&k.c)
					}
					k.now += 2
					k.m.Tick(k.now)
					r := k.m.Ready()
					bodies, times = append(bodies, r.Body), append(times, r.TimeMS)
				}
				base := other.Tree().Clone()
				b.ResetTimer()
				for i := 0; i < b.N; i += width {
					at := i / width % len(bodies)
					if at == 0 {
						b.StopTimer()
						other.Restore(base.Clone())
						b.StartTimer()
					}
					if err := other.Replay(bodies[at], times[at]); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

// TestOverhead bounds what a small key costs beside its key and value: entry, remembered outcome, history and tree.
func TestOverhead(t *testing.T) {
	const keys, keyBytes, valueBytes, most = 200_000, 16, 32, 250
	used := func() int64 {
		var s runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&s)
		return int64(s.HeapAlloc)
	}
	before := used()
	k := newBench(keys, valueBytes)
	history := k.m.meta.historyBytes
	each := (used() - before - history) / keys
	t.Logf("%d bytes of heap per key of %d + %d: %d of overhead (the tree counts %d; history of %d bytes apart)", each, keyBytes, valueBytes,
		each-keyBytes-valueBytes, (k.m.tree.Bytes()-history)/keys, history)
	if each-keyBytes-valueBytes > most {
		t.Errorf("%d bytes of overhead per key, %d are allowed", each-keyBytes-valueBytes, most)
	}
	runtime.KeepAlive(k)
}

// TestStepAllocations bounds what a put may allocate: the command runs in the tree's own memory.
func TestStepAllocations(t *testing.T) {
	k := newBench(100_000, 256)
	i := 0
	got := testing.AllocsPerRun(20_000, func() { k.put(i * 7919 % 100_000); i++ })
	if got > 6 {
		t.Errorf("a put allocates %.1f times, 6 are allowed", got)
	}
	v := NewView(k.m.Tree().Clone())
	if got := testing.AllocsPerRun(1000, func() { v.Get(1, k.scatter(17)) }); got != 0 {
		t.Errorf("a get allocates %.1f times", got)
	}
}
