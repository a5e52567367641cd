package dataplane

import (
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
)

// call is one question to a shard on its way, from a caller in this process until its outcome. It comes from a pool.
type call struct {
	kind     uint8 // field of Call.what, or callAwait
	cmd      *shard.Command
	query    *shard.Query
	value    *valueCall  // put_values, read_part, callAwait
	refs     []shard.Ref // drop_values
	size     int         // at most its length when encoded
	deadline int64       // when the caller stops waiting, nanoseconds since the Unix epoch; 0 = not told
	until    int64       // when it is given up while it looks for its shard
	maybe    bool        // an earlier try of the command may have been executed
	route    *shardRoute // set when it is sent first
	target   *target     // where it was sent last
	follow   *follow     // nil: nobody follows
	next     *call
}

// callAwait is a call that is not sent: its outcome is that the shard's place is known.
const callAwait = 255

var calls = sync.Pool{New: func() any { return new(call) }}

func newCall() *call { return calls.Get().(*call) }

func (k *call) free() {
	*k = call{}
	calls.Put(k)
}

// callList is a list of calls in order.
type callList struct{ first, last *call }

func (l *callList) add(k *call) {
	if k.next = nil; l.last == nil {
		l.first = k
	} else {
		l.last.next = k
	}
	l.last = k
}

// join appends another list.
func (l *callList) join(o callList) {
	if o.first == nil {
		return
	}
	if l.last == nil {
		l.first = o.first
	} else {
		l.last.next = o.first
	}
	l.last = o.last
}

func (l *callList) empty() bool { return l.first == nil }

// release ends all.
func (l *callList) release(err *kverr.Error) {
	for k := l.first; k != nil; {
		next := k.next
		k.release(err)
		k = next
	}
}

// release ends a call with an error that says what is known: nil only where the outcome is in its place.
func (k *call) release(err *kverr.Error) {
	if k.follow != nil {
		k.unfollow(err)
	}
	if k.maybe && err != nil && err.Kind.NotApplied() {
		err = unknownAfter(err)
	}
	var as error
	if err != nil {
		as = err
	}
	switch k.kind {
	case callCommand:
		cmd := k.cmd
		k.free()
		cmd.Release(as)
	case callQuery:
		q := k.query
		k.free()
		q.Release(as)
	case callDropValues:
		k.free()
	default:
		v := k.value
		k.free()
		v.finish(err)
	}
}

// unknownAfter is the error of a command of which an earlier try may have been executed, and a later one was not.
func unknownAfter(err *kverr.Error) *kverr.Error {
	return &kverr.Error{
		Kind: kverr.OutcomeUnknown, Op: "reach the shard", Message: "the write was sent and its outcome never came back", Err: err,
	}
}

// repeatable tells whether a call that may have been executed may be executed again: reads, commands that are remembered by their
// identity, and those that change nothing the second time. What names references is not: those went with the stream.
func (k *call) repeatable() bool {
	if k.kind != callCommand {
		return true
	}
	if k.named() {
		return false
	}
	switch k.cmd.Op {
	case shard.OpLookup, shard.OpIndex, shard.OpRelease, shard.OpTouch, shard.OpUnindex, shard.OpDropNamespace:
		return true
	}
	return k.cmd.ID.Client != [16]byte{}
}

// named tells whether the call is a command that names references.
func (k *call) named() bool {
	if k.kind != callCommand || !k.cmd.NamesRefs() {
		return false
	}
	for range k.cmd.Refs {
		return true
	}
	return false
}

// lost takes a call whose stream broke: sent tells whether it may have left.
func (k *call) lost(sent bool, why *kverr.Error, again *callList) {
	switch {
	case k.kind == callDropValues:
		k.free() // the references went with the stream
	case !sent && k.named():
		k.release(errNotHeld)
	case !sent:
		again.add(k)
	case !k.repeatable():
		k.maybe = true
		k.release(why)
	default:
		k.maybe = k.kind == callCommand
		again.add(k)
	}
}

// failed takes a call that a host answered with a failure. Again tells that it is to be sent once more.
func (k *call) failed(err *kverr.Error, again *callList) {
	switch {
	case err.Kind == kverr.Moved || err.Kind == kverr.Fenced:
		if k.named() {
			k.release(errNotHeld)
			return
		}
		again.add(k)
	case err.Kind == kverr.OutcomeUnknown && k.repeatable():
		k.maybe = k.kind == callCommand
		again.add(k)
	case k.maybe && err.Kind.NotApplied() && err.Kind.Temporary() && err.Kind != kverr.Overloaded && err.Kind != kverr.Exhausted:
		again.add(k) // the try before is what must be found out, but not at once of a host that has too much to do, by sending it all again
	default:
		k.release(err)
	}
}

// outcome takes the outcome of a call as a host sent it. Calls that are to be sent once more are added to again.
func (k *call) outcome(field uint8, b []byte, keep *arena, again *callList) {
	var err error
	switch {
	case field == outcomeFailure:
		var e *kverr.Error
		if e, err = shard.DecodeFailure(b); err == nil {
			k.failed(e, again)
			return
		}
	case field == outcomeResult && k.kind == callCommand:
		k.cmd.Result = shard.Result{}
		if err = shard.DecodeResult(b, &k.cmd.Result); err == nil {
			k.result(again)
			return
		}
	case field == outcomeAnswer && k.kind == callQuery:
		if err = shard.DecodeAnswer(keep.copy(b), k.query); err == nil {
			k.release(nil)
			return
		}
	case field == outcomeRefs && k.kind == callPutValues:
		if k.value.takeRefs(b, k.route) {
			k.release(nil)
			return
		}
	case field == outcomePart && k.kind == callReadPart:
		if k.value.takePart(b) {
			k.release(nil)
			return
		}
	}
	e := kverr.Wrap(kverr.Unknown, "read the outcome", err)
	if err == nil {
		e = kverr.New(kverr.Unknown, "read the outcome", "the host answered something else than was asked")
	}
	k.release(e)
}

// result takes the outcome that the shard's machine told. Refusals that it does not remember say nothing about an earlier try.
func (k *call) result(again *callList) {
	e := k.cmd.Result.Err
	if k.maybe && e != nil && e.Kind != kverr.VersionMismatch && e.Kind != kverr.AlreadyExists && e.Kind.NotApplied() {
		k.cmd.Result = shard.Result{}
		if e.Kind.Temporary() {
			again.add(k)
		} else {
			k.release(e)
		}
		return
	}
	k.release(nil)
}

// errLate is for callers who have stopped waiting.
var errLate = &kverr.Error{Kind: kverr.DeadlineExceeded, Op: "reach the shard", Message: "the deadline passed first"}

// late tells whether a call's caller has stopped waiting, at a time in nanoseconds since the Unix epoch.
func (k *call) late(now int64) bool { return k.deadline != 0 && k.deadline <= now }

// remaining is what a call tells of its caller's deadline, in milliseconds; 0 = nothing.
func (k *call) remaining(now time.Time) int64 {
	if k.deadline == 0 {
		return 0
	}
	return max(1, (k.deadline-now.UnixNano())/int64(time.Millisecond))
}

// append encodes a call. It is false when its caller has gone, so that it is not to be sent.
func (k *call) append(w *buffer, id, route uint32, now time.Time) bool {
	w.grow(k.size + 160)
	from := len(w.b)
	outer := w.begin(fieldCalls)
	w.number(callID, uint64(id))
	w.number(callRoute, uint64(route))
	w.number(callTimeout, uint64(k.remaining(now)))
	if k.follow != nil {
		w.bytes(callFollow, k.follow.ids[:])
	}
	at := w.begin(protowire.Number(k.kind))
	sent := true
	switch k.kind {
	case callCommand:
		w.b = shard.AppendCommand(w.b, k.cmd)
	case callQuery:
		w.b = shard.AppendQuery(w.b, k.query)
	case callDropValues:
		w.b = shard.AppendRefs(w.b, 1, k.refs)
	default:
		sent = k.value.append(w, k.kind)
	}
	if !sent {
		w.b = w.b[:from]
		return false
	}
	w.end(at)
	w.end(outer)
	return true
}

// arena keeps bytes of answers: they belong to whoever asked, so the frame that they came in cannot be used again under them.
// Allocating for each would cost more than it saves.
type arena struct{ free []byte }

const arenaBytes = 16 << 10

func (a *arena) copy(b []byte) []byte {
	if len(b) > arenaBytes/4 {
		return append([]byte(nil), b...)
	}
	if len(b) > len(a.free) {
		a.free = make([]byte, arenaBytes)
	}
	n := copy(a.free, b)
	out := a.free[:n:n]
	a.free = a.free[n:]
	return out
}
