// Package values keeps the values of one shard that are stored apart from their keys (DESIGN D7): it writes them before the
// commands that name them, packs those of concurrent callers into one object, and sees to it that every object is either
// named by the shard's state or deleted.
//
// An object's life: written, then provisional until each of its references was handed to a command or dropped; named by the state
// when at least one command applied; dead when the state names it no more; deleted once the record that dropped it is
// checkpointed. Objects that lost their owner on the way are swept by a later epoch. The package knows one epoch of one shard;
// it does not decide when checkpoints happen and starts no goroutine that outlives Close.
package values

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/zeebo/xxh3"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
)

// Defaults of Config.
const (
	DefaultObjectBytes  = 8 << 20
	DefaultQueuedBytes  = 64 << 20
	DefaultWriters      = 1
	DefaultWriteTimeout = time.Minute
)

// Config bounds one shard's values. The zero value of each field takes its default.
type Config struct {
	// ObjectBytes is how many bytes of values are packed into one object; a caller's values are never split over two, so that
	// one call of more makes an object as large as itself. Default 8 MiB.
	ObjectBytes int
	// QueuedBytes bounds the values that wait to be written or are being written by Put; beyond it Put fails with
	// kverr.Overloaded. Default 64 MiB. One call is always let in when nothing waits.
	QueuedBytes int
	// Writers is how many objects are written at once; while that many are, callers' values gather. Default 1: a second writer makes
	// more and smaller objects (trace replay at 32 callers: fewer tokens/s where each is a file, no more where they share files).
	Writers int
	// WriteTimeout bounds one write of packed values. Default 1 minute.
	WriteTimeout time.Duration
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	if c.ObjectBytes == 0 {
		c.ObjectBytes = DefaultObjectBytes
	}
	if c.QueuedBytes == 0 {
		c.QueuedBytes = DefaultQueuedBytes
	}
	if c.Writers == 0 {
		c.Writers = DefaultWriters
	}
	if c.WriteTimeout == 0 {
		c.WriteTimeout = DefaultWriteTimeout
	}
}

// Validate lists every fault.
func (c *Config) Validate() error {
	var faults []error
	if c.ObjectBytes < 1 {
		faults = append(faults, fmt.Errorf("ObjectBytes is %d: at least 1", c.ObjectBytes))
	}
	if c.QueuedBytes < 1 {
		faults = append(faults, fmt.Errorf("QueuedBytes is %d: at least 1", c.QueuedBytes))
	}
	if c.Writers < 1 || c.Writers > 64 {
		faults = append(faults, fmt.Errorf("Config.Writers is %d: 1 to 64", c.Writers))
	}
	if c.WriteTimeout < 0 {
		faults = append(faults, fmt.Errorf("WriteTimeout is %v: not negative", c.WriteTimeout))
	}
	return errors.Join(faults...)
}

// Host is what a Store needs of the actor whose values it keeps.
type Host interface {
	// Do hands commands to the shard, as host.Actor.Do.
	Do(cmds ...*shard.Command) error
	// Seq is the number of the last durable record.
	Seq() uint64
}

// Store keeps the values of one epoch of one shard. It is safe for any number of goroutines.
type Store struct {
	cfg  Config
	log  *wal.Log
	host Host

	background sync.WaitGroup
	stop       context.CancelFunc
	ctx        context.Context // of background work; ends with Close

	mu       sync.Mutex
	objects  map[shard.ObjectID]*object // guarded by mu, as is all below: objects of this epoch that are not settled
	queue    []*put
	queued   int              // bytes of queue and of what is being written
	writing  int              // objects of Put being written
	streams  int              // calls of WriteStream under way
	orphans  []shard.ObjectID // to delete
	deleting bool
	closed   bool
	written  int64 // bytes written since the last Collect
}

// object is an object with references that are on their way, or that arrived lately.
type object struct {
	left    int    // references that neither a command nor a drop has settled
	applied bool   // a command that names it is in the state
	unknown bool   // one may be: a later epoch finds out
	seq     uint64 // when left is 0: a record at or before this one named it last
}

// put is one call of Put.
type put struct {
	values    [][]byte
	bytes     int
	refs      []shard.Ref
	err       error
	done      chan struct{}
	abandoned bool // guarded by Store.mu: the caller has gone
}

// New makes the store of an actor's values. Log is the actor's.
func New(cfg Config, log *wal.Log, host Host) *Store {
	cfg.EnsureDefaults()
	ctx, stop := context.WithCancel(context.Background())
	return &Store{cfg: cfg, log: log, host: host, ctx: ctx, stop: stop, objects: make(map[shard.ObjectID]*object)}
}

// Close stops background work and waits for it. Calls under way end with an error.
func (s *Store) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.background.Wait()
}

// Written is how many bytes of values were written since the last Collect.
func (s *Store) Written() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.written
}

// Busy tells whether references are on their way, so that the shard must not be put to sleep.
func (s *Store) Busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writing > 0 || s.streams > 0 || len(s.queue) > 0 {
		return true
	}
	for _, o := range s.objects {
		if o.left > 0 {
			return true
		}
	}
	return false
}

// Put stores values durably and returns where, in order. The caller hands every reference to a command (see Track) or to
// Drop. Values must not change until it returns. Concurrent calls share objects.
func (s *Store) Put(ctx context.Context, values ...[]byte) ([]shard.Ref, error) {
	p := &put{values: values, refs: make([]shard.Ref, len(values)), done: make(chan struct{})}
	for i, v := range values {
		p.refs[i].Length, p.refs[i].Checksum = int64(len(v)), xxh3.Hash(v)
		p.bytes += len(v)
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, errClosed
	}
	if s.queued > 0 && s.queued+p.bytes > s.cfg.QueuedBytes {
		s.mu.Unlock()
		return nil, &kverr.Error{Kind: kverr.Overloaded, Op: "write values", Message: "too many bytes of values wait to be written", RetryAfterMS: 100}
	}
	s.queue = append(s.queue, p)
	s.queued += p.bytes
	var batch []*put
	if s.writing < s.cfg.Writers {
		s.writing++
		batch = s.next()
		s.background.Add(1)
	}
	s.mu.Unlock()
	if batch != nil {
		s.write(batch) // the idle case: no other goroutine is involved
		s.goOn()
		s.background.Done()
	}
	select {
	case <-p.done:
		return p.refs, p.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	select {
	case <-p.done:
		s.mu.Unlock()
		return p.refs, p.err
	default:
		p.abandoned = true
		s.mu.Unlock()
		return nil, context.Cause(ctx)
	}
}

var errClosed = &kverr.Error{Kind: kverr.Unavailable, Op: "write values", Message: "the shard is not open here any more", RetryAfterMS: 100}

// next takes from the queue what goes into one object. Mutex held.
func (s *Store) next() []*put {
	n, bytes := 0, 0
	for n < len(s.queue) && (n == 0 || bytes+s.queue[n].bytes <= s.cfg.ObjectBytes) {
		bytes += s.queue[n].bytes
		n++
	}
	batch := append([]*put(nil), s.queue[:n]...)
	clear(s.queue[:n])
	s.queue = s.queue[n:]
	if len(s.queue) == 0 {
		s.queue = nil
	}
	return batch
}

// goOn ends a turn of writing, or hands it to a goroutine when more has gathered.
func (s *Store) goOn() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		s.writing--
		return
	}
	batch := s.next()
	s.background.Go(func() {
		for {
			s.write(batch)
			s.mu.Lock()
			if len(s.queue) == 0 {
				s.writing--
				s.mu.Unlock()
				return
			}
			batch = s.next()
			s.mu.Unlock()
		}
	})
}

// write stores one batch as one object and hands out its references.
func (s *Store) write(batch []*put) {
	var values [][]byte
	bytes := 0
	for _, p := range batch {
		values = append(values, p.values...)
		bytes += p.bytes
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.cfg.WriteTimeout)
	id, size, offsets, err := s.log.PackValues(ctx, values)
	cancel()

	s.mu.Lock()
	defer s.mu.Unlock()
	s.queued -= bytes
	if err != nil {
		s.mayExist(id)
		err = writeError(err)
		for _, p := range batch {
			p.err = err
			close(p.done)
		}
		return
	}
	name := shard.ObjectID(id)
	s.written += size
	s.objects[name] = &object{left: len(values)}
	for _, p := range batch {
		for i := range p.refs {
			p.refs[i].Object, p.refs[i].ObjectBytes, p.refs[i].Offset = name, size, offsets[i]
		}
		offsets = offsets[len(p.refs):]
		if p.abandoned {
			for range p.refs {
				s.settle(name, false, false)
			}
		}
		close(p.done)
	}
}

// WriteStream stores one value of exactly size bytes from r as an object of its own. The reference goes to a command or to Drop.
func (s *Store) WriteStream(ctx context.Context, size int64, r io.Reader) (shard.Ref, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return shard.Ref{}, errClosed
	}
	s.streams++
	s.mu.Unlock()
	// Close does not wait for r, which may be a slow caller; it cuts the write off.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	h := xxh3.New()
	counted := &exactly{r: io.TeeReader(r, h), left: size}
	id, err := s.log.StreamValue(ctx, size, counted)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams--
	if err != nil {
		s.mayExist(id)
		if counted.err != nil {
			return shard.Ref{}, counted.err
		}
		return shard.Ref{}, writeError(err)
	}
	name := shard.ObjectID(id)
	s.written += size
	s.objects[name] = &object{left: 1}
	return shard.Ref{Object: name, ObjectBytes: size, Length: size, Checksum: h.Sum64()}, nil
}

// exactly fails when r ends early, or goes on after the announced size.
type exactly struct {
	r    io.Reader
	left int64
	err  error // why; what the caller of WriteStream gets
}

func (e *exactly) Read(p []byte) (int, error) {
	if e.err != nil {
		return 0, e.err
	}
	if e.left == 0 {
		var one [1]byte
		n, err := e.r.Read(one[:])
		if n > 0 {
			e.err = &kverr.Error{Kind: kverr.InvalidArgument, Op: "write a value", Field: "size", Message: "the value is longer than announced"}
			return 0, e.err
		}
		if err != nil && err != io.EOF {
			e.err = err
		}
		return 0, err
	}
	n, err := e.r.Read(p[:min(int64(len(p)), e.left)])
	e.left -= int64(n)
	if err == io.EOF && e.left > 0 {
		err = &kverr.Error{Kind: kverr.InvalidArgument, Op: "write a value", Field: "size", Message: fmt.Sprintf("the value ends %d bytes early", e.left)}
	}
	if err != nil && err != io.EOF {
		e.err = err
	}
	if err == io.EOF {
		err = nil // the next Read says so
	}
	return n, err
}

// writeError makes the error of a value that was not stored: nothing names it, so nothing was applied.
func writeError(err error) error {
	if errors.Is(err, driver.ErrNoSpace) {
		return &kverr.Error{Kind: kverr.NoSpace, Op: "write values", Message: "the store has no room for it above its reserve of free space: long values are refused until its disk has more; reads go on", RetryAfterMS: 1000, Err: err}
	}
	return &kverr.Error{Kind: kverr.Unavailable, Op: "write values", Message: "the values could not be stored; nothing was applied", RetryAfterMS: 100, Err: err}
}

// Read fills p from offset off of a value. NotFound: the object is gone, so look the key up again; DataLoss when it names the
// same reference still, which is for the caller to find out. The bytes are not verified.
func (s *Store) Read(ctx context.Context, ref shard.Ref, off int64, p []byte) error {
	if off < 0 || off+int64(len(p)) > ref.Length {
		return &kverr.Error{Kind: kverr.InvalidArgument, Op: "read a value", Field: "offset", Message: "outside of the value"}
	}
	err := s.log.ReadValue(ctx, wal.ObjectID(ref.Object), ref.Offset+off, p)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, driver.ErrNotExist):
		return &kverr.Error{Kind: kverr.NotFound, Op: "read a value", Message: "the value's object is gone", Err: err}
	case errors.Is(err, driver.ErrCorrupt):
		return &kverr.Error{Kind: kverr.DataLoss, Op: "read a value", Message: "the value's object is damaged", Err: err}
	}
	return &kverr.Error{Kind: kverr.Unavailable, Op: "read a value", Message: "the value could not be read", RetryAfterMS: 100, Err: err}
}
