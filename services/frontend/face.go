package frontend

import (
	"context"
	"io"

	"kvstore/actors/shard"
	"kvstore/components/authn"
	"kvstore/components/kverr"
	"kvstore/components/tracing"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// Face is a frontend for another protocol in the same process (package resp). What it gives is what the gRPC services are made of, with their
// rights, limits and formats of values, so that a key is the same whichever way it came in.
//
// A caller is known by the pass in his context (Admit, authn.NewContext); without tokens he needs none.
type Face struct{ s *Server }

// Face returns the frontend for another protocol.
func (s *Server) Face() Face { return Face{s} }

// Open tells that no token is wanted.
func (f Face) Open() bool { return f.s.cfg.Access.Open() }

// Admit finds whose token it is. Where is what the log calls the protocol's request, and ctx names the peer, for refusals.
func (f Face) Admit(ctx context.Context, where, token string) (*authn.Pass, *kverr.Error) {
	pass, err := f.s.cfg.Access.Admit([]string{"Bearer " + token}, authn.Read)
	if err != nil {
		f.s.refusals.note(ctx, where, err)
	}
	return pass, err
}

// Namespace finds a namespace of keys, for whoever may read there. Empty names mean "default".
func (f Face) Namespace(ctx context.Context, keyspace, name string) (*Namespace, *kverr.Error) {
	return f.s.findNamespace(ctx, keyspace, name, keyKinds...)
}

// Spend counts a request of n operations on a namespace, or refuses it because its client or the namespace had as many as it may.
func (f Face) Spend(ctx context.Context, ns *Namespace, n int) *kverr.Error {
	return f.s.spend(ctx, ns, n)
}

// MayWrite tells whether the caller may write too.
func (f Face) MayWrite(ctx context.Context, where, keyspace string) *kverr.Error {
	err := f.s.mayWrite(ctx, keyspace)
	if err != nil {
		f.s.refusals.note(ctx, where, err)
	}
	return err
}

// Meter is who counts for the face.
func (f Face) Meter() Meter { return f.s.cfg.Meter }

// Tracer is who follows requests; nil: nobody does.
func (f Face) Tracer() *tracing.Tracer { return f.s.cfg.Tracer }

// Shards is the way to shards.
func (f Face) Shards() Shards { return f.s.shards }

// Stopping is closed when the frontend stops: streams end.
func (f Face) Stopping() <-chan struct{} { return f.s.stopping }

// MaxValueBytes is the largest value of a key.
func (f Face) MaxValueBytes() int64 { return f.s.cfg.MaxValueBytes }

// InlineLimit is the length up to which a value is kept beside its key.
func (f Face) InlineLimit() int { return f.s.cfg.InlineLimit }

// Now is the server's clock in milliseconds since the Unix epoch.
func (f Face) Now() int64 { return f.s.now() }

// CheckKey is what is wrong with a key; nil when nothing is.
func (f Face) CheckKey(k []byte) *kverr.Error { return checkKey("key", k) }

// Item is an error as users are told of it. What is the server's own fault is logged, with its cause.
func (f Face) Item(where string, err *kverr.Error) *kvv1.Error { return f.s.item(where, err) }

// StoreApart stores those values of puts to one shard that are over the inline limit, and puts references in their place. After an error nothing
// is changed.
func (f Face) StoreApart(ctx context.Context, sh *Shard, puts ...*shard.Put) *kverr.Error {
	return f.s.storeApart(ctx, sh.ID, puts)
}

// WriteValue stores one value of exactly size bytes from a stream. The reference goes to a command, or to DropValues.
func (f Face) WriteValue(ctx context.Context, sh *Shard, size int64, r io.Reader) (shard.Ref, *kverr.Error) {
	ref, err := f.s.shards.WriteValue(ctx, sh.ID, size, r)
	return ref, asFault(err)
}

// Fetch reads the value of a key that was found (Answer.Entry, of a QueryGet) and lies apart, verified, into what alloc returns for its length;
// when that is nil the error is ValueTooLarge. A key that is rewritten meanwhile is looked up anew, so value may be another's, and found false.
func (f Face) Fetch(ctx context.Context, ns *Namespace, sh *Shard, k []byte, a *shard.Answer, alloc func(n int) []byte) (e shard.Entry, value []byte, ok bool, err *kverr.Error) {
	got, value, err := f.s.fetch(ctx, ns, sh, k, found{entry: a.Entry, ok: true, revision: a.Revision}, alloc)
	return got.entry, value, got.ok, err
}

// Apart tells whether a value lies in an object of its own.
func Apart(v *shard.Value) bool { return apart(v) }

// MissesForErrors tells whether a protocol whose clients cannot stand an error may answer a read with a miss instead: in kind cache, and in no other.
func (ns *Namespace) MissesForErrors() bool {
	return ns.Kind == kvv1.NamespaceKind_NAMESPACE_KIND_CACHE
}

// Slot is the slot of a key, and the shard that owns it.
func (ns *Namespace) Slot(k []byte) (slot uint16, sh *Shard) {
	slot = ns.slot(k)
	return slot, ns.keyspace.owner(slot)
}

// Partition is the part of a key that decides its slot: transactions are within one.
func (ns *Namespace) Partition(k []byte) []byte { return ns.partition(k) }

// Shards are the shards that a namespace's keys lie in, by number.
func (ns *Namespace) Shards() []*Shard { return ns.keyspace.Shards }
