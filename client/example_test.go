package client_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kvstore/client"
	"kvstore/client/clienttest"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// connect stands for client.Dial with the address of a server:
//
//	c, err := client.Dial(ctx, client.Config{Endpoints: []string{"127.0.0.1:8085"}})
func connect() (c *client.Client, done func()) {
	srv := clienttest.New()
	c, err := client.Dial(context.Background(), client.Config{Endpoints: []string{srv.Addr()}})
	if err != nil {
		panic(err)
	}
	return c, func() { _ = c.Close(); srv.Stop() }
}

func ExampleClient_Put() {
	c, done := connect()
	defer done()
	ctx := context.Background()
	first, err := c.Put(ctx, "user/42", []byte("Ada"), &client.PutOptions{If: client.IfAbsent(), TTL: time.Hour})
	fmt.Println(first.Created, err)
	_, err = c.Put(ctx, "user/42", []byte("Grace"), &client.PutOptions{If: client.IfVersion(first.Version + 7)})
	fmt.Println(errors.Is(err, client.ErrVersionMismatch))
	_, err = c.Get(ctx, "user/43", nil)
	fmt.Println(errors.Is(err, client.ErrNotFound))
	// Output:
	// true <nil>
	// true
	// true
}

func ExampleClient_List() {
	c, done := connect()
	defer done()
	ctx := context.Background()
	for _, k := range []string{"b", "a/2", "a/1"} {
		if _, err := c.Put(ctx, k, []byte("value of "+k), nil); err != nil {
			panic(err)
		}
	}
	for entry, err := range c.List(ctx, &client.ListOptions{Prefix: "a/"}) {
		if err != nil {
			panic(err)
		}
		fmt.Println(entry.Key, string(entry.Value))
	}
	// Output:
	// a/1 value of a/1
	// a/2 value of a/2
}

func ExampleTxn() {
	c, done := connect()
	defer done()
	ctx := context.Background()
	balance, _ := c.Put(ctx, "{42}balance", []byte("100"), nil)
	take := func() (client.TxnResult, error) {
		return c.Txn().
			If("{42}balance", client.IfVersion(balance.Version)).
			Put("{42}balance", []byte("90"), nil).
			Put("{42}log", []byte("took 10"), nil).
			Commit(ctx)
	}
	res, err := take()
	fmt.Println(res.Committed, err)
	res, err = take() // the version has moved on
	fmt.Println(res.Committed, res.Failures[0].Key, err)
	// Output:
	// true <nil>
	// false {42}balance <nil>
}

func ExampleClient_Prompt() {
	c, done := connect()
	defer done()
	ctx := context.Background()
	if _, err := c.CreateNamespace(ctx, &kvstorev1.Namespace{
		Name: "prompts", Kind: kvstorev1.NamespaceKind_NAMESPACE_KIND_PROMPT,
	}); err != nil {
		panic(err)
	}
	p := c.In("", "prompts").Prompt(client.Scope{"model": "llama-8b", "dtype": "fp16"})
	chain := []client.BlockRef{{ID: []byte("b0")}, {ID: []byte("b1"), Depth: 1}, {ID: []byte("b2"), Depth: 2}}
	if _, err := p.Write(ctx, []client.NewBlock{
		{BlockRef: chain[0], Data: []byte("first")}, {BlockRef: chain[1], Data: []byte("second"), Parent: chain[0].ID},
	}, nil); err != nil {
		panic(err)
	}
	found, err := p.Lookup(ctx, chain, &client.LookupOptions{Lease: 5 * time.Second})
	fmt.Println(found.Count, "of", len(chain), err)
	for b, err := range p.Read(ctx, chain[:found.Count], nil) {
		if err != nil {
			panic(err)
		}
		fmt.Println(b.Index, string(b.Data))
	}
	fmt.Println(p.Release(ctx, found.Lease))
	// Output:
	// 2 of 3 <nil>
	// 0 first
	// 1 second
	// <nil>
}
