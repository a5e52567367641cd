package directory

import (
	"kvstore/actors/host"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// Limits of the directory. A command that would exceed one is refused with kverr.Exhausted, naming it.
const (
	MaxKeyspaces  = 1_000  // keyspaces
	MaxNamespaces = 1_000  // namespaces of one keyspace
	MaxTotal      = 20_000 // namespaces of all keyspaces
	MaxShards     = 65_536 // shards of all keyspaces
	MaxChores     = 10_000 // chores that are not done
	MaxSettled    = 50_000 // keyspaces removed within QuarantineMS
	MaxMarks      = 8_192  // marks of one command
)

// QuarantineMS is how long the uid of a removed keyspace is remembered, in milliseconds. Until then it is not given out again, so that a request to
// create it that was repeated late makes nothing; and at its end the removal of its shards is done once more, for what an
// owner that did not know yet that it was none any more created meanwhile.
const QuarantineMS = 3_600_000

// DefaultName is the keyspace, and in it the namespace, that exists unasked.
const DefaultName = "default"

// Op is what a command asks for. Reads are no commands: see Catalog.
type Op uint8

// Operations.
const (
	OpNone            Op = iota
	OpBootstrap          // make default/default, unless the directory was ever used: Keyspace.UID and Shards
	OpCreateKeyspace     // Keyspace: Name, UID, Shards
	OpDeleteKeyspace     // Keyspace: Name, UID
	OpCreateNamespace    // Namespace: all but what is output only
	OpUpdateNamespace    // Namespace and Fields
	OpDeleteNamespace    // Namespace: Keyspace, KeyspaceUID, Name, UID
	OpFinishChore        // Chore: its id
	OpRemember           // Marks
	OpAcceptLoss         // Marks: one, of which the shard alone counts
	OpRaise              // the catalog's revision becomes Version at least: its store has lost changes that were seen
)

// Fields says which fields of a namespace to change.
type Fields uint8

// Fields that can be changed.
const (
	FieldCapacityBlocks Fields = 1 << iota
	FieldCapacityBytes
	FieldDefaultTTL
	FieldOpsPerSecond
)

// KeyspaceSpec says what keyspace to make or find.
type KeyspaceSpec struct {
	Name string
	// UID has 16 hexadecimal digits, drawn at random by whoever makes the keyspace; a machine draws nothing. It also is the identity of the
	// request: made again with the same one it is made once. With OpDeleteKeyspace it is which keyspace of that name is
	// meant; empty = whichever.
	UID    string
	Shards int // 1 to ring.MaxShards
}

// NamespaceSpec says what namespace to make, change or find. Names are checked by the sender (key.CheckName) and by the machine.
type NamespaceSpec struct {
	Keyspace       string
	KeyspaceUID    string // which keyspace of that name is meant; empty = whichever
	Name           string
	UID            uint32             // change and delete: which namespace of that name is meant; 0 = whichever
	Kind           kvv1.NamespaceKind // UNSPECIFIED means KV
	PathElements   int                // partition rule: so many path elements; 0 = see Whole
	Whole          bool               // partition rule: the whole namespace; false and no PathElements = hash tag
	CapacityBlocks int64
	CapacityBytes  int64
	DefaultTTLMS   int64
	OpsPerSecond   int64
}

// Command is one request to the directory. It belongs to the machine until Release.
type Command struct {
	Op        Op
	Keyspace  KeyspaceSpec
	Namespace NamespaceSpec
	Fields    Fields
	// Identity is drawn at random, 16 bytes, by whoever asks to make or change a namespace: asked again with the same one, unless
	// something else changed it meanwhile, it is done once and succeeds. Empty = none.
	Identity []byte
	Version  uint64 // update and delete: the version that the resource must have; 0 = any
	Chore    uint64
	Marks    []Mark

	// Err is why nothing was done; nil otherwise. Valid once Done is called with a nil error, as is Revision.
	Err *kverr.Error
	// Revision at which the command took effect; the catalog of that revision shows it, unless it changed marks alone. 0 when it
	// changed nothing.
	Revision uint64
	// Done is called exactly once, by Release; it must not block.
	Done func(c *Command, err error)
}

// Way is who follows the command: nobody does.
func (c *Command) Way() *host.Way { return nil }

// Release calls Done.
func (c *Command) Release(err error) { c.Done(c, err) }

// Size is an estimate of the bytes that the command holds.
func (c *Command) Size() int { return 512 + 64*len(c.Marks) }

// Grows tells whether the command may make the state larger.
func (c *Command) Grows() bool { return c.Op == OpCreateKeyspace || c.Op == OpCreateNamespace }

// Until is not known: what the directory was asked for it does.
func (c *Command) Until() int64 { return 0 }
