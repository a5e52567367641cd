package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"kvstore/components/authn"
)

var tokenNewCommand = command{
	args: "NAME", min: 1, max: 1, local: true,
	short: "make a token and its line for the tokens file",
	help: `Makes a random token. The line for the file that kvstored -tokens names, which holds the token's hash alone, goes to standard
output; the token itself, which nobody can find out again, to standard error, or to a file of its owner with --out. Servers take a
changed file within a second.

A grant is KEYSPACE=read, =write or =admin (each includes the one before), *=... for all keyspaces that are not named, or
server-admin, which makes and removes keyspaces and sees how the server is, or metrics, which reads /metrics and nothing else.

  kvctl token new app --grant default=write >> tokens
  kvctl token new ops --grant '*=admin,server-admin' --for 720h --out ops.token >> tokens
  kvctl get greeting --token-file ops.token`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		grants := fs.String("grant", "", "what it may do: `grants` with commas")
		life := fs.Duration("for", 0, "`time` until it expires; 0 = never")
		out := fs.String("out", "", "`file` for the token, which its owner alone may read; it must not exist")
		return func(_ context.Context, s *session, args []string) error {
			words := append([]string{args[0], ""}, list(*grants)...)
			if *life < 0 {
				return usagef("--for %v: want a time from now", *life)
			}
			if *life > 0 {
				words = append(words, "expires="+time.Now().Add(*life).UTC().Format(time.RFC3339))
			}
			token := authn.NewToken()
			words[1] = authn.HashOf(token)
			line := strings.Join(words, " ")
			if len(words) == 2 {
				return usagef("--grant is missing: what may it do? For instance --grant default=write")
			}
			if _, err := authn.ParseTokens([]byte(line)); err != nil {
				return usagef("%s", strings.TrimPrefix(err.Error(), "line 1: "))
			}
			if *out != "" {
				if err := writeNew(*out, token+"\n"); err != nil {
					return err
				}
			}
			if s.output == "json" {
				result := map[string]string{"line": line}
				if *out == "" {
					result["token"] = token
				}
				return s.json(result)
			}
			if *out == "" {
				fmt.Fprintf(s.stderr, "token of %s, told this once: %s\n", args[0], token)
			}
			_, err := fmt.Fprintln(s.stdout, line)
			return err
		}
	},
}

// writeNew writes a file that must not exist, for its owner alone.
func writeNew(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
