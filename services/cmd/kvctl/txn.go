package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"kvstore/client"
	"kvstore/components/kverr"
)

var txnCommand = command{
	args: "", min: 0, max: 0,
	short: "apply several writes together, or none",
	help: scriptHelp + `
  if KEY absent | present | version N      a condition on a key that need not be written

Everything is applied at one revision when all conditions hold, and nothing otherwise (exit code 4, and a table of the
conditions that did not). All keys must lie in one partition: by default give them a common {tag}.

  kvctl txn -f move.txt
  kvctl txn -f - <<'END'
  if  {42}balance version 7
  put {42}balance 90
  put {42}log "took 10" if-absent
  del {42}pending
  END`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		file := fs.String("f", "", "`file` with the script; - for standard input")
		return func(ctx context.Context, s *session, _ []string) error {
			steps, err := s.script(*file, "put", "del", "if")
			if err != nil {
				return err
			}
			c, err := s.connect(ctx)
			if err != nil {
				return err
			}
			ctx, cancel := s.limited(ctx)
			defer cancel()
			t := c.Txn()
			for _, st := range steps {
				switch st.verb {
				case "if":
					t.If(st.key, st.cond)
				case "put":
					t.Put(st.key, st.value, &client.PutOptions{If: st.cond})
				case "del":
					t.Delete(st.key, &client.DeleteOptions{If: st.cond})
				}
			}
			res, err := t.Commit(ctx)
			if err != nil {
				return err
			}
			return s.showTxn(res)
		}
	},
}

// script reads the steps that -f names.
func (s *session) script(file string, verbs ...string) ([]step, error) {
	if file == "" {
		return nil, usagef("-f FILE is missing: a script, or - for standard input")
	}
	in := s.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, usagef("-f: %v", err)
		}
		defer f.Close()
		in = f
	}
	steps, err := parseScript(in, verbs...)
	if err == nil && len(steps) == 0 {
		return nil, usagef("the script is empty")
	}
	return steps, err
}

func (s *session) showTxn(res client.TxnResult) error {
	switch {
	case s.output == "json":
		failures := []map[string]any{}
		for _, f := range res.Failures {
			failures = append(failures, map[string]any{
				"condition": f.Condition, "op": f.Op, "key": f.Key, "current_version": f.Current,
			})
		}
		out := map[string]any{"committed": res.Committed, "revision": res.Revision, "failures": failures}
		if err := s.json(out); err != nil {
			return err
		}
	case res.Committed:
		fmt.Fprintf(s.stdout, "committed %d operations at revision %d\n", len(res.Results), res.Revision)
	default:
		var rows [][]string
		for _, f := range res.Failures {
			where := fmt.Sprintf("condition %d", f.Condition+1)
			if f.Op >= 0 {
				where = fmt.Sprintf("operation %d", f.Op+1)
			}
			now := "absent"
			if f.Current != 0 {
				now = fmt.Sprintf("version %d", f.Current)
			}
			rows = append(rows, []string{where, f.Key, now})
		}
		s.table([]string{"DID NOT HOLD", "KEY", "NOW"}, rows)
	}
	if !res.Committed {
		return kverr.New(kverr.VersionMismatch, "txn", "nothing was applied: %d conditions did not hold", len(res.Failures))
	}
	return nil
}
