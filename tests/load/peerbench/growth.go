package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"kvstore/client"
)

// Sizes of the growth runs.
const (
	growSmall   = 10_000
	growMillion = 1_000_000
	growValue   = 32 // bytes of a small value
)

// growth shows that cost follows the work, not the number of keys: processor time of a put with 10k and with 10M keys,
// memory per small key, restart after kill -9.
func (b *bench) growth(ctx context.Context) error {
	small, err := b.smallStore(ctx)
	if err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "growth")
	srv, addr, admin, err := startOursAdmin(ctx, b.bin, dir)
	if err != nil {
		return err
	}
	defer func() { srv.stop() }()
	c, err := newOurs(ctx, addr, false)
	if err != nil {
		return err
	}
	cl := c.c[0]

	empty, err := heapInUse(ctx, admin)
	if err != nil {
		return err
	}
	if err := b.load(ctx, cl, 0, growMillion); err != nil {
		return err
	}
	full, err := heapInUse(ctx, admin)
	if err != nil {
		return err
	}
	payload := int64(growMillion * (smallKeyLen + growValue))
	b.figure(figure{Name: "heap in use per small key beyond its bytes, 1M keys", Value: float64(full-empty-payload) / growMillion, Unit: "bytes", Target: 250, AtMost: true,
		Note: fmt.Sprintf("%d-byte keys, %d-byte values, idempotency and history included", smallKeyLen, growValue)})

	// Kill -9 and start again: all keys are back when counting them answers.
	srv.kill()
	again := time.Now()
	if srv, addr, admin, err = startOursAdmin(ctx, b.bin, dir); err != nil {
		return err
	}
	if c, err = newOurs(ctx, addr, false); err != nil {
		return err
	}
	cl = c.c[0]
	n, err := cl.Count(ctx, nil)
	if err != nil {
		return err
	}
	if n != growMillion {
		return fmt.Errorf("after kill -9 %d keys of %d are there", n, growMillion)
	}
	b.figure(figure{Name: "kill -9 to all of 1M small keys served again", Value: time.Since(again).Seconds(), Unit: "s", Target: 5, AtMost: true})

	if err := b.load(ctx, cl, growMillion, b.keys); err != nil {
		return err
	}
	large, err := b.cpuPerPut(ctx, srv, cl, b.keys)
	if err != nil {
		return err
	}
	b.figure(figure{Name: "processor time per put, 10k keys", Value: small, Unit: "us"})
	b.figure(figure{Name: fmt.Sprintf("processor time per put, %dk keys", b.keys/1000), Value: large, Unit: "us"})
	b.figure(figure{Name: fmt.Sprintf("growth of processor time per put, 10k to %dk keys", b.keys/1000), Value: large / small, Unit: "x", Target: 2.5, AtMost: true})
	return nil
}

// smallStore is the processor time of a put with few keys, in a store of its own: every put of that run leaves an identity behind
// for as long as the client may repeat it, which is no cost of the keys that are measured next.
func (b *bench) smallStore(ctx context.Context) (float64, error) {
	srv, addr, _, err := startOursAdmin(ctx, b.bin, filepath.Join(b.dir, "small"))
	if err != nil {
		return 0, err
	}
	defer srv.stop()
	c, err := newOurs(ctx, addr, false)
	if err != nil {
		return 0, err
	}
	if err := b.load(ctx, c.c[0], 0, growSmall); err != nil {
		return 0, err
	}
	return b.cpuPerPut(ctx, srv, c.c[0], growSmall)
}

// figure notes a figure, and shows it at once: a run takes minutes.
func (b *bench) figure(f figure) {
	fmt.Fprintf(os.Stderr, "%s: %.4g %s\n", f.Name, f.Value, f.Unit)
	b.report.Figures = append(b.report.Figures, f)
}

// smallKeyLen is the length of a small key.
const smallKeyLen = 16

// smallKey scatters i over the key space, so that neighbours in time are not neighbours in the tree.
func smallKey(i uint64) string {
	x := i*0x9e3779b97f4a7c15 ^ 0x5bd1e995
	return fmt.Sprintf("%016x", x)
}

// load puts the keys from..to in batches.
func (b *bench) load(ctx context.Context, c *client.Client, from, to int) error {
	const batch = 500
	var next atomic.Int64
	next.Store(int64(from))
	start := time.Now()
	err := each(8, func(w int) error {
		for {
			lo := int(next.Add(batch)) - batch
			if lo >= to {
				return nil
			}
			var puts []client.PutItem
			for i := lo; i < min(lo+batch, to); i++ {
				v := make([]byte, growValue)
				binary.LittleEndian.PutUint64(v, uint64(i))
				puts = append(puts, client.PutItem{Key: smallKey(uint64(i)), Value: v})
			}
			res, err := c.BatchPut(ctx, puts)
			if err != nil {
				return err
			}
			for i := range res {
				if res[i].Err != nil {
					return res[i].Err
				}
			}
			if w == 0 {
				fmt.Printf("\rloading %d of %d keys, %.0f/s ", lo, to, float64(lo-from)/time.Since(start).Seconds())
			}
		}
	})
	fmt.Print("\r\033[K")
	return err
}

// cpuPerPut is the server's processor time per coalesced put, in microseconds, over keys chosen evenly.
func (b *bench) cpuPerPut(ctx context.Context, srv *server, c *client.Client, keys int) (float64, error) {
	value := randomValue(growValue)
	var n atomic.Int64
	before, err := srv.cpu()
	if err != nil {
		return 0, err
	}
	end := time.Now().Add(max(4*b.d, 20*time.Second)) // long enough for collections and checkpoints to take their share
	err = each(256, func(w int) error {
		r := rand.New(rand.NewPCG(7, uint64(w)))
		for time.Now().Before(end) {
			if _, err := c.Put(ctx, smallKey(r.Uint64N(uint64(keys))), value, nil); err != nil {
				return err
			}
			n.Add(1)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	after, err := srv.cpu()
	return float64((after - before).Microseconds()) / float64(n.Load()), err
}

// heapInUse asks the admin port for the heap after a collection.
func heapInUse(ctx context.Context, admin string) (int64, error) {
	var n int64
	for range 2 { // the second collection frees what the first one's finalizers let go
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+admin+"/debug/pprof/heap?gc=1&debug=1", nil)
		if err != nil {
			return 0, err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, err
		}
		found := false
		sc := bufio.NewScanner(resp.Body)
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			if v, ok := strings.CutPrefix(sc.Text(), "# HeapInuse = "); ok {
				_, err = fmt.Sscan(v, &n)
				found = true
			}
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil || !found {
			return 0, fmt.Errorf("no HeapInuse in the heap profile of %s: %w", admin, err)
		}
	}
	return n, nil
}
