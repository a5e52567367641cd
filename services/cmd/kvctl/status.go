package main

import (
	"context"
	"flag"
	"fmt"
	"time"
)

var statusCommand = command{
	short: "tell how the server and its shards are",
	help: `  kvctl status
  kvctl status -o json | jq '.shards[] | select(.state != "active")'`,
	setup: func(*flag.FlagSet) func(context.Context, *session, []string) error {
		return func(ctx context.Context, s *session, _ []string) error {
			c, err := s.connect(ctx)
			if err != nil {
				return err
			}
			ctx, cancel := s.limited(ctx)
			defer cancel()
			st, err := c.Status(ctx)
			if err != nil {
				return err
			}
			if s.output == "json" {
				return s.protoJSON(st)
			}
			up := (time.Duration(st.UptimeMs) * time.Millisecond).Round(time.Second)
			if st.Engine == "" {
				s.say("kvstore %s at %s, up %v; more is shown to a token with the grant server-admin\n", st.Version, s.endpoint, up)
				return nil
			}
			s.say("kvstore %s at %s, engine %s, up %v\n", st.Version, s.endpoint, st.Engine, up)
			if st.FreeBytes > 0 {
				s.say("%s free on disk; writes stop below %s\n", bytesText(st.FreeBytes), bytesText(st.ReserveBytes))
			}
			switch d := st.Directory; {
			case d == nil:
			case d.Owner == "" && d.Revision == 0:
				s.say("the directory cannot be asked: %s\n", d.Reason)
			default:
				s.say("directory at revision %d, confirmed %v ago by %s", d.Revision, time.Duration(d.AgeMs)*time.Millisecond, d.Owner)
				if !d.Following {
					s.say("; not followed now: %s", d.Reason)
				}
				fmt.Fprintln(s.stdout)
			}
			fmt.Fprintln(s.stdout)
			var rows [][]string
			for _, sh := range st.Shards {
				rows = append(rows, []string{
					sh.Id, sh.Keyspace, sh.State, fmt.Sprint(sh.Epoch), fmt.Sprint(sh.Revision), fmt.Sprint(sh.Entries),
					bytesText(sh.MemoryBytes), bytesText(sh.LogBytes), bytesText(sh.CheckpointBytes), bytesText(sh.ValueBytes), sh.Reason,
				})
			}
			s.table([]string{
				"SHARD", "KEYSPACE", "STATE", "EPOCH", "REVISION", "ENTRIES", "MEMORY", "LOG", "CHECKPOINTS", "VALUES", "REASON",
			}, rows)
			return nil
		}
	},
}
