// Package client is the Go client of KVStore: keys and values, transactions, big values as streams, prompt-cache blocks
// and administration.
//
//	c, err := client.Dial(ctx, client.Config{Endpoints: []string{"127.0.0.1:8085"}})
//	if err != nil { ... }
//	defer c.Close()
//	put, err := c.Put(ctx, "user/42", []byte("Ada"), &client.PutOptions{If: client.IfAbsent(), TTL: time.Hour})
//	entry, err := c.Get(ctx, "user/42", nil)
//	if errors.Is(err, client.ErrNotFound) { ... }
//
// A Client is safe for any number of goroutines, and is faster the more of them there are: Put, Get and Delete of all
// callers share one Pipeline stream per connection. What gathers while the sender is busy leaves as one frame; no timer
// holds anything back, so a lone caller waits for nobody.
//
// # Repetition
//
// Every write has an identity (the client's random id and a counter) that a repetition carries again, so the server
// applies it once however often it arrives. Therefore the client itself repeats what was lost with a connection and
// what the server refused for the moment (kinds Unavailable, and Exhausted, Overloaded and RateLimited with a time to wait) until
// the context ends or Config.RetryFor is over. A token that is refused is read anew once, where Config.TokenFile names one. Nothing else is repeated. A write that ends without an answer fails with
// ErrOutcomeUnknown, or with the context's error: it may or may not have been applied.
//
// # Errors
//
// All errors are *kverr.Error; test them with errors.Is against the Err sentinels of this package, or take Kind, the
// key's current version and the rest with errors.As. A cancelled call also is context.Canceled or
// context.DeadlineExceeded to errors.Is.
//
// # Limits
//
// Config.MaxOutstanding bounds the operations under way per connection; more callers wait. Values over 256 KiB travel
// on a stream of their own. Replies may come out of order, so two writes of one key that were issued side by side are
// applied in either order; a call issued after another returned is applied after it. A call whose context has no deadline
// waits as long as the connection lives; a dead peer is noticed within 40 s.
//
// # Doors
//
// A server on another machine wants TLS and usually a token: Config.CAFile and Config.TokenFile, or their neighbours. What cannot work
// (another CA, another name, plain text on one side) fails at once with ErrUnauthenticated and says what to do.
//
// This package keeps no cache and no local state, and reads no files but those that Config names.
package client
