package frontend

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// TestStoreTurns: so many store at once, others in the order of coming, and nobody waits for ever.
func TestStoreTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{storing: make(chan struct{}, 2)}
		began := time.Now()
		take := func(ctx context.Context) func() {
			leave, err := s.storeTurn(ctx)
			if err != nil {
				t.Fatal(err)
			}
			return leave
		}
		first, second := take(t.Context()), take(t.Context())
		var order []int
		for i := range 3 {
			go func() {
				leave := take(t.Context())
				order = append(order, i) // one after the other
				leave()
			}()
			synctest.Wait()
		}
		if len(order) > 0 || time.Since(began) > 0 {
			t.Errorf("%v stored beside two, after %v", order, time.Since(began))
		}
		first()
		synctest.Wait()
		if !slices.Equal(order, []int{0, 1, 2}) || time.Since(began) > 0 {
			t.Errorf("the order is %v, after %v", order, time.Since(began))
		}
		third := take(t.Context())
		ctx, cancel := context.WithTimeout(t.Context(), storePatience/2)
		defer cancel()
		if leave, err := s.storeTurn(ctx); err == nil || err.Kind != kverr.DeadlineExceeded || leave != nil {
			t.Errorf("a turn after its caller's time: %v", err)
		}
		began = time.Now()
		without := take(t.Context())
		if waited := time.Since(began); waited != storePatience {
			t.Errorf("went on without a turn after %v, want %v", waited, storePatience)
		}
		for _, leave := range []func(){without, second, third} {
			leave()
		}
		if len(s.storing) > 0 {
			t.Errorf("%d turns are still taken", len(s.storing))
		}
	})
}

// TestPromptWriteTakesATurn: nothing is stored before.
func TestPromptWriteTakesATurn(t *testing.T) {
	r := newRig(t, Config{StoresAtOnce: 1}, nil)
	p := newPrompts(t, r)
	leave, gone := r.Server.storeTurn(t.Context())
	if gone != nil {
		t.Fatal(gone)
	}
	ctx, cancel := context.WithTimeout(t.Context(), storePatience/4)
	defer cancel()
	stream, err := p.Write(ctx)
	if err == nil {
		_ = stream.Send(&kvv1.WriteRequest{
			Head: &kvv1.WriteRequest_Head{Namespace: p.ns, Scope: testModel}, Header: &kvv1.WriteRequest_Header{Block: refs("a")[0], Size: 1}, Chunk: []byte("x"),
		})
		_, err = stream.CloseAndRecv()
	}
	wantKind(t, "a Write whose turn does not come", err, kverr.DeadlineExceeded)
	if got := p.read(testModel, kvv1.OnMiss_ON_MISS_STOP, "a"); got[0].ok {
		t.Error("it stored its block")
	}
	leave()
	if got := p.writeIDs(testModel, 5000, "b"); got[0] != "s" {
		t.Errorf("written when its turn came: %v", got)
	}
}
