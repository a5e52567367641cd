package catalog_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kvstore/actors/directory"
	"kvstore/actors/directory/keeper"
	"kvstore/components/kverr"
	"kvstore/components/ring"
	"kvstore/components/wal/waltest/fault"
	kvv1 "kvstore/proto/gen/kvstore/v1"
	"kvstore/services/catalog"
	"kvstore/services/frontend"
)

// names lists what a directory has: keyspaces, with their namespaces.
func names(t *testing.T, d frontend.Directory) string {
	t.Helper()
	s, err := d.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r, err := d.Revision(t.Context()); err != nil || r < s.Revision {
		t.Fatalf("revision %d, %v, after a snapshot of revision %d", r, err, s.Revision)
	}
	var all []string
	for _, ks := range s.Keyspaces {
		var in []string
		for _, ns := range ks.Namespaces {
			in = append(in, ns.Name)
		}
		all = append(all, fmt.Sprintf("%s(%s)/%d", ks.Keyspace.Name, strings.Join(in, ","), ks.Map.Shards()))
	}
	return strings.Join(all, " ")
}

func is(t *testing.T, what string, err error, kind kverr.Kind) {
	t.Helper()
	var e *kverr.Error
	if !errors.As(err, &e) || e.Kind != kind {
		t.Fatalf("%s: %v, want kind %v", what, err, kind)
	}
}

func second[T any](_ T, err error) error { return err }

// TestConformance: what a frontend is promised of a directory, of the one in its process and of one that is elsewhere.
func TestConformance(t *testing.T) {
	for name, mk := range map[string]func(*cluster) frontend.Directory{
		"local":  func(c *cluster) frontend.Directory { return catalog.Local{Keeper: c.node("a").keeper} },
		"remote": func(c *cluster) frontend.Directory { return c.client() },
	} {
		t.Run(name, func(t *testing.T) {
			run(t, []string{"a"}, func(t *testing.T, c *cluster) {
				ctx, d := t.Context(), mk(c)
				if _, err := d.Revision(ctx); err != nil {
					t.Fatal(err)
				}
				c.settle("a")
				synctest.Wait()
				if got := names(t, d); got != "default(default)/3" {
					t.Fatal(got)
				}
				ks, err := d.CreateKeyspace(ctx, &kvv1.Keyspace{Name: "k", Shards: 5})
				if err != nil || ks.Name != "k" || ks.Shards != 5 || ks.Version == 0 || ks.CreatedMs == 0 {
					t.Fatal(ks, err)
				}
				// What was done is seen at once, and can be used.
				if got := names(t, d); got != "default(default)/3 k()/5" {
					t.Fatal(got)
				}
				if err := c.put("a", ring.ShardID(ks.Uid, 4), 1, "key"); err != nil {
					t.Fatal(err)
				}
				other, err := d.CreateKeyspace(ctx, &kvv1.Keyspace{Name: "other"})
				if err != nil || other.Shards != 3 { // as the owner is configured
					t.Fatal(other, err)
				}
				ns, err := d.CreateNamespace(ctx, &kvv1.Namespace{
					Keyspace: "k", Name: "blocks", Kind: kvv1.NamespaceKind_NAMESPACE_KIND_PROMPT, CapacityBlocks: 10,
					Partition: &kvv1.PartitionRule{Rule: &kvv1.PartitionRule_PathElements{PathElements: 2}},
				})
				if err != nil || ns.Partition.GetPathElements() != 2 || ns.CapacityBlocks != 10 || ns.Version == 0 || ns.Uid != 1 {
					t.Fatal(ns, err)
				}
				up, err := d.UpdateNamespace(ctx, &kvv1.Namespace{Keyspace: "k", Name: "blocks", CapacityBlocks: 5, DefaultTtlMs: 9, Version: ns.Version}, []string{"capacity_blocks"})
				if err != nil || up.CapacityBlocks != 5 || up.DefaultTtlMs != 0 || up.Version <= ns.Version {
					t.Fatal(up, err)
				}
				if got := names(t, d); got != "default(default)/3 k(blocks)/5 other()/3" {
					t.Fatal(got)
				}
				is(t, "old version", second(d.UpdateNamespace(ctx, &kvv1.Namespace{Keyspace: "k", Name: "blocks", Version: ns.Version}, []string{"capacity_blocks"})), kverr.VersionMismatch)
				is(t, "mask", second(d.UpdateNamespace(ctx, ns, []string{"kind"})), kverr.InvalidArgument)
				is(t, "no mask", second(d.UpdateNamespace(ctx, ns, nil)), kverr.InvalidArgument)
				is(t, "keyspace exists", second(d.CreateKeyspace(ctx, &kvv1.Keyspace{Name: "k", Shards: 5})), kverr.AlreadyExists)
				is(t, "namespace exists", second(d.CreateNamespace(ctx, ns)), kverr.AlreadyExists)
				is(t, "no keyspace", second(d.CreateNamespace(ctx, &kvv1.Namespace{Keyspace: "none", Name: "n"})), kverr.NotFound)
				is(t, "no namespace", second(d.UpdateNamespace(ctx, &kvv1.Namespace{Keyspace: "k", Name: "none"}, []string{"default_ttl_ms"})), kverr.NotFound)
				is(t, "delete no namespace", d.DeleteNamespace(ctx, "k", "none"), kverr.NotFound)
				is(t, "delete no keyspace", d.DeleteKeyspace(ctx, "none"), kverr.NotFound)
				is(t, "name", second(d.CreateKeyspace(ctx, &kvv1.Keyspace{Name: "A"})), kverr.InvalidArgument)
				is(t, "shards", second(d.CreateKeyspace(ctx, &kvv1.Keyspace{Name: "a", Shards: 5000})), kverr.InvalidArgument)
				if err := errors.Join(d.DeleteNamespace(ctx, "k", "blocks"), d.DeleteKeyspace(ctx, "other")); err != nil {
					t.Fatal(err)
				}
				if got := names(t, d); got != "default(default)/3 k()/5" {
					t.Fatal(got)
				}
				again, err := d.CreateNamespace(ctx, &kvv1.Namespace{Keyspace: "k", Name: "blocks"})
				if err != nil || again.Uid != 2 {
					t.Fatal(again, err)
				}
				c.settle("a")
				if left := c.stored([]string{ring.ShardID(other.Uid, 0), ring.ShardID(other.Uid, 2)}); len(left) != 0 {
					t.Fatal(left)
				}
				is(t, "a write through an old catalog", c.put("a", ring.ShardID(ks.Uid, 0), 1, "late"), kverr.NotFound)
				c.close()
			})
		})
	}
}

// TestOthersSee: a change is seen by every client at once, and within ClientConfig.Silence and a little when its connection
// has died without a word.
func TestOthersSee(t *testing.T) {
	run(t, []string{"a", "b"}, func(t *testing.T, c *cluster) {
		one, two := c.client(), c.client()
		if _, err := one.CreateNamespace(t.Context(), &kvv1.Namespace{Keyspace: "default", Name: "first"}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // no time passes
		if got := names(t, two); got != "default(default,first)/3" {
			t.Fatal(got)
		}
		// Heartbeats keep the copy young without a change.
		time.Sleep(time.Minute)
		if s := two.Status(); !s.Following || s.Age > catalog.DefaultHeartbeat || s.Owner != "a" || s.Failure != nil {
			t.Fatalf("%+v", s)
		}

		// The host falls silent; its connections stay.
		a := c.node("a")
		a.engine.Add(fault.Rule{Verb: fault.Any, Times: -1, Freeze: true})
		began := time.Now()
		c.place("b")
		if _, err := one.CreateNamespace(t.Context(), &kvv1.Namespace{Keyspace: "default", Name: "second"}); err != nil {
			t.Fatal(err)
		}
		t.Logf("a change %v after its owner fell silent, with a term of %v", time.Since(began), term)
		changed := time.Now()
		for names(t, two) != "default(default,first,second)/3" {
			time.Sleep(10 * time.Millisecond)
		}
		if took := time.Since(changed); took > catalog.DefaultSilence+2*time.Second {
			t.Fatalf("another client has seen a change after %v", took)
		} else {
			t.Logf("seen by another client %v later", took)
		}
		c.close()
	})
}

// TestServesWithoutOwner: while there is no owner a client goes on with its copy, tells how old it is, and takes no request; one that has
// no copy is not ready.
func TestServesWithoutOwner(t *testing.T) {
	run(t, []string{"a"}, func(t *testing.T, c *cluster) {
		d := c.client()
		if _, err := d.CreateKeyspace(t.Context(), &kvv1.Keyspace{Name: "k"}); err != nil {
			t.Fatal(err)
		}
		if err := d.Ready(); err != nil {
			t.Fatal(err)
		}
		a := c.node("a")
		c.kill(a)
		time.Sleep(time.Minute)
		if got := names(t, d); got != "default(default)/3 k()/3" {
			t.Fatal(got)
		}
		s := d.Status()
		if s.Following || s.Failure == nil || s.Age < time.Minute || s.Age > time.Minute+2*time.Second || s.Revision == 0 || s.Owner != "a" {
			t.Fatalf("%+v", s)
		}
		if p := d.CopyStatus(); p.Following || p.Reason == "" || p.AgeMs < 60_000 || p.Revision != s.Revision || p.Owner != "a" || p.Epoch != 1 {
			t.Fatal(p)
		}
		if err := d.Ready(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		is(t, "a request", second(d.CreateKeyspace(ctx, &kvv1.Keyspace{Name: "other"})), kverr.Unavailable)
		fresh := c.client()
		is(t, "a read without a copy", second(fresh.Snapshot(ctx)), kverr.Unavailable)
		if err := fresh.Ready(); err == nil {
			t.Fatal("ready without a copy")
		}
		c.start("a")
		if got := names(t, fresh); got != "default(default)/3 k()/3" {
			t.Fatal(got)
		}
		if err := fresh.Ready(); err != nil {
			t.Fatal(err)
		}
		c.close(a)
	})
}

// TestLostReplies: a request that was done, and whose answer was lost, is done once and told so.
func TestLostReplies(t *testing.T) {
	for _, lost := range []error{
		status.Error(codes.Unavailable, "connection reset"),
		kverr.New(kverr.OutcomeUnknown, "append", "the log did not tell"),
		status.Error(codes.DeadlineExceeded, "too late"),
	} {
		t.Run(status.Code(lost).String(), func(t *testing.T) {
			run(t, []string{"a"}, func(t *testing.T, c *cluster) {
				d := c.client()
				calls := map[string]int{}
				a := c.node("a")
				a.mu.Lock()
				a.fault = func(method string) (before, after error) {
					a.mu.Lock()
					defer a.mu.Unlock()
					switch calls[method]++; calls[method] % 3 {
					case 1:
						return kverr.New(kverr.Moved, "own", "not here"), nil
					case 2:
						return nil, lost
					}
					return nil, nil
				}
				a.mu.Unlock()
				ctx := t.Context()
				ks, err := d.CreateKeyspace(ctx, &kvv1.Keyspace{Name: "k"})
				if err != nil {
					t.Fatal(err)
				}
				ns, err := d.CreateNamespace(ctx, &kvv1.Namespace{Keyspace: "k", Name: "n"})
				if err != nil || ns.Uid != 1 {
					t.Fatal(ns, err)
				}
				up, err := d.UpdateNamespace(ctx, &kvv1.Namespace{Keyspace: "k", Name: "n", DefaultTtlMs: 9, Version: ns.Version}, []string{"default_ttl_ms"})
				if err != nil || up.DefaultTtlMs != 9 {
					t.Fatal(up, err)
				}
				if err := d.DeleteNamespace(ctx, "k", "n"); err != nil {
					t.Fatal(err)
				}
				if got := names(t, d); got != "default(default)/3 k()/3" {
					t.Fatal(got)
				}
				// What is there already is told honestly, although the first answer is lost.
				is(t, "create what is there", second(d.CreateKeyspace(ctx, &kvv1.Keyspace{Name: "default"})), kverr.AlreadyExists)
				id := ring.ShardID(ks.Uid, 0)
				if err := d.Remember(ctx, directory.Mark{Shard: id, Epoch: 1, Seq: 5}); err != nil {
					t.Fatal(err)
				}
				if marks, err := d.Marks(ctx, id, "none-0"); err != nil || marks[0] != (directory.Mark{Shard: id, Epoch: 1, Seq: 5, Made: true}) || marks[1] != (directory.Mark{Shard: "none-0"}) {
					t.Fatal(marks, err)
				}
				// Whether there is a loss to accept depends on whether the shard was open before the mark, which is ahead of its log.
				if m, err := d.AcceptLoss(ctx, id); err != nil || m.Epoch != 1 {
					t.Fatal(m, err)
				}
				is(t, "loss of no shard", second(d.AcceptLoss(ctx, "none-0")), kverr.NotFound)
				if err := d.DeleteKeyspace(ctx, "k"); err != nil {
					t.Fatal(err)
				}
				if got := names(t, d); got != "default(default)/3" {
					t.Fatal(got)
				}
				for method, n := range calls {
					if n < 3 {
						t.Errorf("%s was asked %d times", method, n)
					}
				}
				c.close()
			})
		})
	}
}

// TestLostReplyOfRemoval: a removal whose answer was lost does not meet what was made under the name since.
func TestLostReplyOfRemoval(t *testing.T) {
	run(t, []string{"a"}, func(t *testing.T, c *cluster) {
		d := c.client()
		if _, err := d.CreateKeyspace(t.Context(), &kvv1.Keyspace{Name: "k"}); err != nil {
			t.Fatal(err)
		}
		a := c.node("a")
		var again *kvv1.Keyspace
		first := true
		a.mu.Lock()
		a.fault = func(method string) (before, after error) {
			if method != "DeleteKeyspace" || !first {
				return nil, nil
			}
			first = false
			// Done by somebody else before the repetition comes.
			if err := a.keeper.DeleteKeyspace(t.Context(), "k", ""); err != nil {
				t.Error(err)
			}
			var err error
			if again, err = a.keeper.CreateKeyspace(t.Context(), &kvv1.Keyspace{Name: "k", Shards: 1}); err != nil {
				t.Error(err)
			}
			return status.Error(codes.Unavailable, "connection reset"), nil
		}
		a.mu.Unlock()
		if err := d.DeleteKeyspace(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := names(t, d); got != "default(default)/3 k()/1" {
			t.Fatal(got)
		}
		if err := c.put("a", ring.ShardID(again.Uid, 0), 1, "k"); err != nil {
			t.Fatal(err)
		}
		c.close()
	})
}

// TestOwnerKilled: the owner is killed in the middle of a chore, at each of its steps; the next one goes on with it, and the
// caller's request ends well, once.
func TestOwnerKilled(t *testing.T) {
	for step := 1; step <= 5; step++ {
		for _, verb := range []fault.Verb{fault.Swap, fault.Append} {
			t.Run(fmt.Sprint(verb, "/", step), func(t *testing.T) {
				run(t, []string{"a", "b"}, func(t *testing.T, c *cluster) {
					d := c.client()
					if _, err := d.Revision(t.Context()); err != nil {
						t.Fatal(err)
					}
					c.settle("a")
					a := c.node("a")
					// At the n-th write of shards' manifests, or of the directory's log, after it or before.
					a.engine.Add(fault.Rule{Verb: verb, Nth: step, Freeze: true, After: step%2 == 0})
					armed := a.engine.Add(fault.Rule{Verb: verb, Nth: step + 1<<20}) // counts
					made := make(chan error, 1)
					go func() { made <- second(d.CreateKeyspace(t.Context(), &kvv1.Keyspace{Name: "k", Shards: 4})) }()
					synctest.Wait()
					t.Logf("killed after %d writes", armed.Seen())
					c.kill(a)
					c.place("b")
					began := time.Now()
					if err := <-made; err != nil {
						t.Fatal(err)
					}
					if took := time.Since(began); took > catalog.DefaultSilence+term+3*time.Second {
						t.Fatalf("the next owner answered after %v", took)
					}
					if got := names(t, d); got != "default(default)/3 k()/4" {
						t.Fatal(got)
					}
					snap, err := d.Snapshot(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					for n := range 4 {
						if err := c.put("b", snap.Keyspaces[1].Map.ShardID(n), 1, "k"); err != nil {
							t.Fatal(err)
						}
					}
					c.settle("b")
					c.close(a)
				})
			})
		}
	}
}

// TestTwoOwners: an owner that was frozen in the middle of making a keyspace's shards believes that it still is the owner. The next one
// finishes the keyspace, then removes it. When the first thaws, what it does late is of no consequence, and what it leaves behind
// is gone after directory.QuarantineMS.
func TestTwoOwners(t *testing.T) {
	run(t, []string{"a", "b"}, func(t *testing.T, c *cluster) {
		d := c.client()
		if _, err := d.Revision(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.settle("a")
		a := c.node("a")
		// The engine of the first holds its writes back. A frozen process has no deadlines either: so those have no context.
		frozen := a.engine.Add(fault.Rule{Verb: fault.Swap, Nth: 2, Times: -1, Freeze: true})
		made := make(chan *kvv1.Keyspace, 1)
		go func() {
			ks, err := d.CreateKeyspace(t.Context(), &kvv1.Keyspace{Name: "k", Shards: 4})
			if err != nil {
				t.Error(err)
			}
			made <- ks
		}()
		<-frozen.Hit()
		synctest.Wait()
		c.place("b")
		a.setCut(true) // its clients find the next owner
		ks := <-made
		var ids []string
		for n := range 4 {
			ids = append(ids, ring.ShardID(ks.Uid, n))
		}
		if there := c.stored(ids); len(there) != 4 {
			t.Fatalf("%v of 4 shards", there)
		}
		if err := d.DeleteKeyspace(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		c.settle("b")
		if there := c.stored(ids); len(there) != 0 {
			t.Fatalf("%v are left", there)
		}

		// It thaws, and serves nobody: neither a read nor a request.
		a.setCut(false)
		frozen.Thaw()
		synctest.Wait()
		is(t, "a read of the first", second(a.keeper.Catalog(t.Context())), kverr.Moved)
		is(t, "a request to the first", second(a.keeper.CreateKeyspace(t.Context(), &kvv1.Keyspace{Name: "late"})), kverr.Moved)
		late := c.stored(ids)
		t.Logf("%d shards were made late", len(late))
		if len(late) == 0 {
			t.Fatal("the test shows nothing: the first owner did nothing late")
		}
		is(t, "a creation that is repeated late", second(c.node("b").keeper.CreateKeyspace(t.Context(), &kvv1.Keyspace{Name: "k", Uid: ks.Uid, Shards: 4})), kverr.InvalidArgument)
		time.Sleep(directory.QuarantineMS*time.Millisecond + time.Minute)
		if there := c.stored(ids); len(there) != 0 {
			t.Fatalf("%v are left an hour later", there)
		}
		if got := names(t, d); got != "default(default)/3" {
			t.Fatal(got)
		}
		c.close()
	})
}

// TestOnlyKeyspaceInTheMaking: as in a new cluster, nobody is told that it is not there, and no frontend is ready, before its shards are made.
func TestOnlyKeyspaceInTheMaking(t *testing.T) {
	run(t, []string{"a"}, func(t *testing.T, c *cluster) {
		d := c.client()
		if _, err := d.Revision(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.settle("a")
		if err := d.DeleteKeyspace(t.Context(), "default"); err != nil {
			t.Fatal(err)
		}
		c.settle("a")
		if got := names(t, d); got != "" {
			t.Fatalf("of none at all: %q", got)
		}
		shards := c.node("a").engine.Add(fault.Rule{Verb: fault.Swap, Times: -1, Freeze: true})
		made := make(chan error, 1)
		go func() { made <- second(d.CreateKeyspace(t.Context(), &kvv1.Keyspace{Name: "k"})) }()
		<-shards.Hit()
		late := c.client()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := late.Snapshot(ctx)
		if is(t, "the directory meanwhile", err, kverr.Unavailable); !strings.Contains(err.Error(), "still being made") {
			t.Errorf("%v does not tell why", err)
		}
		if err := late.Ready(); err == nil || !strings.Contains(err.Error(), "still being made") {
			t.Errorf("ready: %v", err)
		}
		asked := make(chan string, 1)
		go func() { asked <- names(t, late) }()
		synctest.Wait()
		shards.Remove()
		if err := <-made; err != nil {
			t.Fatal(err)
		}
		if got := <-asked; got != "k()/3" {
			t.Errorf("who asked before it was made got %q", got)
		}
		if err := late.Ready(); err != nil {
			t.Error(err)
		}
		c.close()
	})
}

// TestDoneAndNotTold: a keyspace that is in the log, and whose making nobody lives to tell of, may have been made: the caller is not told
// that nothing was changed.
func TestDoneAndNotTold(t *testing.T) {
	run(t, []string{"a", "b"}, func(t *testing.T, c *cluster) {
		d := c.client()
		if _, err := d.Revision(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.settle("a")
		a, b := c.node("a"), c.node("b")
		shards := a.engine.Add(fault.Rule{Verb: fault.Swap, Times: -1, Freeze: true}) // the chore comes to nothing
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
		defer cancel()
		made := make(chan error, 1)
		go func() { made <- second(d.CreateKeyspace(ctx, &kvv1.Keyspace{Name: "k"})) }()
		<-shards.Hit()
		synctest.Wait()
		// Another host takes the directory, which no client reaches; the first one notices.
		c.place("b")
		if _, err := b.host.Use(t.Context(), keeper.ShardID); err != nil {
			t.Fatal(err)
		}
		b.setCut(true)
		is(t, "a request to the first", second(a.keeper.Catalog(t.Context())), kverr.Moved)
		is(t, "the keyspace", <-made, kverr.OutcomeUnknown)
		shards.Remove()
		b.setCut(false)
		c.settle("b")
		for names(t, d) != "default(default)/3 k()/3" {
			time.Sleep(10 * time.Millisecond)
		}
		c.close()
	})
}

// TestShardsElsewhere: chores reach shards that other hosts own: a namespace is dropped there, and a keyspace is removed under its owner,
// whether that can be asked or not.
func TestShardsElsewhere(t *testing.T) {
	run(t, []string{"a", "b"}, func(t *testing.T, c *cluster) {
		c.mu.Lock()
		c.apart = "b"
		c.mu.Unlock()
		d := c.client()
		ks, err := d.CreateKeyspace(t.Context(), &kvv1.Keyspace{Name: "k", Shards: 2})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"one", "two"} {
			if _, err := d.CreateNamespace(t.Context(), &kvv1.Namespace{Keyspace: "k", Name: name}); err != nil {
				t.Fatal(err)
			}
		}
		id := ring.ShardID(ks.Uid, 1)
		for i := range 1500 {
			if err := errors.Join(c.put("b", id, 1, fmt.Sprint("k", i)), c.put("b", id, 2, fmt.Sprint("k", i))); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.DeleteNamespace(t.Context(), "k", "one"); err != nil {
			t.Fatal(err)
		}
		c.settle("a")
		v, err := c.node("b").host.View(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		gone, _ := v.Usage(1)
		stays, _ := v.Usage(2)
		if gone != 0 || stays != 1500 {
			t.Fatalf("%d and %d keys", gone, stays)
		}
		is(t, "a put that comes late", c.put("b", id, 1, "late"), kverr.NotFound)

		if err := d.DeleteKeyspace(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		c.settle("a")
		if err := c.put("b", id, 2, "late"); kverr.KindOf(err) != kverr.Moved && kverr.KindOf(err) != kverr.NotFound {
			t.Fatal(err)
		}
		if there := c.stored([]string{ring.ShardID(ks.Uid, 0), id}); len(there) != 0 {
			t.Fatalf("%v are left", there)
		}

		// The owner of shards is cut off: the chore waits for it, and goes on.
		b := c.node("b")
		b.setCut(true)
		if err := d.DeleteNamespace(t.Context(), "default", "default"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if now, err := c.node("a").keeper.Catalog(t.Context()); err != nil || now.Chores != 1 {
			t.Fatal(now.Chores, err)
		}
		b.setCut(false)
		c.settle("a")
		c.close()
	})
}

// TestMoves: the directory moves from host to host, cleanly, under requests: each is done once and none fails.
func TestMoves(t *testing.T) {
	run(t, []string{"a", "b", "c"}, func(t *testing.T, c *cluster) {
		d := c.client()
		moved := make(chan struct{})
		go func() {
			defer close(moved)
			for i := range 30 {
				time.Sleep(time.Second)
				c.place([]string{"b", "c", "a"}[i%3])
				if _, err := c.Locate(t.Context(), keeper.ShardID); err != nil && kverr.KindOf(err) != kverr.Moved {
					t.Error(err)
				}
			}
		}()
		for i := range 40 {
			name := fmt.Sprint("n", i)
			ns, err := d.CreateNamespace(t.Context(), &kvv1.Namespace{Keyspace: "default", Name: name})
			if err != nil {
				t.Fatal(i, err)
			}
			if int(ns.Uid) != i+2 {
				t.Fatalf("namespace %d has uid %d", i, ns.Uid)
			}
			time.Sleep(500 * time.Millisecond)
		}
		<-moved
		c.close()
	})
}
