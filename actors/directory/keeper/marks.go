package keeper

import (
	"context"
	"slices"
	"time"

	"kvstore/actors/directory"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// Remember notes how far the logs of shards are known to have come (see directory.Mark): at most directory.MaxMarks at once, in one
// record, and none when none is news. It returns once they are durable. It is no change that Changed, Revision or Catalog tell of.
// Whoever runs shards calls it for all that wrote something since, about once a second.
func (k *Keeper) Remember(ctx context.Context, marks ...directory.Mark) error {
	return k.do(ctx, &directory.Command{Op: directory.OpRemember, Marks: marks})
}

// Marks returns what is remembered of some shards, in their order, for whoever opens them: everything that Remember returned
// for is in it. A shard that the directory does not know has a zero mark. With Remember it is a memhost.Highwater.
//
// After a host was lost that had the directory, shards wait for this before they are opened, and each for the end of its lease after that. So
// it does not wait for the end of the directory's own: all that counts is that no record is missing.
func (k *Keeper) Marks(ctx context.Context, shardIDs ...string) ([]directory.Mark, error) {
	_, s, err := k.read(ctx, (*owner).Fenced)
	if err != nil {
		return nil, err
	}
	return directory.MarksOf(s.Tree, shardIDs...), nil
}

// AcceptLoss lets a shard be opened whose store is behind its mark, as an operator decides who knows what is lost; it returns the
// mark. A shard that the store does not know any more is there again, empty, when it returns. For a shard that serves it does nothing,
// lest an acceptance lie in wait for the next loss. ShardID is the directory itself, of which nobody but the process that owned it
// remembers anything.
func (k *Keeper) AcceptLoss(ctx context.Context, shardID string) (directory.Mark, error) {
	if err := k.probe(ctx, shardID); err == nil {
		return k.markOf(ctx, shardID)
	} else if kverr.KindOf(err) != kverr.DataLoss {
		return directory.Mark{}, err
	}
	if shardID == ShardID {
		mark, err := k.host.AcceptLoss(ctx, shardID)
		if err != nil {
			return directory.Mark{}, err
		}
		if err := k.do(ctx, &directory.Command{Op: directory.OpRaise, Version: k.seen.Load() + 1}); err != nil {
			return directory.Mark{}, err
		}
		return mark, k.awaitReady(ctx, directory.DefaultName)
	}
	for range acceptTries {
		c := &directory.Command{Op: directory.OpAcceptLoss, Marks: []directory.Mark{{Shard: shardID}}}
		if err := k.do(ctx, c); err != nil {
			return directory.Mark{}, err
		}
		if err := k.awaitChore(ctx, c.Revision); err != nil {
			return directory.Mark{}, err
		}
		mark, err := k.markOf(ctx, shardID)
		if err != nil {
			return directory.Mark{}, err
		}
		// The host may have seen more than the directory remembers: it has reported that by the next try.
		if err = k.probe(ctx, shardID); err == nil || kverr.KindOf(err) != kverr.DataLoss {
			return mark, err
		}
		if err := pauseFor(ctx, acceptPause); err != nil {
			return directory.Mark{}, err
		}
	}
	return directory.Mark{}, &kverr.Error{Kind: kverr.Unavailable, Op: "accept a loss", Message: "shard " + shardID + " is still behind what its host has seen; try again", RetryAfterMS: 1000}
}

// note remembers the highest revision that this process has seen.
func (k *Keeper) note(revision uint64) {
	for {
		seen := k.seen.Load()
		if revision <= seen || k.seen.CompareAndSwap(seen, revision) {
			return
		}
	}
}

func (k *Keeper) markOf(ctx context.Context, shardID string) (directory.Mark, error) {
	marks, err := k.Marks(ctx, shardID)
	if err != nil {
		return directory.Mark{}, err
	}
	return marks[0], nil
}

// A loss is accepted as often, and as far apart, as hosts need to report what they alone have seen.
const (
	acceptTries = 5
	acceptPause = 700 * time.Millisecond
)

func pauseFor(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return asKind(context.Cause(ctx))
	}
}

// probe uses a shard, or the directory, without changing anything.
func (k *Keeper) probe(ctx context.Context, shardID string) error {
	if shardID == ShardID {
		_, err := k.State(ctx)
		return err
	}
	released := make(chan error, 1)
	k.shards.Do(ctx, shardID, &shard.Command{
		Op: shard.OpRelease, Prompt: &shard.PromptArgs{}, // of no lease
		Done: func(_ *shard.Command, err error) { released <- err },
	})
	select {
	case err := <-released:
		return asKind(err)
	case <-ctx.Done():
		return asKind(context.Cause(ctx))
	}
}

// awaitChore waits until a chore is done.
func (k *Keeper) awaitChore(ctx context.Context, id uint64) error {
	for {
		changed := k.Changed()
		s, err := k.State(ctx)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(directory.Chores(s.Tree), func(c *dataplanev1.DirectoryChore) bool { return c.Id == id }) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return asKind(context.Cause(ctx))
		}
	}
}
