package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// settings are where a context leads: as the flags of the same names.
type settings struct {
	Endpoint   string `json:"endpoint,omitempty"`
	Keyspace   string `json:"keyspace,omitempty"`
	Namespace  string `json:"namespace,omitempty"`
	TLS        bool   `json:"tls,omitempty"`
	CA         string `json:"ca,omitempty"`
	Cert       string `json:"cert,omitempty"`
	Key        string `json:"key,omitempty"`
	ServerName string `json:"server_name,omitempty"`
	TokenFile  string `json:"token_file,omitempty"`
	Token      string `json:"token,omitempty"`
	Insecure   bool   `json:"insecure,omitempty"`
}

// contexts is the file of contexts.
type contexts struct {
	Current  string              `json:"current,omitempty"`
	Contexts map[string]settings `json:"contexts"`
}

const contextHelp = `
Contexts are in a file of their owner: $KVCTL_CONFIG, else kvctl/config.json in $XDG_CONFIG_HOME or ~/.config.
`

var contextAddCommand = command{
	args: "NAME", min: 1, max: 1, local: true,
	short: "keep how a server is reached, under a name",
	help: `Keeps what the flags of this command line say: endpoint, keyspace, namespace, TLS and token. A context of that name is replaced. The
first one becomes the current one. A token is best left in its file; --token-stdin takes it from standard input into the
file of contexts.
` + contextHelp + `
  kvctl context add local --endpoint 127.0.0.1:8085 --namespace orders
  kvctl context add prod --endpoint kv.example:8085 --ca ca.crt --token-file app.token
  kvctl context add prod2 --endpoint grpcs://kv2.example:8085 --token-stdin < app.token`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		stdin := fs.Bool("token-stdin", false, "read the token from standard input")
		return func(_ context.Context, s *session, args []string) error {
			name := args[0]
			if name == "" || len(name) > 64 || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
				return usagef("%q cannot be the name of a context: 1 to 64 bytes without spaces", name)
			}
			c, err := s.asGiven()
			if err != nil {
				return err
			}
			if *stdin {
				text, err := io.ReadAll(io.LimitReader(s.stdin, 64<<10))
				if err != nil {
					return err
				}
				if c.Token = strings.TrimSpace(string(text)); c.Token == "" || c.TokenFile != "" {
					return usagef("--token-stdin: want a token on standard input, and no --token-file")
				}
			}
			err = s.changeContexts(func(all *contexts, _ string) error {
				all.Contexts[name] = c
				all.Current = cmp.Or(all.Current, name)
				return nil
			})
			if err != nil {
				return err
			}
			s.say("context %s is kept in %s\n", name, s.contextFile())
			return nil
		}
	},
}

// asGiven is what the flags of this command line say. Names of files are made absolute: the context is used from anywhere.
func (s *session) asGiven() (settings, error) {
	if !s.given["endpoint"] {
		return settings{}, usagef("--endpoint is missing: where does the context lead?")
	}
	c := settings{TLS: s.given["tls"] && s.door.tls, Insecure: s.given["insecure"] && s.door.insecure}
	for _, f := range []struct {
		flag, value string
		to          *string
		file        bool
	}{
		{"endpoint", s.endpoint, &c.Endpoint, false}, {"keyspace", s.keyspace, &c.Keyspace, false}, {"namespace", s.namespace, &c.Namespace, false},
		{"server-name", s.door.server, &c.ServerName, false},
		{"ca", s.door.ca, &c.CA, true}, {"cert", s.door.cert, &c.Cert, true}, {"key", s.door.key, &c.Key, true}, {"token-file", s.door.tokenFile, &c.TokenFile, true},
	} {
		if !s.given[f.flag] {
			continue
		}
		if *f.to = f.value; f.file && f.value != "" {
			var err error
			if *f.to, err = filepath.Abs(f.value); err != nil {
				return c, err
			}
		}
	}
	return c, nil
}

var contextUseCommand = command{
	args: "NAME", min: 1, max: 1, complete: completeContexts, local: true,
	short: "make a context the current one",
	help: `The current context says what neither flags nor environment do. --context NAME uses another one for a single command.
` + contextHelp + `
  kvctl context use prod
  kvctl get greeting --context local`,
	setup: simple(func(_ context.Context, s *session, args []string) error {
		err := s.changeContexts(func(all *contexts, file string) error {
			all.Current = args[0]
			_, err := all.get(args[0], file)
			return err
		})
		if err != nil {
			return err
		}
		s.say("context %s is the current one\n", args[0])
		return nil
	}),
}

var contextLsCommand = command{
	local: true,
	short: "list the contexts",
	help: `The current one has a star.

  kvctl context ls
  kvctl context ls -o raw            names alone`,
	setup: simple(func(_ context.Context, s *session, _ []string) error {
		all, _, err := s.contexts()
		if err != nil {
			return err
		}
		var rows [][]string
		for _, name := range slices.Sorted(maps.Keys(all.Contexts)) {
			c := all.Contexts[name]
			switch s.output {
			case "raw":
				fmt.Fprintln(s.stdout, name)
			case "json":
				if err := s.jsonLine(c.shown(name, name == all.Current)); err != nil {
					return err
				}
			default:
				mark := ""
				if name == all.Current {
					mark = "*"
				}
				rows = append(rows, []string{mark, name, c.Endpoint, cmp.Or(c.Keyspace, "-"), cmp.Or(c.Namespace, "-"), c.security()})
			}
		}
		if s.output != "raw" && s.output != "json" {
			s.table([]string{"", "CONTEXT", "ENDPOINT", "KEYSPACE", "NAMESPACE", "SECURITY"}, rows)
		}
		return nil
	}),
}

var contextShowCommand = command{
	args: "[NAME]", min: 0, max: 1, complete: completeContexts, local: true,
	short: "show a context, or the one that counts here",
	help: `Without NAME: the context that commands here would use, by --context, KVSTORE_CONTEXT or as the current one. Of a token it shows that
there is one.

  kvctl context show
  kvctl context show prod -o json`,
	setup: simple(func(_ context.Context, s *session, args []string) error {
		all, file, err := s.contexts()
		if err != nil {
			return err
		}
		name := s.context
		if len(args) > 0 {
			name = args[0]
		}
		if name == "" {
			return usagef("no context counts here: none is current, or an endpoint is named by --endpoint or KVSTORE_ENDPOINT")
		}
		c, err := all.get(name, file)
		if err != nil {
			return err
		}
		return s.json(c.shown(name, name == all.Current))
	}),
}

var contextRmCommand = command{
	args: "NAME", min: 1, max: 1, complete: completeContexts, local: true,
	short: "forget a context",
	help: `Files that it names stay.

  kvctl context rm prod2`,
	setup: simple(func(_ context.Context, s *session, args []string) error {
		err := s.changeContexts(func(all *contexts, file string) error {
			_, err := all.get(args[0], file)
			delete(all.Contexts, args[0])
			if all.Current == args[0] {
				all.Current = ""
			}
			return err
		})
		if err != nil {
			return err
		}
		return s.removed("context", args[0])
	}),
}

// shown is a context as it may be seen.
func (c settings) shown(name string, current bool) map[string]any {
	out := map[string]any{"name": name, "current": current}
	if c.Token != "" {
		c.Token = "(kept here)"
	}
	text, _ := json.Marshal(c) // never fails
	_ = json.Unmarshal(text, &out)
	return out
}

// security tells in short how a context's server is spoken to.
func (c settings) security() string {
	text := "plain text"
	if d := (door{tls: c.TLS, ca: c.CA, cert: c.Cert, key: c.Key, server: c.ServerName}); d.wantsTLS(c.Endpoint) {
		text = "TLS"
	}
	if c.Cert != "" {
		text += ", certificate"
	}
	if c.Token != "" || c.TokenFile != "" {
		text += ", token"
	}
	return text
}

// contextFile is the file of contexts; "" when this system does not tell where.
func (s *session) contextFile() string {
	if f := s.getenv("KVCTL_CONFIG"); f != "" {
		return f
	}
	dir := s.getenv("XDG_CONFIG_HOME")
	if home := s.getenv("HOME"); dir == "" && home != "" {
		dir = filepath.Join(home, ".config")
	}
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, "kvctl", "config.json")
}

// contexts reads the file of contexts; there need not be one.
func (s *session) contexts() (*contexts, string, error) {
	all := &contexts{}
	file := s.contextFile()
	if file == "" {
		return nil, "", usagef("there is no place for contexts: KVCTL_CONFIG names a file")
	}
	text, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, file, err
	default:
		dec := json.NewDecoder(bytes.NewReader(text))
		dec.DisallowUnknownFields() // a setting that is not understood must not be left out silently
		if err := dec.Decode(all); err != nil {
			return nil, file, fmt.Errorf("%s: %w", file, err)
		}
	}
	if all.Contexts == nil {
		all.Contexts = map[string]settings{}
	}
	return all, file, nil
}

func (a *contexts) get(name, file string) (settings, error) {
	c, ok := a.Contexts[name]
	if !ok {
		return c, usagef("there is no context %q in %s; kvctl context ls lists them", name, file)
	}
	return c, nil
}

// save writes the file, for its owner alone, so that nobody ever sees half of it.
func (a *contexts) save(file string) error {
	text, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return replaceFile(file, append(text, '\n'), 0o600)
}

// changeContexts changes the contexts in their file.
func (s *session) changeContexts(change func(all *contexts, file string) error) error {
	all, file, err := s.contexts()
	if err != nil {
		return err
	}
	if err := change(all, file); err != nil {
		return err
	}
	return all.save(file)
}

// inContext returns the settings of a context, or of the current one when name is empty; there need not be one then.
func (s *session) inContext(name string) (settings, string, error) {
	if name == "" && s.contextFile() == "" {
		return settings{}, "", nil
	}
	all, file, err := s.contexts()
	if err != nil {
		return settings{}, "", err
	}
	if name == "" && all.Current == "" {
		return settings{}, "", nil
	}
	name = cmp.Or(name, all.Current)
	c, err := all.get(name, file)
	return c, name, err
}
