package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
)

const (
	eyesPairs  = 10
	eyesSample = "0.01"
	eyesScrape = 5 * time.Second // three times as often as Prometheus in its example, twelve times as by default
)

// eyes is what metrics and traces cost a put, in the server's processor time: a server that counts, is scraped every 5 s and sends the traces of 1 % of its puts
// to a collector, beside one that is built to count nothing and traces nothing.
func (b *bench) eyes(ctx context.Context) error {
	sink, at, err := newSink()
	if err != nil {
		return err
	}
	defer sink.Stop()
	for _, unary := range []bool{false, true} {
		way := "pipeline"
		if unary {
			way = "unary"
		}
		ratio, err := b.eyesOf(ctx, way, at, unary)
		if err != nil {
			return err
		}
		b.figure(figure{Name: "processor time of a put (" + way + ") with metrics and 1 % traces beside one without", Value: ratio, Unit: "x", Target: 1.03, AtMost: true,
			Note: fmt.Sprintf("median of %d interleaved pairs, 64 callers", eyesPairs)})
	}
	if sink.bytes.Load() == 0 {
		return errors.New("no span has come to the collector: nothing was measured")
	}
	fmt.Fprintf(os.Stderr, "the collector got %d bytes of spans\n", sink.bytes.Load())
	return nil
}

func (b *bench) eyesOf(ctx context.Context, way, collector string, unary bool) (float64, error) {
	var servers [2]*server
	var systems [2]*ourSystem
	var doors [2]string
	for i, kind := range []struct {
		name, bin string
		more      []string
	}{
		{"seen", "kvstored", []string{"-otlp-endpoint", "http://" + collector, "-trace-sample", eyesSample}},
		{"unseen", "kvstored-blind", nil},
	} {
		addr, err := freePort()
		if err != nil {
			return 0, err
		}
		if doors[i], err = freePort(); err != nil {
			return 0, err
		}
		dir := filepath.Join(b.dir, kind.name+"-"+way)
		args := append([]string{"-data-dir", filepath.Join(dir, "data"), "-grpc-listen", addr, "-rest-listen", "off", "-admin-listen", doors[i]}, kind.more...)
		if servers[i], err = start(kind.bin, dir, filepath.Join(b.bin, kind.bin), args...); err != nil {
			return 0, err
		}
		defer servers[i].stop()
		if err := waitPort(ctx, addr); err != nil {
			return 0, err
		}
		if systems[i], err = newOurs(ctx, addr, unary); err != nil {
			return 0, err
		}
		if err := fill(ctx, systems[i], load{keys: 10_000, size: 256}); err != nil {
			return 0, err
		}
	}
	scraping, stop := context.WithCancel(ctx)
	scraped := make(chan error, 1)
	go func() { scraped <- scrapeEvery(scraping, "http://"+doors[0]+"/metrics") }()
	ratios, err := b.eyesRuns(ctx, way, servers, systems)
	stop()
	if serr := <-scraped; err == nil {
		err = serr
	}
	if err != nil {
		return 0, err
	}
	slices.Sort(ratios)
	return (ratios[eyesPairs/2-1] + ratios[eyesPairs/2]) / 2, nil
}

// eyesRuns makes the pairs: each of the servers has its turn first.
func (b *bench) eyesRuns(ctx context.Context, way string, servers [2]*server, systems [2]*ourSystem) (ratios []float64, err error) {
	for round := range eyesPairs + 1 {
		var cost [2]float64
		for i := range systems {
			i := (i + round) % 2
			before, err := servers[i].cpu()
			if err != nil {
				return nil, err
			}
			o, err := run(ctx, systems[i], load{workers: 64, keys: 10_000, size: 256, d: b.d, seed: uint64(round)})
			if err != nil {
				return nil, err
			}
			after, err := servers[i].cpu()
			if err != nil {
				return nil, err
			}
			cost[i] = float64((after - before).Microseconds()) / float64(o.Ops)
		}
		if round > 0 { // the first is to warm up
			ratios = append(ratios, cost[0]/cost[1])
			fmt.Fprintf(os.Stderr, "%s: a put costs %.2f us with metrics and traces, %.2f us without: %.3fx\n", way, cost[0], cost[1], cost[0]/cost[1])
		}
	}
	return ratios, nil
}

// scrapeEvery reads metrics until ctx ends.
func scrapeEvery(ctx context.Context, url string) error {
	tick := time.NewTicker(eyesScrape)
	defer tick.Stop()
	for n := 0; ; {
		select {
		case <-ctx.Done():
			if n == 0 {
				return errors.New("metrics were never read")
			}
			return nil
		case <-tick.C:
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if ctx.Err() != nil {
			continue
		}
		if err != nil {
			return err
		}
		size, err := io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if ctx.Err() == nil && (err != nil || resp.StatusCode != http.StatusOK || size == 0) {
			return fmt.Errorf("metrics: %s, %w", resp.Status, err)
		}
		n++
	}
}

// sink is a collector that takes whatever comes: what is in it is tests/traces' to look at.
type sink struct {
	*grpc.Server
	bytes atomic.Int64
}

// newSink starts one.
func newSink() (s *sink, at string, err error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	s = &sink{}
	s.Server = grpc.NewServer(grpc.ForceServerCodecV2(anyCodec{}), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		var m anyMessage
		if err := stream.RecvMsg(&m); err != nil {
			return err
		}
		s.bytes.Add(int64(m))
		return stream.SendMsg(&m)
	}))
	go func() { _ = s.Serve(lis) }()
	return s, lis.Addr().String(), nil
}

// anyMessage is how long a message was. It is answered with an empty one, which says that all was taken.
type anyMessage int

type anyCodec struct{}

var _ encoding.CodecV2 = anyCodec{}

func (anyCodec) Marshal(any) (mem.BufferSlice, error) { return nil, nil }
func (anyCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*anyMessage) = anyMessage(data.Len())
	return nil
}
func (anyCodec) Name() string { return "proto" }
