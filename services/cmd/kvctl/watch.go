package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"kvstore/client"
)

var watchCommand = command{
	args: "[PREFIX]", min: 0, max: 1, complete: completeKeys,
	short: "tell of changes as they happen",
	help: `Without --state it begins now. A lost connection is taken up again by itself, and nothing is missed: the token that --from goes on
from is part of the lines of -o json, of the last one of those that come together. Without --all, changes to one key that come faster than they are read are told as the last of them.

  kvctl watch
  kvctl watch service/ --state           what is there, then changes
  kvctl watch config --exact --prev      one key, with what it was before
  kvctl watch service/ --state --once    what is there, and no more
  kvctl watch --all -o json | tee changes.jsonl
  kvctl watch --all -o json --from "$(tail -n 1 changes.jsonl | jq -r .token)"   what came behind that
  kvctl watch --namespace prompts --scope model=llama   blocks that are stored and removed, of a scope or all`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		o := new(client.WatchOptions)
		exact := fs.Bool("exact", false, "the argument is a key, not a prefix")
		fs.BoolVar(&o.State, "state", false, "tell what is there first")
		once := fs.Bool("once", false, "with --state: end when that is told")
		fs.BoolVar(&o.All, "all", false, "tell every change, or end with COMPACTED")
		fs.BoolVar(&o.PrevValue, "prev", false, "tell what was there before")
		fs.BoolVar(&o.KeysOnly, "keys-only", false, "leave values out")
		scope := pairs{}
		fs.Var(scope, "scope", "of prompts: a field `name=value` of the scope whose blocks are watched; may be repeated")
		from := fs.String("from", "", "go on after this `token` of an earlier watch")
		count := fs.Int("count", 0, "end after this `number` of changes; 0 = never")
		return func(ctx context.Context, s *session, args []string) error {
			if len(args) > 0 {
				o.Prefix = args[0]
			}
			if *exact {
				o.Key, o.Prefix = o.Prefix, ""
			}
			var err error
			if o.Token, err = base64.StdEncoding.DecodeString(*from); err != nil {
				return usagef("--from: %v", err)
			}
			switch {
			case len(scope) > 0 && len(args) > 0:
				return usagef("--scope is of prompts, a prefix is of keys")
			case *exact && o.Key == "":
				return usagef("--exact wants a key")
			case o.State && *from != "":
				return usagef("--state and --from are both given")
			case *once && !o.State:
				return usagef("--once wants --state")
			case *count < 0:
				return usagef("--count %d is negative", *count)
			}
			if len(scope) > 0 {
				o.Scope = client.Scope(scope)
			}
			c, err := s.connect(ctx)
			if err != nil {
				return err
			}
			return s.watch(ctx, c, o, *once, *count)
		}
	},
}

// changeJSON is a change, or where a watch stands, as -o json prints it.
type changeJSON struct {
	Type        string  `json:"type"` // PUT, DELETE, EXPIRE; STORED, REMOVED; STARTED, SYNCED, RESYNC
	Key         string  `json:"key,omitempty"`
	Value       *string `json:"value,omitempty"`
	ValueBase64 []byte  `json:"value_base64,omitempty"` // instead of value, when that is no UTF-8
	Version     uint64  `json:"version,omitempty"`
	PrevVersion uint64  `json:"prev_version,omitempty"`
	Prev        *string `json:"prev_value,omitempty"`
	PrevBase64  []byte  `json:"prev_value_base64,omitempty"`
	Created     bool    `json:"created,omitempty"`
	Initial     bool    `json:"initial,omitempty"`
	Size        int64   `json:"size,omitempty"`
	LeftOut     bool    `json:"value_left_out,omitempty"`
	Token       []byte  `json:"token,omitempty"` // of the last line of what comes together

	Scope   client.Scope `json:"scope,omitempty"` // of a block, as is all below; the key is left out
	ScopeID string       `json:"scope_id,omitempty"`
	ID      string       `json:"id,omitempty"`
	Rank    uint32       `json:"rank,omitempty"`
	Group   uint32       `json:"group,omitempty"`
	Depth   uint32       `json:"depth,omitempty"`
	Parent  string       `json:"parent,omitempty"`
	Why     string       `json:"why,omitempty"`
}

// scopeText is a scope for a line of a terminal.
func scopeText(b *client.BlockEvent) string {
	if b.Scope == nil {
		return hex.EncodeToString(b.ScopeID[:])
	}
	var all []string
	for _, k := range slices.Sorted(maps.Keys(b.Scope)) {
		all = append(all, k+"="+b.Scope[k])
	}
	return strings.Join(all, ",")
}

// textOr is b as text, or as bytes when it is none.
func textOr(b []byte) (text *string, bytes []byte) {
	if b == nil {
		return nil, nil
	}
	if utf8.Valid(b) {
		s := string(b)
		return &s, nil
	}
	return nil, b
}

// watch prints changes until enough have come. It must begin within --timeout.
func (s *session) watch(ctx context.Context, c *client.Client, o *client.WatchOptions, once bool, count int) error {
	n := 0
	watching, begun, cancel := s.beginning(ctx)
	defer cancel()
	for b, err := range c.Watch(watching, o) {
		if ctx.Err() != nil {
			return nil // Ctrl-C is how a watch ends
		}
		if err != nil {
			return err
		}
		begun()
		if err := s.tellStand(&b); err != nil {
			return err
		}
		for i := range b.Events {
			var token []byte
			if i == len(b.Events)-1 {
				token = b.Token
			}
			if err := s.tellChange(&b.Events[i], token); err != nil {
				return err
			}
			if n++; n == count {
				return nil
			}
		}
		if b.Synced && once {
			return nil
		}
	}
	return nil
}

// tellStand tells where the watch stands: people on standard error, so that a pipe has changes alone.
func (s *session) tellStand(b *client.WatchBatch) error {
	var stand, words string
	switch {
	case b.Started:
		stand, words = "STARTED", "watching"
	case b.Synced:
		stand, words = "SYNCED", "that is what is there; watching"
	case b.Resync:
		stand, words = "RESYNC", "some changes were missed; what follows is what is there"
	default:
		return nil
	}
	if s.output == "json" {
		return s.jsonLine(changeJSON{Type: stand, Token: b.Token})
	}
	if s.output != "raw" {
		fmt.Fprintf(s.stderr, "-- %s\n", words)
	}
	return nil
}

func (s *session) tellChange(e *client.Event, token []byte) error {
	switch s.output {
	case "json":
		j := changeJSON{
			Type: e.Type.String(), Version: e.Version, PrevVersion: e.PrevVersion, Created: e.Created, Initial: e.Initial, Size: e.Size,
			LeftOut: e.ValueLeftOut, Token: token, Key: e.Key,
		}
		if e.Type == client.EventPut && !e.ValueLeftOut && (e.Value != nil || e.Size == 0) {
			j.Value, j.ValueBase64 = textOr(append([]byte{}, e.Value...))
		}
		j.Prev, j.PrevBase64 = textOr(e.PrevValue)
		if b := e.Block; b != nil {
			j.Key, j.Scope, j.ScopeID, j.ID, j.Rank, j.Group = "", b.Scope, hex.EncodeToString(b.ScopeID[:]), idText(b.Ref.ID), b.Ref.Rank, b.Ref.Group
			j.Depth, j.Why = b.Ref.Depth, b.Why
			if len(b.Parent) > 0 {
				j.Parent = idText(b.Parent)
			}
		}
		return s.jsonLine(j)
	case "raw":
		name := e.Key
		if e.Block != nil {
			name = idText(e.Block.Ref.ID)
		}
		_, err := fmt.Fprintln(s.stdout, name)
		return err
	}
	if b := e.Block; b != nil {
		line := fmt.Sprintf("%-7s %8d  %s  %s  (%s)", e.Type, e.Version, scopeText(b), idText(b.Ref.ID), bytesText(e.Size))
		if b.Why != "" {
			line += "  " + b.Why
		}
		_, err := fmt.Fprintln(s.stdout, cut(visible(line), s.width))
		return err
	}
	line := fmt.Sprintf("%-6s %8d  %s", e.Type, e.Version, e.Key)
	if e.Type == client.EventPut {
		switch {
		case e.ValueLeftOut, e.Value == nil && e.Size > 0, !printable(e.Value):
			line += "  (" + bytesText(e.Size) + ")"
		default:
			line += "  " + oneLine(e.Value)
		}
	}
	if e.PrevValue != nil {
		line += "  was " + oneLine(e.PrevValue)
	}
	_, err := fmt.Fprintln(s.stdout, cut(visible(line), s.width))
	return err
}

// oneLine is a value for one line of a terminal.
func oneLine(b []byte) string {
	if !printable(b) {
		return "(" + bytesText(int64(len(b))) + ")"
	}
	return strings.NewReplacer("\n", `\n`, "\r", `\r`, "\t", " ").Replace(string(b))
}
