package disklog

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"
	"sync"

	"kvstore/components/wal/driver"
)

// A manifest file is manifestMagic, a random tag of 16 bytes, the data, and a CRC32C of all before it.
const (
	manifestName     = "MANIFEST"
	manifestOverhead = 8 + 16 + 4
)

var manifestMagic = [8]byte{'K', 'V', 'S', 'M', 'A', 'N', 0, 1} // the last byte is the format version

// manifests stores one small file for each shard.
type manifests struct {
	e *Engine

	mu      sync.Mutex                // guards byShard
	byShard map[string]*manifestState // one for each shard that was asked for
}

// manifestState serializes what happens to one manifest.
type manifestState struct {
	life sync.RWMutex // held by RemoveShard, shared by Fence
	mu   sync.Mutex   // guards the file and settled
	// settled: what can be read is durable. Not so at first, because the process before may have been killed between a
	// rename and the sync of the folder, and not after an error.
	settled bool
}

func (m *manifests) init(e *Engine) {
	m.e = e
	m.byShard = make(map[string]*manifestState)
}

func (m *manifests) state(shard string) *manifestState {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.byShard[shard]
	if s == nil {
		s = new(manifestState)
		m.byShard[shard] = s
	}
	return s
}

func (m *manifests) life(shard string) *sync.RWMutex { return &m.state(shard).life }

// exists returns driver.ErrNotExist when a shard has no manifest.
func (m *manifests) exists(shard string) error {
	_, _, err := m.e.fs.Stat(m.path(shard))
	if errors.Is(err, fs.ErrNotExist) {
		return driver.ErrNotExist
	}
	return err
}

func (m *manifests) path(shard string) string {
	return m.e.path(shardsDir, shard, manifestName)
}

// Manifest implements driver.Engine.
func (e *Engine) Manifest(_ context.Context, shard string) ([]byte, driver.Tag, error) {
	if err := driver.CheckShard(shard); err != nil {
		return nil, "", err
	}
	if e.isClosed() {
		return nil, "", driver.ErrClosed
	}
	s := e.manifests.state(shard)
	s.mu.Lock()
	defer s.mu.Unlock()
	data, tag, err := e.manifests.read(shard, s)
	if err != nil {
		return nil, "", fmt.Errorf("reading the manifest of %s: %w", shard, err)
	}
	return data, tag, nil
}

// read reads a manifest. The caller holds s.mu.
func (m *manifests) read(shard string, s *manifestState) ([]byte, driver.Tag, error) {
	path := m.path(shard)
	if !s.settled {
		if err := ignoreNotExist(m.e.fs.SyncDir(filepath.Dir(path))); err != nil {
			return nil, "", err
		}
		if err := m.e.fs.SyncDir(m.e.path(shardsDir)); err != nil {
			return nil, "", err
		}
		s.settled = true
	}
	b, err := readFile(m.e.fs, path, maxManifestBytes+manifestOverhead)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", driver.ErrNotExist
	}
	if err != nil {
		return nil, "", err
	}
	n := len(b) - 4
	if n < manifestOverhead-4 || [8]byte(b[:8]) != manifestMagic || binary.LittleEndian.Uint32(b[n:]) != m.checksum(shard, b[:n]) {
		return nil, "", fmt.Errorf("%w: %s: wrong checksum", driver.ErrCorrupt, path)
	}
	return b[24:n:n], driver.Tag(hex.EncodeToString(b[8:24])), nil
}

// checksum covers the shard's name too, so that another shard's manifest does not pass.
func (m *manifests) checksum(shard string, b []byte) uint32 {
	return crc32.Update(crc32.Checksum([]byte(shard), castagnoli), castagnoli, b)
}

// SwapManifest implements driver.Engine. It may use the reserve: manifests are small, and checkpoints need them.
func (e *Engine) SwapManifest(_ context.Context, shard string, old driver.Tag, data []byte) (driver.Tag, error) {
	if err := driver.CheckShard(shard); err != nil {
		return "", err
	}
	if len(data) > maxManifestBytes {
		return "", fmt.Errorf("%w: a manifest of %d bytes, at most %d", driver.ErrRefused, len(data), maxManifestBytes)
	}
	if e.isClosed() {
		return "", driver.ErrClosed
	}
	s := e.manifests.state(shard)
	s.mu.Lock()
	defer s.mu.Unlock()
	tag, err := e.manifests.swap(shard, s, old, data)
	if err != nil {
		return "", fmt.Errorf("writing the manifest of %s: %w", shard, err)
	}
	return tag, nil
}

func (m *manifests) swap(shard string, s *manifestState, old driver.Tag, data []byte) (driver.Tag, error) {
	_, tag, err := m.read(shard, s)
	if err != nil && !errors.Is(err, driver.ErrNotExist) {
		return "", err
	}
	if tag != old {
		return "", driver.ErrConflict
	}
	if err := m.e.space.take(int64(len(data))+manifestOverhead, manifestShare); err != nil {
		return "", err
	}
	b := make([]byte, 24, len(data)+manifestOverhead)
	copy(b, manifestMagic[:])
	_, _ = rand.Read(b[8:24]) // never fails
	b = append(b, data...)
	b = binary.LittleEndian.AppendUint32(b, m.checksum(shard, b))
	path := m.path(shard)
	if err := m.e.objects.folders.make(filepath.Dir(path)); err != nil {
		return "", noSpace(err)
	}
	s.settled = false
	if err := writeFile(m.e.fs, m.e.objects.temporary(), path, b); err != nil {
		return "", err
	}
	s.settled = true
	return driver.Tag(hex.EncodeToString(b[8:24])), nil
}

// remove removes a manifest, durably.
func (m *manifests) remove(shard string) error {
	s := m.state(shard)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settled = false
	path := m.path(shard)
	if err := ignoreNotExist(m.e.fs.Remove(path)); err != nil {
		return err
	}
	return ignoreNotExist(m.e.fs.SyncDir(filepath.Dir(path)))
}
