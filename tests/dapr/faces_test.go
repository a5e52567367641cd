package dapr

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"kvstore/tests/testenv"
)

// TestFacesOnCluster: Redis's protocol and REST on frontends that hold no shard, while a host of shards is killed.
func TestFacesOnCluster(t *testing.T) {
	ctx := t.Context()
	c := testenv.NewCluster(t, testenv.Bin(t, "dapr"), testenv.ClusterConfig{})
	var doors []*redis.Client
	for _, f := range c.Frontends {
		// A client that repeats an INCR by itself would count twice.
		door := redis.NewClient(&redis.Options{Addr: f.RESP, MaxRetries: -1, ReadTimeout: time.Minute})
		t.Cleanup(func() { door.Close() })
		doors = append(doors, door)
	}
	one, other := doors[0], doors[1]

	t.Run("RESP", func(t *testing.T) {
		long := bytes.Repeat([]byte("0123456789abcdef"), 3<<16) // 3 MiB
		if err := one.Set(ctx, "long", long, 0).Err(); err != nil {
			t.Fatal(err)
		}
		if got, err := other.Get(ctx, "long").Bytes(); err != nil || !bytes.Equal(got, long) {
			t.Fatalf("3 MiB through the other frontend: %d bytes, %v", len(got), err)
		}
		for i := range 200 {
			if err := one.Set(ctx, fmt.Sprint("k", i), i, 0).Err(); err != nil {
				t.Fatal(err)
			}
		}
		if n, err := other.DBSize(ctx).Result(); err != nil || n != 201 {
			t.Errorf("DBSIZE %d, %v", n, err)
		}
		seen := map[string]int{}
		for it := other.Scan(ctx, 0, "k*", 50).Iterator(); it.Next(ctx); {
			seen[it.Val()]++
		}
		if len(seen) != 200 {
			t.Errorf("SCAN over all shards found %d keys of 200", len(seen))
		}
		err := one.Watch(ctx, func(tx *redis.Tx) error {
			if err := other.Set(ctx, "{t}a", "theirs", 0).Err(); err != nil {
				return err
			}
			_, err := tx.TxPipelined(ctx, func(p redis.Pipeliner) error {
				p.Set(ctx, "{t}a", "ours", 0)
				p.Set(ctx, "{t}b", "ours", 0)
				return nil
			})
			return err
		}, "{t}a")
		if !errors.Is(err, redis.TxFailedErr) {
			t.Errorf("EXEC after somebody else wrote what is watched: %v", err)
		}
		if n, err := other.Exists(ctx, "{t}b").Result(); err != nil || n != 0 {
			t.Errorf("half of a transaction: %d, %v", n, err)
		}
	})

	t.Run("a host is killed", func(t *testing.T) {
		watching, leave := context.WithTimeout(ctx, 2*testenv.Patience)
		began, ended := make(chan struct{}), make(chan error, 1)
		go func() {
			ended <- watchFor(watching, c.Frontends[1].REST, "count", "the end", sync.OnceFunc(func() { close(began) }))
		}()
		defer func() {
			leave()
			if err := <-ended; err != nil {
				t.Errorf("the watch over REST: %v", err)
			}
		}()
		select {
		case <-began:
		case <-watching.Done():
			t.Fatal("the watch over REST has not begun")
		}

		var acked, open atomic.Int64
		progress := make(chan struct{}, 1)
		var callers sync.WaitGroup
		stop := make(chan struct{})
		for i := range 16 {
			callers.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					err := doors[(i+n)%2].Incr(ctx, fmt.Sprint("count", n%32)).Err()
					switch {
					case err == nil:
						acked.Add(1)
						select {
						case progress <- struct{}{}:
						default:
						}
					case strings.HasPrefix(err.Error(), "UNKNOWN "):
						open.Add(1)
					case !strings.HasPrefix(err.Error(), "TRYAGAIN "): // which says that nothing was done
						t.Errorf("INCR: %v", err)
						return
					}
				}
			})
		}
		counted := func(n int64) {
			t.Helper()
			enough := time.NewTimer(testenv.Patience)
			defer enough.Stop()
			for acked.Load() < n {
				select {
				case <-progress:
				case <-enough.C:
					t.Fatalf("%d INCRs acknowledged, %d wanted", acked.Load(), n)
				}
			}
		}
		counted(1000)
		c.Hosts[0].Crash()
		counted(acked.Load() + 3000)
		c.Await(ctx, t)
		counted(acked.Load() + 1000)
		close(stop)
		callers.Wait()

		var sum int64
		for i := range 32 {
			n, err := other.Get(ctx, fmt.Sprint("count", i)).Int64()
			if err != nil {
				t.Fatal(err)
			}
			sum += n
		}
		t.Logf("%d INCRs acknowledged, %d with an unknown outcome, the counters are %d", acked.Load(), open.Load(), sum)
		if sum < acked.Load() || sum > acked.Load()+open.Load() {
			t.Errorf("counters are %d; %d were acknowledged, %d may have been applied", sum, acked.Load(), open.Load())
		}
		if err := put(ctx, c.Frontends[0].REST, "count31", "the end"); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil { // the watch has gone on over the kill
			t.Errorf("the watch over REST: %v", err)
		}
		ended <- nil
	})
}

// watchFor watches over REST, as a browser does that comes again with the last event's id, until a key with this prefix has this value. It calls
// started when it is told that the watch has begun.
func watchFor(ctx context.Context, addr, prefix, value string, started func()) error {
	last := ""
	for {
		found, err := watchOnce(ctx, "http://"+addr+"/api/v1/watch/"+prefix+"?mode=all&values=true", value, &last, started)
		if found || ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil && last == "" {
			return err
		}
	}
}

// watchOnce is one connection of that.
func watchOnce(ctx context.Context, url, value string, last *string, started func()) (found bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false, err
	}
	if *last != "" {
		req.Header.Set("Last-Event-ID", *last)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return false, errors.New(resp.Status)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, text, _ := strings.Cut(lines.Text(), ":")
		switch text = strings.TrimPrefix(text, " "); {
		case name == "id":
			*last = text
			started()
		case name == "data" && strings.Contains(text, strconv.Quote(value)):
			return true, nil
		}
	}
	return false, lines.Err()
}

// put writes a key over REST.
func put(ctx context.Context, addr, key, value string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://"+addr+"/api/v1/keys/"+key, strings.NewReader(value))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("put %s: %s: %s", key, resp.Status, text)
	}
	return nil
}
