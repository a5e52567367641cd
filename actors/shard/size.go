package shard

import "kvstore/actors/host"

var _ host.Command = (*Command)(nil)

// itemOverhead is what a command's structures take besides the bytes that they point to, roughly.
const itemOverhead = 256

// Size is an estimate of the bytes that the command holds, for the bound on queued commands.
func (c *Command) Size() int {
	n := itemOverhead + c.Put.size() + len(c.Delete.Key) + len(c.Forget)*16
	if c.Txn != nil {
		for i := range c.Txn.Conditions {
			n += itemOverhead + len(c.Txn.Conditions[i].Key)
		}
		for i := range c.Txn.Ops {
			n += itemOverhead
			if p := c.Txn.Ops[i].Put; p != nil {
				n += p.size()
			}
			if d := c.Txn.Ops[i].Delete; d != nil {
				n += len(d.Key)
			}
		}
	}
	if c.Edit != nil {
		n += itemOverhead + len(c.Edit.Key) + len(c.Edit.Bytes)
	}
	if c.Relocate != nil {
		n += itemOverhead + len(c.Relocate.Key)
	}
	if p := c.Prompt; p != nil {
		n += len(p.ScopeFields) + len(p.Damaged)*64
		for i := range p.Blocks {
			n += 64 + len(p.Blocks[i].ID)
		}
		for i := range p.Index {
			n += itemOverhead + len(p.Index[i].Block.ID) + len(p.Index[i].Parent) + len(p.Index[i].Value.Inline)
		}
	}
	return n
}

func (p *Put) size() int {
	n := len(p.Key) + len(p.Value.Inline) + len(p.ContentType) + len(p.Encoding)
	for i := range p.Metadata {
		n += 32 + len(p.Metadata[i].Name) + len(p.Metadata[i].Value)
	}
	for i := range p.Tags {
		n += 32 + len(p.Tags[i].Name) + len(p.Tags[i].Value)
	}
	return n
}

// Until is when whoever waits for the command stops waiting.
func (c *Command) Until() int64 { return c.UntilMS }

// Grows tells whether the command may make the shard's state larger: puts, transactions that put, edits, and stored blocks.
func (c *Command) Grows() bool {
	switch c.Op {
	case OpPut, OpIndex:
		return true
	case OpEdit:
		return c.Edit != nil && c.Edit.grows()
	case OpTxn:
		if c.Txn == nil {
			return false
		}
		for i := range c.Txn.Ops {
			if c.Txn.Ops[i].Put != nil {
				return true
			}
		}
	}
	return false
}
