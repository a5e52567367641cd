package frontend

import (
	"errors"
	"sync/atomic"
	"time"

	"kvstore/components/kverr"
)

// Meter is who counts what the frontend does (package telemetry). The frontend asks it for its counters once, when it is made; what is told of
// requests holds no key, token or client.
type Meter interface {
	// Call returns the counter of a gRPC method, by its service's full name. lasting: a call is a stream that clients keep open, and its length
	// says nothing of how fast anything is answered.
	Call(service, method string, lasting bool) Counter
	// Operation returns the counter of an operation of a face that is not a call of gRPC, both in lower case.
	Operation(face, op string) Counter
	// Refused counts a call that was turned away at the door.
	Refused(kind kverr.Kind)
}

// Counter counts requests of one kind that have ended. It is called on the path of every request, by many goroutines: it must neither
// block nor allocate.
type Counter interface {
	// Done counts n requests that succeeded, each of which took as long.
	Done(n int, took time.Duration)
	// Failed counts n that ended with an error of a kind.
	Failed(n int, took time.Duration, kind kverr.Kind)
}

// Stats is what a frontend has under way.
type Stats struct {
	Calls      int64 // under way, without streams that last
	Pipelines  int64 // streams
	Operations int64 // of pipelines, taken and not answered
	Watches    int64 // open, however many streams they share
	Resyncs    int64 // how often watches have been told their state anew so far
	// ClientLimited and NamespaceLimited are requests that were refused so far because their client, or their namespace, had as many as allowed.
	ClientLimited, NamespaceLimited int64
	// Lookups and Reads are of blocks of prompts that were asked for so far. A Lookup for a prefix misses all behind the first miss; of a Read that
	// stops at a miss those behind it were not asked for.
	Lookups, Reads Found
}

// Found is how many of what was asked for were there.
type Found struct{ Hits, Misses int64 }

// foundCount counts what becomes Found.
type foundCount struct{ hits, misses atomic.Int64 }

func (f *foundCount) add(hits, misses int) {
	f.hits.Add(int64(hits))
	f.misses.Add(int64(misses))
}

func (f *foundCount) load() Found { return Found{Hits: f.hits.Load(), Misses: f.misses.Load()} }

// Stats tells what is under way now.
func (s *Server) Stats() Stats {
	return Stats{
		Calls: s.calls.Load(), Pipelines: s.pipelines.Load(), Operations: s.operations.Load(), Watches: s.watches.Load(), Resyncs: s.resyncs.Load(),
		ClientLimited: s.limited.client.Load(), NamespaceLimited: s.limited.namespace.Load(),
		Lookups: s.lookups.load(), Reads: s.reads.load(),
	}
}

// lasting are the streams that clients keep open.
var lasting = map[string]bool{"Pipeline": true, "Watch": true, "Watches": true}

// The counters of a pipeline's operations are found by verb.
var verbNames = [...]string{verbNone: "invalid", verbPut: "put", verbGet: "get", verbDelete: "delete"}

// since is the server's age: a clock that costs half of the time of day, and never goes back.
func (s *Server) since() time.Duration { return time.Since(s.epoch) }

// count counts one request that began at an age of the server.
func (s *Server) count(c Counter, began time.Duration, err error) {
	took := s.since() - began
	if err == nil {
		c.Done(1, took)
		return
	}
	c.Failed(1, took, kindOf(err))
}

// kindOf is kverr.KindOf, for nothing where the error is the one that is common.
func kindOf(err error) kverr.Kind {
	if err == statusKeyAbsent || err == error(errKeyAbsent) { //nolint:errorlint // these very ones
		return kverr.NotFound
	}
	if e, ok := errors.AsType[*kverr.Error](err); ok {
		return e.Kind
	}
	return kverr.KindOf(err)
}

// alike are operations of a pipeline that are counted together: they came in one frame and go out in one.
type alike struct {
	n      int
	began  time.Duration
	verb   verb
	failed bool
	kind   kverr.Kind
}

// tally counts the operations of a batch, the like of each other in a row together.
type tally struct {
	server *Server
	now    time.Duration
	last   alike
}

func (t *tally) add(o *operation) {
	a := alike{n: t.last.n, began: o.frame.began, verb: o.req.verb}
	if o.err != nil {
		a.failed, a.kind = true, o.err.Kind
	}
	if a != t.last {
		t.flush()
		a.n = 0
		t.last = a
	}
	t.last.n++
}

func (t *tally) flush() {
	a := &t.last
	if a.n == 0 {
		return
	}
	c := t.server.verbs[a.verb]
	if a.failed {
		c.Failed(a.n, t.now-a.began, a.kind)
	} else {
		c.Done(a.n, t.now-a.began)
	}
}

// uncounted is the meter where nobody counts.
type uncounted struct{}

func (uncounted) Call(string, string, bool) Counter           { return uncounted{} }
func (uncounted) Operation(string, string) Counter            { return uncounted{} }
func (uncounted) Refused(kverr.Kind)                          {}
func (uncounted) Done(int, time.Duration)                     {}
func (uncounted) Failed(n int, _ time.Duration, k kverr.Kind) {}
