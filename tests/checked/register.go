package checked

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"kvstore/client"
	"kvstore/components/kverr"
)

// Bounds of one generation of registers. What is judged takes time that grows steeply with open outcomes, and with the calls of a key.
const (
	registerKeys    = 12
	counterKeys     = 3
	maxHistory      = 3000 // calls of a key; beyond that nobody calls it until the next generation
	maxOpen         = 4    // calls of a key that are given up on purpose
	impatientMost   = 30 * time.Millisecond
	judgeTimeout    = time.Minute // for each key
	unreadableBytes = 8           // a value begins with which one it is
)

// shared is the registers and counters that all clients use. Verify replaces them.
type shared struct {
	began      time.Time
	generation int
	keys       []*history
	counters   []*counter
}

func newShared(began time.Time, generation int) *shared {
	s := &shared{began: began, generation: generation}
	for i := range registerKeys {
		s.keys = append(s.keys, &history{name: fmt.Sprintf("reg/%d/%d", generation, i)})
	}
	for i := range counterKeys {
		s.counters = append(s.counters, &counter{name: fmt.Sprintf("count/%d/%d", generation, i)})
	}
	return s
}

// history is what was done with one key.
type history struct {
	name string

	mu    sync.Mutex
	calls []porcupine.Operation // guarded by mu, as is open
	open  int                   // calls given up on purpose
}

// full tells whether the key is to be left alone.
func (h *history) full() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.calls) >= maxHistory
}

// giveUp asks for one more call that is given up on purpose.
func (h *history) giveUp() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open >= maxOpen {
		return false
	}
	h.open++
	return true
}

func (h *history) add(op porcupine.Operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, op)
}

// judge tells whether the history is one of a register.
func (h *history) judge() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	end := int64(0)
	for _, op := range h.calls {
		end = max(end, op.Return)
	}
	for i := range h.calls { // what has no answer may be done at any time up to the end
		if h.calls[i].Return == 0 {
			h.calls[i].Return = end + 1
		}
	}
	switch porcupine.CheckOperationsTimeout(model, h.calls, judgeTimeout) {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return fmt.Errorf("%s: %d calls, of which %d were given up, could not be judged in %v", h.name, len(h.calls), h.open, judgeTimeout)
	}
	return fmt.Errorf("%s: its %d calls are not linearizable; around the place where that shows:\n%s", h.name, len(h.calls), h.excerpt())
}

// excerpt is the shortest beginning of the history that is wrong already, without what was over long before. Mutex held.
func (h *history) excerpt() string {
	calls := slices.Clone(h.calls)
	slices.SortFunc(calls, func(a, b porcupine.Operation) int { return int(min(max(a.Return-b.Return, -1), 1)) })
	// The history up to an answer has the calls that began before it: those that were not answered by then are open.
	until := func(n int) (part []porcupine.Operation) {
		for i, op := range calls {
			switch {
			case i < n:
			case op.Call > calls[n-1].Return, op.Input.(call).verb == verbGet:
				continue
			default:
				op.Output, op.Return = answer{open: true}, calls[n-1].Return+1
			}
			part = append(part, op)
		}
		return part
	}
	lo, hi := 1, len(calls)
	for lo < hi {
		mid := (lo + hi) / 2
		if porcupine.CheckOperationsTimeout(model, until(mid), judgeTimeout) == porcupine.Illegal {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	part := until(lo)
	var text strings.Builder
	for _, op := range part[max(0, len(part)-30):] {
		fmt.Fprintf(&text, "  client %2d  %10d..%-10d us  %s\n", op.ClientId, op.Call/1000, op.Return/1000, describe(op.Input.(call), op.Output.(answer)))
	}
	return text.String()
}

// counter is a key that is counted up: acknowledged steps happened once, open ones at most once.
type counter struct {
	name string

	mu          sync.Mutex
	acked, open int // guarded by mu
}

// registerClient is one client of the registers and counters.
type registerClient struct {
	id   int
	c    *client.Client
	r    *rand.Rand
	n    uint64 // values made
	seen map[*history]call
	tally
}

func newRegisterClient(id int, c *client.Client, seed uint64, t tally) *registerClient {
	return &registerClient{id: id, c: c, r: rand.New(rand.NewPCG(seed, uint64(2000+id))), seen: map[*history]call{}, tally: t}
}

func (w *registerClient) step(ctx context.Context, s *shared) error {
	w.begins()
	if w.r.IntN(6) == 0 {
		return w.count(ctx, s.counters[w.r.IntN(len(s.counters))])
	}
	h := s.keys[w.r.IntN(len(s.keys))]
	if h.full() {
		return nil
	}
	if w.r.IntN(20) == 0 {
		return w.getAll(ctx, s)
	}
	c := call{}
	switch w.r.IntN(10) {
	case 0, 1, 2:
		c.verb = verbPut
	case 3, 4:
		// What was read last is the condition. Whoever has read nothing yet believes that the key is absent.
		c.verb, c.cond = verbPut, true
		c.want, c.version = w.seen[h].want, w.seen[h].version
	case 5:
		c.verb = verbDelete
	}
	if c.verb == verbPut {
		w.n++
		c.value = uint64(w.id+1)<<32 | w.n
	}
	impatient := w.r.IntN(12) == 0 && h.giveUp()
	if impatient {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 1+w.rand(impatientMost))
		defer cancel()
	}
	op := porcupine.Operation{ClientId: w.id, Input: c, Call: int64(time.Since(s.began))}
	a, err := w.call(ctx, h, c)
	switch {
	case err == nil:
		op.Return = int64(time.Since(s.began))
		switch {
		case c.verb == verbPut && !a.refused:
			w.changed(client.EventPut, h.name, a.version)
		case c.verb == verbDelete && a.before:
			w.changed(client.EventDelete, h.name, a.version)
		}
		w.ack("register " + c.verb.String())
	case c.verb == verbGet && (unknown(err) || impatient && notApplied(err)):
		return nil
	case impatient && notApplied(err): // it says that it was not applied
		return nil
	case unknown(err):
		a = answer{open: true}
	default:
		return fmt.Errorf("%s %s: %w", c.verb, h.name, err)
	}
	op.Output = a
	h.add(op)
	return nil
}

func (w *registerClient) rand(most time.Duration) time.Duration {
	return time.Duration(w.r.Int64N(int64(most)))
}

// call makes a call. An error is one that leaves its outcome open, or that must not be.
func (w *registerClient) call(ctx context.Context, h *history, c call) (answer, error) {
	switch c.verb {
	case verbGet:
		e, err := w.c.Get(ctx, h.name, nil)
		return w.got(h, e, err)
	case verbDelete:
		res, err := w.c.Delete(ctx, h.name, nil)
		return answer{version: res.Revision, before: res.Deleted}, err
	}
	o := &client.PutOptions{}
	switch {
	case c.cond && c.want == 0:
		o.If = client.IfAbsent()
	case c.cond:
		o.If = client.IfVersion(c.version)
	}
	res, err := w.c.Put(ctx, h.name, value(h.name, c.value, 40), o)
	var why *kverr.Error
	if c.cond && (errors.Is(err, client.ErrVersionMismatch) || errors.Is(err, client.ErrAlreadyExists)) && errors.As(err, &why) {
		delete(w.seen, h)
		return answer{refused: true, version: why.CurrentVersion}, nil
	}
	if err == nil {
		w.seen[h] = call{want: c.value, version: res.Version}
	}
	return answer{version: res.Version, before: !res.Created}, err
}

// got is the answer of a read.
func (w *registerClient) got(h *history, e client.Entry, err error) (answer, error) {
	if errors.Is(err, client.ErrNotFound) {
		delete(w.seen, h)
		return answer{}, nil
	}
	if err != nil {
		return answer{}, err
	}
	var which uint64
	if len(e.Value) >= unreadableBytes {
		which = binary.LittleEndian.Uint64(e.Value)
	}
	if !bytes.Equal(e.Value, value(h.name, which, len(e.Value))) {
		return answer{}, fmt.Errorf("it holds %d bytes that nobody wrote", len(e.Value))
	}
	w.seen[h] = call{want: which, version: e.Version}
	return answer{value: which, version: e.Version}, nil
}

// getAll reads all registers with one call. It is as many reads: a batch is per item.
func (w *registerClient) getAll(ctx context.Context, s *shared) error {
	var names []string
	for _, h := range s.keys {
		names = append(names, h.name)
	}
	began := int64(time.Since(s.began))
	res, err := w.c.BatchGet(ctx, names, nil)
	ended := int64(time.Since(s.began))
	if err != nil {
		if unknown(err) {
			return nil
		}
		return fmt.Errorf("batch get of registers: %w", err)
	}
	for i, h := range s.keys {
		a, err := w.got(h, res[i].Entry, res[i].Err)
		if err != nil {
			if unknown(err) {
				continue
			}
			return fmt.Errorf("batch get %s: %w", h.name, err)
		}
		if !h.full() {
			h.add(porcupine.Operation{ClientId: w.id, Input: call{}, Output: a, Call: began, Return: ended})
		}
	}
	w.ack("register batch get")
	return nil
}

// count counts up by one, if nobody else did since it looked.
func (w *registerClient) count(ctx context.Context, k *counter) error {
	e, err := w.c.Get(ctx, k.name, nil)
	n, o := 0, &client.PutOptions{If: client.IfAbsent()}
	switch {
	case err == nil:
		if n, err = strconv.Atoi(string(e.Value)); err != nil {
			return fmt.Errorf("%s holds %q, not a number", k.name, e.Value)
		}
		o.If = client.IfVersion(e.Version)
	case errors.Is(err, client.ErrNotFound):
	case unknown(err):
		return nil
	default:
		return fmt.Errorf("get %s: %w", k.name, err)
	}
	put, err := w.c.Put(ctx, k.name, []byte(strconv.Itoa(n+1)), o)
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case err == nil:
		w.changed(client.EventPut, k.name, put.Version)
		k.acked++
		w.ack("count")
	case unknown(err):
		k.open++
	case errors.Is(err, client.ErrVersionMismatch), errors.Is(err, client.ErrAlreadyExists):
	default:
		return fmt.Errorf("put %s: %w", k.name, err)
	}
	return nil
}

// verify reads every register and counter once more and judges their histories. Nobody uses them any more.
func (s *shared) verify(ctx context.Context, w *registerClient) error {
	var errs []error
	for _, h := range s.keys {
		op := porcupine.Operation{ClientId: w.id, Input: call{}, Call: int64(time.Since(s.began))}
		a, err := w.call(ctx, h, call{})
		if err != nil {
			errs = append(errs, fmt.Errorf("get %s: %w", h.name, err))
			continue
		}
		op.Output, op.Return = a, int64(time.Since(s.began))
		h.add(op)
		errs = append(errs, h.judge())
	}
	for _, k := range s.counters {
		e, err := w.c.Get(ctx, k.name, nil)
		n := 0
		if err == nil {
			n, err = strconv.Atoi(string(e.Value))
		} else if errors.Is(err, client.ErrNotFound) {
			err = nil
		}
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", k.name, err))
		case n < k.acked:
			errs = append(errs, fmt.Errorf("%s is %d: %d steps were acknowledged, so some are lost", k.name, n, k.acked))
		case n > k.acked+k.open:
			errs = append(errs, fmt.Errorf("%s is %d: %d steps were acknowledged and %d got no answer, so some were applied twice", k.name, n, k.acked, k.open))
		}
	}
	return errors.Join(errs...)
}
