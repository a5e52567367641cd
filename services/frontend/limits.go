package frontend

import (
	"time"

	"kvstore/components/key"
)

// Limits that users meet are those of package key (DESIGN section 4); here is what only a frontend knows. Each is enforced with
// an error that names field, value and limit.
const (
	maxMetadata      = 64       // entries of user metadata of one key
	maxMetadataBytes = 16 << 10 // all user metadata of one key, names included
	maxTTLMS         = 100 * 365 * 24 * int64(time.Hour/time.Millisecond)

	defaultPageSize = 100

	// maxReplyBytes keeps unary replies, headers included, under what gRPC clients accept unasked.
	maxReplyBytes = key.MaxUnaryReply - 64<<10

	// chunkBytes is how much of a value one message of a stream carries, and how much of it is in memory at a time.
	chunkBytes = key.MaxChunk

	// maxUnaryValue bounds values in unary requests, batches and transactions whatever the configuration says; PutStream
	// carries larger ones.
	maxUnaryValue = key.MaxValue

	// maxRecvBytes is the largest message that gRPC takes: a value of maxUnaryValue with room for all that may come with it.
	// It is what bounds the memory of one request.
	maxRecvBytes = maxUnaryValue + 1<<20
)
