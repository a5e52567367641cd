package promptcache

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
)

// ChainIDBytes is the length of the ids of a Chain.
const ChainIDBytes = sha256.Size

// chainSeed separates the first parent from every other use of SHA-256.
const chainSeed = "kvstore prompt chain 1\x00"

// Chain makes block ids for callers that have tokens and no ids of an engine:
//
//	parent(0) = SHA-256("kvstore prompt chain 1" 00 canonical-scope)
//	id(i)     = SHA-256(parent(i) token token ...)       parent(i+1) = id(i)
//
// with the tokens of one full block as little-endian uint32. An id so names a scope and all tokens up to the end of its
// block. It is a cryptographic hash because ids are trusted across tenants: with a fast hash anybody could make two prompts
// of one id, and read the wrong block or plant it. Engines with ids of their own do not need it.
type Chain struct {
	seed   [ChainIDBytes]byte
	tokens int
	sum    hash.Hash
	buf    []byte
}

// NewChain starts a chain for the scope of that canonical form with blocks of so many tokens (at least 1). A Chain is for
// one goroutine at a time.
func NewChain(canonical []byte, blockTokens int) *Chain {
	c := &Chain{tokens: max(blockTokens, 1), sum: sha256.New()}
	c.sum.Write([]byte(chainSeed))
	c.sum.Write(canonical)
	c.sum.Sum(c.seed[:0])
	c.buf = make([]byte, ChainIDBytes+4*c.tokens)
	return c
}

// Parent is what the first block is chained on.
func (c *Chain) Parent() [ChainIDBytes]byte { return c.seed }

// Next is the id of the block that follows parent; tokens must have the length of a block.
func (c *Chain) Next(parent [ChainIDBytes]byte, tokens []uint32) (id [ChainIDBytes]byte) {
	b := append(c.buf[:0], parent[:]...)
	for _, t := range tokens {
		b = binary.LittleEndian.AppendUint32(b, t)
	}
	c.buf = b
	return sha256.Sum256(b)
}

// IDs are the ids of all full blocks of a prompt; tokens after the last full block have none.
func (c *Chain) IDs(tokens []uint32) [][]byte {
	n := len(tokens) / c.tokens
	ids := make([][]byte, 0, n)
	flat := make([]byte, 0, n*ChainIDBytes)
	parent := c.seed
	for i := range n {
		parent = c.Next(parent, tokens[i*c.tokens:(i+1)*c.tokens])
		flat = append(flat, parent[:]...)
		ids = append(ids, flat[i*ChainIDBytes:(i+1)*ChainIDBytes:(i+1)*ChainIDBytes])
	}
	return ids
}
