package keeper

import (
	"context"
	"slices"

	"kvstore/actors/directory"
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
func (k *Keeper) Marks(ctx context.Context, shardIDs ...string) ([]directory.Mark, error) {
	s, err := k.State(ctx)
	if err != nil {
		return nil, err
	}
	return directory.MarksOf(s.Tree, shardIDs...), nil
}

// AcceptLoss lets a shard be opened whose store is behind its mark, as an operator decides who knows what is lost; it returns the
// mark. A shard that the store does not know any more is there again, empty, when it returns.
func (k *Keeper) AcceptLoss(ctx context.Context, shardID string) (directory.Mark, error) {
	c := &directory.Command{Op: directory.OpAcceptLoss, Marks: []directory.Mark{{Shard: shardID}}}
	if err := k.do(ctx, c); err != nil {
		return directory.Mark{}, err
	}
	if err := k.awaitChore(ctx, c.Revision); err != nil {
		return directory.Mark{}, err
	}
	marks, err := k.Marks(ctx, shardID)
	if err != nil {
		return directory.Mark{}, err
	}
	return marks[0], nil
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
