package disklog

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"kvstore/components/wal/disklog/vfs"
	"kvstore/components/wal/driver"
)

// rawSync measures n writes of size bytes, each followed by fdatasync, to a file of zeros: what one batch costs at least.
func rawSync(b *testing.B, dir string, n, size int) time.Duration {
	f, err := vfs.OS.Open(filepath.Join(dir, "raw"), os.O_RDWR|os.O_CREATE)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	const length = 16 << 20
	if err := f.Allocate(length); err != nil {
		b.Fatal(err)
	}
	if err := writeZeros(f, 0, length); err != nil {
		b.Fatal(err)
	}
	data := bytes.Repeat([]byte{1}, size)
	start := time.Now()
	for i := range n {
		if _, err := f.WriteAt(data, int64(i*size%(length-size))); err != nil {
			b.Fatal(err)
		}
		if err := f.Datasync(); err != nil {
			b.Fatal(err)
		}
	}
	return time.Since(start) / time.Duration(n)
}

// BenchmarkAppend appends records of 256 bytes to as many shards at once. raw/op is a bare write and fdatasync of the same bytes, one
// record at a time, in the same run; x-raw is how many times more records are made durable than that.
func BenchmarkAppend(b *testing.B) {
	for _, c := range []int{1, 64, 1024} {
		b.Run(fmt.Sprintf("c=%d", c), func(b *testing.B) {
			dir := b.TempDir()
			e := mustOpen(b, dir, Config{})
			data := bytes.Repeat([]byte{7}, 256)
			type writer struct {
				shard string
				seq   uint64
			}
			writers := make([]writer, c)
			for i := range writers {
				writers[i] = writer{fmt.Sprintf("shard-%d", i), 2}
				mustFence(b, e, writers[i].shard, epoch(1))
			}
			raw := rawSync(b, dir, 1000, 256)
			var mu sync.Mutex // guards left; the committer is the only one to take it, but for the start
			left := b.N
			var wg sync.WaitGroup
			var next func(w *writer)
			next = func(w *writer) {
				mu.Lock()
				left--
				more := left >= 0
				mu.Unlock()
				if !more {
					wg.Done()
					return
				}
				seq := w.seq
				w.seq++
				e.Append(w.shard, epoch(1), driver.Frame{Epoch: 1, Seq: seq, Data: data}, func(err error) {
					if err != nil {
						b.Error(err)
					}
					next(w)
				})
			}
			b.ReportAllocs()
			b.ResetTimer()
			wg.Add(c)
			for i := range writers {
				next(&writers[i])
			}
			wg.Wait()
			b.StopTimer()
			per := b.Elapsed() / time.Duration(b.N)
			b.ReportMetric(float64(raw.Nanoseconds()), "raw-ns/op")
			b.ReportMetric(float64(raw)/float64(max(per, 1)), "x-raw")
		})
	}
}

// BenchmarkPutObject stores objects beside a bare write, fdatasync, rename and folder sync of the same bytes. Those of an unknown size are files
// of their own, the others share packs.
func BenchmarkPutObject(b *testing.B) {
	for _, c := range []struct {
		name    string
		size    int
		callers int
		file    bool
	}{
		{"file/16KiB/c=1", 16 << 10, 1, true},
		{"pack/16KiB/c=1", 16 << 10, 1, false},
		{"file/256KiB/c=1", 256 << 10, 1, true},
		{"pack/256KiB/c=1", 256 << 10, 1, false},
		{"file/256KiB/c=4", 256 << 10, 4, true},
		{"pack/256KiB/c=4", 256 << 10, 4, false},
		{"file/256KiB/c=16", 256 << 10, 16, true},
		{"pack/256KiB/c=16", 256 << 10, 16, false},
	} {
		b.Run(c.name, func(b *testing.B) {
			dir := b.TempDir()
			e := mustOpen(b, dir, Config{})
			data := bytes.Repeat([]byte{7}, c.size)
			start := time.Now()
			const n = 50
			for i := range n {
				name := filepath.Join(dir, fmt.Sprint("raw", i))
				if err := writeFile(vfs.OS, name+".tmp", name, data); err != nil {
					b.Fatal(err)
				}
			}
			raw := time.Since(start) / n
			size := int64(c.size)
			if c.file {
				size = -1
			}
			b.SetBytes(int64(c.size))
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for w := range c.callers {
				wg.Go(func() {
					for i := w; i < b.N; i += c.callers {
						if err := e.PutObject(ctx, "s", fmt.Sprintf("v/%d", i), size, bytes.NewReader(data)); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(raw)/float64(max(b.Elapsed()/time.Duration(b.N), 1)), "x-raw")
		})
	}
}

// BenchmarkOpenPacks opens a directory with 2,000 objects of 256 KiB: 8 packs.
func BenchmarkOpenPacks(b *testing.B) {
	dir := b.TempDir()
	e := mustOpen(b, dir, Config{})
	data := bytes.Repeat([]byte{7}, 256<<10)
	var wg sync.WaitGroup
	const callers, n = 16, 2000
	for w := range callers {
		wg.Go(func() {
			for i := w; i < n; i += callers {
				if err := e.PutObject(ctx, "s", fmt.Sprintf("v/%d", i), int64(len(data)), bytes.NewReader(data)); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for b.Loop() {
		mustClose(b, e)
		e = mustOpen(b, dir, Config{})
	}
}
