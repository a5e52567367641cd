package client_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/client/clienttest"
	"kvstore/components/kverr"
)

func quick() client.Config {
	return client.Config{BackoffMin: time.Millisecond, BackoffMax: 5 * time.Millisecond}
}

// TestWatch: what is there, then changes; each option does what it says.
func TestWatch(t *testing.T) {
	srv := clienttest.Start(t)
	c := srv.Dial(t, quick())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	put := func(k, v string) {
		t.Helper()
		if _, err := c.Put(ctx, k, []byte(v), nil); err != nil {
			t.Fatal(err)
		}
	}
	put("a/1", "one")
	put("b", "two")
	var token []byte
	for b, err := range c.Watch(ctx, &client.WatchOptions{Prefix: "a/", State: true}) {
		if err != nil {
			t.Fatal(err)
		}
		if b.Synced {
			put("b", "three")
			put("a/2", "four")
		}
		for _, e := range b.Events {
			if e.Key == "a/1" && (!e.Initial || string(e.Value) != "one") || e.Key == "a/2" && (!e.Created || e.Type != client.EventPut) {
				t.Fatalf("%+v", e)
			}
		}
		if len(b.Events) > 0 && b.Events[0].Key == "a/2" {
			token = b.Token
			break
		}
	}
	if _, err := c.Delete(ctx, "a/2", nil); err != nil {
		t.Fatal(err)
	}
	for b, err := range c.Watch(ctx, &client.WatchOptions{Key: "a/2", Token: token, All: true}) {
		if err != nil {
			t.Fatal(err)
		}
		if len(b.Events) > 0 {
			if e := b.Events[0]; e.Type != client.EventDelete || e.PrevVersion == 0 || e.Type.String() != "DELETE" {
				t.Fatalf("%+v", e)
			}
			cancel()
		}
		if ctx.Err() != nil {
			break
		}
	}
	for _, err := range c.Watch(ctx, nil) {
		wantKind(t, err, kverr.Canceled)
	}
	for name, o := range map[string]client.WatchOptions{"Key and Prefix": {Key: "a", Prefix: "b"}, "State and Token": {State: true, Token: token}} {
		for _, err := range c.Watch(t.Context(), &o) {
			if err == nil {
				t.Fatalf("%s: a batch", name)
			}
			wantKind(t, err, kverr.InvalidArgument)
		}
	}
}

// TestWatchGoesOn: whatever breaks, each change comes once and in order, and a state that was cut off is told anew.
func TestWatchGoesOn(t *testing.T) {
	srv := clienttest.Start(t)
	c := srv.Dial(t, quick())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const keys, changes = 20, 500
	for i := range keys {
		if _, err := c.Put(ctx, fmt.Sprint("k", i), []byte("0"), nil); err != nil {
			t.Fatal(err)
		}
	}
	var n atomic.Int64
	breaks := func(n int64) bool { return n%29 == 0 || n == 5 } // in the middle of the state, and later
	srv.Faults.Before(func(method string) error {
		if method == "Watch" && breaks(n.Add(1)) {
			return kverr.New(kverr.Unavailable, "", "broken on purpose")
		}
		return nil
	})
	writing := make(chan error, 1)
	go func() {
		for i := range changes {
			if _, err := c.Put(ctx, fmt.Sprint("k", i%keys), fmt.Append(nil, i+1), nil); err != nil {
				writing <- err
				return
			}
		}
		writing <- nil
	}()
	state, last, resyncs, changed := map[string]string{}, map[string]uint64{}, 0, 0
	for b, err := range c.Watch(ctx, &client.WatchOptions{State: true, All: true}) {
		if err != nil {
			t.Fatal(err)
		}
		if b.Resync {
			resyncs++
			clear(state)
			clear(last)
		}
		for _, e := range b.Events {
			if e.Version <= last[e.Key] {
				t.Fatalf("%+v after version %d", e, last[e.Key])
			}
			if !e.Initial && e.PrevVersion != last[e.Key] {
				t.Fatalf("%+v after version %d: one is missing", e, last[e.Key])
			}
			last[e.Key], state[e.Key] = e.Version, string(e.Value)
			changed++
		}
		done := len(state) == keys
		for i := changes - keys; i < changes; i++ {
			done = done && state[fmt.Sprint("k", i%keys)] == fmt.Sprint(i+1)
		}
		if done {
			break
		}
	}
	if err := <-writing; err != nil {
		t.Fatal(err)
	}
	t.Logf("%d events, %d times anew, broken %d times", changed, resyncs, n.Load()/29)
	if resyncs == 0 {
		t.Error("the state was never cut off")
	}

	// The server is gone for a while, and forgets.
	token := []byte(nil)
	for b := range c.Watch(ctx, nil) {
		if token = b.Token; token != nil {
			break
		}
	}
	if _, err := c.Put(ctx, "k0", []byte("later"), nil); err != nil {
		t.Fatal(err)
	}
	srv.Compact()
	srv.Stop()
	time.AfterFunc(20*time.Millisecond, srv.Restart)
	clear(state)
	for b, err := range c.Watch(ctx, &client.WatchOptions{Token: token}) {
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range b.Events {
			state[e.Key] = string(e.Value)
		}
		if b.Synced {
			break
		}
	}
	want := map[string]string{"k0": "later"}
	for i := changes - keys; i < changes; i++ {
		if k := fmt.Sprint("k", i%keys); k != "k0" {
			want[k] = fmt.Sprint(i + 1)
		}
	}
	if !maps.Equal(state, want) {
		t.Errorf("after RESYNC %v, want %v", state, want)
	}
	for _, err := range c.Watch(ctx, &client.WatchOptions{Token: token, All: true}) {
		if err != nil {
			wantKind(t, err, kverr.Compacted)
		}
	}
}

// TestWatchesShareAStream: many watches of a client are one stream of each connection; one that nobody reads holds up no other and is told no more than its
// window; when the stream breaks, each goes on; when the last has left, nothing is left.
func TestWatchesShareAStream(t *testing.T) {
	srv := clienttest.Start(t)
	cfg := quick()
	cfg.Unary = true
	c := srv.Dial(t, cfg)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var streams atomic.Int64
	var broken atomic.Bool
	srv.Faults.Before(func(method string) error {
		if method == "Watches" && broken.CompareAndSwap(true, false) {
			streams.Add(1)
			return kverr.New(kverr.Unavailable, "", "broken on purpose")
		}
		return nil
	})
	const watches, changes, size = 20, 100, 10 << 10 // several windows
	begun, took := make(chan int, watches), make(chan int, watches)
	read := make(chan struct{})
	var all sync.WaitGroup
	for i := range watches {
		all.Go(func() {
			next := 0
			for b, err := range c.Watch(ctx, &client.WatchOptions{Key: "k", All: true}) {
				if err != nil {
					t.Error(err)
					break
				}
				if b.Started {
					begun <- i
				}
				for _, e := range b.Events {
					if got := string(bytes.TrimRight(e.Value, "x")); got != fmt.Sprint(next) {
						t.Errorf("watch %d: event %q, want %d", i, got, next)
					}
					clear(e.Value) // nobody else's
					next++
				}
				if i == 0 {
					<-read
				}
				if next == changes {
					break
				}
			}
			took <- i
		})
	}
	for range watches {
		<-begun
	}
	for i := range changes {
		if _, err := c.Put(ctx, "k", append(fmt.Append(nil, i), bytes.Repeat([]byte("x"), size)...), nil); err != nil {
			t.Fatal(err)
		}
		if i == changes/2 {
			broken.Store(true)
		}
	}
	for range watches - 1 {
		if i := <-took; i == 0 {
			t.Error("a watch that nobody reads is done")
		}
	}
	close(read)
	if i := <-took; i != 0 {
		t.Errorf("%d is done twice", i)
	}
	all.Wait()
	if streams.Load() == 0 {
		t.Error("the stream never broke")
	}
}

// TestWatchBlocks: blocks that are stored and removed, of a scope or all; what is there first; from a token.
func TestWatchBlocks(t *testing.T) {
	p, _, c := newPrompt(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	write := func(p *client.Prompt, id string) {
		t.Helper()
		if _, err := p.Write(ctx, []client.NewBlock{{BlockRef: client.BlockRef{ID: []byte(id)}, Parent: []byte("up"), Data: []byte("12345")}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	write(p, "a")
	write(c.Prompt(client.Scope{"model": "other"}), "b")
	var got []string
	var token []byte
	for b, err := range c.Watch(ctx, &client.WatchOptions{Scope: client.Scope{"model": "m"}, State: true}) {
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range b.Events {
			got = append(got, fmt.Sprintf("%v %v %s %d %s %s %v", e.Type, e.Block.Scope, e.Block.Ref.ID, e.Size, e.Block.Parent, e.Block.Why, e.Initial))
		}
		if b.Synced {
			token = b.Token
			break
		}
	}
	if _, err := p.Delete(ctx, []client.BlockRef{{ID: []byte("a")}}); err != nil {
		t.Fatal(err)
	}
	for b, err := range c.Watch(ctx, &client.WatchOptions{Token: token, All: true}) {
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range b.Events {
			got = append(got, fmt.Sprintf("%v %s %s", e.Type, e.Block.Ref.ID, e.Block.Why))
		}
		if len(got) == 2 {
			break
		}
	}
	if want := []string{"STORED map[model:m] a 5 up  true", "REMOVED a DELETED"}; !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
	for _, err := range c.Watch(ctx, &client.WatchOptions{Key: "a"}) {
		wantKind(t, err, kverr.WrongKind)
	}
	for _, err := range c.Watch(ctx, &client.WatchOptions{Key: "a", Scope: client.Scope{}}) {
		wantKind(t, err, kverr.InvalidArgument)
	}
}
