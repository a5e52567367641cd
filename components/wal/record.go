package wal

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	"kvstore/components/kverr"
	"kvstore/components/wal/driver"
)

// recordFormat is the version of the record format that this release writes and reads.
const recordFormat = 1

// Field numbers of dataplane.v1.Record and RecordHeader. Records are written and read by hand: one allocation a record
// when writing, none when reading. Tests compare with the generated code.
const (
	fieldHeader protowire.Number = 1
	fieldBody   protowire.Number = 2

	fieldFormat        protowire.Number = 1
	fieldShard         protowire.Number = 2
	fieldEpoch         protowire.Number = 3
	fieldWriter        protowire.Number = 4
	fieldPreviousEpoch protowire.Number = 5
	fieldSeq           protowire.Number = 6
	fieldShardTime     protowire.Number = 7
	fieldCodec         protowire.Number = 8
	fieldKeyID         protowire.Number = 9
	fieldFence         protowire.Number = 12
)

// record is a decoded record; body points into what it was decoded from.
type record struct {
	epoch         driver.Epoch
	previousEpoch uint64
	seq           uint64
	timeMS        int64
	fence         bool
	body          []byte
}

// recordPrefix encodes the header's fields that are the same for every record of an epoch after its fence.
func recordPrefix(shard string, e driver.Epoch, previousEpoch uint64) []byte {
	b := make([]byte, 0, 64+len(shard))
	b = appendUint(b, fieldFormat, recordFormat)
	b = protowire.AppendTag(b, fieldShard, protowire.BytesType)
	b = protowire.AppendString(b, shard)
	b = appendUint(b, fieldEpoch, e.Counter)
	b = protowire.AppendTag(b, fieldWriter, protowire.BytesType)
	b = protowire.AppendBytes(b, e.Writer[:])
	return appendUint(b, fieldPreviousEpoch, previousEpoch)
}

// encodeRecord returns a record, in one allocation.
func encodeRecord(prefix []byte, seq uint64, timeMS int64, body []byte) []byte {
	header := len(prefix) + sizeUint(seq) + sizeUint(uint64(timeMS))
	size := 1 + protowire.SizeBytes(header)
	if len(body) > 0 {
		size += 1 + protowire.SizeBytes(len(body))
	}
	b := make([]byte, 0, size)
	b = protowire.AppendTag(b, fieldHeader, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(header))
	b = append(b, prefix...)
	b = appendUint(b, fieldSeq, seq)
	b = appendUint(b, fieldShardTime, uint64(timeMS))
	if len(body) > 0 {
		b = protowire.AppendTag(b, fieldBody, protowire.BytesType)
		b = protowire.AppendBytes(b, body)
	}
	return b
}

// encodeFence returns the record that opens an epoch.
func encodeFence(shard string, e driver.Epoch, previousEpoch, seq uint64) []byte {
	header := appendUint(recordPrefix(shard, e, previousEpoch), fieldSeq, seq)
	header = appendUint(header, fieldFence, 1)
	b := protowire.AppendTag(make([]byte, 0, 4+len(header)), fieldHeader, protowire.BytesType)
	return protowire.AppendBytes(b, header)
}

// appendUint appends a varint field, nothing when v is 0, as proto3 does.
func appendUint(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

// sizeUint is how many bytes appendUint appends for a field number below 16.
func sizeUint(v uint64) int {
	if v == 0 {
		return 0
	}
	return 1 + protowire.SizeVarint(v)
}

// decodeRecord decodes a record of the shard. Its errors are ErrUnsupported, with the name of what is not known, or damage.
func decodeRecord(shard string, data []byte) (record, error) {
	var r record
	var header []byte
	headers := 0
	err := walkFields(data, func(field protowire.Number, kind protowire.Type, _ uint64, value []byte) {
		switch {
		case kind != protowire.BytesType:
		case field == fieldHeader:
			header = value
			headers++
		case field == fieldBody:
			r.body = value
		}
	})
	if err == nil && headers != 1 {
		err = fmt.Errorf("%d headers", headers)
	}
	if err != nil {
		return record{}, damaged("decode a record", "it is not a record: %v", err)
	}
	var format, codec, keyID uint64
	var writer, name []byte
	err = walkFields(header, func(field protowire.Number, kind protowire.Type, v uint64, value []byte) {
		if kind == protowire.BytesType {
			switch field {
			case fieldShard:
				name = value
			case fieldWriter:
				writer = value
			}
			return
		}
		switch field {
		case fieldFormat:
			format = uint64(uint32(v))
		case fieldEpoch:
			r.epoch.Counter = v
		case fieldPreviousEpoch:
			r.previousEpoch = v
		case fieldSeq:
			r.seq = v
		case fieldShardTime:
			r.timeMS = int64(v)
		case fieldCodec:
			codec = uint64(uint32(v))
		case fieldKeyID:
			keyID = uint64(uint32(v))
		case fieldFence:
			r.fence = v != 0
		}
	})
	switch {
	case err != nil:
		return record{}, damaged("decode a record", "its header is damaged: %v", err)
	case format != recordFormat:
		return record{}, fmt.Errorf("record %d of shard %s: %w: record format %d, known is %d", r.seq, shard, ErrUnsupported, format, recordFormat)
	case codec != 0 || keyID != 0:
		return record{}, fmt.Errorf("record %d of shard %s: %w: sealed with codec %d and key %d, known is codec 0 (plain)", r.seq, shard, ErrUnsupported, codec, keyID)
	case string(name) != shard:
		return record{}, damaged("decode a record", "record %d belongs to shard %.64q, not to %s", r.seq, name, shard)
	case len(writer) != len(r.epoch.Writer):
		return record{}, damaged("decode a record", "record %d of shard %s has a writer id of %d bytes", r.seq, shard, len(writer))
	case r.fence && len(r.body) > 0:
		return record{}, damaged("decode a record", "record %d of shard %s is a fence with a body", r.seq, shard)
	}
	r.epoch.Writer = [16]byte(writer)
	return r, nil
}

// walkFields calls fn for each varint (v) and each bytes field (value) of a message.
func walkFields(b []byte, fn func(field protowire.Number, kind protowire.Type, v uint64, value []byte)) error {
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		switch kind {
		case protowire.VarintType:
			var v uint64
			if v, n = protowire.ConsumeVarint(b); n >= 0 {
				fn(field, kind, v, nil)
			}
		case protowire.BytesType:
			var value []byte
			if value, n = protowire.ConsumeBytes(b); n >= 0 {
				fn(field, kind, 0, value)
			}
		default:
			n = protowire.ConsumeFieldValue(field, kind, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
	}
	return nil
}

// damaged returns a DataLoss around driver.ErrCorrupt.
func damaged(op, format string, args ...any) error {
	return &kverr.Error{Kind: kverr.DataLoss, Op: op, Message: fmt.Sprintf(format, args...), Err: driver.ErrCorrupt}
}

// damagedShard is damaged with the shard in the message, which is all that users read.
func damagedShard(op, shard, format string, args ...any) error {
	return damaged(op, "shard %s: %s", shard, fmt.Sprintf(format, args...))
}

// isDamage tells whether err says already that data is lost.
func isDamage(err error) bool {
	return kverr.KindOf(err) == kverr.DataLoss
}
