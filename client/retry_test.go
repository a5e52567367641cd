package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kvstore/client"
	"kvstore/client/clienttest"
	"kvstore/components/kverr"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

var errBroken = status.Error(codes.Unavailable, "transport is closing") // as gRPC tells of a lost connection: no ErrorInfo

// firstN returns a fault that strikes the first n calls.
func firstN(n int64, err error) func(string) error {
	var calls atomic.Int64
	return func(string) error {
		if calls.Add(1) <= n {
			return err
		}
		return nil
	}
}

func TestLostRepliesApplyOnce(t *testing.T) {
	bothWays(t, func(t *testing.T, srv *clienttest.Server, c *client.Client) {
		srv.Faults.After(firstN(3, errBroken))
		put := must[client.PutResult](t)(c.Put(t.Context(), "k", []byte("v"), &client.PutOptions{If: client.IfAbsent()}))
		if !put.Created || srv.Applied() != 1 {
			t.Errorf("put = %+v, applied %d times", put, srv.Applied())
		}
		srv.Faults.After(firstN(1, errBroken))
		del := must[client.DeleteResult](t)(c.Delete(t.Context(), "k", nil))
		if !del.Deleted || srv.Applied() != 2 {
			t.Errorf("delete = %+v, applied %d changes", del, srv.Applied())
		}
		// A failed condition is remembered too: its repetition must not be judged anew.
		srv.Faults.After(firstN(1, errBroken))
		_, err := c.Put(t.Context(), "k", nil, &client.PutOptions{If: client.IfVersion(77)})
		wantKind(t, err, kverr.VersionMismatch)
	})
}

func TestLostRepliesOfOtherCalls(t *testing.T) {
	srv := clienttest.Start(t)
	c := srv.Dial(t, client.Config{BackoffMin: time.Millisecond})
	ctx := t.Context()
	srv.Faults.After(firstN(1, errBroken))
	if res := must[client.TxnResult](t)(c.Txn().Put("t", nil, &client.PutOptions{If: client.IfAbsent()}).Commit(ctx)); !res.Committed {
		t.Errorf("txn = %+v", res)
	}
	srv.Faults.After(firstN(1, errBroken))
	outs := must[[]client.PutOutcome](t)(c.BatchPut(ctx, []client.PutItem{
		{Key: "b1", Options: &client.PutOptions{If: client.IfAbsent()}}, {Key: "b2", Options: &client.PutOptions{If: client.IfAbsent()}},
	}))
	if outs[0].Err != nil || outs[1].Err != nil {
		t.Errorf("batch = %+v", outs)
	}
	srv.Faults.After(firstN(1, errBroken))
	if put := must[client.PutResult](t)(c.PutStream(ctx, "s", strings.NewReader("abc"), 3, nil)); !put.Created {
		t.Errorf("stream = %+v", put)
	}
	if n := srv.Applied(); n != 4 {
		t.Errorf("%d changes applied, want 4", n)
	}
	// What cannot be rewound is not repeated, and says that nobody knows.
	srv.Faults.After(firstN(1, errBroken))
	_, err := c.PutStream(ctx, "s2", io.MultiReader(strings.NewReader("abc")), 3, nil)
	wantKind(t, err, kverr.OutcomeUnknown)
}

func TestRefusalsAreRepeatedByKind(t *testing.T) {
	for _, tc := range []struct {
		err    *kverr.Error
		repeat bool
	}{
		{&kverr.Error{Kind: kverr.Unavailable, Message: "shard moves"}, true},
		{kverr.Busy(kverr.Unavailable, 2*time.Millisecond, "shard moves"), true},
		{kverr.Busy(kverr.Exhausted, 2*time.Millisecond, "too fast"), true},
		{kverr.New(kverr.NoSpace, "", "full"), false},
		{kverr.New(kverr.DataLoss, "", "damaged"), false},
		{kverr.New(kverr.InvalidArgument, "", "bad"), false},
		{kverr.New(kverr.PermissionDenied, "", "no"), false},
		{kverr.New(kverr.Unknown, "", "bug"), false},
	} {
		t.Run(tc.err.Kind.String(), func(t *testing.T) {
			srv := clienttest.Start(t)
			c := srv.Dial(t, client.Config{Unary: true, BackoffMin: time.Millisecond})
			srv.Faults.Before(firstN(2, tc.err))
			_, err := c.Put(t.Context(), "k", nil, nil)
			if tc.repeat {
				if err != nil || srv.Applied() != 1 {
					t.Errorf("error %v, applied %d", err, srv.Applied())
				}
				return
			}
			wantKind(t, err, tc.err.Kind)
			if srv.Applied() != 0 {
				t.Error("applied")
			}
		})
	}
}

// TestOperationsTellTheirDeadline: an operation says for how long its caller waits, anew at each try, and of the calls before it nothing is left; what came too late
// for the server is too late for the caller.
func TestOperationsTellTheirDeadline(t *testing.T) {
	srv := clienttest.Start(t)
	c := srv.Dial(t, client.Config{BackoffMin: time.Millisecond})
	told := make(chan int64, 10)
	srv.Faults.Ops(func(op *kvstorev1.PipelineRequest_Op) { told <- op.TimeoutMs })
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	var refused atomic.Bool
	srv.Faults.Replies(func(r *kvstorev1.PipelineResponse) []*kvstorev1.PipelineResponse {
		if refused.CompareAndSwap(false, true) {
			r.Results[0].Outcome = &kvstorev1.PipelineResponse_Result_Error{Error: kverr.Item(kverr.Busy(kverr.Unavailable, 5*time.Millisecond, "not yet"))}
		}
		return []*kvstorev1.PipelineResponse{r}
	})
	must[client.PutResult](t)(c.Put(ctx, "k", []byte("v"), nil))
	if first, second := <-told, <-told; first > 3_600_000 || first < 3_500_000 || second > first-5 {
		t.Errorf("told %d ms, then %d ms", first, second)
	}
	for range 20 { // calls come from a pool
		must[client.Entry](t)(c.Get(t.Context(), "k", nil))
		if ms := <-told; ms != 0 {
			t.Fatalf("a call without a deadline told %d ms", ms)
		}
	}
	srv.Faults.Replies(func(r *kvstorev1.PipelineResponse) []*kvstorev1.PipelineResponse {
		r.Results[0].Outcome = &kvstorev1.PipelineResponse_Result_Error{Error: kverr.Item(kverr.New(kverr.DeadlineExceeded, "", "not begun"))}
		return []*kvstorev1.PipelineResponse{r}
	})
	_, err := c.Get(ctx, "k", nil)
	wantKind(t, err, kverr.DeadlineExceeded)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v is no context.DeadlineExceeded", err)
	}
}

// TestItemRefusalsAreRepeated is the same inside a pipeline: one operation's refusal holds up no other.
func TestItemRefusalsAreRepeated(t *testing.T) {
	srv := clienttest.Start(t)
	c := srv.Dial(t, client.Config{BackoffMin: time.Millisecond})
	var refused atomic.Int64
	srv.Faults.Replies(func(r *kvstorev1.PipelineResponse) []*kvstorev1.PipelineResponse {
		for _, res := range r.Results {
			if refused.Add(1) <= 5 {
				res.Outcome = &kvstorev1.PipelineResponse_Result_Error{
					Error: kverr.Item(kverr.Busy(kverr.Unavailable, time.Millisecond, "not yet")),
				}
			}
		}
		return []*kvstorev1.PipelineResponse{r}
	})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := c.Put(t.Context(), fmt.Sprint(i), nil, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if srv.Applied() != 20 {
		t.Errorf("applied %d, want 20", srv.Applied())
	}
}

func TestGivesUp(t *testing.T) {
	bothWays(t, func(t *testing.T, srv *clienttest.Server, c *client.Client) {
		must[client.PutResult](t)(c.Put(t.Context(), "k", nil, nil))
		srv.Faults.After(firstN(1<<40, errBroken))
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := c.Put(ctx, "k", nil, nil)
		if k := kverr.KindOf(err); k != kverr.OutcomeUnknown && k != kverr.DeadlineExceeded {
			t.Errorf("a write whose replies are lost: %v", err)
		}
		if n := srv.Applied(); n != 2 {
			t.Errorf("applied %d changes, want 2", n)
		}
		srv.Stop()
		ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err = c.Get(ctx, "k", nil)
		if k := kverr.KindOf(err); k != kverr.Unavailable && k != kverr.DeadlineExceeded {
			t.Errorf("a read of a server that is gone: %v", err)
		}
	})
}

// TestTheTryBefore: when the time is up while the server says nothing, the caller is told what it said last. A caller may have a deadline
// of its own, as one for the beginning of a stream alone is, and cancels by it.
func TestTheTryBefore(t *testing.T) {
	for name, call := range map[string]func(context.Context, *client.Client) error{
		"put":    func(ctx context.Context, c *client.Client) error { _, err := c.Put(ctx, "k", nil, nil); return err },
		"get":    func(ctx context.Context, c *client.Client) error { _, err := c.Get(ctx, "k", nil); return err },
		"stream": func(ctx context.Context, c *client.Client) error { _, err := c.GetStream(ctx, "k"); return err },
	} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, srv *clienttest.Server, c *client.Client) {
				over := make(chan struct{})
				t.Cleanup(func() { close(over) })
				ctx, cancel := context.WithCancelCause(t.Context())
				var calls atomic.Int64
				srv.Faults.Before(func(string) error {
					if calls.Add(1) == 1 {
						return kverr.New(kverr.Unavailable, "open the log", "the store does not answer")
					}
					cancel(context.DeadlineExceeded)
					<-over
					return nil
				})
				err := call(ctx, c)
				if !errors.Is(err, kverr.DeadlineExceeded) || !strings.Contains(err.Error(), "the store does not answer") {
					t.Errorf("%v", err)
				}
			})
		})
	}
}

// TestServerRestartsUnderLoad: nothing fails, nothing is applied twice, everything acknowledged is there.
func TestServerRestartsUnderLoad(t *testing.T) {
	srv := clienttest.Start(t)
	c := srv.Dial(t, client.Config{Connections: 2, BackoffMin: time.Millisecond, BackoffMax: 20 * time.Millisecond})
	const callers, each = 50, 40
	var done atomic.Int64
	var wg sync.WaitGroup
	for w := range callers {
		wg.Go(func() {
			for i := range each {
				k := fmt.Sprintf("%d/%d", w, i)
				put, err := c.Put(t.Context(), k, []byte(k), &client.PutOptions{If: client.IfAbsent()})
				if err != nil || !put.Created {
					t.Errorf("put %s: %+v, %v", k, put, err)
					return
				}
				if e, err := c.Get(t.Context(), k, nil); err != nil || e.Version != put.Version {
					t.Errorf("get %s: version %d, want %d, %v", k, e.Version, put.Version, err)
				}
				done.Add(1)
			}
		})
	}
	for restart := range int64(4) {
		for done.Load() < (restart+1)*callers*each/6 && !t.Failed() {
			runtime.Gosched()
		}
		srv.Stop()
		srv.Restart()
	}
	wg.Wait()
	if n := srv.Applied(); n != callers*each {
		t.Errorf("%d changes applied, want %d", n, callers*each)
	}
}

// TestServerIsBackAfterLong: however long a server was away, a client that goes on asking finds it within two pauses: gRPC's between two
// connections and its own between two tries, each at most 2 s and what gRPC adds at random.
func TestServerIsBackAfterLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := clienttest.Start(t)
		c := srv.Dial(t, client.Config{RetryFor: 5 * time.Second, Unary: true}) // the pipe pools channels, which must not leave a bubble
		must[client.PutResult](t)(c.Put(t.Context(), "k", nil, nil))
		srv.Stop()
		for stopped := time.Now(); time.Since(stopped) < 5*time.Minute; {
			_, err := c.Get(t.Context(), "k", nil)
			wantKind(t, err, kverr.Unavailable)
		}
		srv.Restart()
		began := time.Now()
		must[client.Entry](t)(c.Get(t.Context(), "k", nil))
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("found again after %v", took)
		}
		srv.Stop()
		c.Close()
	})
}

func TestRepliesOutOfOrderRepeatedAndUnknown(t *testing.T) {
	srv := clienttest.Start(t)
	c := srv.Dial(t, client.Config{})
	var old []*kvstorev1.PipelineResponse_Result
	srv.Faults.Replies(func(r *kvstorev1.PipelineResponse) []*kvstorev1.PipelineResponse {
		res := r.Results
		for i, j := 0, len(res)-1; i < j; i, j = i+1, j-1 {
			res[i], res[j] = res[j], res[i]
		}
		wrong := &kvstorev1.PipelineResponse_Result{Id: 1 << 60, Outcome: res[0].Outcome}
		out := []*kvstorev1.PipelineResponse{
			{Header: r.Header, Results: append([]*kvstorev1.PipelineResponse_Result{wrong}, old...)}, // of operations answered before
			{Header: r.Header, Results: res[len(res)/2:]},
			{}, // nothing
			{Results: append(res[:len(res)/2:len(res)/2], res...)}, // each in here was answered already, or is twice
		}
		old = res
		return out
	})
	var wg sync.WaitGroup
	for w := range 30 {
		wg.Go(func() {
			for i := range 30 {
				k := fmt.Sprintf("%d/%d", w, i)
				if _, err := c.Put(t.Context(), k, []byte(k), nil); err != nil {
					t.Error(err)
				}
				if e, err := c.Get(t.Context(), k, nil); err != nil || string(e.Value) != k {
					t.Errorf("%s holds %q, %v", k, e.Value, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestReplyOfTheWrongKindIsAnError(t *testing.T) {
	srv := clienttest.Start(t)
	c := srv.Dial(t, client.Config{})
	must[client.PutResult](t)(c.Put(t.Context(), "k", nil, nil))
	srv.Faults.Replies(func(r *kvstorev1.PipelineResponse) []*kvstorev1.PipelineResponse {
		for _, res := range r.Results {
			res.Outcome = &kvstorev1.PipelineResponse_Result_Delete{Delete: &kvstorev1.DeleteResult{Deleted: true}}
		}
		return []*kvstorev1.PipelineResponse{r}
	})
	_, err := c.Get(t.Context(), "k", nil)
	wantKind(t, err, kverr.Unknown)
}

// TestCancelledCallsReturnAtOnceAndLeakNothing: the slots of cancelled calls come back with their replies.
func TestCancelledCallsReturnAtOnceAndLeakNothing(t *testing.T) {
	srv := clienttest.Start(t)
	const bound = 8
	c := srv.Dial(t, client.Config{MaxOutstanding: bound})
	must[client.PutResult](t)(c.Put(t.Context(), "k", nil, nil))
	hold := make(chan struct{})
	srv.Faults.Before(func(string) error { <-hold; return nil })
	before := runtime.NumGoroutine()
	var wg sync.WaitGroup
	for range 3 * bound { // more than may be outstanding: the rest are cancelled while they wait for a slot
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			value := []byte("mine")
			_, err := c.Put(ctx, "k", value, nil)
			clear(value) // ours again
			if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, kverr.DeadlineExceeded) {
				t.Errorf("error %v", err)
			}
		})
	}
	wg.Wait()
	close(hold)
	for range 10 * bound {
		must[client.PutResult](t)(c.Put(t.Context(), "k", []byte("later"), nil))
	}
	if e := must[client.Entry](t)(c.Get(t.Context(), "k", nil)); string(e.Value) != "later" {
		t.Errorf("value %q", e.Value)
	}
	waitFor(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
}

func TestMaxOutstandingBoundsWhatIsSent(t *testing.T) {
	srv := clienttest.Start(t)
	const bound = 4
	c := srv.Dial(t, client.Config{MaxOutstanding: bound})
	must[client.PutResult](t)(c.Put(t.Context(), "k", nil, nil))
	hold := make(chan struct{})
	srv.Faults.Replies(func(r *kvstorev1.PipelineResponse) []*kvstorev1.PipelineResponse {
		<-hold
		return []*kvstorev1.PipelineResponse{r}
	})
	var wg sync.WaitGroup
	for i := range 10 * bound {
		wg.Go(func() {
			if _, err := c.Put(t.Context(), fmt.Sprint(i), nil, nil); err != nil {
				t.Error(err)
			}
		})
	}
	waitFor(t, "the first put", func() bool { return srv.Applied() > 1 })
	if n := srv.Applied(); n > 1+bound {
		t.Errorf("%d operations sent while none was answered, bound %d", n-1, bound)
	}
	close(hold)
	wg.Wait()
	if n := srv.Applied(); n != 1+10*bound {
		t.Errorf("applied %d", n)
	}
}

func TestCloseFailsWhatIsUnderWay(t *testing.T) {
	bothWays(t, func(t *testing.T, srv *clienttest.Server, c *client.Client) {
		must[client.PutResult](t)(c.Put(t.Context(), "k", nil, nil))
		entered := make(chan struct{}, 1)
		hold := make(chan struct{})
		defer close(hold)
		srv.Faults.Before(func(string) error { entered <- struct{}{}; <-hold; return nil })
		failed := make(chan error)
		go func() {
			_, err := c.Put(context.Background(), "k", nil, nil)
			failed <- err
		}()
		<-entered
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := <-failed; err == nil || errors.Is(err, kverr.Unavailable) {
			t.Errorf("a write under way at Close: %v", err)
		}
		if _, err := c.Put(context.Background(), "k", nil, nil); err == nil {
			t.Error("a put after Close succeeded")
		}
	})
}

// TestServerTime: the local clock does not matter; writes carry the server's.
func TestServerTime(t *testing.T) {
	bothWays(t, func(t *testing.T, srv *clienttest.Server, _ *client.Client) {
		srv.SetClock(func() time.Time { return time.Now().Add(48 * time.Hour) })
		c := srv.Dial(t, client.Config{})
		must[client.PutResult](t)(c.Put(t.Context(), "k", nil, nil))
		srv.SetClock(func() time.Time { return time.Now().Add(72 * time.Hour) })
		_, err := c.Put(t.Context(), "k", nil, nil) // nobody has told the client of the jump
		wantKind(t, err, kverr.Expired)
	})
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s: not within 10 s", what)
		}
		runtime.Gosched()
	}
}

// TestItemsThatPass: a batch is repeated while its items fail in ways that pass, and nothing is applied twice.
func TestItemsThatPass(t *testing.T) {
	faults := func(n int64, kind kverr.Kind) func(string) error {
		fail := firstN(n, &kverr.Error{Kind: kind, Message: "for a while", RetryAfterMS: 1})
		return func(method string) error {
			if method != "item" {
				return nil
			}
			return fail(method)
		}
	}
	srv := clienttest.Start(t)
	c := srv.Dial(t, client.Config{BackoffMin: time.Millisecond, RetryFor: time.Second})
	ctx := t.Context()
	items := []client.PutItem{{Key: "a", Options: &client.PutOptions{If: client.IfAbsent()}}, {Key: "b"}, {Key: "c"}}
	for _, kind := range []kverr.Kind{kverr.Unavailable, kverr.Exhausted, kverr.OutcomeUnknown} {
		applied := srv.Applied()
		srv.Faults.Before(faults(4, kind))
		for i, o := range must[[]client.PutOutcome](t)(c.BatchPut(ctx, items)) {
			if o.Err != nil {
				t.Errorf("put of item %d after %v: %v", i, kind, o.Err)
			}
		}
		srv.Faults.Before(faults(4, kind))
		for i, o := range must[[]client.GetOutcome](t)(c.BatchGet(ctx, []string{"a", "b", "c"}, nil)) {
			if o.Err != nil {
				t.Errorf("get of item %d after %v: %v", i, kind, o.Err)
			}
		}
		srv.Faults.Before(faults(0, kind))
		srv.Faults.After(faults(4, kind)) // done, and told that nobody knows
		for i, o := range must[[]client.DeleteOutcome](t)(c.BatchDelete(ctx, []client.DeleteItem{{Key: "a"}, {Key: "b"}, {Key: "c"}})) {
			if o.Err != nil || !o.Deleted {
				t.Errorf("delete of item %d after %v: %+v", i, kind, o)
			}
		}
		srv.Faults.After(faults(0, kind))
		if n := srv.Applied() - applied; n != 6 {
			t.Errorf("%v: %d changes applied, want 6", kind, n)
		}
	}

	// What does not pass within the time stays with its item, and says whether it may have been applied.
	srv.Faults.After(faults(1, kverr.OutcomeUnknown))
	srv.Faults.Before(func(method string) error {
		if method == "item" && srv.Applied() > 18 {
			return &kverr.Error{Kind: kverr.Unavailable, Message: "for ever", RetryAfterMS: 1}
		}
		return nil
	})
	outs := must[[]client.PutOutcome](t)(c.BatchPut(ctx, items[1:]))
	if !errors.Is(outs[0].Err, kverr.OutcomeUnknown) || !errors.Is(outs[1].Err, kverr.Unavailable) {
		t.Errorf("an item that was done, not known of, and then refused: %v; one that was refused: %v", outs[0].Err, outs[1].Err)
	}
}

// TestBlocksThatPass: only blocks that could not be stored are written again.
func TestBlocksThatPass(t *testing.T) {
	srv := clienttest.Start(t)
	c := srv.Dial(t, client.Config{BackoffMin: time.Millisecond})
	ctx := t.Context()
	if _, err := c.CreateNamespace(ctx, &kvstorev1.Namespace{Name: "p", Kind: kvstorev1.NamespaceKind_NAMESPACE_KIND_PROMPT}); err != nil {
		t.Fatal(err)
	}
	var blocks atomic.Int64
	srv.Faults.Before(func(method string) error {
		if method == "item" && blocks.Add(1)%2 == 1 {
			return &kverr.Error{Kind: kverr.Unavailable, Message: "for a while", RetryAfterMS: 1}
		}
		return nil
	})
	p := c.In("", "p").Prompt(client.Scope{"model": "m"})
	var all []client.NewBlock
	for i := range 8 {
		all = append(all, client.NewBlock{BlockRef: client.BlockRef{ID: []byte{'b', byte(i)}}, Reader: strings.NewReader(fmt.Sprint("block ", i)), Size: 7})
	}
	for i, o := range must[[]client.WriteOutcome](t)(p.Write(ctx, all, nil)) {
		if o.Err != nil || !o.Stored {
			t.Errorf("block %d: %+v", i, o)
		}
	}
	if n := blocks.Load(); n > 8+4+2+1+1 {
		t.Errorf("%d blocks were sent for 8", n)
	}
}

// TestRefusedAfterLostReply: the first try was applied and its reply lost; that a later one is refused before anybody looked
// for its identity does not make the write not applied.
func TestRefusedAfterLostReply(t *testing.T) {
	for _, kind := range []kverr.Kind{kverr.NoSpace, kverr.PermissionDenied, kverr.Unauthenticated, kverr.Unimplemented} {
		t.Run(kind.String(), func(t *testing.T) {
			srv := clienttest.Start(t)
			c := srv.Dial(t, client.Config{Unary: true, BackoffMin: time.Millisecond})
			srv.Faults.After(firstN(1, errBroken))
			var calls atomic.Int64
			srv.Faults.Before(func(string) error {
				if calls.Add(1) == 1 {
					return nil
				}
				return kverr.New(kind, "", "refused")
			})
			_, err := c.Put(t.Context(), "k", []byte("v"), nil)
			wantKind(t, err, kverr.OutcomeUnknown)
			if calls.Load() != 2 || srv.Applied() != 1 {
				t.Errorf("%d tries, applied %d times", calls.Load(), srv.Applied())
			}
		})
	}
}

// TestCloseEndsEverything: no goroutine of a client outlives Close by more than gRPC's own winding down.
func TestCloseEndsEverything(t *testing.T) {
	srv := clienttest.StartTCP(t)
	before := runtime.NumGoroutine()
	for range 3 {
		c, err := client.Dial(t.Context(), client.Config{Endpoints: []string{srv.Addr()}, Connections: 4})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			must[client.PutResult](t)(c.Put(t.Context(), fmt.Sprint(i), nil, nil))
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	waitFor(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
}
