package shard

// The time of blocks: expiry, the ends of leases and pins. The expiry index of blocks is apart from that of keys, since
// leases hold blocks back.

// heldRetryMS is how long after a block was due and leased it is looked at again.
const heldRetryMS = 1000

func (m *Machine) scheduleBlock(expiresMS int64, typed []byte) {
	if expiresMS == 0 {
		return
	}
	p := &m.prompt
	p.key = appendBlockExpiryKey(p.key[:0], expiresMS, typed)
	m.tree.Set(p.key, nil)
	if p.nextExpiry != unknownExpiry && (p.nextExpiry == 0 || expiresMS < p.nextExpiry) {
		p.nextExpiry = expiresMS
	}
}

func (m *Machine) unscheduleBlock(expiresMS int64, typed []byte) {
	if expiresMS == 0 {
		return
	}
	p := &m.prompt
	p.key = appendBlockExpiryKey(p.key[:0], expiresMS, typed)
	m.tree.Delete(p.key)
	if expiresMS == p.nextExpiry {
		p.nextExpiry = unknownExpiry
	}
}

// tickPrompt ends leases and pins that are over at m.now and removes at most budget blocks whose time is.
func (m *Machine) tickPrompt(budget int) {
	m.startPrompt()
	p := &m.prompt
	p.leases.endDue(m.now)
	for _, sp := range p.loaded {
		sp.endPins(m.now)
	}
	if at := m.wakePrompt(); at == 0 || at > m.now {
		return
	}
	if m.quiet() {
		p.retryAtMS = p.leases.quietMS
		return
	}
	p.retryAtMS = 0
	p.due = p.due[:0]
	to := appendBlockExpiryKey(nil, m.now+1, nil)
	for key := range m.tree.Ascend([]byte{prefixBlockExpiry}, to) {
		if len(p.due) == budget {
			break
		}
		_, typed := splitExpiryKey(key)
		if m.leased(typed) {
			p.retryAtMS = m.now + heldRetryMS
			continue
		}
		p.due = append(p.due, typed)
	}
	if len(p.due) == 0 {
		return
	}
	if len(p.due) == budget {
		p.retryAtMS = 0 // there may be more that are not leased
	}
	m.removeAll(m.newRevision(), removedExpired)
	clear(p.due)
}

// leased tells whether a lease holds the block. Leases exist only in namespaces that are loaded, or were before a roll-back.
func (m *Machine) leased(typed []byte) bool {
	if len(m.prompt.leases.line) == 0 {
		return false
	}
	ns, _, _, _ := splitBlockKey(typed)
	it := m.space(ns).order.Get(typed)
	return it != nil && it.Leases > 0
}

// wakePrompt is when the first block expires, or is looked at again; 0 = never.
func (m *Machine) wakePrompt() int64 {
	p := &m.prompt
	if p.nextExpiry == unknownExpiry {
		p.nextExpiry = 0
		for key := range m.tree.Ascend([]byte{prefixBlockExpiry}, []byte{prefixBlockExpiry + 1}) {
			p.nextExpiry, _ = splitExpiryKey(key)
			break
		}
	}
	if p.nextExpiry == 0 {
		return 0
	}
	return max(p.nextExpiry, p.retryAtMS)
}
