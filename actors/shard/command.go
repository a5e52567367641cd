package shard

import (
	"kvstore/actors/host"
	"kvstore/components/kverr"
)

// NamespaceID is a namespace's uid inside its keyspace: never reused, so a namespace made again under an old name meets
// no old data.
type NamespaceID uint32

// Op is what a command asks for.
type Op uint8

// Operations. Values are sent between hosts: append only.
const (
	OpNone          Op = iota
	OpPut              // Put
	OpDelete           // Delete
	OpTxn              // Txn
	OpDropNamespace    // remove everything of Namespace, and refuse it for good, in bounded steps; repeat until Result.More is false
	OpRelocate         // Relocate: a value was copied to another object
	OpForget           // Forget: objects that the engine has deleted
	OpLookup           // Prompt: touch the blocks that are there, lease them when LeaseMS > 0
	OpIndex            // Prompt: store blocks (Index); the first writer wins
	OpRelease          // Prompt: end a lease
	OpTouch            // Prompt: mark as used
	OpPin              // Prompt: pin until UntilMS
	OpDeleteBlocks     // Prompt: remove blocks, except leased ones
	OpClear            // Prompt: remove a scope's blocks in bounded steps; repeat until Result.More is false
	OpUnindex          // Prompt: forget blocks found damaged, if they still are at their Ref
	OpEdit             // Edit: change an entry by what it is
)

// opNames are the names of operations, for who looks on.
var opNames = [...]string{
	OpNone: "none", OpPut: "put", OpDelete: "delete", OpTxn: "transaction", OpDropNamespace: "drop_namespace", OpRelocate: "relocate", OpForget: "forget",
	OpLookup: "lookup", OpIndex: "index", OpRelease: "release", OpTouch: "touch", OpPin: "pin", OpDeleteBlocks: "delete_blocks", OpClear: "clear",
	OpUnindex: "unindex", OpEdit: "edit",
}

// String is the operation's name.
func (o Op) String() string {
	if int(o) < len(opNames) {
		return opNames[o]
	}
	return "unknown"
}

// Identity is the identity of one write (D11), kept per slot so that it travels with the slot. The zero value is none.
type Identity struct {
	Client     [16]byte
	Op         uint64
	Index      uint32 // position within the request
	NotAfterMS int64  // shard time after which it must not be executed
}

// Check is the kind of a precondition.
type Check uint8

// Checks.
const (
	CheckNone    Check = iota
	CheckVersion       // the key exists with this version
	CheckAbsent        // the key does not exist
	CheckPresent       // the key exists
)

// Precondition must hold for a write to happen.
type Precondition struct {
	Check   Check
	Version uint64 // for CheckVersion
}

// ObjectID names a packed value object of the shard: (epoch, counter), never reused. The zero value is none.
type ObjectID struct{ Epoch, Counter uint64 }

// Ref says where a value is that is stored apart from its key (D7).
type Ref struct {
	Object      ObjectID
	ObjectBytes int64 // length of the whole object, so that the machine can account for its dead part
	Offset      int64
	Length      int64
	Checksum    uint64 // xxh3-64 of the value
}

// Value is a value: inline bytes, or a reference when Ref.Object is not zero.
type Value struct {
	Inline []byte
	Ref    Ref
}

// Pair is one name and value of metadata or tags.
type Pair struct{ Name, Value string }

// Put stores a value.
type Put struct {
	Key         []byte
	Value       Value
	ContentType string
	Encoding    string
	Metadata    []Pair // sorted by name
	Tags        []Pair // sorted by name
	TTLMS       int64  // 0 = for ever
	KeepTTL     bool   // keep the expiry that the key has; TTLMS is for a key that is not there
	If          Precondition
	Slot        uint16 // slot of the key
}

// Delete removes a key.
type Delete struct {
	Key  []byte
	If   Precondition
	Slot uint16
}

// EditKind is what an Edit does.
type EditKind uint8

// Edits. Values are sent between hosts: append only.
const (
	EditNone   EditKind = iota
	EditAdd             // add Delta to the decimal number that the value is; a key that is not there counts as 0
	EditAppend          // put Bytes behind the value; a key that is not there counts as empty
	EditExpire          // set the time at which the key expires
)

// EditWhen says, bit by bit, when EditExpire does something. A key without expiry counts as one that expires last of all.
type EditWhen uint8

// Conditions on the expiry that the key has.
const (
	WhenNone    EditWhen = 1 << iota // it has none
	WhenSome                         // it has one
	WhenLater                        // the new one is later
	WhenEarlier                      // the new one is earlier

	whenAll = WhenNone | WhenSome | WhenLater | WhenEarlier
)

// Edit changes an entry by what it is when the command's turn comes, so that callers need not read it first. All of the entry that is not named stays.
// An edit has no identity: whoever does not know its outcome must not repeat it.
type Edit struct {
	Key       []byte
	Kind      EditKind
	Delta     int64    // EditAdd
	Bytes     []byte   // EditAppend
	MaxBytes  int64    // EditAppend: the longest value that is made here; a longer one, or one that lies apart, is ValueTooLarge with the key's version
	ExpiresMS int64    // EditExpire: shard time; 0 = never. A time that is over removes the key
	When      EditWhen // EditExpire
	TTLMS     int64    // EditAdd, EditAppend: of a key that is not there; 0 = for ever
	Slot      uint16   // slot of the key
}

// Condition is a condition of a transaction on a key.
type Condition struct {
	Key []byte
	If  Precondition
}

// TxnOp is one operation of a transaction: one of both is set.
type TxnOp struct {
	Put    *Put
	Delete *Delete
}

// Txn is all or nothing, at one revision. Its conditions and the preconditions of its operations are checked against the
// state before it.
type Txn struct {
	Conditions []Condition
	Ops        []TxnOp
	Slot       uint16 // slot of the partition
}

// TxnFailure is a condition of a transaction that failed.
type TxnFailure struct {
	Condition int // index into Conditions, -1 when it was an operation's
	Op        int // index into Ops, -1 when it was one of Conditions
	Version   uint64
}

// WriteResult is what became of one key.
type WriteResult struct {
	Version uint64 // of a put; revision of a delete; 0 when nothing was removed
	Existed bool   // the key existed before
}

// Relocate moves a value to another object, if the key still has it at From.
type Relocate struct {
	Key      []byte // in typed-prefix form, as the machine's DeadObjects scan gave it
	From, To Ref
}

// ScopeID is the hash of a scope's canonical form (package promptcache).
type ScopeID [16]byte

// BlockKey names a block inside its scope.
type BlockKey struct {
	ID    []byte
	Rank  uint32
	Group uint32
	Depth uint32 // not part of the name
	Slot  uint16
}

// BlockPut is a block to store.
type BlockPut struct {
	Block    BlockKey
	Parent   []byte
	Value    Value
	Size     int64
	Checksum uint64 // xxh3-64
	TTLMS    int64
}

// Capacity is a shard's share of a namespace's capacity; 0 = no limit.
type Capacity struct{ Blocks, Bytes int64 }

// PromptArgs are the arguments of the prompt operations.
type PromptArgs struct {
	Scope       ScopeID
	ScopeFields []byte // canonical form, stored as a record with the scope's first block
	Blocks      []BlockKey
	Index       []BlockPut
	Lease       [16]byte // for OpLookup with LeaseMS, and OpRelease
	LeaseMS     int64
	UntilMS     int64
	Capacity    Capacity
	AllScopes   bool   // OpClear: the whole namespace
	Damaged     []Ref  // OpUnindex: Damaged[i] belongs to Blocks[i]
	After       []byte // OpClear: Result.Next of the step before
}

// BlockOutcome is what a prompt operation found or did for one block.
type BlockOutcome struct {
	Present       bool // it was there (before a delete; already before an index)
	Stored        bool // OpIndex: stored by this command
	Leased        bool // OpDeleteBlocks: stays because of a lease
	Refused       bool // OpIndex: no room that is neither leased nor pinned, or the memory budget is used up
	Value         Value
	Size          int64
	Checksum      uint64
	PinnedUntilMS int64
}

// Result is the outcome of a command, filled in by the machine.
type Result struct {
	// Err is why nothing was done (VersionMismatch, AlreadyExists, Expired, Exhausted, ...); nil otherwise.
	Err *kverr.Error
	// Write is the outcome of OpPut, OpDelete and OpEdit.
	Write WriteResult
	// Revision is the command's revision; 0 when it changed nothing.
	Revision uint64
	// Committed, Writes and Failures are the outcome of OpTxn; Writes[i] belongs to Ops[i].
	Committed bool
	Writes    []WriteResult
	Failures  []TxnFailure
	// Blocks is the outcome of the prompt operations, per block.
	Blocks []BlockOutcome
	// LeaseExpiresMS is when the lease of OpLookup ends.
	LeaseExpiresMS int64
	// Deleted and Leased count for OpClear; More asks to repeat OpClear or OpDropNamespace.
	Deleted, Leased int64
	More            bool
	// Next is PromptArgs.After of the next step, when OpClear asks for More.
	Next []byte
	// Evicted and Damaged count blocks of the namespace since the shard was loaded; set by OpTouch, also without blocks.
	Evicted, Damaged int64
	// Number is what OpEdit made: the sum, the length of the value, or 1 when it set the expiry.
	Number int64
	// Duplicate: the outcome is the remembered one of an earlier try; a value written for this try is an orphan.
	Duplicate bool
}

// Command is one request to a shard. Exactly the arguments of its Op are set. It belongs to the machine until Release is called.
type Command struct {
	Op        Op
	Namespace NamespaceID
	ID        Identity
	Put       Put
	Delete    Delete
	Txn       *Txn
	Edit      *Edit
	Relocate  *Relocate
	Forget    []ObjectID
	Prompt    *PromptArgs

	// UntilMS is when whoever waits for the outcome stops waiting, by the clock of the process that it is in; 0 = not known. It does not travel.
	UntilMS int64

	// Result is the outcome, valid once Done is called with a nil error.
	Result Result
	// Done is called exactly once, by Release; it must not block.
	Done func(c *Command, err error)
	// Follow is who follows the command, until Release; nil for almost all. It is no part of what the machine does.
	Follow *host.Way
}

// NamesRefs tells whether Refs may yield anything; it is cheap for the frequent commands.
func (c *Command) NamesRefs() bool {
	switch c.Op {
	case OpPut:
		return c.Put.Value.Ref.Object != (ObjectID{})
	case OpTxn, OpRelocate, OpIndex:
		return true
	}
	return false
}

// Refs yields the references that the command would bring into the state.
func (c *Command) Refs(yield func(*Ref) bool) {
	one := func(f *Ref) bool { return f.Object == (ObjectID{}) || yield(f) }
	switch c.Op {
	case OpPut:
		one(&c.Put.Value.Ref)
	case OpTxn:
		for i := range c.Txn.Ops {
			if p := c.Txn.Ops[i].Put; p != nil && !one(&p.Value.Ref) {
				return
			}
		}
	case OpRelocate:
		one(&c.Relocate.To)
	case OpIndex:
		for i := range c.Prompt.Index {
			if !one(&c.Prompt.Index[i].Value.Ref) {
				return
			}
		}
	}
}

// Release calls Done, once whoever follows the command is told.
func (c *Command) Release(err error) {
	if w := c.Follow; w != nil {
		c.Follow = nil
		if err == nil && c.Result.Err != nil {
			w.End(c.Result.Err)
		} else {
			w.End(err)
		}
	}
	c.Done(c, err)
}

// Way is who follows the command.
func (c *Command) Way() *host.Way { return c.Follow }
