package values

import (
	"slices"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
)

// Track prepares commands that name references of this store for Actor.Do: when one is released, its references are settled
// before its Done is called. Commands that name references of another epoch, or that were settled before, are released here, as not
// applied, because their objects may be gone; the others are returned, each to be released once. The slice is cmds itself when
// none was taken out.
func (s *Store) Track(cmds []*shard.Command) []*shard.Command {
	epoch := s.log.Epoch().Counter
	taken := cmds
	for i, c := range cmds {
		if !c.NamesRefs() {
			if len(taken) != len(cmds) {
				taken = append(taken, c)
			}
			continue
		}
		named, gone := s.refs(c, epoch)
		if gone {
			if len(taken) == len(cmds) {
				taken = slices.Clone(cmds[:i])
			}
			s.refuse(c)
			continue
		}
		if len(taken) != len(cmds) {
			taken = append(taken, c)
		}
		if named {
			s.wrap(c)
		}
	}
	return taken
}

// refs tells whether a command names references that a Put or WriteStream gave, and whether one is of another epoch or settled.
func (s *Store) refs(c *shard.Command, epoch uint64) (named, gone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for v := range c.Refs {
		named = true
		o := s.objects[v.Object]
		gone = gone || v.Object.Epoch != epoch || o == nil || o.left == 0
	}
	return named, gone
}

// wrap puts settling before a command's Done, for this one release: callers use a command again with the Done that it had.
func (s *Store) wrap(c *shard.Command) {
	done := c.Done
	c.Done = func(c *shard.Command, err error) {
		c.Done = done
		s.settleCommand(c, err)
		done(c, err)
	}
}

func (s *Store) refuse(c *shard.Command) {
	for f := range c.Refs {
		s.Drop(*f)
	}
	c.Release(&kverr.Error{Kind: kverr.Unavailable, Op: "name a value", Message: "the value was given up, or the shard was opened again since it was written; write it again", RetryAfterMS: 1})
}

// settleCommand settles the references of a command that is being released.
func (s *Store) settleCommand(c *shard.Command, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	unknown := err != nil && !kverr.KindOf(err).NotApplied()
	r := &c.Result
	applied := err == nil && r.Err == nil && !r.Duplicate
	switch c.Op {
	case shard.OpPut, shard.OpRelocate:
		applied = applied && r.Revision != 0
	case shard.OpTxn:
		applied = applied && r.Committed
	case shard.OpIndex:
		for i := range c.Prompt.Index {
			f := &c.Prompt.Index[i].Value.Ref
			if f.Object != (shard.ObjectID{}) {
				s.settle(f.Object, applied && i < len(r.Blocks) && r.Blocks[i].Stored, unknown)
			}
		}
		return
	}
	for f := range c.Refs {
		s.settle(f.Object, applied, unknown)
	}
}

// Drop gives up references that no command will name.
func (s *Store) Drop(refs ...shard.Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range refs {
		s.settle(refs[i].Object, false, false)
	}
}

// settle settles one reference. The last one decides: an object that no command applied is an orphan. Mutex held.
func (s *Store) settle(id shard.ObjectID, applied, unknown bool) {
	o := s.objects[id]
	if o == nil || o.left == 0 {
		return // of another epoch, which sweeps it
	}
	o.applied = o.applied || applied
	o.unknown = o.unknown || unknown
	if o.left--; o.left > 0 {
		return
	}
	if o.applied || o.unknown {
		o.seq = s.host.Seq()
		return
	}
	delete(s.objects, id)
	s.orphans = append(s.orphans, id)
	s.deleteOrphans()
}
