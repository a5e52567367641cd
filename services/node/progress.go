package node

import (
	"fmt"
	"io"
	"sync"
	"time"

	"kvstore/components/wal"
)

// progress draws how far recovery is, on one line of a terminal.
type progress struct {
	out io.Writer // nil: draw nothing

	mu    sync.Mutex // guards all below
	total int        // shards
	ready int
	parts map[string]wal.Progress // of shards under way and done
	drawn time.Time
	over  bool
}

// redraw is how often the line is drawn anew at most.
const redraw = 100 * time.Millisecond

func (p *progress) begin(shards int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total, p.parts = shards, make(map[string]wal.Progress)
}

// note takes how far one shard is.
func (p *progress) note(shardID string, part wal.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.parts == nil || p.over {
		return
	}
	p.parts[shardID] = part
	p.draw(time.Now(), false)
}

// done counts a shard that is active.
func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready++
	p.draw(time.Now(), false)
}

// end leaves the last line standing.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.draw(time.Now(), true)
	p.over = true
}

// sum adds up what was read so far.
func (p *progress) sum() (items, records, bytes int64) {
	for _, part := range p.parts {
		items += part.CheckpointItems
		records += part.Records
		bytes += part.CheckpointBytes + part.RecordBytes
	}
	return items, records, bytes
}

func (p *progress) draw(now time.Time, last bool) {
	if p.out == nil || p.over || !last && now.Sub(p.drawn) < redraw {
		return
	}
	p.drawn = now
	items, records, bytes := p.sum()
	end := ""
	if last {
		end = "\n"
	}
	fmt.Fprintf(p.out, "\r\x1b[Krecovering: %d of %d shards, %d items of checkpoints, %d records, %.1f MB%s",
		p.ready, p.total, items, records, float64(bytes)/1e6, end)
}
