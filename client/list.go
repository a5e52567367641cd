package client

import (
	"context"
	"iter"

	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// ListOptions choose what List and Count walk over. The zero value is the whole namespace.
type ListOptions struct {
	Prefix   string // only keys that begin with this
	Start    string // only keys from this one on (inclusive)
	End      string // only keys before this one (exclusive); empty = no end
	KeysOnly bool   // leave the values out
	PageSize int    // entries fetched at a time: 1 to 1,000; 0 = 100
}

// List walks over keys in byte order, fetching page after page. A value over the server's inline limit is left out:
// Size is then more than len(Value), and Get brings it. Pages are not one snapshot. After an error the walk ends.
//
//	for entry, err := range c.List(ctx, &client.ListOptions{Prefix: "user/"}) {
//		if err != nil { return err }
//		fmt.Println(entry.Key)
//	}
func (c *Client) List(ctx context.Context, o *ListOptions) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for page, err := range c.Pages(ctx, o) {
			if err != nil {
				yield(Entry{}, err)
				return
			}
			for _, e := range page.Entries {
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// Page is some entries of a list, fetched together.
type Page struct {
	Entries []Entry
	// Watch is for WatchOptions.Token: a watch from there on misses nothing that changed after the first page of the list was read. All
	// pages of a list have the same.
	Watch []byte
}

// Pages is List page by page. Also a list without entries has a page.
func (c *Client) Pages(ctx context.Context, o *ListOptions) iter.Seq2[Page, error] {
	return func(yield func(Page, error) bool) {
		req := c.listRequest(o)
		for {
			resp, err := c.list(ctx, req)
			if err != nil {
				yield(Page{}, err)
				return
			}
			page := Page{Entries: make([]Entry, len(resp.Entries)), Watch: resp.WatchToken}
			for i, e := range resp.Entries {
				page.Entries[i] = fromEntry(e)
			}
			if !yield(page, nil) || len(resp.NextPageToken) == 0 {
				return
			}
			req.PageToken = resp.NextPageToken
		}
	}
}

// Count tells how many keys List would bring.
func (c *Client) Count(ctx context.Context, o *ListOptions) (int64, error) {
	req := c.listRequest(o)
	req.CountOnly = true
	resp, err := c.list(ctx, req)
	if err != nil {
		return 0, err
	}
	return resp.Count, nil
}

func (c *Client) listRequest(o *ListOptions) *kvstorev1.ListRequest {
	req := &kvstorev1.ListRequest{Keyspace: c.keyspace, Namespace: c.namespace}
	if o != nil {
		req.Prefix, req.Start, req.End = []byte(o.Prefix), []byte(o.Start), []byte(o.End)
		req.KeysOnly, req.PageSize = o.KeysOnly, int32(o.PageSize)
	}
	return req
}

func (c *Client) list(ctx context.Context, req *kvstorev1.ListRequest) (*kvstorev1.ListResponse, error) {
	return unary(ctx, c.core, reads, "list", kvStub, kvstorev1.KVServiceClient.List, req)
}
