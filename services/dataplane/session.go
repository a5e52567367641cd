package dataplane

import (
	"sync"
	"time"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
)

type sessionID [16]byte

// session keeps the references that were handed out over one stream and that no command has named. Whoever was to name them is gone
// with the stream, and then they are dropped: nothing is stored for ever because a frontend died between two calls. A command
// is let through once for each reference, so that one which is repeated after its stream broke cannot bring back a value that was
// dropped.
type session struct {
	id   sessionID
	host Host
	keep time.Duration // when not 0: references are dropped after so long

	mu   sync.Mutex
	over bool                // guarded by mu, as is all below
	refs map[provisional]int // how often each was handed out
	old  []aged              // with keep: in order of time
	wake *time.Timer         // with keep: for the first of old
}

type provisional struct {
	shard string
	ref   shard.Ref
}

type aged struct {
	provisional
	until time.Time
}

func newSession(host Host) *session {
	return &session{id: newSessionID(), host: host, refs: make(map[provisional]int)}
}

var (
	errSessionOver = &kverr.Error{Kind: kverr.Unavailable, Op: "write values", Message: "the stream that the values were to live with is over; write them again", RetryAfterMS: 1}
	errTooMany     = &kverr.Error{Kind: kverr.Overloaded, Op: "write values", Message: "too many values wait for the commands that name them", RetryAfterMS: 100}
	errNotHeld     = &kverr.Error{Kind: kverr.Unavailable, Op: "name a value", Message: "the value was given up since it was written; write it again", RetryAfterMS: 1}
)

// hold takes references that are being handed out. When it refuses, they are dropped.
func (s *session) hold(shardID string, refs []shard.Ref) *kverr.Error {
	s.mu.Lock()
	var err *kverr.Error
	switch {
	case s.over:
		err = errSessionOver
	case len(s.refs)+len(refs) > maxProvisional:
		err = errTooMany
	default:
		for i := range refs {
			s.refs[provisional{shardID, refs[i]}]++
		}
		if s.keep > 0 {
			s.age(shardID, refs)
		}
	}
	s.mu.Unlock()
	if err != nil {
		s.host.DropValues(shardID, refs...)
	}
	return err
}

// let lets a command go that names only references of the session, which are the command's from then on. A command that names others is
// refused; those of the session that it names stay.
func (s *session) let(shardID string, c *shard.Command) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := true
	for ref := range c.Refs {
		held = held && s.refs[provisional{shardID, *ref}] > 0
	}
	if !held {
		return false
	}
	for ref := range c.Refs {
		s.forget(provisional{shardID, *ref})
	}
	return true
}

// forget takes one reference off. Mutex held.
func (s *session) forget(p provisional) bool {
	switch n := s.refs[p]; n {
	case 0:
		return false
	case 1:
		delete(s.refs, p)
	default:
		s.refs[p] = n - 1
	}
	return true
}

// drop gives up those of some references that are still the session's.
func (s *session) drop(shardID string, refs []shard.Ref) {
	s.mu.Lock()
	var mine []shard.Ref
	for i := range refs {
		if s.forget(provisional{shardID, refs[i]}) {
			mine = append(mine, refs[i])
		}
	}
	s.mu.Unlock()
	if len(mine) > 0 {
		s.host.DropValues(shardID, mine...)
	}
}

// close gives up all that is left, and what comes later.
func (s *session) close() {
	s.mu.Lock()
	s.over = true
	refs := s.refs
	s.refs, s.old = nil, nil
	if s.wake != nil {
		s.wake.Stop()
	}
	s.mu.Unlock()
	for p, n := range refs {
		for range n {
			s.host.DropValues(p.shard, p.ref)
		}
	}
}

// age notes when references were handed out. Mutex held.
func (s *session) age(shardID string, refs []shard.Ref) {
	until := time.Now().Add(s.keep)
	if len(s.old) == 0 {
		if s.wake == nil {
			s.wake = time.AfterFunc(s.keep, s.expire)
		} else {
			s.wake.Reset(s.keep)
		}
	}
	for i := range refs {
		s.old = append(s.old, aged{provisional{shardID, refs[i]}, until})
	}
}

// expire drops references that have waited too long.
func (s *session) expire() {
	var late []provisional
	now := time.Now()
	s.mu.Lock()
	for len(s.old) > 0 && !now.Before(s.old[0].until) {
		if s.forget(s.old[0].provisional) {
			late = append(late, s.old[0].provisional)
		}
		s.old = s.old[1:]
	}
	if len(s.old) > 0 && !s.over {
		s.wake.Reset(time.Until(s.old[0].until))
	}
	s.mu.Unlock()
	for _, p := range late {
		s.host.DropValues(p.shard, p.ref)
	}
}
