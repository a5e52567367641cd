package catalog

import (
	"context"
	"crypto/rand"
	"errors"
	mathrand "math/rand/v2"
	"time"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"kvstore/actors/directory"
	"kvstore/actors/directory/keeper"
	"kvstore/components/kverr"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

type api = dataplanev1.DirectoryServiceClient

// do has the owner do something, again with whoever owns the directory then until it is answered, or ctx ends: f must be safe to repeat.
// gone: an earlier try may have done it, so that what was to be removed may be gone by it. The error is of kind OutcomeUnknown
// when it may have been done.
func (c *Client) do(ctx context.Context, f func(ctx context.Context, a api) error) (gone bool, _ error) {
	pause := firstPause
	for {
		o, err := c.ownerNow(ctx)
		if err != nil {
			return gone, c.undone(gone, err)
		}
		attempt, cancel := context.WithTimeout(ctx, c.cfg.Attempt)
		err = f(attempt, o.api)
		cancel()
		if err == nil {
			return gone, nil
		}
		e := kverr.FromGRPC(err)
		switch e.Kind {
		case kverr.Unavailable:
		case kverr.OutcomeUnknown, kverr.DeadlineExceeded, kverr.Canceled:
			gone = true
		default:
			return gone, e
		}
		if ctx.Err() != nil {
			return gone, c.undone(gone, e)
		}
		o.lost()
		select {
		case <-time.After(pause + mathrand.N(pause)):
		case <-ctx.Done():
		}
		pause = min(2*pause, lastPause)
	}
}

// undone is the error of a request that was not answered in time.
func (c *Client) undone(maybe bool, err error) error {
	if maybe {
		return &kverr.Error{Kind: kverr.OutcomeUnknown, Op: "change the directory", Message: "its owner did not answer in time; the change may have been made", Err: err}
	}
	return &kverr.Error{Kind: kverr.Unavailable, Op: "change the directory", Message: "its owner is not reached; nothing was changed", RetryAfterMS: 1000, Err: err}
}

// ownerNow is who is taken for the owner.
func (c *Client) ownerNow(ctx context.Context) (*owner, error) {
	for {
		c.mu.Lock()
		o, changed, failure := c.owner, c.changed, c.failure
		c.mu.Unlock()
		if o != nil {
			return o, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), failure)
		}
	}
}

// limit gives a call a deadline that has none.
func (c *Client) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, c.cfg.CallTimeout)
}

// seen waits until the copy has what was done.
func (c *Client) seen(ctx context.Context, holds func(*copied) bool) error {
	if _, err := c.await(ctx, holds); err != nil {
		return &kverr.Error{Kind: kverr.OutcomeUnknown, Op: "change the directory", Message: "it was changed, and this process has not seen that yet", Err: err}
	}
	return nil
}

func from(revision uint64) func(*copied) bool {
	return func(now *copied) bool { return now != nil && now.catalog.Revision >= revision }
}

// CreateKeyspace makes a keyspace with its shards, all of them, before it returns. With no number of shards it gets as many as the
// owner is configured for.
func (c *Client) CreateKeyspace(ctx context.Context, ks *kvv1.Keyspace) (*kvv1.Keyspace, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	req := &dataplanev1.CreateKeyspaceRequest{Name: ks.GetName(), Uid: keeper.NewUID(), Shards: ks.GetShards()}
	var resp *dataplanev1.CreateKeyspaceResponse
	_, err := c.do(ctx, func(ctx context.Context, a api) (err error) {
		resp, err = a.CreateKeyspace(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp.Keyspace, c.seen(ctx, from(resp.Revision))
}

// keyspaceOf finds a keyspace in the copy.
func (c *Client) keyspaceOf(ctx context.Context, name string) (*directory.Keyspace, error) {
	now, err := c.there(ctx)
	if err != nil {
		return nil, err
	}
	ks, ok := now.catalog.Keyspace(name)
	if !ok {
		return nil, kverr.New(kverr.NotFound, "find the keyspace", "no keyspace %.80q", name)
	}
	return ks, nil
}

// namespaceOf finds a namespace in the copy.
func (c *Client) namespaceOf(ctx context.Context, keyspace, name string) (*directory.Namespace, error) {
	ks, err := c.keyspaceOf(ctx, keyspace)
	if err != nil {
		return nil, err
	}
	ns, ok := ks.Namespace(name)
	if !ok {
		return nil, kverr.New(kverr.NotFound, "find the namespace", "no namespace %.80q", name)
	}
	return ns, nil
}

// DeleteKeyspace removes a keyspace, its namespaces, its shards and all that they hold: the one that this process knows by that
// name, and none that was made under it since.
func (c *Client) DeleteKeyspace(ctx context.Context, name string) error {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	ks, err := c.keyspaceOf(ctx, name)
	if err != nil {
		return err
	}
	var resp *dataplanev1.DeleteKeyspaceResponse
	gone, err := c.do(ctx, func(ctx context.Context, a api) (err error) {
		resp, err = a.DeleteKeyspace(ctx, &dataplanev1.DeleteKeyspaceRequest{Name: name, Uid: ks.UID})
		return err
	})
	switch {
	case err == nil:
		return c.seen(ctx, from(resp.Revision))
	case gone && kverr.KindOf(err) == kverr.NotFound: // by a try whose answer was lost
		return c.seen(ctx, func(now *copied) bool {
			there, ok := now.catalog.Keyspace(name)
			return !ok || there.UID != ks.UID
		})
	}
	return err
}

// CreateNamespace makes a namespace.
func (c *Client) CreateNamespace(ctx context.Context, ns *kvv1.Namespace) (*kvv1.Namespace, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	ks, err := c.keyspaceOf(ctx, ns.GetKeyspace())
	if err != nil {
		return nil, err
	}
	req := &dataplanev1.CreateNamespaceRequest{Namespace: ns, KeyspaceUid: ks.UID, RequestId: newRequestID()}
	var resp *dataplanev1.CreateNamespaceResponse
	_, err = c.do(ctx, func(ctx context.Context, a api) (err error) {
		resp, err = a.CreateNamespace(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp.Namespace, c.seen(ctx, from(resp.Revision))
}

func newRequestID() []byte {
	id := make([]byte, requestIDBytes)
	rand.Read(id)
	return id
}

// UpdateNamespace changes the fields that mask names.
func (c *Client) UpdateNamespace(ctx context.Context, ns *kvv1.Namespace, mask []string) (*kvv1.Namespace, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	known, err := c.namespaceOf(ctx, ns.GetKeyspace(), ns.GetName())
	if err != nil {
		return nil, err
	}
	req := &dataplanev1.UpdateNamespaceRequest{
		Namespace: ns, UpdateMask: &fieldmaskpb.FieldMask{Paths: mask},
		KeyspaceUid: known.Keyspace.UID, NamespaceUid: uint32(known.UID), RequestId: newRequestID(),
	}
	var resp *dataplanev1.UpdateNamespaceResponse
	_, err = c.do(ctx, func(ctx context.Context, a api) (err error) {
		resp, err = a.UpdateNamespace(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp.Namespace, c.seen(ctx, from(resp.Revision))
}

// DeleteNamespace removes a namespace and all that it holds: the one that this process knows by that name, and none that was made
// under it since.
func (c *Client) DeleteNamespace(ctx context.Context, keyspace, name string) error {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	ns, err := c.namespaceOf(ctx, keyspace, name)
	if err != nil {
		return err
	}
	req := &dataplanev1.DeleteNamespaceRequest{Keyspace: keyspace, Name: name, KeyspaceUid: ns.Keyspace.UID, NamespaceUid: uint32(ns.UID)}
	var resp *dataplanev1.DeleteNamespaceResponse
	gone, err := c.do(ctx, func(ctx context.Context, a api) (err error) {
		resp, err = a.DeleteNamespace(ctx, req)
		return err
	})
	switch {
	case err == nil:
		return c.seen(ctx, from(resp.Revision))
	case gone && kverr.KindOf(err) == kverr.NotFound: // by a try whose answer was lost
		return c.seen(ctx, func(now *copied) bool {
			there, ok := now.catalog.Namespace(keyspace, name)
			return !ok || there.UID != ns.UID || there.Keyspace.UID != ns.Keyspace.UID
		})
	}
	return err
}

// Remember notes how far the logs of shards are known to have come; see directory.Mark and keeper.Keeper.Remember.
func (c *Client) Remember(ctx context.Context, marks ...directory.Mark) error {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	req := &dataplanev1.RememberMarksRequest{Marks: make([]*dataplanev1.DirectoryMark, len(marks))}
	for i, m := range marks {
		req.Marks[i] = &dataplanev1.DirectoryMark{Shard: m.Shard, Epoch: m.Epoch, Seq: m.Seq}
	}
	_, err := c.do(ctx, func(ctx context.Context, a api) error {
		_, err := a.RememberMarks(ctx, req)
		return err
	})
	return err
}

// Marks returns what is remembered of some shards, in their order, at most directory.MaxMarks; see keeper.Keeper.Marks.
func (c *Client) Marks(ctx context.Context, shardIDs ...string) ([]directory.Mark, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	var resp *dataplanev1.GetMarksResponse
	_, err := c.do(ctx, func(ctx context.Context, a api) (err error) {
		resp, err = a.GetMarks(ctx, &dataplanev1.GetMarksRequest{Shards: shardIDs})
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(resp.Marks) != len(shardIDs) {
		return nil, kverr.New(kverr.Unknown, "read marks", "%d marks of %d shards", len(resp.Marks), len(shardIDs))
	}
	marks := make([]directory.Mark, len(resp.Marks))
	for i, m := range resp.Marks {
		marks[i] = markOf(m)
	}
	return marks, nil
}

// AcceptLoss lets a shard be opened whose store is behind its mark; see keeper.Keeper.AcceptLoss.
func (c *Client) AcceptLoss(ctx context.Context, shardID string) (directory.Mark, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	var resp *dataplanev1.AcceptLossResponse
	_, err := c.do(ctx, func(ctx context.Context, a api) (err error) {
		resp, err = a.AcceptLoss(ctx, &dataplanev1.AcceptLossRequest{Shard: shardID})
		return err
	})
	if err != nil && shardID != keeper.ShardID && kverr.KindOf(err) == kverr.DataLoss {
		err = &kverr.Error{Kind: kverr.DataLoss, Op: "accept a loss", Message: "the directory has lost records, too; accept that first: kvctl accept-loss " + keeper.ShardID, Err: err}
	}
	if err != nil {
		return directory.Mark{}, err
	}
	return markOf(resp.Mark), nil
}
