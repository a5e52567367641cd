package main

import (
	"context"
	"flag"
	"fmt"

	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

var keyspaceLsCommand = command{
	short: "list the keyspaces",
	help: `  kvctl keyspace ls
  kvctl keyspace ls -o raw            names alone`,
	setup: simple(func(ctx context.Context, s *session, _ []string) error {
		c, err := s.connect(ctx)
		if err != nil {
			return err
		}
		ctx, cancel := s.limited(ctx)
		defer cancel()
		all, err := c.ListKeyspaces(ctx)
		if err != nil {
			return err
		}
		return s.showKeyspaces(all...)
	}),
}

var keyspaceGetCommand = command{
	args: "NAME", min: 1, max: 1, complete: completeKeyspaces,
	short: "show one keyspace",
	help:  `  kvctl keyspace get tenant1`,
	setup: simple(func(ctx context.Context, s *session, args []string) error {
		c, err := s.connect(ctx)
		if err != nil {
			return err
		}
		ctx, cancel := s.limited(ctx)
		defer cancel()
		ks, err := c.GetKeyspace(ctx, args[0])
		if err != nil {
			return err
		}
		return s.showKeyspaces(ks)
	}),
}

var keyspaceCreateCommand = command{
	args: "NAME", min: 1, max: 1,
	short: "make a keyspace (a tenant) with shards of its own",
	help: `  kvctl keyspace create tenant1
  kvctl keyspace create big --shards 64`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		shards := fs.Int("shards", 0, "`number` of shards, 1 to 1024; 0 = the server's default")
		return func(ctx context.Context, s *session, args []string) error {
			if *shards < 0 || *shards > 1024 {
				return usagef("--shards %d: want 1 to 1024, or 0 for the server's default", *shards)
			}
			c, err := s.connect(ctx)
			if err != nil {
				return err
			}
			ctx, cancel := s.limited(ctx)
			defer cancel()
			ks, err := c.CreateKeyspace(ctx, &kvstorev1.Keyspace{Name: args[0], Shards: int32(*shards)})
			if err != nil {
				return err
			}
			return s.showKeyspaces(ks)
		}
	},
}

var keyspaceRmCommand = command{
	args: "NAME", min: 1, max: 1, complete: completeKeyspaces,
	short: "remove a keyspace with all its namespaces and data",
	help: `Asks for the name once more, by --confirm.

  kvctl keyspace rm tenant1 --confirm tenant1`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		confirm := fs.String("confirm", "", "the `name` once more")
		return func(ctx context.Context, s *session, args []string) error {
			if *confirm != args[0] {
				return usagef("this deletes all data of keyspace %s: confirm it with --confirm %[1]s", args[0])
			}
			c, err := s.connect(ctx)
			if err != nil {
				return err
			}
			ctx, cancel := s.limited(ctx)
			defer cancel()
			if err := c.DeleteKeyspace(ctx, args[0], *confirm); err != nil {
				return err
			}
			return s.removed("keyspace", args[0])
		}
	},
}

func (s *session) showKeyspaces(all ...*kvstorev1.Keyspace) error {
	var rows [][]string
	for _, ks := range all {
		switch s.output {
		case "json":
			if err := s.protoJSON(ks); err != nil {
				return err
			}
			continue
		case "raw":
			fmt.Fprintln(s.stdout, ks.Name)
			continue
		}
		rows = append(rows, []string{ks.Name, ks.Uid, fmt.Sprint(ks.Shards), timeMS(ks.CreatedMs), fmt.Sprint(ks.Version)})
	}
	if s.output != "json" && s.output != "raw" {
		s.table([]string{"KEYSPACE", "UID", "SHARDS", "CREATED", "VERSION"}, rows)
	}
	return nil
}
