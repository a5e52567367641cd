package client

import (
	"context"

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
	resp, err := unary(ctx, c.core, writes, "batch put", kvStub, kvstorev1.KVServiceClient.BatchPut, req)
	if err == nil {
		err = sameLength("batch put", len(items), len(resp.Results))
	}
	if err != nil {
		return nil, err
	}
	out := make([]PutOutcome, len(items))
	for i, r := range resp.Results {
		out[i] = PutOutcome{fromPut(r.GetResult()), fromItem(r.GetError())}
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
	resp, err := unary(ctx, c.core, reads, "batch get", kvStub, kvstorev1.KVServiceClient.BatchGet, req)
	if err == nil {
		err = sameLength("batch get", len(keys), len(resp.Results))
	}
	if err != nil {
		return nil, err
	}
	out := make([]GetOutcome, len(keys))
	for i, r := range resp.Results {
		out[i] = GetOutcome{fromEntry(r.GetEntry()), fromItem(r.GetError())}
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
	resp, err := unary(ctx, c.core, writes, "batch delete", kvStub, kvstorev1.KVServiceClient.BatchDelete, req)
	if err == nil {
		err = sameLength("batch delete", len(items), len(resp.Results))
	}
	if err != nil {
		return nil, err
	}
	out := make([]DeleteOutcome, len(items))
	for i, r := range resp.Results {
		out[i] = DeleteOutcome{fromDelete(r.GetResult()), fromItem(r.GetError())}
	}
	return out, nil
}

// sameLength checks that a batch's reply answers every item.
func sameLength(op string, want, got int) error {
	if want == got {
		return nil
	}
	return &kverr.Error{Kind: kverr.Unknown, Op: op, Message: "the server answered another number of items than it was sent"}
}
