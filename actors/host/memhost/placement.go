package memhost

import (
	"context"
	"errors"
	"time"

	"kvstore/actors/host"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
)

// Placement tells a host which shards are its to open, where something else decides that (daprhost). A shard that is open stays so
// whatever it says: only the shard's log takes it away.
type Placement interface {
	// Placed tells whether the host may open a shard. It is asked before each activation, and must not block.
	Placed(shardID string) bool
	// Wake tells that a shard which sleeps, and may not be opened here, wants to be woken somewhere: a key of it expires. It must
	// not block.
	Wake(shardID string)
}

// Answer is where a shard is, as far as a host knows without waiting.
type Answer struct {
	// Epoch is the counter of this host's ownership; 0: it does not serve the shard.
	Epoch uint64
	// Why tells why it does not, and is not about to: of kind kverr.Moved while it leaves the shard to another host, kverr.NotFound when
	// there is no such shard. nil when Epoch is set, and while the shard is being opened.
	Why *kverr.Error
	// Holder is whom the manifest named when it was last read; only with a Why of kind kverr.Moved, and zero when it is not known.
	Holder wal.Holder
	// HolderPlaced: the holder says that it may open the shard again. So two hosts are told that it is theirs.
	HolderPlaced bool
}

// Open tells where a shard is, without waiting for anything, and begins to open it here if nothing speaks against that.
// Placement is not asked: whoever calls this knows.
func (h *Host) Open(shardID string) Answer {
	s, err := h.slot(shardID)
	if err != nil {
		return Answer{Why: asKind(err)}
	}
	s.used.Store(true)
	if l := s.live.Load(); l != nil && l.Err() == nil {
		return Answer{Epoch: l.epoch}
	}
	now := h.cfg.Actor.Clock.Now()
	c := s.state.Load()
	if now.Before(c.until) {
		return Answer{Why: c.reason, Holder: c.holder, HolderPlaced: c.holderPlaced}
	}
	select {
	case s.turn <- struct{}{}:
		if l := s.live.Load(); l != nil && l.Err() == nil {
			s.give()
			return Answer{Epoch: l.epoch}
		}
		if h.begin(s) == nil {
			s.give()
			return Answer{Why: h.closedReason()}
		}
	default: // whoever has the turn opens it, or gives it up
	}
	if now.Before(c.peace) && c.holder.Epoch.Counter > 0 {
		return Answer{Why: c.reason, Holder: c.holder, HolderPlaced: c.holderPlaced}
	}
	return Answer{}
}

// Serves tells whether this host serves a shard in an epoch, or is about to: the manifest names an owner before that has read the log.
func (h *Host) Serves(shardID string, epoch driver.Epoch) Serving {
	v, ok := h.slots.Load(shardID)
	if !ok {
		return Serving{}
	}
	s := v.(*slot)
	serves := s.state.Load().name == StateActivating // asked before live, which is set first
	if l := s.live.Load(); l != nil {
		serves = l.Err() == nil && l.Log().Epoch() == epoch
	}
	return Serving{Serves: serves, Placed: h.placed(shardID)}
}

// Serving tells whether a shard is open here.
func (h *Host) Serving(shardID string) bool {
	v, ok := h.slots.Load(shardID)
	if !ok {
		return false
	}
	l := v.(*slot).live.Load()
	return l != nil && l.Err() == nil
}

// Active lists the shards that are open here.
func (h *Host) Active() []string {
	var ids []string
	h.slots.Range(func(id, v any) bool {
		if l := v.(*slot).live.Load(); l != nil && l.Err() == nil {
			ids = append(ids, id.(string))
		}
		return true
	})
	return ids
}

// Lost lists the shards whose data was found gone or damaged here, and that were not opened, nor another host's, since.
func (h *Host) Lost() []string {
	var ids []string
	h.slots.Range(func(id, v any) bool {
		if v.(*slot).damage.Load() != nil {
			ids = append(ids, id.(string))
		}
		return true
	})
	return ids
}

// ForgetLoss forgets that a shard is one of Lost, since it is another host's to tell, and tells whether it was.
func (h *Host) ForgetLoss(shardID string) bool {
	v, ok := h.slots.Load(shardID)
	return ok && v.(*slot).damage.Swap(nil) != nil
}

func (h *Host) placed(shardID string) bool {
	return h.cfg.Placement == nil || h.cfg.Placement.Placed(shardID)
}

var (
	errElsewhere = &kverr.Error{Kind: kverr.Moved, Op: "reach the shard", Message: "the shard is not placed on this host"}
	errClosed    = &kverr.Error{Kind: kverr.Unavailable, Op: "reach the shard", Message: "the host is closed", RetryAfterMS: 1000}
	errLeft      = &kverr.Error{Kind: kverr.Moved, Op: "reach the shard", Message: "the host has given its shards up"}
)

// closedReason is what calls get once the host is closed: others may serve its shards if something places them there.
func (h *Host) closedReason() *kverr.Error {
	if h.cfg.Placement != nil {
		return errLeft
	}
	return errClosed
}

// askTimeout bounds the question whether a holder still serves.
const askTimeout = 200 * time.Millisecond

// keepPeace refuses to take back a shard that was lost a short while ago, as long as its holder may be using it (D3). One that
// has yielded or is gone is not; one that cannot be asked gets the time that it takes to acknowledge something, so that two hosts
// which cannot reach each other do not keep taking the shard from each other: then it is to be opened in doubt, which is how long ago it was lost.
func (h *Host) keepPeace(s *slot, c *condition) (doubt time.Duration, err error) {
	now := h.cfg.Actor.Clock.Now()
	if !now.Before(c.peace) {
		return 0, nil
	}
	holder, err := h.store.Holder(h.ctx, s.id)
	switch {
	case errors.Is(err, driver.ErrNotExist):
		return 0, nil // opening it tells what that means
	case err != nil:
		return 0, err
	case holder.Epoch.Counter <= s.lost:
		return 0, nil // nobody has it after us: the store has gone back
	}
	since := now.Sub(c.peace.Add(-h.cfg.Peace))
	switch own := h.cfg.Address != "" && holder.Address == h.cfg.Address; {
	case own && since < heirTime:
		return 0, c.reason // this host yielded, and whoever asked it to has not taken the shard yet
	case own, holder.Yielded:
		return 0, nil
	}
	known := *c
	known.holder, known.holderPlaced = holder, false
	if h.cfg.Peers != nil {
		ctx, cancel := context.WithTimeout(h.ctx, askTimeout)
		defer cancel()
		serving, err := h.cfg.Peers.Serves(ctx, s.id, holder)
		if err == nil && !serving.Serves {
			return 0, nil
		}
		known.holderPlaced = serving.Placed
		if err != nil && since >= strangerTerms*h.store.Engine().Term() {
			doubt = since
		}
	}
	s.state.Store(&known)
	if doubt > 0 {
		return doubt, nil
	}
	return 0, c.reason
}

// leave is for a shard whose holder cannot be asked, nor the directory: whoever reaches so little is no heir. Callers are led to the holder for a
// while longer, and then it is looked at again.
func (h *Host) leave(s *slot) error {
	c := *s.state.Load()
	c.until = h.cfg.Actor.Clock.Now().Add(failPause)
	s.state.Store(&c)
	return c.reason
}

// heirTime is how long a host that asked for a shard has to take it.
const heirTime = time.Second

// strangerTerms is how many lease terms a holder that cannot be asked is left in peace: it acknowledges nothing in the first.
const strangerTerms = 3

// failed remembers why an activation failed, so that calls fail fast for a while.
func (h *Host) failed(s *slot, err error) {
	why, now, before := asKind(err), h.cfg.Actor.Clock.Now(), s.state.Load()
	c := &condition{name: StateFailed, reason: why, until: now.Add(failPause), shown: now.Add(host.HeldFor)}
	if errors.Is(err, driver.ErrFenced) {
		// Another host was quicker.
		c = &condition{name: StateAsleep, reason: why, peace: now.Add(h.cfg.Peace)}
		s.damage.Store(nil)
	}
	c.absent = errors.Is(err, driver.ErrNotExist)
	if why.Kind == kverr.Unavailable {
		s.broken.Store(why)
	} else {
		s.broken.Store(nil) // the engine has answered
	}
	s.state.Store(c)
	if c.absent {
		s.damage.Store(nil)
		// Nothing is kept of a shard that does not exist, but for those who ask and do not wait.
		h.cfg.Actor.Clock.AfterFunc(failPause, func() { h.forgetAbsent(s, c) })
		return
	}
	told := why.Kind == kverr.DataLoss && (s.damage.Load() != nil || before.lost()) // it stays until somebody does something about it
	if f := h.cfg.Events.Failed; f != nil && !told {
		f(s.id, "activate", err)
	}
}

// lost tells that the last try found a loss, be it the directory's.
func (c *condition) lost() bool { return c.name == StateFailed && c.reason.Kind == kverr.DataLoss }

// forgetAbsent drops the slot of a shard that did not exist, unless it was opened since.
func (h *Host) forgetAbsent(s *slot, c *condition) {
	select {
	case s.turn <- struct{}{}:
	default:
		return // somebody tries again; if that fails there will be another timer
	}
	defer s.give()
	if s.state.Load() == c && s.live.Load() == nil {
		h.forget(s)
	}
}
