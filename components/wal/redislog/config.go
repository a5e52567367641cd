package redislog

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Config says which Redis an Engine uses, and how. URL is required.
type Config struct {
	// URL is redis://[user[:password]@]host[:port][/database], or rediss:// for TLS. Parameters are refused.
	URL string
	// Username and Password take the place of those in URL. Neither is ever part of an error or a log line.
	Username, Password string
	// PasswordFile holds the password, on its first line; it is read for each new connection, so that it may change. It takes the place of
	// Password.
	PasswordFile string
	// CAFile holds PEM certificates that a server of rediss:// is verified with; empty = the system's. The server must have the name of
	// URL's host.
	CAFile string
	// Cluster says that URL names a node of a Redis Cluster. Its database is 0.
	Cluster bool
	// Sentinel is the name of a master that URL's host, a Redis Sentinel, knows the address of. Empty: URL is the server itself.
	Sentinel string

	// Prefix begins every key. Default "kvstore". It has 1 to 32 of a-z, 0-9, '-'.
	Prefix string
	// Term is the lease term of shards. Default 1 s, at least 100 ms.
	Term time.Duration
	// Reserve is how many bytes below maxmemory appends and values stop with ErrNoSpace, so that checkpoints, which let the log be
	// trimmed, still have room. 0 = a sixteenth of maxmemory, at most 256 MiB; negative = none.
	Reserve int64
	// Relaxed says that it is known, and wanted, that this Redis may lose what was acknowledged: Open then does not warn of it.
	Relaxed bool

	// Pipelines is how many connections carry appends. Default 1, at most 64: more of them are for a server far away.
	Pipelines int
	// Connections bounds those for everything else. Default 16, at most 1024.
	Connections int
	// Timeout is how long a connection may take to be made, and a reply to come. Default 2 s.
	Timeout time.Duration
	// Settle is how long a request that failed with an unknown outcome, or that the server could not take, is tried again. Default 5 s.
	Settle time.Duration

	// Warn is told, at Open, what this Redis can lose. It may be nil.
	Warn func(error)

	// dial makes connections; nil is a net.Dialer.
	dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	if c.Prefix == "" {
		c.Prefix = "kvstore"
	}
	if c.Term == 0 {
		c.Term = time.Second
	}
	if c.Pipelines == 0 {
		c.Pipelines = 1
	}
	if c.Connections == 0 {
		c.Connections = 16
	}
	if c.Timeout == 0 {
		c.Timeout = 2 * time.Second
	}
	if c.Settle == 0 {
		c.Settle = 5 * time.Second
	}
	if c.Warn == nil {
		c.Warn = func(error) {}
	}
}

// Validate returns every fault of the configuration, joined.
func (c *Config) Validate() error {
	var faults []error
	if _, err := c.options(); err != nil {
		faults = append(faults, err)
	}
	if c.Cluster && c.Sentinel != "" {
		faults = append(faults, errors.New("Config.Cluster and Config.Sentinel are both set: a cluster finds its masters by itself"))
	}
	if len(c.Prefix) < 1 || len(c.Prefix) > 32 || !plain(c.Prefix) {
		faults = append(faults, fmt.Errorf("Config.Prefix is %q: must be 1 to 32 of a-z, 0-9, '-'", c.Prefix))
	}
	if c.Term < 100*time.Millisecond {
		faults = append(faults, fmt.Errorf("Config.Term is %v: must be at least 100ms", c.Term))
	}
	if c.Pipelines < 1 || c.Pipelines > 64 {
		faults = append(faults, fmt.Errorf("Config.Pipelines is %d: must be 1 to 64", c.Pipelines))
	}
	if c.Connections < 1 || c.Connections > 1024 {
		faults = append(faults, fmt.Errorf("Config.Connections is %d: must be 1 to 1024", c.Connections))
	}
	if c.Timeout < 0 || c.Settle < 0 {
		faults = append(faults, fmt.Errorf("Config.Timeout is %v and Settle %v: must not be negative", c.Timeout, c.Settle))
	}
	return errors.Join(faults...)
}

func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// Redacted is URL without what must not be seen.
func (c *Config) Redacted() string {
	u, err := url.Parse(c.URL)
	if err != nil {
		return "(not a URL)"
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}

// options makes the client's options. The client never tries anything again by itself: only the engine knows what may be repeated.
func (c *Config) options() (*redis.UniversalOptions, error) {
	u, err := url.Parse(c.URL)
	switch {
	case err != nil: // the error quotes the URL, and with it the password
		return nil, errors.New("URL cannot be parsed: it must be redis://host:port/database, or rediss://")
	case u.Scheme != "redis" && u.Scheme != "rediss":
		return nil, fmt.Errorf("URL %s: the scheme must be redis or rediss", c.Redacted())
	case u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("URL %s: it takes no parameters", c.Redacted())
	case u.Hostname() == "":
		return nil, fmt.Errorf("URL %s: it names no host", c.Redacted())
	}
	parsed, err := redis.ParseURL(c.URL)
	if err != nil {
		return nil, fmt.Errorf("URL %s: it must be redis://host:port/database, or rediss://", c.Redacted())
	}
	if c.Cluster && parsed.DB != 0 {
		return nil, fmt.Errorf("URL %s: a cluster has no database but 0", c.Redacted())
	}
	o := &redis.UniversalOptions{
		Addrs: []string{parsed.Addr}, DB: parsed.DB, Username: parsed.Username, Password: parsed.Password,
		TLSConfig: parsed.TLSConfig, IsClusterMode: c.Cluster, MasterName: c.Sentinel,
		MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true,
		DialTimeout: c.Timeout, ReadTimeout: c.Timeout, WriteTimeout: c.Timeout, PoolTimeout: c.Timeout,
		PipelinePoolSize: -1, Protocol: 2, DisableIdentity: true, ClientName: "kvstore", Dialer: c.dial,
	}
	if c.Username != "" {
		o.Username = c.Username
	}
	if c.Password != "" {
		o.Password = c.Password
	}
	if c.PasswordFile != "" {
		if _, err := c.readPassword(); err != nil {
			return nil, err
		}
		username := o.Username
		o.CredentialsProviderContext = func(context.Context) (string, string, error) {
			password, err := c.readPassword()
			return username, password, err
		}
	}
	if c.CAFile != "" {
		if o.TLSConfig == nil {
			return nil, fmt.Errorf("Config.CAFile is set and URL %s is not rediss://", c.Redacted())
		}
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("Config.CAFile: %w", err)
		}
		o.TLSConfig.RootCAs = x509.NewCertPool()
		if !o.TLSConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("Config.CAFile %s holds no certificate", c.CAFile)
		}
	}
	return o, nil
}

func (c *Config) readPassword() (string, error) {
	data, err := os.ReadFile(c.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("Config.PasswordFile: %w", err)
	}
	line, _, _ := strings.Cut(string(data), "\n")
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return "", fmt.Errorf("Config.PasswordFile %s: its first line is empty", c.PasswordFile)
	}
	return line, nil
}
