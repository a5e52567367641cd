package vtcodec

import (
	"math/bits"
	"sync"

	"google.golang.org/grpc/mem"
)

// Pool keeps buffers of both ends by powers of two. gRPC's own pool knows no size between 32 KiB and 1 MiB and clears a buffer whole
// whenever it hands it out: for a message of 40 KiB that is 1 MiB of zeros, a quarter of the CPU time of a busy stream.
// Buffers come as they were left: whoever takes one writes all of it before anybody reads it.
var Pool mem.BufferPool = new(pool)

const (
	leastBits = 10 // 1 KiB; gRPC pools nothing smaller
	mostBits  = 23 // 8 MiB; larger ones are left to the garbage collector
)

type pool struct{ sizes [mostBits + 1]sync.Pool }

// Get returns a buffer of a length, with undefined content.
func (p *pool) Get(length int) *[]byte {
	tier := max(leastBits, bits.Len(uint(max(length, 1)-1)))
	if tier > mostBits {
		b := make([]byte, length)
		return &b
	}
	if b, ok := p.sizes[tier].Get().(*[]byte); ok {
		*b = (*b)[:length]
		return b
	}
	b := make([]byte, length, 1<<tier)
	return &b
}

// Put takes a buffer of Get back.
func (p *pool) Put(b *[]byte) {
	tier := bits.Len(uint(cap(*b))) - 1
	if tier < leastBits || tier > mostBits || cap(*b) != 1<<tier {
		return
	}
	p.sizes[tier].Put(b)
}
