package redislog

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"

	"kvstore/components/wal/driver"
)

// Manifest implements driver.Engine.
func (e *Engine) Manifest(ctx context.Context, shard string) ([]byte, driver.Tag, error) {
	if err := e.begin(ctx, shard); err != nil {
		return nil, "", err
	}
	k := e.keys(shard)
	var fields []any
	err := e.read(ctx, func(ctx context.Context) (err error) {
		fields, err = e.client.HMGet(ctx, k.manifest, "tag", "data").Result()
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("manifest of shard %s: %w", shard, err)
	}
	tag, ok := fields[0].(string)
	if !ok {
		return nil, "", fmt.Errorf("manifest of shard %s: %w", shard, driver.ErrNotExist)
	}
	data, ok := fields[1].(string)
	if !ok {
		return nil, "", fmt.Errorf("manifest of shard %s: %w: it has a tag and no data", shard, driver.ErrCorrupt)
	}
	return []byte(data), driver.Tag(tag), nil
}

// SwapManifest implements driver.Engine. Tags are random, so a try that was delayed finds its tag gone, or its own in place.
func (e *Engine) SwapManifest(ctx context.Context, shard string, old driver.Tag, data []byte) (driver.Tag, error) {
	if err := e.begin(ctx, shard); err != nil {
		return "", err
	}
	k, tag := e.keys(shard), newID()
	swapped, err := e.runInt(ctx, swapScript, []string{k.manifest}, string(old), tag, data)
	switch {
	case err != nil:
		return "", fmt.Errorf("manifest of shard %s: %w", shard, err)
	case swapped == 0:
		return "", fmt.Errorf("manifest of shard %s: %w", shard, driver.ErrConflict)
	}
	return driver.Tag(tag), nil
}

// newID returns 16 random hexadecimal digits.
func newID() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// RemoveShard implements driver.Engine. First goes what lets anything be written, then, object by object, the rest: a crash in between leaves
// objects that removing the shard again removes.
func (e *Engine) RemoveShard(ctx context.Context, shard string) error {
	if err := e.begin(ctx, shard); err != nil {
		return err
	}
	k := e.keys(shard)
	if _, err := e.runInt(ctx, removeScript, []string{k.manifest, k.head, k.records}); err != nil {
		return fmt.Errorf("remove shard %s: %w", shard, err)
	}
	err := e.eachObject(ctx, &k, "", func(name string, s state) error { return e.drop(ctx, &k, name, s) })
	if err == nil {
		_ = e.client.Unlink(ctx, k.removed).Err() // without a manifest nothing is written; what is left of it expires
	}
	return err
}
