// Package fault wraps any log engine so that tests can make it fail: at the n-th call of a verb, before the work or after
// it (a lost reply), or hold the call back until it is released (a frozen writer). It is not a mock: what is not told to fail
// is done by the engine underneath.
//
//	e := fault.Wrap(engine)
//	e.Add(fault.Rule{Verb: fault.Append, Nth: 3, Err: driver.ErrNoSpace})   // the third append is refused
//	e.Add(fault.Rule{Verb: fault.Swap, Err: io.ErrUnexpectedEOF, After: true}) // the next swap's reply is lost
//	frozen := e.Add(fault.Rule{Verb: fault.Append, Freeze: true})
//	... frozen.Thaw()
package fault

import (
	"context"
	"io"
	"sync"
	"time"

	"kvstore/components/wal/driver"
)

// Verb is a method of driver.Engine.
type Verb uint16

// Verbs. They can be or-ed; Any is all of them.
const (
	Manifest Verb = 1 << iota
	Swap
	Fence
	Append
	Read
	Trim
	Put
	Get
	Delete
	List
	Remove
	Any Verb = 1<<iota - 1
)

// Rule says what goes wrong.
type Rule struct {
	Verb  Verb
	Shard string // "" = any
	// Nth is the call it begins with, counted from 1 among the calls that match since the rule was added. 0 is 1.
	Nth int
	// Times is how many calls it hits; 0 is 1, -1 means all from Nth on.
	Times int
	// Err is what the call gives. With nil the call is only observed, or frozen.
	Err error
	// After does the work first and then gives Err: a lost reply.
	After bool
	// Freeze holds the call back, before the work (or with After before the reply), until Thaw. A call with a context gives up
	// when that ends.
	Freeze bool
}

// Armed is a rule that an Engine has. Its methods may be called from any goroutine.
type Armed struct {
	rule   Rule
	thawed chan struct{}
	once   sync.Once
	hit    chan struct{} // closed at the first hit

	mu    sync.Mutex // guards seen and hits
	seen  int
	hits  int
	ended bool
}

// Thaw lets the calls that the rule froze go on, and freezes no more.
func (a *Armed) Thaw() { a.once.Do(func() { close(a.thawed) }) }

// Hit is closed when the rule strikes first.
func (a *Armed) Hit() <-chan struct{} { return a.hit }

// Hits is how often the rule has struck.
func (a *Armed) Hits() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.hits
}

// Seen is how many calls matched verb and shard, struck or not.
func (a *Armed) Seen() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.seen
}

// Remove takes the rule back and thaws what it froze.
func (a *Armed) Remove() {
	a.mu.Lock()
	a.ended = true
	a.mu.Unlock()
	a.Thaw()
}

// strike counts a call and tells whether the rule hits it.
func (a *Armed) strike(v Verb, shard string) bool {
	if a.rule.Verb&v == 0 || a.rule.Shard != "" && a.rule.Shard != shard {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return false
	}
	a.seen++
	first := max(a.rule.Nth, 1)
	if a.seen < first || a.rule.Times >= 0 && a.seen >= first+max(a.rule.Times, 1) {
		return false
	}
	a.hits++
	if a.hits == 1 {
		close(a.hit)
	}
	return true
}

// Engine is an engine with rules. The zero value is not usable; see Wrap.
type Engine struct {
	inner driver.Engine

	mu    sync.Mutex // guards rules
	rules []*Armed

	frozen sync.WaitGroup // appends held back
}

var _ driver.Engine = (*Engine)(nil)

// Wrap returns an Engine over inner, with no rules.
func Wrap(inner driver.Engine) *Engine { return &Engine{inner: inner} }

// Add arms a rule. When several hit one call, the first one added wins.
func (e *Engine) Add(r Rule) *Armed {
	a := &Armed{rule: r, thawed: make(chan struct{}), hit: make(chan struct{})}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rules = append(e.rules, a)
	return a
}

// Clear takes all rules back.
func (e *Engine) Clear() {
	e.mu.Lock()
	rules := e.rules
	e.rules = nil
	e.mu.Unlock()
	for _, a := range rules {
		a.Remove()
	}
}

// match returns the rule that hits this call. Every rule counts the call.
func (e *Engine) match(v Verb, shard string) *Armed {
	e.mu.Lock()
	rules := e.rules
	e.mu.Unlock()
	var hit *Armed
	for _, a := range rules {
		if a.strike(v, shard) && hit == nil {
			hit = a
		}
	}
	return hit
}

// do makes one call under the rules.
func (e *Engine) do(ctx context.Context, v Verb, shard string, work func() error) error {
	a := e.match(v, shard)
	if a == nil {
		return work()
	}
	if a.rule.After {
		if err := work(); err != nil {
			return err
		}
	}
	if a.rule.Freeze {
		select {
		case <-a.thawed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if a.rule.Err != nil || a.rule.After {
		return a.rule.Err
	}
	return work()
}

// Name is that of the engine underneath.
func (e *Engine) Name() string { return e.inner.Name() }

// Term is that of the engine underneath.
func (e *Engine) Term() time.Duration { return e.inner.Term() }

// Space is that of the engine underneath.
func (e *Engine) Space() (free, reserve int64) { return e.inner.Space() }

// Close waits for appends that are held back (Clear thaws them) and closes the engine underneath.
func (e *Engine) Close() error {
	e.frozen.Wait()
	return e.inner.Close()
}

// Manifest implements driver.Engine.
func (e *Engine) Manifest(ctx context.Context, shard string) (data []byte, tag driver.Tag, err error) {
	err = e.do(ctx, Manifest, shard, func() (err error) {
		data, tag, err = e.inner.Manifest(ctx, shard)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	return data, tag, nil
}

// SwapManifest implements driver.Engine.
func (e *Engine) SwapManifest(ctx context.Context, shard string, old driver.Tag, data []byte) (tag driver.Tag, err error) {
	err = e.do(ctx, Swap, shard, func() (err error) {
		tag, err = e.inner.SwapManifest(ctx, shard, old, data)
		return err
	})
	if err != nil {
		return "", err
	}
	return tag, nil
}

// Fence implements driver.Engine.
func (e *Engine) Fence(ctx context.Context, shard string, epoch driver.Epoch, record func(seq, previousEpoch uint64) []byte) (seq uint64, err error) {
	err = e.do(ctx, Fence, shard, func() (err error) {
		seq, err = e.inner.Fence(ctx, shard, epoch, record)
		return err
	})
	if err != nil {
		return 0, err
	}
	return seq, nil
}

// Append implements driver.Engine.
func (e *Engine) Append(shard string, epoch driver.Epoch, f driver.Frame, done func(error)) {
	a := e.match(Append, shard)
	switch {
	case a == nil:
		e.inner.Append(shard, epoch, f, done)
	case a.rule.After:
		e.frozen.Add(1)
		e.inner.Append(shard, epoch, f, func(err error) {
			if !a.rule.Freeze {
				defer e.frozen.Done()
				done(firstError(err, a.rule.Err))
				return
			}
			go func() { // the engine's committer must not be held
				defer e.frozen.Done()
				<-a.thawed
				done(firstError(err, a.rule.Err))
			}()
		})
	default:
		e.frozen.Add(1)
		go func() {
			defer e.frozen.Done()
			if a.rule.Freeze {
				<-a.thawed
			}
			if a.rule.Err != nil {
				done(a.rule.Err)
				return
			}
			finished := make(chan struct{})
			e.inner.Append(shard, epoch, f, func(err error) {
				defer close(finished)
				done(err)
			})
			<-finished
		}()
	}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Read implements driver.Engine.
func (e *Engine) Read(ctx context.Context, shard string, from uint64, fn func(driver.Frame) error) error {
	return e.do(ctx, Read, shard, func() error { return e.inner.Read(ctx, shard, from, fn) })
}

// Trim implements driver.Engine.
func (e *Engine) Trim(ctx context.Context, shard string, epoch driver.Epoch, below uint64) error {
	return e.do(ctx, Trim, shard, func() error { return e.inner.Trim(ctx, shard, epoch, below) })
}

// PutObject implements driver.Engine.
func (e *Engine) PutObject(ctx context.Context, shard, name string, size int64, r io.Reader) error {
	return e.do(ctx, Put, shard, func() error { return e.inner.PutObject(ctx, shard, name, size, r) })
}

// GetObject implements driver.Engine.
func (e *Engine) GetObject(ctx context.Context, shard, name string, off int64, p []byte) error {
	return e.do(ctx, Get, shard, func() error { return e.inner.GetObject(ctx, shard, name, off, p) })
}

// DeleteObject implements driver.Engine.
func (e *Engine) DeleteObject(ctx context.Context, shard, name string) error {
	return e.do(ctx, Delete, shard, func() error { return e.inner.DeleteObject(ctx, shard, name) })
}

// ListObjects implements driver.Engine.
func (e *Engine) ListObjects(ctx context.Context, shard, prefix string, fn func(name string, size int64) error) error {
	return e.do(ctx, List, shard, func() error { return e.inner.ListObjects(ctx, shard, prefix, fn) })
}

// RemoveShard implements driver.Engine.
func (e *Engine) RemoveShard(ctx context.Context, shard string) error {
	return e.do(ctx, Remove, shard, func() error { return e.inner.RemoveShard(ctx, shard) })
}
