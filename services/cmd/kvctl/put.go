package main

import (
	"context"
	"flag"
	"io"
	"time"

	"kvstore/client"
)

var putCommand = command{
	args: "KEY VALUE|-|@FILE", min: 2, max: 2, complete: completeKeyValue,
	short: "store a value under a key",
	help: `The value is the argument itself, standard input (-), or a file (@FILE; @@x is the text "@x"). A file of any size is
sent as a stream. The write is durable when put returns.

  kvctl put user/42 Ada
  echo hello | kvctl put greeting -
  kvctl put photo @photo.jpg --content-type image/jpeg --tag album=2024
  kvctl put session/7 x --ttl 30m
  kvctl put user/42 Ada --if-absent              fails with exit code 4 when the key exists
  kvctl put user/42 Grace --if-version 17        fails with exit code 4 when somebody else wrote it since`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		o := putFlags(fs)
		return func(ctx context.Context, s *session, args []string) error {
			opts, err := o.options()
			if err != nil {
				return err
			}
			v, err := s.openValue(args[1])
			if err != nil {
				return err
			}
			defer v.close()
			c, err := s.connect(ctx)
			if err != nil {
				return err
			}
			res, err := store(ctx, s, c, args[0], v, opts)
			if err != nil {
				return noKey(args[0], err)
			}
			if s.output == "json" {
				return s.json(map[string]any{"key": args[0], "version": res.Version, "created": res.Created, "size": v.size})
			}
			verb := "updated"
			if res.Created {
				verb = "created"
			}
			s.say("%s %s, version %d, %s\n", verb, args[0], res.Version, bytesText(v.size))
			return nil
		}
	},
}

// streamOver is the size from which a value is not taken into memory.
const streamOver = 256 << 10

func store(ctx context.Context, s *session, c *client.Client, key string, v value, o *client.PutOptions) (client.PutResult, error) {
	if v.size > streamOver {
		return c.PutStream(ctx, key, v.Reader, v.size, o) // takes as long as it takes
	}
	b, err := io.ReadAll(v)
	if err != nil {
		return client.PutResult{}, err
	}
	ctx, cancel := s.limited(ctx)
	defer cancel()
	return c.Put(ctx, key, b, o)
}

func (v value) close() {
	if v.Closer != nil {
		_ = v.Close()
	}
}

// condition is what --if-... flags say.
type condition struct {
	version         uint64
	absent, present bool
}

func conditionFlags(fs *flag.FlagSet, withAbsent bool) *condition {
	c := new(condition)
	fs.Uint64Var(&c.version, "if-version", 0, "only when the key has this `version`")
	if withAbsent {
		fs.BoolVar(&c.absent, "if-absent", false, "only when the key does not exist")
	}
	fs.BoolVar(&c.present, "if-present", false, "only when the key exists")
	return c
}

func (c *condition) precondition() (client.Precondition, error) {
	n := 0
	var p client.Precondition
	if c.version != 0 {
		n, p = n+1, client.IfVersion(c.version)
	}
	if c.absent {
		n, p = n+1, client.IfAbsent()
	}
	if c.present {
		n, p = n+1, client.IfPresent()
	}
	if n > 1 {
		return p, usagef("give one of --if-version, --if-absent and --if-present alone")
	}
	return p, nil
}

type putOptions struct {
	cond                  *condition
	ttl                   time.Duration
	keepTTL               bool
	contentType, encoding string
	tags, meta            pairs
}

func putFlags(fs *flag.FlagSet) *putOptions {
	o := &putOptions{cond: conditionFlags(fs, true), tags: pairs{}, meta: pairs{}}
	fs.DurationVar(&o.ttl, "ttl", 0, "expire after this `time`, such as 90s or 12h; 0 = never")
	fs.BoolVar(&o.keepTTL, "keep-ttl", false, "keep the expiry that the key has")
	fs.StringVar(&o.contentType, "content-type", "", "media `type` kept with the value")
	fs.StringVar(&o.encoding, "encoding", "", "`name` of the value's encoding, such as zstd, kept with it")
	fs.Var(o.tags, "tag", "`name=value` kept as a tag; may be repeated")
	fs.Var(o.meta, "meta", "`name=value` kept as metadata; may be repeated")
	return o
}

func (o *putOptions) options() (*client.PutOptions, error) {
	if o.ttl < 0 {
		return nil, usagef("--ttl %v lies in the past", o.ttl)
	}
	p, err := o.cond.precondition()
	return &client.PutOptions{
		If: p, TTL: o.ttl, KeepTTL: o.keepTTL, ContentType: o.contentType, Encoding: o.encoding, Tags: o.tags, Metadata: o.meta,
	}, err
}
