package client

import (
	"context"

	"google.golang.org/grpc"

	"kvstore/components/kverr"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// PutItem is one put of a batch or a transaction.
type PutItem struct {
	Key     string
	Value   []byte
	Options *PutOptions // nil: none
}

// DeleteItem is one removal of a batch.
type DeleteItem struct {
	Key     string
	Options *DeleteOptions // nil: none
}

// PutOutcome is what became of one put of a batch: a result or an error.
type PutOutcome struct {
	PutResult
	Err error
}

// GetOutcome is what became of one get of a batch: an entry or an error.
type GetOutcome struct {
	Entry
	Err error
}

// DeleteOutcome is what became of one removal of a batch: a result or an error.
type DeleteOutcome struct {
	DeleteResult
	Err error
}

// BatchPut stores at most 1,000 values of together at most 8 MiB, in one message of at most 4 MiB, each on its own.
// Outcome i belongs to items[i]. The error is that of the call as a whole.
func (c *Client) BatchPut(ctx context.Context, items []PutItem) ([]PutOutcome, error) {
	req := &kvstorev1.BatchPutRequest{Keyspace: c.keyspace, Namespace: c.namespace, Identity: c.identity()}
	for _, it := range items {
		req.Puts = append(req.Puts, it.Options.proto(it.Key, it.Value))
	}
	results, errs, err := batch(ctx, c.core, writes, "batch put", kvstorev1.KVServiceClient.BatchPut, req, len(items))
	if err != nil {
		return nil, err
	}
	out := make([]PutOutcome, len(items))
	for i, r := range results {
		out[i] = PutOutcome{fromPut(r.GetResult()), errs[i]}
	}
	return out, nil
}

// BatchGet reads at most 1,000 values, each on its own. Outcome i belongs to keys[i]; an absent key is ErrNotFound, a
// value that did not fit into the reply any more has an error of kind ValueTooLarge: get it alone.
func (c *Client) BatchGet(ctx context.Context, keys []string, o *GetOptions) ([]GetOutcome, error) {
	req := &kvstorev1.BatchGetRequest{Keyspace: c.keyspace, Namespace: c.namespace}
	only := o != nil && o.MetadataOnly
	for _, k := range keys {
		req.Gets = append(req.Gets, &kvstorev1.GetOp{Key: []byte(k), MetadataOnly: only})
	}
	results, errs, err := batch(ctx, c.core, reads, "batch get", kvstorev1.KVServiceClient.BatchGet, req, len(keys))
	if err != nil {
		return nil, err
	}
	out := make([]GetOutcome, len(keys))
	for i, r := range results {
		out[i] = GetOutcome{fromEntry(r.GetEntry()), errs[i]}
		out[i].Key = keys[i]
		if out[i].Err == nil {
			out[i].present(only)
		}
	}
	return out, nil
}

// BatchDelete removes at most 1,000 keys, each on its own. Outcome i belongs to items[i].
func (c *Client) BatchDelete(ctx context.Context, items []DeleteItem) ([]DeleteOutcome, error) {
	req := &kvstorev1.BatchDeleteRequest{Keyspace: c.keyspace, Namespace: c.namespace, Identity: c.identity()}
	for _, it := range items {
		op := &kvstorev1.DeleteOp{Key: []byte(it.Key)}
		if it.Options != nil {
			op.Precondition = it.Options.If.proto()
		}
		req.Deletes = append(req.Deletes, op)
	}
	results, errs, err := batch(ctx, c.core, writes, "batch delete", kvstorev1.KVServiceClient.BatchDelete, req, len(items))
	if err != nil {
		return nil, err
	}
	out := make([]DeleteOutcome, len(items))
	for i, r := range results {
		out[i] = DeleteOutcome{fromDelete(r.GetResult()), errs[i]}
	}
	return out, nil
}

// batch calls one RPC whose reply has an outcome for each of n items. It is repeated as a whole while an item failed in a way that passes:
// under its identity, what was done before gets its first answer. errs[i] is the error of items[i], or nil.
func batch[Req any, Resp interface{ GetResults() []Item }, Item interface{ GetError() *kvstorev1.Error }](
	ctx context.Context, co *core, eff effect, op string,
	rpc func(kvstorev1.KVServiceClient, context.Context, Req, ...grpc.CallOption) (Resp, error), req Req, n int,
) (items []Item, errs []error, err error) {
	a := attempts{effect: eff}
	var each []attempts // of items; nil while no outcome was unknown
	for {
		resp, err := unary(ctx, co, eff, op, kvStub, rpc, req)
		if err == nil {
			err = sameLength(op, n, len(resp.GetResults()))
		}
		if err != nil {
			if items != nil {
				return items, errs, nil // most of the batch has its outcome: what is known of the rest stands
			}
			return nil, nil, err
		}
		items, errs = resp.GetResults(), make([]error, n)
		var passing *kverr.Error
		for i, it := range items {
			e := kverr.FromItem(it.GetError())
			if e == nil {
				continue
			}
			if errs[i] = e; each != nil {
				errs[i] = each[i].final(e)
			}
			if e.Kind == kverr.OutcomeUnknown && eff != reads {
				if each == nil {
					each = make([]attempts, n)
				}
				each[i].maybe = true
			}
			if passes(e) {
				passing = e
			}
		}
		if passing == nil {
			return items, errs, nil
		}
		if a.next(ctx, co, passing) != nil {
			return items, errs, nil //nolint:nilerr // the items say what is wrong
		}
	}
}

// sameLength checks that a batch's reply answers every item.
func sameLength(op string, want, got int) error {
	if want == got {
		return nil
	}
	return &kverr.Error{Kind: kverr.Unknown, Op: op, Message: "the server answered another number of items than it was sent"}
}
