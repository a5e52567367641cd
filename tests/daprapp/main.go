// Command daprapp is an app of somebody who uses Dapr, and KVStore as one more service: it reaches it by Dapr's service invocation, through
// its own sidecar, as app-id "kvstore". It knows no address of KVStore's, only the generated code of its API.
//
//	dapr run --app-id shop -- daprapp 100
//
// writes, reads, compares and lists 100 keys, and moves a large value through a stream. Environment: DAPR_GRPC_PORT and DAPR_API_TOKEN, which
// dapr run and operators set; KVSTORE_TOKEN, if the store wants one; KVSTORE_APP_ID, if it has another app-id.
package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strconv"
	"time"

	dapr "github.com/dapr/go-sdk/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kvv1 "kvstore/proto/gen/kvstore/v1"
)

func main() {
	log.SetFlags(0)
	keys := 10
	if len(os.Args) > 1 {
		var err error
		if keys, err = strconv.Atoi(os.Args[1]); err != nil {
			log.Fatalf("usage: daprapp [number of keys]: %v", err)
		}
	}
	if err := run(keys); err != nil {
		log.Fatalf("daprapp: %v", err)
	}
	fmt.Printf("daprapp: %d keys and a large value came back as they were written\n", keys)
}

func run(keys int) error {
	to := headers{"dapr-app-id": cmp.Or(os.Getenv("KVSTORE_APP_ID"), "kvstore")}
	if token := os.Getenv("KVSTORE_TOKEN"); token != "" {
		to["authorization"] = "Bearer " + token
	}
	sidecar, err := dapr.NewClient(grpc.WithPerRPCCredentials(to))
	if err != nil {
		return err
	}
	defer sidecar.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	kv := kvv1.NewKVServiceClient(sidecar.GrpcClientConn())
	for i := range keys {
		if err := one(ctx, kv, fmt.Sprintf("daprapp/%d", i)); err != nil {
			return err
		}
	}
	if err := list(ctx, kv, keys); err != nil {
		return err
	}
	return large(ctx, kv)
}

// headers go with each call. The context's metadata would not do: with DAPR_API_TOKEN set, go-sdk 1.15 puts the token in its place.
type headers map[string]string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (h headers) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return h, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials: a sidecar is on this machine, without TLS.
func (headers) RequireTransportSecurity() bool { return false }

// one writes a key, reads it, writes it again only if it is unchanged, and is told that it is not.
func one(ctx context.Context, kv kvv1.KVServiceClient, key string) error {
	first, err := kv.Put(ctx, &kvv1.PutRequest{Put: &kvv1.PutOp{Key: []byte(key), Value: []byte("first")}})
	if err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	version := first.Result.Version
	unchanged := &kvv1.Precondition{Check: &kvv1.Precondition_IfVersion{IfVersion: version}}
	if _, err := kv.Put(ctx, &kvv1.PutRequest{Put: &kvv1.PutOp{Key: []byte(key), Value: []byte("second"), Precondition: unchanged}}); err != nil {
		return fmt.Errorf("put %s if it has version %d: %w", key, version, err)
	}
	_, err = kv.Put(ctx, &kvv1.PutRequest{Put: &kvv1.PutOp{Key: []byte(key), Value: []byte("third"), Precondition: unchanged}})
	if status.Code(err) != codes.Aborted {
		return fmt.Errorf("put %s if it has version %d, which it has no more: %w, want Aborted", key, version, err)
	}
	got, err := kv.Get(ctx, &kvv1.GetRequest{Get: &kvv1.GetOp{Key: []byte(key)}})
	if err != nil {
		return fmt.Errorf("get %s: %w", key, err)
	}
	if string(got.Entry.Value) != "second" {
		return fmt.Errorf("%s is %q", key, got.Entry.Value)
	}
	return nil
}

// list counts the keys.
func list(ctx context.Context, kv kvv1.KVServiceClient, want int) error {
	got, token := 0, []byte(nil)
	for {
		page, err := kv.List(ctx, &kvv1.ListRequest{Prefix: []byte("daprapp/"), KeysOnly: true, PageToken: token})
		if err != nil {
			return fmt.Errorf("list: %w", err)
		}
		got += len(page.Entries)
		if token = page.NextPageToken; len(token) == 0 {
			break
		}
	}
	if got != want {
		return fmt.Errorf("%d keys listed, want %d", got, want)
	}
	return nil
}

// large moves a value that is too large for a message. Dapr cannot know which calls are streams: they say so themselves.
func large(ctx context.Context, kv kvv1.KVServiceClient) error {
	stream := grpc.PerRPCCredentials(headers{"dapr-stream": "true"})
	const chunk = 256 << 10
	value := bytes.Repeat([]byte("0123456789abcdef"), 8<<20/16)
	key := []byte("daprapp-large")
	put, err := kv.PutStream(ctx, stream)
	if err != nil {
		return fmt.Errorf("put stream: %w", err)
	}
	head := &kvv1.PutStreamRequest_Head{Put: &kvv1.PutOp{Key: key}, Size: int64(len(value))}
	err = put.Send(&kvv1.PutStreamRequest{Part: &kvv1.PutStreamRequest_Head_{Head: head}})
	for rest := value; err == nil && len(rest) > 0; {
		n := min(chunk, len(rest))
		err = put.Send(&kvv1.PutStreamRequest{Part: &kvv1.PutStreamRequest_Chunk{Chunk: rest[:n]}})
		rest = rest[n:]
	}
	if err != nil && !errors.Is(err, io.EOF) { // EOF: the answer has the reason
		return fmt.Errorf("put stream: %w", err)
	}
	if _, err := put.CloseAndRecv(); err != nil {
		return fmt.Errorf("put stream: %w", err)
	}
	get, err := kv.GetStream(ctx, &kvv1.GetStreamRequest{Key: key}, stream)
	if err != nil {
		return fmt.Errorf("get stream: %w", err)
	}
	var got []byte
	for {
		part, err := get.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("get stream: %w", err)
		}
		got = append(got, part.GetChunk()...)
	}
	if !bytes.Equal(got, value) {
		return fmt.Errorf("get stream: %d bytes came back, not the %d that were put", len(got), len(value))
	}
	return nil
}
