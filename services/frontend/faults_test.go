package frontend

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kvstore/actors/shard"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// broken fails in a way that nobody foresaw.
type broken struct{ Shards }

var errBroken = errors.New("the disk said something odd")

func (broken) Read(_ context.Context, _ string, queries ...*shard.Query) {
	for _, q := range queries {
		q.Done(q, errBroken)
	}
}

func (broken) Do(_ context.Context, _ string, cmds ...*shard.Command) {
	for _, c := range cmds {
		c.Release(errBroken)
	}
}

// TestOwnFaultsAreLogged: the user is told no cause, the log is; in every way that an error can go, and not once for each.
func TestOwnFaultsAreLogged(t *testing.T) {
	var out bytes.Buffer // written under the handler's lock, read when no call is under way
	var clock atomic.Int64
	clock.Store(time.Now().UnixMilli())
	cfg := Config{Log: slog.New(slog.NewTextHandler(&out, nil)), Now: func() time.Time { return time.UnixMilli(clock.Load()) }}
	r := newRig(t, cfg, func(under Shards) Shards { return broken{under} })
	ctx := testContext(t)
	prompts := kvv1.NewPromptCacheServiceClient(r.Conn)
	k, v := []byte("secret-key"), []byte("secret-value")
	logged := func() string {
		text := out.String()
		out.Reset()
		clock.Add(10_000)
		return text
	}
	for call, do := range map[string]func() error{
		"Get": func() error { _, err := r.KV.Get(ctx, &kvv1.GetRequest{Get: &kvv1.GetOp{Key: k}}); return err },
		"Put": func() error {
			_, err := r.KV.Put(ctx, &kvv1.PutRequest{Put: &kvv1.PutOp{Key: k, Value: v}})
			return err
		},
		"BatchPut": func() error {
			_, err := r.KV.BatchPut(ctx, &kvv1.BatchPutRequest{Puts: []*kvv1.PutOp{{Key: k, Value: v}}})
			return err
		},
		"BatchGet": func() error {
			_, err := r.KV.BatchGet(ctx, &kvv1.BatchGetRequest{Gets: []*kvv1.GetOp{{Key: k}}})
			return err
		},
		"BatchDelete": func() error {
			_, err := r.KV.BatchDelete(ctx, &kvv1.BatchDeleteRequest{Deletes: []*kvv1.DeleteOp{{Key: k}}})
			return err
		},
		"GetStream": func() error {
			s, err := r.KV.GetStream(ctx, &kvv1.GetStreamRequest{Key: k})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
		"Pipeline": func() error {
			s, err := r.KV.Pipeline(ctx)
			if err != nil {
				return err
			}
			op := &kvv1.PipelineRequest_Op{Id: 1, Op: &kvv1.PipelineRequest_Op_Put{Put: &kvv1.PutOp{Key: k, Value: v}}}
			if err := s.Send(&kvv1.PipelineRequest{Ops: []*kvv1.PipelineRequest_Op{op}}); err != nil {
				return err
			}
			if err := s.CloseSend(); err != nil {
				return err
			}
			_, err = s.Recv()
			return err
		},
		"Lookup": func() error {
			_, err := prompts.Lookup(ctx, &kvv1.LookupRequest{Namespace: "prompts", Blocks: []*kvv1.BlockRef{{Id: k}}})
			return err
		},
	} {
		if err := do(); status.Code(err) != codes.OK && status.Convert(err).Message() != "internal error" {
			t.Errorf("%s: the user is told %v", call, err)
		}
		text := logged()
		if strings.Count(text, "\n") != 1 || !strings.Contains(text, "call="+call+" ") || !strings.Contains(text, errBroken.Error()) {
			t.Errorf("%s logged %q", call, text)
		}
		if strings.Contains(text, "secret") {
			t.Errorf("%s logged what belongs to the user: %q", call, text)
		}
	}

	for range 50 {
		_, _ = r.KV.Get(ctx, &kvv1.GetRequest{Get: &kvv1.GetOp{Key: k}})
	}
	_, _ = r.KV.Get(ctx, &kvv1.GetRequest{Get: &kvv1.GetOp{}}) // the user's fault
	_, _ = r.KV.Get(ctx, &kvv1.GetRequest{Namespace: "no-such", Get: &kvv1.GetOp{Key: k}})
	if text := logged(); strings.Count(text, "\n") != 1 {
		t.Errorf("50 failures in a moment logged\n%s", text)
	}
	_, _ = r.KV.Get(ctx, &kvv1.GetRequest{Get: &kvv1.GetOp{Key: k}})
	if text := logged(); !strings.Contains(text, "not_logged_before=49") {
		t.Errorf("what was left out is not told: %q", text)
	}
}
