package main

import (
	"cmp"
	"flag"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// defaultEndpoint is where kvstored listens unless it is told otherwise.
const defaultEndpoint = "127.0.0.1:8085"

// globals declares the flags that every command has. A value given before the command's name is the default after it. What is not given
// settle finds elsewhere.
func (s *session) globals(fs *flag.FlagSet) {
	fs.StringVar(&s.endpoint, "endpoint", s.endpoint,
		"`address` of the server: host:port or grpc://host:port, or several with commas (KVSTORE_ENDPOINT; else "+defaultEndpoint+")")
	fs.StringVar(&s.keyspace, "keyspace", s.keyspace, "`name` of the keyspace (KVSTORE_KEYSPACE)")
	fs.StringVar(&s.namespace, "namespace", s.namespace, "`name` of the namespace (KVSTORE_NAMESPACE)")
	s.door.flags(fs)
	fs.StringVar(&s.context, "context", s.context, "`name` of the context that has what no flag says; the environment does not count then (KVSTORE_CONTEXT)")
	fs.StringVar(&s.output, "o", s.output, "output `format`: table, wide, json or raw")
	fs.DurationVar(&s.timeout, "timeout", cmp.Or(s.timeout, 30*time.Second), "give up after this `time`, also when waiting for a server that starts; measurements do not")
}

// note notes which flags were given.
func (s *session) note(fs *flag.FlagSet) {
	fs.Visit(func(f *flag.Flag) { s.given[f.Name] = true })
}

// settle finds what no flag says: in the environment, then in the context, then what is usual. A context named by --context leaves the
// environment aside. Any other context, that of the environment or the current one, counts only as long as neither a flag nor the environment
// names an endpoint: its token is for its own.
func (s *session) settle() error {
	env := s.getenv
	if s.given["context"] {
		env = func(string) string { return "" }
	}
	c := settings{}
	if s.context != "" || !s.given["endpoint"] && env("KVSTORE_ENDPOINT") == "" {
		var err error
		if c, s.context, err = s.inContext(cmp.Or(s.context, env("KVSTORE_CONTEXT"))); err != nil {
			return err
		}
	}
	for _, t := range []struct {
		flag, env string
		at        *string
		context   string
	}{
		{"endpoint", "KVSTORE_ENDPOINT", &s.endpoint, c.Endpoint},
		{"keyspace", "KVSTORE_KEYSPACE", &s.keyspace, c.Keyspace},
		{"namespace", "KVSTORE_NAMESPACE", &s.namespace, c.Namespace},
		{"ca", "KVSTORE_CA", &s.door.ca, c.CA},
		{"cert", "KVSTORE_CERT", &s.door.cert, c.Cert},
		{"key", "KVSTORE_KEY", &s.door.key, c.Key},
		{"server-name", "KVSTORE_SERVER_NAME", &s.door.server, c.ServerName},
	} {
		if !s.given[t.flag] {
			*t.at = cmp.Or(env(t.env), t.context)
		}
	}
	s.endpoint = cmp.Or(s.endpoint, defaultEndpoint)
	if !s.given["tls"] {
		on, _ := strconv.ParseBool(env("KVSTORE_TLS"))
		s.door.tls = on || c.TLS
	}
	if !s.given["insecure"] {
		s.door.insecure = c.Insecure
	}
	// The token, by whichever way it comes first.
	switch {
	case s.given["token-file"]:
	case env("KVSTORE_TOKEN_FILE") != "" || env("KVSTORE_TOKEN") != "":
		s.door.tokenFile, s.door.token = env("KVSTORE_TOKEN_FILE"), env("KVSTORE_TOKEN")
	default:
		s.door.tokenFile, s.door.token = c.TokenFile, c.Token
	}
	return nil
}

// isAddress tells whether a word is one or more servers: host:port or a URI.
func isAddress(word string) bool {
	return word != "" && !slices.ContainsFunc(strings.Split(word, ","), func(a string) bool {
		if strings.HasPrefix(a, "grpc://") || strings.HasPrefix(a, "grpcs://") {
			return false
		}
		host, port, err := net.SplitHostPort(a)
		_, no := strconv.ParseUint(port, 10, 16)
		return err != nil || host == "" || no != nil
	})
}
