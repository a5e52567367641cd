package frontend

import (
	"context"

	"github.com/zeebo/xxh3"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
)

// apart tells whether a value lies in an object of its own.
func apart(v *shard.Value) bool { return v.Ref.Object != (shard.ObjectID{}) }

// readVerified reads a whole value that lies apart into p, which has its length, and verifies it. A value that is gone or
// damaged is DataLoss.
func (s *Server) readVerified(ctx context.Context, shardID string, ref shard.Ref, p []byte) *kverr.Error {
	if err := s.shards.ReadValue(ctx, shardID, ref, 0, p); err != nil {
		return lostValue(err)
	}
	if xxh3.Hash(p) != ref.Checksum {
		return errDamaged
	}
	return nil
}

// lostValue makes DataLoss of an object that is gone: it may be gone for good, or the key was written meanwhile.
func lostValue(err error) *kverr.Error {
	e := kverr.From(err)
	if e.Kind == kverr.NotFound {
		return &kverr.Error{Kind: kverr.DataLoss, Op: "read value", Message: "the value's object is gone", Err: err}
	}
	return e
}

var errDamaged = &kverr.Error{Kind: kverr.DataLoss, Op: "read value", Message: "the stored value does not match its checksum"}

// maxRereads bounds how often a read starts anew because the key was written meanwhile.
const maxRereads = 16

// found is what a key has.
type found struct {
	entry    shard.Entry // valid for ever
	ok       bool        // the key is there
	revision uint64      // of the shard, as the answer saw it
}

// lookUp asks for the entry of a key.
func (s *Server) lookUp(ctx context.Context, ns *Namespace, sh *Shard, k []byte) (f found, err *kverr.Error) {
	r := newReading()
	r.query.Op, r.query.Namespace, r.query.Key = shard.QueryGet, ns.ID, k
	if err := s.read(ctx, sh.ID, r); err != nil {
		return f, err
	}
	a := &r.query.Answer
	f.entry, f.ok, f.revision, err = a.Entry, a.Found, a.Revision, a.Err
	r.free()
	return f, err
}

// find reads a key and, when its value lies apart and alloc is not nil, the value into what alloc returns for its length.
func (s *Server) find(ctx context.Context, ns *Namespace, sh *Shard, k []byte, alloc func(n int) []byte) (f found, value []byte, err *kverr.Error) {
	if f, err = s.lookUp(ctx, ns, sh, k); err != nil || !f.ok {
		return f, nil, err
	}
	if alloc == nil || !apart(&f.entry.Value) {
		return f, f.entry.Value.Inline, nil
	}
	return s.fetch(ctx, ns, sh, k, f, alloc)
}

// fetch reads the value of a key that was found and lies apart. A key that is rewritten while its old value is read is looked up anew,
// so DataLoss is never a mere race.
func (s *Server) fetch(ctx context.Context, ns *Namespace, sh *Shard, k []byte, f found, alloc func(n int) []byte) (_ found, value []byte, err *kverr.Error) {
	for range maxRereads {
		tried := f.entry.Value.Ref
		if value == nil || int64(len(value)) != tried.Length {
			if value = alloc(int(tried.Length)); value == nil {
				return f, nil, errUseGetStream
			}
		}
		if err = s.readVerified(ctx, sh.ID, tried, value); err == nil {
			return f, value, nil
		}
		if err.Kind != kverr.DataLoss {
			return f, nil, err
		}
		why := err
		if f, err = s.lookUp(ctx, ns, sh, k); err != nil || !f.ok {
			return f, nil, err
		}
		if !apart(&f.entry.Value) {
			return f, f.entry.Value.Inline, nil
		}
		if err = why; f.entry.Value.Ref == tried {
			return f, nil, err
		}
	}
	return f, nil, err
}

var errUseGetStream = &kverr.Error{Kind: kverr.ValueTooLarge, Message: "the value does not fit a reply; use GetStream"}
