package main

import (
	"context"
	"flag"
	"fmt"
	"sync"

	"kvstore/client"
)

var batchCommand = command{
	args: "", min: 0, max: 0,
	short: "run many operations, each on its own",
	help: scriptHelp + `
  get KEY

Operations run side by side over one stream, in no order; each succeeds or fails by itself, and the output has one line
for each in the script's order. The exit code is that of the first failure. For all-or-nothing use txn.

  kvctl batch -f load.txt
  printf 'put a 1\nput b 2\ndel c\n' | kvctl batch -f - -o json`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		file := fs.String("f", "", "`file` with the script; - for standard input")
		callers := fs.Int("c", 256, "`number` of operations under way at once")
		return func(ctx context.Context, s *session, _ []string) error {
			if *callers < 1 || *callers > 4096 {
				return usagef("-c %d: want 1 to 4096", *callers)
			}
			steps, err := s.script(*file, "put", "get", "del")
			if err != nil {
				return err
			}
			c, err := s.connect(ctx)
			if err != nil {
				return err
			}
			ctx, cancel := s.limited(ctx)
			defer cancel()
			return s.batch(ctx, c, steps, *callers)
		}
	},
}

// batchResult is one line of output.
type batchResult struct {
	Op      string     `json:"op"`
	Key     string     `json:"key"`
	Version uint64     `json:"version,omitempty"`
	Created *bool      `json:"created,omitempty"`
	Deleted *bool      `json:"deleted,omitempty"`
	Entry   *entryJSON `json:"entry,omitempty"`
	Error   string     `json:"error,omitempty"`
	err     error
}

func (s *session) batch(ctx context.Context, c *client.Client, steps []step, callers int) error {
	results := make([]batchResult, len(steps))
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(callers, len(steps)) {
		wg.Go(func() {
			for i := range next {
				results[i] = steps[i].do(ctx, c)
			}
		})
	}
	for i := range steps {
		next <- i
	}
	close(next)
	wg.Wait()
	var first error
	var rows [][]string
	for _, r := range results {
		if r.err != nil {
			r.Error = r.err.Error()
			if first == nil {
				first = fmt.Errorf("%q: %w", r.Key, r.err)
			}
		}
		if s.output == "json" {
			if err := s.jsonLine(r); err != nil {
				return err
			}
			continue
		}
		rows = append(rows, []string{r.Op, r.Key, r.text()})
	}
	if s.output != "json" {
		s.table([]string{"OP", "KEY", "RESULT"}, rows)
	}
	return first
}

func (st step) do(ctx context.Context, c *client.Client) batchResult {
	r := batchResult{Op: st.verb, Key: st.key}
	switch st.verb {
	case "put":
		var res client.PutResult
		if res, r.err = c.Put(ctx, st.key, st.value, &client.PutOptions{If: st.cond}); r.err == nil {
			r.Version, r.Created = res.Version, &res.Created
		}
	case "get":
		var e client.Entry
		if e, r.err = c.Get(ctx, st.key, nil); r.err == nil {
			j := toEntryJSON(e)
			r.Version, r.Entry = e.Version, &j
		}
	case "del":
		var res client.DeleteResult
		if res, r.err = c.Delete(ctx, st.key, &client.DeleteOptions{If: st.cond}); r.err == nil {
			r.Version, r.Deleted = res.Revision, &res.Deleted
		}
	}
	return r
}

func (r *batchResult) text() string {
	switch {
	case r.err != nil:
		return "error: " + r.err.Error()
	case r.Entry != nil && r.Entry.Value != nil:
		return *r.Entry.Value
	case r.Entry != nil:
		return bytesText(r.Entry.Size) + ", binary"
	case r.Deleted != nil && *r.Deleted:
		return "deleted"
	case r.Deleted != nil:
		return "not there"
	case *r.Created:
		return fmt.Sprintf("created, version %d", r.Version)
	}
	return fmt.Sprintf("updated, version %d", r.Version)
}
