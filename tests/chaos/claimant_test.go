package chaos

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/ring"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// claimant writes and reads one shard at one host's data plane, and follows nobody: what it is told is what this host believes.
type claimant struct {
	host    int    // number, from 1
	name    string // its keys have it
	address string
	shardID string
	tag     string // keys with it are in the shard
	began   time.Time

	mu   sync.Mutex
	told []told // guarded by mu
}

// told is what a host said to one call.
type told struct {
	host       int
	write      bool
	key        string
	begin, end time.Duration
	revision   uint64     // of the write, or of the state that was read
	kind       kverr.Kind // why not; Unknown with a revision when it was done
	why        string     // in the host's words
}

// done tells that the host did what it was asked for.
func (o told) done() bool { return o.revision > 0 }

const (
	claimPace    = 40 * time.Millisecond
	defaultSpace = 1 // namespace default of keyspace default
)

// run calls the host until ctx ends. A stream that breaks is opened again.
func (c *claimant) run(ctx context.Context, t *testing.T) {
	conn, err := grpc.NewClient(c.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	for n := 0; ctx.Err() == nil; {
		n = c.converse(ctx, conn, n)
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// converse makes calls over one stream, from number n on, until it breaks, and returns the next number.
func (c *claimant) converse(ctx context.Context, conn *grpc.ClientConn, n int) int {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := dataplanev1.NewShardServiceClient(conn).Exchange(ctx)
	if err != nil {
		return n
	}
	err = stream.Send(&dataplanev1.ExchangeRequest{Hello: &dataplanev1.ExchangeRequest_Hello{Version: 1}})
	if err == nil {
		_, err = stream.Recv()
	}
	if err == nil {
		// Epoch 1: the host is not told of any owner after it.
		err = stream.Send(&dataplanev1.ExchangeRequest{Routes: []*dataplanev1.ExchangeRequest_Route{{Number: 0, Shard: c.shardID, Epoch: 1}}})
	}
	for ; err == nil; n++ {
		if err = c.call(stream, uint32(n)); err == nil {
			select {
			case <-ctx.Done():
				return n
			case <-time.After(claimPace):
			}
		}
	}
	return n + 1
}

// call writes, or reads every third time.
func (c *claimant) call(stream dataplanev1.ShardService_ExchangeClient, id uint32) error {
	o := told{host: c.host, write: id%3 != 0, key: fmt.Sprintf("{%s}/%s/%d", c.tag, c.name, id)}
	what := &dataplanev1.ExchangeRequest_Call{Id: id}
	slot := ring.Slot("default", []byte(c.tag))
	if o.write {
		what.What = &dataplanev1.ExchangeRequest_Call_Command{Command: &dataplanev1.ShardCommand{
			Op: uint32(shard.OpPut), Namespace: defaultSpace,
			Put: &dataplanev1.ShardCommand_Put{Key: []byte(o.key), Value: []byte(o.key), Slot: uint32(slot)},
		}}
	} else {
		what.What = &dataplanev1.ExchangeRequest_Call_Query{Query: &dataplanev1.ShardQuery{
			Op: uint32(shard.QueryGet), Namespace: defaultSpace, Key: []byte(o.key),
		}}
	}
	o.begin = time.Since(c.began)
	if err := stream.Send(&dataplanev1.ExchangeRequest{Calls: []*dataplanev1.ExchangeRequest_Call{what}}); err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if m.Closing {
			return errors.New("the host is closing")
		}
		i := slices.IndexFunc(m.Outcomes, func(x *dataplanev1.ExchangeResponse_Outcome) bool { return x.Id == id })
		if i < 0 {
			continue
		}
		o.end = time.Since(c.began)
		out := m.Outcomes[i]
		failure := out.GetFailure()
		switch {
		case failure != nil:
		case out.GetResult() != nil:
			failure, o.revision = out.GetResult().Failure, out.GetResult().Revision
		case out.GetAnswer() != nil:
			failure, o.revision = out.GetAnswer().Failure, out.GetAnswer().Revision
		}
		if failure != nil {
			o.kind, o.why, o.revision = kverr.Kind(failure.Kind), string(failure.Message), 0
		}
		c.mu.Lock()
		c.told = append(c.told, o)
		c.mu.Unlock()
		return nil
	}
}

// heard is what the claimant was told so far.
func (c *claimant) heard() []told {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.told)
}
