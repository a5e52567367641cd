package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// claimedTokens is what the source system claims, tokens read and written a second (SPEC S0-30).
const claimedTokens = 94_000

// startOursAdmin starts this store and also returns its admin address.
func startOursAdmin(ctx context.Context, bin, dir string, more ...string) (s *server, addr, admin string, err error) {
	if addr, err = freePort(); err != nil {
		return nil, "", "", err
	}
	if admin, err = freePort(); err != nil {
		return nil, "", "", err
	}
	args := append([]string{"-data-dir", filepath.Join(dir, "data"), "-grpc-listen", addr, "-rest-listen", "off", "-admin-listen", admin}, more...)
	if s, err = start("kvstored", dir, filepath.Join(bin, "kvstored"), args...); err != nil {
		return nil, "", "", err
	}
	return s, addr, admin, waitPort(ctx, addr)
}

// replay is what kvctl bench prompt says in JSON, as far as it is looked at here.
type replay struct {
	Requests int64   `json:"requests"`
	Hits     int64   `json:"hits"`
	HitRatio float64 `json:"hit_ratio"`
	Wrong    int64   `json:"blocks_wrong"`
	ReqPerS  float64 `json:"requests_per_s"`
	Tokens   float64 `json:"tokens_per_s"`
	Steps    []step  `json:"steps"`
}

type step struct {
	Name string  `json:"step"`
	P50  float64 `json:"p50_ms"`
	P99  float64 `json:"p99_ms"`
	MBs  float64 `json:"mb_per_s"`
}

func (r replay) lookup() step {
	for _, s := range r.Steps {
		if s.Name == "lookup" {
			return s
		}
	}
	return step{}
}

func (b *bench) kvctl(ctx context.Context, addr string, into any, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(b.bin, "kvctl"), append(args, "--endpoint", addr, "-o", "json")...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("kvctl %v: %w\n%s", args, err, out)
	}
	return json.Unmarshal(out, into)
}

// prompt replays the conversation trace at c=32 with 16 KiB blocks, first as fast as it goes, then at set rates.
func (b *bench) prompt(ctx context.Context) error {
	srv, addr, _, err := startOursAdmin(ctx, b.bin, filepath.Join(b.dir, "prompt"))
	if err != nil {
		return err
	}
	defer srv.stop()
	trace, err := filepath.Abs("tests/load/testdata/conversation_trace.jsonl.gz")
	if err != nil {
		return err
	}
	args := []string{"bench", "prompt", "--trace", trace, "--block-bytes", "16384"}
	var full replay
	if err := b.kvctl(ctx, addr, &full, append(args, "-c", "32", "--limit", "6000")...); err != nil {
		return err
	}
	b.figure(figure{Name: "trace replay c=32, 16 KiB blocks, over the claimed 94k tokens/s", Value: full.Tokens / claimedTokens, Unit: "x", Target: 20,
		Note: fmt.Sprintf("%.2fM tokens/s, %.0f requests/s, hit ratio %.2f %%, %d wrong blocks", full.Tokens/1e6, full.ReqPerS, 100*full.HitRatio, full.Wrong)})
	b.figure(figure{Name: "lookup p50 there", Value: full.lookup().P50, Unit: "ms", Target: 2, AtMost: true})
	// The same requests at set rates: a quarter of what it can do, the 20 times that it must do, a quarter of those.
	must := full.ReqPerS * 20 * claimedTokens / full.Tokens
	redis, redisAddr, err := startRedis(ctx, filepath.Join(b.dir, "redis-paced"))
	if err != nil {
		return err
	}
	defer redis.stop()
	peer := newRedis(redisAddr, 1)
	defer peer.c.Close()
	if err := peer.put(ctx, keyOf(0), randomValue(256)); err != nil {
		return err
	}
	for _, at := range []struct {
		name   string
		rate   float64
		limit  int
		target float64
	}{
		{"at a quarter of that load", full.ReqPerS / 4, 2000, 0.5},
		{"at 20 times the claim", must, 2000, 2},
		{"at a quarter of 20 times the claim", must / 4, 600, 0.5},
	} {
		var r replay
		if err := b.kvctl(ctx, addr, &r, append(args, "-c", "32", "--limit", strconv.Itoa(at.limit), "--rate", strconv.FormatFloat(at.rate, 'f', 1, 64))...); err != nil {
			return err
		}
		get, err := pacedGet(ctx, peer, at.rate, at.limit)
		if err != nil {
			return err
		}
		b.figure(figure{Name: "lookup p50 " + at.name, Value: r.lookup().P50, Unit: "ms", Target: at.target, AtMost: true,
			Note: fmt.Sprintf("%.0f requests/s; a GET of 256 bytes by go-redis at that pace, on an otherwise idle machine: p50 %.2f ms", r.ReqPerS, float64(get.Microseconds())/1e3)})
	}
	return nil
}

// pacedGet is the median time of n gets from s at a rate with nothing else to do: what waking two sleeping processes costs on this machine.
func pacedGet(ctx context.Context, s system, perSecond float64, n int) (time.Duration, error) {
	tick := time.NewTicker(time.Duration(float64(time.Second) / perSecond))
	defer tick.Stop()
	var took []time.Duration
	for range n {
		<-tick.C
		began := time.Now()
		if err := s.get(ctx, keyOf(0)); err != nil {
			return 0, err
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}

// blockResult is what kvctl bench value says in JSON.
type blockResult struct {
	Write step  `json:"write"`
	Read  step  `json:"read"`
	Wrong int64 `json:"blocks_wrong"`
}

// blocks writes and reads blocks of 1 to 80 MiB beside the raw disk, and watches the server's memory.
func (b *bench) blocks(ctx context.Context) error {
	raw, err := rawDisk(b.dir)
	if err != nil {
		return err
	}
	b.figure(figure{Name: "raw disk, 80 MiB file written and synced", Value: raw, Unit: "MB/s"})
	srv, addr, _, err := startOursAdmin(ctx, b.bin, filepath.Join(b.dir, "blocks"))
	if err != nil {
		return err
	}
	defer srv.stop()
	for _, mib := range []int{1, 4, 32, 80} {
		var rs []blockResult
		count := max(4, 320/mib)
		if err := b.kvctl(ctx, addr, &rs, "bench", "value", "--size", fmt.Sprintf("%dMiB", mib), "--count", strconv.Itoa(count), "-c", "2"); err != nil {
			return err
		}
		if len(rs) != 1 || rs[0].Wrong != 0 {
			return fmt.Errorf("blocks of %d MiB: %+v", mib, rs)
		}
		r := rs[0]
		now, peak, err := srv.memory()
		if err != nil {
			return err
		}
		b.figure(figure{Name: fmt.Sprintf("blocks of %d MiB written", mib), Value: r.Write.MBs, Unit: "MB/s", Note: fmt.Sprintf("%.2f of the raw disk", r.Write.MBs/raw)})
		b.figure(figure{Name: fmt.Sprintf("blocks of %d MiB read and verified", mib), Value: r.Read.MBs, Unit: "MB/s",
			Note: fmt.Sprintf("server memory %d MiB, at most %d MiB so far", now>>20, peak>>20)})
	}
	return nil
}

// rawDisk is the rate of writing and syncing an 80 MiB file, the median of three, in MB/s.
func rawDisk(dir string) (float64, error) {
	buf := randomValue(1 << 20)
	var rates []float64
	for range 3 {
		f, err := os.CreateTemp(dir, "raw-*")
		if err != nil {
			return 0, err
		}
		begin := time.Now()
		for range 80 {
			if _, err := f.Write(buf); err != nil {
				return 0, err
			}
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		rates = append(rates, float64(80<<20)/1e6/time.Since(begin).Seconds())
		f.Close()
		if err := os.Remove(f.Name()); err != nil {
			return 0, err
		}
	}
	return max(min(rates[0], rates[1]), min(max(rates[0], rates[1]), rates[2])), nil
}
