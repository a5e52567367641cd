package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/client"
)

var benchValueCommand = command{
	args: "", min: 0, max: 0,
	short: "measure big prompt blocks, written and read",
	help: `For each size: writes blocks one by one, durably, then reads them all and compares every byte. MB are 10^6 bytes.

  kvctl bench value
  kvctl bench value --size 80MiB --count 10
  kvctl bench value --size 1MiB,32MiB -c 4 -o json`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		v := &bigBlocks{}
		fs.StringVar(&v.sizes, "size", "1MiB,4MiB,32MiB,80MiB", "`sizes` with commas")
		fs.IntVar(&v.count, "count", 0, "`number` of blocks of each size; 0 = as many as make 320 MiB, at least 4")
		fs.IntVar(&v.callers, "c", 1, "`number` of blocks under way at once")
		fs.StringVar(&v.out, "out", "", "write the JSON result to this `file` too")
		return v.command
	},
}

// bigBlocks is a run of bench value.
type bigBlocks struct {
	sizes   string
	count   int
	callers int
	out     string
}

// sizeResult is the outcome for one size.
type sizeResult struct {
	Size  int64      `json:"block_bytes"`
	Count int        `json:"count"`
	Write stepResult `json:"write"`
	Read  stepResult `json:"read"`
	Wrong int64      `json:"blocks_wrong"`
}

// bigBlocksTotal is how much is written of each size unless --count is given.
const bigBlocksTotal = 320 << 20

func (v *bigBlocks) command(ctx context.Context, s *session, _ []string) error {
	if v.callers < 1 || v.callers > 256 || v.count < 0 {
		return usagef("want -c of 1 to 256 and --count of at least 0")
	}
	var sizes []int64
	for _, text := range strings.Split(v.sizes, ",") {
		n, err := parseSize(text)
		if err != nil || n < idBytes || n > 512<<20 {
			return usagef("--size %s: want sizes of 8 to 512MiB, such as 80MiB", text)
		}
		sizes = append(sizes, n)
	}
	c, err := s.connect(ctx, func(cfg *client.Config) { cfg.Unary = true })
	if err != nil {
		return err
	}
	ns, drop, err := new(replay).namespace(ctx, c)
	if err != nil {
		return err
	}
	var results []sizeResult
	var wrong int64
	for _, n := range sizes {
		res, err := v.run(ctx, s, c.In(s.keyspace, ns), n)
		if err != nil {
			_ = drop() // the run's own error tells more
			return fmt.Errorf("blocks of %s: %w", bytesText(n), err)
		}
		results = append(results, res)
		wrong += res.Wrong
	}
	if err := drop(); err != nil {
		return err
	}
	if v.out != "" {
		if err := writeFile(v.out, func(w io.Writer) error { return writeJSON(w, results) }); err != nil {
			return err
		}
	}
	if s.output == "json" {
		if err := s.json(results); err != nil {
			return err
		}
	} else {
		v.show(s, results)
	}
	return wrongBlocks(wrong)
}

func (v *bigBlocks) show(s *session, results []sizeResult) {
	var rows [][]string
	for _, r := range results {
		for _, st := range []stepResult{r.Write, r.Read} {
			rows = append(rows, []string{
				bytesText(r.Size), st.Name, fmt.Sprint(st.Count), fmt.Sprintf("%.0f", st.MBps), msText(st.P50), msText(st.P99), msText(st.Max),
			})
		}
		if r.Wrong > 0 {
			fmt.Fprintf(s.stdout, "%d BLOCKS OF %s WERE WRONG\n", r.Wrong, bytesText(r.Size))
		}
	}
	s.table([]string{"BLOCK", "STEP", "COUNT", "MB/s", "P50 ms", "P99 ms", "MAX ms"}, rows)
}

// run measures one size. All blocks share their bytes but for the first eight, so that making them costs nothing.
func (v *bigBlocks) run(ctx context.Context, s *session, c *client.Client, n int64) (sizeResult, error) {
	count := v.count
	if count == 0 {
		count = max(4, int(bigBlocksTotal/n))
	}
	common := make([]byte, n)
	fill(common, uint64(n))
	prompt := c.Prompt(client.Scope{"model": "bench", "block_bytes": fmt.Sprint(n)})
	res := sizeResult{Size: n, Count: count}
	buffers := sync.Pool{New: func() any { b := make([]byte, n); return &b }}

	each := func(l *latency, do func(ctx context.Context, id uint64) error) (stepResult, error) {
		var next atomic.Int64
		began := time.Now()
		bar := startProgress(s.stderr, s.errWidth, func() (float64, string) {
			return float64(next.Load()) / float64(count+v.callers), l.name + " " + bytesText(n)
		})
		err := workers(ctx, min(v.callers, count), func(ctx context.Context, _ int) error {
			for ctx.Err() == nil {
				id := next.Add(1) - 1
				if id >= int64(count) {
					return nil
				}
				at := time.Now()
				if err := do(ctx, uint64(id)); err != nil {
					return err
				}
				l.record(time.Since(at), n)
			}
			return ctx.Err()
		})
		took := time.Since(began)
		bar.end()
		return l.result(took), err
	}

	var err error
	res.Write, err = each(newLatency("write"), func(ctx context.Context, id uint64) error {
		head := binary.BigEndian.AppendUint64(nil, id)
		outs, err := prompt.Write(ctx, []client.NewBlock{{
			BlockRef: client.BlockRef{ID: head},
			Reader:   io.MultiReader(bytes.NewReader(head), bytes.NewReader(common[idBytes:])), Size: n,
		}}, nil)
		if err != nil {
			return err
		}
		return outs[0].Err
	})
	if err != nil {
		return res, err
	}
	var wrong atomic.Int64
	res.Read, err = each(newLatency("read"), func(ctx context.Context, id uint64) error {
		buf := buffers.Get().(*[]byte)
		defer buffers.Put(buf)
		head := binary.BigEndian.AppendUint64(nil, id)
		o := &client.ReadOptions{Buffer: func(_ int, size int64) []byte { return (*buf)[:min(size, n)] }}
		for b, err := range prompt.Read(ctx, []client.BlockRef{{ID: head}}, o) {
			if err != nil {
				return err
			}
			if b.Miss || !bytes.Equal(b.Data[:idBytes], head) || !bytes.Equal(b.Data[idBytes:], common[idBytes:]) {
				wrong.Add(1)
			}
		}
		return nil
	})
	res.Wrong = wrong.Load()
	return res, err
}
