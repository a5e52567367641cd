package wal

// merged is a k-way merge of cursors: each key once, as its newest cursor has it. Removals are given like other items.
type merged struct {
	sources []source // newest first
	heap    []int    // indices of sources with a current item; the least key, then the newest, on top
	top     int      // the source whose item was given last and must move on; -1 at the start
	err     error
}

type source struct {
	next cursor
	item item
}

// merge merges cursors, the newest first.
func merge(newestFirst ...cursor) cursor {
	if len(newestFirst) == 1 {
		return newestFirst[0]
	}
	m := &merged{sources: make([]source, len(newestFirst)), top: -1}
	for i, c := range newestFirst {
		m.sources[i].next = c
	}
	return m.next
}

func (m *merged) next() (item, bool, error) {
	if m.err != nil {
		return item{}, false, m.err
	}
	if m.err = m.advance(); m.err != nil {
		return item{}, false, m.err
	}
	if len(m.heap) == 0 {
		return item{}, false, nil
	}
	m.top = m.heap[0]
	return m.sources[m.top].item, true, nil
}

// advance moves every source on that stands at the key given last, so that the heap holds the keys after it.
func (m *merged) advance() error {
	if m.top < 0 {
		for i := range m.sources {
			ok, err := m.step(i)
			if err != nil {
				return err
			}
			if ok {
				m.heap = append(m.heap, i)
				m.up(len(m.heap) - 1)
			}
		}
		return nil
	}
	given := m.sources[m.top].item.key
	// older sources first: the key given last is a view into the newest one that has it
	for len(m.heap) > 1 {
		second := m.second()
		if string(m.sources[m.heap[second]].item.key) != string(given) {
			break
		}
		if err := m.replace(second); err != nil {
			return err
		}
	}
	return m.replace(0)
}

// second is the heap position of the least after the top.
func (m *merged) second() int {
	if len(m.heap) > 2 && m.before(2, 1) {
		return 2
	}
	return 1
}

// step moves a source on.
func (m *merged) step(i int) (ok bool, err error) {
	m.sources[i].item, ok, err = m.sources[i].next()
	return ok, err
}

// replace moves the source at a heap position on and restores the heap.
func (m *merged) replace(pos int) error {
	ok, err := m.step(m.heap[pos])
	if err != nil {
		return err
	}
	if !ok {
		last := len(m.heap) - 1
		m.heap[pos] = m.heap[last]
		m.heap = m.heap[:last]
		if pos == last {
			return nil
		}
	}
	m.down(pos)
	return nil
}

// before tells whether heap position i comes before j.
func (m *merged) before(i, j int) bool {
	a, b := m.heap[i], m.heap[j]
	ka, kb := m.sources[a].item.key, m.sources[b].item.key
	if string(ka) != string(kb) {
		return string(ka) < string(kb)
	}
	return a < b
}

func (m *merged) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !m.before(i, parent) {
			return
		}
		m.heap[i], m.heap[parent] = m.heap[parent], m.heap[i]
		i = parent
	}
}

func (m *merged) down(i int) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(m.heap); child++ {
			if m.before(child, least) {
				least = child
			}
		}
		if least == i {
			return
		}
		m.heap[i], m.heap[least] = m.heap[least], m.heap[i]
		i = least
	}
}
