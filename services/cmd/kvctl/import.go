package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"kvstore/client"
	"kvstore/components/kverr"
)

var importCommand = command{
	args: "FILE|-", min: 1, max: 1, complete: completeFiles,
	short: "store what an export has, from JSON lines",
	help: `Stores each entry of a file of kvctl export, or of one made by hand: lines such as {"key":"a","value":"1"}, with value_base64 in
place of value for bytes that are no text, and content_type, encoding, tags, metadata and expires as they like. Keys that exist
are overwritten, or left alone with --if-absent; either way an import may be repeated. What has expired is left out, what expires
does so at the same moment as before (by this machine's clock). Entries without an expiry get the namespace's default. Versions are new ones.

While it runs it notes how far it is in FILE.import, and removes that at its end. An import that was interrupted, even by
kill -9, is gone on with by --resume: it repeats what it had done in its last second at most.

A line that makes no sense, or that the server refuses, ends the import, with its number; --keep-going tells of such lines and
goes on, and the exit code is 1 in the end. --check reads the file and stores nothing.

  kvctl import users.jsonl
  kvctl import users.jsonl --resume
  kvctl import users.jsonl --namespace copy --if-absent
  kvctl import users.jsonl --check
  gzip -dc orders.jsonl.gz | kvctl import - --namespace orders
  echo '{"key":"greeting","value":"hello","tags":{"lang":"en"}}' | kvctl import -`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		m := new(importer)
		fs.BoolVar(&m.stand.IfAbsent, "if-absent", false, "leave keys alone that exist")
		fs.BoolVar(&m.resume, "resume", false, "go on where FILE.import says, or begin")
		fs.BoolVar(&m.keepGoing, "keep-going", false, "go on behind lines that are wrong")
		fs.BoolVar(&m.check, "check", false, "only read the file")
		return func(ctx context.Context, s *session, args []string) error {
			m.s, m.file = s, args[0]
			if m.file == "-" && m.resume {
				return usagef("--resume wants a file: of standard input nobody knows how far it was read")
			}
			m.stand.Keyspace, m.stand.Namespace = cmp.Or(s.keyspace, "default"), cmp.Or(s.namespace, "default")
			return m.command(ctx)
		}
	},
}

// importer is a run of the command.
type importer struct {
	s         *session
	c         *client.Client
	file      string
	source    io.ReadSeeker // nil: not a file that can be read again
	resume    bool
	keepGoing bool
	check     bool

	r      *recordReader
	stand  stand     // where the file is stored up to, with what has been counted, which may be of lines behind that
	sure   stand     // with the counts up to there
	saved  time.Time // when sure was written to its file
	read   atomic.Int64
	stored atomic.Int64

	lines map[string]int64 // keys of batch with their lines
	batch []client.PutItem
	bytes int64 // of batch
	head  bool  // the file has one, so it must have an end
	whole bool
}

// stand is how far an import is: the content of its checkpoint.
type stand struct {
	Keyspace  string    `json:"keyspace"`
	Namespace string    `json:"namespace"`
	IfAbsent  bool      `json:"if_absent"`
	Size      int64     `json:"file_bytes"` // the file's
	Modified  time.Time `json:"file_modified"`

	Offset  int64 `json:"offset"` // in the file
	Line    int64 `json:"line"`   // that ends there
	Head    bool  `json:"has_head"`
	Stored  int64 `json:"stored"`
	Existed int64 `json:"existed"`
	Expired int64 `json:"expired"`
	Refused int64 `json:"refused"` // lines, with --keep-going
}

// Limits of what is sent together, and of what is told.
const (
	importBatch    = 1000
	importGather   = 2 << 20
	importTold     = 20 // lines that are wrong
	importNoteEach = time.Second / 2
)

func (m *importer) command(ctx context.Context) error {
	closed, err := m.open()
	if err != nil {
		return err
	}
	defer closed()
	if !m.check {
		if m.c, err = m.s.connect(ctx); err != nil {
			return err
		}
	}
	bar := startProgress(m.s.stderr, m.s.errWidth, func() (float64, string) {
		return ratio(m.read.Load(), m.stand.Size), fmt.Sprintf("%d keys, %s of the file", m.stored.Load(), bytesText(m.read.Load()))
	})
	err = m.run(ctx)
	bar.end()
	m.tell()
	if err == nil && m.head && !m.whole {
		err = errors.New("the export that the file is of was not whole: what it has is stored; kvctl export --resume goes on with it")
	}
	if err == nil && m.stand.Refused > 0 {
		err = fmt.Errorf("%d lines were refused", m.stand.Refused)
	}
	if m.source == nil || m.check {
		return err
	}
	if err == nil || m.stand.Offset >= m.stand.Size {
		return cmp.Or(err, ignoreMissing(os.Remove(m.noteName())))
	}
	return fmt.Errorf("%w\n  stored up to line %d; --resume goes on behind it", errors.Join(err, m.note()), m.stand.Line)
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// open opens the file, where it is to be gone on with.
func (m *importer) open() (closed func(), err error) {
	if m.file == "-" {
		m.r = newRecordReader(m.s.stdin)
		return func() {}, nil
	}
	f, err := os.Open(m.file)
	if err != nil {
		return nil, usagef("%v", err)
	}
	closed = func() { f.Close() }
	st, err := f.Stat()
	if err != nil {
		closed()
		return nil, err
	}
	m.stand.Size, m.stand.Modified = st.Size(), st.ModTime().UTC()
	if st.Mode().IsRegular() {
		m.source = f
		err = m.restore()
	}
	m.r = newRecordReader(f)
	m.r.at, m.r.line = m.stand.Offset, m.stand.Line
	m.head = m.stand.Head
	m.sure = m.stand
	if err == nil && m.stand.Offset > 0 {
		_, err = f.Seek(m.stand.Offset, io.SeekStart)
	}
	if err != nil {
		closed()
	}
	return closed, err
}

func (m *importer) noteName() string { return m.file + ".import" }

// restore takes up the checkpoint of an earlier run.
func (m *importer) restore() error {
	if !m.resume {
		return nil
	}
	text, err := os.ReadFile(m.noteName())
	if errors.Is(err, os.ErrNotExist) {
		return nil // there is nothing to go on with: from the beginning
	}
	if err != nil {
		return err
	}
	var was stand
	if err := json.Unmarshal(text, &was); err != nil {
		return fmt.Errorf("%s: %w", m.noteName(), err)
	}
	now := m.stand
	switch {
	case was.Keyspace != now.Keyspace || was.Namespace != now.Namespace || was.IfAbsent != now.IfAbsent:
		return usagef("that import was into keyspace %s, namespace %s, with --if-absent=%v: --resume goes on with the same only",
			was.Keyspace, was.Namespace, was.IfAbsent)
	case was.Size != now.Size || !was.Modified.Equal(now.Modified) || was.Offset > was.Size:
		return usagef("%s has changed since that import: begin anew, without --resume", m.file)
	}
	m.stand = was
	m.stored.Store(was.Stored)
	fmt.Fprintf(m.s.stderr, "going on behind line %d: %d keys are stored\n", was.Line, was.Stored)
	return nil
}

// note writes the checkpoint. Whoever finds an old one after a crash of the machine repeats what came after it.
func (m *importer) note() error {
	m.saved = time.Now()
	text, err := json.Marshal(m.sure)
	if err != nil {
		return err
	}
	return replaceFile(m.noteName(), text, 0o600)
}

// tell tells what has been done.
func (m *importer) tell() {
	st := m.stand
	what := "imported"
	if m.check {
		what = "could import"
	}
	line := fmt.Sprintf("%s %d keys", what, st.Stored)
	for _, n := range []struct {
		n    int64
		text string
	}{{st.Existed, "existed already"}, {st.Expired, "have expired"}, {st.Refused, "lines were refused"}} {
		if n.n > 0 {
			line += fmt.Sprintf(", %d %s", n.n, n.text)
		}
	}
	fmt.Fprintln(m.s.stderr, line)
}

// run imports line by line; entries that can go together do.
func (m *importer) run(ctx context.Context) error {
	m.lines = map[string]int64{}
	for {
		rec, err := m.r.record()
		m.read.Store(m.r.at)
		var bad lineError
		switch {
		case errors.Is(err, io.EOF):
			return m.flush(ctx)
		case errors.As(err, &bad):
			if err := m.flushBefore(ctx); err != nil {
				return err
			}
			if err := m.refuse(bad); err != nil {
				return err
			}
		case err != nil:
			// Of the line in which the reading failed nothing is known but its beginning.
			return errors.Join(err, m.store(ctx, m.r.from, m.r.line))
		default:
			if err := m.take(ctx, &rec); err != nil {
				return err
			}
		}
	}
}

// take does what a record asks for.
func (m *importer) take(ctx context.Context, rec *record) error {
	misplaced := func(text string) error {
		if err := m.flushBefore(ctx); err != nil {
			return err
		}
		return m.refuse(lineError{m.r.line, errors.New(text)})
	}
	switch {
	case m.whole && rec.Export == nil:
		return misplaced("follows the end of the export")
	case rec.Export != nil: // several exports may follow each other
		if m.head && !m.whole {
			return misplaced("begins an export before the one before it has ended")
		}
		m.head, m.whole = true, false
		return nil
	case rec.End != nil:
		m.whole = true
		return nil
	case rec.Chunk != nil:
		return misplaced("is a chunk of no entry")
	}
	o := &client.PutOptions{ContentType: rec.ContentType, Encoding: rec.Encoding, Metadata: rec.Metadata, Tags: rec.Tags}
	if m.stand.IfAbsent {
		o.If = client.IfAbsent()
	}
	if rec.Expires != nil {
		if o.TTL = time.Until(*rec.Expires); o.TTL <= 0 {
			if !rec.Chunked {
				m.stand.Expired++
				return nil
			}
			if err := m.flushBefore(ctx); err != nil {
				return err
			}
			m.stand.Expired++
			return m.skip(newChunks(m.r, *rec.Size))
		}
	}
	if rec.Chunked {
		return m.stream(ctx, *rec.Key, *rec.Size, o)
	}
	value := rec.value()
	bytes := int64(len(*rec.Key) + len(value) + len(rec.ContentType) + len(rec.Encoding))
	for _, of := range []map[string]string{rec.Metadata, rec.Tags} {
		for k, v := range of {
			bytes += int64(len(k) + len(v))
		}
	}
	if _, twice := m.lines[*rec.Key]; twice || m.bytes+bytes > importGather || len(m.batch) == importBatch {
		// The line that was read last is not of what is stored with this.
		if err := m.flushBefore(ctx); err != nil {
			return err
		}
	}
	m.lines[*rec.Key] = m.r.line
	m.batch = append(m.batch, client.PutItem{Key: *rec.Key, Value: value, Options: o})
	m.bytes += bytes
	return nil
}

// refuse counts a line that is wrong; without --keep-going it is the end.
func (m *importer) refuse(bad lineError) error {
	if !m.keepGoing {
		return bad
	}
	if m.stand.Refused++; m.stand.Refused <= importTold {
		fmt.Fprintf(m.s.stderr, "kvctl: %s\n", visible(bad.Error()))
	} else if m.stand.Refused == importTold+1 {
		fmt.Fprintln(m.s.stderr, "kvctl: more lines are wrong; they are counted")
	}
	return nil
}

// theLines tells whether an error is the entry's own fault, so that others may pass.
func theLines(err error) bool {
	switch kindOf(err) {
	case kverr.InvalidArgument, kverr.TooLarge:
		return true
	}
	return false
}

// skip reads over a chunked value.
func (m *importer) skip(c *chunks) error {
	err := c.skip()
	var bad lineError
	if errors.As(err, &bad) {
		return m.refuse(bad)
	}
	return err
}

// stream stores a chunked value as it is read.
func (m *importer) stream(ctx context.Context, key string, size int64, o *client.PutOptions) error {
	line := m.r.line
	if err := m.flushBefore(ctx); err != nil {
		return err
	}
	value := newChunks(m.r, size)
	var err error
	if m.check {
		err = value.skip()
	} else {
		var r io.Reader = value
		if m.source != nil {
			r = &rereadable{chunks: value, m: m, at: m.r.at, line: m.r.line}
		}
		_, err = m.c.PutStream(ctx, key, r, size, o)
	}
	var bad lineError
	switch {
	case errors.As(value.err, &bad):
		return m.refuse(bad)
	case err == nil:
		m.counted(nil)
	case kindOf(err) == kverr.AlreadyExists && m.stand.IfAbsent:
		m.counted(err)
	case theLines(err):
		if err := m.refuse(lineError{line, fmt.Errorf("is refused: %q: %w", key, err)}); err != nil {
			return err
		}
	default:
		return fmt.Errorf("line %d: %q: %w", line, key, err)
	}
	if err := m.skip(value); err != nil {
		return err
	}
	return m.reached(m.r.at, m.r.line)
}

// rereadable is a chunked value of a file that can be read again.
type rereadable struct {
	*chunks
	m    *importer
	at   int64 // where the value begins
	line int64
}

// Seek goes to the beginning of the value, or tells that it is there.
func (r *rereadable) Seek(offset int64, whence int) (int64, error) {
	if offset != 0 {
		return 0, errors.New("a chunked value is read from its beginning only")
	}
	if whence == io.SeekCurrent {
		return 0, nil // asked before anything is read
	}
	if _, err := r.m.source.Seek(r.at, io.SeekStart); err != nil {
		return 0, err
	}
	r.m.r.r.Reset(r.m.source)
	r.m.r.at, r.m.r.line, r.m.r.kept = r.at, r.line, nil
	*r.chunks = *newChunks(r.m.r, r.size)
	return 0, nil
}

// counted counts an entry that is stored, or that existed.
func (m *importer) counted(err error) {
	if err != nil {
		m.stand.Existed++
		return
	}
	m.stand.Stored++
	m.stored.Store(m.stand.Stored)
}

// flushBefore stores what was gathered before the line that was read last.
func (m *importer) flushBefore(ctx context.Context) error {
	return m.store(ctx, m.r.from, m.r.line-1)
}

// flush stores what was gathered, the line that was read last with it.
func (m *importer) flush(ctx context.Context) error { return m.store(ctx, m.r.at, m.r.line) }

// store stores what was gathered. The file is stored up to a place then.
func (m *importer) store(ctx context.Context, at, line int64) error {
	batch := m.batch
	lines := m.lines
	m.batch, m.lines, m.bytes = nil, map[string]int64{}, 0
	if m.check {
		m.stand.Stored += int64(len(batch))
		return nil
	}
	if len(batch) == 1 && len(batch[0].Value) > importGather { // too much for a message
		_, err := m.c.Put(ctx, batch[0].Key, batch[0].Value, batch[0].Options)
		if err := m.outcome(batch[0].Key, lines, err); err != nil {
			return err
		}
		return m.reached(at, line)
	}
	if len(batch) > 0 {
		putting, cancel := m.s.limited(ctx)
		defer cancel()
		outs, err := m.c.BatchPut(putting, batch)
		if err != nil {
			return err
		}
		for i, out := range outs {
			if err := m.outcome(batch[i].Key, lines, out.Err); err != nil {
				return err
			}
		}
	}
	return m.reached(at, line)
}

// outcome counts what became of a put.
func (m *importer) outcome(key string, lines map[string]int64, err error) error {
	switch {
	case err == nil || kindOf(err) == kverr.AlreadyExists && m.stand.IfAbsent:
		m.counted(err)
	case theLines(err):
		return m.refuse(lineError{lines[key], fmt.Errorf("is refused: %q: %w", key, err)})
	default:
		return fmt.Errorf("line %d: %q: %w", lines[key], key, err)
	}
	return nil
}

// reached notes that everything up to a place of the file is stored.
func (m *importer) reached(at, line int64) error {
	m.stand.Offset, m.stand.Line, m.stand.Head = at, line, m.head && !m.whole
	m.sure = m.stand
	if m.source == nil || m.check || time.Since(m.saved) < importNoteEach {
		return nil
	}
	return m.note()
}
