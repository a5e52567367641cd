package main

import (
	"context"
	"encoding/csv"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// resp lets redis-benchmark measure our RESP and a Redis that syncs every write before it answers, one after the other in each round, on keys of a
// hundred thousand with values of 256 bytes over 64 connections.
func (b *bench) resp(ctx context.Context) error {
	redis, theirs, err := startRedis(ctx, filepath.Join(b.dir, "resp-redis"))
	if err != nil {
		return err
	}
	defer redis.stop()
	ours, err := freePort()
	if err != nil {
		return err
	}
	store, _, _, err := startOursAdmin(ctx, b.bin, filepath.Join(b.dir, "resp-kvstore"), "-resp-listen", ours)
	if err != nil {
		return err
	}
	defer store.stop()
	if err := waitPort(ctx, ours); err != nil {
		return err
	}
	for _, c := range []struct {
		test     string
		pipeline int
		perTurn  int // requests in a second, roughly
		target   float64
	}{{"set", 1, 20_000, 0.8}, {"get", 1, 30_000, 0.8}, {"set", 32, 150_000, 0.5}, {"get", 32, 400_000, 0.5}} {
		name := fmt.Sprintf("RESP %s c=64 -P %d / Redis", strings.ToUpper(c.test), c.pipeline)
		if !strings.Contains(name, b.match) {
			continue
		}
		n := max(1, int(b.d.Seconds())) * c.perTurn
		var ratios []float64
		var note string
		for i := range b.rounds {
			fmt.Fprintf(os.Stderr, "%-34s round %d/%d\r", name, i+1, b.rounds)
			peer, err := redisBenchmarkOf(ctx, theirs, c.test, c.pipeline, n)
			if err != nil {
				return fmt.Errorf("%s, Redis: %w", name, err)
			}
			own, err := redisBenchmarkOf(ctx, ours, c.test, c.pipeline, n)
			if err != nil {
				return fmt.Errorf("%s, kvstore: %w", name, err)
			}
			ratios = append(ratios, own/peer)
			note += fmt.Sprintf(" %.1fk/%.1fk", own/1000, peer/1000)
		}
		slices.Sort(ratios)
		b.figure(figure{Name: name, Value: ratios[len(ratios)/2], Unit: "x", Target: c.target, Note: "requests per second, each round:" + note})
	}
	return nil
}

// redisBenchmarkOf is how many requests per second redis-benchmark counts.
func redisBenchmarkOf(ctx context.Context, addr, test string, pipeline, n int) (float64, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return 0, err
	}
	out, err := exec.CommandContext(ctx, "redis-benchmark", "-h", host, "-p", port, "-t", test, "-d", "256", "-c", "64", "-P", strconv.Itoa(pipeline),
		"-n", strconv.Itoa(n), "-r", "100000", "--csv").Output()
	if err != nil {
		return 0, err
	}
	rows, err := csv.NewReader(strings.NewReader(string(out))).ReadAll()
	if err != nil {
		return 0, err
	}
	for _, r := range rows {
		if len(r) > 1 && strings.EqualFold(r[0], test) {
			return strconv.ParseFloat(r[1], 64)
		}
	}
	return 0, fmt.Errorf("redis-benchmark said nothing of %s:\n%s", test, out)
}
