package frontend

import (
	"bytes"
	"context"
	"sync"
	"testing"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// spoiler stands between a frontend and its shards and spoils what is read of values.
type spoiler struct {
	Shards
	mu    sync.Mutex
	spoil func(ref shard.Ref, off int64, p []byte) error // guarded by mu
}

func (s *spoiler) ReadValue(ctx context.Context, id string, ref shard.Ref, off int64, p []byte) error {
	if err := s.Shards.ReadValue(ctx, id, ref, off, p); err != nil {
		return err
	}
	s.mu.Lock()
	spoil := s.spoil
	s.mu.Unlock()
	if spoil != nil {
		return spoil(ref, off, p)
	}
	return nil
}

func (s *spoiler) set(f func(ref shard.Ref, off int64, p []byte) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spoil = f
}

// everyRead reads a key in every way that returns its value.
func everyRead(t *testing.T, r *rig, k []byte) map[string]error {
	ctx := testContext(t)
	out := map[string]error{}
	_, out["Get"] = r.KV.Get(ctx, &kvv1.GetRequest{Get: &kvv1.GetOp{Key: k}})
	_, _, out["GetStream"] = getStream(ctx, r, k)
	batch, err := r.KV.BatchGet(ctx, &kvv1.BatchGetRequest{Gets: []*kvv1.GetOp{{Key: k}}})
	if err != nil {
		t.Fatal(err)
	}
	out["BatchGet"] = errOrNil(kverr.FromItem(batch.Results[0].GetError()))
	results := exchange(t, r, &kvv1.PipelineRequest{Ops: []*kvv1.PipelineRequest_Op{{Id: 1, Op: &kvv1.PipelineRequest_Op_Get{Get: &kvv1.GetOp{Key: k}}}}})
	out["Pipeline"] = errOrNil(kverr.FromItem(results[1].GetError()))
	return out
}

func errOrNil(e *kverr.Error) error {
	if e == nil {
		return nil
	}
	return e
}

func TestDamagedValueIsDataLoss(t *testing.T) {
	s := &spoiler{}
	r := newRig(t, Config{}, func(under Shards) Shards { s.Shards = under; return s })
	r.put(t, "k", string(bytes.Repeat([]byte("v"), 5000)))
	for name, spoil := range map[string]func(shard.Ref, int64, []byte) error{
		"flipped bit": func(_ shard.Ref, _ int64, p []byte) error { p[len(p)/2] ^= 1; return nil },
		"gone":        func(shard.Ref, int64, []byte) error { return kverr.New(kverr.NotFound, "", "gone") },
		"unreadable":  func(shard.Ref, int64, []byte) error { return kverr.New(kverr.DataLoss, "", "unreadable") },
	} {
		s.set(spoil)
		for way, err := range everyRead(t, r, []byte("k")) {
			if err == nil || kverr.FromGRPC(err).Kind != kverr.DataLoss {
				t.Errorf("%s, %s: %v, want DATA_LOSS", name, way, err)
			}
		}
		s.set(nil)
		for way, err := range everyRead(t, r, []byte("k")) {
			if err != nil {
				t.Errorf("%s, then mended, %s: %v", name, way, err)
			}
		}
	}
}

// TestNoWrongByteEndsWell turns a byte of a long value after it was verified: the stream must not end with OK.
func TestNoWrongByteEndsWell(t *testing.T) {
	s := &spoiler{}
	r := newRig(t, Config{}, func(under Shards) Shards { s.Shards = under; return s })
	ctx := testContext(t)
	value := bytes.Repeat([]byte("v"), 3<<20)
	if out := putStream(t, ctx, r, &kvv1.PutStreamRequest_Head{Put: &kvv1.PutOp{Key: []byte("k")}, Size: int64(len(value))}, value); out.err != nil {
		t.Fatal(out.err)
	}
	seen := map[int64]bool{}
	s.set(func(_ shard.Ref, off int64, p []byte) error {
		if seen[off] && off > 0 {
			p[0] ^= 1
		}
		seen[off] = true
		return nil
	})
	_, _, err := getStream(ctx, r, []byte("k"))
	wantKind(t, "turned meanwhile", err, kverr.DataLoss)

	clear(seen)
	s.set(func(_ shard.Ref, off int64, _ []byte) error {
		if !seen[off] {
			seen[off] = true
			return nil
		}
		if off == 0 { // bytes are under way already, so the read cannot begin anew
			r.put(t, "k", "new")
			return nil
		}
		return kverr.New(kverr.NotFound, "", "gone")
	})
	_, _, err = getStream(ctx, r, []byte("k"))
	wantKind(t, "written meanwhile", err, kverr.Unavailable)
}

// TestRewrittenMeanwhile lets the object of a value vanish because the key is written while it is read: the reader gets the
// new value.
func TestRewrittenMeanwhile(t *testing.T) {
	s := &spoiler{}
	r := newRig(t, Config{}, func(under Shards) Shards { s.Shards = under; return s })
	for _, way := range []string{"Get", "GetStream", "BatchGet", "Pipeline"} {
		r.put(t, "k", string(bytes.Repeat([]byte("1"), 5000)))
		old := shard.Ref{}
		s.set(func(ref shard.Ref, _ int64, _ []byte) error {
			if old == (shard.Ref{}) {
				old = ref
				r.put(t, "k", string(bytes.Repeat([]byte("2"), 6000)))
			}
			if ref == old {
				return kverr.New(kverr.NotFound, "", "gone")
			}
			return nil
		})
		var got []byte
		var err error
		switch way {
		case "Get":
			got = r.get(t, "k").Value
		case "GetStream":
			_, got, err = getStream(testContext(t), r, []byte("k"))
		case "BatchGet":
			var resp *kvv1.BatchGetResponse
			resp, err = r.KV.BatchGet(testContext(t), &kvv1.BatchGetRequest{Gets: []*kvv1.GetOp{{Key: []byte("k")}}})
			got = resp.GetResults()[0].GetEntry().GetValue()
		case "Pipeline":
			results := exchange(t, r, &kvv1.PipelineRequest{Ops: []*kvv1.PipelineRequest_Op{{Id: 1, Op: &kvv1.PipelineRequest_Op_Get{Get: &kvv1.GetOp{Key: []byte("k")}}}}})
			got = results[1].GetEntry().GetValue()
		}
		s.set(nil)
		if err != nil || !bytes.Equal(got, bytes.Repeat([]byte("2"), 6000)) {
			t.Errorf("%s: %v, %d bytes", way, err, len(got))
		}
	}
}
