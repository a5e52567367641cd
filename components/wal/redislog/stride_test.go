package redislog

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/components/wal/driver"
	"kvstore/tests/badnet"
	"kvstore/tests/testenv"
)

// slowLine carries bytes a second behind a delay.
type slowLine struct {
	delay time.Duration
	rate  float64
}

func (l slowLine) takes(bytes int) time.Duration {
	return l.delay + time.Duration(float64(bytes)/l.rate*float64(time.Second))
}

// TestStride: checkpoints on lines of all kinds.
func TestStride(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, tt := range []struct {
		name     string
		line     slowLine
		appends  int // bytes that appends have on their way, in front of each part
		fast     bool
		low, top int // bounds of a part, in the end
	}{
		{"a fast line", slowLine{time.Millisecond, 100 << 20}, 0, true, chunkBytes, chunkBytes},
		{"far away", slowLine{80 * time.Millisecond, 100 << 20}, 0, true, chunkBytes, chunkBytes},
		{"a megabyte a second", slowLine{10 * time.Millisecond, 1 << 20}, 0, false, leastPart, 64 << 10},
		{"the same, far away", slowLine{80 * time.Millisecond, 1 << 20}, 0, false, leastPart, 64 << 10},
		{"full of appends", slowLine{10 * time.Millisecond, 1 << 20}, 600 << 10, false, 200 << 10, 200 << 10},
		{"as good as dead", slowLine{time.Second, 10 << 10}, 0, false, leastPart, 2 * leastPart},
	} {
		s, size, alone := stride{}, 0, false
		for i := range 40 {
			size, alone = s.next(tt.appends, now)
			if i == 0 && (!alone || size > max(leastPart, tt.appends/3)) {
				t.Errorf("%s: the first part has %d bytes, alone=%t", tt.name, size, alone)
			}
			d := tt.line.takes(size + tt.appends)
			s.took(d)
			now = now.Add(d)
		}
		if alone == tt.fast || size < tt.low || size > tt.top {
			t.Errorf("%s: a part has %d bytes, alone=%t; want %d to %d, alone=%t", tt.name, size, alone, tt.low, tt.top, !tt.fast)
		}
	}

	s := stride{}
	for range 10 {
		s.next(0, now)
		s.took(time.Millisecond)
	}
	if _, alone := s.next(0, now); alone {
		t.Error("a line of a millisecond is not fast")
	}
	s.took(2 * time.Second)
	if size, alone := s.next(0, now); !alone || size != chunkBytes/2 {
		t.Errorf("after a part that took long: %d bytes, alone=%t", size, alone)
	}
	for range 10 {
		s.took(time.Millisecond)
	}
	if size, alone := s.next(0, now.Add(time.Minute)); !alone || size != leastPart {
		t.Errorf("a minute later: %d bytes, alone=%t", size, alone)
	}
}

// TestCheckpointsLeaveRoom: while four shards write checkpoints over a line that carries a megabyte a second, appends do not wait for them.
func TestCheckpointsLeaveRoom(t *testing.T) {
	server := testenv.NewRedis(t)
	slow := badnet.NewSlow(t, server.Addr, badnet.SlowConfig{Delay: 5 * time.Millisecond, Rate: 1 << 20})
	e := openOn(t, Config{URL: "redis://" + slow.Addr(), Settle: testenv.Patience})
	o := takeOver(t, e, "ab-0", 1)
	object := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB
	var writing sync.WaitGroup
	var left atomic.Int32
	left.Store(4)
	for i := range 4 {
		shard := fmt.Sprint("ab-", i)
		if i > 0 {
			takeOver(t, e, shard, 1)
		}
		writing.Go(func() {
			defer left.Add(-1)
			if err := e.PutObject(t.Context(), shard, driver.CheckpointPrefix+"1", int64(len(object)), bytes.NewReader(object)); err != nil {
				t.Errorf("a checkpoint of %s: %v", shard, err)
			}
		})
	}
	var took []time.Duration
	for left.Load() > 0 {
		began := time.Now()
		o.must(fmt.Sprint("record ", len(took)))
		took = append(took, time.Since(began))
	}
	writing.Wait()
	slices.Sort(took)
	p50, p95 := took[len(took)/2], took[len(took)*95/100]
	t.Logf("%d appends beside checkpoints of 4 MiB: p50 %v, p95 %v, longest %v", len(took), p50, p95, took[len(took)-1])
	if most := testenv.AtMost(250 * time.Millisecond); p95 > most { // a second of chunks and more was in front of each
		t.Errorf("appends took %v (p95), must take at most %v", p95, most)
	}
	for i := range 4 {
		got := make([]byte, len(object))
		if err := e.GetObject(t.Context(), fmt.Sprint("ab-", i), driver.CheckpointPrefix+"1", 0, got); err != nil || !bytes.Equal(got, object) {
			t.Errorf("the checkpoint of shard %d comes back another: %v", i, err)
		}
	}
}

// TestLatePart: a part that comes when its object was given up begins nothing; parts of a chunk may come in any order, and again.
func TestLatePart(t *testing.T) {
	e := openOn(t, Config{URL: "redis://" + testenv.NewRedis(t).Addr})
	takeOver(t, e, "ab-0", 1)
	k := e.keys("ab-0")
	w := writer{engine: e, shard: "ab-0", name: driver.CheckpointPrefix + "1", keys: &k, id: newID()}
	data := bytes.Repeat([]byte("part"), 4<<10)
	if err := w.part(t.Context(), 0, len(data), data); err == nil {
		t.Error("a late part began an object")
	}
	for _, off := range []int{0, 2 * len(data), len(data), 0, 2 * len(data)} {
		if err := w.part(t.Context(), 0, off, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.publish(t.Context(), int64(3*len(data))); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 3*len(data))
	if err := e.GetObject(t.Context(), "ab-0", w.name, 0, got); err != nil || !bytes.Equal(got, bytes.Repeat(data, 3)) {
		t.Errorf("it comes back another: %v", err)
	}
	if err := w.part(t.Context(), 0, 0, data); err == nil {
		t.Error("a part was taken after the object was there")
	}
}
