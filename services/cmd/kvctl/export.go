package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/client"
	"kvstore/components/kverr"
)

var exportCommand = command{
	args: "[PREFIX]", min: 0, max: 1, complete: completeKeys,
	short: "write all keys of a namespace to a file, as JSON lines",
	help: `Writes each key with its value, content type, encoding, tags, metadata and expiry, in byte order: a line a key, behind it the
value in lines of its own when it is over 256 KiB. Values are text where they are UTF-8, otherwise base64. kvctl import reads it.

Each entry is as it was at one moment of the export. A key that was there all the time is in it once; the entries together
are no snapshot: the export does not stop writers. The first line holds a token from which kvctl watch tells all that
changed since the export began.

With --out the file is the checkpoint, too. An export that was interrupted, even by kill -9, is gone on with by --resume:
it cuts off what is half written and begins behind the last key. The last line says that the export is whole.

  kvctl export > all.jsonl
  kvctl export user/ --out users.jsonl
  kvctl export user/ --out users.jsonl --resume
  kvctl export --namespace orders | gzip > orders.jsonl.gz
  kvctl watch --all -o json --count 100 --from "$(head -1 users.jsonl | jq -r .export.watch_token)"   what changed since`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		x := new(export)
		fs.StringVar(&x.head.Start, "start", "", "only keys from this `key` on")
		fs.StringVar(&x.head.End, "end", "", "only keys before this `key`")
		fs.StringVar(&x.out, "out", "", "`file` to write to, which must not exist; otherwise standard output")
		fs.BoolVar(&x.resume, "resume", false, "go on with the file of --out, or begin it")
		return func(ctx context.Context, s *session, args []string) error {
			if len(args) > 0 {
				x.head.Prefix = args[0]
			}
			if x.resume && x.out == "" {
				return usagef("--resume wants --out: the file tells how far the export is")
			}
			x.s = s
			x.head.Format, x.head.Keyspace, x.head.Namespace = exportFormat, cmp.Or(s.keyspace, "default"), cmp.Or(s.namespace, "default")
			return x.command(ctx)
		}
	},
}

// export is a run of the command.
type export struct {
	s      *session
	c      *client.Client
	out    string
	resume bool
	head   exportHead

	w       *bufio.Writer
	enc     *json.Encoder
	begun   bool   // the head is written
	whole   bool   // so is the end
	after   string // the last key that is written, when any is
	keys    atomic.Int64
	bytes   atomic.Int64 // of values
	waiting []client.Entry
	pending int64 // bytes of values of waiting that are still to be read
}

// exportGather bounds the values that are read from the server together.
const exportGather = 2 << 20

// errExportCut is the hint of an export that ended early.
var errExportCut = errors.New("the export is not whole")

func (x *export) command(ctx context.Context) error {
	w := x.s.stdout
	if x.out != "" {
		f, err := x.open()
		if err != nil {
			return err
		}
		defer f.Close()
		w = f
		if x.whole {
			fmt.Fprintf(x.s.stderr, "%s is whole already: %d keys\n", x.out, x.keys.Load())
			return nil
		}
	}
	x.w = bufio.NewWriterSize(w, 1<<20)
	to := io.Writer(x.w)
	if x.out == "" {
		to = x.s.jsonTo(to)
	}
	x.enc = json.NewEncoder(to)
	x.enc.SetEscapeHTML(false)
	err := x.run(ctx)
	err = errors.Join(err, x.w.Flush())
	if f, ok := w.(*os.File); ok && x.out != "" && err == nil {
		err = f.Sync()
	}
	if err != nil {
		if x.out != "" {
			return fmt.Errorf("%w; --resume goes on with %s: %w", errExportCut, x.out, err)
		}
		return fmt.Errorf("%w: %w", errExportCut, err)
	}
	fmt.Fprintf(x.s.stderr, "exported %d keys, %s of values\n", x.keys.Load(), bytesText(x.bytes.Load()))
	return nil
}

// open makes the file of --out, or finds out how far it is.
func (x *export) open() (*os.File, error) {
	flags := os.O_RDWR | os.O_CREATE
	if !x.resume {
		flags |= os.O_EXCL
	}
	f, err := os.OpenFile(x.out, flags, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, usagef("%s is there already: --resume goes on with it", x.out)
	}
	if err != nil {
		return nil, err
	}
	end, err := x.review(f)
	if err == nil && !x.whole {
		if err = f.Truncate(end); err == nil {
			_, err = f.Seek(end, io.SeekStart)
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", x.out, err)
	}
	return f, nil
}

// review reads what there is of an export and returns where its last whole entry ends.
func (x *export) review(f *os.File) (end int64, err error) {
	r := newRecordReader(f)
	for {
		rec, err := r.record()
		if errors.Is(err, io.EOF) || r.torn {
			return end, nil // a torn line is what was being written
		}
		if err != nil {
			return 0, err
		}
		switch {
		case x.whole:
			return 0, r.fault(errors.New("follows the end"))
		case x.begun != (rec.Export == nil):
			return 0, r.fault(errors.New("is not what an export has here: its head, and once"))
		case rec.Export != nil:
			if err := x.sameAs(rec.Export); err != nil {
				return 0, err
			}
			x.begun = true
		case rec.End != nil:
			x.whole = true
		case rec.Chunk != nil:
			return 0, r.fault(errors.New("is a chunk of no entry"))
		default:
			size := rec.size()
			if rec.Chunked {
				if c := newChunks(r, size); c.skip() != nil {
					if _, err := r.next(); !r.torn && !errors.Is(err, io.EOF) {
						return 0, c.err
					}
					return end, nil // what was being written
				}
			}
			if r.torn {
				return end, nil
			}
			x.wrote(*rec.Key, size)
		}
		end = r.at
	}
}

// sameAs takes over the head of a file, which must be of the export that is asked for.
func (x *export) sameAs(h *exportHead) error {
	a := *h
	a.Began, a.Watch = nil, nil
	if !reflect.DeepEqual(a, x.head) {
		return usagef("it is an export of keyspace %s, namespace %s, prefix %q, start %q, end %q: --resume goes on with the same only",
			h.Keyspace, h.Namespace, h.Prefix, h.Start, h.End)
	}
	x.head = *h
	return nil
}

// run writes what is missing.
func (x *export) run(ctx context.Context) (err error) {
	if x.c, err = x.s.connect(ctx); err != nil {
		return err
	}
	o := &client.ListOptions{Prefix: x.head.Prefix, Start: max(x.head.Start, x.after), End: x.head.End, PageSize: 1000}
	defer x.progress(ctx)()
	resumed := x.keys.Load() > 0
	listing, begun, cancel := x.s.beginning(ctx)
	defer cancel()
	for page, err := range x.c.Pages(listing, o) {
		if err != nil {
			return err
		}
		begun()
		if !x.begun {
			now := time.Now().UTC().Truncate(time.Millisecond)
			x.head.Began, x.head.Watch, x.begun = &now, page.Watch, true
			if err := x.enc.Encode(headLine{x.head}); err != nil {
				return err
			}
		}
		for _, e := range page.Entries {
			if resumed && e.Key == x.after {
				continue // the last one of before
			}
			if err := x.take(ctx, e); err != nil {
				return err
			}
		}
		if err := x.settle(ctx); err != nil {
			return err
		}
	}
	return x.enc.Encode(endLine{exportEnd{x.keys.Load(), x.bytes.Load()}})
}

// progress shows a bar until end is called. Meanwhile somebody counts for it; until then, or when that fails, no total is known.
func (x *export) progress(ctx context.Context) (end func()) {
	if x.s.errWidth == 0 {
		return func() {}
	}
	counting, cancel := x.s.limited(ctx)
	var total atomic.Int64
	var counter sync.WaitGroup
	counter.Go(func() {
		if n, err := x.c.Count(counting, &client.ListOptions{Prefix: x.head.Prefix, Start: x.head.Start, End: x.head.End}); err == nil {
			total.Store(n)
		}
	})
	bar := startProgress(x.s.stderr, x.s.errWidth, func() (float64, string) {
		n := x.keys.Load()
		return ratio(n, total.Load()), fmt.Sprintf("%d keys, %s", n, bytesText(x.bytes.Load()))
	})
	return func() {
		bar.end()
		cancel()
		counter.Wait()
	}
}

// take writes an entry, or has it wait for its value.
func (x *export) take(ctx context.Context, e client.Entry) error {
	left := e.Size - int64(len(e.Value))
	if left > chunkOver || x.pending+left > exportGather {
		if err := x.settle(ctx); err != nil {
			return err
		}
	}
	if left > chunkOver {
		return x.stream(ctx, e.Key)
	}
	x.waiting = append(x.waiting, e)
	x.pending += left
	return nil
}

// settle reads the values that are missing of the entries that wait, and writes them all.
func (x *export) settle(ctx context.Context) error {
	var keys []string
	for _, e := range x.waiting {
		if int64(len(e.Value)) != e.Size {
			keys = append(keys, e.Key)
		}
	}
	var got []client.GetOutcome
	if len(keys) > 0 {
		reading, cancel := x.s.limited(ctx)
		defer cancel()
		var err error
		if got, err = x.c.BatchGet(reading, keys, nil); err != nil {
			return err
		}
	}
	for _, e := range x.waiting {
		if int64(len(e.Value)) != e.Size {
			out := got[0]
			got = got[1:]
			switch kindOf(out.Err) {
			case none:
				e = out.Entry // as it is now, value and all
			case kverr.NotFound:
				continue // gone meanwhile
			case kverr.ValueTooLarge:
				if err := x.stream(ctx, e.Key); err != nil {
					return err
				}
				continue
			default:
				return noKey(e.Key, out.Err)
			}
		}
		if err := x.write(e); err != nil {
			return err
		}
	}
	x.waiting, x.pending = x.waiting[:0], 0
	return nil
}

// write writes an entry with its value.
func (x *export) write(e client.Entry) error {
	if e.Value == nil {
		e.Value = []byte{}
	}
	if err := x.enc.Encode(entryLine{entryJSON: toEntryJSON(e)}); err != nil {
		return err
	}
	x.wrote(e.Key, e.Size)
	return nil
}

// stream writes an entry whose value is not taken into memory. Its last line is written when the checksum was compared: what ends before is
// cut off by --resume.
func (x *export) stream(ctx context.Context, key string) error {
	r, err := x.c.GetStream(ctx, key)
	if errors.Is(err, client.ErrNotFound) {
		return nil // gone meanwhile
	}
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	last := any(entryLine{toEntryJSON(r.Entry), true})
	buf := make([]byte, chunkSize)
	for left := r.Entry.Size; left > 0; {
		if err := x.enc.Encode(last); err != nil {
			return err
		}
		p := buf[:min(left, chunkSize)]
		if _, err := io.ReadFull(r, p); err != nil {
			return fmt.Errorf("%q: %w", key, err)
		}
		left -= int64(len(p))
		last = chunkLine{p}
	}
	switch n, err := io.ReadFull(r, make([]byte, 1)); { // the checksum is compared there
	case n > 0:
		return fmt.Errorf("%q: has more than the %d bytes of its entry", key, r.Entry.Size)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("%q: %w", key, err)
	}
	if err := x.enc.Encode(last); err != nil {
		return err
	}
	x.wrote(key, r.Entry.Size)
	return nil
}

func (x *export) wrote(key string, size int64) {
	x.after = key
	x.keys.Add(1)
	x.bytes.Add(size)
}
