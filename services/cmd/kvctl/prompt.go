package main

import (
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"kvstore/client"
	"kvstore/components/kverr"
)

// idHelp explains how blocks are named.
const idHelp = `A block is named by an id inside a scope. The scope is a set of fields, as in --scope model=llama --scope dtype=fp16. An
id is text, or bytes as in hex:00ff12. The namespace must be of kind prompt.`

// promptFlags are those of all prompt commands.
type promptFlags struct {
	scope       pairs
	rank, group uint
}

func newPromptFlags(fs *flag.FlagSet, refs bool) *promptFlags {
	p := &promptFlags{scope: pairs{}}
	fs.Var(p.scope, "scope", "a field `name=value` of the scope; may be repeated")
	if refs {
		fs.UintVar(&p.rank, "rank", 0, "`rank` of the worker whose part this is")
		fs.UintVar(&p.group, "group", 0, "KV-cache `group`")
	}
	return p
}

func (p *promptFlags) refs(ids []string) ([]client.BlockRef, error) {
	if p.rank > math.MaxUint32 || p.group > math.MaxUint32 {
		return nil, usagef("--rank and --group have 32 bits")
	}
	refs := make([]client.BlockRef, len(ids))
	for i, id := range ids {
		b, err := parseID(id)
		if err != nil {
			return nil, err
		}
		refs[i] = client.BlockRef{ID: b, Rank: uint32(p.rank), Group: uint32(p.group), Depth: uint32(i)}
	}
	return refs, nil
}

func parseID(s string) ([]byte, error) {
	h, ok := strings.CutPrefix(s, "hex:")
	if !ok {
		return []byte(s), nil
	}
	b, err := hex.DecodeString(h)
	if err != nil {
		return nil, usagef("%q: %v", s, err)
	}
	return b, nil
}

// idText is an id as parseID reads it.
func idText(id []byte) string {
	if visible(string(id)) != string(id) || strings.HasPrefix(string(id), "hex:") {
		return "hex:" + hex.EncodeToString(id)
	}
	return string(id)
}

// promptSetup makes a setup of a command over blocks named by its arguments.
func promptSetup(
	more func(fs *flag.FlagSet),
	do func(ctx context.Context, s *session, p *client.Prompt, refs []client.BlockRef) error,
) func(*flag.FlagSet) func(context.Context, *session, []string) error {
	return func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		pf := newPromptFlags(fs, true)
		if more != nil {
			more(fs)
		}
		return func(ctx context.Context, s *session, args []string) error {
			refs, err := pf.refs(args)
			if err != nil {
				return err
			}
			c, err := s.connect(ctx)
			if err != nil {
				return err
			}
			ctx, cancel := s.limited(ctx)
			defer cancel()
			return do(ctx, s, c.Prompt(client.Scope(pf.scope)), refs)
		}
	}
}

var promptLookupCommand = command{
	args: "ID...", min: 1, max: -1,
	short: "tell which blocks of a prompt are stored",
	help: idHelp + `

Finds the longest run of stored blocks from the first on, or with --all every one that is stored. Exit code 3 when none is.

  kvctl prompt lookup --namespace prompts --scope model=llama b0 b1 b2`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		all := fs.Bool("all", false, "look at every block on its own, also behind holes")
		return promptSetup(nil, func(ctx context.Context, s *session, p *client.Prompt, refs []client.BlockRef) error {
			f, err := p.Lookup(ctx, refs, &client.LookupOptions{All: *all})
			if err != nil {
				return err
			}
			var rows [][]string
			for _, b := range f.Blocks {
				id := idText(refs[b.Index].ID)
				if s.output == "json" {
					err := s.jsonLine(map[string]any{
						"id": id, "index": b.Index, "size": b.Size, "checksum": fmt.Sprintf("%016x", b.Checksum), "tier": b.Tier,
					})
					if err != nil {
						return err
					}
				}
				rows = append(rows, []string{
					fmt.Sprint(b.Index), id, bytesText(b.Size), fmt.Sprintf("%016x", b.Checksum), b.Tier, timeText(b.PinnedUntil),
				})
			}
			if s.output != "json" {
				s.table([]string{"INDEX", "ID", "SIZE", "CHECKSUM", "TIER", "PINNED UNTIL"}, rows)
				fmt.Fprintf(s.stdout, "%d of %d blocks\n", f.Count, len(refs))
			}
			if f.Count == 0 {
				return kverr.New(kverr.NotFound, "lookup", "none of these blocks is stored")
			}
			return nil
		})(fs)
	},
}

var promptReadCommand = command{
	args: "ID...", min: 1, max: -1,
	short: "write the bytes of blocks to standard output",
	help: idHelp + `

Blocks come one behind the other, each verified before a byte of it is written; on a terminal with a line before each, and without what
is binary (-o raw writes it). At a missing block it ends with exit code 3.

  kvctl prompt read --namespace prompts --scope model=llama b0 > b0.bin
  kvctl prompt read --namespace prompts --scope model=llama b0 b1 -o json      one line a block`,
	setup: promptSetup(nil, func(ctx context.Context, s *session, p *client.Prompt, refs []client.BlockRef) error {
		for b, err := range p.Read(ctx, refs, nil) {
			if err != nil {
				return err
			}
			if b.Miss {
				return kverr.New(kverr.NotFound, "read", "block %s is not stored", idText(refs[b.Index].ID))
			}
			if err := s.showBlock(refs[b.Index], b.Data); err != nil {
				return err
			}
		}
		return nil
	}),
}

// showBlock writes the bytes of a block as they are, or with -o json as a line that tells whose they are, or for a terminal.
func (s *session) showBlock(ref client.BlockRef, data []byte) error {
	switch {
	case s.output == "raw" || s.output == "" && s.width == 0:
		_, err := s.stdout.Write(data)
		return err
	case s.output != "json":
		s.say("%s, %s\n", idText(ref.ID), bytesText(int64(len(data))))
		s.showValue(data)
		return nil
	}
	line := map[string]any{"id": idText(ref.ID), "size": len(data)}
	if utf8.Valid(data) {
		line["value"] = string(data)
	} else {
		line["value_base64"] = data // JSON has []byte as base64
	}
	return s.jsonLine(line)
}

var promptWriteCommand = command{
	args: "ID VALUE|-|@FILE", min: 2, max: 2,
	short: "store one block",
	help: idHelp + `

The first writer of a block wins; one that is there already is left as it is.

  kvctl prompt write --namespace prompts --scope model=llama b1 @b1.bin --parent b0 --depth 1`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		pf := newPromptFlags(fs, true)
		parent := fs.String("parent", "", "`id` of the block before it")
		depth := fs.Uint("depth", 0, "`number` of blocks before it in its chain")
		ttl := fs.Duration("ttl", 0, "expire after this `time`; 0 = the namespace's default")
		return func(ctx context.Context, s *session, args []string) error {
			refs, err := pf.refs(args[:1])
			if err != nil {
				return err
			}
			if *depth > math.MaxUint32 {
				return usagef("--depth has 32 bits")
			}
			refs[0].Depth = uint32(*depth)
			up, err := parseID(*parent)
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
			outs, err := c.Prompt(client.Scope(pf.scope)).Write(ctx, []client.NewBlock{
				{BlockRef: refs[0], Parent: up, Reader: v.Reader, Size: v.size},
			}, &client.WriteOptions{TTL: *ttl})
			if err == nil {
				err = outs[0].Err
			}
			if err != nil {
				return err
			}
			if s.output == "json" {
				return s.json(map[string]any{"id": args[0], "stored": outs[0].Stored, "size": v.size})
			}
			if outs[0].Stored {
				s.say("stored %s, %s\n", args[0], bytesText(v.size))
			} else {
				s.say("already there: %s\n", args[0])
			}
			return nil
		}
	},
}

var promptPinCommand = command{
	args: "ID...", min: 1, max: -1,
	short: "keep blocks from being evicted for a time",
	help: idHelp + `

  kvctl prompt pin --namespace prompts --scope model=llama --for 2h b0 b1
  kvctl prompt pin --namespace prompts --scope model=llama --for 0 b0        unpin`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		d := fs.Duration("for", time.Hour, "`time` from now; 0 takes the pins away")
		return promptSetup(nil, func(ctx context.Context, s *session, p *client.Prompt, refs []client.BlockRef) error {
			present, err := p.Pin(ctx, refs, *d)
			if err != nil {
				return err
			}
			return s.perBlock(refs, func(i int) string {
				switch {
				case !present[i]:
					return "not there"
				case *d == 0:
					return "unpinned"
				}
				return "pinned"
			})
		})(fs)
	},
}

var promptRmCommand = command{
	args: "ID...", min: 1, max: -1,
	short: "remove blocks, except leased ones",
	help: idHelp + `

  kvctl prompt rm --namespace prompts --scope model=llama b0 b1`,
	setup: promptSetup(nil, func(ctx context.Context, s *session, p *client.Prompt, refs []client.BlockRef) error {
		outs, err := p.Delete(ctx, refs)
		if err != nil {
			return err
		}
		return s.perBlock(refs, func(i int) string {
			return [...]string{"not there", "deleted", "leased: it stays"}[outs[i]]
		})
	}),
}

func (s *session) perBlock(refs []client.BlockRef, text func(i int) string) error {
	var rows [][]string
	for i, r := range refs {
		if s.output == "json" {
			if err := s.jsonLine(map[string]string{"id": idText(r.ID), "result": text(i)}); err != nil {
				return err
			}
		}
		rows = append(rows, []string{idText(r.ID), text(i)})
	}
	if s.output != "json" {
		s.table([]string{"ID", "RESULT"}, rows)
	}
	return nil
}

var promptClearCommand = command{
	args: "", min: 0, max: 0,
	short: "remove all blocks of a scope, except leased ones",
	help: `  kvctl prompt clear --namespace prompts --scope model=llama
  kvctl prompt clear --namespace prompts --all-scopes`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		pf := newPromptFlags(fs, false)
		all := fs.Bool("all-scopes", false, "clear the whole namespace")
		return func(ctx context.Context, s *session, _ []string) error {
			if *all == (len(pf.scope) > 0) {
				return usagef("prompt clear: give the --scope to clear, or --all-scopes")
			}
			c, err := s.connect(ctx)
			if err != nil {
				return err
			}
			p := c.Prompt(client.Scope(pf.scope))
			do := p.Clear
			if *all {
				do = p.ClearNamespace
			}
			deleted, leased, err := do(ctx)
			if err != nil {
				return err
			}
			if s.output == "json" {
				return s.json(map[string]int64{"deleted": deleted, "leased": leased})
			}
			fmt.Fprintf(s.stdout, "deleted %d blocks; %d stay because somebody leases them\n", deleted, leased)
			return nil
		}
	},
}

var promptLsCommand = command{
	args: "", min: 0, max: 0,
	short: "list the blocks of a scope, or the scopes",
	help: `  kvctl prompt ls --namespace prompts                          the scopes
  kvctl prompt ls --namespace prompts --scope model=llama      its blocks
  kvctl prompt ls --namespace prompts --scope model=llama -o json --limit 10`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		pf := newPromptFlags(fs, false)
		limit := fs.Int("limit", 0, "at most this `number`; 0 = all")
		return func(ctx context.Context, s *session, _ []string) error {
			if *limit < 0 {
				return usagef("--limit %d is negative", *limit)
			}
			c, err := s.connect(ctx)
			if err != nil {
				return err
			}
			p := c.Prompt(client.Scope(pf.scope))
			if len(pf.scope) == 0 {
				return s.listScopes(ctx, p, *limit)
			}
			return s.listBlocks(ctx, p, *limit)
		}
	},
}

func (s *session) listScopes(ctx context.Context, p *client.Prompt, limit int) error {
	var rows [][]string
	ctx, begun, cancel := s.beginning(ctx)
	defer cancel()
	for sc, err := range p.Scopes(ctx) {
		if err != nil {
			return err
		}
		begun()
		if s.output == "json" {
			if err := s.jsonLine(map[string]any{"scope": sc}); err != nil {
				return err
			}
		}
		if rows = append(rows, []string{mapText(sc)}); len(rows) == limit {
			break
		}
	}
	if s.output != "json" {
		s.table([]string{"SCOPE"}, rows)
	}
	return nil
}

func (s *session) listBlocks(ctx context.Context, p *client.Prompt, limit int) error {
	head := []string{"ID", "RANK", "GROUP", "DEPTH", "SIZE", "CHECKSUM", "TOUCHED", "PINNED UNTIL"}
	var rows [][]string
	n := 0
	ctx, begun, cancel := s.beginning(ctx)
	defer cancel()
	for b, err := range p.List(ctx) {
		if err != nil {
			return err
		}
		begun()
		switch s.output {
		case "json":
			err := s.jsonLine(map[string]any{
				"id": idText(b.ID), "rank": b.Rank, "group": b.Group, "depth": b.Depth, "parent": idText(b.Parent), "size": b.Size,
				"checksum": fmt.Sprintf("%016x", b.Checksum), "created": optTime(b.Created), "touched": optTime(b.Touched),
				"expires": optTime(b.Expires), "pinned_until": optTime(b.PinnedUntil),
			})
			if err != nil {
				return err
			}
		case "raw":
			fmt.Fprintln(s.stdout, idText(b.ID))
		default:
			rows = append(rows, []string{
				idText(b.ID), fmt.Sprint(b.Rank), fmt.Sprint(b.Group), fmt.Sprint(b.Depth), bytesText(b.Size),
				fmt.Sprintf("%016x", b.Checksum), timeText(b.Touched), timeText(b.PinnedUntil),
			})
			if len(rows) == 1000 {
				s.table(head, rows)
				rows = rows[:0]
			}
		}
		if n++; n == limit {
			break
		}
	}
	if s.output != "json" && s.output != "raw" && (len(rows) > 0 || n == 0) {
		s.table(head, rows)
	}
	return nil
}

var promptUsageCommand = command{
	args: "", min: 0, max: 0,
	short: "add up blocks and bytes by scope and by cache salt",
	help:  `  kvctl prompt usage --namespace prompts`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		pf := newPromptFlags(fs, false)
		return func(ctx context.Context, s *session, _ []string) error {
			c, err := s.connect(ctx)
			if err != nil {
				return err
			}
			ctx, cancel := s.limited(ctx)
			defer cancel()
			u, err := c.Prompt(client.Scope(pf.scope)).Usage(ctx)
			if err != nil {
				return err
			}
			if s.output == "json" {
				return s.json(usageJSON(u))
			}
			var rows [][]string
			for _, r := range u.Scopes {
				rows = append(rows, []string{mapText(r.Scope), fmt.Sprint(r.Blocks), bytesText(r.Bytes)})
			}
			for _, r := range u.Salts {
				rows = append(rows, []string{"salt " + mapText(r.Scope), fmt.Sprint(r.Blocks), bytesText(r.Bytes)})
			}
			rows = append(rows, []string{"total", fmt.Sprint(u.Total.Blocks), bytesText(u.Total.Bytes)})
			s.table([]string{"SCOPE", "BLOCKS", "BYTES"}, rows)
			if u.CapacityBlocks > 0 {
				fmt.Fprintf(s.stdout, "capacity %d blocks\n", u.CapacityBlocks)
			}
			if u.CapacityBytes > 0 {
				fmt.Fprintf(s.stdout, "capacity %s\n", bytesText(u.CapacityBytes))
			}
			fmt.Fprintf(s.stdout, "since the shards were loaded: %d blocks evicted, %d found damaged\n", u.EvictedBlocks, u.DamagedBlocks)
			return nil
		}
	},
}

func usageJSON(u client.Usage) map[string]any {
	rows := func(in []client.UsageRow) []map[string]any {
		out := []map[string]any{}
		for _, r := range in {
			scope := r.Scope
			if scope == nil {
				scope = client.Scope{} // {} in JSON, not null
			}
			out = append(out, map[string]any{"scope": scope, "blocks": r.Blocks, "bytes": r.Bytes})
		}
		return out
	}
	return map[string]any{
		"scopes": rows(u.Scopes), "salts": rows(u.Salts), "blocks": u.Total.Blocks, "bytes": u.Total.Bytes,
		"capacity_blocks": u.CapacityBlocks, "capacity_bytes": u.CapacityBytes,
		"evicted_blocks": u.EvictedBlocks, "damaged_blocks": u.DamagedBlocks,
	}
}

// writeFile writes a result beside what is shown.
func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := write(f); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}
