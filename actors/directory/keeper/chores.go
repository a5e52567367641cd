package keeper

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"kvstore/actors/directory"
	"kvstore/actors/shard"
	"kvstore/components/ring"
	"kvstore/components/wal"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// choreWidth is how many shards a chore works on at once.
const choreWidth = 8

// chores does what there is to do, then waits for a change.
func (k *Keeper) chores() {
	for k.ctx.Err() == nil {
		changed := k.Changed()
		done, failed := k.choresOnce()
		switch {
		case failed:
			k.pause()
		case done > 0:
			// Look again at once: finishing them was a change.
		default:
			select {
			case <-changed:
			case <-k.ctx.Done():
			}
		}
	}
}

// choresOnce does each chore that there is now, oldest first. One that fails does not hold up the others.
func (k *Keeper) choresOnce() (done int, failed bool) {
	s, err := k.state(k.ctx)
	if err != nil {
		if k.ctx.Err() == nil {
			k.tellFailed("read chores", err)
		}
		return 0, true
	}
	for _, c := range directory.Chores(s.Tree) {
		err := k.chore(k.ctx, c)
		if err == nil {
			err = k.do(k.ctx, &directory.Command{Op: directory.OpFinishChore, Chore: c.Id})
		}
		switch {
		case err == nil:
			done++
		case k.ctx.Err() != nil:
			return done, true
		default:
			failed = true
			k.tellFailed(fmt.Sprintf("%v of keyspace %s", c.Kind, c.Keyspace), err)
		}
	}
	return done, failed
}

// chore does one chore on all its shards. Each step can be repeated.
func (k *Keeper) chore(ctx context.Context, c *dataplanev1.DirectoryChore) error {
	return eachShard(int(c.Shards), func(n int) error {
		id := ring.ShardID(c.KeyspaceUid, n)
		switch c.Kind {
		case dataplanev1.DirectoryChore_KIND_CREATE_SHARDS:
			if err := k.shards.Create(ctx, id, []byte(c.Keyspace)); err != nil && !errors.Is(err, wal.ErrExists) {
				return err
			}
			return nil
		case dataplanev1.DirectoryChore_KIND_RECREATE_SHARD:
			if err := k.shards.Create(ctx, ring.ShardID(c.KeyspaceUid, int(c.Number)), []byte(c.Keyspace)); err != nil && !errors.Is(err, wal.ErrExists) {
				return err
			}
			return nil
		case dataplanev1.DirectoryChore_KIND_REMOVE_SHARDS:
			return k.shards.Remove(ctx, id)
		case dataplanev1.DirectoryChore_KIND_DROP_NAMESPACE:
			return k.dropNamespace(ctx, id, shard.NamespaceID(c.Namespace))
		}
		return fmt.Errorf("a chore of kind %v, which this release does not know", c.Kind)
	})
}

// dropNamespace removes a namespace from a shard in steps that are small enough not to be felt.
func (k *Keeper) dropNamespace(ctx context.Context, shardID string, ns shard.NamespaceID) error {
	for {
		released := make(chan error, 1)
		c := &shard.Command{Op: shard.OpDropNamespace, Namespace: ns, Done: func(_ *shard.Command, err error) { released <- err }}
		k.shards.Do(ctx, shardID, c)
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
