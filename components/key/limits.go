package key

// Limits that users meet (DESIGN section 4). Each is enforced at the border with an error that names the field, what it has
// and the limit. Sizes are bytes.
const (
	MaxKey  = 1 << 10 // a key; at least 1
	MaxName = 64      // the name of a keyspace or namespace; at least 1

	MaxValue        = 16 << 20  // a value, unless configured
	MaxValueConfig  = 512 << 20 // what a value may be configured to
	MaxContentType  = 256
	MaxEncoding     = 64
	MaxTags         = 32  // of one key
	MaxTag          = 256 // name and value of a tag together
	MaxPathElements = 16  // of a partition rule

	MaxBatchOps         = 1000    // operations of a batch
	MaxBatch            = 8 << 20 // a batch, unless it is one value of maximum size
	MaxTransactionOps   = 2000    // conditions and operations of a transaction together
	MaxTransaction      = 8 << 20 // a transaction
	MaxPipelineOps      = 1000    // operations of one message of a pipeline
	MaxPipelineMessage  = 4 << 20 // one message of a pipeline
	MaxListPage         = 1000    // items of a page
	MaxUnaryReply       = 4 << 20 // a unary reply is smaller than this: what gRPC clients accept unasked
	MaxChunk            = 1 << 20 // one message of a stream of bytes
	MaxNotAfterAheadMS  = 10 * 60 * 1000
	MaxShardsInKeyspace = 1024
	MaxRate             = 1_000_000_000 // operations a second that a namespace or a client may be limited to

	MaxLookup      = 65_536    // references of a prompt lookup
	MaxBlockID     = 128       // a prompt block's id; at least 1
	MaxBlock       = 128 << 20 // a prompt block, unless configured
	MaxBlockConfig = 512 << 20 // what a prompt block may be configured to
	MaxLeaseMS     = 30_000    // a lease on prompt blocks
)
