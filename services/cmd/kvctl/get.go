package main

import (
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"strings"

	"kvstore/client"
)

var getCommand = command{
	args: "KEY", min: 1, max: 1, complete: completeKeys,
	short: "read a key",
	help: `On a terminal get shows the entry and its value; into a pipe or a file it writes the value alone, byte by byte
(-o raw does so always). Values of any size pass, as a stream.

  kvctl get user/42
  kvctl get photo > photo.jpg
  kvctl get user/42 -o json | jq .version
  kvctl get photo --meta             without the value`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		meta := fs.Bool("meta", false, "leave the value out: versions, times and sizes alone")
		return func(ctx context.Context, s *session, args []string) error {
			c, err := s.connect(ctx)
			if err != nil {
				return err
			}
			raw := s.output == "raw" || s.output == "" && s.width == 0
			if raw && !*meta {
				return s.getRaw(ctx, c, args[0])
			}
			ctx, cancel := s.limited(ctx)
			defer cancel()
			e, err := c.Get(ctx, args[0], &client.GetOptions{MetadataOnly: *meta})
			if err != nil {
				return noKey(args[0], err)
			}
			if s.output == "json" {
				return s.json(toEntryJSON(e))
			}
			s.showEntry(e, !*meta)
			return nil
		}
	},
}

// getRaw copies the value as it comes. It must begin within --timeout; a big one then takes as long as it takes.
func (s *session) getRaw(ctx context.Context, c *client.Client, key string) error {
	opening, begun, cancel := s.beginning(ctx)
	defer cancel()
	r, err := c.GetStream(opening, key)
	begun()
	if err != nil {
		return noKey(key, err)
	}
	defer func() { _ = r.Close() }()
	_, err = io.Copy(s.stdout, r)
	return err
}

// preview is how much of a binary value a terminal gets to see.
const preview = 256

func (s *session) showEntry(e client.Entry, withValue bool) {
	row := func(name, text string) {
		if text != "" && text != "-" {
			fmt.Fprintln(s.stdout, cut(visible(fmt.Sprintf("%-13s %s", name, text)), s.width))
		}
	}
	row("key", e.Key)
	row("version", fmt.Sprint(e.Version))
	row("size", bytesText(e.Size))
	row("created", timeText(e.Created))
	row("updated", timeText(e.Updated))
	row("expires", timeText(e.Expires))
	row("content type", e.ContentType)
	row("encoding", e.Encoding)
	row("tags", mapText(e.Tags))
	row("metadata", mapText(e.Metadata))
	if !withValue {
		return
	}
	fmt.Fprintln(s.stdout)
	s.showValue(e.Value)
}

// showValue shows a value: as it is when it is text, otherwise how it begins.
func (s *session) showValue(value []byte) {
	if printable(value) {
		fmt.Fprint(s.stdout, string(value))
		if len(value) > 0 && !strings.HasSuffix(string(value), "\n") {
			fmt.Fprintln(s.stdout)
		}
		return
	}
	fmt.Fprint(s.stdout, hex.Dump(value[:min(len(value), preview)]))
	fmt.Fprintln(s.stdout, "binary: -o raw writes it all")
}
