package client_test

import (
	"fmt"
	"testing"

	"kvstore/client"
	"kvstore/client/clienttest"
)

// Against the in-process server of clienttest, whose own cost (the generated structs, a map) is in the figures too:
// compare them with each other.

func BenchmarkPut(b *testing.B) { benchmark(b, true) }
func BenchmarkGet(b *testing.B) { benchmark(b, false) }

func benchmark(b *testing.B, write bool) {
	value := make([]byte, 256)
	for _, way := range []struct {
		name  string
		unary bool
	}{{"pipeline", false}, {"unary", true}} {
		for _, callers := range []int{1, 64, 256, 1024} {
			b.Run(fmt.Sprintf("%s/c=%d", way.name, callers), func(b *testing.B) {
				srv := clienttest.StartTCP(b)
				srv.Forget()
				c := srv.Dial(b, client.Config{Unary: way.unary})
				ctx := b.Context()
				if _, err := c.Put(ctx, "key:000000", value, nil); err != nil {
					b.Fatal(err)
				}
				b.ReportAllocs()
				b.SetParallelism((callers + 1) / 2) // times GOMAXPROCS, 2 on the machine that figures are kept of
				if callers == 1 {
					for b.Loop() {
						if err := one(b, c, write, value); err != nil {
							b.Fatal(err)
						}
					}
					return
				}
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if err := one(b, c, write, value); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		}
	}
}

func one(b *testing.B, c *client.Client, write bool, value []byte) error {
	if write {
		_, err := c.Put(b.Context(), "key:000000", value, nil)
		return err
	}
	_, err := c.Get(b.Context(), "key:000000", nil)
	return err
}
