package memhost

import (
	"context"
	"sync"

	"github.com/zeebo/xxh3"

	"kvstore/actors/fanout"
	"kvstore/actors/shard"
)

// fillBytes is how many bytes of values a host keeps that watchers were told last: those who want to know the same come within moments.
const fillBytes = 16 << 20

// fills reads values that lie apart from their keys, each once for all watchers who are told of it at about the same time.
type fills struct {
	mu    sync.Mutex
	all   map[fillKey]*filled // guarded by mu, as is all below
	order []fillKey           // oldest first
	bytes int64
}

// fillKey is a value of an epoch of a shard. It is never another one.
type fillKey struct {
	shard string
	epoch uint64
	ref   shard.Ref
}

// filled is a value that somebody reads, or has read.
type filled struct {
	done  chan struct{} // closed when value is set
	value []byte        // nil: it could not be read
}

// read returns a value; nil when it cannot be read.
func (c *fills) read(ctx context.Context, a *shardActor, ref shard.Ref) []byte {
	k := fillKey{a.hub.id, a.epoch, ref}
	c.mu.Lock()
	f := c.all[k]
	if f != nil {
		c.mu.Unlock()
		select {
		case <-f.done:
			return f.value
		case <-ctx.Done():
			return nil
		}
	}
	f = &filled{done: make(chan struct{})}
	if c.all == nil {
		c.all = make(map[fillKey]*filled)
	}
	c.all[k] = f
	c.order = append(c.order, k)
	for c.bytes += k.ref.Length; c.bytes > fillBytes; c.order = c.order[1:] {
		delete(c.all, c.order[0])
		c.bytes -= c.order[0].ref.Length
	}
	c.mu.Unlock()
	defer close(f.done)
	value := make([]byte, ref.Length)
	// Not with ctx: others wait for it, too.
	if err := a.values.Read(a.hub.host.ctx, ref, 0, value); err != nil || xxh3.Hash(value) != ref.Checksum {
		c.forget(&k)
		return nil
	}
	f.value = value
	return value
}

// forget forgets a value; nil forgets all.
func (c *fills) forget(k *fillKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := c.order[:0]
	for _, o := range c.order {
		if k != nil && o != *k {
			kept = append(kept, o)
			continue
		}
		delete(c.all, o)
		c.bytes -= o.ref.Length
	}
	c.order = kept
}

// fill puts in the values that lie apart from their keys. One that cannot be read stays a reference: the state has another one by now, or the next
// reader of the key is told that it is damaged.
func (a *shardActor) fill(ctx context.Context, events []fanout.Event) {
	for i := range events {
		for _, v := range []*shard.Value{&events[i].Value, &events[i].Before} {
			if v.Ref.Object == (shard.ObjectID{}) || v.Ref.Length > fanout.MaxValue {
				continue
			}
			if value := a.hub.host.fills.read(ctx, a, v.Ref); value != nil {
				*v = shard.Value{Inline: value}
			}
		}
	}
}
