package redislog

import (
	"context"
	"fmt"
	"strconv"

	"kvstore/components/wal/driver"
)

// head is the head of a log as a script found it.
type head struct {
	exists   bool   // the shard has a manifest
	own      string // "" = no fence was ever placed
	fence    uint64 // seq of the fence of own
	next     uint64 // seq that the next record gets
	previous uint64 // counter of own
}

func (e *Engine) head(ctx context.Context, k *keys, shard string) (head, error) {
	list, err := e.runList(ctx, headScript, []string{k.manifest, k.head, k.records})
	if err != nil {
		return head{}, err
	}
	h := head{next: 1}
	odd := func() (head, error) {
		return head{}, fmt.Errorf("log of shard %s: %w: its head is %q", shard, driver.ErrCorrupt, list)
	}
	if len(list) != 5 {
		return odd()
	}
	exists, _ := list[0].(int64)
	length, _ := list[4].(int64)
	h.exists = exists == 1
	name, fenced := list[1].(string)
	if !fenced {
		if length != 0 {
			return odd()
		}
		return h, nil
	}
	first, ok := number(list[3])
	if h.fence, fenced = number(list[2]); !ok || !fenced || length == 0 {
		return odd() // the last record is never forgotten
	}
	h.own, h.next = name, first+uint64(length)
	if h.previous, err = counterOf(name); err != nil {
		return head{}, err
	}
	return h, nil
}

// number reads a decimal number that a script returned as text.
func number(v any) (uint64, bool) {
	s, ok := v.(string)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil
}

// Fence implements driver.Engine. Between a look at the log and the fence the holder before may append: then it looks again.
func (e *Engine) Fence(ctx context.Context, shard string, epoch driver.Epoch, record func(seq, previousEpoch uint64) []byte) (uint64, error) {
	if err := e.begin(ctx, shard); err != nil {
		return 0, err
	}
	if err := checkNumbers(epoch.Counter); err != nil {
		return 0, err
	}
	k, mine := e.keys(shard), own(epoch)
	for {
		h, err := e.head(ctx, &k, shard)
		switch {
		case err != nil:
			return 0, fmt.Errorf("fence of shard %s: %w", shard, err)
		case !h.exists:
			return 0, fmt.Errorf("log of shard %s: %w", shard, driver.ErrNotExist)
		case h.own == mine:
			return h.fence, nil
		case epoch.Counter <= h.previous:
			return 0, driver.ErrFenced
		}
		if err := checkNumbers(h.next); err != nil {
			return 0, err
		}
		data := record(h.next, h.previous)
		if data == nil {
			return 0, fmt.Errorf("%w: the fence was withdrawn", driver.ErrRefused)
		}
		element := encodeElement(shard, driver.Frame{Epoch: epoch.Counter, Seq: h.next, Data: data})
		placed, err := e.runInt(ctx, fenceScript, []string{k.manifest, k.head, k.records}, mine, h.own, h.next, element)
		switch {
		case err != nil:
			return 0, fmt.Errorf("fence of shard %s: %w", shard, err)
		case placed == 1:
			return h.next, nil
		case placed < 0:
			return 0, fmt.Errorf("log of shard %s: %w", shard, driver.ErrNotExist)
		}
	}
}

// pageBytes is how many bytes of records one reply holds, about: it ends with the record that exceeds them, or up to 15 later.
const pageBytes = 1 << 20

// Read implements driver.Engine.
func (e *Engine) Read(ctx context.Context, shard string, from uint64, fn func(driver.Frame) error) error {
	if err := e.begin(ctx, shard); err != nil {
		return err
	}
	if err := checkNumbers(from); err != nil {
		return err
	}
	k := e.keys(shard)
	var end uint64 // the record after the last that is read
	for {
		page, err := e.runList(ctx, pageScript, []string{k.manifest, k.head, k.records}, from, pageBytes)
		if err != nil {
			return fmt.Errorf("read the log of shard %s: %w", shard, err)
		}
		first, next, elements, err := readPage(shard, page)
		switch {
		case err != nil:
			return err
		case end == 0:
			end = next
		case next < end:
			return fmt.Errorf("log of shard %s: %w: it ended at record %d and ends at %d now", shard, driver.ErrCorrupt, end-1, next-1)
		}
		if from < first {
			return fmt.Errorf("record %d of shard %s: %w: the first is %d", from, shard, driver.ErrNotExist, first)
		}
		if len(elements) == 0 && from < end {
			return fmt.Errorf("record %d of shard %s: %w: it is not there", from, shard, driver.ErrCorrupt)
		}
		for _, v := range elements {
			if from >= end {
				break
			}
			element, _ := v.(string)
			f, err := decodeElement(shard, element, from)
			if err != nil {
				return err
			}
			if err := fn(f); err != nil {
				return err
			}
			from++
		}
		if from >= end {
			return nil
		}
	}
}

// readPage takes apart what page.lua returns. first is 0 for a log that never had a record.
func readPage(shard string, page []any) (first, next uint64, elements []any, err error) {
	odd := fmt.Errorf("log of shard %s: %w: a page of it is odd", shard, driver.ErrCorrupt)
	if len(page) < 3 {
		return 0, 0, nil, odd
	}
	if exists, _ := page[0].(int64); exists != 1 {
		return 0, 0, nil, fmt.Errorf("log of shard %s: %w", shard, driver.ErrNotExist)
	}
	if page[1] != "" {
		var ok bool
		if first, ok = number(page[1]); !ok {
			return 0, 0, nil, odd
		}
	}
	next, ok := number(page[2])
	if !ok {
		return 0, 0, nil, odd
	}
	return first, next, page[3:], nil
}

// Trim implements driver.Engine.
func (e *Engine) Trim(ctx context.Context, shard string, epoch driver.Epoch, below uint64) error {
	if err := e.begin(ctx, shard); err != nil {
		return err
	}
	if err := checkNumbers(epoch.Counter, below); err != nil {
		return err
	}
	k := e.keys(shard)
	done, err := e.runInt(ctx, trimScript, []string{k.head, k.records}, own(epoch), below)
	if err != nil {
		return fmt.Errorf("trim the log of shard %s: %w", shard, err)
	}
	if done == 0 {
		return driver.ErrFenced
	}
	return nil
}
