package wal

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"kvstore/components/kverr"
	"kvstore/components/wal/driver"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

var testEpoch = driver.Epoch{Counter: 7, Writer: [16]byte{1, 2, 3, 255}}

// generated is the record as the generated code has it.
func generated(shard string, e driver.Epoch, previous, seq uint64, timeMS int64, fence bool, body []byte) *dataplanev1.Record {
	return &dataplanev1.Record{
		Header: &dataplanev1.RecordHeader{Format: 1, Shard: shard, Epoch: e.Counter, Writer: e.Writer[:],
			PreviousEpoch: previous, Seq: seq, ShardTimeMs: timeMS, Fence: fence},
		Body: body,
	}
}

func TestRecordsAreThoseOfTheGeneratedCode(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	edges := []uint64{0, 1, 127, 128, 1 << 14, 1<<14 - 1, 1<<63 - 1, 1<<64 - 1}
	for range 2000 {
		shard := strings.Repeat("s", 1+rng.IntN(64))
		e := driver.Epoch{Counter: edges[rng.IntN(len(edges))]}
		e.Writer[rng.IntN(16)] = byte(rng.Uint32())
		previous, seq := edges[rng.IntN(len(edges))], edges[rng.IntN(len(edges))]
		timeMS := int64(edges[rng.IntN(len(edges))])
		body := make([]byte, rng.IntN(300))
		fence := rng.IntN(4) == 0
		var got []byte
		if fence {
			body, timeMS = nil, 0
			got = encodeFence(shard, e, previous, seq)
		} else {
			got = encodeRecord(recordPrefix(shard, e, previous), seq, timeMS, body)
			if cap(got) != len(got) {
				t.Fatalf("capacity %d for %d bytes", cap(got), len(got))
			}
		}
		want, err := generated(shard, e, previous, seq, timeMS, fence, body).MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("record is\n%x, generated code makes\n%x", got, want)
		}
		r, err := decodeRecord(shard, got)
		if err != nil {
			t.Fatal(err)
		}
		if r.epoch != e || r.previousEpoch != previous || r.seq != seq || r.timeMS != timeMS || r.fence != fence || !bytes.Equal(r.body, body) {
			t.Fatalf("decoded %+v", r)
		}
	}
}

func TestRecordAllocations(t *testing.T) {
	prefix := recordPrefix("a1b2c3-0", testEpoch, 7)
	body := make([]byte, 1000)
	var data []byte
	if n := testing.AllocsPerRun(100, func() { data = encodeRecord(prefix, 1<<40, 1<<41, body) }); n != 1 {
		t.Errorf("encoding takes %v allocations, want 1", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := decodeRecord("a1b2c3-0", data); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("decoding takes %v allocations, want 0", n)
	}
}

func TestRecordsThatAreRefused(t *testing.T) {
	damage := func(edit func(r *dataplanev1.Record)) []byte {
		r := generated("s", testEpoch, 6, 9, 5, false, []byte("body"))
		edit(r)
		data, err := r.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	good := damage(func(*dataplanev1.Record) {})
	for name, c := range map[string]struct {
		data []byte
		is   error
		says string
	}{
		"newer format":    {damage(func(r *dataplanev1.Record) { r.Header.Format = 2 }), ErrUnsupported, "record format 2"},
		"no format":       {damage(func(r *dataplanev1.Record) { r.Header.Format = 0 }), ErrUnsupported, "record format 0"},
		"codec":           {damage(func(r *dataplanev1.Record) { r.Header.Codec = 3 }), ErrUnsupported, "codec 3"},
		"key":             {damage(func(r *dataplanev1.Record) { r.Header.KeyId = 4 }), ErrUnsupported, "key 4"},
		"other shard":     {damage(func(r *dataplanev1.Record) { r.Header.Shard = "t" }), driver.ErrCorrupt, `"t"`},
		"writer":          {damage(func(r *dataplanev1.Record) { r.Header.Writer = []byte{1} }), driver.ErrCorrupt, "writer"},
		"fence with body": {damage(func(r *dataplanev1.Record) { r.Header.Fence = true }), driver.ErrCorrupt, "fence"},
		"no header":       {damage(func(r *dataplanev1.Record) { r.Header = nil }), driver.ErrCorrupt, "0 headers"},
		"two headers":     {append(bytes.Clone(good), good...), driver.ErrCorrupt, "2 headers"},
		"cut":             {good[:len(good)-1], driver.ErrCorrupt, "not a record"},
		"garbage":         {[]byte("garbage"), driver.ErrCorrupt, "not a record"},
	} {
		_, err := decodeRecord("s", c.data)
		if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want %v and %q", name, err, c.is, c.says)
		}
		if errors.Is(err, driver.ErrCorrupt) && kverr.KindOf(err) != kverr.DataLoss {
			t.Errorf("%s: kind is %v", name, kverr.KindOf(err))
		}
	}
}

// FuzzRecord: whatever is stored, decoding does not panic, and what it accepts is what the generated code reads.
func FuzzRecord(f *testing.F) {
	f.Add(encodeRecord(recordPrefix("s", testEpoch, 7), 12, 1_700_000_000_000, []byte("body")))
	f.Add(encodeFence("s", testEpoch, 6, 11))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRecord("s", data)
		if err != nil {
			return
		}
		var g dataplanev1.Record
		if g.UnmarshalVT(data) != nil {
			return // a known field of another type: skipped here, refused there
		}
		h := g.Header
		if h.Epoch != r.epoch.Counter || !bytes.Equal(h.Writer, r.epoch.Writer[:]) || h.PreviousEpoch != r.previousEpoch ||
			h.Seq != r.seq || h.ShardTimeMs != r.timeMS || h.Fence != r.fence || !bytes.Equal(g.Body, r.body) || h.Format != recordFormat || h.Shard != "s" {
			t.Fatalf("decoded %+v, the generated code %v", r, &g)
		}
	})
}

func BenchmarkEncodeRecord(b *testing.B) {
	prefix := recordPrefix("a1b2c3-0", testEpoch, 7)
	body := make([]byte, 16<<10)
	b.ReportAllocs()
	for b.Loop() {
		encodeRecord(prefix, 1<<40, 1<<41, body)
	}
}
