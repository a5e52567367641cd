package main

import (
	"context"
	"flag"
	"fmt"

	"kvstore/client"
)

var lsCommand = command{
	args: "[PREFIX]", min: 0, max: 1, complete: completeKeys,
	short: "list keys",
	help: `Keys come in byte order. -o raw prints the keys alone, one a line; -o json one object a line.

  kvctl ls
  kvctl ls user/ --limit 20
  kvctl ls --start b --end c
  kvctl ls user/ --count
  kvctl ls user/ --values -o json`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		start := fs.String("start", "", "only keys from this `key` on")
		end := fs.String("end", "", "only keys before this `key`")
		limit := fs.Int("limit", 0, "at most this `number` of keys; 0 = all")
		count := fs.Bool("count", false, "print how many there are, alone")
		values := fs.Bool("values", false, "with -o json: values of up to 1 KiB too")
		return func(ctx context.Context, s *session, args []string) error {
			o := &client.ListOptions{Start: *start, End: *end, KeysOnly: !*values, PageSize: 1000}
			if len(args) > 0 {
				o.Prefix = args[0]
			}
			if *limit < 0 {
				return usagef("--limit %d is negative", *limit)
			}
			if *limit > 0 {
				o.PageSize = min(*limit, 1000)
			}
			c, err := s.connect(ctx)
			if err != nil {
				return err
			}
			if *count {
				ctx, cancel := s.limited(ctx)
				defer cancel()
				n, err := c.Count(ctx, o)
				if err == nil && s.output == "json" {
					return s.json(map[string]int64{"count": n})
				}
				if err == nil {
					fmt.Fprintln(s.stdout, n)
				}
				return err
			}
			return s.list(ctx, c, o, *limit)
		}
	},
}

// list prints keys as they come, the first within --timeout; a table page by page, so that its columns fit what they hold.
func (s *session) list(ctx context.Context, c *client.Client, o *client.ListOptions, limit int) error {
	var rows [][]string
	n := 0
	ctx, begun, cancel := s.beginning(ctx)
	defer cancel()
	for e, err := range c.List(ctx, o) {
		if err != nil {
			return err
		}
		begun()
		n++
		switch s.output {
		case "json":
			if err := s.jsonLine(toEntryJSON(e)); err != nil {
				return err
			}
		case "raw":
			fmt.Fprintln(s.stdout, e.Key)
		default:
			rows = append(rows, []string{
				e.Key, fmt.Sprint(e.Version), bytesText(e.Size), timeText(e.Updated), timeText(e.Expires),
			})
		}
		if n == limit {
			break
		}
		if len(rows) == 1000 {
			s.keyTable(rows)
			rows = rows[:0]
		}
	}
	if len(rows) > 0 || n == 0 && s.output != "json" && s.output != "raw" {
		s.keyTable(rows)
	}
	return nil
}

func (s *session) keyTable(rows [][]string) {
	s.table([]string{"KEY", "VERSION", "SIZE", "UPDATED", "EXPIRES"}, rows)
}
