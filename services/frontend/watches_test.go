package frontend

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

func beginWatch(id uint64, credit int64, req *kvv1.WatchRequest) *kvv1.WatchesRequest {
	return &kvv1.WatchesRequest{Ask: &kvv1.WatchesRequest_Begin_{Begin: &kvv1.WatchesRequest_Begin{WatchId: id, Credit: credit, Watch: req}}}
}

func keyWatch(key string) *kvv1.WatchRequest {
	return &kvv1.WatchRequest{Target: &kvv1.WatchRequest_Key{Key: []byte(key)}, Mode: kvv1.WatchMode_WATCH_MODE_ALL}
}

// manyWatched is a Watches stream as a test reads it.
type manyWatched struct {
	t      *testing.T
	stream grpc.BidiStreamingClient[kvv1.WatchesRequest, kvv1.WatchesResponse]
	got    map[uint64][]*kvv1.WatchEvent
	began  map[uint64]bool
	failed map[uint64]*kverr.Error
	most   int // watches of one response with events
	tokens map[uint64][]byte
}

func (r *rig) watches(ctx context.Context, t *testing.T) *manyWatched {
	t.Helper()
	stream, err := r.KV.Watches(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &manyWatched{t, stream, map[uint64][]*kvv1.WatchEvent{}, map[uint64]bool{}, map[uint64]*kverr.Error{}, 0, map[uint64][]byte{}}
}

func (w *manyWatched) send(m *kvv1.WatchesRequest) {
	w.t.Helper()
	if err := w.stream.Send(m); err != nil {
		w.t.Fatal(err)
	}
}

// until reads until done.
func (w *manyWatched) until(done func() bool) {
	w.t.Helper()
	for !done() {
		m, err := w.stream.Recv()
		if err != nil {
			w.t.Fatalf("%v; %d watches have begun, %d have failed, %d were told of something", err, len(w.began), len(w.failed), len(w.got))
		}
		if len(m.Told.GetEvents()) > 0 {
			w.most = max(w.most, len(m.WatchIds))
		}
		for _, id := range m.WatchIds {
			if m.Error != nil {
				w.failed[id] = kverr.FromItem(m.Error)
				continue
			}
			if m.Told.Control == kvv1.WatchControl_WATCH_CONTROL_STARTED {
				w.began[id] = true
			}
			w.got[id] = append(w.got[id], m.Told.Events...)
			if m.Told.Token != nil {
				w.tokens[id] = m.Told.Token
			}
		}
	}
}

// TestWatches: many watches on a stream are each told what is theirs, what they are told alike travels once, and each ends by itself.
func TestWatches(t *testing.T) {
	r, ctx := newRig(t, Config{WatchProgress: 200 * time.Millisecond}, nil), testContext(t)
	w := r.watches(ctx, t)
	const alike, others = 200, 50
	for id := range uint64(alike) {
		w.send(beginWatch(id+1, 1<<20, keyWatch("hot")))
	}
	for id := range uint64(others) {
		w.send(beginWatch(alike+id+1, 1<<20, keyWatch(fmt.Sprint("k", id))))
	}
	w.until(func() bool { return len(w.began) == alike+others })
	for i := range 20 {
		r.mustPut(ctx, t, "hot", fmt.Sprint(i), 0)
	}
	r.mustPut(ctx, t, "k7", "mine", 0)
	w.until(func() bool {
		for id := range uint64(alike) {
			if len(w.got[id+1]) < 20 {
				return false
			}
		}
		return len(w.got[alike+8]) == 1
	})
	for id, events := range w.got {
		switch {
		case id <= alike:
			for i, e := range events {
				if string(e.Value) != fmt.Sprint(i) {
					t.Fatalf("watch %d: event %d is %v", id, i, e)
				}
			}
		case id != alike+8 && len(events) > 0:
			t.Fatalf("watch %d is told %s", id, describe(events))
		}
	}
	if !remote && w.most < alike/2 { // over the data plane each watch has streams of its own
		t.Errorf("what %d watches are told alike came to %d of them at once", alike, w.most)
	}
	// PROGRESS, with where each stands.
	clear(w.tokens)
	w.until(func() bool { return len(w.tokens) == alike+others })

	w.send(&kvv1.WatchesRequest{Ask: &kvv1.WatchesRequest_EndId{EndId: 1}})
	w.send(&kvv1.WatchesRequest{Ask: &kvv1.WatchesRequest_EndId{EndId: 1}}) // again: passed over
	w.send(beginWatch(1000, 1, keyWatch("fence")))
	w.until(func() bool { return w.began[1000] }) // the end came before
	r.mustPut(ctx, t, "hot", "20", 0)
	w.until(func() bool { return len(w.got[2]) == 21 })
	r.mustPut(ctx, t, "hot", "21", 0)
	w.until(func() bool { return len(w.got[2]) == 22 })
	if len(w.got[1]) != 20 {
		t.Errorf("a watch that was ended is told %s", describe(w.got[1][20:]))
	}
	// Goes on from a token on another stream.
	again := r.watches(ctx, t)
	req := keyWatch("hot")
	req.From = &kvv1.WatchRequest_Token{Token: w.tokens[3]}
	again.send(beginWatch(1, 1<<20, req))
	r.mustPut(ctx, t, "hot", "22", 0)
	again.until(func() bool { return len(again.got[1]) > 0 && string(again.got[1][len(again.got[1])-1].Value) == "22" })
	if err := again.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := again.stream.Recv(); err != nil {
			if err != io.EOF { //nolint:errorlint // what gRPC returns at an orderly end
				t.Errorf("a stream whose client has said its last: %v", err)
			}
			break
		}
	}
}

// TestWatchesCredit: a watch without credit is told nothing more, holds up no other, and goes on where it was; in mode LATEST with the latest of each key.
func TestWatchesCredit(t *testing.T) {
	r, ctx := newRig(t, Config{WatchProgress: 20 * time.Millisecond}, nil), testContext(t)
	w := r.watches(ctx, t)
	latest := keyWatch("k")
	latest.Mode = kvv1.WatchMode_WATCH_MODE_LATEST
	w.send(beginWatch(1, 1, keyWatch("k")))
	w.send(beginWatch(2, 1, latest))
	w.send(beginWatch(3, 1<<20, keyWatch("k")))
	w.until(func() bool { return len(w.began) == 3 })
	const n = 50
	for i := range n {
		r.mustPut(ctx, t, "k", fmt.Sprint(i), 0)
		w.until(func() bool { return len(w.got[3]) == i+1 && len(w.got[1]) > 0 && len(w.got[2]) > 0 }) // the batch that they may be told is of one event
	}
	r.mustPut(ctx, t, "k", "last", 0)
	w.until(func() bool { return len(w.got[3]) == n+1 })
	slow := func(id uint64) int { return len(w.got[id]) }
	if slow(1) != 1 || slow(2) != 1 {
		t.Fatalf("without credit %d and %d events were told", slow(1), slow(2))
	}
	credit := func(id uint64, bytes int64) {
		w.send(&kvv1.WatchesRequest{Ask: &kvv1.WatchesRequest_Credit_{Credit: &kvv1.WatchesRequest_Credit{WatchId: id, Bytes: bytes}}})
	}
	credit(1, 1<<62) // more than a watch may have is void
	credit(2, 1<<20)
	credit(99, 1) // not there
	w.until(func() bool {
		l := w.got[2]
		return slow(1) == n+1 && string(l[len(l)-1].Value) == "last"
	})
	for i, e := range w.got[1][:n] {
		if string(e.Value) != fmt.Sprint(i) {
			t.Fatalf("event %d is %v", i, e)
		}
	}
	if !remote && slow(2) != 2 {
		t.Errorf("in mode LATEST %d of %d changes were told", slow(2), n+1)
	}
}

// TestWatchesRefusals: what is wrong with a watch ends that watch; what is wrong with a message, or with the server, ends the stream.
func TestWatchesRefusals(t *testing.T) {
	r, ctx := newRig(t, Config{MaxWatches: 3}, nil), testContext(t)
	w := r.watches(ctx, t)
	w.send(beginWatch(1, 1, &kvv1.WatchRequest{Namespace: "nope"}))
	w.send(beginWatch(2, 1, keyWatch("")))
	for id := uint64(3); id < 7; id++ {
		w.send(beginWatch(id, 1, keyWatch("k")))
	}
	w.until(func() bool { return len(w.failed) == 3 && len(w.began) == 3 })
	for id, want := range map[uint64]kverr.Kind{1: kverr.NotFound, 2: kverr.InvalidArgument, 6: kverr.Exhausted} {
		if w.failed[id] == nil || w.failed[id].Kind != want {
			t.Errorf("watch %d: %v, want %v", id, w.failed[id], want)
		}
	}
	w.send(&kvv1.WatchesRequest{Ask: &kvv1.WatchesRequest_EndId{EndId: 3}})
	w.send(beginWatch(7, 1, keyWatch("k"))) // there is room again
	w.until(func() bool { return w.began[7] })
	if err := w.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		says string
		send []*kvv1.WatchesRequest
	}{
		"nothing asked":  {"ask", []*kvv1.WatchesRequest{{}}},
		"no watch":       {"begin.watch", []*kvv1.WatchesRequest{beginWatch(1, 1, nil)}},
		"name used":      {"begin.watch_id", []*kvv1.WatchesRequest{beginWatch(1, 1, keyWatch("k")), beginWatch(1, 1, keyWatch("k"))}},
		"name 0":         {"begin.watch_id", []*kvv1.WatchesRequest{beginWatch(0, 1, keyWatch("k"))}},
		"credit below 0": {"begin.credit", []*kvv1.WatchesRequest{beginWatch(1, -1, keyWatch("k"))}},
		"no credit":      {"credit.bytes", []*kvv1.WatchesRequest{{Ask: &kvv1.WatchesRequest_Credit_{Credit: &kvv1.WatchesRequest_Credit{WatchId: 1}}}}},
	} {
		x := r.watches(ctx, t)
		for _, m := range c.send {
			x.send(m)
		}
		for {
			if _, err := x.stream.Recv(); err != nil {
				if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%s: %v", name, err)
				}
				break
			}
		}
	}
	last := r.watches(ctx, t)
	last.send(beginWatch(1, 1, keyWatch("k")))
	last.until(func() bool { return last.began[1] || last.failed[1] != nil })
	r.Server.Stop()
	for {
		if _, err := last.stream.Recv(); err != nil {
			if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "stopping") {
				t.Errorf("the server stops: %v", err)
			}
			break
		}
	}
}
