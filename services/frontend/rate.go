package frontend

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/peer"

	"kvstore/components/authn"
	"kvstore/components/kverr"
)

// bucket is a token bucket that holds what may be done in a second: by one number, when it will be full again (the virtual scheduling of GCRA).
// x/time/rate is not for requests of many operations, which never fit a small bucket: here a request passes when the bucket is not empty, however
// many operations it has, and those after it pay.
type bucket struct {
	full atomic.Int64 // nanoseconds of Server.since
}

// burst is how much of its rate a bucket holds.
const burst = int64(time.Second)

// take takes n operations at a rate a second, or tells in how many nanoseconds there will be one again.
func (b *bucket) take(now int64, n int, rate int64) (wait int64) {
	cost := int64(float64(n) * float64(time.Second) / float64(rate))
	for {
		was := b.full.Load()
		full := max(was, now)
		if full-now > burst-int64(time.Second)/rate {
			return full - now - burst + int64(time.Second)/rate
		}
		if b.full.CompareAndSwap(was, full+cost) {
			return 0
		}
	}
}

// owe takes n operations that have passed already.
func (b *bucket) owe(now int64, n int, rate int64) {
	cost := int64(float64(n) * float64(time.Second) / float64(rate))
	for {
		was := b.full.Load()
		if b.full.CompareAndSwap(was, max(was, now)+cost) {
			return
		}
	}
}

// give gives back n operations that were taken for nothing.
func (b *bucket) give(n int, rate int64) {
	b.full.Add(-int64(float64(n) * float64(time.Second) / float64(rate)))
}

// clients are the buckets of those who have come lately.
type clients struct {
	mu      sync.RWMutex
	buckets map[string]*bucket // by token's name or address; guarded by mu
	swept   int64              // when those that are full were dropped last; guarded by mu
	rest    bucket             // of all for whom there was no room
}

// maxClients bounds the buckets of clients; whoever comes when there is no room for another shares one with all who do.
const maxClients = 64 << 10

// of is the bucket of a client.
func (c *clients) of(name string, now int64) *bucket {
	c.mu.RLock()
	b := c.buckets[name]
	c.mu.RUnlock()
	if b != nil {
		return b
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if b = c.buckets[name]; b != nil {
		return b
	}
	if len(c.buckets) >= maxClients && now-c.swept > burst {
		c.swept = now
		for name, b := range c.buckets {
			if b.full.Load() <= now { // it tells nothing any more
				delete(c.buckets, name)
			}
		}
	}
	if len(c.buckets) >= maxClients {
		return &c.rest
	}
	b = new(bucket)
	c.buckets[name] = b
	return b
}

// clientOf names whoever makes a call: by his token, or else his address.
func clientOf(ctx context.Context) string {
	if pass := authn.FromContext(ctx); pass != nil {
		return pass.Name()
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	at := p.Addr.String()
	if host, _, err := net.SplitHostPort(at); err == nil {
		return host
	}
	return at
}

// spend counts a request of n operations on a namespace, or refuses it because its client or the namespace had as many as it may.
func (s *Server) spend(ctx context.Context, ns *Namespace, n int) *kverr.Error {
	if s.cfg.ClientRate == 0 && ns.rate == 0 {
		return nil
	}
	now := int64(s.since())
	var client *bucket
	if rate := s.cfg.ClientRate; rate > 0 {
		client = s.clients.of(clientOf(ctx), now)
		if wait := client.take(now, n, rate); wait > 0 {
			s.limited.client.Add(1)
			return limited(wait, "this client may make %d operations a second here", rate)
		}
	}
	if ns.rate > 0 {
		if wait := ns.bucket.take(now, n, ns.rate); wait > 0 {
			if client != nil {
				client.give(n, s.cfg.ClientRate) // nothing was done for him
			}
			s.limited.namespace.Add(1)
			return limited(wait, "namespace %q has a limit of %d operations a second", ns.Name, ns.rate)
		}
	}
	return nil
}

// owe counts n operations more of a request that spend has let pass.
func (s *Server) owe(ctx context.Context, ns *Namespace, n int) {
	if n <= 0 || s.cfg.ClientRate == 0 && ns.rate == 0 {
		return
	}
	now := int64(s.since())
	if rate := s.cfg.ClientRate; rate > 0 {
		s.clients.of(clientOf(ctx), now).owe(now, n, rate)
	}
	if ns.rate > 0 {
		ns.bucket.owe(now, n, ns.rate)
	}
}

func limited(wait int64, format string, args ...any) *kverr.Error {
	return &kverr.Error{
		Kind: kverr.RateLimited, Message: fmt.Sprintf(format, args...),
		RetryAfterMS: (time.Duration(wait) + time.Millisecond - 1).Milliseconds(),
	}
}
