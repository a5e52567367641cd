package shard

// scheduled puts an item into the expiry index; 0 = it never expires.
func (m *Machine) scheduled(expiresMS int64, typed []byte) {
	if expiresMS == 0 {
		return
	}
	m.key2 = appendExpiryKey(m.key2[:0], expiresMS, typed)
	m.tree.Set(m.key2, nil)
	if m.nextExpiry != unknownExpiry && (m.nextExpiry == 0 || expiresMS < m.nextExpiry) {
		m.nextExpiry = expiresMS
	}
}

// unscheduled takes an item out of the expiry index.
func (m *Machine) unscheduled(expiresMS int64, typed []byte) {
	if expiresMS == 0 {
		return
	}
	m.key2 = appendExpiryKey(m.key2[:0], expiresMS, typed)
	m.tree.Delete(m.key2)
	if expiresMS == m.nextExpiry {
		m.nextExpiry = unknownExpiry
	}
}

// wakeExpiry is when the first entry expires; 0 = none ever does.
func (m *Machine) wakeExpiry() int64 {
	if m.nextExpiry == unknownExpiry {
		m.nextExpiry = 0
		for key := range m.tree.Ascend([]byte{prefixExpiry}, []byte{prefixExpiry + 1}) {
			m.nextExpiry, _ = splitExpiryKey(key)
			break
		}
	}
	return m.nextExpiry
}

// expire emits the expiry of at most budget entries whose time is over, first things first. What stays is due still, and
// WakeMS says so.
func (m *Machine) expire(budget int) {
	if at := m.wakeExpiry(); at == 0 || at > m.now {
		return
	}
	m.due = m.due[:0]
	to := appendExpiryKey(nil, m.now+1, nil)
	for key := range m.tree.Ascend([]byte{prefixExpiry}, to) {
		if len(m.due) == budget {
			break
		}
		m.due = append(m.due, key)
	}
	for _, key := range m.due {
		_, typed := splitExpiryKey(key)
		if ns, key, ok := splitDataKey(typed); ok {
			m.emitExpire(ns, key)
		}
	}
	clear(m.due)
}
