package redislog

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"kvstore/components/wal/driver"
	"kvstore/tests/testenv"
)

// BenchmarkAppend appends records of 256 bytes to as many shards at once, on a redis-server that syncs before it answers. Beside it, in the same
// run and in turn with it, bare RPUSHs of the same bytes to as many lists by the same client library: raw is one by each of as many callers with
// a connection each, pipe all of them in one pipeline, over and over. x-raw and x-pipe are how many times more records are made durable than
// that; redis-us/op is the server's processor time of an append, and pipe-redis-us/op that of an RPUSH in a pipeline.
//
//	KVSTORE_REDIS=1 go test -run '^$' -bench Append -benchtime 5000x ./components/wal/redislog
func BenchmarkAppend(b *testing.B) {
	for _, c := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("c=%d", c), func(b *testing.B) {
			server := testenv.NewRedis(b)
			e, err := Open(b.Context(), Config{URL: "redis://" + server.Addr})
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = e.Close() }()
			client := redis.NewClient(&redis.Options{Addr: server.Addr, PoolSize: c})
			defer func() { _ = client.Close() }()
			data := bytes.Repeat([]byte{7}, 256)
			epoch := driver.Epoch{Counter: 1}
			writers := make([]appender, c)
			for i := range writers {
				w := &writers[i]
				w.shard = fmt.Sprintf("shard-%d", i)
				if _, err := e.SwapManifest(b.Context(), w.shard, "", []byte("m")); err != nil {
					b.Fatal(err)
				}
				if w.seq, err = e.Fence(b.Context(), w.shard, epoch, func(uint64, uint64) []byte { return []byte("fence") }); err != nil {
					b.Fatal(err)
				}
			}
			used := func() time.Duration { return serverTime(b, e) }
			var raw, pipe, ours, pipeUsed, oursUsed time.Duration
			const rounds = 8
			per := (b.N + rounds*c - 1) / (rounds * c) // by each writer, in each round
			b.ReportAllocs()
			b.ResetTimer()
			for range rounds {
				b.StopTimer()
				raw += timed(func() { rawAppends(b, client, c, per, data) })
				before := used()
				pipe += timed(func() { pipedAppends(b, client, c, per, data) })
				between := used()
				b.StartTimer()
				ours += timed(func() { appendAll(b, e, epoch, writers, per, data) })
				b.StopTimer()
				pipeUsed += between - before
				oursUsed += used() - between
				b.StartTimer()
			}
			b.StopTimer()
			n := float64(rounds * per * c)
			b.ReportMetric(float64(raw)/float64(ours), "x-raw")
			b.ReportMetric(float64(pipe)/float64(ours), "x-pipe")
			b.ReportMetric(float64(oursUsed.Microseconds())/n, "redis-us/op")
			b.ReportMetric(float64(pipeUsed.Microseconds())/n, "pipe-redis-us/op")
		})
	}
}

func timed(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

// serverTime is the processor time that the server has used.
func serverTime(b *testing.B, e *Engine) time.Duration {
	infos, err := e.infos(b.Context(), "cpu")
	if err != nil {
		b.Fatal(err)
	}
	var seconds float64
	for _, name := range []string{"used_cpu_user", "used_cpu_sys"} {
		var s float64
		if _, err := fmt.Sscan(infos[0].fields[name], &s); err != nil {
			b.Fatal(err)
		}
		seconds += s
	}
	return time.Duration(seconds * float64(time.Second))
}

func rawAppends(b *testing.B, client *redis.Client, c, per int, data []byte) {
	var wg sync.WaitGroup
	for i := range c {
		wg.Go(func() {
			for range per {
				if err := client.RPush(b.Context(), fmt.Sprintf("raw-%d", i), data).Err(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func pipedAppends(b *testing.B, client *redis.Client, c, per int, data []byte) {
	for range per {
		pipe := client.Pipeline()
		for i := range c {
			pipe.RPush(b.Context(), fmt.Sprintf("raw-%d", i), data)
		}
		if _, err := pipe.Exec(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// appender appends to one shard.
type appender struct {
	shard string
	seq   uint64 // of the last record
}

// appendAll has every writer append so many records, each as soon as the one before is durable, as a shard does.
func appendAll(b *testing.B, e *Engine, epoch driver.Epoch, writers []appender, per int, data []byte) {
	var wg sync.WaitGroup
	for i := range writers {
		w, left := &writers[i], per
		wg.Add(1)
		var next func(err error)
		next = func(err error) {
			if err != nil {
				b.Error(err)
				left = 0
			}
			if left--; left < 0 {
				wg.Done()
				return
			}
			w.seq++
			e.Append(w.shard, epoch, driver.Frame{Epoch: epoch.Counter, Seq: w.seq, Data: data}, next)
		}
		next(nil)
	}
	wg.Wait()
}
