package disklog

import (
	"errors"
	"fmt"

	"kvstore/components/wal/disklog/vfs"
)

// Limits and defaults of Config, in bytes unless said otherwise.
const (
	defaultSegment   = 64 << 20
	minSegment       = 16 << 10
	maxSegment       = 1 << 30
	firstSegment     = 4 << 20 // new stores begin with small segments, each double the one before
	defaultReserve   = 256 << 20
	defaultHandles   = 256
	maxBatch         = 4 << 20   // what one write gathers, unless one record alone is bigger
	maxRecord        = 64 << 20  // segments are made longer for records that do not fit
	copyChunk        = 256 << 10 // what is copied out of an old segment at a time
	minLogSegments   = 4         // fewer are never copied out
	objectBuffer     = 256 << 10
	minPack          = 64 << 10
	firstPack        = 4 << 20 // new stores begin with small packs, too
	maxPacked        = 8 << 20 // longer objects are files of their own
	maxSpares        = 2       // empty packs that are kept
	packScanners     = 8       // packs that Open reads at once
	checkpointShare  = 0.25    // the part of the reserve that checkpoint objects leave free
	manifestShare    = 0.05
	segmentShare     = 0.05
	maxManifestBytes = 64 << 20
)

// Config tunes an engine. The zero value is ready.
type Config struct {
	// SegmentBytes is the length of a log segment, 16 KiB to 1 GiB. Default 64 MiB. One that begins with a
	// record too long for it is made longer.
	SegmentBytes int64
	// Reserve is the free space in bytes at which appends and value objects are refused with ErrNoSpace; a quarter of it is
	// kept from checkpoints too. Default: the greater of 256 MiB and 1 % of the file system. Negative: none.
	Reserve int64
	// PackBytes is the length of the files that small objects are packed into, 64 KiB to 1 GiB. An object goes into one when it is at most an
	// eighth of that and 8 MiB long. Default: SegmentBytes, but at least 64 KiB.
	PackBytes int64
	// MaxHandles is how many object files, and how many packs, are kept open for reading. Default 256.
	MaxHandles int
	// Warn gets what went wrong behind a call that succeeded, such as a segment that could not be removed. May be nil.
	Warn func(error)
	// FS is the file system. nil is the real one.
	FS vfs.FS
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	if c.SegmentBytes == 0 {
		c.SegmentBytes = defaultSegment
	}
	if c.PackBytes == 0 {
		c.PackBytes = max(c.SegmentBytes, minPack)
	}
	if c.MaxHandles == 0 {
		c.MaxHandles = defaultHandles
	}
	if c.Warn == nil {
		c.Warn = func(error) {}
	}
	if c.FS == nil {
		c.FS = vfs.OS
	}
}

// Validate returns every fault of the configuration, joined.
func (c *Config) Validate() error {
	var faults []error
	if c.SegmentBytes < minSegment || c.SegmentBytes > maxSegment || c.SegmentBytes%4096 != 0 {
		faults = append(faults, fmt.Errorf("SegmentBytes is %d: must be a multiple of 4096 from %d to %d", c.SegmentBytes, minSegment, maxSegment))
	}
	if c.PackBytes < minPack || c.PackBytes > maxSegment || c.PackBytes%4096 != 0 {
		faults = append(faults, fmt.Errorf("PackBytes is %d: must be a multiple of 4096 from %d to %d", c.PackBytes, minPack, maxSegment))
	}
	if c.MaxHandles < 1 {
		faults = append(faults, fmt.Errorf("MaxHandles is %d: must be at least 1", c.MaxHandles))
	}
	return errors.Join(faults...)
}
