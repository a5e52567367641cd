package host

import (
	"sync"
	"time"
)

// Way is the way of a command or a query that somebody follows: of a request that is traced. Almost all have none, and cost a comparison with nil.
// Machines know nothing of it. It is safe for any number of goroutines; what is told after its end changes nothing.
type Way struct {
	// Trace and Span name who follows, as OpenTelemetry does: what happens here is a part of that span.
	Trace [16]byte
	Span  [8]byte

	mu    sync.Mutex
	stops Stops              // guarded by mu
	ended func(Stops, error) // guarded by mu; nil: nobody asked, or it is over
}

// Stops is when an actor did what with a followed command. Times that are zero are those of what did not happen: a read is not appended, nor is a
// condition that failed.
type Stops struct {
	Trace [16]byte // of the Way
	Span  [8]byte  // likewise
	Shard string
	Op    string // what was asked

	Taken     time.Time // it came to the host
	Stepped   time.Time // the machine took it; before, it queued
	Appending time.Time // its append began; before, it waited for the one in flight
	Durable   time.Time // its append was durable

	Commands int // that the append made durable together
	Bytes    int // of the append
}

// Take notes that a host has the command, and who is told when its outcome leaves. Only the first host that takes it is told.
func (w *Way) Take(shard, op string, now time.Time, ended func(Stops, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended == nil && w.stops.Taken.IsZero() {
		w.stops = Stops{Trace: w.Trace, Span: w.Span, Shard: shard, Op: op, Taken: now}
		w.ended = ended
	}
}

// End tells whoever followed that the outcome leaves.
func (w *Way) End(err error) {
	w.mu.Lock()
	ended, stops := w.ended, w.stops
	w.ended = nil
	w.mu.Unlock()
	if ended != nil {
		ended(stops, err)
	}
}

func (w *Way) stepped(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stops.Stepped = now
}

func (w *Way) appending(now time.Time, commands, bytes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stops.Appending, w.stops.Commands, w.stops.Bytes = now, commands, bytes
}

func (w *Way) durable(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stops.Durable = now
}
