package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kvstore/client"
)

// Sizes of the watch runs.
const (
	hotWatchers  = 1000
	hotRate      = 50 // writes per second
	idleWatchers = 10_000
	idlePairs    = 10
)

// watcher is a system whose changes can be followed.
type watcher interface {
	system
	// watch follows a key, or what begins with it, from now on, until ctx ends. Begun is called when it has begun, and event for every change.
	watch(ctx context.Context, key string, prefix bool, begun func(), event func(value []byte)) error
}

func (s *ourSystem) watch(ctx context.Context, key string, prefix bool, begun func(), event func([]byte)) error {
	o := &client.WatchOptions{Key: key, All: true}
	if prefix {
		o.Key, o.Prefix = "", key
	}
	for b, err := range s.pick().Watch(ctx, o) {
		if err != nil {
			return err
		}
		if b.Started {
			begun()
		}
		for i := range b.Events {
			event(b.Events[i].Value)
		}
	}
	return nil
}

func (s *etcdSystem) watch(ctx context.Context, key string, prefix bool, begun func(), event func([]byte)) error {
	options := []clientv3.OpOption{clientv3.WithCreatedNotify()}
	if prefix {
		options = append(options, clientv3.WithPrefix())
	}
	for r := range s.pick().Watch(ctx, key, options...) {
		if err := r.Err(); err != nil {
			return err
		}
		if r.Created {
			begun()
		}
		for _, e := range r.Events {
			event(e.Kv.Value)
		}
	}
	return ctx.Err()
}

// watches compares watches with etcd's: how late events come to many watchers of one key, and what idle watches cost a put.
func (b *bench) watches(ctx context.Context) error {
	ours, err := b.hotKey(ctx, "kvstore")
	if err != nil {
		return err
	}
	theirs, err := b.hotKey(ctx, "etcd")
	if err != nil {
		return err
	}
	name := fmt.Sprintf("%d watchers of a key at %d writes/s", hotWatchers, hotRate)
	b.figure(figure{Name: name + ": event p99", Value: ours, Unit: "ms", Target: 20, AtMost: true, Note: fmt.Sprintf("etcd %.4g ms, %.2fx", theirs, ours/theirs)})
	ours, err = b.idleWatches(ctx, "kvstore")
	if err != nil {
		return err
	}
	theirs, err = b.idleWatches(ctx, "etcd")
	if err != nil {
		return err
	}
	b.figure(figure{Name: fmt.Sprintf("processor time of a put with %d idle watches beside one without", idleWatchers), Value: ours, Unit: "x", Target: 1.05, AtMost: true,
		Note: fmt.Sprintf("median of %d interleaved pairs; etcd %.3gx", idlePairs, theirs)})
	return nil
}

// startWatched starts a store of a kind, and a client of it.
func (b *bench) startWatched(ctx context.Context, kind, dir string) (*server, watcher, error) {
	dir = filepath.Join(b.dir, dir)
	if kind == "etcd" {
		srv, addr, err := startEtcd(ctx, b.bin, dir)
		if err != nil {
			return nil, nil, err
		}
		s, err := newEtcd(addr)
		return srv, s, err
	}
	srv, addr, _, err := startOursAdmin(ctx, b.bin, dir)
	if err != nil {
		return nil, nil, err
	}
	s, err := newOurs(ctx, addr, true) // four connections, as etcd's
	return srv, s, err
}

// hotKey is how late events of one key come to many watchers, at p99, in milliseconds: from before the put to the watcher.
func (b *bench) hotKey(ctx context.Context, kind string) (float64, error) {
	srv, s, err := b.startWatched(ctx, kind, "hot-"+kind)
	if err != nil {
		return 0, err
	}
	defer srv.stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex // guards late
	late := hdrhistogram.New(1, 60_000_000, 3)
	var told atomic.Int64
	end, err := watchAll(ctx, s, hotWatchers, func(int) (string, bool) { return "hot", false }, func(value []byte) {
		us := time.Since(time.Unix(0, int64(binary.LittleEndian.Uint64(value)))).Microseconds()
		mu.Lock()
		_ = late.RecordValue(max(1, us))
		mu.Unlock()
		told.Add(1)
	})
	if err != nil {
		return 0, err
	}
	value := randomValue(256)
	writes := int64(b.d.Seconds() * 2 * hotRate)
	tick := time.NewTicker(time.Second / hotRate)
	defer tick.Stop()
	for range writes {
		<-tick.C
		binary.LittleEndian.PutUint64(value, uint64(time.Now().UnixNano()))
		if err := s.put(ctx, "hot", value); err != nil {
			return 0, err
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for told.Load() < writes*hotWatchers && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if n := told.Load(); n != writes*hotWatchers {
		return 0, fmt.Errorf("%s: %d events came, not %d", kind, n, writes*hotWatchers)
	}
	cancel()
	if err := end(); err != nil {
		return 0, err
	}
	mu.Lock()
	defer mu.Unlock()
	fmt.Fprintf(os.Stderr, "%s, %d watchers of a key: p50 %.2f ms, p99 %.2f ms, %d events\n", kind, hotWatchers,
		float64(late.ValueAtQuantile(50))/1e3, float64(late.ValueAtQuantile(99))/1e3, late.TotalCount())
	return float64(late.ValueAtQuantile(99)) / 1e3, nil
}

// watchAll starts n watches and waits until all have begun; end waits for them, after ctx has ended.
func watchAll(ctx context.Context, s watcher, n int, what func(i int) (key string, prefix bool), event func([]byte)) (end func() error, err error) {
	var all sync.WaitGroup
	failed := make(chan error, n)
	begun := make(chan struct{}, n)
	for i := range n {
		all.Go(func() {
			key, prefix := what(i)
			err := s.watch(ctx, key, prefix, func() { begun <- struct{}{} }, event)
			if ctx.Err() == nil {
				failed <- errors.Join(errors.New("a watch has ended"), err)
			}
		})
	}
	for range n {
		select {
		case <-begun:
		case err := <-failed:
			return nil, err
		}
	}
	return func() error {
		all.Wait()
		select {
		case err := <-failed:
			return err
		default:
			return nil
		}
	}, nil
}

// idleWatches is what a put costs a server with idle watches, beside one without: the median of pairs.
func (b *bench) idleWatches(ctx context.Context, kind string) (float64, error) {
	var servers [2]*server
	var systems [2]watcher
	for i, dir := range []string{"idle-" + kind, "alone-" + kind} {
		var err error
		if servers[i], systems[i], err = b.startWatched(ctx, kind, dir); err != nil {
			return 0, err
		}
		defer servers[i].stop()
		if err := fill(ctx, systems[i], load{keys: 10_000, size: 256}); err != nil {
			return 0, err
		}
	}
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	end, err := watchAll(watching, systems[0], idleWatchers, func(i int) (string, bool) { return fmt.Sprintf("idle/%d", i), i%2 == 0 },
		func([]byte) { panic("an idle watch was told something") })
	if err != nil {
		return 0, err
	}
	var ratios []float64
	for round := range idlePairs + 1 {
		var cost [2]float64
		for i := range systems {
			i := (i + round) % 2
			before, err := servers[i].cpu()
			if err != nil {
				return 0, err
			}
			o, err := run(ctx, systems[i], load{workers: 64, keys: 10_000, size: 256, d: b.d / 2, seed: uint64(round)})
			if err != nil {
				return 0, err
			}
			after, err := servers[i].cpu()
			if err != nil {
				return 0, err
			}
			cost[i] = float64((after - before).Microseconds()) / float64(o.Ops)
		}
		if round > 0 { // the first is to warm up
			ratios = append(ratios, cost[0]/cost[1])
			fmt.Fprintf(os.Stderr, "%s: a put costs %.1f us with %d idle watches, %.1f us without\n", kind, cost[0], idleWatchers, cost[1])
		}
	}
	cancel()
	if err := end(); err != nil {
		return 0, err
	}
	slices.Sort(ratios)
	return (ratios[idlePairs/2-1] + ratios[idlePairs/2]) / 2, nil
}
