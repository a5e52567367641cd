package main

import (
	"errors"
	"fmt"
	"strings"

	"kvstore/client"
	"kvstore/components/kverr"
)

// exitCode is the promise of the exit codes.
func exitCode(err error) int {
	var usage usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	switch kverr.KindOf(err) {
	case kverr.NotFound:
		return exitNotFound
	case kverr.VersionMismatch, kverr.AlreadyExists:
		return exitConflict
	case kverr.Unavailable, kverr.OutcomeUnknown, kverr.DeadlineExceeded, kverr.Exhausted, kverr.Overloaded, kverr.RateLimited, kverr.NoSpace:
		return exitUnavailable
	}
	return exitError
}

// kindOf is the kind of an error; of none it is one that no other has.
func kindOf(err error) kverr.Kind {
	if err == nil {
		return none
	}
	return kverr.KindOf(err)
}

// none is the kind of no error.
const none = kverr.Kind(0xff)

// hint says what to do about an error; empty when there is nothing to say beyond the error.
func hint(s *session, err error) string {
	var usage usageError
	if errors.As(err, &usage) {
		if s.command != "" {
			return fmt.Sprintf(`"kvctl help %s" explains it`, s.command)
		}
		return `"kvctl help" lists the commands, "kvctl help COMMAND" explains one`
	}
	e := kverr.From(err)
	switch e.Kind {
	case kverr.Unavailable:
		if s.c == nil {
			return fmt.Sprintf("is a server running at %s? Start one with kvstored, or name another with --endpoint or KVSTORE_ENDPOINT", s.endpoint)
		}
		return "nothing was changed; try again"
	case kverr.DeadlineExceeded:
		if s.c == nil {
			text := fmt.Sprintf("nobody answers at %s; name the server with --endpoint or KVSTORE_ENDPOINT", s.endpoint)
			if !s.door.wantsTLS(s.endpoint) { // some proxies lose what a server says of plain text
				text += ", and if it speaks TLS, its CA with --ca"
			}
			return text
		}
		return "--timeout gives it longer; a write may have been applied nevertheless: read to see"
	case kverr.OutcomeUnknown, kverr.Expired:
		return "the write may or may not have been applied: read to see"
	case kverr.VersionMismatch:
		switch s.command {
		case "txn", "batch":
			return ""
		case "namespace update":
			return fmt.Sprintf("somebody else was faster: get the namespace, and try again with --if-version %d", e.CurrentVersion)
		}
		if e.CurrentVersion != 0 {
			return fmt.Sprintf("somebody else was faster: get the key, and try again with --if-version %d", e.CurrentVersion)
		}
		if s.command == "del" {
			return "there is no such key now, so there is nothing to remove"
		}
		return "there is no such key now: --if-absent creates it"
	case kverr.AlreadyExists:
		switch s.command {
		case "txn", "batch":
			return ""
		case "namespace create":
			return "kvctl namespace ls shows what there is; kvctl namespace update changes limits"
		case "keyspace create":
			return "kvctl keyspace ls shows what there is"
		}
		return "without --if-absent it is overwritten; --if-version changes a version that you know"
	case kverr.TooLarge:
		if s.command == "put" && (e.Field == "head.size" || e.Field == "put.value") {
			return "the server decides: kvstored -max-value-bytes allows up to 512 MiB"
		}
	case kverr.NotFound:
		if strings.HasPrefix(e.Message, "no namespace ") {
			return "name one with --namespace, or make it: kvctl namespace create NAME"
		}
		if strings.HasPrefix(e.Message, "no keyspace ") {
			return "name one with --keyspace, or make it: kvctl keyspace create NAME"
		}
	case kverr.CrossPartition:
		return "give the keys of a transaction a common {tag}, as in {user42}name and {user42}mail"
	case kverr.WrongKind:
		return "name a namespace of the right kind with --namespace; kvctl namespace ls shows the kinds"
	case kverr.ValueTooLarge:
		return "get this key alone: it then comes as a stream"
	case kverr.NoSpace:
		return "make room on the store's disk (kvctl status shows how much is missing); then writes and deletes pass again by themselves"
	case kverr.Exhausted:
		return "the server is at a limit now: try again later, or delete something"
	case kverr.Overloaded:
		return "more is written than the server's engine takes: try again later, or write less at once"
	case kverr.RateLimited:
		return "come more slowly, or raise the limit: kvctl namespace update NAME --rate N, and -client-rate of the server"
	case kverr.DataLoss:
		return "stored data is damaged; kvctl status tells about the shards"
	case kverr.Unauthenticated:
		if e.Err != nil { // a handshake
			return "TLS: --ca FILE names the CA, --server-name the server, --cert and --key a client certificate (kvctl help lists the environment)"
		}
		return "set KVSTORE_TOKEN, or name a file with --token-file; kvctl token new makes tokens for the server's tokens file"
	case kverr.PermissionDenied:
		return "whoever keeps the server's tokens file can grant it: KEYSPACE=read, =write or =admin, or server-admin, or metrics"
	case kverr.InvalidArgument:
		if s.c == nil && s.door.exposed(s.endpoint) && strings.Contains(e.Message, "plain text") {
			return "--ca FILE or --tls turns TLS on; --insecure sends the token nevertheless"
		}
	case kverr.Canceled:
		return "interrupted; a write under way may have been applied"
	}
	return ""
}

// noKey makes the error of a key that is not there say which.
func noKey(key string, err error) error {
	if errors.Is(err, client.ErrNotFound) {
		return fmt.Errorf("%q: %w", key, err)
	}
	return err
}
