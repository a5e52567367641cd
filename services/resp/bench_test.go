package resp_test

import (
	"io"
	"strings"
	"testing"
)

// BenchmarkRequests is what requests cost with shards in memory, client and network included: one after the other, and 32 at once. Values of 256 bytes.
func BenchmarkRequests(b *testing.B) {
	value := strings.Repeat("v", 256)
	for _, bc := range []struct {
		name, request, reply string
		at                   int
	}{
		{"SET", encode("SET", "key", value), "+OK\r\n", 1},
		{"GET", encode("GET", "key"), bulk(value, true), 1},
		{"SET/pipeline=32", encode("SET", "key", value), "+OK\r\n", 32},
		{"GET/pipeline=32", encode("GET", "key"), bulk(value, true), 32},
	} {
		b.Run(bc.name, func(b *testing.B) {
			r := newRig(b, rigConfig{})
			l := dial(b, r.Addr)
			if got := l.do("SET", "key", value); got != "+OK\r\n" {
				b.Fatal(got)
			}
			requests, replies := strings.Repeat(bc.request, bc.at), make([]byte, bc.at*len(bc.reply))
			b.ReportAllocs()
			b.SetBytes(int64(len(value)))
			for n := 0; b.Loop(); n++ {
				if n%bc.at != 0 { // an operation is a request, not a pipeline
					continue
				}
				if _, err := io.WriteString(l.conn, requests); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(l.in, replies); err != nil {
					b.Fatal(err)
				}
			}
			if string(replies[:len(bc.reply)]) != bc.reply {
				b.Errorf("came %q", replies[:len(bc.reply)])
			}
		})
	}
}
