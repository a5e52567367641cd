package keeper

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"kvstore/actors/directory"
	"kvstore/actors/host"
	"kvstore/actors/shard"
	"kvstore/components/ring"
	"kvstore/components/wal"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// choreWidth is how many shards a chore works on at once.
const choreWidth = 8

// choresOnce does each chore that there is now, oldest first. One that fails does not hold up the others; the error, the last one, has
// been told.
func (o *owner) choresOnce() (done int, _ error) {
	s, err := o.Durable(o.ctx)
	if err != nil {
		return 0, o.failed("read chores", err)
	}
	if s.Revision == 0 {
		if err := o.do(o.ctx, bootstrap(o.keeper.cfg.DefaultShards)); err != nil {
			return 0, o.failed("make default/default", err)
		}
		return 1, nil
	}
	var last error
	for _, c := range append(directory.Chores(s.Tree), directory.Due(s.Tree, o.clock.Now().UnixMilli())...) {
		err := o.chore(c)
		if err == nil {
			err = o.do(o.ctx, &directory.Command{Op: directory.OpFinishChore, Chore: c.Id})
		}
		if err == nil {
			done++
			continue
		}
		if last = o.failed(fmt.Sprintf("%v of keyspace %s", c.Kind, c.Keyspace), err); o.Err() != nil || o.ctx.Err() != nil {
			return done, last
		}
	}
	return done, last
}

// failed tells of an error, unless it comes of the end of the ownership, and returns it.
func (o *owner) failed(what string, err error) error {
	if o.Err() == nil && o.ctx.Err() == nil && !errors.Is(err, host.ErrOver) {
		o.keeper.tellFailed(what, err)
	}
	return err
}

// chore does one chore on all its shards. Each step can be repeated, also by an owner that does not know yet that it is none any more:
// what is to be done was decided in the log, by the one who owned it, and neither the uid of a keyspace nor that of a namespace
// in it ever means another. All that such a late step can leave behind is a shard of a keyspace that was removed meanwhile
// (directory.QuarantineMS).
func (o *owner) chore(c *dataplanev1.DirectoryChore) error {
	return eachShard(int(c.Shards), func(n int) error {
		ctx, cancel := context.WithTimeout(o.ctx, o.keeper.cfg.StepTimeout)
		defer cancel()
		if _, err := o.Durable(ctx); err != nil {
			return err
		}
		id, shards := ring.ShardID(c.KeyspaceUid, n), o.keeper.shards
		switch c.Kind {
		case dataplanev1.DirectoryChore_KIND_CREATE_SHARDS:
			return absent(shards.Create(ctx, id, []byte(c.Keyspace)))
		case dataplanev1.DirectoryChore_KIND_RECREATE_SHARD:
			return absent(shards.Create(ctx, ring.ShardID(c.KeyspaceUid, int(c.Number)), []byte(c.Keyspace)))
		case dataplanev1.DirectoryChore_KIND_REMOVE_SHARDS:
			return shards.Remove(ctx, id)
		case dataplanev1.DirectoryChore_KIND_DROP_NAMESPACE:
			return dropNamespace(ctx, shards, id, shard.NamespaceID(c.Namespace))
		}
		return fmt.Errorf("a chore of kind %v, which this release does not know", c.Kind)
	})
}

// absent takes a shard that was created before for created.
func absent(err error) error {
	if errors.Is(err, wal.ErrExists) {
		return nil
	}
	return err
}

// dropNamespace removes a namespace from a shard in steps that are small enough not to be felt.
func dropNamespace(ctx context.Context, shards Shards, shardID string, ns shard.NamespaceID) error {
	for {
		released := make(chan error, 1)
		c := &shard.Command{Op: shard.OpDropNamespace, Namespace: ns, Done: func(_ *shard.Command, err error) { released <- err }}
		shards.Do(ctx, shardID, c)
		select {
		case err := <-released:
			switch {
			case err != nil:
				return err
			case c.Result.Err != nil:
				return c.Result.Err
			case !c.Result.More:
				return nil
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// eachShard runs f for the numbers 0 to n-1, some at once, and joins the errors.
func eachShard(n int, f func(int) error) error {
	errs := make([]error, n)
	slots := make(chan struct{}, choreWidth)
	var wait sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			errs[i] = f(i)
		})
	}
	wait.Wait()
	return errors.Join(slices.DeleteFunc(errs, func(err error) bool { return err == nil })...)
}
