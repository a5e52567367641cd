package wal_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"kvstore/components/btree"
	"kvstore/components/wal"
)

// BenchmarkRestore brings a million small keys back, over four shards at once, from checkpoints that have a base and newer
// runs.
func BenchmarkRestore(b *testing.B) {
	const keys, shards = 1_000_000, 4
	engine := newMemory(b)
	store, err := wal.NewStore(engine, wal.Config{})
	if err != nil {
		b.Fatal(err)
	}
	for s := range shards {
		name := fmt.Sprintf("s-%d", s)
		if err := store.Create(b.Context(), name, nil); err != nil {
			b.Fatal(err)
		}
		l, err := store.Open(b.Context(), name, wal.OpenOptions{})
		if err != nil {
			b.Fatal(err)
		}
		if err := l.Restore(b.Context(), state{}, nil); err != nil {
			b.Fatal(err)
		}
		var tree btree.Tree
		value := make([]byte, 100)
		for i := range keys / shards {
			tree.Set(fmt.Appendf(nil, "d/ns/user/%08d/profile", i*7919%(keys/shards)), value)
		}
		for round := range 10 {
			for i := range 10_000 {
				if round > 0 {
					tree.Set(fmt.Appendf(nil, "d/ns/user/%08d/profile", (i*31+round)%(keys/shards)), fmt.Appendf(nil, "%0100d", round))
				}
			}
			outcome := make(chan error, 1)
			l.Append([]byte("x"), 1, func(_ uint64, err error) { outcome <- err })
			if err := <-outcome; err != nil {
				b.Fatal(err)
			}
			if _, err := l.Checkpoint(b.Context(), wal.Snapshot{Tree: tree.Clone(), Seq: l.Seq()}); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		var wg sync.WaitGroup
		for s := range shards {
			wg.Go(func() {
				l, err := store.Open(b.Context(), fmt.Sprintf("s-%d", s), wal.OpenOptions{})
				if err == nil {
					err = l.Restore(b.Context(), state{}, nil)
				}
				if err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
	}
	b.ReportMetric(float64(keys)*float64(b.N)/b.Elapsed().Seconds(), "keys/s")
}

// BenchmarkCheckpoint checkpoints after so many random updates each, on states of several sizes, and tells how many bytes of
// runs each distinct changed key costs; 80,000 updates of small keys are the 24 MiB of log that make a checkpoint due. What is written
// settles once each key was changed a few times: -benchtime 500x for 10 million keys (3 GB of memory, minutes).
func BenchmarkCheckpoint(b *testing.B) {
	for _, c := range []struct{ keys, updates int }{
		{10_000, 10_000}, {100_000, 10_000}, {1_000_000, 10_000}, {10_000, 80_000}, {1_000_000, 80_000}, {10_000_000, 80_000},
	} {
		keys := c.keys
		b.Run(fmt.Sprintf("keys=%d/updates=%d", keys, c.updates), func(b *testing.B) {
			store, err := wal.NewStore(newMemory(b), wal.Config{})
			if err != nil {
				b.Fatal(err)
			}
			if err := store.Create(b.Context(), "s", nil); err != nil {
				b.Fatal(err)
			}
			l, err := store.Open(b.Context(), "s", wal.OpenOptions{})
			if err == nil {
				err = l.Restore(b.Context(), state{}, nil)
			}
			if err != nil {
				b.Fatal(err)
			}
			var tree btree.Tree
			for i := range keys {
				tree.Set(fmt.Appendf(nil, "d/ns/user/%08d", i), make([]byte, 60))
			}
			rng := rand.New(rand.NewPCG(1, 1))
			var changed, written int64
			checkpoint := func() wal.CheckpointStats {
				outcome := make(chan error, 1)
				l.Append([]byte("x"), 1, func(_ uint64, err error) { outcome <- err })
				if err := <-outcome; err != nil {
					b.Fatal(err)
				}
				stats, err := l.Checkpoint(b.Context(), wal.Snapshot{Tree: tree.Clone(), Seq: l.Seq()})
				if err != nil {
					b.Fatal(err)
				}
				return stats
			}
			checkpoint()
			distinct := map[int]bool{}
			value := make([]byte, 60)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				clear(distinct)
				for range c.updates {
					i := rng.IntN(keys)
					distinct[i] = true
					for j := range 8 {
						value[j] = byte(rng.Uint32())
					}
					tree.Set(fmt.Appendf(nil, "d/ns/user/%08d", i), value)
				}
				changed += int64(len(distinct))
				b.StartTimer()
				written += checkpoint().BytesWritten
			}
			b.ReportMetric(float64(written)/float64(changed), "bytes/changed")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(changed), "ns/changed")
		})
	}
}
