package memhost

import (
	"encoding/binary"
	"sync"
	"testing"

	"kvstore/actors/shard"
	"kvstore/components/wal"
	"kvstore/components/wal/memlog"
)

const benchShard = "b-0"

func benchHost(b *testing.B) *Host {
	b.Helper()
	engine, err := memlog.New(memlog.Config{})
	if err != nil {
		b.Fatal(err)
	}
	store, err := wal.NewStore(engine, wal.Config{})
	if err != nil {
		b.Fatal(err)
	}
	h, err := New(store, Config{})
	if err != nil {
		b.Fatal(err)
	}
	if err := h.Create(b.Context(), benchShard, nil); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = h.Close(b.Context(), false)
		_ = engine.Close()
	})
	return h
}

// putter is one caller with commands of its own, used again and again.
type putter struct {
	cmds []*shard.Command
	left sync.WaitGroup
	n    uint64
	keys uint64 // it puts one of so many
}

func newPutter(batch int, id byte) *putter {
	p := &putter{keys: 100_000}
	value := make([]byte, 256)
	for range batch {
		c := &shard.Command{Op: shard.OpPut, Namespace: 1}
		c.Put.Key = append(make([]byte, 8), id)
		c.Put.Value.Inline = value
		p.cmds = append(p.cmds, c)
	}
	return p
}

func (p *putter) run(b *testing.B, h *Host) {
	done := func(c *shard.Command, err error) {
		if err != nil || c.Result.Err != nil {
			b.Error(err, c.Result.Err)
		}
		p.left.Done()
	}
	for _, c := range p.cmds {
		p.n++
		binary.BigEndian.PutUint64(c.Put.Key, p.n*0x9e3779b97f4a7c15%p.keys)
		c.Done = done
	}
	p.left.Add(len(p.cmds))
	h.Do(b.Context(), benchShard, p.cmds...)
	p.left.Wait()
}

func BenchmarkPut(b *testing.B) {
	for _, s := range []struct {
		name           string
		callers, batch int
	}{{"c=1", 1, 1}, {"c=64", 64, 1}, {"batch=64", 1, 64}, {"c=16,batch=64", 16, 64}} {
		b.Run(s.name, func(b *testing.B) {
			h := benchHost(b)
			b.ReportAllocs()
			var callers sync.WaitGroup
			for id := range s.callers {
				n := b.N / s.callers / s.batch
				callers.Go(func() {
					p := newPutter(s.batch, byte(id))
					for range n + 1 {
						p.run(b, h)
					}
				})
			}
			callers.Wait()
		})
	}
}

func BenchmarkGet(b *testing.B) {
	h := benchHost(b)
	p := newPutter(1000, 0)
	p.run(b, h)
	key := append([]byte(nil), p.cmds[0].Put.Key...)
	b.ReportAllocs()
	for b.Loop() {
		v, err := h.View(b.Context(), benchShard)
		if err != nil {
			b.Fatal(err)
		}
		if _, ok, _ := v.Get(1, key); !ok {
			b.Fatal("not there")
		}
	}
}
