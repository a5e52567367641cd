package main

import (
	"context"
	"flag"
	"fmt"

	"kvstore/client"
)

var delCommand = command{
	args: "KEY...", min: 1, max: 1000, complete: completeKeys,
	short: "remove keys",
	help: `A key that is not there is no error; the output tells. Several keys are removed one by one, in one call.

  kvctl del user/42
  kvctl del user/42 --if-version 17
  kvctl ls tmp/ -o raw | xargs kvctl del`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		cond := conditionFlags(fs, false)
		return func(ctx context.Context, s *session, args []string) error {
			p, err := cond.precondition()
			if err != nil {
				return err
			}
			c, err := s.connect(ctx)
			if err != nil {
				return err
			}
			ctx, cancel := s.limited(ctx)
			defer cancel()
			items := make([]client.DeleteItem, len(args))
			for i, k := range args {
				items[i] = client.DeleteItem{Key: k, Options: &client.DeleteOptions{If: p}}
			}
			outs, err := c.BatchDelete(ctx, items)
			if err != nil {
				return err
			}
			var first error
			for i, out := range outs {
				switch {
				case out.Err != nil && first == nil:
					first = fmt.Errorf("%q: %w", args[i], out.Err)
				case out.Err != nil:
					fmt.Fprintf(s.stderr, "kvctl: %q: %s\n", args[i], visible(out.Err.Error()))
				case s.output == "json":
					if err := s.jsonLine(map[string]any{"key": args[i], "deleted": out.Deleted, "revision": out.Revision}); err != nil {
						return err
					}
				case out.Deleted:
					s.say("deleted %s\n", args[i])
				default:
					s.say("not there: %s\n", args[i])
				}
			}
			return first
		}
	},
}
