package frontend

import (
	"bytes"
	"context"
	"fmt"

	"kvstore/actors/shard"
	"kvstore/components/key"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

func (k *kvService) Transaction(ctx context.Context, req *kvv1.TransactionRequest) (*kvv1.TransactionResponse, error) {
	ns, err := k.keyNamespace(ctx, req.Keyspace, req.Namespace)
	if err != nil {
		return nil, err
	}
	if err := checkTxnSize(req); err != nil {
		return nil, err
	}
	k.owe(ctx, ns, len(req.Conditions)+len(req.Ops)-1)
	id, err := k.identityOf(req.Identity)
	if err != nil {
		return nil, err
	}
	txn, sh, err := k.txnOf(ns, req)
	if err != nil {
		return nil, err
	}
	var puts []*shard.Put
	for _, op := range txn.Ops {
		if op.Put != nil {
			puts = append(puts, op.Put)
		}
	}
	if err := k.storeApart(ctx, sh.ID, puts); err != nil {
		return nil, err
	}
	c := newCall()
	c.cmd.Op, c.cmd.Namespace, c.cmd.ID, c.cmd.Txn = shard.OpTxn, ns.ID, id, txn
	if err := k.do(ctx, sh.ID, c); err != nil {
		return nil, err
	}
	result := c.cmd.Result
	c.free()
	if result.Err != nil {
		return nil, result.Err
	}
	resp := &kvv1.TransactionResponse{Header: k.headerOf(ns, map[*Shard]uint64{sh: result.Revision})}
	if !result.Committed {
		resp.Failures = failuresOf(req, result.Failures)
		return resp, nil
	}
	resp.Committed, resp.Revision = true, result.Revision
	resp.Results = make([]*kvv1.TransactionResponse_OpResult, len(result.Writes))
	for i, w := range result.Writes {
		item := &kvv1.TransactionResponse_OpResult{}
		if txn.Ops[i].Put != nil {
			item.Result = &kvv1.TransactionResponse_OpResult_Put{Put: &kvv1.PutResult{Version: w.Version, Created: !w.Existed}}
		} else {
			del := &kvv1.DeleteResult{}
			fillDelete(del, w)
			item.Result = &kvv1.TransactionResponse_OpResult_Delete{Delete: del}
		}
		resp.Results[i] = item
	}
	return resp, nil
}

func checkTxnSize(req *kvv1.TransactionRequest) *kverr.Error {
	n := len(req.Conditions) + len(req.Ops)
	switch {
	case n == 0:
		return kverr.Invalid("ops", "is empty and so is conditions; a transaction has 1 to %d of both together", key.MaxTransactionOps)
	case n > key.MaxTransactionOps:
		return kverr.TooBig("ops", n, key.MaxTransactionOps, "operations and conditions")
	}
	bytes := 0
	for _, c := range req.Conditions {
		bytes += len(c.GetKey())
	}
	for _, op := range req.Ops {
		bytes += len(op.GetDelete().GetKey())
		if put := op.GetPut(); put != nil {
			bytes += putBytes(put)
		}
	}
	if bytes > key.MaxTransaction {
		return kverr.TooBig("ops", bytes, key.MaxTransaction, "bytes together")
	}
	return nil
}

// txnOf converts and validates; all keys must lie in one partition.
func (k *kvService) txnOf(ns *Namespace, req *kvv1.TransactionRequest) (*shard.Txn, *Shard, *kverr.Error) {
	txn := &shard.Txn{
		Conditions: make([]shard.Condition, len(req.Conditions)),
		Ops:        make([]shard.TxnOp, len(req.Ops)),
	}
	var first []byte // the key that the partition was taken from
	same := func(next []byte) *kverr.Error {
		if first == nil {
			first = next
		}
		if !bytes.Equal(ns.partition(first), ns.partition(next)) {
			return &kverr.Error{Kind: kverr.CrossPartition, Message: fmt.Sprintf(
				"keys %.80q and %.80q lie in different partitions; a transaction has one (namespace %q partitions by %s)", first, next, ns.Name, ruleName(ns.rule))}
		}
		return nil
	}
	for i, c := range req.Conditions {
		cond := shard.Condition{Key: c.GetKey(), If: precondition(c.GetPrecondition())}
		err := checkKey("key", cond.Key)
		if err == nil {
			err = checkPrecondition(cond.If)
		}
		if err == nil && cond.If.Check == shard.CheckNone {
			err = kverr.Invalid("precondition", "is not set; a condition must say what must hold")
		}
		if err != nil {
			return nil, nil, within(fmt.Sprintf("conditions[%d]", i), err)
		}
		if err := same(cond.Key); err != nil {
			return nil, nil, err
		}
		txn.Conditions[i] = cond
	}
	for i, op := range req.Ops {
		named, err := k.txnOp(ns, op, &txn.Ops[i])
		if err != nil {
			return nil, nil, within(fmt.Sprintf("ops[%d]", i), err)
		}
		if err := same(named); err != nil {
			return nil, nil, err
		}
	}
	txn.Slot = ns.slot(first)
	return txn, ns.keyspace.owner(txn.Slot), nil
}

func (k *kvService) txnOp(ns *Namespace, op *kvv1.TransactionRequest_Op, out *shard.TxnOp) (named []byte, err *kverr.Error) {
	switch o := op.GetOp().(type) {
	case *kvv1.TransactionRequest_Op_Put:
		put := putOf(o.Put)
		if err := k.checkPutWithValue(&put); err != nil {
			return nil, within("put", err)
		}
		ns.applyDefaults(&put)
		ns.place(&put)
		out.Put = &put
		return put.Key, nil
	case *kvv1.TransactionRequest_Op_Delete:
		del := shard.Delete{Key: o.Delete.GetKey(), If: precondition(o.Delete.GetPrecondition())}
		if err := checkDelete(&del); err != nil {
			return nil, within("delete", err)
		}
		ns.placeDelete(&del)
		out.Delete = &del
		return del.Key, nil
	}
	return nil, kverr.Invalid("op", "is not set; an operation is a put or a delete")
}

func failuresOf(req *kvv1.TransactionRequest, failures []shard.TxnFailure) []*kvv1.TransactionResponse_Failure {
	out := make([]*kvv1.TransactionResponse_Failure, len(failures))
	for i, f := range failures {
		item := &kvv1.TransactionResponse_Failure{Condition: int32(f.Condition), Op: int32(f.Op), CurrentVersion: f.Version}
		switch {
		case f.Condition >= 0 && f.Condition < len(req.Conditions):
			item.Key = req.Conditions[f.Condition].Key
		case f.Op >= 0 && f.Op < len(req.Ops):
			item.Key = req.Ops[f.Op].GetPut().GetKey()
			if item.Key == nil {
				item.Key = req.Ops[f.Op].GetDelete().GetKey()
			}
		}
		out[i] = item
	}
	return out
}
