package client

import (
	"context"

	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// Txn gathers conditions and operations that are applied together at one revision, or not at all. All keys must lie in
// one partition: by default keys that share a {hash tag}. A Txn is for one goroutine and one Commit.
//
//	res, err := c.Txn().
//		If("{42}/balance", client.IfVersion(7)).
//		Put("{42}/balance", []byte("90"), nil).
//		Delete("{42}/pending", nil).
//		Commit(ctx)
//	if err == nil && !res.Committed { ... res.Failures tells which conditions did not hold ... }
type Txn struct {
	c   *Client
	req kvstorev1.TransactionRequest
}

// TxnResult tells what became of a transaction.
type TxnResult struct {
	Committed bool         // every condition held and every operation is applied
	Revision  uint64       // the one revision of all writes; 0 when not committed
	Results   []TxnOp      // when committed: of each operation, in order
	Failures  []TxnFailure // when not: every condition that did not hold
}

// TxnOp is the result of one operation of a committed transaction; one of the two is set.
type TxnOp struct {
	Put    *PutResult
	Delete *DeleteResult
}

// TxnFailure is a condition that did not hold.
type TxnFailure struct {
	Condition int    // number of the If, from 0; -1 when it was the precondition of an operation
	Op        int    // number of the operation, from 0; -1 when it was an If
	Key       string // the key
	Current   uint64 // its version now; 0 = absent
}

// Txn begins a transaction.
func (c *Client) Txn() *Txn { return &Txn{c: c} }

// If adds a condition on a key, which the transaction need not write.
func (t *Txn) If(key string, p Precondition) *Txn {
	t.req.Conditions = append(t.req.Conditions, &kvstorev1.TransactionRequest_Condition{Key: []byte(key), Precondition: p.proto()})
	return t
}

// Put adds a put; o may hold a precondition too. value must not change before Commit.
func (t *Txn) Put(key string, value []byte, o *PutOptions) *Txn {
	t.req.Ops = append(t.req.Ops, &kvstorev1.TransactionRequest_Op{
		Op: &kvstorev1.TransactionRequest_Op_Put{Put: o.proto(key, value)},
	})
	return t
}

// Delete adds a removal; o may hold a precondition too.
func (t *Txn) Delete(key string, o *DeleteOptions) *Txn {
	op := &kvstorev1.DeleteOp{Key: []byte(key)}
	if o != nil {
		op.Precondition = o.If.proto()
	}
	t.req.Ops = append(t.req.Ops, &kvstorev1.TransactionRequest_Op{Op: &kvstorev1.TransactionRequest_Op_Delete{Delete: op}})
	return t
}

// Commit sends the transaction. That a condition did not hold is no error: see TxnResult.Committed. ErrCrossPartition
// when the keys do not lie in one partition.
func (t *Txn) Commit(ctx context.Context) (TxnResult, error) {
	if t.req.Identity != nil {
		return TxnResult{}, invalid("commit", "this transaction was committed before; begin another")
	}
	c := t.c
	t.req.Keyspace, t.req.Namespace, t.req.Identity = c.keyspace, c.namespace, c.identity()
	resp, err := unary(ctx, c.core, writes, "commit", kvStub, kvstorev1.KVServiceClient.Transaction, &t.req)
	if err != nil {
		return TxnResult{}, err
	}
	out := TxnResult{Committed: resp.Committed, Revision: resp.Revision}
	for _, r := range resp.Results {
		var op TxnOp
		if p := r.GetPut(); p != nil {
			put := fromPut(p)
			op.Put = &put
		}
		if d := r.GetDelete(); d != nil {
			del := fromDelete(d)
			op.Delete = &del
		}
		out.Results = append(out.Results, op)
	}
	for _, f := range resp.Failures {
		out.Failures = append(out.Failures, TxnFailure{
			Condition: int(f.Condition), Op: int(f.Op), Key: string(f.Key), Current: f.CurrentVersion,
		})
	}
	return out, nil
}
