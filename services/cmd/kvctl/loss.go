package main

import (
	"context"
	"flag"
)

var acceptLossCommand = command{
	args: "SHARD", min: 1, max: 1,
	short: "serve a shard without what its store has lost",
	help: `A store that has lost records which were acknowledged (a Redis that failed over, say) is not served: everything in the
shard is DATA_LOSS, until the store is put back as it was, or the loss is accepted here. What the store still has is then
served as if the rest had never been written; a shard that it does not know any more is made anew, empty.

SHARD is the id that the error and "kvctl status" tell; that of the directory itself is "directory", and comes first when it
is among those that lost records. Asks for the id once more, by --confirm.

  kvctl accept-loss 0123456789abcdef-3 --confirm 0123456789abcdef-3`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		confirm := fs.String("confirm", "", "the `id` once more")
		return func(ctx context.Context, s *session, args []string) error {
			if *confirm != args[0] {
				return usagef("this gives up what the store has lost of shard %s: confirm it with --confirm %[1]s", args[0])
			}
			c, err := s.connect(ctx)
			if err != nil {
				return err
			}
			ctx, cancel := s.limited(ctx)
			defer cancel()
			epoch, seq, err := c.AcceptLoss(ctx, args[0], *confirm)
			if err != nil {
				return err
			}
			if s.output == "json" {
				return s.json(map[string]any{"shard": args[0], "epoch": epoch, "seq": seq})
			}
			s.say("shard %s is served without what the store has lost; record %d of epoch %d had been there\n", args[0], seq, epoch)
			return nil
		}
	},
}
