package memhost

import (
	"container/heap"
	"sync"
	"time"

	"kvstore/actors/host"
)

// timers is the one source of wake-ups of a host: a heap of times and the shards that asked for them, and one timer for
// the first.
type timers struct {
	clock host.Clock
	fire  func(s *slot) // in a goroutine of the timer

	mu     sync.Mutex
	heap   wishes // guarded by mu, as is all below
	stop   func() bool
	at     int64 // what the timer is set to; 0 = not set
	closed bool
	firing sync.WaitGroup
}

// wish is a slot's place in the heap.
type wish struct {
	slot  *slot
	ms    int64
	index int // in the heap; -1 = not in it
}

// set replaces a slot's wish; 0 withdraws it. It may be called with the slot's actor locked.
func (t *timers) set(w *wish, ms int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	w.ms = ms
	switch {
	case ms == 0 && w.index >= 0:
		heap.Remove(&t.heap, w.index)
	case ms == 0:
	case w.index >= 0:
		heap.Fix(&t.heap, w.index)
	default:
		heap.Push(&t.heap, w)
	}
	t.arm()
}

// arm sets the timer for the first wish. Mutex held.
func (t *timers) arm() {
	if len(t.heap) == 0 {
		if t.stop != nil {
			t.stop()
			t.stop, t.at = nil, 0
		}
		return
	}
	first := t.heap[0].ms
	if t.stop != nil && t.at == first {
		return
	}
	if t.stop != nil {
		t.stop()
	}
	// Never in less than a millisecond, so that a wish that lies in the past cannot spin.
	wait := max(time.Duration(first-t.clock.Now().UnixMilli())*time.Millisecond, time.Millisecond)
	t.at = first
	t.stop = t.clock.AfterFunc(wait, t.run)
}

// run fires what is due.
func (t *timers) run() {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return
	}
	t.firing.Add(1)
	defer t.firing.Done()
	now := t.clock.Now().UnixMilli()
	var due []*slot
	for len(t.heap) > 0 && t.heap[0].ms <= now {
		due = append(due, heap.Pop(&t.heap).(*wish).slot)
	}
	t.stop, t.at = nil, 0
	t.arm()
	t.mu.Unlock()
	for _, s := range due {
		t.fire(s)
	}
}

// close stops the timer and waits for what it started.
func (t *timers) close() {
	t.mu.Lock()
	t.closed = true
	if t.stop != nil {
		t.stop()
	}
	t.mu.Unlock()
	t.firing.Wait()
}

type wishes []*wish

func (h wishes) Len() int           { return len(h) }
func (h wishes) Less(i, j int) bool { return h[i].ms < h[j].ms }
func (h wishes) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *wishes) Push(x any) {
	w := x.(*wish)
	w.index = len(*h)
	*h = append(*h, w)
}
func (h *wishes) Pop() any {
	old := *h
	w := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	w.index = -1
	return w
}
