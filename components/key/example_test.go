package key_test

import (
	"fmt"

	"kvstore/components/key"
)

// Keys that share a partition key are on one shard, and can be in one transaction.
func ExampleRule_Partition() {
	for _, k := range []string{"{user7}/cart", "{user7}/name", "user7/cart"} {
		fmt.Printf("%s\n", key.HashTag().Partition([]byte(k)))
	}
	tenantAndTable, _ := key.PathElements(2)
	fmt.Printf("%s\n", tenantAndTable.Partition([]byte("/acme/orders/2026/11")))
	// Output:
	// user7
	// user7
	// user7/cart
	// /acme/orders
}

func ExampleCheckName() {
	fmt.Println(key.CheckName("namespace", "Orders"))
	// Output: namespace: is "Orders"; it may have a-z, 0-9, '-', '_' and '.', and begins with a letter or digit
}
