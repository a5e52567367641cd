package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kvstore/client"
)

// etcdSystem spreads callers over four clients, as four connections do for every gRPC system here.
type etcdSystem struct {
	c []*clientv3.Client
	n atomic.Uint64
}

func newEtcd(addr string) (*etcdSystem, error) {
	s := &etcdSystem{}
	for range 4 {
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + addr}})
		if err != nil {
			return nil, err
		}
		s.c = append(s.c, c)
	}
	return s, nil
}

func (s *etcdSystem) pick() *clientv3.Client { return s.c[s.n.Add(1)%uint64(len(s.c))] }

func (s *etcdSystem) put(ctx context.Context, key string, value []byte) error {
	_, err := s.pick().Put(ctx, key, string(value))
	return err
}

func (s *etcdSystem) get(ctx context.Context, key string) error {
	r, err := s.pick().Get(ctx, key)
	if err == nil && len(r.Kvs) != 1 {
		err = errors.New("absent")
	}
	return err
}

// redisSystem is go-redis: one command a round trip, a pool as large as the load.
type redisSystem struct{ c *goredis.Client }

func newRedis(addr string, pool int) *redisSystem {
	return &redisSystem{goredis.NewClient(&goredis.Options{Addr: addr, PoolSize: pool})}
}

func (s *redisSystem) put(ctx context.Context, key string, value []byte) error {
	return s.c.Set(ctx, key, value, 0).Err()
}

func (s *redisSystem) get(ctx context.Context, key string) error {
	_, err := s.c.Get(ctx, key).Bytes()
	return err
}

// rueidisSystem pipelines concurrent callers by itself.
type rueidisSystem struct{ c rueidis.Client }

func newRueidis(addr string) (*rueidisSystem, error) {
	c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, DisableCache: true})
	return &rueidisSystem{c}, err
}

func (s *rueidisSystem) put(ctx context.Context, key string, value []byte) error {
	return s.c.Do(ctx, s.c.B().Set().Key(key).Value(rueidis.BinaryString(value)).Build()).Error()
}

func (s *rueidisSystem) get(ctx context.Context, key string) error {
	_, err := s.c.Do(ctx, s.c.B().Get().Key(key).Build()).AsBytes()
	return err
}

// ourSystem is this store through its Go client: coalescing by default, one unary call a request with unary.
type ourSystem struct {
	c []*client.Client
	n atomic.Uint64
}

func newOurs(ctx context.Context, addr string, unary bool) (*ourSystem, error) {
	s := &ourSystem{}
	n := 1
	if unary {
		n = 4 // as etcd's
	}
	for range n {
		c, err := client.Dial(ctx, client.Config{Endpoints: []string{addr}, Unary: unary})
		if err != nil {
			return nil, fmt.Errorf("dial %s: %w", addr, err)
		}
		s.c = append(s.c, c)
	}
	return s, nil
}

func (s *ourSystem) pick() *client.Client {
	if len(s.c) == 1 {
		return s.c[0]
	}
	return s.c[s.n.Add(1)%uint64(len(s.c))]
}

func (s *ourSystem) put(ctx context.Context, key string, value []byte) error {
	_, err := s.pick().Put(ctx, key, value, nil)
	return err
}

func (s *ourSystem) get(ctx context.Context, key string) error {
	_, err := s.pick().Get(ctx, key, nil)
	return err
}
