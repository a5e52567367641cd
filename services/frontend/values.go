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

// find reads a key and, when its value lies apart and alloc is not nil, the value into what alloc returns for its
// length. A key that is rewritten while its old value is read is read anew, so DataLoss is never a mere race. The entry is
// a view, valid for ever; found is false when the key is absent.
func (s *Server) find(ctx context.Context, ns *Namespace, sh *Shard, k []byte, alloc func(n int) []byte) (
	e shard.Entry, value []byte, found bool, view shard.View, err *kverr.Error) {
	var tried shard.Ref
	for range maxRereads {
		v, verr := s.shards.View(ctx, sh.ID)
		if verr != nil {
			return e, nil, false, v, kverr.From(verr)
		}
		view = v
		var lost *kverr.Error
		if e, found, lost = v.Get(ns.ID, k); lost != nil {
			return e, nil, true, v, lost
		}
		if !found || !apart(&e.Value) || alloc == nil {
			return e, e.Value.Inline, found, v, nil
		}
		if err != nil && (err.Kind != kverr.DataLoss || e.Value.Ref == tried) {
			return e, nil, true, v, err
		}
		tried = e.Value.Ref
		if value == nil || int64(len(value)) != tried.Length {
			if value = alloc(int(tried.Length)); value == nil {
				return e, nil, true, v, errUseGetStream
			}
		}
		if err = s.readVerified(ctx, sh.ID, tried, value); err == nil {
			return e, value, true, v, nil
		}
	}
	return e, nil, true, view, err
}

var errUseGetStream = &kverr.Error{Kind: kverr.ValueTooLarge, Message: "the value does not fit a reply; use GetStream"}
