package redislog

import (
	"context"
	"crypto/sha1"
	"crypto/tls"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"kvstore/components/wal/driver"
)

// script is a Lua script. Each can be repeated after a reply was lost: it finds what it did before.
type script struct{ source, sha string }

func newScript(source string) *script {
	sum := sha1.Sum([]byte(source)) // how Redis names scripts
	return &script{source: source, sha: hex.EncodeToString(sum[:])}
}

var (
	//go:embed scripts/chunk.lua
	chunkSource string
	//go:embed scripts/drop.lua
	dropSource string
	//go:embed scripts/fence.lua
	fenceSource string
	//go:embed scripts/head.lua
	headSource string
	//go:embed scripts/page.lua
	pageSource string
	//go:embed scripts/publish.lua
	publishSource string
	//go:embed scripts/put.lua
	putSource string
	//go:embed scripts/remove.lua
	removeSource string
	//go:embed scripts/swap.lua
	swapSource string
	//go:embed scripts/trim.lua
	trimSource string

	appendScript  = newScript(appendSource)
	chunkScript   = newScript(chunkSource)
	dropScript    = newScript(dropSource)
	fenceScript   = newScript(fenceSource)
	headScript    = newScript(headSource)
	pageScript    = newScript(pageSource)
	publishScript = newScript(publishSource)
	putScript     = newScript(putSource)
	removeScript  = newScript(removeSource)
	swapScript    = newScript(swapSource)
	trimScript    = newScript(trimSource)
)

// class is what an error says about the request that it answers.
type class uint8

const (
	unknown  class = iota // it may have been executed, or may be yet
	busy                  // it was not executed; the server may take it soon
	full                  // it was not executed: there is no memory, or no disk, for it
	refused               // it was not executed, and trying again is of no use
	noScript              // it was not executed: the server does not know the script
)

// busyPrefixes begin replies of servers that cannot take a request now: loading, failing over, resharding, overrun.
var busyPrefixes = []string{"LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "READONLY", "NOREPLICAS", "BUSY", "MOVED", "ASK", "ERR max number of clients"}

// refusedPrefixes begin replies that an operator must do something about.
var refusedPrefixes = []string{
	"NOAUTH", "WRONGPASS", "NOPERM", "DENIED", "CROSSSLOT", "ERR DB index", "ERR invalid password", "ERR Client sent AUTH", "ERR AUTH",
	"ERR unknown command", "ERR This instance has cluster support disabled", // it is not what the configuration says
}

// classify says what became of a request that ended with err.
func classify(err error) class {
	var reply redis.Error
	if errors.Is(err, redis.Nil) { // of a Sentinel: no script returns nothing
		return refused
	}
	if errors.As(err, &reply) {
		text := reply.Error()
		starts := func(prefix string) bool { return strings.HasPrefix(text, prefix) }
		switch {
		case starts("NOSCRIPT"):
			return noScript
		case starts("OOM"), starts("MISCONF") && strings.Contains(text, "No space left"):
			return full
		case starts("MISCONF"):
			return busy
		}
		for _, prefix := range busyPrefixes {
			if starts(prefix) {
				return busy
			}
		}
		for _, prefix := range refusedPrefixes {
			if starts(prefix) {
				return refused
			}
		}
		return unknown
	}
	var op *net.OpError
	var stranger *tls.CertificateVerificationError
	var plain tls.RecordHeaderError
	switch {
	case errors.As(err, &stranger), errors.As(err, &plain): // before anything was sent
		return refused
	case errors.As(err, &op) && op.Op == "dial", errors.Is(err, redis.ErrPoolTimeout), errors.Is(err, redis.ErrPoolExhausted):
		return busy
	}
	return unknown
}

// attempts tries a request until it is answered, by one rule for all verbs: what the server could not take and what may or
// may not have been executed is tried again, until Config.Settle has passed, the context ends or the engine closes.
type attempts struct {
	engine *Engine
	until  time.Time
	tried  int
	maybe  bool  // a try may have been executed
	why    error // why the last one was not answered, or not taken; only of appends
}

func (e *Engine) attempts() attempts {
	return attempts{engine: e, until: time.Now().Add(e.cfg.Settle)}
}

// pauses between tries grow from the first to the second.
const (
	firstPause = 2 * time.Millisecond
	lastPause  = 250 * time.Millisecond
)

// again waits before the next try, or returns the error to give up with.
func (a *attempts) again(ctx context.Context, err error) error {
	c := classify(err)
	if c == unknown {
		a.maybe = true
	}
	if c == refused || c == full || !time.Now().Before(a.until) {
		return a.final(err)
	}
	pause := min(firstPause<<min(a.tried, 10), lastPause)
	a.tried++
	timer := time.NewTimer(pause/2 + rand.N(pause/2))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return a.final(errors.Join(context.Cause(ctx), err))
	case <-a.engine.closing:
		return a.final(errors.Join(driver.ErrClosed, err))
	}
}

// final makes the error that tells the caller what became of the request. Once a try may have been executed nothing that comes
// later can say that nothing was written.
func (a *attempts) final(err error) error {
	switch c := classify(err); {
	case a.maybe:
		return &unknownError{err}
	case c == full:
		a.engine.space.suspect()
		return fmt.Errorf("%w: %w", driver.ErrNoSpace, err)
	default:
		return fmt.Errorf("%w: %w", driver.ErrRefused, err)
	}
}

// unknownError hides what the error that it holds says about the outcome: an errors.Is must not find a promise that nothing was written.
type unknownError struct{ err error }

func (u *unknownError) Error() string { return "no answer: " + u.err.Error() }

// Is lets callers tell why it was given up.
func (u *unknownError) Is(target error) bool {
	return (target == context.Canceled || target == context.DeadlineExceeded) && errors.Is(u.err, target)
}

// run executes a script, with tries as attempts has them.
func (e *Engine) run(ctx context.Context, s *script, keys []string, args ...any) (any, error) {
	all := make([]any, 0, 3+len(keys)+len(args))
	all = append(all, "evalsha", s.sha, len(keys))
	for _, k := range keys {
		all = append(all, k)
	}
	all = append(all, args...)
	tries := e.attempts()
	for {
		cmd := redis.NewCmd(ctx, all...)
		err := e.client.Process(ctx, cmd)
		if err == nil {
			return cmd.Val(), nil
		}
		if classify(err) == noScript {
			// Its text goes along, to the node that has the keys, which then knows it.
			all[0], all[1] = "eval", s.source
			continue
		}
		if err := tries.again(ctx, err); err != nil {
			return nil, err
		}
		all[0], all[1] = "evalsha", s.sha
	}
}

// runInt executes a script that returns a number.
func (e *Engine) runInt(ctx context.Context, s *script, keys []string, args ...any) (int64, error) {
	v, err := e.run(ctx, s, keys, args...)
	if err != nil {
		return 0, err
	}
	n, ok := v.(int64)
	if !ok {
		return 0, fmt.Errorf("redis: a script returned %T, not a number", v)
	}
	return n, nil
}

// runList executes a script that returns a list.
func (e *Engine) runList(ctx context.Context, s *script, keys []string, args ...any) ([]any, error) {
	v, err := e.run(ctx, s, keys, args...)
	if err != nil {
		return nil, err
	}
	list, ok := v.([]any)
	if !ok {
		return nil, fmt.Errorf("redis: a script returned %T, not a list", v)
	}
	return list, nil
}

// read does what changes nothing, with tries as attempts has them. do may be called several times.
func (e *Engine) read(ctx context.Context, do func(ctx context.Context) error) error {
	tries := e.attempts()
	for {
		err := do(ctx)
		if err == nil {
			return nil
		}
		if err := tries.again(ctx, err); err != nil {
			return err
		}
	}
}
