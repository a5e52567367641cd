package dataplane

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"kvstore/actors/shard"
)

// BenchmarkDataPlane is a put or a get of 256 bytes from c callers who wait for each, over TCP, in memory: what lies between a
// frontend's handler and the host's actor. local is the same without a network.
func BenchmarkDataPlane(b *testing.B) {
	const keys, shards = 10_000, 4
	value := make([]byte, 256)
	key := func(i int64) []byte { return fmt.Appendf(nil, "key:%012d", i%keys) }
	for _, way := range []string{"local", "remote"} {
		cl := newCluster(b, 1, shards)
		var s interface {
			doer
			reader
		} = cl.nodes[0].Host
		if way == "remote" {
			s = cl.client(ClientConfig{})
		}
		put := func(done chan error, i int64, c *shard.Command) error {
			*c = shard.Command{Op: shard.OpPut, Namespace: namespace, Done: c.Done, ID: shard.Identity{Client: [16]byte{1}, Op: uint64(i), NotAfterMS: 1e15}}
			c.Put = shard.Put{Key: key(i), Value: shard.Value{Inline: value}, Slot: 7}
			s.Do(context.Background(), shardID(int(i%shards)), c)
			return <-done
		}
		get := func(done chan error, i int64, q *shard.Query) error {
			*q = shard.Query{Op: shard.QueryGet, Namespace: namespace, Done: q.Done, Key: key(i)}
			s.Read(context.Background(), shardID(int(i%shards)), q)
			return <-done
		}
		fill := make(chan error, 1)
		for i := range int64(keys) {
			if err := put(fill, i, &shard.Command{Done: func(_ *shard.Command, err error) { fill <- err }}); err != nil {
				b.Fatal(err)
			}
		}
		for _, c := range []int{1, 64, 256} {
			for _, verb := range []string{"put", "get"} {
				b.Run(fmt.Sprintf("%s/c=%d/%s", verb, c, way), func(b *testing.B) {
					b.ReportAllocs()
					var next atomic.Int64
					var wait sync.WaitGroup
					for range c {
						wait.Go(func() {
							done := make(chan error, 1)
							cmd := &shard.Command{Done: func(_ *shard.Command, err error) { done <- err }}
							q := &shard.Query{Done: func(_ *shard.Query, err error) { done <- err }}
							for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
								var err error
								if verb == "put" {
									err = put(done, keys+i, cmd)
								} else {
									err = get(done, i, q)
								}
								if err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					wait.Wait()
					b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
				})
			}
		}
	}
}
